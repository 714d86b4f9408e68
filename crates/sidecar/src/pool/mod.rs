//! The watched pool: a fair queue of slots, connections that a deadpool opens, and the ledger.
//!
//! A slot is a permit of our own semaphore; deadpool behind it is larger than any pool and never waits.
//! What is idle is on the `idle_conns`.
//! Every checkout is a [`Checkout`]: it ends by [`Checkout::release`], by [`Checkout::recycle`], or,
//! if its task dies, by Drop, which sends the connection to the recycler. The way there is reserved:
//! an unbounded channel, bounded by the slots.

pub(crate) mod accepted_parameters;
pub(crate) mod acquire;
pub(crate) mod checkout;
pub(crate) mod defaults;
pub(crate) mod idle;
pub(crate) mod internal_checkout;
pub(crate) mod job;
pub(crate) mod open;
pub(crate) mod pause;
pub(crate) mod permits;
pub(crate) mod recycle;
pub(crate) mod state;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use deadpool_postgres::Pool;
use parking_lot::{Mutex, MutexGuard};
use pgleash_core::{
    CheckoutId, CloseReason, Event, Evidence, Holder, Ledger, LivePolicy, Moment, Policy, PoolKey,
    PoolSnapshot, Reason, Sink,
};
use pgleash_wire::Library;
use pgleash_wire::parameters::Vars;
use tokio::sync::{Notify, mpsc};

use crate::pool::accepted_parameters::AcceptedParameters;
use crate::pool::checkout::Checkout;
use crate::pool::defaults::Known;
use crate::pool::idle::{IdleConns, PooledConn};
use crate::pool::job::Lease;
use crate::pool::open::deadpool;
use crate::pool::pause::{Flow, PauseGate};
use crate::pool::permits::{Permit, Permits};
use crate::pool::state::{CheckoutError, DELIVERED, Inner, WatchedPool};
use crate::upstream::backend_probe::Probe;
use crate::upstream::connector::Target;
use crate::upstream::holder_handle::{HolderHandle, HolderState};
use crate::upstream::server_conn::ServerConn;
use crate::watchdog::wait_sampler::Survey;

pub(crate) use crate::upstream::connector::describe;

/// Connections that deadpool may hold beyond the slots: room for those that are being closed.
const ZOMBIES: usize = 8;

/// Runs a task that checks connections out; once around its whole life, as it costs a little.
pub(crate) fn borrower<T>(task: impl Future<Output = T>) -> impl Future<Output = T> {
    // Not an `async fn`, which would have room for the task twice.
    DELIVERED.scope(RefCell::new(None), task)
}

/// A [`WatchedPool`] that may be gone.
pub(crate) struct WeakPool(Weak<Inner>);

impl WeakPool {
    /// The pool, if anybody still has it.
    pub(crate) fn upgrade(&self) -> Option<WatchedPool> {
        self.0.upgrade().map(WatchedPool)
    }
}

