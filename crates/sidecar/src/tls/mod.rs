//! TLS on both sides.

pub mod listener;
pub mod upstream;
