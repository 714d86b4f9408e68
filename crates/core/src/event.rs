//! The closed list of facts.
//!
//! Each fact is one variant; telemetry turns it into a counter, a log line, or both, in one place.
//! No variant carries SQL, a password, or a cancel key.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{CheckoutId, ConnId, Holder, PoolKey};

/// How bad a fact is. `error` and `warn` are worth a look at 3 a.m.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Counted, not logged.
    Debug,
    /// Normal life.
    Info,
    /// Something was wrong and was dealt with, or a client misbehaved.
    Warn,
    /// Something is wrong and needs a person.
    Error,
}

pub use crate::labels::*;

/// Who, how long, on which connection: common to all that is said of one checkout.
#[derive(Clone, Debug, Serialize)]
pub struct Evidence {
    /// The checkout.
    pub checkout: CheckoutId,
    /// Who holds it.
    #[serde(flatten)]
    pub holder: Arc<Holder>,
    /// Process id of the Postgres backend.
    pub backend_pid: i32,
    /// Seconds since the checkout began.
    pub age_seconds: f64,
    /// Seconds since a byte last went either way.
    pub idle_seconds: f64,
    /// The limit that was applied, in seconds; 0 where there is none.
    pub limit_seconds: f64,
    /// What the application says that it is doing; `None` if it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Arc<str>>,
    /// The statement after which it fell idle, without its values; `None` if it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement: Option<Arc<str>>,
    /// The W3C trace that the statement said it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<Arc<str>>,
    /// What the statement in flight waits for, and whose checkouts it waits for; absent if it was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<Wait>,
    /// Process ids of the backends that it waits for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked_by: Vec<i32>,
    /// On what the limit is founded; `None` if it is a configured one.
    #[serde(flatten)]
    pub grounds: Option<Grounds>,
}

/// One kind of work, and how long its suspect checkouts have been idle for altogether.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopHolder {
    /// `application_name`.
    pub app: String,
    /// What the application says that it is doing; absent if it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Arc<str>>,
    /// Its suspect checkouts.
    pub stale: usize,
    /// Seconds they have been idle for, added up.
    pub stale_seconds: f64,
}

/// Why a limit is lower than the configured one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grounds {
    /// Healthy pauses of this kind of work that were seen within the last hour.
    pub pauses_seen: u64,
    /// The longest of them, or of this checkout's own, in seconds.
    pub worst_pause_seconds: f64,
    /// Siblings whose pause began later and is over.
    pub later_over: u64,
    /// Siblings whose pause began later and is not over.
    pub later_idle: u64,
    /// The chance that a healthy pause outlasts so many later ones: `(idle + 1) / (over + idle + 1)`.
    pub p_value: f64,
    /// The configured limit, in seconds.
    pub ceiling_seconds: f64,
}

/// That a suspect had been due, and nothing was done about it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftAlone {
    /// Why not.
    #[serde(rename = "left_alone")]
    pub because: Suppression,
    /// For how long it had been due, in seconds.
    #[serde(rename = "left_alone_seconds")]
    pub seconds: f64,
}

/// The limits in force at the start, in seconds unless the name says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as the configuration keys")]
pub struct InForce {
    pub idle_in_transaction_seconds: f64,
    pub idle_session_seconds: f64,
    pub floor_seconds: f64,
    pub budget_share: f64,
    pub budget_seconds: f64,
}

