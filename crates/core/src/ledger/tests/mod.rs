//! Stories of single checkouts. Random histories are in `histories`.

pub(super) mod baselines;
pub(super) mod random_histories;

use super::*;
use crate::activity::Phase;
use crate::event::LeftAlone;
use crate::policy::Policy;
use crate::snapshot::{ConnCounts, PoolSnapshot};

fn pool_key() -> PoolKey {
    PoolKey::new("shop", "app")
}

fn holder(session: u32) -> Arc<Holder> {
    Arc::new(Holder {
        session: crate::ids::SessionId(session),
        app: format!("app-{session}"),
        user: "app".to_owned(),
        database: "shop".to_owned(),
        client: "127.0.0.1:1".to_owned(),
    })
}

const fn at(seconds: u64) -> Moment {
    Moment::from_secs(seconds)
}

/// A pool of ten with the default limits: suspect after 15 s idle in transaction, due after 30 s.
struct Scene {
    ledger: Ledger<Arc<Activity>>,
    policy: Policy,
}

impl Scene {
    const CHECKOUT: CheckoutId = CheckoutId(1);

    /// Connections 1 to `conns`, opened at 0 s, to be renewed at 1800 s.
    fn with(conns: u64) -> Scene {
        let mut ledger = Ledger::new(pool_key());
        for conn in 1..=conns {
            ledger.dialling(at(0));
            ledger.opened(ConnId(conn), conn as i32 + 100, at(1800), at(0));
        }
        Scene { ledger, policy: Policy { size: 10, ..Policy::default() } }
    }

    /// Checkout `n` takes connection `n` at `seconds`.
    fn lend(&mut self, n: u64, seconds: u64) -> Arc<Activity> {
        let activity = Arc::new(Activity::new());
        activity.begin(at(seconds));
        let handle = Arc::clone(&activity);
        self.ledger.checked_out(
            CheckoutId(n),
            ConnId(n),
            holder(n as u32),
            handle,
            Duration::ZERO,
            at(seconds),
        );
        activity
    }

    /// One connection, lent at 0 s and idle in a transaction since, found suspect at 20 s.
    fn suspect() -> (Scene, Arc<Activity>) {
        let mut scene = Scene::with(1);
        let activity = scene.lend(1, 0);
        activity.publish(Phase::InTransaction, at(0)).unwrap();
        assert_eq!(scene.sweep(20), ["detected idle_in_transaction"]);
        (scene, activity)
    }

    /// What a look at this second tells.
    fn sweep(&mut self, seconds: u64) -> Vec<String> {
        told(self.ledger.sweep(&self.policy, at(seconds)).events)
    }

    fn due(&mut self, seconds: u64) -> Vec<Due<Arc<Activity>>> {
        self.ledger.sweep(&self.policy, at(seconds)).due
    }

    /// Checkout 1 ends at this second.
    fn end(&mut self, to: ConnPlace, resolution: Resolution, seconds: u64) -> Vec<String> {
        told(self.ledger.checked_in(Self::CHECKOUT, to, resolution, at(seconds)).1)
    }

    fn show(&self, seconds: u64) -> PoolSnapshot {
        self.ledger.snapshot(&self.policy, at(seconds))
    }

    /// The highest use within the last minute, in connections.
    fn peak(&self, seconds: u64) -> f64 {
        self.show(seconds).utilization_peak_ratio * 10.0
    }
}

fn told(events: Vec<Event>) -> Vec<String> {
    let tell = |event: &Event| match event {
        Event::LeakDetected { reason, .. } => format!("detected {reason}"),
        Event::LeakResolved { reason, resolution, .. } => format!("{reason} {resolution}"),
        Event::LimitWidened { limit, from_seconds, to_seconds, because, .. } => {
            format!("{limit} {because}: {from_seconds} s is now {to_seconds} s")
        }
        other => panic!("a ledger does not tell {other:?}"),
    };
    events.iter().map(tell).collect()
}

