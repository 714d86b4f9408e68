//! Who judges: pgleash, with its own ledger and judge, and the rules of the field.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use pgleash_core::{
    Act, Action, Activity, CheckoutId, ConnId, ConnPlace, Enforcement, Event, Evidence, Facts, Holder,
    Ledger, Moment, Phase, Policy, PoolKey, Reason, Resolution, SessionId, Suppression,
};

use super::work::{Class, Workload};

/// What a look found.
#[derive(Default)]
pub(crate) struct Look {
    pub suspects: Vec<u64>,
    pub taken: Vec<u64>,
    pub foreseen: bool,
    /// When to look again at the latest.
    pub next: Option<f64>,
}

/// One who watches checkouts, and may take them back.
pub(crate) trait Rule {
    fn waits(&mut self, _id: u64, _now: f64) {}
    fn waits_no_more(&mut self, _id: u64) {}
    fn begins(&mut self, id: u64, conn: u64, class: &'static Class, now: f64);
    fn pauses(&mut self, id: u64, in_transaction: bool, now: f64);
    fn goes_on(&mut self, id: u64, now: f64);
    fn ends(&mut self, id: u64, now: f64);
    /// A healthy holder notices that its connection was taken.
    fn regrets(&mut self, _id: u64, _now: f64) {}
    fn look(&mut self, now: f64) -> Look;
}

/// The rules that are played, pgleash first.
pub(crate) const NAMES: [&str; 6] =
    ["pgleash", "age > 30 s", "age > 60 s", "idle in tx > 10 s", "idle in tx > 30 s", "age > p99.9"];

/// pgleash that takes nothing back.
pub(crate) fn observing(workload: &Workload) -> impl Rule + use<> {
    Ours::new(workload, Action::Observe)
}

pub(crate) fn make(name: &str, workload: &Workload) -> Box<dyn Rule> {
    match name {
        "pgleash" => Box::new(Ours::new(workload, Action::Reclaim)),
        "age > 30 s" => Box::new(Field::new(Limit::Age(30.0))),
        "age > 60 s" => Box::new(Field::new(Limit::Age(60.0))),
        "idle in tx > 10 s" => Box::new(Field::new(Limit::IdleInTransaction(10.0))),
        "idle in tx > 30 s" => Box::new(Field::new(Limit::IdleInTransaction(30.0))),
        "age > p99.9" => Box::new(Field::new(Limit::Quantile)),
        _ => unreachable!("NAMES has no other"),
    }
}

fn moment(t: f64) -> Moment {
    Moment::from_nanos((t * 1e9) as u64)
}

struct Ours {
    ledger: Ledger<Arc<Activity>>,
    policy: Policy,
    out: HashMap<u64, Arc<Activity>>,
    waits: HashMap<u64, u64>,
    holders: HashMap<&'static str, Arc<Holder>>,
    routes: HashMap<&'static str, Arc<str>>,
    enforcement: Enforcement,
    taken: HashMap<u64, (Reason, Evidence, Moment)>,
}

impl Ours {
    fn new(workload: &Workload, action: Action) -> Self {
        let mut ledger = Ledger::new(PoolKey::new("shop", "app"));
        for conn in 1..=workload.pool as u64 {
            ledger.dialling(Moment::START);
            ledger.opened(ConnId(conn), conn as i32, Moment::from_secs(1_000_000), Moment::START);
        }
        Self {
            ledger,
            policy: Policy { action, size: workload.pool, ..Policy::default() },
            out: HashMap::new(),
            waits: HashMap::new(),
            holders: HashMap::new(),
            routes: HashMap::new(),
            enforcement: Enforcement::default(),
            taken: HashMap::new(),
        }
    }

    fn holder(&mut self, class: &Class) -> Arc<Holder> {
        let holder = self.holders.entry(class.app).or_insert_with(|| {
            Arc::new(Holder {
                session: SessionId(1),
                app: class.app.to_owned(),
                user: "app".to_owned(),
                database: "shop".to_owned(),
                client: "10.0.0.1:1".to_owned(),
            })
        });
        Arc::clone(holder)
    }

    fn publish(&self, id: u64, phase: Phase, now: f64) {
        self.out[&id].publish(phase, moment(now)).expect("it was not taken");
    }
}

impl Rule for Ours {
    fn waits(&mut self, id: u64, now: f64) {
        self.waits.insert(id, self.ledger.wait_begins(moment(now)));
    }

    fn waits_no_more(&mut self, id: u64) {
        if let Some(key) = self.waits.remove(&id) {
            self.ledger.wait_ends(key);
        }
    }

    fn begins(&mut self, id: u64, conn: u64, class: &'static Class, now: f64) {
        let activity = Arc::new(Activity::new());
        activity.begin(moment(now));
        let (holder, handle) = (self.holder(class), Arc::clone(&activity));
        self.ledger.checked_out(CheckoutId(id), ConnId(conn), holder, handle, Duration::ZERO, moment(now));
        if let Some(route) = class.route {
            let route = self.routes.entry(route).or_insert_with(|| route.into());
            self.ledger.routed(CheckoutId(id), route, moment(now));
        }
        self.out.insert(id, activity);
    }

