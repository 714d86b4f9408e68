use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::activity::Phase;
use crate::event::Evidence;
use crate::ids::{CheckoutId, Holder, SessionId};
use crate::policy::Budget;

/// A checkout that is idle in a transaction, whose own task has confirmed that.
const DUE: Facts = Facts {
    reason: Reason::IdleInTransaction,
    left_alone: None,
    silent: true,
    moved: false,
    draining: false,
    confirmed: None,
};
const WEDGE: Facts = Facts { reason: Reason::ProtocolWedge, ..DUE };

const fn at(seconds: u64) -> Moment {
    Moment::from_secs(seconds)
}

/// A pool of eight that allows two reclaims in a minute.
fn policy(action: Action) -> Policy {
    let budget = Budget { share: 0.25, per: Duration::from_secs(60) };
    Policy { action, budget, size: 8, ..Policy::default() }
}

/// Decides, and does what is decided: every swap goes through.
fn enforce(enforcement: &mut Enforcement, facts: &Facts, policy: &Policy, now: Moment) -> Act {
    let act = enforcement.decide(facts, policy, now);
    if act == Act::Reclaim {
        enforcement.reclaimed(now);
    }
    act
}

#[test]
fn the_budget_is_spent_and_comes_back_one_by_one_as_the_window_passes() {
    for (action, done) in
        [(Action::Reclaim, Act::Reclaim), (Action::Observe, Act::LeaveAlone(Suppression::Observe))]
    {
        let (mut enforcement, policy) = (Enforcement::default(), policy(action));
        let mut act = |seconds| enforce(&mut enforcement, &DUE, &policy, at(seconds));
        let spent = Act::LeaveAlone(Suppression::Budget);
        let acts = [0, 10, 20, 59, 60, 61, 69, 70].map(&mut act);
        assert_eq!(acts, [done, done, spent, spent, done, spent, spent, done], "{action:?}");
    }
}

#[test]
fn a_budget_of_nothing_allows_nothing() {
    let mut policy = policy(Action::Reclaim);
    policy.budget.share = 0.0;
    let act = Enforcement::default().decide(&DUE, &policy, at(0));
    assert_eq!(act, Act::LeaveAlone(Suppression::Budget));
}

#[test]
fn a_swap_that_fails_costs_no_budget() {
    let (mut enforcement, policy) = (Enforcement::default(), policy(Action::Reclaim));
    for seconds in 0..5 {
        assert_eq!(enforcement.decide(&DUE, &policy, at(seconds)), Act::Reclaim);
    }
}

#[test]
fn a_holder_that_moved_is_left_alone_and_costs_no_budget() {
    for action in [Action::Reclaim, Action::Observe] {
        let (mut enforcement, policy) = (Enforcement::default(), policy(action));
        let moved = Facts { moved: true, ..DUE };
        for seconds in 0..5 {
            let act = enforce(&mut enforcement, &moved, &policy, at(seconds));
            assert_eq!(act, Act::LeaveAlone(Suppression::Moved));
        }
        assert_ne!(enforce(&mut enforcement, &DUE, &policy, at(5)), Act::LeaveAlone(Suppression::Budget));
    }
}

#[test]
fn the_budget_comes_before_the_move_and_before_observing() {
    let (mut enforcement, policy) = (Enforcement::default(), policy(Action::Observe));
    enforcement.reclaimed(at(0));
    enforcement.reclaimed(at(0));
    for facts in [DUE, Facts { moved: true, ..DUE }] {
        let act = enforcement.decide(&facts, &policy, at(1));
        assert_eq!(act, Act::LeaveAlone(Suppression::Budget));
    }
}

#[test]
fn a_holder_whose_task_has_not_looked_is_asked_before_all_else() {
    for facts in [DUE, WEDGE, Facts { draining: true, ..DUE }] {
        let facts = Facts { silent: false, ..facts };
        let act = Enforcement::default().decide(&facts, &policy(Action::Reclaim), at(0));
        assert_eq!(act, Act::AskHolder);
    }
}

#[test]
fn draining_is_told_once_and_what_was_told_before_counts() {
    for action in [Action::Reclaim, Action::Observe] {
        for facts in [DUE, WEDGE] {
            let facts = Facts { draining: true, ..facts };
            let mut enforcement = Enforcement::default();
            let act = enforcement.decide(&facts, &policy(action), at(0));
            assert_eq!(act, Act::LeaveAlone(Suppression::Draining));
            for before in Suppression::ALL {
                let facts = Facts { left_alone: Some(*before), ..facts };
                assert_eq!(enforcement.decide(&facts, &policy(action), at(1)), Act::Nothing);
            }
        }
    }
}

