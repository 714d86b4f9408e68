//! Evidence in, verdict out. Floor 1, pure.
//!
//! The limits are fixed in this version: idleness beyond half a limit makes a checkout suspect,
//! beyond the whole limit it is due to be taken back. A statement in flight is never due.

use std::time::Duration;

use crate::activity::{Observed, Phase};
use crate::event::{Reason, Suppression};
use crate::ids::Moment;
use crate::policy::{Action, Policy};
use crate::wire::pin::Pin;

/// The reasons this judge can give, in the order they are shown.
pub const JUDGED: [Reason; 4] =
    [Reason::IdleInTransaction, Reason::IdleSession, Reason::ProtocolWedge, Reason::SlowStatement];

/// How far it has come with a checkout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing is said against it.
    Fine,
    /// Reported, and not touched.
    Suspect,
    /// To be taken back.
    Due,
}

/// The judgement on one checkout at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What it would be, or is, suspected of.
    pub reason: Reason,
    /// How far it has come.
    pub stage: Stage,
    /// The limit that applies.
    pub limit: Duration,
    /// When the stage changes if nobody moves; `None` if it will not.
    pub next: Option<Moment>,
}

/// Judges what was `seen` of a checkout. Never [`Stage::Due`] with work in flight.
/// A connection that is `pinned` for a purpose is never suspect for being idle outside a transaction.
pub fn judge(seen: Observed, pinned: Option<Pin>, policy: &Policy, now: Moment) -> Verdict {
    let (reason, limit) = match seen.phase {
        Phase::InFlight => return slow_statement(seen, policy, now),
        Phase::InTransaction => (Reason::IdleInTransaction, policy.idle_in_transaction),
        Phase::AwaitsClient => (Reason::ProtocolWedge, policy.idle_in_transaction),
        Phase::Held if pinned.is_some_and(Pin::is_deliberate) => {
            let (reason, limit) = (Reason::IdleSession, policy.idle_session);
            return Verdict { reason, stage: Stage::Fine, limit, next: None };
        }
        Phase::Held => (Reason::IdleSession, policy.idle_session),
    };
    let suspect_at = seen.last_active + limit.mul_f64(Policy::SUSPECT_SHARE);
    let due_at = seen.last_active + limit;
    let (stage, next) = if now >= due_at {
        (Stage::Due, None)
    } else if now >= suspect_at {
        (Stage::Suspect, Some(due_at))
    } else {
        (Stage::Fine, Some(suspect_at))
    };
    Verdict { reason, stage, limit, next }
}

fn slow_statement(seen: Observed, policy: &Policy, now: Moment) -> Verdict {
    let limit = policy.slow_statement();
    let slow_at = seen.last_active + limit;
    let (stage, next) = if now >= slow_at { (Stage::Suspect, None) } else { (Stage::Fine, Some(slow_at)) };
    Verdict { reason: Reason::SlowStatement, stage, limit, next }
}

/// Why a checkout is, or is not, suspect, and what happens next, in words for a person. `left_alone` is
/// why nothing was done about it at the last look, if it was due then.
pub fn explain(
    seen: Observed,
    verdict: Verdict,
    pinned: Option<Pin>,
    policy: &Policy,
    left_alone: Option<Suppression>,
    now: Moment,
) -> (String, String) {
    let idle = now.since(seen.last_active).as_secs_f64();
    let limit = verdict.limit.as_secs_f64();
    let what = match seen.phase {
        Phase::InFlight => {
            let next = match verdict.stage {
                Stage::Fine => format!("reported as slow after {limit:.1} s"),
                Stage::Suspect | Stage::Due => "nothing: a statement in flight is never reclaimed".to_owned(),
            };
            return (format!("statement in flight, {idle:.1} s since the last byte"), next);
        }
        Phase::Held if pinned.is_some_and(Pin::is_deliberate) => {
            let purpose = pinned.map_or("", Pin::as_str);
            return (format!("held for a reason: {purpose}, idle {idle:.1} s"), "nothing".to_owned());
        }
        Phase::InTransaction => "idle in transaction",
        Phase::AwaitsClient => "server waits for the client in mid-protocol",
        Phase::Held => "idle, connection held",
    };
    let next = match (verdict.stage, policy.action) {
        (Stage::Fine, _) => format!("suspect in {:.1} s", (limit * Policy::SUSPECT_SHARE - idle).max(0.0)),
        (Stage::Suspect, Action::Reclaim) => format!("reclaim in {:.1} s", (limit - idle).max(0.0)),
        (Stage::Suspect, Action::Observe) => {
            format!("would be reclaimed in {:.1} s, but the action is observe", (limit - idle).max(0.0))
        }
        (Stage::Due, Action::Reclaim) => due(left_alone).to_owned(),
        (Stage::Due, Action::Observe) => "nothing: it is due, but the action is observe".to_owned(),
    };
    (format!("{what} {idle:.1} s of {limit:.1} s"), next)
}

