//! Connections to the server.

pub(crate) mod address;
pub(crate) mod backend_probe;
pub(crate) mod connector;
pub(crate) mod error;
pub(crate) mod holder_handle;
pub(crate) mod outage;
pub(crate) mod server_conn;
pub(crate) mod session_attrs;
pub(crate) mod wire_lease;
