//! Clients on one side, connections on the other.

pub(crate) mod auth;
pub(crate) mod clients;
pub(crate) mod listener;
pub(crate) mod login;
pub(crate) mod relay;
pub(crate) mod session;
