//! The watched pool: a fair queue of slots, a deadpool of connections, and the ledger. Floor 3.
//!
//! A slot is a permit of our own semaphore; deadpool behind it is a little larger and never waits.
//! Every checkout is a [`Checkout`]: it ends by [`Checkout::come_home`], by [`Checkout::recycle`], or,
//! if its task dies, by Drop, which sends the connection to the janitor. The way there is reserved:
//! an unbounded channel, bounded by the slots.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use deadpool_postgres::{Client, ClientWrapper, Pool, PoolError};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::checkout::{Checkout, Kit};
use crate::clock;
use crate::conn::{Leash, ServerConn, Tether};
use crate::dial::Target;
use crate::event::{CloseReason, Event, Sink};
use crate::ids::{CheckoutId, Holder, Moment, PoolKey};
use crate::janitor::{self, Job};
use crate::ledger::Ledger;
use crate::opening::deadpool;
use crate::policy::Policy;
use crate::probe::Probe;
use crate::snapshot::PoolSnapshot;

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
    pub(crate) policy: Arc<Policy>,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) probe: Probe,
    pub(crate) ledger: Mutex<Ledger<Leash>>,
    pub(crate) reclaims: Mutex<VecDeque<Moment>>,
    /// Tells the keeper to look now.
    pub(crate) attention: Arc<Notify>,
    slots: Arc<Semaphore>,
    objects: OnceLock<Pool>,
    /// Connections by the address of their statement cache: the one identity that deadpool shows of an
    /// object both in the pool and out of it.
    roster: Mutex<BTreeMap<usize, Arc<ServerConn>>>,
    pub(crate) janitor: mpsc::UnboundedSender<Job>,
    pub(crate) welcome: OnceLock<BTreeMap<String, String>>,
}

/// Why there is no connection for a client.
#[derive(Debug)]
pub enum CheckoutError {
    /// None came free within `wait_timeout`; the text says who has them.
    Exhausted(String),
    /// The server refused or could not be reached.
    Upstream(tokio_postgres::Error),
    /// The server did not answer while the client's parameters were set.
    Stalled,
    /// The pool is closed.
    Closed,
}

impl fmt::Display for CheckoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckoutError::Exhausted(diagnosis) => write!(f, "connection pool exhausted: {diagnosis}"),
            CheckoutError::Upstream(error) => write!(f, "upstream server: {error}"),
            CheckoutError::Stalled => f.write_str("upstream server: no answer while parameters were set"),
            CheckoutError::Closed => f.write_str("pgleash is shutting down"),
        }
    }
}

