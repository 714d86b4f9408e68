//! Who is connected.

pub(crate) mod cancel;
pub(crate) mod cancel_key;
pub(crate) mod hub;
pub(crate) mod limit;
pub(crate) mod phase;
pub(crate) mod session_handle;