#[test]
fn what_is_observed_is_told_once_and_done_when_that_is_allowed() {
    let (mut enforcement, told) =
        (Enforcement::default(), Facts { left_alone: Some(Suppression::Observe), ..DUE });
    let observe = policy(Action::Observe);
    assert_eq!(enforcement.decide(&DUE, &observe, at(0)), Act::LeaveAlone(Suppression::Observe));
    assert_eq!(enforcement.decide(&told, &observe, at(1)), Act::Nothing);
    assert_eq!(enforcement.decide(&told, &policy(Action::Reclaim), at(2)), Act::Reclaim);
}

#[test]
fn a_wedge_is_reclaimed_only_when_the_server_confirms_it() {
    let (mut enforcement, policy) = (Enforcement::default(), policy(Action::Reclaim));
    assert_eq!(enforcement.decide(&WEDGE, &policy, at(0)), Act::AskServer);
    for (confirmed, expected) in [(false, Act::LeaveAlone(Suppression::Unconfirmed)), (true, Act::Reclaim)] {
        let facts = Facts { confirmed: Some(confirmed), ..WEDGE };
        assert_eq!(enforcement.decide(&facts, &policy, at(1)), expected);
    }
}

#[test]
fn what_the_server_confirms_is_subject_to_budget_and_moves() {
    let (mut enforcement, policy) = (Enforcement::default(), policy(Action::Reclaim));
    let confirmed = Facts { confirmed: Some(true), ..WEDGE };
    let moved = Facts { moved: true, ..confirmed };
    assert_eq!(enforcement.decide(&moved, &policy, at(0)), Act::LeaveAlone(Suppression::Moved));
    enforcement.reclaimed(at(0));
    enforcement.reclaimed(at(0));
    assert_eq!(enforcement.decide(&confirmed, &policy, at(1)), Act::LeaveAlone(Suppression::Budget));
    assert_eq!(enforcement.decide(&WEDGE, &policy, at(1)), Act::AskServer, "the budget may be back by then");
}

#[test]
fn the_facts_are_read_from_the_holder() {
    let activity = Arc::new(Activity::new());
    activity.begin(at(0));
    activity.publish(Phase::InTransaction, at(0)).unwrap();
    let due = due(&activity);
    assert_eq!(Facts::of(&due, false, None), Facts { silent: false, ..DUE });
    assert!(activity.is_asked());
    activity.answer();
    assert_eq!(Facts::of(&due, false, None), DUE);
    activity.publish(Phase::InTransaction, at(40)).unwrap();
    let expected = Facts { moved: true, draining: true, confirmed: Some(true), ..DUE };
    assert_eq!(Facts::of(&due, true, Some(true)), expected);
}

fn due(activity: &Arc<Activity>) -> Due<Arc<Activity>> {
    let text = String::new;
    let holder =
        Holder { session: SessionId(1), app: text(), user: text(), database: text(), client: text() };
    let evidence = Evidence {
        checkout: CheckoutId(1),
        holder: Arc::new(holder),
        backend_pid: 1,
        age_seconds: 30.0,
        idle_seconds: 30.0,
        limit_seconds: 30.0,
        route: None,
        statement: None,
        trace: None,
        waits_for: None,
        blocked_by: Vec::new(),
        grounds: None,
    };
    Due {
        checkout: CheckoutId(1),
        handle: Arc::clone(activity),
        seen: activity.observe(),
        reason: Reason::IdleInTransaction,
        evidence,
        left_alone: None,
    }
}

/// A look at one of a few checkouts that are due, some time after the look before.
#[derive(Clone, Debug)]
struct Look {
    checkout: usize,
    after_millis: u64,
    silent: bool,
    moved: bool,
    draining: bool,
    confirmed: bool,
}

const CHECKOUTS: usize = 12;

fn looks() -> impl Strategy<Value = Vec<Look>> {
    let often = || prop::bool::weighted(0.9);
    let seldom = || prop::bool::weighted(0.05);
    let look = (0..CHECKOUTS, 0_u64..5_000, often(), seldom(), seldom(), any::<bool>()).prop_map(
        |(checkout, after_millis, silent, moved, draining, confirmed)| Look {
            checkout,
            after_millis,
            silent,
            moved,
            draining,
            confirmed,
        },
    );
    prop::collection::vec(look, 1..200)
}