impl std::error::Error for CheckoutError {}

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
        policy: Arc<Policy>,
        sink: Arc<dyn Sink>,
        attention: Arc<Notify>,
    ) -> Self {
        let target = target.for_login(&key.database, &key.user);
        let (janitor, jobs) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            probe: Probe::new(target.clone()),
            ledger: Mutex::new(Ledger::new(key.clone())),
            reclaims: Mutex::default(),
            attention,
            slots: Arc::new(Semaphore::new(policy.size)),
            objects: OnceLock::new(),
            roster: Mutex::default(),
            janitor,
            welcome: OnceLock::new(),
            key,
            policy,
            sink,
        });
        let objects = deadpool(Arc::downgrade(&inner), target, inner.policy.size + ZOMBIES);
        drop(inner.objects.set(objects));
        tokio::spawn(janitor::run(Arc::downgrade(&inner), jobs));
        Self(inner)
    }

    /// Waits for a slot, then takes a connection or opens one.
    ///
    /// Cancel safe: a dropped call gives its slot and its connection back.
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
    ) -> Result<Checkout, CheckoutError> {
        let began = clock::now();
        let slots = Arc::clone(&self.0.slots);
        let permit = match slots.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(tokio::sync::TryAcquireError::Closed) => return Err(CheckoutError::Closed),
            Err(tokio::sync::TryAcquireError::NoPermits) => self.wait(slots, holder, began).await?,
        };
        let (object, conn) = self.connection().await?;
        let id = CheckoutId(NEXT_CHECKOUT.fetch_add(1, Ordering::Relaxed));
        let now = clock::now();
        let waited = now.since(began);
        // Before the ledger shows it, or the keeper would judge the activity of the checkout before.
        tether.activity.begin(now);
        let leash = Leash(Arc::clone(tether));
        self.ledger().checked_out(id, conn.id, Arc::clone(holder), leash, waited, now);
        let waited_seconds = waited.as_secs_f64();
        self.0.sink.emit(Event::CheckedOut { pool: self.0.key.clone(), waited_seconds });
        Ok(Checkout { pool: self.clone(), id, conn, kit: Some(Kit { object, permit }) })
    }

    async fn wait(
        &self,
        slots: Arc<Semaphore>,
        holder: &Holder,
        began: Moment,
    ) -> Result<OwnedSemaphorePermit, CheckoutError> {
        let _waiting = Waiting::new(self, began);
        let limit = self.0.policy.wait_timeout;
        match tokio::time::timeout(limit, slots.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(CheckoutError::Closed),
            Err(_) => {
                let now = clock::now();
                let diagnosis = self.ledger().diagnosis(&self.0.policy, now);
                self.0.sink.emit(Event::CheckoutTimeout {
                    pool: self.0.key.clone(),
                    waited_seconds: now.since(began).as_secs_f64(),
                    diagnosis: diagnosis.clone(),
                    client: holder.client.clone(),
                });
                Err(CheckoutError::Exhausted(diagnosis))
            }
        }
    }

    /// A connection that is alive, young enough, and quiet.
    async fn connection(&self) -> Result<(Client, Arc<ServerConn>), CheckoutError> {
        loop {
            let object = self.objects().get().await.map_err(|error| self.upstream_failed(error))?;
            let Some(conn) = self.identify(&object, DELIVERED.with(RefCell::take)) else {
                drop(Client::take(object));
                continue;
            };
            if conn.expires <= clock::now() {
                self.discard(object, &conn, CloseReason::MaxLifetime);
            } else if conn.switch.look().is_ok() || settle(&object).await {
                return Ok((object, conn));
            } else {
                self.discard(object, &conn, CloseReason::ServerLost);
            }
        }
    }

    fn upstream_failed(&self, error: PoolError) -> CheckoutError {
        let PoolError::Backend(error) = error else { return CheckoutError::Closed };
        let sqlstate = error.code().map_or("08006", |code| code.code()).to_owned();
        let detail = describe(&error);
        self.0.sink.emit(Event::UpstreamFailed { pool: self.0.key.clone(), sqlstate, detail });
        CheckoutError::Upstream(error)
    }

    fn identify(
        &self,
        object: &ClientWrapper,
        delivered: Option<Arc<ServerConn>>,
    ) -> Option<Arc<ServerConn>> {
        let mut roster = self.0.roster();
        match delivered {
            Some(conn) => {
                roster.insert(identity(object), Arc::clone(&conn));
                Some(conn)
            }
            None => roster.get(&identity(object)).cloned(),
        }
    }

    pub(crate) fn discard(&self, object: Client, conn: &ServerConn, reason: CloseReason) {
        conn.closing(reason);
        drop(Client::take(object));
        self.0.roster().retain(|_, known| known.id != conn.id);
    }

    /// The parameters a server connection of this pool reported at login; `None` before the first one.
    pub fn welcome(&self) -> Option<&BTreeMap<String, String>> {
        self.0.welcome.get()
    }

    /// Which (database, user) it serves.
    pub fn key(&self) -> &PoolKey {
        &self.0.key
    }

    /// Everything there is to show, now.
    pub fn snapshot(&self) -> PoolSnapshot {
        self.ledger().snapshot(&self.0.policy, clock::now())
    }

    /// Closes connections that are dead, too old, or unused for too long, and lets the connection tasks
    /// of those that came home watch their sockets.
    pub fn reap(&self, now: Moment) {
        let spent = self.ledger().spent(self.0.policy.idle_timeout, now);
        let roster = self.0.roster().clone();
        let removed = self.objects().retain(|object, _| {
            let Some(conn) = roster.get(&identity(object)) else { return true };
            if !conn.watched.swap(true, Ordering::Relaxed) {
                conn.switch.wake_home();
            }
            match spent.get(&conn.id) {
                Some(reason) => {
                    conn.closing(*reason);
                    false
                }
                None => !object.is_closed(),
            }
        });
        drop(removed);
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

    fn objects(&self) -> &Pool {
        self.0.objects.get().expect("set in new, before the pool can be reached")
    }
}

impl Inner {
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger<Leash>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn roster(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<ServerConn>>> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that said something while it was idle may be sound: one round trip tells.
async fn settle(object: &ClientWrapper) -> bool {
    let asked = tokio::time::timeout(Policy::RESET_DEADLINE, object.batch_execute("")).await;
    matches!(asked, Ok(Ok(())))
}

fn identity(object: &ClientWrapper) -> usize {
    Arc::as_ptr(&object.statement_cache) as usize
}

/// An error of tokio-postgres with its cause, in one line.
pub fn describe(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(db), _) => format!("{}: {}", db.severity(), db.message()),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    }
}

/// A client that waits, in the ledger as long as this lives.
struct Waiting<'a> {
    pool: &'a WatchedPool,
    key: u64,
}

impl<'a> Waiting<'a> {
    fn new(pool: &'a WatchedPool, began: Moment) -> Self {
        let key = pool.ledger().wait_begins(began);
        Self { pool, key }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.ledger().wait_ends(self.key);
    }
}
