//! The server connections of a pool that nobody uses; who came home last is lent first. Floor 3.
//!
//! deadpool opens connections and owns them, and would keep the idle ones as well; but to get one from it is a
//! future with hooks and time limits, which cost more than all the rest of a checkout. So what it has opened
//! stays with the pool's own until it is closed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use deadpool_postgres::Client;

use crate::conn::ServerConn;

/// A connection that nobody uses, or that somebody has.
pub(crate) struct Spare {
    /// Its side for SQL. On the heap, as it is large and changes hands often.
    pub(crate) object: Box<Client>,
    pub(crate) conn: Arc<ServerConn>,
}

/// A pool's idle connections.
pub(crate) struct Rack(Mutex<Shelf>);

enum Shelf {
    /// The newest last. Goes to `Closed`.
    Open(Vec<Spare>),
    Closed,
}

impl Rack {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Shelf::Open(Vec::new())))
    }

    /// The one that came last.
    pub(crate) fn take(&self) -> Option<Spare> {
        match &mut *self.lock() {
            Shelf::Open(spares) => spares.pop(),
            Shelf::Closed => None,
        }
    }

    /// Back with it. In a closed pool it is closed.
    pub(crate) fn put(&self, spare: Spare) {
        let closed = match &mut *self.lock() {
            Shelf::Open(spares) => {
                spares.push(spare);
                None
            }
            Shelf::Closed => Some(spare),
        };
        closed.into_iter().for_each(Spare::close);
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(&*self.lock(), Shelf::Open(spares) if spares.is_empty())
    }

    /// Closes those that `keep` has no use for.
    pub(crate) fn retain(&self, mut keep: impl FnMut(&Spare) -> bool) {
        let dropped: Vec<Spare> = match &mut *self.lock() {
            Shelf::Open(spares) => spares.extract_if(.., |spare| !keep(spare)).collect(),
            Shelf::Closed => Vec::new(),
        };
        dropped.into_iter().for_each(Spare::close);
    }

    /// Closes all of them, and whatever is put back later.
    pub(crate) fn close(&self) {
        let before = std::mem::replace(&mut *self.lock(), Shelf::Closed);
        if let Shelf::Open(spares) = before {
            spares.into_iter().for_each(Spare::close);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spare {
    /// Ends the connection; deadpool has room for another one then.
    pub(crate) fn close(self) {
        drop(Client::take(*self.object));
    }
}
