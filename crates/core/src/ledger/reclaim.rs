//! How a connection is taken from its holder, and what is said of that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::activity::{Activity, Observed, Phase};
use crate::event::{Event, Evidence, LeftAlone, Reason, Resolution, Suppression};
use crate::ids::{CheckoutId, ConnId, Moment};
use crate::ledger::pauses::pause_of;
use crate::ledger::{Checkout, Conn, Due, Ledger, Mark, Spared, Suspicion};

impl<L: AsRef<Activity> + Clone> Ledger<L> {
    /// What is said of a checkout that is out; `None` if it is over.
    pub fn evidence_of(&self, id: CheckoutId, limit: Duration, now: Moment) -> Option<Evidence> {
        let of = Suspicion::fixed(Reason::Orphaned, limit);
        self.checkouts.get(&id).map(|checkout| evidence(&self.conns, id, checkout, &of, now))
    }

    /// The suspect, as it was `seen`, is due, and nothing is done about it for now. Whether it still is that suspect.
    pub(super) fn left_alone(
        &mut self,
        id: CheckoutId,
        seen: Observed,
        because: Suppression,
        now: Moment,
    ) -> bool {
        let Some(Checkout { mark: Mark::Suspect { left_alone, seen: then, .. }, .. }) =
            self.checkouts.get_mut(&id).map(|checkout| &mut **checkout)
        else {
            return false;
        };
        if then.epoch() != seen.epoch() {
            return false;
        }
        if left_alone.is_none_or(|spared| spared.because != because) {
            *left_alone = Some(Spared { because, since: now });
        }
        true
    }

    /// Nothing is done for now about what is `due`. What is to be told, which is said once for each suspicion; and
    /// once more when it would have been done in the end, had that been allowed. `dry_run` is whether nothing may
    /// be done at all.
    pub fn suppressed(
        &mut self,
        due: Due<L>,
        because: Suppression,
        dry_run: bool,
        now: Moment,
    ) -> Option<Event> {
        let suspect = self.left_alone(due.checkout, due.seen, because, now);
        let news = due.left_alone.is_none() || because == Suppression::Observe;
        let Due { reason, evidence, .. } = due;
        let pool = || self.pool.clone();
        (suspect && news).then(|| Event::ReclaimSuppressed {
            pool: pool(),
            reason,
            because,
            dry_run,
            evidence,
        })
    }

    /// Takes the connection of what is `due` from its holder, if the holder has not moved. Whether it is taken.
    ///
    /// The swap and the mark are one step for whoever has the ledger: the checkout cannot end between them.
    pub fn reclaim(&mut self, due: &Due<L>) -> bool {
        let taken = due.handle.as_ref().take(due.seen);
        if taken {
            self.reclaiming(due.checkout);
        }
        taken
    }

    /// A suspicion is over: what is told.
    pub(super) fn resolved(
        &self,
        id: CheckoutId,
        checkout: &Checkout<L>,
        of: &Suspicion,
        resolution: Resolution,
        spared: Option<Spared>,
        now: Moment,
    ) -> Event {
        let mut evidence = evidence(&self.conns, id, checkout, of, now);
        if let (Resolution::Returned, Mark::Suspect { seen, .. }) = (resolution, checkout.mark) {
            // It is not idle any more: what counts is the pause that has ended, if it is known to the instant.
            let latest = pause_of(of.reason).map(|pause| checkout.latest[pause as usize]);
            let known = latest.filter(|latest| !latest.is_zero());
            evidence.idle_seconds = known.unwrap_or(now.since(seen.last_active)).as_secs_f64();
        }
        let left_alone = spared
            .map(|Spared { because, since }| LeftAlone { because, seconds: now.since(since).as_secs_f64() });
        Event::LeakResolved { pool: self.pool.clone(), reason: of.reason, resolution, left_alone, evidence }
    }

    /// The holder has lost the connection (the compare-and-swap went through).
    fn reclaiming(&mut self, id: CheckoutId) {
        if let Some(checkout) = self.checkouts.get_mut(&id)
            && let Mark::Suspect { of, .. } = checkout.mark
        {
            checkout.mark = Mark::Reclaiming(of);
        }
    }

    /// The same because a person said so; what is to be told if nothing was said against it before.
    pub fn reclaiming_by_hand(&mut self, id: CheckoutId, phase: Phase, now: Moment) -> Option<Event> {
        let checkout = self.checkouts.get_mut(&id)?;
        if checkout.mark != Mark::Held {
            self.reclaiming(id);
            return None;
        }
        let reason = match phase {
            Phase::InTransaction => Reason::IdleInTransaction,
            Phase::AwaitsClient => Reason::ProtocolWedge,
            Phase::Held | Phase::InFlight => Reason::IdleSession,
        };
        checkout.mark = Mark::Reclaiming(Suspicion::fixed(reason, Duration::ZERO));
        let evidence = self.evidence_of(id, Duration::ZERO, now)?;
        Some(Event::LeakDetected { pool: self.pool.clone(), reason, evidence })
    }

    /// The connection of a checkout; `None` if it is over.
    pub fn conn_of(&self, id: CheckoutId) -> Option<ConnId> {
        self.checkouts.get(&id).map(|checkout| checkout.conn)
    }

    /// How to reach the holder of a checkout, and the process id of its backend; `None` if it is over.
    pub fn leash_of(&self, id: CheckoutId) -> Option<(L, i32)> {
        let checkout = self.checkouts.get(&id)?;
        Some((checkout.handle.clone(), self.conns.get(&checkout.conn)?.backend_pid))
    }

    /// Why the holder lost the connection, and what is said of it; `None` if it has not.
    pub fn reclaimed_for(&self, id: CheckoutId, now: Moment) -> Option<(Reason, Evidence)> {
        let checkout = self.checkouts.get(&id)?;
        match checkout.mark {
            Mark::Reclaiming(of) => Some((of.reason, evidence(&self.conns, id, checkout, &of, now))),
            Mark::Held | Mark::Suspect { .. } => None,
        }
    }
}

/// What is said of a checkout that is suspected of this.
pub(super) fn evidence<L: AsRef<Activity>>(
    conns: &BTreeMap<ConnId, Conn>,
    id: CheckoutId,
    checkout: &Checkout<L>,
    of: &Suspicion,
    now: Moment,
) -> Evidence {
    let waiting = checkout.waiting();
    Evidence {
        checkout: id,
        holder: Arc::clone(&checkout.holder),
        backend_pid: conns.get(&checkout.conn).map_or(0, |conn| conn.backend_pid),
        age_seconds: now.since(checkout.started).as_secs_f64(),
        idle_seconds: now.since(checkout.handle.as_ref().observe().last_active).as_secs_f64(),
        limit_seconds: of.limit.as_secs_f64(),
        route: checkout.route.clone(),
        statement: checkout.statement.clone(),
        trace: checkout.trace.clone(),
        waits_for: waiting.map(|waiting| waiting.wait),
        blocked_by: waiting.map(|waiting| waiting.blocked_by.clone()).unwrap_or_default(),
        grounds: of.grounds,
    }
}
