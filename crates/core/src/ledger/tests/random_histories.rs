//! Random histories on a clock of our own, held against a model that is too simple to drift.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::activity::Reclaimed;
use crate::event::{Reason, Suppression};
use crate::policy::Budget;
use crate::snapshot::ConnState;

const SESSIONS: usize = 6;

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Dial,
    Open {
        life_seconds: u64,
    },
    FailToOpen,
    Close(Index),
    BeginToWait,
    EndToWait(Index),
    CheckOut {
        session: usize,
    },
    Move(Index, Phase),
    Pin(Index, Pin),
    Look,
    /// The watchdog acts on what it saw at the last look.
    Act(Index),
    Suppress(Index),
    CheckIn(Index, CheckIn),
    Recycle(Index),
    /// On an internal checkout of pgleash's own.
    Send,
}

#[derive(Clone, Copy, Debug)]
enum CheckIn {
    Clean,
    Dirty,
    ServerLost,
}

fn step() -> impl Strategy<Value = Step> {
    let which = any::<Index>;
    let phases = vec![Phase::Held, Phase::InFlight, Phase::InTransaction, Phase::AwaitsClient];
    let pins = vec![Pin::SessionMode, Pin::PreparedStatement, Pin::Listen, Pin::AdvisoryLock];
    let ends = vec![CheckIn::Clean, CheckIn::Dirty, CheckIn::ServerLost];
    prop_oneof![
        6 => (1_u64..20_000).prop_map(Step::Pass),
        3 => Just(Step::Dial),
        3 => (1_u64..200).prop_map(|life_seconds| Step::Open { life_seconds }),
        1 => Just(Step::FailToOpen),
        1 => which().prop_map(Step::Close),
        1 => Just(Step::BeginToWait),
        1 => which().prop_map(Step::EndToWait),
        5 => (0..SESSIONS).prop_map(|session| Step::CheckOut { session }),
        6 => (which(), prop::sample::select(phases)).prop_map(|(which, phase)| Step::Move(which, phase)),
        1 => (which(), prop::sample::select(pins)).prop_map(|(which, pin)| Step::Pin(which, pin)),
        6 => Just(Step::Look),
        3 => which().prop_map(Step::Act),
        1 => which().prop_map(Step::Suppress),
        3 => (which(), prop::sample::select(ends)).prop_map(|(which, end)| Step::CheckIn(which, end)),
        2 => which().prop_map(Step::Recycle),
        1 => Just(Step::Send),
    ]
}

/// A checkout that is out.
#[derive(Clone, Debug)]
struct Out {
    id: CheckoutId,
    conn: ConnId,
    session: usize,
    phase: Phase,
    deliberate: bool,
    server_lives: bool,
    taken: bool,
    /// How often its holder has moved.
    moves: u64,
}

struct World {
    ledger: Ledger<Arc<Activity>>,
    policy: Policy,
    now: Moment,
    activities: Vec<Arc<Activity>>,
    next: u64,
    dialling: usize,
    idle: Vec<ConnId>,
    out: Vec<Out>,
    recycling: Vec<ConnId>,
    waits: Vec<(u64, Moment)>,
    /// What was due at the last look, and how often its holder had moved by then.
    due: Vec<(Due<Arc<Activity>>, u64)>,
    /// Leaks that were detected and are not resolved.
    leaks: BTreeSet<(CheckoutId, Reason)>,
    opened: u64,
    closed: u64,
    checkouts: u64,
    checkins: u64,
    /// Slots in use, from each moment on.
    levels: Vec<(Moment, usize)>,
}

fn pick<T>(list: &[T], which: Index) -> Option<usize> {
    (!list.is_empty()).then(|| which.index(list.len()))
}

