//! What is said of a checkout while it is out: what work it does, on which terms, and how it pauses.

use std::sync::Arc;
use std::time::Duration;

use crate::activity::{Activity, Pause};
use crate::event::{Event, Evidence, Reason, Widening};
use crate::history::History;
use crate::ids::{CheckoutId, Moment, PoolKey};
use crate::ledger::{Checkout, Ledger, Suspicion};
use crate::pin::Pin;
use crate::policy::Policy;

impl<L: AsRef<Activity> + Clone> Ledger<L> {
    /// The checkout keeps its connection between transactions, for this reason.
    pub fn pinned(&mut self, id: CheckoutId, reason: Pin, now: Moment) {
        if let Some(checkout) = self.checkouts.get_mut(&id) {
            // `pool.mode` is no statement's doing.
            let statement =
                if reason == Pin::SessionMode { String::new() } else { checkout.handle.as_ref().statement() };
            checkout.pinned = Some((reason, now, statement.into()));
        }
    }

    /// The application has said what work the checkout does.
    pub fn routed(&mut self, id: CheckoutId, route: &Arc<str>, now: Moment) {
        let Some(checkout) = self.checkouts.get_mut(&id) else { return };
        if checkout.route.as_ref() == Some(route) {
            return;
        }
        checkout.tell_pauses(&mut self.history, now);
        self.history.ended(checkout.group, now);
        checkout.group = self.history.began(&checkout.holder.app, Some(route), now);
        checkout.route = Some(Arc::clone(route));
    }

    /// The checkout is granted pauses of this length, from now on.
    pub fn declared(&mut self, id: CheckoutId, length: Duration) {
        if let Some(checkout) = self.checkouts.get_mut(&id) {
            checkout.declared = Some(length);
        }
    }

    /// A holder came back so long `after` its connection was taken: such pauses are usual, then. What is to be
    /// told about that.
    pub fn regretted(
        &mut self,
        evidence: &Evidence,
        reason: Reason,
        after: Duration,
        now: Moment,
    ) -> Option<Event> {
        let pause = pause_of(reason)?;
        let length = Duration::try_from_secs_f64(evidence.idle_seconds).ok()? + after;
        let group = self.history.began(&evidence.holder.app, evidence.route.as_ref(), now);
        self.history.paused(group, pause, length, now.back(length), now);
        self.history.ended(group, now);
        let to = learned(length).as_secs_f64();
        (evidence.grounds.is_some() && to > evidence.limit_seconds).then(|| Event::LimitWidened {
            pool: self.pool.clone(),
            app: evidence.holder.app.clone(),
            route: evidence.route.clone(),
            limit: reason,
            because: Widening::Regretted,
            from_seconds: evidence.limit_seconds,
            to_seconds: to,
        })
    }
}

impl<L: AsRef<Activity>> Checkout<L> {
    /// Puts the pauses that its client has ended since the last time into the history.
    pub(super) fn tell_pauses(&mut self, history: &mut History, now: Moment) {
        for pause in Pause::ALL {
            let Some(length) = self.handle.as_ref().longest_pause(pause) else { continue };
            let worst = &mut self.worst[pause as usize];
            *worst = length.max(*worst);
            self.latest[pause as usize] = length;
            // It ended after it was looked at last, and so began no earlier than its length before that.
            let began = self.heard.back(length).max(self.started);
            history.paused(self.group, pause, length, began, now);
        }
        self.heard = now;
    }
}

/// A suspicion that was founded on what is usual has proved wrong: what is to be told, if its limit is wider now.
pub(super) fn widened<L>(
    pool: &PoolKey,
    history: &History,
    checkout: &Checkout<L>,
    of: &Suspicion,
    now: Moment,
) -> Option<Event> {
    of.grounds?;
    let pause = pause_of(of.reason)?;
    let to = learned(history.habit(checkout.group, pause, now).worst);
    (to > of.limit).then(|| Event::LimitWidened {
        pool: pool.clone(),
        app: checkout.holder.app.clone(),
        route: checkout.route.clone(),
        limit: of.reason,
        because: Widening::Returned,
        from_seconds: of.limit.as_secs_f64(),
        to_seconds: to.as_secs_f64(),
    })
}

/// The limit that follows from a pause, without regard to floor and ceiling.
fn learned(worst: Duration) -> Duration {
    worst * Policy::WORST_TIMES
}

pub(super) const fn pause_of(reason: Reason) -> Option<Pause> {
    match reason {
        Reason::IdleInTransaction => Some(Pause::InTransaction),
        Reason::IdleSession => Some(Pause::Held),
        Reason::DirtyReturn
        | Reason::ProtocolWedge
        | Reason::Orphaned
        | Reason::Overdue
        | Reason::SlowStatement => None,
    }
}
