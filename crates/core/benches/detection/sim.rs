//! A pool, its queue and its clients, on a clock of its own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::rules::{Look, Rule};
use super::work::{Next, Plan, Workload};

/// How long a client waits for a connection.
const WAIT: f64 = 5.0;

/// One workload with one seed.
pub(crate) struct Trace<'a> {
    pub workload: &'a Workload,
    pub seed: u64,
}

/// What a rule made of a trace, or of several.
#[derive(Clone, Default)]
pub(crate) struct Score {
    pub checkouts: u64,
    pub pauses: u64,
    pub leaks: u64,
    /// Leaks that had been out for long enough to be found, and were not.
    pub missed: u64,
    /// From the last word of a leak to the suspicion, and to the taking back, in seconds.
    pub found: Vec<f64>,
    pub taken: Vec<f64>,
    pub healthy_suspected: u64,
    pub healthy_killed: u64,
    /// Clients that got nothing.
    pub refused: u64,
    /// Per trace: when the first client got nothing, the first suspicion of a leak, and the first forecast.
    pub exhausted: Vec<Option<f64>>,
    pub first_suspect: Vec<Option<f64>>,
    pub first_forecast: Vec<Option<f64>>,
}

impl Score {
    pub(crate) fn add(&mut self, other: Score) {
        self.checkouts += other.checkouts;
        self.pauses += other.pauses;
        self.leaks += other.leaks;
        self.missed += other.missed;
        self.found.extend(other.found);
        self.taken.extend(other.taken);
        self.healthy_suspected += other.healthy_suspected;
        self.healthy_killed += other.healthy_killed;
        self.refused += other.refused;
        self.exhausted.extend(other.exhausted);
        self.first_suspect.extend(other.first_suspect);
        self.first_forecast.extend(other.first_forecast);
    }
}

enum Event {
    Arrive,
    Extra(usize),
    Served(u64),
    GoesOn(u64),
    Patience(u64),
    Look,
}

/// When, the number that keeps order, and what.
type Entry = (u64, u64);

struct Out {
    plan: Plan,
    conn: u64,
    leaked: Option<f64>,
    found: bool,
}

struct Sim<'a, 'r> {
    trace: &'a Trace<'a>,
    rule: &'r mut dyn Rule,
    rng: StdRng,
    now: f64,
    heap: BinaryHeap<Reverse<Entry>>,
    events: HashMap<u64, Event>,
    serial: u64,
    arrivals: u64,
    free: Vec<u64>,
    queue: VecDeque<(u64, Plan)>,
    out: HashMap<u64, Out>,
    /// Healthy ones that were taken, until they notice.
    bereft: HashMap<u64, Plan>,
    score: Score,
}

const NANOS: f64 = 1e9;

impl Trace<'_> {
    /// Plays the whole trace under one rule.
    pub(crate) fn play(&self, rule: &mut dyn Rule) -> Score {
        let mut sim = Sim {
            trace: self,
            rule,
            rng: StdRng::seed_from_u64(self.seed ^ 0xA5A5),
            now: 0.0,
            heap: BinaryHeap::new(),
            events: HashMap::new(),
            serial: 0,
            arrivals: 0,
            free: (1..=self.workload.pool as u64).collect(),
            queue: VecDeque::new(),
            out: HashMap::new(),
            bereft: HashMap::new(),
            score: Score {
                exhausted: vec![None],
                first_suspect: vec![None],
                first_forecast: vec![None],
                ..Score::default()
            },
        };
        for (at, class) in (self.workload.extra)() {
            sim.at(at, Event::Extra(class));
        }
        sim.next_arrival();
        sim.at(1.0, Event::Look);
        sim.run();
        sim.score
    }
}

impl Sim<'_, '_> {
    fn at(&mut self, t: f64, event: Event) {
        self.serial += 1;
        self.heap.push(Reverse(((t * NANOS) as u64, self.serial)));
        self.events.insert(self.serial, event);
    }

    fn run(&mut self) {
        while let Some(Reverse((at, serial))) = self.heap.pop() {
            self.now = at as f64 / NANOS;
            if self.now > self.trace.workload.seconds {
                break;
            }
            let event = self.events.remove(&serial).expect("each is popped once");
            match event {
                Event::Arrive => {
                    self.arrive(None);
                    self.next_arrival();
                }
                Event::Extra(class) => self.arrive(Some(class)),
                Event::Served(id) => self.served(id),
                Event::GoesOn(id) => self.goes_on(id),
                Event::Patience(id) => self.gives_up(id),
                Event::Look => self.look(),
            }
        }
        let end = self.now;
        let missed = |out: &&Out| !out.found && out.leaked.is_some_and(|since| end - since > 600.0);
        self.score.missed = self.out.values().filter(missed).count() as u64;
    }

