//! Stories of a pool that knows what is usual.

use super::*;

/// A pool of ten whose clients have run, for twenty minutes, a transaction a second with a pause of 400 ms.
struct Known {
    scene: Scene,
    next: u64,
    now: u64,
}

impl Known {
    fn new() -> Known {
        let mut known = Known { scene: Scene::with(10), next: 100, now: 100 };
        known.healthy(1200);
        known
    }

    /// Healthy transactions on connection 1, one a second. What the looks tell meanwhile.
    fn healthy(&mut self, seconds: u64) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..seconds {
            self.healthy_with_pause(Duration::from_millis(400));
            told.extend(self.scene.sweep(self.now));
        }
        told
    }

    fn healthy_with_pause(&mut self, pause: Duration) {
        self.next += 1;
        let id = CheckoutId(self.next);
        let begins = at(self.now);
        let activity = self.open(id, ConnId(1));
        activity.publish(Phase::InFlight, begins + pause).unwrap();
        activity.publish(Phase::Held, begins + pause).unwrap();
        activity.finish().unwrap();
        self.scene.ledger.checked_in(id, ConnPlace::Idle, Resolution::Returned, begins + pause);
        self.now += 1;
    }

    /// A checkout that begins now and is idle in its transaction from then on.
    fn open(&mut self, id: CheckoutId, conn: ConnId) -> Arc<Activity> {
        let activity = Arc::new(Activity::new());
        activity.begin(at(self.now));
        let holder = Arc::new(Holder { app: "web".to_owned(), ..(*holder(1)).clone() });
        self.scene.ledger.checked_out(id, conn, holder, Arc::clone(&activity), Duration::ZERO, at(self.now));
        activity.publish(Phase::InTransaction, at(self.now)).unwrap();
        activity
    }

    /// `count` connections from number 2 on are busy with statements: the pool is short of connections.
    fn crowd(&mut self, count: u64) {
        for n in 2..2 + count {
            self.scene.lend(n, self.now);
        }
    }
}

const LEAK: CheckoutId = CheckoutId(99);

#[test]
fn a_leak_is_suspect_once_its_later_siblings_have_gone_on() {
    let mut known = Known::new();
    known.open(LEAK, ConnId(10));
    assert_eq!(known.healthy(4), [] as [&str; 0]);
    // 5 s idle is beyond the floor; 19 of 19 later siblings tell it from a stall, 4 of 4 do not.
    assert_eq!(known.healthy(20), ["detected idle_in_transaction"]);
    let now = known.now;
    let shown = known.scene.show(now);
    let leak = shown.holders.iter().find(|holder| holder.id == LEAK).unwrap();
    assert_eq!(leak.limit_seconds, 5.0);
    let grounds = leak.grounds.unwrap();
    assert_eq!((grounds.worst_pause_seconds, grounds.later_idle), (0.4, 0));
    assert!(grounds.p_value <= 0.05 && grounds.later_over >= 19, "{grounds:?}");
    assert!(known.scene.due(now).is_empty(), "nobody needs it");
    known.crowd(8);
    let due = known.scene.due(now);
    assert_eq!(due.iter().map(|due| due.checkout).collect::<Vec<_>>(), [LEAK], "now somebody does");
    assert_eq!(due[0].evidence.grounds.unwrap().ceiling_seconds, 30.0);
}

#[test]
fn in_a_stall_of_everybody_nobody_is_taken_before_the_ceiling() {
    let mut known = Known::new();
    for n in 2..=10 {
        known.open(CheckoutId(n), ConnId(n));
    }
    assert_eq!(known.scene.sweep(known.now + 14), [] as [&str; 0]);
    assert!(known.scene.due(known.now + 29).is_empty());
    assert_eq!(known.scene.due(known.now + 30).len(), 9);
}

#[test]
fn a_suspect_that_comes_home_widens_the_limit_of_its_kind() {
    let mut known = Known::new();
    let slow = known.open(LEAK, ConnId(10));
    assert_eq!(known.healthy(22).len(), 1);
    slow.publish(Phase::InFlight, at(known.now)).unwrap();
    slow.publish(Phase::InTransaction, at(known.now)).unwrap();
    let told = known.scene.sweep(known.now);
    assert_eq!(told[0], "idle_in_transaction returned");
    assert_eq!(told[1], "idle_in_transaction returned: 5 s is now 66 s");
    // The next that pauses for as long is left in peace, to the ceiling.
    known.scene.ledger.checked_in(LEAK, ConnPlace::Idle, Resolution::Returned, at(known.now));
    known.open(CheckoutId(98), ConnId(10));
    assert_eq!(known.healthy(29), [] as [&str; 0]);
    assert_eq!(known.healthy(2), ["detected idle_in_transaction"]);
}

#[test]
fn a_holder_that_comes_back_after_it_was_taken_widens_the_limit_too() {
    let mut known = Known::new();
    known.open(LEAK, ConnId(10));
    known.healthy(22);
    known.crowd(8);
    let due = known.scene.due(known.now).pop().unwrap();
    assert!(known.scene.ledger.reclaim(&due));
    known.scene.ledger.checked_in(LEAK, ConnPlace::Recycling, Resolution::Reclaimed, at(known.now));
    let after = Duration::from_secs(3);
    let told = known.scene.ledger.regretted(&due.evidence, due.reason, after, at(known.now + 3));
    assert_eq!(
        crate::ledger::tests::told(told.into_iter().collect()),
        ["idle_in_transaction regretted: 5 s is now 75 s"]
    );
    known.now += 3;
    known.open(CheckoutId(98), ConnId(10));
    assert_eq!(known.healthy(25), [] as [&str; 0]);
}

#[test]
fn a_route_that_is_slow_by_nature_has_a_limit_of_its_own() {
    let mut known = Known::new();
    let export: Arc<str> = "GET /export".into();
    // Ten minutes of exports, each with a pause of 7 s, among the many short ones.
    for n in 0..400 {
        let id = CheckoutId(10_000 + n);
        let activity = known.open(id, ConnId(2));
        known.scene.ledger.routed(id, &export, at(known.now));
        known.healthy(7);
        activity.publish(Phase::InFlight, at(known.now)).unwrap();
        activity.finish().unwrap();
        known.scene.ledger.checked_in(id, ConnPlace::Idle, Resolution::Returned, at(known.now));
    }
    let limit = |known: &Known, id| {
        let shown = known.scene.show(known.now + 4);
        shown.holders.iter().find(|holder| holder.id == id).unwrap().limit_seconds
    };
    known.open(CheckoutId(97), ConnId(3));
    known.scene.ledger.routed(CheckoutId(97), &export, at(known.now));
    assert_eq!(limit(&known, CheckoutId(97)), 21.0);
}

#[test]
fn names_beyond_the_bound_are_counted() {
    let mut scene = Scene::with(1);
    for n in 0..100 {
        let id = CheckoutId(n);
        let activity = Arc::new(Activity::new());
        scene.ledger.checked_out(id, ConnId(1), holder(n as u32), activity, Duration::ZERO, at(n));
        scene.ledger.checked_in(id, ConnPlace::Idle, Resolution::Returned, at(n));
    }
    let folded = scene.ledger.sweep(&scene.policy, at(100)).events;
    assert_eq!(folded.len(), 100 - crate::history::History::APPS);
    assert!(folded.iter().all(|event| matches!(event, Event::LabelFolded { label: "group" })));
}
