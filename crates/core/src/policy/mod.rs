//! The limits, with units and defaults.

pub(crate) mod rules;

use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Serialize;

pub use crate::policy::rules::Rules;

/// What the watchdog may do about a leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Everything but the act: suspects are found, counted and reported.
    Observe,
    /// Take leaked connections back.
    Reclaim,
}

impl Action {
    /// The word for it in `leaks.action`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Observe => "observe",
            Action::Reclaim => "reclaim",
        }
    }
}

/// The most that may be taken from live holders: a share of the pool per time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Share of `pool.size`, 0 to 1. At least one reclaim is allowed unless it is 0.
    pub share: f64,
    /// The window over which the share is counted.
    pub per: Duration,
}

impl Budget {
    /// How many reclaims the budget allows per window in a pool of `size` connections.
    pub fn allowance(&self, size: usize) -> usize {
        if self.share <= 0.0 {
            return 0;
        }
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let share = (size as f64 * self.share).floor() as usize;
        share.clamp(1, size.max(1))
    }
}

/// When a server connection is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolMode {
    /// At the end of each transaction.
    Transaction,
    /// When the client disconnects.
    Session,
}

impl PoolMode {
    /// The word for it in `pool.mode`.
    pub const fn as_str(self) -> &'static str {
        match self {
            PoolMode::Transaction => "transaction",
            PoolMode::Session => "session",
        }
    }
}

/// What a rule, or a word of the application's, grants a checkout beyond the limits on idleness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allowance {
    /// The limits apply.
    #[default]
    Usual,
    /// It may be idle for so long at least.
    AtLeast(Duration),
    /// It is never suspect for being idle.
    Always,
}

/// The limits that the pool and the judge work with. The configuration fills it.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// `leaks.action`.
    pub action: Action,
    /// `leaks.idle_in_transaction`: a checkout idle in a transaction for longer is taken back.
    pub idle_in_transaction: Duration,
    /// `leaks.idle_session`: a checkout idle outside a transaction for longer is taken back.
    pub idle_session: Duration,
    /// `leaks.floor`: no checkout is suspect for being idle for less because of what is usual.
    pub floor: Duration,
    /// `leaks.rules`: whose pauses may be longer.
    pub rules: Rules,
    /// `leaks.longest_hold`: what an application may declare itself.
    pub longest_hold: Duration,
    /// `leaks.budget`.
    pub budget: Budget,
    /// `pool.mode`.
    pub mode: PoolMode,
    /// `pool.size`: server connections per (database, user).
    pub size: usize,
    /// `pool.wait_timeout`: how long a client waits for a server connection.
    pub wait_timeout: Duration,
    /// `pool.max_lifetime` of a server connection, before jitter.
    pub max_lifetime: Duration,
    /// `pool.idle_timeout`: an unused server connection is closed after this.
    pub idle_timeout: Duration,
}

/// A policy that is changed as a whole while it is read without waiting.
pub type LivePolicy = ArcSwap<Policy>;

impl Default for Policy {
    fn default() -> Self {
        Self {
            action: Action::Reclaim,
            idle_in_transaction: Duration::from_secs(30),
            idle_session: Duration::from_secs(600),
            floor: Duration::from_secs(5),
            rules: Rules::default(),
            longest_hold: Duration::from_secs(900),
            budget: Budget { share: 0.25, per: Duration::from_secs(60) },
            mode: PoolMode::Transaction,
            size: 20,
            wait_timeout: Duration::from_secs(5),
            max_lifetime: Duration::from_secs(1800),
            idle_timeout: Duration::from_secs(600),
        }
    }
}

impl Policy {
    /// The largest `pool.size`.
    pub const MAX_SIZE: usize = 10_000;
    /// How long a client waits out a pause at least; after it, its `wait_timeout` begins anew.
    pub const PAUSE_PATIENCE: Duration = Duration::from_secs(120);
    /// Where too little is known, a checkout is suspect once it has been idle for this share of its ceiling.
    pub const SUSPECT_SHARE: f64 = 0.5;
    /// Where it is known what is usual, it is suspect after so many times the longest healthy pause.
    pub const WORST_TIMES: u32 = 3;
    /// And if a healthy pause would outlast so many later ones with this chance at most.
    pub const TURNOVER_P: f64 = 0.05;
    /// Utilization beyond this is pressure: a leaked connection is needed back now.
    pub const PRESSURE: f64 = 0.8;
    /// How long a connection may take to roll back and reset before it is closed instead.
    pub const RESET_DEADLINE: Duration = Duration::from_secs(5);
    /// How long to wait for a cancelled statement of a dead client to end.
    pub const CANCEL_DEADLINE: Duration = Duration::from_secs(5);

    /// A statement in flight for longer is reported as slow, and never reclaimed.
    pub fn slow_statement(&self) -> Duration {
        self.idle_in_transaction
    }
}