/// One fact.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs, reason = "field names are the JSON keys and say what they are; units are in the names")]
pub enum Event {
    /// The process listens and serves. `listen` and `admin` are the bound addresses.
    Started {
        version: &'static str,
        listen: String,
        admin: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        control: Option<String>,
        action: &'static str,
        #[serde(flatten)]
        limits: InForce,
    },
    /// SIGTERM or SIGINT arrived: enforcement is off, clients are asked to leave.
    Draining {
        clients: usize,
        limit_seconds: f64,
    },
    /// The last word.
    Stopped {
        drained: bool,
        clients_cut: usize,
    },
    /// A first client asked for this (database, user).
    PoolOpened {
        pool: PoolKey,
        size: usize,
    },
    ConnectionOpened {
        pool: PoolKey,
        conn: ConnId,
        backend_pid: i32,
        connect_seconds: f64,
    },
    ConnectionClosed {
        pool: PoolKey,
        conn: ConnId,
        backend_pid: i32,
        reason: CloseReason,
        age_seconds: f64,
        uses: u64,
    },
    /// Counted, not logged.
    CheckedOut {
        pool: PoolKey,
        waited_seconds: f64,
    },
    /// Counted, not logged.
    CheckedIn {
        pool: PoolKey,
        held_seconds: f64,
    },
    /// A client waited `wait_timeout` in vain and was told 53300.
    CheckoutTimeout {
        pool: PoolKey,
        waited_seconds: f64,
        diagnosis: String,
        client: String,
    },
    /// A checkout has become suspect, or a certain leak was met.
    LeakDetected {
        pool: PoolKey,
        reason: Reason,
        #[serde(flatten)]
        evidence: Evidence,
    },
    /// A detected leak is over. If its holder moved, `idle_seconds` is how long the pause was that has ended.
    LeakResolved {
        pool: PoolKey,
        reason: Reason,
        resolution: Resolution,
        #[serde(flatten)]
        left_alone: Option<LeftAlone>,
        #[serde(flatten)]
        evidence: Evidence,
    },
    /// While statements were slow, a large table was read from end to end far more than usual. Told once in ten
    /// minutes for a table. `apps` have slow statements.
    MissingIndexSuspected {
        pool: PoolKey,
        table: String,
        scans_per_second: f64,
        rows_read_per_second: f64,
        usual_rows_read_per_second: f64,
        apps: Vec<String>,
        statements: Vec<String>,
    },
    /// The server could not be asked what slow statements wait for. Told once, until it can.
    SurveyFailed {
        pool: PoolKey,
        detail: String,
    },
    /// It can be asked again.
    SurveyRecovered {
        pool: PoolKey,
    },
    /// Stale checkouts grow, and will leave too little of the pool within ten minutes. `holders` has the largest
    /// holders of stale checkouts.
    ExhaustionForeseen {
        pool: PoolKey,
        in_seconds: f64,
        stale: usize,
        holders: Vec<TopHolder>,
    },
    /// They do not any more.
    ExhaustionAverted {
        pool: PoolKey,
        stale: usize,
    },
    /// A checkout that was suspect by what was usual was none: what is usual now includes it. `limit` is
    /// `idle_in_transaction` or `idle_session`.
    LimitWidened {
        pool: PoolKey,
        app: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        route: Option<Arc<str>>,
        limit: Reason,
        because: Widening,
        from_seconds: f64,
        to_seconds: f64,
    },
    /// A suspect was due, and was left alone.
    ReclaimSuppressed {
        pool: PoolKey,
        reason: Reason,
        because: Suppression,
        /// Nothing would have been done in any case.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        dry_run: bool,
        #[serde(flatten)]
        evidence: Evidence,
    },
    /// A connection that did not come home clean was dealt with.
    Recycled {
        pool: PoolKey,
        conn: ConnId,
        checkout: CheckoutId,
        backend_pid: i32,
        action: RecycleAction,
        outcome: RecycleOutcome,
        elapsed_seconds: f64,
        detail: String,
    },
    /// A holder sent a statement after its connection was taken: the kill was wrong.
    ReclaimRegretted {
        pool: PoolKey,
        #[serde(flatten)]
        evidence: Evidence,
        after_seconds: f64,
    },
    /// A client was turned away or cut off. `detail` says what was wrong, without its data.
    ClientRefused {
        reason: Refusal,
        client: String,
        detail: String,
    },
    /// The upstream server could not be reached or refused a connection.
    UpstreamFailed {
        pool: PoolKey,
        sqlstate: String,
        detail: String,
    },
    /// The upstream server can be reached again.
    UpstreamRecovered {
        pool: PoolKey,
        down_seconds: f64,
        attempts: u64,
    },
    /// The configuration was read again, and differs: `changed` is in force, each as `key: old -> new`;
    /// `needs_restart` has the keys whose new value is not.
    Reloaded {
        changed: Vec<String>,
        needs_restart: Vec<&'static str>,
    },
    /// The configuration was read again, and is wrong: all of what was in force still is.
    ReloadRefused {
        problems: Vec<String>,
    },
    /// An administrator paused it: new checkouts wait.
    Paused {
        checkouts: usize,
    },
    /// An administrator resumed it.
    Resumed {
        waiting: usize,
    },
    /// The listening sockets came from a running pgleash, which has stopped accepting.
    TookOver {
        listen: String,
    },
    /// The listening sockets went to another pgleash, and no client comes here any more.
    HandedOver {
        clients: usize,
        limit_seconds: f64,
    },
    /// Certificates or users were read anew, and count from now on.
    CredentialsReloaded {
        what: Credential,
        detail: String,
    },
    /// Certificates or users have changed and do not work: those that were there before stay.
    CredentialsKept {
        what: Credential,
        detail: String,
    },
    /// Counted, not logged.
    Notified {
        channel: Channel,
        outcome: Delivery,
    },
    /// A receiver of notifications does not take them. Told once, until it does. `receiver` is without its secrets.
    NotificationsFailing {
        channel: Channel,
        receiver: String,
        detail: String,
    },
    /// It takes them again.
    NotificationsRecovered {
        channel: Channel,
        failed_seconds: f64,
    },
    /// What `pgleash test-notification` sends; a running pgleash never says it.
    TestNotification,
    /// A label value beyond the bound was counted as `other`.
    LabelFolded {
        label: &'static str,
    },
}

