//! One lending of a server connection, and its three ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use pgleash_core::{CheckoutId, ConnPlace, Event, Evidence, Moment, Pin, Reason, Resolution};

use crate::pool::idle::PooledConn;
use crate::pool::job::{Job, Lease, Plan};
use crate::pool::state::WatchedPool;
use crate::upstream::server_conn::ServerConn;
use crate::upstream::wire_lease::{NotLent, Wire};

/// A server connection that is out. Dropping it closes the connection.
pub(crate) struct Checkout {
    pub(crate) pool: WatchedPool,
    pub(crate) id: CheckoutId,
    pub(crate) lease: Option<Lease>,
}

impl Checkout {
    /// The connection.
    pub(crate) fn conn(&self) -> &Arc<ServerConn> {
        &self.pooled().conn
    }

    /// The SQL side, for use while the wire is at home.
    pub(crate) fn client(&self) -> &ClientWrapper {
        self.pooled().object()
    }

    fn pooled(&self) -> &PooledConn {
        &self.lease.as_ref().expect("present until the checkout is consumed").pooled
    }

    /// Takes the raw wire.
    ///
    /// # Errors
    /// When it is not quiet, or not at home.
    pub(crate) fn lend(&self) -> Result<Box<Wire>, NotLent> {
        self.conn().wire_lease.lend()
    }

    /// The connection stays with its client between transactions, for this reason.
    pub(crate) fn pinned(&self, reason: Pin) {
        self.pool.ledger().pinned(self.id, reason, pgleash_clock::now());
    }

    /// The client has said what the work is called.
    pub(crate) fn routed(&self, route: &Arc<str>) {
        self.pool.ledger().routed(self.id, route, pgleash_clock::now());
    }

    /// The client has said that it will pause for so long. Granted up to `leaks.longest_hold`.
    pub(crate) fn declared(&self, length: Duration) {
        let granted = length.min(self.pool.inner().policy.load().longest_hold);
        self.pool.ledger().declared(self.id, granted);
    }

    /// Why it was taken back, and what is said of it; `None` if it was not.
    pub(crate) fn reclaimed_for(&self) -> Option<(Reason, Evidence)> {
        self.pool.ledger().reclaimed_for(self.id, pgleash_clock::now())
    }

    /// Gives a quiet connection back as it is.
    pub(crate) fn release(mut self, wire: Box<Wire>) {
        if self.conn().has_cancel_in_flight() || self.conn().is_tainted() {
            return self.recycle(Some(wire), Plan::Reset, Resolution::Returned, None);
        }
        let Some(lease) = self.lease.take() else { return };
        let now = pgleash_clock::now();
        let conn = &lease.pooled.conn;
        conn.wire_lease.give_back(wire);
        conn.watched.store(false, Ordering::Relaxed);
        if let Err(reason) = self.pool.keeps(conn, now) {
            self.check_in(ConnPlace::Recycling, Resolution::Returned, now);
            self.pool.discard(lease.pooled, reason);
        } else {
            self.check_in(ConnPlace::Idle, Resolution::Returned, now);
            self.pool.inner().idle_conns.put(lease.pooled);
        }
        drop(lease.permit);
    }

    /// Gives a connection back that has to be cleaned or closed first. `certain` is a leak that is
    /// certain by now, and is told as found and dealt with.
    pub(crate) fn recycle(
        mut self,
        wire: Option<Box<Wire>>,
        plan: Plan,
        resolution: Resolution,
        certain: Option<Reason>,
    ) {
        if let Some(reason) = certain
            && let Some(evidence) = self.certain_evidence()
        {
            let pool = || self.pool.inner().key.clone();
            let sink = &self.pool.inner().sink;
            sink.emit(Event::LeakDetected { pool: pool(), reason, evidence: evidence.clone() });
            sink.emit(Event::LeakResolved { pool: pool(), reason, resolution, left_alone: None, evidence });
        }
        self.hand_over(wire, plan, resolution);
    }

    /// What is said of a leak that no limit was needed for. The ledger is free again when it is told.
    fn certain_evidence(&self) -> Option<Evidence> {
        self.pool.ledger().evidence_of(self.id, Duration::ZERO, pgleash_clock::now())
    }

    fn hand_over(&mut self, wire: Option<Box<Wire>>, plan: Plan, resolution: Resolution) {
        let Some(lease) = self.lease.take() else { return };
        self.check_in(ConnPlace::Recycling, resolution, pgleash_clock::now());
        let job = Job { conn: Arc::clone(&lease.pooled.conn), checkout: self.id, lease, wire, plan };
        // The receiver lives as long as the pool; without it the job, and the connection, is dropped.
        drop(self.pool.inner().recycler.send(job));
    }

    fn check_in(&self, to: ConnPlace, resolution: Resolution, now: Moment) {
        let (held, told) = self.pool.ledger().checked_in(self.id, to, resolution, now);
        let sink = &self.pool.inner().sink;
        sink.checked_in(&self.pool.inner().key, held);
        for event in told {
            sink.emit(event);
        }
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        self.hand_over(None, Plan::Close, Resolution::Disconnected);
    }
}