#[test]
fn a_suspect_is_told_once() {
    let (mut scene, _activity) = Scene::suspect();
    assert!(scene.sweep(21).is_empty());
    assert!(scene.sweep(29).is_empty());
    assert!(scene.sweep(31).is_empty(), "to be due is not news");
}

#[test]
fn a_suspect_that_goes_on_is_returned_and_may_become_suspect_again() {
    let (mut scene, activity) = Scene::suspect();
    activity.publish(Phase::InFlight, at(25)).unwrap();
    activity.publish(Phase::InTransaction, at(26)).unwrap();
    assert_eq!(scene.sweep(27), ["idle_in_transaction returned"]);
    assert_eq!(scene.sweep(41), ["detected idle_in_transaction"]);
}

#[test]
fn a_suspect_that_moved_and_idles_on_is_returned_and_found_again_at_one_look() {
    let (mut scene, activity) = Scene::suspect();
    activity.publish(Phase::InFlight, at(25)).unwrap();
    activity.publish(Phase::InTransaction, at(26)).unwrap();
    assert_eq!(scene.sweep(42), ["idle_in_transaction returned", "detected idle_in_transaction"]);
}

#[test]
fn a_suspect_that_comes_home_between_two_looks_is_returned() {
    let (mut scene, activity) = Scene::suspect();
    activity.publish(Phase::InFlight, at(25)).unwrap(); // COMMIT
    activity.finish().unwrap();
    // However its end is called: it moved, so the suspicion was wrong.
    assert_eq!(scene.end(ConnPlace::Idle, Resolution::Disconnected, 25), ["idle_in_transaction returned"]);
}

#[test]
fn what_became_of_a_verdict_that_was_not_carried_out_is_told() {
    let (mut scene, activity) = Scene::suspect();
    let due = scene.due(40).pop().expect("it is due");
    scene.ledger.left_alone(Scene::CHECKOUT, due.seen, Suppression::Budget, at(40));
    scene.ledger.left_alone(Scene::CHECKOUT, due.seen, Suppression::Observe, at(45));
    scene.ledger.left_alone(Scene::CHECKOUT, due.seen, Suppression::Observe, at(46));
    let idle_since = activity.observe().last_active;
    activity.publish(Phase::InFlight, at(50)).unwrap();
    let mut events = scene.ledger.sweep(&scene.policy, at(52)).events;
    let Some(Event::LeakResolved { resolution, left_alone, evidence, .. }) = events.pop() else {
        panic!("{events:?}")
    };
    assert_eq!(resolution, Resolution::Returned);
    assert_eq!(left_alone, Some(LeftAlone { because: Suppression::Observe, seconds: 7.0 }));
    assert_eq!(evidence.idle_seconds, at(50).since(idle_since).as_secs_f64(), "the pause, not the looks");
}

#[test]
fn a_verdict_that_is_not_carried_out_is_told_once_and_once_more_when_it_would_have_been() {
    let (mut scene, activity) = Scene::suspect();
    let mut tell = |because, seconds| {
        let due = scene.due(seconds).pop().expect("it is due");
        scene.ledger.suppressed(due, because, true, at(seconds)).is_some()
    };
    assert!(tell(Suppression::Budget, 40));
    assert!(!tell(Suppression::Budget, 41));
    assert!(!tell(Suppression::Draining, 42));
    assert!(tell(Suppression::Observe, 43));
    let due = scene.due(44).pop().expect("it is due");
    activity.publish(Phase::InTransaction, at(45)).unwrap();
    scene.sweep(46);
    assert!(scene.ledger.suppressed(due, Suppression::Observe, true, at(46)).is_none(), "not that suspect");
}

