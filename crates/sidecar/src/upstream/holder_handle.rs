//! How the holder of a connection is reached.

use std::sync::Arc;

use futures_util::task::AtomicWaker;
use pgleash_core::Activity;
use tokio::sync::Notify;

/// How the ledger holds a [`HolderState`].
#[derive(Clone, Debug)]
pub(crate) struct HolderHandle(pub Arc<HolderState>);

impl AsRef<Activity> for HolderHandle {
    fn as_ref(&self) -> &Activity {
        &self.0.activity
    }
}

/// What the watchdog needs to reach a holder: what it is doing, and how to wake it.
#[derive(Debug, Default)]
pub(crate) struct HolderState {
    /// What the holder is doing.
    pub activity: Activity,
    /// Wakes the holder's task.
    pub waker: AtomicWaker,
    attention: Arc<Notify>,
}

impl HolderState {
    /// Between checkouts. `attention` wakes the watchdog.
    pub(crate) fn new(attention: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { activity: Activity::new(), waker: AtomicWaker::new(), attention })
    }

    /// The holder's task tells the watchdog that there is nothing to read.
    pub(crate) fn answer(&self) {
        self.activity.answer();
        self.attention.notify_one();
    }
}