/// What the server answers, within the time that it has for pgleash's own questions.
///
/// # Errors
/// The server's, or it does not answer.
pub(crate) async fn answered<T>(
    asking: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, CheckoutError> {
    match tokio::time::timeout(Policy::RESET_DEADLINE, asking).await {
        Ok(answer) => answer.map_err(CheckoutError::Upstream),
        Err(_) => Err(CheckoutError::Stalled),
    }
}

static NEXT_CHECKOUT: AtomicU64 = AtomicU64::new(1);

impl WatchedPool {
    /// A pool with no connection yet. Must be called on the data path's runtime, where its recycler
    /// and its connections live.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(crate) fn new(
        key: PoolKey,
        target: &Target,
        policy: Arc<LivePolicy>,
        pause_gate: Arc<PauseGate>,
        sink: Arc<dyn Sink>,
        (attention, library): (Arc<Notify>, Library),
    ) -> Self {
        let target = target.for_login(&key.database, &key.user);
        let (recycler, jobs) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            probe: Probe::default(),
            survey: Survey::default(),
            ledger: Mutex::new(Ledger::new(key.clone())),
            enforcement: Mutex::default(),
            attention,
            permits: Permits::new(policy.load().size),
            target: ArcSwap::from_pointee(target.clone()),
            objects: OnceLock::new(),
            idle_conns: IdleConns::new(),
            roster: Mutex::default(),
            library: Arc::new(library),
            recycler,
            welcome: ArcSwapOption::empty(),
            accepted_parameters: AcceptedParameters::default(),
            known: Known::default(),
            key,
            policy,
            pause_gate,
            sink,
        });
        let objects = deadpool(Arc::downgrade(&inner), &target, Policy::MAX_SIZE + ZOMBIES);
        drop(inner.objects.set(objects));
        tokio::spawn(recycle::run(Arc::downgrade(&inner), jobs));
        Self(inner)
    }

    /// Waits for a slot, then takes a connection or opens one.
    ///
    /// Cancel safe: a dropped call gives its slot back, and closes the connection that it was asking about.
    ///
    /// # Errors
    /// See [`CheckoutError`]. Nothing is held then.
    ///
    /// # Panics
    /// In a task that does not run under [`borrower`].
    pub(crate) async fn checkout(
        &self,
        holder: &Arc<Holder>,
        holder_state: &Arc<HolderState>,
        vars: &Arc<Vars>,
    ) -> Result<Checkout, CheckoutError> {
        let began = pgleash_clock::now();
        let (permit, since) = self.permit(holder, began).await?;
        let pooled = self.connection(began, since, vars).await?;
        Ok(self.lent((pooled, permit), (holder, holder_state), began, pgleash_clock::now()))
    }

    /// A checkout for which nobody has to wait, and the server need not be asked: a slot is free, and an idle
    /// connection is fit to be lent. `None` otherwise; then [`WatchedPool::checkout`] does the same at length.
    pub(crate) fn checkout_at_once(
        &self,
        holder: &Arc<Holder>,
        holder_state: &Arc<HolderState>,
        vars: &Arc<Vars>,
    ) -> Option<Checkout> {
        let permit = self.free_permit().ok()??;
        let now = pgleash_clock::now();
        let pooled = self.fit_spare(now, vars)?;
        Some(self.lent((pooled, permit), (holder, holder_state), now, now))
    }

    /// Enters the checkout into the books.
    fn lent(
        &self,
        (pooled, permit): (PooledConn, Permit),
        (holder, holder_state): (&Arc<Holder>, &Arc<HolderState>),
        began: Moment,
        now: Moment,
    ) -> Checkout {
        if self.asks_again(now) {
            self.refresh_defaults();
        }
        let id = CheckoutId(NEXT_CHECKOUT.fetch_add(1, Ordering::Relaxed));
        let waited = now.since(began);
        // Before the ledger shows it, or the watchdog would judge the activity of the checkout before.
        holder_state.activity.begin(now);
        let handle = HolderHandle(Arc::clone(holder_state));
        self.ledger().checked_out(id, pooled.conn.id, Arc::clone(holder), handle, waited, now);
        self.0.sink.checked_out(&self.0.key, waited);
        Checkout { pool: self.clone(), id, lease: Some(Lease { pooled, permit }) }
    }

    /// A connection just opened is one of the pool's now.
    pub(crate) fn enlist(&self, conn: &Arc<ServerConn>) {
        self.0.roster().insert(conn.id, Arc::clone(conn));
    }

    /// Closes a connection that somebody has.
    pub(crate) fn discard(&self, pooled: PooledConn, reason: CloseReason) {
        pooled.conn.closing(reason);
        self.0.roster().remove(&pooled.conn.id);
        drop(pooled);
    }

    /// The parameters a server connection of this pool reported at login; `None` before the first one.
    pub(crate) fn welcome(&self) -> Option<Arc<BTreeMap<String, String>>> {
        self.0.welcome.load_full()
    }

    /// The server may have been reloaded since: what it reports now, but for what is set by a client, is what clients
    /// are greeted with.
    pub(crate) fn welcome_again(&self, conn: &ServerConn) {
        let Some(current) = conn.wire_lease.current() else { return };
        let applied = conn.applied();
        let mut welcome = self.welcome().map(|welcome| (*welcome).clone()).unwrap_or_default();
        let is_set = |name: &str| applied.contains_key(&name.to_ascii_lowercase());
        for (name, value) in current.iter().filter(|(name, _)| !is_set(name)) {
            welcome.insert(name.clone(), value.clone());
        }
        self.0.welcomed_with(&welcome);
    }

    /// Which (database, user) it serves.
    pub(crate) fn key(&self) -> &PoolKey {
        &self.0.key
    }

    /// What its clients have prepared.
    pub(crate) fn library(&self) -> Arc<Library> {
        Arc::clone(&self.0.library)
    }

    /// Everything there is to show, now.
    pub(crate) fn snapshot(&self) -> PoolSnapshot {
        self.ledger().snapshot(&self.0.policy.load(), pgleash_clock::now())
    }

    /// The holder spoke so long after its connection was taken for this reason: the reclaim was wrong, and is
    /// learned from.
    pub(crate) fn regretted(&self, reason: Reason, evidence: Evidence, after: Duration) {
        let wider = self.ledger().regretted(&evidence, reason, after, pgleash_clock::now());
        let pool = self.0.key.clone();
        self.0.sink.emit(Event::ReclaimRegretted { pool, evidence, after_seconds: after.as_secs_f64() });
        wider.into_iter().for_each(|event| self.0.sink.emit(event));
    }

    /// Gives it the size that the policy says now. Nobody loses a connection by that: what is too much is
    /// closed as it comes home.
    pub(crate) fn resize(&self) {
        self.0.permits.resize(self.0.policy.load().size);
    }

    /// From now on connections go to this server; those that went elsewhere are closed as they come home.
    pub(crate) fn retarget(&self, target: &Target) {
        self.0.target.store(Arc::new(target.for_login(&self.0.key.database, &self.0.key.user)));
        self.0.accepted_parameters.forget();
    }

    /// Whether a connection that nobody uses may stay in the pool.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn keeps(&self, conn: &ServerConn, now: Moment) -> Result<(), CloseReason> {
        if conn.expires <= now {
            Err(CloseReason::MaxLifetime)
        } else if !Arc::ptr_eq(&conn.target, &self.0.target.load())
            || !self.0.known.is_current(conn.generation)
        {
            Err(CloseReason::Replaced)
        } else if self.0.pause_gate.flow() == Flow::Paused {
            Err(CloseReason::Paused)
        } else {
            Ok(())
        }
    }

    /// Closes connections that are dead, too old, too many, or unused for too long, and lets the connection
    /// tasks of those that came home watch their sockets.
    pub(crate) fn reap(&self, now: Moment) {
        self.0.permits.settle();
        let spent = self.ledger().spent(&self.0.policy.load(), now);
        self.0.idle_conns.retain(|pooled| {
            let conn = &pooled.conn;
            if !conn.watched.swap(true, Ordering::Relaxed) {
                conn.wire_lease.wake_home();
            }
            match spent.get(&conn.id).copied().or(self.keeps(conn, now).err()) {
                Some(reason) => {
                    conn.closing(reason);
                    false
                }
                None => !pooled.object().is_closed(),
            }
        });
    }

    /// Whether it is the same pool.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A name of it that does not keep it.
    pub(crate) fn downgrade(&self) -> WeakPool {
        WeakPool(Arc::downgrade(&self.0))
    }

    /// Whether it has neither a connection nor a client, nor anybody else who knows of it.
    pub(crate) fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && self.ledger().is_empty()
    }

    /// Checkouts that are out.
    pub(crate) fn held(&self) -> usize {
        self.ledger().held()
    }

    /// Clients that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.ledger().waiting()
    }

    /// Whether it has no connection, and opens none.
    pub(crate) fn is_empty(&self) -> bool {
        self.ledger().is_empty()
    }

    /// Whether anything is out, waiting or being recycled.
    pub(crate) fn is_busy(&self) -> bool {
        self.ledger().is_busy()
    }

    /// Closes the pool: no more checkouts, and idle connections go.
    pub(crate) fn close(&self) {
        self.0.permits.close();
        let conns: Vec<_> = self.0.roster().values().cloned().collect();
        for conn in conns {
            conn.closing(CloseReason::Shutdown);
        }
        self.0.idle_conns.close();
        self.objects().close();
    }

    /// The live connection of this backend.
    pub(crate) fn conn_of(&self, backend_pid: i32) -> Option<Arc<ServerConn>> {
        self.0.roster().values().find(|conn| conn.backend_pid == backend_pid).cloned()
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger<HolderHandle>> {
        self.0.ledger()
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    pub(crate) fn from_inner(inner: Arc<Inner>) -> Self {
        Self(inner)
    }

    pub(crate) fn objects(&self) -> &Pool {
        self.0.objects.get().expect("set in new, before the pool can be reached")
    }
}
