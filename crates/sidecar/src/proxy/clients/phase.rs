//! Where a session stands, as a cancel request finds it.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::upstream::server_conn::{Cancel, ServerConn};

/// What a cancel request can do about a session.
#[derive(Default)]
pub(crate) struct ClientPhase(Mutex<Where>);

#[derive(Default)]
enum Where {
    /// It has nothing to cancel. Goes to `Waits`.
    #[default]
    Idle,
    /// It has a statement, and no connection yet. Goes to `Cancelled`, `Has` or `Idle`.
    Waits,
    /// It need not wait any longer. Goes to `Idle`.
    Cancelled,
    /// It runs there. Goes to `Idle`.
    Has(Arc<ServerConn>),
}

/// What a cancel request has found.
pub(crate) enum Found {
    /// Nothing to cancel: it came too late.
    Nothing,
    /// A session that waits, which has been told.
    Waiting,
    /// A connection, on which a cancel is announced.
    Running(Cancel),
}

impl ClientPhase {
    /// The client has begun a statement, and has no connection for it.
    pub(crate) fn waits(&self) {
        *self.lock() = Where::Waits;
    }

    /// The client has no statement under way.
    pub(crate) fn rests(&self) {
        *self.lock() = Where::Idle;
    }

    /// The client's statements run there from now on, unless it was cancelled while it waited.
    #[must_use]
    pub(crate) fn has(&self, conn: &Arc<ServerConn>) -> bool {
        let mut now = self.lock();
        let may = !matches!(*now, Where::Cancelled);
        *now = if may { Where::Has(Arc::clone(conn)) } else { Where::Idle };
        may
    }

    /// Whether it was cancelled while it waited.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(*self.lock(), Where::Cancelled)
    }

    /// A cancel request has come. It is announced under the lock, so that it is either announced before the
    /// connection is given back, or not at all.
    pub(crate) fn cancel(&self) -> Found {
        let mut now = self.lock();
        match &*now {
            Where::Idle => Found::Nothing,
            Where::Has(conn) => Found::Running(conn.announce_cancel()),
            Where::Waits | Where::Cancelled => {
                *now = Where::Cancelled;
                Found::Waiting
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Where> {
        self.0.lock()
    }
}
