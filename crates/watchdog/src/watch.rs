//! What the loop shares with the rest of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pgleash_core::Moment;
use tokio::sync::Notify;

/// What the loop shares with the rest of the process: its heartbeat, its bell, and whether it may still act.
#[derive(Debug, Default)]
pub struct Watch {
    heartbeat: AtomicU64,
    disarmed: AtomicBool,
    stopped: AtomicBool,
    attention: Arc<Notify>,
}

impl Watch {
    /// A heart that is silent for longer has stopped.
    pub const STALE: Duration = Duration::from_secs(10);

    /// Stops enforcement, before a drain: draining is not leaking.
    pub fn disarm(&self) {
        self.disarmed.store(true, Ordering::Release);
    }

    /// Whether verdicts are not carried out any more.
    pub fn is_disarmed(&self) -> bool {
        self.disarmed.load(Ordering::Acquire)
    }

    /// When the loop last looked at every pool.
    pub fn last_look(&self) -> Moment {
        Moment::from_nanos(self.heartbeat.load(Ordering::Acquire))
    }

    /// The bell of the loop: who rings it makes it look before its time.
    pub fn attention(&self) -> &Arc<Notify> {
        &self.attention
    }

    /// Ends the loop, after the look that goes on.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.attention.notify_one();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn beat(&self, now: Moment) {
        self.heartbeat.store(now.as_nanos(), Ordering::Release);
    }
}