impl Event {
    /// How bad it is.
    pub fn level(&self) -> Level {
        match self {
            Event::CheckedOut { .. }
            | Event::CheckedIn { .. }
            | Event::Notified { .. }
            | Event::LabelFolded { .. } => Level::Debug,
            Event::CheckoutTimeout { .. }
            | Event::UpstreamFailed { .. }
            | Event::CredentialsKept { .. }
            | Event::ReclaimRegretted { .. }
            | Event::ExhaustionForeseen { .. }
            | Event::ReloadRefused { .. } => Level::Error,
            Event::LeakDetected { .. }
            | Event::MissingIndexSuspected { .. }
            | Event::SurveyFailed { .. }
            | Event::ReclaimSuppressed { .. }
            | Event::NotificationsFailing { .. }
            | Event::ClientRefused { .. } => Level::Warn,
            Event::Reloaded { needs_restart, .. } if !needs_restart.is_empty() => Level::Warn,
            Event::Recycled { outcome, .. } if *outcome == RecycleOutcome::BackendLingers => Level::Error,
            Event::Started { .. }
            | Event::Draining { .. }
            | Event::Stopped { .. }
            | Event::PoolOpened { .. }
            | Event::ConnectionOpened { .. }
            | Event::ConnectionClosed { .. }
            | Event::LeakResolved { .. }
            | Event::LimitWidened { .. }
            | Event::SurveyRecovered { .. }
            | Event::ExhaustionAverted { .. }
            | Event::CredentialsReloaded { .. }
            | Event::UpstreamRecovered { .. }
            | Event::Reloaded { .. }
            | Event::Paused { .. }
            | Event::Resumed { .. }
            | Event::TookOver { .. }
            | Event::HandedOver { .. }
            | Event::NotificationsRecovered { .. }
            | Event::TestNotification
            | Event::Recycled { .. } => Level::Info,
        }
    }
}

/// Where facts go. Telemetry implements it; tests collect into a vector.
pub trait Sink: Send + Sync + 'static {
    /// Takes one fact. Must not block on I/O for long and must not panic.
    fn emit(&self, event: Event);

    /// Takes [`Event::CheckedOut`]. For a sink that can do without a fact of its own, as these two are as many as
    /// there are transactions.
    fn checked_out(&self, pool: &PoolKey, waited: Duration) {
        self.emit(Event::CheckedOut { pool: pool.clone(), waited_seconds: waited.as_secs_f64() });
    }

    /// Takes [`Event::CheckedIn`], likewise.
    fn checked_in(&self, pool: &PoolKey, held: Duration) {
        self.emit(Event::CheckedIn { pool: pool.clone(), held_seconds: held.as_secs_f64() });
    }
}
