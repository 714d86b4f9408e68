use proptest::prelude::*;

use super::*;
use crate::policy::Action;

fn cold(phase: Phase, last_active: Moment) -> Case {
    Case {
        seen: Observed::fake(phase, last_active),
        pinned: None,
        allowance: Allowance::Usual,
        habit: Habit::default(),
        own_worst: Duration::ZERO,
        turnover: Turnover::default(),
        pressed: false,
    }
}

/// Idle in transaction since the start, in a group that pauses for `worst` seconds at most.
fn warm(worst: f64) -> Case {
    let habit = Habit {
        pauses: 10_000,
        over: Duration::from_secs(600),
        worst: Duration::from_secs_f64(worst),
        of: None,
        is_own: true,
    };
    Case { habit, ..cold(Phase::InTransaction, Moment::START) }
}

const GONE_ON: Turnover = Turnover { over: 400, idle: 2 };

fn stage_of(case: &Case, idle: u64) -> Stage {
    judge(case, &Policy::default(), Moment::from_secs(idle)).stage
}

fn stage(phase: Phase, idle: u64) -> (Reason, Stage) {
    let verdict =
        judge(&cold(phase, Moment::from_secs(100)), &Policy::default(), Moment::from_secs(100 + idle));
    (verdict.reason, verdict.stage)
}

#[test]
fn where_nothing_is_known_idleness_is_suspect_at_half_the_ceiling_and_due_at_the_ceiling() {
    assert_eq!(stage(Phase::InTransaction, 14), (Reason::IdleInTransaction, Stage::Fine));
    assert_eq!(stage(Phase::InTransaction, 15), (Reason::IdleInTransaction, Stage::Suspect));
    assert_eq!(stage(Phase::InTransaction, 30), (Reason::IdleInTransaction, Stage::Due));
    assert_eq!(stage(Phase::Held, 299), (Reason::IdleSession, Stage::Fine));
    assert_eq!(stage(Phase::Held, 600), (Reason::IdleSession, Stage::Due));
    assert_eq!(stage(Phase::AwaitsClient, 30), (Reason::ProtocolWedge, Stage::Due));
}

#[test]
fn where_pauses_are_short_a_leak_is_suspect_soon_and_due_when_the_pool_is_short() {
    let case = Case { turnover: GONE_ON, ..warm(0.4) };
    assert_eq!(stage_of(&case, 4), Stage::Fine);
    assert_eq!(stage_of(&case, 5), Stage::Suspect, "the floor");
    assert_eq!(stage_of(&case, 29), Stage::Suspect, "nobody needs it");
    assert_eq!(stage_of(&case, 30), Stage::Due);
    assert_eq!(stage_of(&Case { pressed: true, ..case }, 4), Stage::Fine);
    assert_eq!(stage_of(&Case { pressed: true, ..case }, 5), Stage::Due);
}

#[test]
fn what_is_known_of_others_or_for_a_short_time_takes_nothing_before_the_ceiling() {
    let known = Case { turnover: GONE_ON, pressed: true, ..warm(0.4) };
    let others = Habit { is_own: false, ..known.habit };
    let new = Habit { over: Duration::from_secs(599), ..known.habit };
    let few = Habit { pauses: 999, ..known.habit };
    for habit in [others, new, few] {
        assert_eq!(stage_of(&Case { habit, ..known }, 29), Stage::Suspect);
        assert_eq!(stage_of(&Case { habit, ..known }, 30), Stage::Due);
    }
}

#[test]
fn where_long_pauses_are_usual_they_are_not_suspect() {
    let case = Case { turnover: GONE_ON, pressed: true, ..warm(8.0) };
    assert_eq!(stage_of(&case, 23), Stage::Fine);
    assert_eq!(stage_of(&case, 24), Stage::Due);
    let slow = Case { turnover: GONE_ON, pressed: true, ..warm(50.0) };
    assert_eq!(stage_of(&slow, 29), Stage::Fine);
    assert_eq!(stage_of(&slow, 30), Stage::Due, "never above the ceiling");
}