    /// Exponential gaps at the rate of the moment; rates change slowly against them.
    fn next_arrival(&mut self) {
        let rate = (self.trace.workload.rate)(self.now);
        if rate > 0.0 {
            let gap = -(1.0 - self.rng.random::<f64>()).ln() / rate;
            self.at(self.now + gap, Event::Arrive);
        }
    }

    fn arrive(&mut self, class: Option<usize>) {
        self.arrivals += 1;
        let id = self.arrivals;
        let plan = Plan::new(self.trace.workload, self.trace.seed, id, self.now, class);
        match self.free.pop() {
            Some(conn) => self.begin(id, plan, conn),
            None => {
                self.rule.waits(id, self.now);
                self.queue.push_back((id, plan));
                self.at(self.now + WAIT, Event::Patience(id));
            }
        }
    }

    fn begin(&mut self, id: u64, mut plan: Plan, conn: u64) {
        self.score.checkouts += 1;
        self.rule.begins(id, conn, plan.class, self.now);
        let served = plan.statement(self.trace.workload, self.now);
        self.out.insert(id, Out { plan, conn, leaked: None, found: false });
        self.at(self.now + served, Event::Served(id));
    }

    fn served(&mut self, id: u64) {
        let out = self.out.get_mut(&id).expect("nothing in flight is taken");
        match out.plan.next() {
            Next::Home => {
                self.rule.ends(id, self.now);
                let Out { conn, .. } = self.out.remove(&id).expect("just seen");
                self.free_conn(conn);
            }
            Next::Pause { in_transaction, seconds } => {
                self.score.pauses += 1;
                self.rule.pauses(id, in_transaction, self.now);
                self.at(self.now + seconds, Event::GoesOn(id));
            }
            Next::Leak { in_transaction } => {
                out.leaked = Some(self.now);
                self.score.leaks += 1;
                self.rule.pauses(id, in_transaction, self.now);
            }
        }
    }

    fn goes_on(&mut self, id: u64) {
        if self.bereft.remove(&id).is_some() {
            return self.rule.regrets(id, self.now);
        }
        self.rule.goes_on(id, self.now);
        let out = self.out.get_mut(&id).expect("it is out, or it was taken");
        let served = out.plan.statement(self.trace.workload, self.now);
        self.at(self.now + served, Event::Served(id));
    }

    fn gives_up(&mut self, id: u64) {
        let Some(place) = self.queue.iter().position(|(waiting, _)| *waiting == id) else { return };
        self.queue.remove(place);
        self.rule.waits_no_more(id);
        self.score.refused += 1;
        if self.now > self.trace.workload.begins {
            self.score.exhausted[0].get_or_insert(self.now);
        }
    }

    fn free_conn(&mut self, conn: u64) {
        match self.queue.pop_front() {
            Some((id, plan)) => {
                self.rule.waits_no_more(id);
                self.begin(id, plan, conn);
            }
            None => self.free.push(conn),
        }
    }

    fn look(&mut self) {
        let Look { suspects, taken, foreseen, next } = self.rule.look(self.now);
        if foreseen {
            self.score.first_forecast[0].get_or_insert(self.now);
        }
        for id in suspects {
            let Some(out) = self.out.get_mut(&id) else { continue };
            match out.leaked {
                Some(since) if !out.found => {
                    out.found = true;
                    self.score.found.push(self.now - since);
                    self.score.first_suspect[0].get_or_insert(self.now);
                }
                Some(_) => {}
                None => self.score.healthy_suspected += 1,
            }
        }
        for id in taken {
            let Some(out) = self.out.remove(&id) else { continue };
            match out.leaked {
                Some(since) => self.score.taken.push(self.now - since),
                None => {
                    self.score.healthy_killed += 1;
                    self.bereft.insert(id, out.plan);
                }
            }
            self.free_conn(out.conn);
        }
        let soon = next.map_or(1.0, |next| (next - self.now).clamp(0.005, 1.0));
        self.at(self.now + soon, Event::Look);
    }
}
