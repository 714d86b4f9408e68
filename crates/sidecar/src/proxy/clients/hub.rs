//! What all sessions share: pools, the register of clients, and the state of the drain.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use pgleash_core::{
    Action, Event, FlowState, InForce, LivePolicy, PoolKey, PoolMode, SessionId, Sink, Snapshot,
};
use pgleash_watchdog::Watch;
use pgleash_wire::message::SqlState;
use pgleash_wire::parameters::Vars;
use pgleash_wire::session_query::Admission;
use tokio::sync::Notify;

use crate::config::start_error::RunError;
use crate::config::target::target;
use crate::config::{Config, print};
use crate::pool::WeakPool;
use crate::pool::pause::{Flow, PauseGate};
use crate::pool::state::{CheckoutError, WatchedPool};
use crate::proxy::auth::Credentials;
use crate::proxy::clients::cancel::CancelQueue;
use crate::proxy::clients::cancel_key::CancelKey;
use crate::proxy::clients::limit::{ClientLimit, ClientPermit};
use crate::proxy::clients::session_handle::{Orders, SessionHandle};
use crate::proxy::session::ClientPhase;
use crate::turn::Turn;
use crate::upstream::connector::Target;
use crate::upstream::holder_handle::HolderState;

/// The process as its sessions see it.
pub(crate) struct Hub {
    /// The configuration in force.
    pub config: ArcSwap<Config>,
    /// `pool.mode`, which does not change while it runs.
    pub mode: PoolMode,
    /// Where facts go.
    pub sink: Arc<dyn Sink>,
    /// What clients are let in by.
    pub credentials: Credentials,
    /// What is shared with the watchdog.
    pub watch: Arc<Watch>,
    /// Cancel requests.
    pub cancel_queue: CancelQueue,
    pre_auth_limit: ClientLimit,
    lingering: ClientLimit,
    /// Pause and resume.
    pub pause_gate: Arc<PauseGate>,
    target: ArcSwap<Target>,
    policy: Arc<LivePolicy>,
    pools: Mutex<BTreeMap<PoolKey, WatchedPool>>,
    /// Pools whose first connection is being opened, so that clients that come together share one.
    opening: Mutex<BTreeMap<PoolKey, WeakPool>>,
    sessions: Mutex<HashMap<SessionId, Arc<SessionHandle>>>,
    alike: Mutex<HashSet<Arc<Vars>>>,
    spellings: Mutex<HashMap<Spelling, String>>,
    next_session: AtomicU32,
    left: Notify,
    draining: AtomicBool,
}

/// More (database, user) pairs than this are refused: each is a pool of its own.
const MAX_POOLS: usize = 100;

/// A parameter, the value a client asked for, and the server's default.
pub(crate) type Spelling = (String, String, String);

/// Sets of parameters, and spellings of values, that are remembered.
const MAX_ALIKE: usize = 256;

impl Hub {
    /// How long a client whose connection was taken is watched for coming back.
    pub(crate) const LINGER: Duration = Duration::from_secs(60);

    /// No pool and no client yet.
    pub(crate) fn new(config: Config, target: Target, credentials: Credentials, sink: Arc<dyn Sink>) -> Self {
        Self {
            sink,
            credentials,
            watch: Arc::default(),
            cancel_queue: CancelQueue::default(),
            pre_auth_limit: ClientLimit::default(),
            lingering: ClientLimit::default(),
            pause_gate: Arc::default(),
            target: ArcSwap::from_pointee(target),
            policy: Arc::new(LivePolicy::from_pointee(config.policy.clone())),
            pools: Mutex::default(),
            opening: Mutex::default(),
            sessions: Mutex::default(),
            alike: Mutex::default(),
            spellings: Mutex::default(),
            next_session: AtomicU32::new(1),
            left: Notify::new(),
            draining: AtomicBool::new(false),
            mode: config.policy.mode,
            config: ArcSwap::from_pointee(config),
        }
    }