impl World {
    fn new() -> World {
        let policy = Policy {
            idle_in_transaction: Duration::from_secs(30),
            idle_session: Duration::from_secs(60),
            budget: Budget { share: 1.0, per: Duration::from_secs(1) },
            size: 8,
            ..Policy::default()
        };
        World {
            ledger: Ledger::new(pool_key()),
            policy,
            now: at(1000),
            activities: (0..SESSIONS).map(|_| Arc::new(Activity::new())).collect(),
            next: 0,
            dialling: 0,
            idle: Vec::new(),
            out: Vec::new(),
            recycling: Vec::new(),
            waits: Vec::new(),
            due: Vec::new(),
            leaks: BTreeSet::new(),
            opened: 0,
            closed: 0,
            checkouts: 0,
            checkins: 0,
            levels: vec![(at(0), 0)],
        }
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Pass(millis) => self.now = self.now + Duration::from_millis(millis),
            Step::Dial => {
                self.ledger.dialling(self.now);
                self.dialling += 1;
            }
            Step::Open { life_seconds } if self.dialling > 0 => {
                let conn = ConnId(self.next());
                let expires = self.now + Duration::from_secs(life_seconds);
                self.ledger.opened(conn, conn.0 as i32, expires, self.now);
                self.dialling -= 1;
                self.opened += 1;
                self.idle.push(conn);
            }
            Step::FailToOpen if self.dialling > 0 => {
                self.ledger.not_opened(self.now);
                self.dialling -= 1;
            }
            Step::BeginToWait => self.waits.push((self.ledger.wait_begins(self.now), self.now)),
            Step::EndToWait(which) => {
                if let Some(at) = pick(&self.waits, which) {
                    self.ledger.wait_ends(self.waits.remove(at).0);
                }
            }
            Step::Open { .. } | Step::FailToOpen => {}
            Step::Close(which) => self.close(which),
            Step::CheckOut { session } => self.check_out(session),
            Step::Move(which, phase) => self.publish(which, phase),
            Step::Pin(which, pin) => self.pin(which, pin),
            Step::Look => self.look(),
            Step::Act(which) => self.act(which),
            Step::Suppress(which) => {
                if let Some(at) = pick(&self.due, which) {
                    let due = &self.due[at].0;
                    self.ledger.left_alone(due.checkout, due.seen, Suppression::Budget, self.now);
                }
            }
            Step::CheckIn(which, end) => {
                if let Some(at) = pick(&self.out, which) {
                    self.check_in(at, end);
                }
            }
            Step::Send => {
                if let Some(conn) = self.idle.pop() {
                    self.ledger.sent(conn, self.now);
                    self.recycling.push(conn);
                }
            }
            Step::Recycle(which) => {
                if let Some(at) = pick(&self.recycling, which) {
                    let conn = self.recycling.remove(at);
                    self.ledger.recycled(conn, self.now);
                    self.idle.push(conn);
                }
            }
        }
        self.levels.push((self.now, self.level()));
    }

    fn close(&mut self, which: Index) {
        let lent = self.out.iter().filter(|out| out.server_lives).map(|out| out.conn);
        let live: Vec<_> =
            self.idle.iter().copied().chain(self.recycling.iter().copied()).chain(lent).collect();
        let Some(at) = pick(&live, which) else { return };
        let conn = live[at];
        assert!(self.ledger.closed(conn, CloseReason::ServerLost, self.now).is_some());
        assert!(self.ledger.closed(conn, CloseReason::ServerLost, self.now).is_none(), "only once");
        self.closed += 1;
        self.idle.retain(|known| *known != conn);
        self.recycling.retain(|known| *known != conn);
        self.out.iter_mut().filter(|out| out.conn == conn).for_each(|out| out.server_lives = false);
    }

    fn check_out(&mut self, session: usize) {
        if self.out.iter().any(|out| out.session == session) {
            return;
        }
        let Some(conn) = self.idle.pop() else { return };
        let id = CheckoutId(self.next());
        let activity = Arc::clone(&self.activities[session]);
        activity.begin(self.now);
        self.ledger.checked_out(id, conn, holder(session as u32), activity, Duration::ZERO, self.now);
        self.checkouts += 1;
        self.out.push(Out {
            id,
            conn,
            session,
            phase: Phase::InFlight,
            deliberate: false,
            server_lives: true,
            taken: false,
            moves: 0,
        });
    }

    fn publish(&mut self, which: Index, phase: Phase) {
        let Some(at) = pick(&self.out, which) else { return };
        let out = &mut self.out[at];
        let published = self.activities[out.session].publish(phase, self.now);
        assert_eq!(published, if out.taken { Err(Reclaimed) } else { Ok(()) });
        if published.is_ok() {
            out.phase = phase;
            out.moves += 1;
        }
    }

    /// Only a statement pins, so its holder moves.
    fn pin(&mut self, which: Index, pin: Pin) {
        self.publish(which, Phase::InFlight);
        if let Some(at) = pick(&self.out, which) {
            let out = &mut self.out[at];
            if !out.taken {
                self.ledger.pinned(out.id, pin, self.now);
                out.deliberate = pin.is_deliberate();
            }
        }
    }

    fn look(&mut self) {
        let sweep = self.ledger.sweep(&self.policy, self.now);
        self.hear(sweep.events);
        assert!(sweep.next.is_none_or(|next| next > self.now), "the next look is in the future");
        let idle: Vec<_> = sweep.due.iter().map(|due| due.evidence.idle_seconds).collect();
        assert!(idle.is_sorted_by(|a, b| a >= b), "the longest idle first: {idle:?}");
        self.due.clear();
        for due in sweep.due {
            let out = self.out.iter().find(|out| out.id == due.checkout).expect("what is due is out");
            assert_ne!(out.phase, Phase::InFlight, "work in flight is never due");
            assert!(!(out.phase == Phase::Held && out.deliberate), "a purpose is no leak");
            assert!(!out.taken, "nothing is taken twice");
            assert!(due.evidence.idle_seconds >= due.evidence.limit_seconds);
            assert!(self.leaks.contains(&(due.checkout, due.reason)), "told before it is taken");
            self.due.push((due, out.moves));
        }
    }

    /// The swap goes through exactly if the holder has not moved since the look.
    fn act(&mut self, which: Index) {
        let Some(at) = pick(&self.due, which) else { return };
        let (due, moves) = self.due[at].clone();
        let out = self.out.iter_mut().find(|out| out.id == due.checkout);
        let unmoved = out.as_ref().is_some_and(|out| out.moves == moves && !out.taken);
        assert_eq!(self.ledger.reclaim(&due), unmoved, "{due:?} {out:?}");
        if let Some(out) = out.filter(|_| unmoved) {
            let told = self.ledger.reclaimed_for(due.checkout, self.now).map(|(reason, _)| reason);
            assert_eq!(told, Some(due.reason));
            out.taken = true;
        }
    }

    fn check_in(&mut self, at: usize, end: CheckIn) {
        let out = self.out.remove(at);
        let finished = self.activities[out.session].finish();
        assert_eq!(finished.is_err(), out.taken);
        let (to, resolution) = match end {
            _ if out.taken => (ConnPlace::Recycling, Resolution::Reclaimed),
            _ if !out.server_lives => (ConnPlace::Recycling, Resolution::ServerLost),
            CheckIn::ServerLost => (ConnPlace::Recycling, Resolution::ServerLost),
            CheckIn::Dirty => (ConnPlace::Recycling, Resolution::Disconnected),
            CheckIn::Clean => (ConnPlace::Idle, Resolution::Returned),
        };
        let (_, told) = self.ledger.checked_in(out.id, to, resolution, self.now);
        for event in &told {
            if let Event::LeakResolved { reason, resolution, .. } = event {
                let judged = *reason != Reason::Overdue;
                assert!(!(out.taken && judged) || *resolution == Resolution::Reclaimed);
            }
        }
        self.hear(told);
        assert!(self.leaks.iter().all(|(id, _)| *id != out.id), "its leaks end with it: {:?}", self.leaks);
        self.checkins += 1;
        match to {
            _ if !out.server_lives => {}
            ConnPlace::Idle => self.idle.push(out.conn),
            _ => self.recycling.push(out.conn),
        }
    }

    fn hear(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::LeakDetected { reason, evidence, .. } => {
                    let fresh = self.leaks.insert((evidence.checkout, reason));
                    assert!(fresh, "{reason} of {} is told twice", evidence.checkout);
                }
                Event::LeakResolved { reason, evidence, .. } => {
                    let known = self.leaks.remove(&(evidence.checkout, reason));
                    assert!(known, "{reason} of {} was never detected", evidence.checkout);
                }
                other => panic!("a ledger does not tell {other:?}"),
            }
        }
    }

    /// Slots in use.
    fn level(&self) -> usize {
        let lent = self.out.iter().filter(|out| out.server_lives).count();
        lent + self.recycling.len() + self.dialling
    }

    fn check(&self) {
        let shown = self.ledger.snapshot(&self.policy, self.now);
        let told = (shown.opened, shown.closed, shown.checkouts, shown.checkins);
        assert_eq!(told, (self.opened, self.closed, self.checkouts, self.checkins));
        assert_eq!(shown.opened - shown.closed, shown.connections.total() as u64, "{shown:#?}");
        assert_eq!(shown.checkouts - shown.checkins, shown.holders.len() as u64);
        let in_phase = |phases: &[Phase]| {
            self.out.iter().filter(|out| out.server_lives && phases.contains(&out.phase)).count()
        };
        let expected = ConnCounts {
            idle: self.idle.len(),
            active: in_phase(&[Phase::InFlight, Phase::AwaitsClient]),
            idle_in_transaction: in_phase(&[Phase::InTransaction]),
            held: in_phase(&[Phase::Held]),
            recycling: self.recycling.len(),
        };
        assert_eq!(shown.connections, expected);
        assert_eq!(shown.utilization_ratio, self.level() as f64 / 8.0);
        self.check_peak(shown.utilization_peak_ratio);
        assert_eq!(shown.waiting, self.waits.len());
        let oldest = self.waits.first().map_or(0.0, |(_, since)| self.now.since(*since).as_secs_f64());
        assert_eq!(shown.oldest_wait_seconds, oldest);
        assert_eq!(self.ledger.is_busy(), self.level() > 0 || !self.waits.is_empty());
        for (reason, count) in shown.stale {
            let suspects = self.leaks.iter().filter(|(_, leak)| *leak == reason).count();
            assert_eq!(count, suspects, "{reason}");
        }
        for holder in &shown.holders {
            let out = self.out.iter().find(|out| out.id == holder.id).expect("a holder that is out");
            assert!(!out.taken || holder.suspect.is_some());
            assert!(!matches!(holder.phase, ConnState::Idle | ConnState::Recycling));
            assert!(holder.idle_seconds <= holder.age_seconds);
        }
    }

    /// The peak is that of the last minute: not less, and not more than that of the seconds it touches.
    fn check_peak(&self, shown: f64) {
        let highest_since = |since: Moment| {
            let before = self.levels.iter().rev().find(|(from, _)| *from <= since);
            let within = self.levels.iter().filter(|(from, _)| *from > since);
            within.chain(before).map(|(_, level)| *level).max().unwrap_or(0)
        };
        let minute = Moment::from_nanos(self.now.as_nanos() - 60_000_000_000);
        let touched = Moment::from_secs(minute.as_nanos() / 1_000_000_000);
        // The level just before the first touched second may still be known.
        let touched = Moment::from_nanos(touched.as_nanos() - 1);
        let shown = (shown * 8.0).round() as usize;
        assert!(highest_since(minute) <= shown, "{shown} hides {}", highest_since(minute));
        assert!(shown <= highest_since(touched), "{shown} was never reached: {:?}", self.levels);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_books_balance_after_every_step(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        for step in steps {
            world.play(step);
            world.check();
        }
        while !world.out.is_empty() {
            world.check_in(0, CheckIn::Clean);
        }
        world.check();
        prop_assert!(world.leaks.is_empty(), "detected, and never resolved: {:?}", world.leaks);
    }
}
