//! The watched pool: a fair queue of slots, connections that a deadpool opens, and the ledger. Floor 3.
//!
//! A slot is a permit of our own semaphore; deadpool behind it is larger than any pool and never waits.
//! What is idle is on the `rack`.
//! Every checkout is a [`Checkout`]: it ends by [`Checkout::come_home`], by [`Checkout::recycle`], or,
//! if its task dies, by Drop, which sends the connection to the janitor. The way there is reserved:
//! an unbounded channel, bounded by the slots.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use deadpool_postgres::Pool;
use tokio::sync::{Notify, mpsc};

use crate::checkout::{Checkout, Kit};
use crate::clock;
use crate::conn::{Leash, ServerConn, Tether};
use crate::defaults::Known;
use crate::dial::Target;
use crate::errand::Trials;
use crate::event::{CloseReason, Event, Evidence, Reason, Sink};
use crate::ids::{CheckoutId, ConnId, Holder, Moment, PoolKey};
use crate::janitor::{self, Job};
use crate::ledger::Ledger;
use crate::opening::deadpool;
use crate::policy::{LivePolicy, Policy};
use crate::probe::Probe;
use crate::rack::{Rack, Spare};
use crate::slots::{Slot, Slots};
use crate::snapshot::PoolSnapshot;
use crate::survey::Survey;
use crate::valve::{Flow, Valve};
use crate::wire::prepared::Library;
use crate::wire::reply::SqlState;
use crate::wire::vars::Vars;

pub use crate::dial::describe;

/// Connections that deadpool may hold beyond the slots: room for those that are being closed.
const ZOMBIES: usize = 8;

tokio::task_local! {
    /// Carries a connection just dialled from deadpool's `Connect`, which runs in the caller's task,
    /// to the caller of `get`.
    pub(crate) static DELIVERED: RefCell<Option<Arc<ServerConn>>>;
}

/// Runs a task that checks connections out; once around its whole life, as it costs a little.
pub fn borrower<T>(task: impl Future<Output = T>) -> impl Future<Output = T> {
    // Not an `async fn`, which would have room for the task twice.
    DELIVERED.scope(RefCell::new(None), task)
}

/// A pool of server connections for one (database, user). Clones are the same pool.
#[derive(Clone)]
pub struct WatchedPool(Arc<Inner>);

/// A [`WatchedPool`] that may be gone.
pub struct WeakPool(Weak<Inner>);

impl WeakPool {
    /// The pool, if anybody still has it.
    pub fn upgrade(&self) -> Option<WatchedPool> {
        self.0.upgrade().map(WatchedPool)
    }
}

pub(crate) struct Inner {
    pub(crate) key: PoolKey,
    pub(crate) policy: Arc<LivePolicy>,
    pub(crate) valve: Arc<Valve>,
    /// The server that new connections go to, and old ones must have gone to.
    pub(crate) target: ArcSwap<Target>,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) probe: Probe,
    pub(crate) survey: Survey,
    pub(crate) ledger: Mutex<Ledger<Leash>>,
    pub(crate) reclaims: Mutex<VecDeque<Moment>>,
    /// Tells the keeper to look now.
    pub(crate) attention: Arc<Notify>,
    pub(crate) slots: Slots,
    objects: OnceLock<Pool>,
    pub(crate) rack: Rack,
    /// Every live connection.
    roster: Mutex<BTreeMap<ConnId, Arc<ServerConn>>>,
    /// What the pool's clients have prepared.
    library: Arc<Library>,
    pub(crate) janitor: mpsc::UnboundedSender<Job>,
    welcome: ArcSwapOption<BTreeMap<String, String>>,
    /// What clients have asked for at their logins that the server took.
    pub(crate) trials: Trials,
    /// What role and database set for its connections.
    pub(crate) known: Known,
}

/// Why there is no connection for a client.
#[derive(Debug)]
pub enum CheckoutError {
    /// None came free within `wait_timeout`; the text says who has them.
    Exhausted(String),
    /// The server refused, or was lost on the way.
    Upstream(tokio_postgres::Error),
    /// The server could not be reached within `wait_timeout`; the text says what it came to last.
    Unreachable(String),
    /// pgleash was paused for longer than a client may wait.
    Paused(Duration),
    /// The server did not answer while the client's parameters were set.
    Stalled,
    /// The role may not log in any more, in the server's words.
    Refused(SqlState, String),
    /// The pool is closed.
    Closed,
}

