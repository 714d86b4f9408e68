//! The incident: fifteen minutes in four phases, and every payment of it drawn from a seed.
//!
//! Pure: the same [`Scenario`] makes the same [`Payment`]s on every machine.

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use pgleash_core::{PoolMode, Reason, string_enum};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use crate::drill::workload::Kind;

/// Length of the incident in scenario minutes.
pub const MINUTES: f64 = 15.0;
/// What the campaign multiplies the rate of arrivals by.
const SPIKE: f64 = 1.4;
/// The share of the pool's slots that leaks in one scenario minute at the baseline rate. With the healthy
/// load of this workload the pool is 85 % used around minute 12 and exhausted around minute 14.
const LEAKED_SLOTS_PER_MINUTE: f64 = 0.0555;
/// Accounts that payments are drawn from: many, so that two payments rarely meet on a row lock.
pub const ACCOUNTS: i32 = 10_000;
/// Most that one payment moves, in cents.
const MAX_AMOUNT: i64 = 50_000;
/// Half of all calls to the payment provider are faster.
const THINK_MEDIAN_SECONDS: f64 = 0.105;
/// Spread of the logarithm of the think time: one in a hundred takes six times the median.
const THINK_SIGMA: f64 = 0.8;
/// No healthy payment is silent for longer than this, whatever the limit.
const THINK_CAP: Duration = Duration::from_secs(5);
/// Half of the thoughts of a provider who thinks for long are shorter than this share of the longest.
const LONG_THINK_SHARE: f64 = 0.35;
/// The share of payments whose statement runs for long, where statements are slow.
const LONG_STATEMENTS: f64 = 0.06;
/// How much longer than the limit for idle transactions such a statement runs.
const LONG_STATEMENT: f64 = 1.5;
/// No payment is drawn from this account: it is there to be locked.
pub const CONVOY_ACCOUNT: i32 = ACCOUNTS;
/// No limit is compressed below this: a healthy checkout on a busy machine must not come near it.
const LIMIT_FLOOR: Duration = Duration::from_millis(1500);

string_enum! {
    /// What the scenario is doing, in order.
    Phase {
        /// The service as it should be.
        Baseline => "baseline",
        /// A release with the recycling bug goes out.
        Deploy => "deploy",
        /// A campaign brings 40 % more payments.
        Spike => "campaign",
        /// The release's migration drops the index that each payment looks up by.
        Index => "index dropped",
    }
}

impl Phase {
    /// The scenario minute at which it begins.
    pub const fn begins(self) -> f64 {
        match self {
            Phase::Baseline => 0.0,
            Phase::Deploy => 1.0,
            Phase::Spike => 10.0,
            Phase::Index => 11.0,
        }
    }
}

/// How the recycling bug forgets a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Leak {
    /// After the INSERT: the transaction stays open.
    MidTransaction,
    /// After the COMMIT: the connection is neither used nor closed.
    AfterCommit,
}

impl Leak {
    /// What the watchdog should call it.
    pub fn reason(self) -> Reason {
        match self {
            Leak::MidTransaction => Reason::IdleInTransaction,
            Leak::AfterCommit => Reason::IdleSession,
        }
    }
}

string_enum! {
    /// What a customer does, as the service's own framework names it.
    Route {
        /// Most of them.
        Pay => "POST /pay",
        /// The one whose code has the bug.
        Refund => "POST /refund",
        /// The rest.
        Balance => "GET /balance",
    }
}

impl Route {
    /// The share of customers who do it.
    const fn share(self) -> f64 {
        match self {
            Route::Pay => 0.6,
            Route::Refund => 0.2,
            Route::Balance => 0.2,
        }
    }

    fn drawn(dice: &mut Xoshiro256PlusPlus) -> Self {
        let mut rest = dice.random::<f64>();
        for route in Route::ALL {
            rest -= route.share();
            if rest < 0.0 {
                return *route;
            }
        }
        Route::Pay
    }

