//! The look at every checkout: who has become suspect, who has come back, what is due.

use std::time::Duration;

use crate::activity::{Activity, Observed, Pause};
use crate::event::{Event, Evidence, Reason, Resolution, Suppression};
use crate::history::{GroupId, History};
use crate::ids::{CheckoutId, Moment};
use crate::judge::{self, Case, Stage, Turnover, Verdict};
use crate::policy::Policy;

use super::{Checkout, Ledger, Mark, Suspicion, evidence, widened};

/// A reclaim that is due: everything needed to carry it out under one compare-and-swap.
#[derive(Clone, Debug)]
pub struct Due<L> {
    /// The checkout.
    pub checkout: CheckoutId,
    /// How to reach its holder.
    pub leash: L,
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
        let mut idlers = None;
        let mut verdicts = Vec::with_capacity(checkouts.len());
        for checkout in checkouts.values() {
            let mut case = checkout.case(&self.history, pressed, now);
            if case.asks_for_turnover(policy, now) {
                let idlers = idlers.get_or_insert_with(|| idlers_of(checkouts.values(), &self.history));
                case.turnover = turnover(&case, &self.history, idlers);
            }
            verdicts.push((case.seen, judge::judge(&case, policy, now)));
        }
        for ((id, checkout), (seen, verdict)) in checkouts.iter_mut().zip(verdicts) {
            self.examine(*id, checkout, seen, &verdict, policy, now, &mut sweep);
        }
        self.checkouts = checkouts;
        for _ in 0..self.history.take_folded() {
            sweep.events.push(Event::LabelFolded { label: "group" });
        }
        sweep.due.sort_by(|a, b| b.evidence.idle_seconds.total_cmp(&a.evidence.idle_seconds));
        let stale = self.stale();
        self.forecast.sample(now, stale, self.in_use());
        sweep
    }

    #[allow(clippy::too_many_arguments, reason = "one step of the loop above")]
    fn examine(
        &self,
        id: CheckoutId,
        checkout: &mut Checkout<L>,
        seen: Observed,
        verdict: &Verdict,
        policy: &Policy,
        now: Moment,
        sweep: &mut Sweep<L>,
    ) {
        checkout.mark = self.remark(id, checkout, verdict, seen, now, &mut sweep.events);
        if let (Mark::Suspect { of, left_alone, .. }, Stage::Due) = (checkout.mark, verdict.stage) {
            let evidence = evidence(&self.conns, id, checkout, &of, now);
            let leash = checkout.leash.clone();
            sweep.due.push(Due { checkout: id, leash, seen, reason: of.reason, evidence, left_alone });
        }
        if checkout.overdue.is_none() && self.is_overdue(checkout, policy, now) {
            let of = Suspicion::fixed(Reason::Overdue, policy.max_lifetime);
            checkout.overdue = Some(of);
            let evidence = evidence(&self.conns, id, checkout, &of, now);
            sweep.events.push(Event::LeakDetected { pool: self.pool.clone(), reason: of.reason, evidence });
        }
        sweep.next = sweep.next.into_iter().chain(verdict.next).min();
    }

    /// The next mark of a checkout, with what is to be told about the change.
    fn remark(
        &self,
        id: CheckoutId,
        checkout: &Checkout<L>,
        verdict: &Verdict,
        seen: Observed,
        now: Moment,
        events: &mut Vec<Event>,
    ) -> Mark {
        let pool = || self.pool.clone();
        let mut mark = checkout.mark;
        if let Mark::Suspect { of, seen: before, .. } = mark {
            let moved = before.epoch() != seen.epoch();
            if moved || verdict.stage == Stage::Fine {
                let evidence = evidence(&self.conns, id, checkout, &of, now);
                let resolution = Resolution::Returned;
                events.push(Event::LeakResolved { pool: pool(), reason: of.reason, resolution, evidence });
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
        self.conns.get(&checkout.conn).is_some_and(|conn| {
            conn.expires <= now && now.since(conn.expires.max(checkout.started)) >= policy.slow_statement()
        })
    }
}

impl<L: AsRef<Activity>> Checkout<L> {
    /// What there is to be known of it, but for the turnover.
    pub(super) fn case(&self, history: &History, pressed: bool, now: Moment) -> Case {
        let seen = self.leash.as_ref().observe();
        let pause = Pause::of(seen.phase);
        Case {
            seen,
            pinned: self.pinned,
            allowance: self.allowance,
            habit: pause.map(|pause| history.habit(self.group, pause, now)).unwrap_or_default(),
            own_worst: pause.map_or(Duration::ZERO, |pause| self.worst[pause as usize]),
            turnover: Turnover::default(),
            pressed,
        }
    }
}

/// Every pause that goes on, under its group and under its application, in order.
pub(super) fn idlers_of<'a, L: AsRef<Activity> + 'a>(
    checkouts: impl Iterator<Item = &'a Checkout<L>>,
    history: &History,
) -> Idlers {
    let mut idlers = Vec::new();
    for checkout in checkouts {
        let seen = checkout.leash.as_ref().observe();
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