#[test]
fn a_suspect_whose_client_goes_without_a_word_is_disconnected() {
    let (mut scene, activity) = Scene::suspect();
    activity.finish().unwrap();
    let ended = scene.end(ConnPlace::Recycling, Resolution::Disconnected, 25);
    assert_eq!(ended, ["idle_in_transaction disconnected"]);
    assert_eq!(scene.show(25).connections, ConnCounts { recycling: 1, ..ConnCounts::default() });
    scene.ledger.recycled(ConnId(1), at(26));
    assert_eq!(scene.show(26).connections, ConnCounts { idle: 1, ..ConnCounts::default() });
}

#[test]
fn a_suspect_that_is_taken_back_is_reclaimed_whatever_its_client_does_then() {
    let (mut scene, _activity) = Scene::suspect();
    let due = scene.due(30).pop().expect("it is due at its limit");
    assert_eq!((due.reason, due.evidence.idle_seconds), (Reason::IdleInTransaction, 30.0));
    assert!(scene.ledger.reclaim(&due));
    let told = scene.ledger.reclaimed_for(Scene::CHECKOUT, at(30)).map(|(reason, _)| reason);
    assert_eq!(told, Some(Reason::IdleInTransaction));
    assert!(scene.due(31).is_empty(), "it is not taken twice");
    let ended = scene.end(ConnPlace::Recycling, Resolution::Disconnected, 31);
    assert_eq!(ended, ["idle_in_transaction reclaimed"]);
}

#[test]
fn the_longest_idle_is_due_first() {
    let mut scene = Scene::with(3);
    for (n, since) in [(1, 5), (2, 1), (3, 3)] {
        scene.lend(n, since).publish(Phase::InTransaction, at(since)).unwrap();
    }
    let due: Vec<_> = scene.due(100).iter().map(|due| due.checkout.0).collect();
    assert_eq!(due, [2, 3, 1]);
}

#[test]
fn a_slow_statement_is_told_and_never_due() {
    let mut scene = Scene::with(1);
    let activity = scene.lend(1, 0);
    assert_eq!(scene.sweep(31), ["detected slow_statement"]);
    assert!(scene.due(10_000).is_empty());
    assert_eq!(scene.show(10_000).stale.iter().map(|(_, count)| count).sum::<usize>(), 1);
    activity.publish(Phase::Held, at(10_001)).unwrap();
    assert_eq!(scene.sweep(10_002), ["slow_statement returned"]);
}

#[test]
fn a_held_connection_past_its_life_is_told_once_and_is_never_due_for_it() {
    let mut scene = Scene::with(1);
    scene.ledger.pinned(Scene::CHECKOUT, Pin::Listen, at(999)); // Too early: there is no such checkout yet.
    let activity = scene.lend(1, 1000);
    scene.ledger.pinned(Scene::CHECKOUT, Pin::Listen, at(1000));
    activity.publish(Phase::Held, at(1000)).unwrap();
    assert!(scene.sweep(1829).is_empty(), "not within 30 s of its end of life");
    assert_eq!(scene.show(1829).overdue, 1, "but it is shown");
    assert_eq!(scene.sweep(1830), ["detected overdue"]);
    assert!(scene.sweep(1900).is_empty());
    assert!(scene.due(1_000_000).is_empty());
    activity.finish().unwrap();
    assert_eq!(scene.end(ConnPlace::Idle, Resolution::Returned, 2000), ["overdue returned"]);
}

#[test]
fn the_highest_use_of_the_last_minute_is_shown() {
    let mut scene = Scene::with(3);
    assert_eq!(scene.peak(1), 1.0, "connections were opened one after the other");
    for n in 1..=3 {
        scene.lend(n, 100).finish().unwrap();
    }
    for n in 1..=3 {
        scene.ledger.checked_in(CheckoutId(n), ConnPlace::Idle, Resolution::Returned, at(100));
    }
    assert_eq!(scene.show(101).utilization_ratio, 0.0);
    assert_eq!(scene.peak(100), 3.0, "a burst within one second");
    assert_eq!(scene.peak(160), 3.0);
    assert_eq!(scene.peak(161), 0.0);
}

