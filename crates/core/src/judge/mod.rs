//! Evidence in, verdict out. Pure.
//!
//! The configured limits are ceilings. Where it is known what is usual, a checkout is suspect once it has
//! been idle for three times the longest healthy pause of its kind of work, if most of its later siblings have
//! gone on meanwhile; it is due then if the pool is short of connections and its kind is known well, and in any case at
//! the ceiling. Where too
//! little is known, idleness beyond half the ceiling is suspect. A statement in flight is never due.

pub(crate) mod explain;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::activity::{Observed, Pause, Phase};
use crate::event::{Grounds, Reason};
use crate::history::Habit;
use crate::ids::Moment;
use crate::pin::Pin;
use crate::policy::{Allowance, Policy};

pub(crate) use crate::judge::explain::explain;

/// The reasons this judge can give, in the order they are shown.
pub(crate) const JUDGED: [Reason; 4] =
    [Reason::IdleInTransaction, Reason::IdleSession, Reason::ProtocolWedge, Reason::SlowStatement];

/// How far it has come with a checkout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Nothing is said against it.
    Fine,
    /// Reported, and not touched.
    Suspect,
    /// To be taken back.
    Due,
}

/// What the siblings did whose pause began later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turnover {
    /// Went on.
    pub over: u64,
    /// Are still idle.
    pub idle: u64,
}

impl Turnover {
    /// The chance that a healthy pause outlasts so many later ones: of `over + idle + 1` pauses that are alike,
    /// this one is among the `idle + 1` longest. It holds for any distribution.
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    pub(crate) fn p_value(self) -> f64 {
        (self.idle + 1) as f64 / (self.over + self.idle + 1) as f64
    }
}

/// What there is to be known of a checkout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// What its holder is doing.
    pub seen: Observed,
    /// Why its connection stays with its client between transactions.
    pub pinned: Option<Pin>,
    /// What it is granted.
    pub allowance: Allowance,
    /// What is usual for its kind of work.
    pub habit: Habit,
    /// The longest pause that it has ended itself.
    pub own_worst: Duration,
    /// What became of later pauses; need not be known before [`Case::asks_for_turnover`] says so.
    pub turnover: Turnover,
    /// The pool is short of connections.
    pub pressed: bool,
}

impl Case {
    fn ceiling(&self, policy: &Policy) -> Duration {
        let usual = match self.seen.phase {
            Phase::Held => policy.idle_session,
            Phase::InFlight | Phase::InTransaction | Phase::AwaitsClient => policy.idle_in_transaction,
        };
        match self.allowance {
            Allowance::AtLeast(granted) => usual.max(granted),
            Allowance::Usual | Allowance::Always => usual,
        }
    }

    /// The limit that follows from what is usual; `None` if too little is known, or nothing may be usual.
    fn learned(&self, policy: &Policy) -> Option<Duration> {
        let ceiling = self.ceiling(policy);
        let learns = Pause::of(self.seen.phase).is_some() && policy.floor < ceiling && self.habit.is_warm();
        let granted = match self.allowance {
            Allowance::AtLeast(granted) => granted,
            Allowance::Usual | Allowance::Always => Duration::ZERO,
        };
        let worst = self.habit.worst.max(self.own_worst);
        let limit = || (worst * Policy::WORST_TIMES).max(policy.floor).max(granted).min(ceiling);
        learns.then(limit)
    }

    /// It is never suspect for being idle: it holds on for a purpose, or a rule says so.
    pub(crate) fn is_excused(&self) -> bool {
        match self.seen.phase {
            Phase::InFlight => false,
            Phase::Held if self.pinned.is_some_and(Pin::is_deliberate) => true,
            Phase::Held | Phase::InTransaction | Phase::AwaitsClient => self.allowance == Allowance::Always,
        }
    }

    /// Whether the verdict depends on what became of later pauses.
    pub(crate) fn asks_for_turnover(&self, policy: &Policy, now: Moment) -> bool {
        let idle = now.since(self.seen.last_active);
        !self.is_excused() && self.learned(policy).is_some_and(|limit| idle >= limit)
    }

    fn grounds(&self, ceiling: Duration) -> Grounds {
        Grounds {
            pauses_seen: self.habit.pauses,
            worst_pause_seconds: self.habit.worst.max(self.own_worst).as_secs_f64(),
            later_over: self.turnover.over,
            later_idle: self.turnover.idle,
            p_value: self.turnover.p_value(),
            ceiling_seconds: ceiling.as_secs_f64(),
        }
    }
}

/// The judgement on one checkout at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// What it would be, or is, suspected of.
    pub reason: Reason,
    /// How far it has come.
    pub stage: Stage,
    /// The limit that applies: what follows from what is usual, or else the ceiling.
    pub limit: Duration,
    /// On what the limit is founded; `None` if it is the ceiling.
    pub grounds: Option<Grounds>,
    /// When the stage changes if nobody moves; `None` if it will not.
    pub next: Option<Moment>,
}

/// Judges a checkout. Never [`Stage::Due`] with work in flight.
/// A connection that is pinned for a purpose is never suspect for being idle outside a transaction.
pub(crate) fn judge(case: &Case, policy: &Policy, now: Moment) -> Verdict {
    let seen = case.seen;
    let reason = match seen.phase {
        Phase::InFlight => return slow_statement(seen, policy, now),
        Phase::InTransaction => Reason::IdleInTransaction,
        Phase::AwaitsClient => Reason::ProtocolWedge,
        Phase::Held => Reason::IdleSession,
    };
    let ceiling = case.ceiling(policy);
    let learned = case.learned(policy);
    let limit = learned.unwrap_or(ceiling);
    let grounds = learned.map(|_| case.grounds(ceiling));
    if case.is_excused() {
        return Verdict { reason, stage: Stage::Fine, limit, grounds, next: None };
    }
    let half = ceiling.mul_f64(Policy::SUSPECT_SHARE);
    let at = |idle: Duration| seen.last_active + idle;
    let outlasts = learned.is_some() && case.turnover.p_value() <= Policy::TURNOVER_P;
    let (suspect_at, due_at) = match learned {
        // Siblings do not tell, or nobody waits for the connection: as if nothing were known.
        Some(limit) if !outlasts => (at(limit.max(half)), at(ceiling)),
        Some(limit) if !case.pressed || !case.habit.is_ripe() => (at(limit), at(ceiling)),
        Some(limit) => (at(limit), at(limit)),
        None => (at(half), at(ceiling)),
    };
    let (stage, next) = if now >= due_at {
        (Stage::Due, None)
    } else if now >= suspect_at {
        (Stage::Suspect, Some(due_at))
    } else {
        // Turnover is looked at from the limit on.
        (Stage::Fine, Some(if now < at(limit) { at(limit).min(suspect_at) } else { suspect_at }))
    };
    Verdict { reason, stage, limit, grounds, next }
}

fn slow_statement(seen: Observed, policy: &Policy, now: Moment) -> Verdict {
    let limit = policy.slow_statement();
    let slow_at = seen.last_active + limit;
    let (stage, next) = if now >= slow_at { (Stage::Suspect, None) } else { (Stage::Fine, Some(slow_at)) };
    Verdict { reason: Reason::SlowStatement, stage, limit, grounds: None, next }
}