    /// The comment of its statements, as sqlcommenter writes it.
    pub const fn comment(self) -> &'static str {
        match self {
            Route::Pay => "/*route='POST%20%2Fpay'*/",
            Route::Refund => "/*route='POST%20%2Frefund'*/",
            Route::Balance => "/*route='GET%20%2Fbalance'*/",
        }
    }
}

/// One payment, as the seed drew it.
#[derive(Clone, Debug, PartialEq)]
pub struct Payment {
    /// When its customer arrives, since the beginning of the run.
    pub at: Duration,
    /// What its customer does.
    pub route: Route,
    /// Whose account is debited.
    pub account: i32,
    /// Cents.
    pub amount: i64,
    /// How long the call to the payment provider takes, in mid-transaction.
    pub think: Duration,
    /// How long its lookup runs on the server beyond its own time.
    pub runs: Duration,
    /// Whether and how the bug will forget its connection.
    pub leak: Option<Leak>,
}

/// All that a run is made of.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Draws arrivals, accounts, amounts, think times and leaks.
    pub seed: u64,
    /// Real minutes that the fifteen scenario minutes take.
    pub minutes: f64,
    /// Payments a second at the baseline.
    pub rate: f64,
    /// How pgleash lends.
    pub mode: PoolMode,
    /// Which workload.
    pub kind: Kind,
}

/// pgleash's limits for the drill: the scenario's, compressed like its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// 30 s in the scenario.
    pub idle_in_transaction: Duration,
    /// 1 min in the scenario.
    pub idle_session: Duration,
    /// `leaks.floor`.
    pub floor: Duration,
    /// The window of the budget of 25 %; 1 min in the scenario.
    pub budget_window: Duration,
    /// Not compressed.
    pub wait_timeout: Duration,
}

impl Limits {
    /// The idle limit that a leak of this kind will cross.
    pub fn of(&self, leak: Leak) -> Duration {
        match leak {
            Leak::MidTransaction => self.idle_in_transaction,
            Leak::AfterCommit => self.idle_session,
        }
    }

    /// The longest of the idle limits.
    pub fn longest(&self) -> Duration {
        self.idle_in_transaction.max(self.idle_session)
    }
}

impl Scenario {
    /// No healthy client is silent for longer than this share of the idle limit.
    pub const THINK_CAP_SHARE: f64 = 0.55;

    /// How many times faster than life the scenario plays.
    pub fn compression(&self) -> f64 {
        MINUTES / self.minutes
    }

    /// How long a run takes.
    pub fn length(&self) -> Duration {
        Duration::from_secs_f64(self.minutes * 60.0)
    }

    /// The scenario minute of a moment of the run.
    pub fn minute(&self, elapsed: Duration) -> f64 {
        elapsed.as_secs_f64() / 60.0 * self.compression()
    }

    /// The moment of the run at which a scenario minute begins.
    pub fn moment(&self, minute: f64) -> Duration {
        Duration::from_secs_f64(minute * 60.0 / self.compression())
    }

    /// Server connections in the pool: one for each payment a second, so that the healthy service uses a
    /// fifth of them.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the rate is 10 to 400")]
    pub fn pool_size(&self) -> usize {
        self.rate.ceil() as usize
    }

    /// Most payments a second in any phase.
    pub fn peak_rate(&self) -> f64 {
        self.rate * SPIKE
    }

    /// The limits that pgleash is given.
    pub fn limits(&self) -> Limits {
        let compressed =
            |seconds: f64| Duration::from_secs_f64(seconds / self.compression()).max(LIMIT_FLOOR);
        Limits {
            idle_in_transaction: compressed(30.0),
            idle_session: compressed(60.0),
            floor: compressed(5.0),
            budget_window: compressed(60.0),
            wait_timeout: Duration::from_secs(1),
        }
    }

    /// The longest that a healthy payment is silent in mid-transaction.
    pub fn longest_think(&self) -> Duration {
        self.limits().idle_in_transaction.mul_f64(Self::THINK_CAP_SHARE).min(THINK_CAP)
    }

    /// How long a statement takes that is longer than any limit on idle transactions.
    pub fn long_statement(&self) -> Duration {
        self.limits().idle_in_transaction.mul_f64(LONG_STATEMENT)
    }