#[test]
fn one_that_has_paused_for_long_before_may_do_so_again() {
    let case = Case { turnover: GONE_ON, pressed: true, own_worst: Duration::from_secs(6), ..warm(0.4) };
    assert_eq!(stage_of(&case, 17), Stage::Fine);
    assert_eq!(stage_of(&case, 18), Stage::Due);
}

#[test]
fn when_everybody_stands_still_nobody_is_the_leak() {
    let stalled = Case { turnover: Turnover { over: 0, idle: 30 }, pressed: true, ..warm(0.4) };
    assert_eq!(stage_of(&stalled, 14), Stage::Fine);
    assert_eq!(stage_of(&stalled, 15), Stage::Suspect, "as if nothing were known");
    assert_eq!(stage_of(&stalled, 29), Stage::Suspect, "pressure alone takes nothing");
    assert_eq!(stage_of(&stalled, 30), Stage::Due);
}

#[test]
fn a_floor_that_is_no_lower_than_the_ceiling_means_fixed_limits() {
    let policy = Policy { floor: Duration::from_secs(30), ..Policy::default() };
    let case = Case { turnover: GONE_ON, pressed: true, ..warm(0.4) };
    let verdict = judge(&case, &policy, Moment::from_secs(29));
    assert_eq!((verdict.stage, verdict.grounds), (Stage::Suspect, None));
}

#[test]
fn turnover_is_a_rank() {
    let p = |over, idle| Turnover { over, idle }.p_value();
    assert_eq!(p(0, 0), 1.0);
    assert_eq!(p(19, 0), 0.05);
    assert_eq!(p(0, 9), 1.0);
    assert_eq!(p(90, 9), 0.1);
}

#[test]
fn a_statement_in_flight_is_reported_and_never_due() {
    assert_eq!(stage(Phase::InFlight, 29), (Reason::SlowStatement, Stage::Fine));
    assert_eq!(stage(Phase::InFlight, 30), (Reason::SlowStatement, Stage::Suspect));
    assert_eq!(stage(Phase::InFlight, 1_000_000), (Reason::SlowStatement, Stage::Suspect));
}

#[test]
fn a_purpose_excuses_being_idle_but_not_an_open_transaction() {
    let at = |phase| {
        let case = Case { pinned: Some(Pin::Listen), ..cold(phase, Moment::START) };
        stage_of(&case, 100_000)
    };
    assert_eq!(at(Phase::Held), Stage::Fine);
    assert_eq!(at(Phase::InTransaction), Stage::Due);
}

#[test]
fn an_allowance_lengthens_the_limits_or_lifts_them() {
    let at = |phase, allowance, idle| stage_of(&Case { allowance, ..cold(phase, Moment::START) }, idle);
    let ten_minutes = Allowance::AtLeast(Duration::from_secs(600));
    assert_eq!(at(Phase::InTransaction, ten_minutes, 599), Stage::Suspect);
    assert_eq!(at(Phase::InTransaction, ten_minutes, 600), Stage::Due);
    assert_eq!(at(Phase::InTransaction, Allowance::AtLeast(Duration::ZERO), 30), Stage::Due);
    assert_eq!(at(Phase::InTransaction, Allowance::Always, 1_000_000), Stage::Fine);
    assert_eq!(at(Phase::Held, Allowance::Always, 1_000_000), Stage::Fine);
    assert_eq!(at(Phase::AwaitsClient, Allowance::Always, 1_000_000), Stage::Fine);
    assert_eq!(at(Phase::AwaitsClient, ten_minutes, 599), Stage::Suspect);
    assert_eq!(at(Phase::AwaitsClient, ten_minutes, 600), Stage::Due);
    let known = Case { allowance: ten_minutes, turnover: GONE_ON, pressed: true, ..warm(0.4) };
    assert_eq!(stage_of(&known, 599), Stage::Fine);
}

