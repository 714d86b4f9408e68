//! Sockets and streams, whoever is at the other end.

pub(crate) mod inherited_sockets;
pub(crate) mod stream;
pub(crate) mod unix_socket;
