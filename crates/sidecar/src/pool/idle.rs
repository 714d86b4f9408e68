//! The server connections of a pool that nobody uses; who came home last is lent first.
//!
//! deadpool opens connections and owns them, and would keep the idle ones as well; but to get one from it is a
//! future with hooks and time limits, which cost more than all the rest of a checkout. So what it has opened
//! stays with the pool's own until it is closed.

use std::sync::Arc;

use deadpool_postgres::{Client, ClientWrapper};
use parking_lot::{Mutex, MutexGuard};
use pgleash_core::CloseReason;
use pgleash_wire::parameters::Vars;

use crate::upstream::server_conn::ServerConn;

/// A connection that nobody uses, or that somebody has. Dropping it closes the connection: its owner may have been
/// in the middle of something, and deadpool would keep it where nobody looks.
pub(crate) struct PooledConn {
    /// Its side for SQL, until it is dropped. On the heap, as it is large and changes hands often.
    object: Option<Box<Client>>,
    pub(crate) conn: Arc<ServerConn>,
}

/// A pool's idle connections.
pub(crate) struct IdleConns(Mutex<Shelf>);

enum Shelf {
    /// The newest last. Goes to `Closed`.
    Open(Vec<PooledConn>),
    Closed,
}

impl IdleConns {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Shelf::Open(Vec::new())))
    }

    /// The newest on which these parameters are set already, or else the newest.
    pub(crate) fn take_like(&self, vars: &Arc<Vars>) -> Option<PooledConn> {
        match &mut *self.lock() {
            Shelf::Open(spares) => match spares.iter().rposition(|pooled| pooled.conn.has_applied(vars)) {
                Some(at) => Some(spares.remove(at)),
                None => spares.pop(),
            },
            Shelf::Closed => None,
        }
    }

    /// Back with it. In a closed pool it is closed.
    pub(crate) fn put(&self, pooled: PooledConn) {
        let closed = match &mut *self.lock() {
            Shelf::Open(spares) => {
                spares.push(pooled);
                None
            }
            Shelf::Closed => Some(pooled),
        };
        drop(closed);
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(&*self.lock(), Shelf::Open(spares) if spares.is_empty())
    }

    /// Closes those that `keep` has no use for.
    pub(crate) fn retain(&self, mut keep: impl FnMut(&PooledConn) -> bool) {
        let dropped: Vec<PooledConn> = match &mut *self.lock() {
            Shelf::Open(spares) => spares.extract_if(.., |pooled| !keep(pooled)).collect(),
            Shelf::Closed => Vec::new(),
        };
        drop(dropped);
    }

    /// Closes all of them, and whatever is put back later.
    pub(crate) fn close(&self) {
        let before = std::mem::replace(&mut *self.lock(), Shelf::Closed);
        drop(before);
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock()
    }
}

impl PooledConn {
    /// One that deadpool has opened.
    pub(crate) fn new(object: Client, conn: Arc<ServerConn>) -> Self {
        Self { object: Some(Box::new(object)), conn }
    }

    /// Its side for SQL.
    pub(crate) fn object(&self) -> &ClientWrapper {
        self.object.as_ref().expect("present until it is dropped")
    }
}

impl Drop for PooledConn {
    fn drop(&mut self) {
        let Some(object) = self.object.take() else { return };
        if !object.is_closed() {
            self.conn.closing(CloseReason::Unclean);
        }
        // deadpool has room for another one then.
        drop(Client::take(*object));
    }
}
