//! What the ledger shows: plain values, made at one moment.
//!
//! `/api/v1/snapshot`, the gauges and the page are all written from these.

use serde::Serialize;

use crate::event::{Grounds, Reason, TopHolder, Wait};
use crate::ids::{CheckoutId, Holder, PoolKey};
use crate::pin::Pin;
use crate::string_enum;

string_enum! {
    /// What a live server connection is doing. Every live connection is in exactly one state.
    ConnState {
        /// In the pool, ready to be lent.
        Idle => "idle",
        /// Lent; a statement is in flight.
        Active => "active",
        /// Lent; in a transaction and waiting for the client.
        IdleInTransaction => "idle_in_transaction",
        /// Lent; outside a transaction and waiting for the client.
        Held => "held",
        /// Coming home: being rolled back, reset or closed.
        Recycling => "recycling",
    }
}

string_enum! {
    /// Whether new checkouts go on.
    FlowState {
        /// They do.
        Open => "open",
        /// They wait; some connection has not come home yet.
        Pausing => "pausing",
        /// They wait, and there is no server connection.
        Paused => "paused",
    }
}

/// The whole process at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// Version of pgleash.
    pub version: &'static str,
    /// Seconds since the process started.
    pub uptime_seconds: f64,
    /// `pool.mode`: `session` or `transaction`.
    pub mode: &'static str,
    /// Twelve digits that differ if any key of the configuration in force does, but for its secrets.
    pub config_hash: String,
    /// `observe` or `reclaim`.
    pub action: &'static str,
    /// Whether a leak met now would be taken back: `reclaim`, and not draining.
    pub enforcing: bool,
    /// SIGTERM was received.
    pub draining: bool,
    /// `open`, `pausing` or `paused`.
    pub flow: FlowState,
    /// Seconds since the watchdog last looked at every pool.
    pub observation_age_seconds: f64,
    /// Unix time of that look.
    pub observed_at_unix_seconds: f64,
    /// Connected clients.
    pub clients: usize,
    /// `pool.max_clients`.
    pub clients_max: usize,
    /// One entry for each (database, user), by name.
    pub pools: Vec<PoolSnapshot>,
}

/// One pool at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct PoolSnapshot {
    /// `user@database`.
    pub pool: PoolKey,
    /// `pool.size`.
    pub size: usize,
    /// Live server connections by state.
    pub connections: ConnCounts,
    /// Slots in use (lent, recycling, or with a connection being opened) over size; 1 when exhausted, more
    /// while a pool that was made smaller waits for its connections.
    pub utilization_ratio: f64,
    /// Highest utilization within the last minute, exact: no burst between two scrapes is lost.
    pub utilization_peak_ratio: f64,
    /// Clients waiting for a connection.
    pub waiting: usize,
    /// Age of the oldest wait, seconds; 0 if nobody waits.
    pub oldest_wait_seconds: f64,
    /// Age of the oldest checkout, seconds; 0 if there is none.
    pub oldest_checkout_seconds: f64,
    /// Age of the oldest server connection, seconds; 0 if there is none.
    pub oldest_connection_seconds: f64,
    /// Suspect checkouts by reason; every idle or wedged reason is present.
    pub stale: Vec<(Reason, usize)>,
    /// Held connections past their `max_lifetime`.
    pub overdue: usize,
    /// The largest holders of stale checkouts, by the time these have been idle for: the cause, if there is one.
    pub top_holders: Vec<TopHolder>,
    /// By how much stale checkouts grow, a second; `null` while that may be chance.
    pub stale_growth_per_second: Option<f64>,
    /// Seconds until the pool is full of stale checkouts; `null` when they do not grow.
    pub exhaustion_forecast_seconds: Option<f64>,
    /// The limits in force, seconds.
    pub limits: Limits,
    /// Server connections opened since the pool began.
    pub opened: u64,
    /// Server connections closed since the pool began. `opened - closed` are live.
    pub closed: u64,
    /// Checkouts that began.
    pub checkouts: u64,
    /// Checkouts that ended.
    pub checkins: u64,
    /// Every checkout that is out, oldest first.
    pub holders: Vec<CheckoutSnapshot>,
}

/// Live connections by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "one field for each ConnState")]
pub struct ConnCounts {
    pub idle: usize,
    pub active: usize,
    pub idle_in_transaction: usize,
    pub held: usize,
    pub recycling: usize,
}

impl ConnCounts {
    /// The count of one state.
    pub fn get(&self, state: ConnState) -> usize {
        match state {
            ConnState::Idle => self.idle,
            ConnState::Active => self.active,
            ConnState::IdleInTransaction => self.idle_in_transaction,
            ConnState::Held => self.held,
            ConnState::Recycling => self.recycling,
        }
    }

    /// Live connections.
    pub fn total(&self) -> usize {
        ConnState::ALL.iter().map(|state| self.get(*state)).sum()
    }
}

/// The limits in force, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "named as the configuration keys")]
pub struct Limits {
    pub idle_in_transaction: f64,
    pub idle_session: f64,
    pub max_lifetime: f64,
    pub idle_timeout: f64,
    pub wait_timeout: f64,
}

/// Who has what a statement waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocker {
    /// Process id of its backend.
    pub backend_pid: i32,
    /// Its checkout; `null` if it does not come through this pool.
    pub checkout: Option<CheckoutId>,
    /// `application_name`.
    pub app: Option<String>,
    /// What its application says that it is doing.
    pub route: Option<std::sync::Arc<str>>,
}

/// One checkout at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct CheckoutSnapshot {
    /// The checkout.
    pub id: CheckoutId,
    /// Who holds it.
    #[serde(flatten)]
    pub holder: std::sync::Arc<Holder>,
    /// What the application says that it is doing; `null` if it does not say.
    pub route: Option<std::sync::Arc<str>>,
    /// What its statement in flight waits for; `null` if it was not asked.
    pub waits_for: Option<Wait>,
    /// Whom it waits for.
    pub blocked_by: Vec<Blocker>,
    /// How many checkouts wait for it.
    pub blocks: usize,
    /// Of a suspect, the statement after which it fell idle, without its values.
    pub statement: Option<std::sync::Arc<str>>,
    /// Of a suspect, the W3C trace that the statement said it belongs to.
    pub trace: Option<std::sync::Arc<str>>,
    /// What its connection is doing.
    pub phase: ConnState,
    /// Seconds since the checkout began.
    pub age_seconds: f64,
    /// Seconds since a byte last went either way.
    pub idle_seconds: f64,
    /// Seconds the client waited for it.
    pub waited_seconds: f64,
    /// Process id of the Postgres backend.
    pub backend_pid: i32,
    /// Age of the server connection, seconds.
    pub connection_age_seconds: f64,
    /// How many checkouts the server connection has served, this one included.
    pub connection_uses: u64,
    /// Why the connection is not given back between transactions; `null` if it is.
    pub pinned: Option<Pin>,
    /// For how long it has not been given back for that, seconds.
    pub pinned_seconds: Option<f64>,
    /// The statement that pinned it, without its values.
    pub pinned_by: Option<std::sync::Arc<str>>,
    /// Whether its connection is past its `max_lifetime`.
    pub overdue: bool,
    /// How long it may be idle before it is suspect, seconds; its ceiling where it is not known what is usual.
    pub limit_seconds: f64,
    /// On what the limit is founded; absent if it is the ceiling.
    #[serde(flatten)]
    pub grounds: Option<Grounds>,
    /// Why it is suspect; `null` if it is not.
    pub suspect: Option<Reason>,
    /// Why it is, or is not, suspect, in words.
    pub why: String,
    /// What happens next, in words.
    pub next: String,
}
