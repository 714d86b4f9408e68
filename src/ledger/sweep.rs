//! The look at every checkout: who has become suspect, who has come back, what is due.

use crate::activity::{Activity, Observed};
use crate::event::{Event, Evidence, Reason, Resolution, Suppression};
use crate::ids::{CheckoutId, Moment};
use crate::judge::{self, Stage, Verdict};
use crate::policy::Policy;

use super::{Checkout, Ledger, Mark, Suspicion};

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

impl<L: AsRef<Activity> + Clone> Ledger<L> {
    /// Looks at every checkout, marks and clears suspects, and says what is due.
    pub fn sweep(&mut self, policy: &Policy, now: Moment) -> Sweep<L> {
        let mut sweep = Sweep { events: Vec::new(), due: Vec::new(), next: None };
        let ids: Vec<_> = self.checkouts.keys().copied().collect();
        for id in ids {
            self.examine(id, policy, now, &mut sweep);
        }
        sweep.due.sort_by(|a, b| b.evidence.idle_seconds.total_cmp(&a.evidence.idle_seconds));
        let stale = self.stale();
        self.forecast.sample(now, stale, self.in_use());
        sweep
    }

    fn examine(&mut self, id: CheckoutId, policy: &Policy, now: Moment, sweep: &mut Sweep<L>) {
        let Some(mut checkout) = self.checkouts.remove(&id) else { return };
        let seen = checkout.leash.as_ref().observe();
        let verdict = judge::judge(seen, checkout.pinned, policy, now);
        checkout.mark = self.remark(id, &checkout, verdict, seen, now, &mut sweep.events);
        if let (Mark::Suspect { of, left_alone, .. }, Stage::Due) = (checkout.mark, verdict.stage) {
            let evidence = self.evidence(id, &checkout, verdict.limit, now);
            let leash = checkout.leash.clone();
            sweep.due.push(Due { checkout: id, leash, seen, reason: of.reason, evidence, left_alone });
        }
        if checkout.overdue.is_none() && self.is_overdue(&checkout, policy, now) {
            checkout.overdue = Some(Suspicion { reason: Reason::Overdue, limit: policy.max_lifetime });
            let evidence = self.evidence(id, &checkout, policy.max_lifetime, now);
            sweep.events.push(Event::LeakDetected {
                pool: self.pool.clone(),
                reason: Reason::Overdue,
                evidence,
            });
        }
        sweep.next = sweep.next.into_iter().chain(verdict.next).min();
        self.checkouts.insert(id, checkout);
    }

    /// The next mark of a checkout, with what is to be told about the change.
    fn remark(
        &self,
        id: CheckoutId,
        checkout: &Checkout<L>,
        verdict: Verdict,
        seen: Observed,
        now: Moment,
        events: &mut Vec<Event>,
    ) -> Mark {
        let pool = || self.pool.clone();
        let mut mark = checkout.mark;
        if let Mark::Suspect { of: Suspicion { reason, limit }, seen: before, .. } = mark
            && (before.epoch() != seen.epoch() || verdict.stage == Stage::Fine)
        {
            let evidence = self.evidence(id, checkout, limit, now);
            let resolution = Resolution::Returned;
            events.push(Event::LeakResolved { pool: pool(), reason, resolution, evidence });
            mark = Mark::Held;
        }
        if mark == Mark::Held && verdict.stage != Stage::Fine {
            let evidence = self.evidence(id, checkout, verdict.limit, now);
            events.push(Event::LeakDetected { pool: pool(), reason: verdict.reason, evidence });
            let of = Suspicion { reason: verdict.reason, limit: verdict.limit };
            mark = Mark::Suspect { of, seen, left_alone: None };
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