#[test]
fn the_next_look_is_when_the_stage_changes() {
    let next = |case: &Case, now| judge(case, &Policy::default(), Moment::from_secs(now)).next;
    let idle = cold(Phase::InTransaction, Moment::START);
    assert_eq!(next(&idle, 1), Some(Moment::from_secs(15)));
    assert_eq!(next(&idle, 16), Some(Moment::from_secs(30)));
    assert_eq!(next(&idle, 31), None);
    let known = warm(0.4);
    assert_eq!(next(&known, 1), Some(Moment::from_secs(5)), "then the siblings are asked about");
    assert_eq!(next(&known, 6), Some(Moment::from_secs(15)));
    assert_eq!(next(&Case { turnover: GONE_ON, ..known }, 6), Some(Moment::from_secs(30)));
}

#[test]
fn a_person_is_told_what_is_usual_and_what_comes_next() {
    let policy = Policy::default();
    let told = |case: &Case, idle, policy: &Policy| {
        let now = Moment::from_secs(idle);
        explain(case, &judge(case, policy, now), policy, None, now)
    };
    let (why, next) = told(&warm(0.4), 2, &policy);
    assert_eq!(why, "idle in transaction 2.0 s of 5.0 s; usual: at most 0.4 s in 10000 pauses");
    assert_eq!(next, "suspect in 3.0 s");
    let case = Case { turnover: Turnover { over: 412, idle: 0 }, ..warm(0.4) };
    let (why, next) = told(&case, 22, &policy);
    assert_eq!(
        why,
        "idle in transaction 22.0 s of 5.0 s; usual: at most 0.4 s in 10000 pauses; 412 of 412 later ones are over"
    );
    assert_eq!(next, "reclaim in 8.0 s, sooner if connections run short");
    let observing = Policy { action: Action::Observe, ..policy };
    assert_eq!(told(&case, 40, &observing).1, "nothing: it is due, but the action is observe");
}

fn any_case() -> impl Strategy<Value = Case> {
    let phases = vec![Phase::Held, Phase::InFlight, Phase::InTransaction, Phase::AwaitsClient];
    let allowances = vec![Allowance::Usual, Allowance::AtLeast(Duration::from_secs(45)), Allowance::Always];
    (
        (prop::sample::select(phases), prop::sample::select(allowances)),
        (0_u64..100_000, 0_u64..100_000, 0_u64..700),
        (0_u64..1000, 0_u64..1000, any::<bool>(), prop::option::of(Just(Pin::Listen))),
    )
        .prop_map(|((phase, allowance), (pauses, worst, own), (over, idle, pressed, pinned))| Case {
            seen: Observed::fake(phase, Moment::START),
            pinned,
            allowance,
            habit: Habit {
                pauses,
                over: Duration::from_secs(pauses / 10),
                worst: Duration::from_millis(worst),
                of: None,
                is_own: pressed,
            },
            own_worst: Duration::from_secs(own),
            turnover: Turnover { over, idle },
            pressed,
        })
}

proptest! {
    /// Whatever is known: work in flight is never due, nothing is due before the floor, and what the fixed
    /// limits would take is taken.
    #[test]
    fn no_history_takes_work_in_flight_or_what_was_busy_a_moment_ago(case in any_case(), idle in 0_u64..2000) {
        let policy = Policy::default();
        let verdict = judge(&case, &policy, Moment::from_secs(idle));
        if case.seen.phase == Phase::InFlight {
            prop_assert_ne!(verdict.stage, Stage::Due);
        }
        if Duration::from_secs(idle) < policy.floor {
            prop_assert_eq!(verdict.stage, Stage::Fine);
        }
        let fixed = Case { habit: Habit::default(), ..case };
        if judge(&fixed, &policy, Moment::from_secs(idle)).stage == Stage::Due {
            prop_assert_eq!(verdict.stage, Stage::Due);
        }
        prop_assert!(verdict.next.is_none_or(|next| next > Moment::from_secs(idle)));
    }

    /// Time only makes it worse: nobody is cleared by being idle for longer.
    #[test]
    fn idleness_only_adds_up(case in any_case(), idle in 0_u64..2000, more in 0_u64..2000) {
        let at = |idle| judge(&case, &Policy::default(), Moment::from_secs(idle)).stage;
        prop_assert!(at(idle) <= at(idle + more));
    }
}