const fn due(left_alone: Option<Suppression>) -> &'static str {
    match left_alone {
        None => "reclaim is due",
        Some(Suppression::Observe) => "nothing: the action is observe",
        Some(Suppression::Budget) => "reclaim is due, as soon as the budget allows it",
        Some(Suppression::Moved) => "reclaim is due, unless the holder moves again",
        Some(Suppression::Draining) => "nothing: pgleash is draining",
        Some(Suppression::Unconfirmed) => "reclaim is due, once the server says that it waits for the client",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(phase: Phase, idle: u64) -> (Reason, Stage) {
        let policy = Policy::default();
        let seen = Observed::fake(phase, Moment::from_secs(100));
        let verdict = judge(seen, None, &policy, Moment::from_secs(100 + idle));
        (verdict.reason, verdict.stage)
    }

    #[test]
    fn idleness_is_suspect_at_half_the_limit_and_due_at_the_limit() {
        assert_eq!(stage(Phase::InTransaction, 14), (Reason::IdleInTransaction, Stage::Fine));
        assert_eq!(stage(Phase::InTransaction, 15), (Reason::IdleInTransaction, Stage::Suspect));
        assert_eq!(stage(Phase::InTransaction, 30), (Reason::IdleInTransaction, Stage::Due));
        assert_eq!(stage(Phase::Held, 299), (Reason::IdleSession, Stage::Fine));
        assert_eq!(stage(Phase::Held, 600), (Reason::IdleSession, Stage::Due));
        assert_eq!(stage(Phase::AwaitsClient, 30), (Reason::ProtocolWedge, Stage::Due));
    }

    #[test]
    fn a_statement_in_flight_is_reported_and_never_due() {
        assert_eq!(stage(Phase::InFlight, 29), (Reason::SlowStatement, Stage::Fine));
        assert_eq!(stage(Phase::InFlight, 30), (Reason::SlowStatement, Stage::Suspect));
        assert_eq!(stage(Phase::InFlight, 1_000_000), (Reason::SlowStatement, Stage::Suspect));
    }

    #[test]
    fn a_purpose_excuses_being_idle_but_not_an_open_transaction() {
        let policy = Policy::default();
        let at = |phase| {
            let seen = Observed::fake(phase, Moment::START);
            judge(seen, Some(Pin::Listen), &policy, Moment::from_secs(100_000)).stage
        };
        assert_eq!(at(Phase::Held), Stage::Fine);
        assert_eq!(at(Phase::InTransaction), Stage::Due);
    }

    #[test]
    fn the_next_look_is_when_the_stage_changes() {
        let policy = Policy::default();
        let seen = Observed::fake(Phase::InTransaction, Moment::from_secs(0));
        let at = |now| judge(seen, None, &policy, Moment::from_secs(now)).next;
        assert_eq!(at(1), Some(Moment::from_secs(15)));
        assert_eq!(at(16), Some(Moment::from_secs(30)));
        assert_eq!(at(31), None);
    }
}