impl fmt::Display for CheckoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckoutError::Exhausted(diagnosis) => write!(f, "connection pool exhausted: {diagnosis}"),
            CheckoutError::Upstream(error) => write!(f, "upstream server: {}", describe(error)),
            CheckoutError::Unreachable(why) => write!(f, "upstream server is unreachable: {why}"),
            CheckoutError::Paused(limit) => {
                write!(f, "pgleash is paused, and was not resumed within {} s", limit.as_secs())
            }
            CheckoutError::Stalled => f.write_str("upstream server: no answer while parameters were set"),
            CheckoutError::Refused(_, message) => f.write_str(message),
            CheckoutError::Closed => f.write_str("pgleash is shutting down"),
        }
    }
}

impl std::error::Error for CheckoutError {}

impl CheckoutError {
    /// Whether the server has answered, with an error.
    pub fn is_from_server(&self) -> bool {
        matches!(self, CheckoutError::Upstream(error) if error.as_db_error().is_some())
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
    /// A pool with no connection yet. Must be called on the data path's runtime, where its janitor
    /// and its connections live.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        key: PoolKey,
        target: &Target,
        policy: Arc<LivePolicy>,
        valve: Arc<Valve>,
        sink: Arc<dyn Sink>,
        (attention, library): (Arc<Notify>, Library),
    ) -> Self {
        let target = target.for_login(&key.database, &key.user);
        let (janitor, jobs) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            probe: Probe::default(),
            survey: Survey::default(),
            ledger: Mutex::new(Ledger::new(key.clone())),
            reclaims: Mutex::default(),
            attention,
            slots: Slots::new(policy.load().size),
            target: ArcSwap::from_pointee(target.clone()),
            objects: OnceLock::new(),
            rack: Rack::new(),
            roster: Mutex::default(),
            library: Arc::new(library),
            janitor,
            welcome: ArcSwapOption::empty(),
            trials: Trials::default(),
            known: Known::default(),
            key,
            policy,
            valve,
            sink,
        });
        let objects = deadpool(Arc::downgrade(&inner), &target, Policy::MAX_SIZE + ZOMBIES);
        drop(inner.objects.set(objects));
        tokio::spawn(janitor::run(Arc::downgrade(&inner), jobs));
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
    pub async fn checkout(
        &self,
        holder: &Arc<Holder>,
        tether: &Arc<Tether>,
        vars: &Arc<Vars>,
    ) -> Result<Checkout, CheckoutError> {
        let began = clock::now();
        let (slot, since) = self.slot(holder, began).await?;
        let spare = self.connection(began, since, vars).await?;
        Ok(self.lent((spare, slot), (holder, tether), began, clock::now()))
    }

    /// A checkout for which nobody has to wait, and the server need not be asked: a slot is free, and an idle
    /// connection is fit to be lent. `None` otherwise; then [`WatchedPool::checkout`] does the same at length.
    pub fn checkout_at_once(
        &self,
        holder: &Arc<Holder>,
        tether: &Arc<Tether>,
        vars: &Arc<Vars>,
    ) -> Option<Checkout> {
        let slot = self.free_slot().ok()??;
        let now = clock::now();
        let spare = self.fit_spare(now, vars)?;
        Some(self.lent((spare, slot), (holder, tether), now, now))
    }

    /// Enters the checkout into the books.
    fn lent(
        &self,
        (spare, slot): (Spare, Slot),
        (holder, tether): (&Arc<Holder>, &Arc<Tether>),
        began: Moment,
        now: Moment,
    ) -> Checkout {
        if self.asks_again(now) {
            self.refresh_defaults();
        }
        let id = CheckoutId(NEXT_CHECKOUT.fetch_add(1, Ordering::Relaxed));
        let waited = now.since(began);
        // Before the ledger shows it, or the keeper would judge the activity of the checkout before.
        tether.activity.begin(now);
        let leash = Leash(Arc::clone(tether));
        self.ledger().checked_out(id, spare.conn.id, Arc::clone(holder), leash, waited, now);
        self.0.sink.checked_out(&self.0.key, waited);
        Checkout { pool: self.clone(), id, kit: Some(Kit { spare, slot }) }
    }

    /// A connection just opened is one of the pool's now.
    pub(crate) fn enlist(&self, conn: &Arc<ServerConn>) {
        self.0.roster().insert(conn.id, Arc::clone(conn));
    }

    /// Closes a connection that somebody has.
    pub(crate) fn discard(&self, spare: Spare, reason: CloseReason) {
        spare.conn.closing(reason);
        self.0.roster().remove(&spare.conn.id);
        drop(spare);
    }

    /// The parameters a server connection of this pool reported at login; `None` before the first one.
    pub fn welcome(&self) -> Option<Arc<BTreeMap<String, String>>> {
        self.0.welcome.load_full()
    }

    /// The server may have been reloaded since: what it reports now, but for what is set by a client, is what clients
    /// are greeted with.
    pub(crate) fn welcome_again(&self, conn: &ServerConn) {
        let Some(current) = conn.switch.current() else { return };
        let applied = conn.applied();
        let mut welcome = self.welcome().map(|welcome| (*welcome).clone()).unwrap_or_default();
        let is_set = |name: &str| applied.contains_key(&name.to_ascii_lowercase());
        for (name, value) in current.iter().filter(|(name, _)| !is_set(name)) {
            welcome.insert(name.clone(), value.clone());
        }
        self.0.welcomed_with(&welcome);
    }

    /// Which (database, user) it serves.
    pub fn key(&self) -> &PoolKey {
        &self.0.key
    }

    /// What its clients have prepared.
    pub fn library(&self) -> Arc<Library> {
        Arc::clone(&self.0.library)
    }

    /// Everything there is to show, now.
    pub fn snapshot(&self) -> PoolSnapshot {
        self.ledger().snapshot(&self.0.policy.load(), clock::now())
    }

    /// The holder spoke so long after its connection was taken for this reason: the reclaim was wrong, and is
    /// learned from.
    pub fn regretted(&self, reason: Reason, evidence: Evidence, after: Duration) {
        let wider = self.ledger().regretted(&evidence, reason, after, clock::now());
        let pool = self.0.key.clone();
        self.0.sink.emit(Event::ReclaimRegretted { pool, evidence, after_seconds: after.as_secs_f64() });
        wider.into_iter().for_each(|event| self.0.sink.emit(event));
    }

    /// Gives it the size that the policy says now. Nobody loses a connection by that: what is too much is
    /// closed as it comes home.
    pub fn resize(&self) {
        self.0.slots.resize(self.0.policy.load().size);
    }

    /// From now on connections go to this server; those that went elsewhere are closed as they come home.
    pub fn retarget(&self, target: &Target) {
        self.0.target.store(Arc::new(target.for_login(&self.0.key.database, &self.0.key.user)));
        self.0.trials.forget();
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
        } else if self.0.valve.flow() == Flow::Paused {
            Err(CloseReason::Paused)
        } else {
            Ok(())
        }
    }

    /// Closes connections that are dead, too old, too many, or unused for too long, and lets the connection
    /// tasks of those that came home watch their sockets.
    pub fn reap(&self, now: Moment) {
        self.0.slots.settle();
        let spent = self.ledger().spent(&self.0.policy.load(), now);
        self.0.rack.retain(|spare| {
            let conn = &spare.conn;
            if !conn.watched.swap(true, Ordering::Relaxed) {
                conn.switch.wake_home();
            }
            match spent.get(&conn.id).copied().or(self.keeps(conn, now).err()) {
                Some(reason) => {
                    conn.closing(reason);
                    false
                }
                None => !spare.object().is_closed(),
            }
        });
    }

    /// Whether it is the same pool.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A name of it that does not keep it.
    pub fn downgrade(&self) -> WeakPool {
        WeakPool(Arc::downgrade(&self.0))
    }

    /// Whether it has neither a connection nor a client, nor anybody else who knows of it.
    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && self.ledger().is_empty()
    }

    /// Checkouts that are out.
    pub fn held(&self) -> usize {
        self.ledger().held()
    }

    /// Clients that wait.
    pub fn waiting(&self) -> usize {
        self.ledger().waiting()
    }

    /// Whether it has no connection, and opens none.
    pub fn is_empty(&self) -> bool {
        self.ledger().is_empty()
    }

    /// Whether anything is out, waiting or being recycled.
    pub fn is_busy(&self) -> bool {
        self.ledger().is_busy()
    }

    /// Closes the pool: no more checkouts, and idle connections go.
    pub fn close(&self) {
        self.0.slots.close();
        let conns: Vec<_> = self.0.roster().values().cloned().collect();
        for conn in conns {
            conn.closing(CloseReason::Shutdown);
        }
        self.0.rack.close();
        self.objects().close();
    }

    /// The live connection of this backend.
    pub(crate) fn conn_of(&self, backend_pid: i32) -> Option<Arc<ServerConn>> {
        self.0.roster().values().find(|conn| conn.backend_pid == backend_pid).cloned()
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger<Leash>> {
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

impl Inner {
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger<Leash>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a server connection reported at login is what clients are greeted with.
    pub(crate) fn welcomed_with(&self, parameters: &BTreeMap<String, String>) {
        if self.welcome.load().as_deref() != Some(parameters) {
            self.welcome.store(Some(Arc::new(parameters.clone())));
        }
    }

    pub(crate) fn roster(&self) -> MutexGuard<'_, BTreeMap<ConnId, Arc<ServerConn>>> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
