//! A verdict in words for a person.

use std::fmt::Write;

use crate::activity::Phase;
use crate::event::{Grounds, Suppression};
use crate::ids::Moment;
use crate::judge::{Case, Stage, Verdict};
use crate::pin::Pin;
use crate::policy::{Action, Policy};

/// Why a checkout is, or is not, suspect, and what happens next. `left_alone` is why nothing was done about
/// it at the last look, if it was due then.
pub(crate) fn explain(
    case: &Case,
    verdict: &Verdict,
    policy: &Policy,
    left_alone: Option<Suppression>,
    now: Moment,
) -> (String, String) {
    let Case { seen, pinned, .. } = *case;
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
        _ if case.is_excused() => {
            return (
                format!("allowed to be idle, idle {idle:.1} s"),
                "nothing: a rule exempts it".to_owned(),
            );
        }
        Phase::InTransaction => "idle in transaction",
        Phase::AwaitsClient => "server waits for the client in mid-protocol",
        Phase::Held => "idle, connection held",
    };
    let mut why = format!("{what} {idle:.1} s of {limit:.1} s");
    if let Some(grounds) = verdict.grounds {
        usual(&mut why, &grounds, idle >= limit);
    }
    (why, next_of(case, verdict, policy, left_alone, idle))
}

fn usual(why: &mut String, grounds: &Grounds, turnover: bool) {
    let Grounds { pauses_seen, worst_pause_seconds, later_over, later_idle, .. } = grounds;
    let _ = write!(why, "; usual: at most {worst_pause_seconds:.1} s in {pauses_seen} pauses");
    if turnover {
        let _ = write!(why, "; {later_over} of {} later ones are over", later_over + later_idle);
    }
}

fn next_of(
    case: &Case,
    verdict: &Verdict,
    policy: &Policy,
    left_alone: Option<Suppression>,
    idle: f64,
) -> String {
    let ceiling = case.ceiling(policy).as_secs_f64();
    let left = |until: f64| (until - idle).max(0.0);
    let suspect_at = match verdict.grounds {
        Some(_) => verdict.limit.as_secs_f64(),
        None => ceiling * Policy::SUSPECT_SHARE,
    };
    let sooner = if verdict.grounds.is_some() { ", sooner if connections run short" } else { "" };
    match (verdict.stage, policy.action) {
        (Stage::Fine, _) if idle < suspect_at => format!("suspect in {:.1} s", left(suspect_at)),
        (Stage::Fine, _) => "suspect once its later siblings have gone on".to_owned(),
        (Stage::Suspect, Action::Reclaim) => format!("reclaim in {:.1} s{sooner}", left(ceiling)),
        (Stage::Suspect, Action::Observe) => {
            format!("would be reclaimed in {:.1} s{sooner}, but the action is observe", left(ceiling))
        }
        (Stage::Due, Action::Reclaim) => due(left_alone).to_owned(),
        (Stage::Due, Action::Observe) => "nothing: it is due, but the action is observe".to_owned(),
    }
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
