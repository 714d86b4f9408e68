//! How a client's session is reached from outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::pool::checkout::Checkout;
use crate::proxy::clients::cancel_key::CancelKey;
use crate::proxy::clients::phase::ClientPhase;
use crate::turn::Turn;
use crate::upstream::holder_handle::HolderState;

/// What others may tell a session to do.
#[derive(Debug, Default)]
pub(crate) struct Orders(AtomicU8);

impl Orders {
    /// Leave at the next quiet moment.
    pub(crate) fn drain(&self) {
        self.0.fetch_max(1, Ordering::AcqRel);
    }

    /// Leave now.
    pub(crate) fn cut(&self) {
        self.0.fetch_max(2, Ordering::AcqRel);
    }

    /// Whether it was told to leave.
    pub(crate) fn is_draining(&self) -> bool {
        self.0.load(Ordering::Acquire) >= 1
    }

    /// Whether it was told to leave now.
    pub(crate) fn is_cut(&self) -> bool {
        self.0.load(Ordering::Acquire) >= 2
    }
}

/// What the rest of the process can reach of a session.
pub(crate) struct SessionHandle {
    /// Told to the client; a cancel request must show it.
    pub key: CancelKey,
    /// Cancel requests, one after the other.
    pub turn: Turn,
    /// What the watchdog sees and does.
    pub holder_state: Arc<HolderState>,
    /// What the drain says.
    pub orders: Orders,
    /// What a cancel request finds.
    pub client_phase: ClientPhase,
}

impl SessionHandle {
    /// Tells the session to leave, now or at the next quiet moment.
    pub(crate) fn order(&self, now: bool) {
        if now {
            self.orders.cut()
        } else {
            self.orders.drain()
        }
        self.holder_state.waker.wake();
    }
}

/// What became of the wait for a connection.
pub(crate) enum Borrowed {
    Lent(Checkout),
    /// The client does not want to wait any longer.
    Cancelled,
    Gone,
}