    /// Whether a role may log in.
    ///
    /// # Errors
    /// It may not: why, in the server's words.
    pub(crate) fn admits(&self, admission: Admission, key: &PoolKey) -> Result<(), CheckoutError> {
        let PoolKey { user, database, .. } = key;
        let (state, message) = match admission {
            Admission::Open => return Ok(()),
            // Without a password nothing has expired.
            Admission::Expired if !self.credentials.demands_password() => return Ok(()),
            Admission::Expired => {
                (SqlState::InvalidPassword, format!("password authentication failed for user \"{user}\""))
            }
            Admission::NoLogin => {
                (SqlState::InvalidAuthorization, format!("role \"{user}\" is not permitted to log in"))
            }
            Admission::Unknown => (SqlState::InvalidAuthorization, format!("role \"{user}\" does not exist")),
            Admission::NoConnect => {
                (SqlState::InsufficientPrivilege, format!("permission denied for database \"{database}\""))
            }
        };
        Err(CheckoutError::Refused(state, message))
    }

    /// The pools there are, by name.
    pub(crate) fn pools(&self) -> Vec<WatchedPool> {
        lock(&self.pools).values().cloned().collect()
    }

    /// The pool of this (database, user), if a connection of it was ever opened.
    pub(crate) fn known_pool(&self, key: &PoolKey) -> Option<WatchedPool> {
        lock(&self.pools).get(key).cloned()
    }

    /// A pool that is not in the register yet, shared by all who ask for it at the same time; `None` if
    /// there are too many.
    pub(crate) fn new_pool(&self, key: &PoolKey) -> Option<WatchedPool> {
        let mut opening = lock(&self.opening);
        let known = self.known_pool(key).or_else(|| opening.get(key).and_then(WeakPool::upgrade));
        if known.is_some() {
            return known;
        }
        opening.retain(|_, pool| pool.upgrade().is_some());
        let mut pools = lock(&self.pools);
        if pools.len() + opening.len() >= MAX_POOLS {
            pools.retain(|_, pool| !pool.is_abandoned());
        }
        if pools.len() + opening.len() >= MAX_POOLS {
            return None;
        }
        let entered = pools.values().cloned();
        let near = entered.chain(opening.values().filter_map(WeakPool::upgrade));
        let near = near.into_iter().find(|pool| pool.key().database == key.database);
        let library = near.map(|pool| pool.library().beside()).unwrap_or_default();
        drop(pools);
        let attention = Arc::clone(self.watch.attention());
        let (policy, pause_gate, sink) =
            (Arc::clone(&self.policy), Arc::clone(&self.pause_gate), Arc::clone(&self.sink));
        let pool = WatchedPool::new(
            key.clone(),
            &self.target.load(),
            policy,
            pause_gate,
            sink,
            (attention, library),
        );
        opening.insert(key.clone(), pool.downgrade());
        Some(pool)
    }

    /// Enters a pool whose first connection has been opened. If another pool of this name is there
    /// already, that one stays.
    pub(crate) fn enter_pool(&self, pool: WatchedPool) -> WatchedPool {
        let mut pools = lock(&self.pools);
        let key = pool.key().clone();
        if let Some(known) = pools.get(&key) {
            let known = known.clone();
            drop(pools);
            if !known.is(&pool) {
                pool.close();
            }
            return known;
        }
        self.sink.emit(Event::PoolOpened { pool: key.clone(), size: self.policy.load().size });
        pools.insert(key.clone(), pool.clone());
        drop(pools);
        lock(&self.opening).remove(&key);
        pool
    }

    /// The same address for the same parameters, so that clients of one application are told to be
    /// alike without comparing. Beyond 256 different ones it starts anew: they still compare.
    pub(crate) fn shared_vars(&self, vars: Vars) -> Arc<Vars> {
        let mut alike = lock(&self.alike);
        if let Some(known) = alike.get(&vars) {
            return Arc::clone(known);
        }
        if alike.len() >= MAX_ALIKE {
            alike.clear();
        }
        let vars = Arc::new(vars);
        alike.insert(Arc::clone(&vars));
        vars
    }