fn budget() -> impl Strategy<Value = (Budget, usize)> {
    let per = (1_u64..90).prop_map(Duration::from_secs);
    (0.0..=1.0, per, 1_usize..16).prop_map(|(share, per, size)| (Budget { share, per }, size))
}

/// Every checkout of one pool as the watchdog knows it.
struct Pool {
    policy: Policy,
    enforcement: Enforcement,
    left_alone: [Option<Suppression>; CHECKOUTS],
    taken: [bool; CHECKOUTS],
}

impl Pool {
    fn new(action: Action, (budget, size): (Budget, usize)) -> Self {
        Self {
            policy: Policy { action, budget, size, ..Policy::default() },
            enforcement: Enforcement::default(),
            left_alone: [None; CHECKOUTS],
            taken: [false; CHECKOUTS],
        }
    }

    /// What a look comes to in the end, the question to the server included. Every third checkout is wedged.
    fn look(&mut self, look: &Look, now: Moment) -> Act {
        let of = look.checkout;
        let reason = if of.is_multiple_of(3) { Reason::ProtocolWedge } else { Reason::IdleSession };
        let &Look { silent, moved, draining, confirmed, .. } = look;
        let facts =
            Facts { reason, left_alone: self.left_alone[of], silent, moved, draining, confirmed: None };
        let mut act = self.enforcement.decide(&facts, &self.policy, now);
        if act == Act::AskServer {
            assert_eq!(reason, Reason::ProtocolWedge);
            let facts = Facts { confirmed: Some(confirmed), ..facts };
            act = self.enforcement.decide(&facts, &self.policy, now);
        } else if reason == Reason::ProtocolWedge {
            assert!(!matches!(act, Act::Reclaim | Act::LeaveAlone(Suppression::Observe)), "unasked");
        }
        match act {
            Act::Reclaim => {
                self.enforcement.reclaimed(now);
                self.taken[of] = true;
            }
            Act::LeaveAlone(Suppression::Observe) => {
                self.left_alone[of] = Some(Suppression::Observe);
                self.taken[of] = true;
            }
            // It is not suspect any more.
            Act::LeaveAlone(Suppression::Moved) => self.left_alone[of] = None,
            Act::LeaveAlone(because) => self.left_alone[of] = Some(because),
            Act::Nothing | Act::AskHolder | Act::AskServer => {}
        }
        act
    }
}

proptest! {
    /// Where it only observes it tells what it would have done, at the same moments.
    #[test]
    fn observing_comes_to_the_same_verdicts_as_reclaiming(looks in looks(), budget in budget()) {
        let mut reclaiming = Pool::new(Action::Reclaim, budget);
        let mut observing = Pool::new(Action::Observe, budget);
        let mut now = at(0);
        for look in looks {
            now = now + Duration::from_millis(look.after_millis);
            let taken = reclaiming.taken[look.checkout];
            let observed = observing.look(&look, now);
            if taken {
                prop_assert!(matches!(observed, Act::Nothing | Act::AskHolder), "told again: {observed:?}");
                continue;
            }
            let told = match reclaiming.look(&look, now) {
                Act::Reclaim => Act::LeaveAlone(Suppression::Observe),
                other => other,
            };
            prop_assert_eq!(told, observed);
            prop_assert_eq!(&reclaiming.enforcement.reclaims, &observing.enforcement.reclaims);
        }
    }

    #[test]
    fn no_window_has_more_reclaims_than_the_budget_allows(looks in looks(), budget in budget()) {
        let mut pool = Pool::new(Action::Reclaim, budget);
        let (allowance, per) = (budget.0.allowance(budget.1), budget.0.per);
        let (mut now, mut done) = (at(0), Vec::new());
        for look in looks {
            now = now + Duration::from_millis(look.after_millis);
            if pool.look(&look, now) == Act::Reclaim {
                prop_assert!(look.silent && !look.moved && !look.draining);
                done.push(now);
                let within = done.iter().filter(|at| now.since(**at) < per).count();
                prop_assert!(within <= allowance, "{within} within {per:?}, of {allowance}");
            }
        }
    }
}
