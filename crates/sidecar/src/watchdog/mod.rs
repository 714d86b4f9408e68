//! What the watchdog's loop needs of the sidecar's pools, and what runs beside it.

pub(crate) mod reclaim_by_hand;
pub(crate) mod wait_sampler;

use std::ops::DerefMut;
use std::sync::Arc;

use pgleash_core::{Enforcement, Event, Ledger, Moment, Policy};
use pgleash_watchdog::Pool;

use crate::pool::state::WatchedPool;
use crate::upstream::backend_probe::Backend;
use crate::upstream::holder_handle::HolderHandle;

impl Pool for WatchedPool {
    type Handle = HolderHandle;

    fn policy(&self) -> Arc<Policy> {
        self.inner().policy.load_full()
    }

    fn ledger(&self) -> impl DerefMut<Target = Ledger<HolderHandle>> {
        self.inner().ledger()
    }

    fn enforcement(&self) -> impl DerefMut<Target = Enforcement> {
        self.inner().enforcement.lock()
    }

    fn emit(&self, event: Event) {
        self.inner().sink.emit(event);
    }

    fn wake(&self, handle: &HolderHandle) {
        handle.0.waker.wake();
    }

    async fn waits_for_client(&self, backend_pid: i32) -> bool {
        match self.conn_of(backend_pid) {
            Some(conn) => self.inner().probe.ask(&conn).await == Ok(Backend::WaitsForClient),
            None => false,
        }
    }

    fn looked(&self, now: Moment) {
        self.reap(now);
        wait_sampler::look(self, now);
        self.inner().probe.expire(now);
    }
}