    /// How the server spells a value, if it was asked before.
    pub(crate) fn spelling(&self, key: &Spelling) -> Option<String> {
        lock(&self.spellings).get(key).cloned()
    }

    /// Remembers how the server spells a value.
    pub(crate) fn learn_spelling(&self, key: Spelling, spelled: &str) {
        let mut spellings = lock(&self.spellings);
        if spellings.len() >= MAX_ALIKE {
            spellings.clear();
        }
        spellings.insert(key, spelled.to_owned());
    }

    /// A place for a caller that has not sent its first packet; it holds a descriptor.
    pub(crate) fn pre_auth_limit(&self) -> Option<ClientPermit<'_>> {
        self.pre_auth_limit.try_take(self.config.load().max_clients.max(64))
    }

    /// Whether everybody who came has said who it is.
    pub(crate) fn is_doorstep_empty(&self) -> bool {
        self.pre_auth_limit.are_free()
    }

    /// A place for a client whose connection was taken and who may come back.
    pub(crate) fn linger(&self) -> Option<ClientPermit<'_>> {
        self.lingering.try_take(self.policy.load().size.max(16))
    }

    /// Takes a client in, which will be told this key; `None` if there are `pool.max_clients`.
    pub(crate) fn enter(&self, key: CancelKey) -> Option<(SessionId, Arc<SessionHandle>)> {
        let mut sessions = lock(&self.sessions);
        if sessions.len() >= self.config.load().max_clients {
            return None;
        }
        let id = loop {
            // A positive 32-bit process id, as Postgres tells one.
            let id = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed) & 0x7fff_ffff);
            if id.0 != 0 && !sessions.contains_key(&id) {
                break id;
            }
        };
        let handle = Arc::new(SessionHandle {
            key,
            turn: Turn::default(),
            holder_state: HolderState::new(Arc::clone(self.watch.attention())),
            orders: Orders::default(),
            client_phase: ClientPhase::default(),
        });
        if self.is_draining() {
            handle.order(false);
        }
        sessions.insert(id, Arc::clone(&handle));
        Some((id, handle))
    }

    /// The session is over. May be told twice.
    pub(crate) fn forget(&self, session: SessionId) {
        if lock(&self.sessions).remove(&session).is_some() {
            self.left.notify_waiters();
        }
    }

    /// The session that was told this process id and secret.
    pub(crate) fn session(&self, pid: u32, secret: &[u8]) -> Option<Arc<SessionHandle>> {
        let handle = lock(&self.sessions).get(&SessionId(pid)).cloned()?;
        handle.key.is(secret).then_some(handle)
    }

    /// Connected clients.
    pub(crate) fn clients(&self) -> usize {
        lock(&self.sessions).len()
    }

    /// Whether clients should be sent here.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn ready(&self) -> Result<(), String> {
        if self.is_draining() {
            return Err("draining".to_owned());
        }
        if self.pause_gate.flow() != Flow::Open {
            return Err("paused".to_owned());
        }
        match self.target.load().outage.outlook() {
            None => Ok(()),
            Some(why) => Err(format!("upstream server not reachable at the last attempt: {}", why.words())),
        }
    }

    /// Whether SIGTERM was received.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Stops enforcement, then tells every client to leave when it is quiet.
    pub(crate) fn begin_drain(&self) {
        self.watch.disarm();
        let (clients, limit) = (self.clients(), self.config.load().drain_timeout);
        self.sink.emit(Event::Draining { clients, limit_seconds: limit.as_secs_f64() });
        self.draining.store(true, Ordering::Release);
        self.pause_gate.drain();
        for session in lock(&self.sessions).values() {
            session.order(false);
        }
    }

    /// Tells every client to leave now.
    pub(crate) fn cut_all(&self) {
        for session in lock(&self.sessions).values() {
            session.order(true);
        }
    }

    /// Resolves when no client is connected.
    pub(crate) async fn emptied(&self) {
        loop {
            let left = self.left.notified();
            if self.clients() == 0 {
                return;
            }
            left.await;
        }
    }

    /// Resolves when nothing is out, waiting or being recycled.
    pub(crate) async fn settled(&self) {
        while self.clients() > 0 || self.pools().iter().any(WatchedPool::is_busy) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Closes every pool.
    pub(crate) fn close(&self) {
        self.pools().iter().for_each(WatchedPool::close);
    }

    /// `leaks.action`, as it is shown.
    pub(crate) fn action(&self) -> &'static str {
        self.policy.load().action.as_str()
    }

    /// The limits in force, as they are told at the start.
    pub(crate) fn limits(&self) -> InForce {
        let policy = self.policy.load();
        InForce {
            idle_in_transaction_seconds: policy.idle_in_transaction.as_secs_f64(),
            idle_session_seconds: policy.idle_session.as_secs_f64(),
            floor_seconds: policy.floor.as_secs_f64(),
            budget_share: policy.budget.share,
            budget_seconds: policy.budget.per.as_secs_f64(),
        }
    }

    /// New checkouts wait; connections are closed as they come home, so that the server can be worked on.
    pub(crate) fn pause(&self) -> FlowState {
        if self.pause_gate.pause() {
            self.sink.emit(Event::Paused { checkouts: self.checkouts() });
            self.watch.attention().notify_one();
        }
        self.flow()
    }

    /// New checkouts go on.
    pub(crate) fn resume(&self) -> FlowState {
        let waiting = self.pools().iter().map(WatchedPool::waiting).sum();
        if self.pause_gate.resume() {
            self.sink.emit(Event::Resumed { waiting });
        }
        self.flow()
    }

    /// Checkouts that are out, over all pools.
    pub(crate) fn checkouts(&self) -> usize {
        self.pools().iter().map(WatchedPool::held).sum()
    }

    /// Puts a configuration in force, as far as it may change while we run.
    ///
    /// # Errors
    /// The way to the new server cannot be prepared; nothing is changed then.
    pub(crate) fn apply(&self, config: &Config) -> Result<(), RunError> {
        let moved = config.upstream != self.config.load().upstream;
        if moved {
            // Passwords are the users file's, which has not moved.
            let passwords = Arc::clone(&self.target.load().passwords);
            self.target.store(Arc::new(Target { passwords, ..target(config)? }));
            self.credentials.retarget(&self.target.load());
        }
        self.policy.store(Arc::new(config.policy.clone()));
        self.config.store(Arc::new(config.clone()));
        // A pool that is made from here on, under this lock, is made of the new ones.
        let opening = lock(&self.opening);
        let target = self.target.load();
        let mut pools = self.pools();
        pools.extend(opening.values().filter_map(WeakPool::upgrade));
        for pool in &pools {
            if moved {
                pool.retarget(&target);
            }
            pool.resize();
        }
        drop(opening);
        self.watch.attention().notify_one();
        Ok(())
    }

    /// Whether new checkouts go on, and if not, whether any server connection is left.
    pub(crate) fn flow(&self) -> FlowState {
        match self.pause_gate.flow() {
            Flow::Open => FlowState::Open,
            Flow::Paused | Flow::Over if self.pools().iter().all(WatchedPool::is_empty) => FlowState::Paused,
            Flow::Paused | Flow::Over => FlowState::Pausing,
        }
    }

    /// Everything there is to show, now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let now = pgleash_clock::now();
        let age = now.since(self.watch.last_look());
        let draining = self.is_draining();
        Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: now.since(pgleash_core::Moment::START).as_secs_f64(),
            mode: self.mode.as_str(),
            config_hash: print::digest(&self.config.load()),
            action: self.action(),
            enforcing: self.policy.load().action == Action::Reclaim && !draining,
            draining,
            flow: self.flow(),
            observation_age_seconds: age.as_secs_f64(),
            observed_at_unix_seconds: pgleash_clock::wall().saturating_sub(age).as_secs_f64(),
            clients: self.clients(),
            clients_max: self.config.load().max_clients,
            pools: self.pools().iter().map(WatchedPool::snapshot).collect(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}