    /// The share of checkouts that the bug leaks.
    #[allow(clippy::cast_precision_loss, reason = "a pool has few slots")]
    pub fn leak_share(&self) -> f64 {
        let payments_per_minute = self.rate * 60.0 / self.compression();
        let slots = self.pool_size() as f64 * LEAKED_SLOTS_PER_MINUTE * self.kind.leaks();
        // The bug is in the code of one route: there are no more of them to leak.
        (slots / payments_per_minute).min(Route::Refund.share() / 2.0)
    }

    /// Every payment of the run, in order of arrival.
    pub fn payments(&self) -> Vec<Payment> {
        let mut dice = Xoshiro256PlusPlus::seed_from_u64(self.seed);
        let mut bug = Bug::new(self.mode, self.leak_share() / Route::Refund.share());
        let mut payments = Vec::new();
        let mut at = Duration::ZERO;
        loop {
            let spikes = self.kind.has_campaign() && self.minute(at) >= Phase::Spike.begins();
            let spike = if spikes { SPIKE } else { 1.0 };
            at += Duration::from_secs_f64(exponential(&mut dice) / (self.rate * spike));
            if at >= self.length() {
                return payments;
            }
            let deployed = self.minute(at) >= Phase::Deploy.begins();
            let route = Route::drawn(&mut dice);
            let has_bug = deployed && self.kind.has_bug() && route == Route::Refund;
            let slow = self.kind == Kind::SlowQueries && self.minute(at) >= Phase::Index.begins();
            payments.push(Payment {
                at,
                route,
                account: dice.random_range(1..CONVOY_ACCOUNT),
                amount: dice.random_range(1..=MAX_AMOUNT),
                think: self.think(&mut dice),
                runs: if slow && dice.random_bool(LONG_STATEMENTS) {
                    self.long_statement()
                } else {
                    Duration::ZERO
                },
                leak: if has_bug { bug.strikes(&mut dice) } else { None },
            });
        }
    }
}

impl Scenario {
    fn think(&self, dice: &mut Xoshiro256PlusPlus) -> Duration {
        let longest = self.longest_think();
        let median = match self.kind {
            Kind::ThinkTime => longest.mul_f64(LONG_THINK_SHARE),
            _ => Duration::from_secs_f64(THINK_MEDIAN_SECONDS),
        };
        log_normal(dice, median).min(longest)
    }
}

/// Which checkouts leak: one in each 1/share of them, at a random place within.
struct Bug {
    mode: PoolMode,
    share: f64,
    passed: f64,
    next: f64,
    struck: u32,
}

impl Bug {
    fn new(mode: PoolMode, share: f64) -> Self {
        Self { mode, share, passed: 0.0, next: 0.5, struck: 0 }
    }

    fn strikes(&mut self, dice: &mut Xoshiro256PlusPlus) -> Option<Leak> {
        self.passed += self.share;
        if self.passed < self.next {
            return None;
        }
        self.struck += 1;
        self.next = f64::from(self.struck) + dice.random::<f64>();
        // A session that forgets to disconnect holds nothing in transaction mode.
        match (self.mode, self.struck % 2) {
            (PoolMode::Session, 0) => Some(Leak::AfterCommit),
            _ => Some(Leak::MidTransaction),
        }
    }
}

/// An exponential variate with mean 1.
fn exponential(dice: &mut Xoshiro256PlusPlus) -> f64 {
    -(1.0 - dice.random::<f64>()).ln()
}

/// A think time: heavy-tailed, before the cap.
fn log_normal(dice: &mut Xoshiro256PlusPlus, median: Duration) -> Duration {
    let radius = (2.0 * exponential(dice)).sqrt();
    let normal = radius * (std::f64::consts::TAU * dice.random::<f64>()).cos();
    median.mul_f64((THINK_SIGMA * normal).exp())
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, seed {}, {} mode, {} server connections, {} payments/s; {MINUTES} scenario minutes in {} s ({}x)",
            self.kind,
            self.seed,
            self.mode.as_str(),
            self.pool_size(),
            self.rate,
            self.length().as_secs_f64(),
            self.compression(),
        )
    }
}
