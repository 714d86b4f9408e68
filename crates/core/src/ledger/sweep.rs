//! The look at every checkout: who has become suspect, who has come back, what is due.

use std::sync::Arc;
use std::time::Duration;

use crate::activity::{Activity, Observed, Pause};
use crate::event::{Event, Evidence, Reason, Resolution, Suppression};
use crate::forecast::Turn;
use crate::history::{GroupId, Habit, History};
use crate::ids::{CheckoutId, Moment, PoolKey};
use crate::judge;
use crate::judge::{Case, Stage, Turnover, Verdict};
use crate::ledger::{Checkout, Ledger, Mark, Suspicion, evidence, widened};
use crate::policy::{Allowance, Policy};

/// A reclaim that is due: everything needed to carry it out under one compare-and-swap.
#[derive(Clone, Debug)]
pub struct Due<L> {
    /// The checkout.
    pub checkout: CheckoutId,
    /// How to reach its holder.
    pub handle: L,
    /// What was seen when the verdict was made: the act is void if it has changed.
    pub seen: Observed,
    /// Why.
    pub reason: Reason,
    /// What is said about it.
    pub evidence: Evidence,
    /// Why nothing was done about it when it was due before.
    pub left_alone: Option<Suppression>,
}

/// What a look at every checkout found.
#[derive(Debug)]
pub struct Sweep<L> {
    /// Facts to tell.
    pub events: Vec<Event>,
    /// Reclaims that are due, the longest idle first.
    pub due: Vec<Due<L>>,
    /// When a verdict may change next if nobody moves; `None` if nothing is out.
    pub next: Option<Moment>,
}

/// Who pauses since when, by group and by application: made when the first verdict asks for it.
pub(super) type Idlers = Vec<(GroupId, usize, Moment)>;

impl<L: AsRef<Activity> + Clone> Ledger<L> {
    /// Looks at every checkout, marks and clears suspects, and says what is due.
    pub fn sweep(&mut self, policy: &Policy, now: Moment) -> Sweep<L> {
        let mut sweep = Sweep { events: Vec::new(), due: Vec::new(), next: None };
        let mut checkouts = std::mem::take(&mut self.checkouts);
        for checkout in checkouts.values_mut() {
            checkout.tell_pauses(&mut self.history, now);
        }
        let pressed = self.is_pressed(policy);
        let mut habits = Habits::new(&self.history, policy, &self.pool, now);
        // Few ask what their siblings do; for the others one look is enough.
        let mut asking = Vec::new();
        for (id, checkout) in &mut checkouts {
            let case = checkout.case(&mut habits, pressed);
            if case.asks_for_turnover(policy, now) {
                asking.push((*id, case));
            } else {
                self.examine(*id, checkout, &case, policy, now, &mut sweep);
            }
        }
        if !asking.is_empty() {
            let idlers = idlers_of(checkouts.values().map(|checkout| &**checkout), &self.history);
            for (id, mut case) in asking {
                case.turnover = turnover(&case, &self.history, &idlers);
                if let Some(checkout) = checkouts.get_mut(&id) {
                    self.examine(id, checkout, &case, policy, now, &mut sweep);
                }
            }
        }
        self.checkouts = checkouts;
        for _ in 0..self.history.take_folded() {
            sweep.events.push(Event::LabelFolded { label: "group" });
        }
        sweep.due.sort_by(|a, b| b.evidence.idle_seconds.total_cmp(&a.evidence.idle_seconds));
        let stale = self.stale();
        self.forecast.sample(now, stale, self.in_use());
        let pool = || self.pool.clone();
        sweep.events.extend(self.forecast.turn(policy.size).map(|turn| match turn {
            Turn::Foreseen(in_seconds) => {
                Event::ExhaustionForeseen { pool: pool(), in_seconds, stale, holders: self.top_holders(now) }
            }
            Turn::Averted => Event::ExhaustionAverted { pool: pool(), stale },
        }));
        sweep
    }

