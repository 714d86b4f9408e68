//! What is done about a checkout that is due: one decision, pure.
//!
//! The judge says who is due; this says what may be done about it now. The watchdog gathers the [`Facts`], asks
//! [`Enforcement::decide`], and carries out the [`Act`]. Observing comes to the same verdicts as reclaiming, budget
//! included, so that what it tells is what would have been done.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use crate::activity::Activity;
use crate::event::{Reason, Suppression};
use crate::ids::Moment;
use crate::ledger::Due;
use crate::policy::{Action, Policy};

/// What is known about a checkout that is due, at the moment of the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Why it is due.
    pub reason: Reason,
    /// Why nothing was done about it when it was due before.
    pub left_alone: Option<Suppression>,
    /// The holder's own task has looked at its sockets since it was seen, and there was nothing to read.
    pub silent: bool,
    /// The holder has moved since it was seen.
    pub moved: bool,
    /// Enforcement is over: draining is not leaking.
    pub draining: bool,
    /// Whether the server says that it waits for its client; `None` if it was not asked.
    pub confirmed: Option<bool>,
}

impl Facts {
    /// What the holder of `due` shows now. A holder that has not looked yet is asked to, and must be woken then;
    /// before the server was asked it has looked.
    pub fn of<L: AsRef<Activity>>(due: &Due<L>, draining: bool, confirmed: Option<bool>) -> Self {
        let activity = due.handle.as_ref();
        Self {
            reason: due.reason,
            left_alone: due.left_alone,
            silent: confirmed.is_some() || activity.confirm(due.seen),
            moved: activity.observe().epoch() != due.seen.epoch(),
            draining,
            confirmed,
        }
    }
}

/// What is to be done about a checkout that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing, and nothing is said: its verdict has been told.
    Nothing,
    /// Wake the holder's own task, which looks at its sockets.
    AskHolder,
    /// Ask the server whether it waits for this client, and decide again with the answer.
    AskServer,
    /// Take the connection from its holder by one swap. [`Enforcement::reclaimed`] follows if that succeeds; if
    /// it fails, the holder has moved.
    Reclaim,
    /// Do nothing for now, for this reason.
    LeaveAlone(Suppression),
}

/// The reclaims of one pool that count against its budget.
#[derive(Debug, Default)]
pub struct Enforcement {
    /// The moments of reclaims, and of those that were only observed, oldest first.
    reclaims: VecDeque<Moment>,
}

impl Enforcement {
    /// What is to be done about the checkout that these are the facts of. A reclaim that is only observed is
    /// charged to the budget here, one that is to be done by [`Enforcement::reclaimed`].
    pub fn decide(&mut self, facts: &Facts, policy: &Policy, now: Moment) -> Act {
        match facts.confirmed {
            None => before_the_server(facts, policy),
            Some(false) => Some(Act::LeaveAlone(Suppression::Unconfirmed)),
            Some(true) => None,
        }
        .unwrap_or_else(|| self.within_budget(facts, policy, now))
    }

    /// The swap went through: the reclaim counts from `now` on.
    pub fn reclaimed(&mut self, now: Moment) {
        self.reclaims.push_back(now);
    }

    fn within_budget(&mut self, facts: &Facts, policy: &Policy, now: Moment) -> Act {
        while self.reclaims.front().is_some_and(|at| now.since(*at) >= policy.budget.per) {
            self.reclaims.pop_front();
        }
        if self.reclaims.len() >= policy.budget.allowance(policy.size) {
            return Act::LeaveAlone(Suppression::Budget);
        }
        if facts.moved {
            // A swap would fail.
            return Act::LeaveAlone(Suppression::Moved);
        }
        match policy.action {
            Action::Observe => {
                self.reclaimed(now);
                Act::LeaveAlone(Suppression::Observe)
            }
            Action::Reclaim => Act::Reclaim,
        }
    }
}

/// What is to be done before budget and server are asked; `None` if they have the word.
fn before_the_server(facts: &Facts, policy: &Policy) -> Option<Act> {
    if !facts.silent {
        // What was published is old if the data path stalls. The holder's own task has the last word: it is woken,
        // looks at its sockets, and wakes the watchdog. While it does not, nothing is done.
        Some(Act::AskHolder)
    } else if facts.draining {
        // What it would have come to before counts.
        Some(facts.left_alone.map_or(Act::LeaveAlone(Suppression::Draining), |_| Act::Nothing))
    } else if policy.action == Action::Observe && facts.left_alone == Some(Suppression::Observe) {
        Some(Act::Nothing)
    } else if facts.reason == Reason::ProtocolWedge {
        // A wedge is certain only when the server says that it waits for its client.
        Some(Act::AskServer)
    } else {
        None
    }
}