#[test]
fn what_lasted_until_a_moment_ago_is_in_the_peak() {
    let mut scene = Scene::with(2);
    for n in 1..=2 {
        scene.lend(n, 10).finish().unwrap();
    }
    scene.ledger.checked_in(CheckoutId(2), ConnPlace::Idle, Resolution::Returned, at(500));
    assert_eq!(scene.show(501).utilization_ratio, 0.1);
    assert_eq!(scene.peak(501), 2.0, "both were out until 500 s");
    assert_eq!(scene.peak(561), 1.0);
}

#[test]
fn a_busy_minute_forgets_no_second() {
    let mut scene = Scene::with(2);
    scene.lend(1, 100).finish().unwrap();
    scene.lend(2, 100).finish().unwrap();
    scene.ledger.checked_in(CheckoutId(2), ConnPlace::Idle, Resolution::Returned, at(100));
    for second in 101..=160 {
        scene.ledger.dialling(at(second));
        scene.ledger.not_opened(at(second));
    }
    assert_eq!(scene.peak(160), 2.0);
}

#[test]
fn idle_connections_are_spent_by_age_and_by_disuse_and_lent_ones_are_not() {
    let mut scene = Scene::with(2);
    scene.policy.idle_timeout = Duration::from_secs(600);
    scene.lend(2, 0).finish().unwrap();
    let spent = |scene: &Scene, seconds| {
        let mut spent: Vec<_> = scene.ledger.spent(&scene.policy, at(seconds)).into_iter().collect();
        spent.sort();
        spent
    };
    assert_eq!(spent(&scene, 599), []);
    assert_eq!(spent(&scene, 600), [(ConnId(1), CloseReason::IdleTimeout)]);
    assert_eq!(spent(&scene, 1800), [(ConnId(1), CloseReason::MaxLifetime)]);
    scene.ledger.checked_in(CheckoutId(2), ConnPlace::Idle, Resolution::Returned, at(1700));
    assert_eq!(
        spent(&scene, 1799),
        [(ConnId(1), CloseReason::IdleTimeout)],
        "the other was used a moment ago"
    );
}

#[test]
fn a_connection_that_dies_under_its_holder_leaves_every_count() {
    let mut scene = Scene::with(1);
    scene.lend(1, 0).publish(Phase::InTransaction, at(0)).unwrap();
    let told = scene.ledger.closed(ConnId(1), CloseReason::ServerLost, at(5)).unwrap();
    assert!(matches!(told, Event::ConnectionClosed { uses: 1, age_seconds: 5.0, .. }), "{told:?}");
    let shown = scene.show(5);
    assert_eq!((shown.opened - shown.closed, shown.connections.total()), (0, 0));
    assert_eq!(shown.holders.len(), 1, "its holder has not heard of it");
    assert!(scene.ledger.closed(ConnId(1), CloseReason::ServerLost, at(6)).is_none());
    assert!(scene.end(ConnPlace::Recycling, Resolution::ServerLost, 6).is_empty());
    assert!(!scene.ledger.is_busy());
}

#[test]
fn the_one_who_gets_nothing_is_told_who_has_it() {
    let mut scene = Scene::with(2);
    scene.lend(1, 0).publish(Phase::InTransaction, at(0)).unwrap();
    scene.lend(2, 10).publish(Phase::InFlight, at(19)).unwrap();
    let wait = scene.ledger.wait_begins(at(15));
    assert_eq!(scene.sweep(20), ["detected idle_in_transaction"]);
    assert_eq!(
        scene.ledger.diagnosis(&scene.policy, at(20)),
        "2 of 10 server connections of app@shop in use, 1 of them stale, oldest checkout 20.0 s, \
         most idle: app-1 (1 for 20.0 s in all), 1 clients waiting"
    );
    assert_eq!(scene.show(20).oldest_wait_seconds, 5.0);
    scene.ledger.wait_ends(wait);
    assert_eq!(scene.ledger.waiting(), 0);
}