    fn examine(
        &self,
        id: CheckoutId,
        checkout: &mut Checkout<L>,
        case: &Case,
        policy: &Policy,
        now: Moment,
        sweep: &mut Sweep<L>,
    ) {
        let (seen, verdict) = (case.seen, judge::judge(case, policy, now));
        sweep.next = sweep.next.into_iter().chain(verdict.next).min();
        if checkout.overdue.is_none() && self.is_overdue(checkout, policy, now) {
            let of = Suspicion::fixed(Reason::Overdue, policy.max_lifetime);
            checkout.overdue = Some(of);
            let evidence = evidence(&self.conns, id, checkout, &of, now);
            sweep.events.push(Event::LeakDetected { pool: self.pool.clone(), reason: of.reason, evidence });
        }
        if checkout.mark == Mark::Held && verdict.stage == Stage::Fine {
            return;
        }
        if !matches!(checkout.mark, Mark::Suspect { seen: before, .. } if before.epoch() == seen.epoch()) {
            let activity = checkout.handle.as_ref();
            checkout.statement = Some(activity.statement()).filter(|text| !text.is_empty()).map(Arc::from);
            checkout.trace = activity.trace().map(|trace| trace.text().into());
        }
        let before = checkout.mark;
        checkout.mark = self.remark(id, checkout, case, &verdict, now, &mut sweep.events);
        if before == Mark::Held {
            // The pause that it is suspected for has not ended.
            checkout.latest = Default::default();
        }
        if let (Mark::Suspect { of, left_alone, .. }, Stage::Due) = (checkout.mark, verdict.stage) {
            let evidence = evidence(&self.conns, id, checkout, &of, now);
            let handle = checkout.handle.clone();
            let left_alone = left_alone.map(|spared| spared.because);
            sweep.due.push(Due { checkout: id, handle, seen, reason: of.reason, evidence, left_alone });
        }
    }

    /// The next mark of a checkout, with what is to be told about the change.
    fn remark(
        &self,
        id: CheckoutId,
        checkout: &Checkout<L>,
        case: &Case,
        verdict: &Verdict,
        now: Moment,
        events: &mut Vec<Event>,
    ) -> Mark {
        let seen = case.seen;
        let pool = || self.pool.clone();
        let mut mark = checkout.mark;
        if let Mark::Suspect { of, seen: before, left_alone } = mark {
            let moved = before.epoch() != seen.epoch();
            // That its siblings pause as well does not bring it home.
            let lifted = verdict.stage == Stage::Fine
                && (case.is_excused() || now.since(seen.last_active) < verdict.limit);
            if moved || lifted {
                events.push(self.resolved(id, checkout, &of, Resolution::Returned, left_alone, now));
                mark = Mark::Held;
            }
            if moved {
                events.extend(widened(&self.pool, &self.history, checkout, &of, now));
            }
        }
        let of = Suspicion { reason: verdict.reason, limit: verdict.limit, grounds: verdict.grounds };
        match &mut mark {
            Mark::Held if verdict.stage != Stage::Fine => {
                let evidence = evidence(&self.conns, id, checkout, &of, now);
                events.push(Event::LeakDetected { pool: pool(), reason: of.reason, evidence });
                mark = Mark::Suspect { of, seen, left_alone: None };
            }
            // What is said of it when it is taken is what is known then.
            Mark::Suspect { of: known, .. } => *known = of,
            Mark::Held | Mark::Reclaiming(_) => {}
        }
        mark
    }

    /// Held across its connection's end of life for longer than a statement may take: it has missed
    /// a recycle, and is not just at work at the moment.
    fn is_overdue(&self, checkout: &Checkout<L>, policy: &Policy, now: Moment) -> bool {
        checkout.expires <= now
            && now.since(checkout.expires.max(checkout.started)) >= policy.slow_statement()
            && self.conns.contains_key(&checkout.conn)
    }
}

