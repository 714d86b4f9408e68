//! What is done with a connection when its holder has left it.

use std::sync::Arc;

use pgleash_core::CheckoutId;

use crate::pool::idle::PooledConn;
use crate::pool::permits::Permit;
use crate::upstream::server_conn::ServerConn;
use crate::upstream::wire_lease::Wire;

/// What goes back when a checkout ends. The slot last: whoever waits for the slot finds the connection.
pub(crate) struct Lease {
    pub(crate) pooled: PooledConn,
    pub(crate) permit: Permit,
}

/// A connection to clean, with the slot it occupies until then.
pub(crate) struct Job {
    pub(crate) conn: Arc<ServerConn>,
    pub(crate) checkout: CheckoutId,
    pub(crate) lease: Lease,
    pub(crate) wire: Option<Box<Wire>>,
    pub(crate) plan: Plan,
}

/// How a connection is to be cleaned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Roll back if needed and reset; the wire is at a frame boundary and nothing is in flight.
    Reset,
    /// A statement is in flight for nobody: cancel it and wait for its end, then as `Reset`.
    Cancel,
    /// In mid-protocol: cancel what may still run, and close.
    Close,
    /// The server is not there any more: close.
    Lost,
}