    fn pauses(&mut self, id: u64, in_transaction: bool, now: f64) {
        self.publish(id, if in_transaction { Phase::InTransaction } else { Phase::Held }, now);
    }

    fn goes_on(&mut self, id: u64, now: f64) {
        self.publish(id, Phase::InFlight, now);
    }

    fn ends(&mut self, id: u64, now: f64) {
        self.publish(id, Phase::Held, now);
        let activity = self.out.remove(&id).expect("it is out");
        activity.finish().expect("it was not taken");
        self.ledger.checked_in(CheckoutId(id), ConnPlace::Idle, Resolution::Returned, moment(now));
    }

    fn regrets(&mut self, id: u64, now: f64) {
        if let Some((reason, evidence, at)) = self.taken.remove(&id) {
            let now = moment(now);
            self.ledger.regretted(&evidence, reason, now.since(at), now);
        }
    }

    fn look(&mut self, t: f64) -> Look {
        let now = moment(t);
        let sweep = self.ledger.sweep(&self.policy, now);
        let mut look = Look { next: sweep.next.map(|next| next.as_nanos() as f64 / 1e9), ..Look::default() };
        for event in sweep.events {
            match event {
                Event::LeakDetected { reason, evidence, .. } if reason != Reason::SlowStatement => {
                    look.suspects.push(evidence.checkout.0);
                }
                Event::ExhaustionForeseen { .. } => look.foreseen = true,
                _ => {}
            }
        }
        if self.policy.action == Action::Observe {
            return look;
        }
        for due in sweep.due {
            due.handle.answer();
            let facts = Facts::of(&due, false, None);
            match self.enforcement.decide(&facts, &self.policy, now) {
                Act::Reclaim => {}
                Act::LeaveAlone(Suppression::Budget) => break,
                other => panic!("nobody moves during a look, and nobody is wedged: {other:?}"),
            }
            assert!(self.ledger.reclaim(&due), "nobody moves during a look");
            self.enforcement.reclaimed(now);
            let id = due.checkout;
            let conn = self.ledger.conn_of(id).expect("it is out");
            self.ledger.checked_in(id, ConnPlace::Recycling, Resolution::Reclaimed, now);
            self.ledger.recycled(conn, now);
            self.out.remove(&id.0);
            self.taken.insert(id.0, (due.reason, due.evidence, now));
            look.taken.push(id.0);
        }
        look
    }
}

enum Limit {
    /// HikariCP's leakDetectionThreshold, Tomcat's and DBCP2's removeAbandonedTimeout.
    Age(f64),
    /// PostgreSQL's idle_in_transaction_session_timeout.
    IdleInTransaction(f64),
    /// Longer than 99.9 % of the checkouts so far, of which a thousand are needed.
    Quantile,
}

struct Field {
    limit: Limit,
    /// Since when it is out, and since when it pauses, and whether in a transaction.
    out: BTreeMap<u64, (f64, Option<(f64, bool)>)>,
    holds: Histogram<u64>,
}

impl Field {
    fn new(limit: Limit) -> Self {
        Self { limit, out: BTreeMap::new(), holds: Histogram::new(3).expect("3 digits are allowed") }
    }
}

impl Rule for Field {
    fn begins(&mut self, id: u64, _conn: u64, _class: &'static Class, now: f64) {
        self.out.insert(id, (now, None));
    }

    fn pauses(&mut self, id: u64, in_transaction: bool, now: f64) {
        if let Some((_, idle)) = self.out.get_mut(&id) {
            *idle = Some((now, in_transaction));
        }
    }

    fn goes_on(&mut self, id: u64, _now: f64) {
        if let Some((_, idle)) = self.out.get_mut(&id) {
            *idle = None;
        }
    }

    fn ends(&mut self, id: u64, now: f64) {
        if let Some((began, _)) = self.out.remove(&id) {
            self.holds.record(((now - began) * 1e6) as u64).expect("it grows as it must");
        }
    }

    fn look(&mut self, now: f64) -> Look {
        let quantile = (self.holds.len() >= 1000).then(|| self.holds.value_at_quantile(0.999) as f64 / 1e6);
        // In fairness to them: a statement in flight, which all but the second would hit as well, is not counted.
        let beyond = |(began, idle): &(f64, Option<(f64, bool)>)| match (&self.limit, idle) {
            (_, None) => false,
            (Limit::Age(limit), Some(_)) => now - began > *limit,
            (Limit::IdleInTransaction(limit), Some((since, true))) => now - since > *limit,
            (Limit::IdleInTransaction(_), Some((_, false))) => false,
            (Limit::Quantile, Some(_)) => quantile.is_some_and(|limit| now - began > limit),
        };
        let taken: Vec<_> = self.out.iter().filter(|(_, out)| beyond(out)).map(|(id, _)| *id).collect();
        for id in &taken {
            self.ends(*id, now);
        }
        Look { suspects: taken.clone(), taken, ..Look::default() }
    }
}