impl<L: AsRef<Activity>> Checkout<L> {
    /// What there is to be known of it, but for the turnover.
    pub(super) fn case(&self, habits: &mut Habits<'_>, pressed: bool) -> Case {
        let seen = self.handle.as_ref().observe();
        let pause = Pause::of(seen.phase);
        Case {
            seen,
            pinned: self.pinned.as_ref().map(|(pin, ..)| *pin),
            allowance: habits.allowance(self),
            habit: pause.map(|pause| habits.of(self.group, pause)).unwrap_or_default(),
            own_worst: pause.map_or(Duration::ZERO, |pause| self.worst[pause as usize]),
            turnover: Turnover::default(),
            pressed,
        }
    }
}

/// What is usual for each group, and what rules grant it, looked up once in a look at all.
pub(super) struct Habits<'a> {
    history: &'a History,
    policy: &'a Policy,
    pool: &'a PoolKey,
    known: Vec<Known>,
    now: Moment,
}

#[derive(Clone, Default)]
struct Known {
    habits: [Option<Habit>; Pause::ALL.len()],
    granted: Option<Allowance>,
}

impl<'a> Habits<'a> {
    pub(super) fn new(history: &'a History, policy: &'a Policy, pool: &'a PoolKey, now: Moment) -> Self {
        Self { history, policy, pool, known: vec![Known::default(); history.groups()], now }
    }

    /// What rules grant, or the checkout's client has announced.
    fn allowance<L>(&mut self, checkout: &Checkout<L>) -> Allowance {
        let rules = &self.policy.rules;
        let granted = if rules.is_empty() {
            Allowance::Usual
        } else {
            let grant = || rules.grant(self.pool, &checkout.holder.app, checkout.route.as_deref());
            match &mut self.known[checkout.group.index()].granted {
                // A group of many kinds: of all, or of an application's routes beyond the bound.
                _ if checkout.group == History::OTHER => grant(),
                _ if checkout.route.is_some() && self.history.app_of(checkout.group) == checkout.group => {
                    grant()
                }
                known => *known.get_or_insert_with(grant),
            }
        };
        match (granted, checkout.declared) {
            (Allowance::AtLeast(granted), Some(declared)) => Allowance::AtLeast(granted.max(declared)),
            (Allowance::Usual, Some(declared)) => Allowance::AtLeast(declared),
            (granted, _) => granted,
        }
    }

    fn of(&mut self, group: GroupId, pause: Pause) -> Habit {
        let known = &mut self.known[group.index()].habits[pause as usize];
        *known.get_or_insert_with(|| self.history.habit(group, pause, self.now))
    }
}

/// Every pause that goes on, under its group and under its application, in order.
pub(super) fn idlers_of<'a, L: AsRef<Activity> + 'a>(
    checkouts: impl Iterator<Item = &'a Checkout<L>>,
    history: &History,
) -> Idlers {
    let mut idlers = Vec::new();
    for checkout in checkouts {
        let seen = checkout.handle.as_ref().observe();
        let Some(pause) = Pause::of(seen.phase) else { continue };
        let app = history.app_of(checkout.group);
        idlers.push((checkout.group, pause as usize, seen.last_active));
        if app != checkout.group {
            idlers.push((app, pause as usize, seen.last_active));
        }
    }
    idlers.sort_unstable();
    idlers
}

/// What became of the pauses that began later than this one, among those that it is measured by.
pub(super) fn turnover(case: &Case, history: &History, idlers: &Idlers) -> Turnover {
    let (Some(pause), Some(group)) = (Pause::of(case.seen.phase), case.habit.of) else {
        return Turnover::default();
    };
    let since = case.seen.last_active;
    let kind = (group, pause as usize);
    let first = idlers.partition_point(|(group, pause, at)| (*group, *pause, *at) <= (kind.0, kind.1, since));
    let later = idlers[first..].partition_point(|(group, pause, _)| (*group, *pause) == kind);
    Turnover { over: history.over_since(group, pause, since), idle: later as u64 }
}
