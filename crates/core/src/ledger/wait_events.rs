//! What statements in flight wait for, as far as the server was asked.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::activity::{Activity, Phase};
use crate::event::{Reason, Wait};
use crate::ids::{CheckoutId, Moment};
use crate::ledger::{Checkout, Ledger, Mark};
use crate::snapshot::Blocker;

/// What the server said of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What it waits for.
    pub wait: Wait,
    /// The wait event's name.
    pub event: Option<Arc<str>>,
    /// Process ids of the backends that it waits for.
    pub blocked_by: Vec<i32>,
}

/// A statement that the server said is running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its text without its values.
    pub fingerprint: String,
    /// Since a byte last went either way.
    pub for_so_long: Duration,
    /// Whose it is.
    pub app: String,
}

impl<L: AsRef<Activity> + Clone> Ledger<L> {
    /// No more backends are asked about at once.
    const MOST: usize = 100;

    /// The backends of statements that have been in flight, without a byte, for so long.
    pub fn in_flight_for(&self, length: Duration, now: Moment) -> Vec<i32> {
        let slow = self.checkouts.values().filter(|checkout| {
            let seen = checkout.handle.as_ref().observe();
            seen.phase == Phase::InFlight && now.since(seen.last_active) >= length
        });
        slow.filter_map(|checkout| self.pid_of(checkout)).take(Self::MOST).collect()
    }

    fn pid_of(&self, checkout: &Checkout<L>) -> Option<i32> {
        self.conns.get(&checkout.conn).map(|conn| conn.backend_pid)
    }

    /// How far the holders of these backends have come.
    pub fn epochs_of(&self, pids: &[i32]) -> HashMap<i32, u64> {
        let epoch = |checkout: &Checkout<L>| {
            Some((self.pid_of(checkout)?, checkout.handle.as_ref().observe().epoch()))
        };
        self.out().filter_map(epoch).filter(|(pid, _)| pids.contains(pid)).collect()
    }

    /// Notes the server's answers, of those that have not moved since it was asked.
    pub fn waits_for(&mut self, epochs: &HashMap<i32, u64>, answers: &HashMap<i32, Waiting>) {
        for checkout in self.checkouts.values_mut() {
            let Some(pid) = self.conns.get(&checkout.conn).map(|conn| conn.backend_pid) else { continue };
            let Some(answer) = answers.get(&pid) else { continue };
            let epoch = checkout.handle.as_ref().observe().epoch();
            if epochs.get(&pid) == Some(&epoch) {
                checkout.waiting = Some((epoch, answer.clone()));
            }
        }
    }

    /// Statements that the server said are running, and that have been for so long without a byte.
    pub fn running_for(&self, length: Duration, now: Moment) -> Vec<Running> {
        let running = |checkout: &Checkout<L>| {
            let seen = checkout.handle.as_ref().observe();
            let for_so_long = now.since(seen.last_active);
            let runs = matches!(checkout.waiting()?.wait, Wait::Running | Wait::Io) && for_so_long >= length;
            let fingerprint = checkout.handle.as_ref().statement();
            (runs && !fingerprint.is_empty()).then(|| Running {
                fingerprint,
                for_so_long,
                app: checkout.holder.app.clone(),
            })
        };
        self.out().filter_map(running).take(Self::MOST).collect()
    }

    /// Applications with statements that have been reported as slow.
    pub fn slow_apps(&self) -> Vec<String> {
        let mut apps: Vec<_> = self
            .checkouts
            .values()
            .filter(|checkout| checkout.is_slow())
            .map(|checkout| checkout.holder.app.clone())
            .collect();
        apps.sort_unstable();
        apps.dedup();
        apps.truncate(Self::TOP);
        apps
    }

    /// Who has which backend, for the names of blockers.
    pub(super) fn by_pid(&self) -> BTreeMap<i32, (CheckoutId, &Checkout<L>)> {
        self.checkouts
            .iter()
            .filter_map(|(id, checkout)| Some((self.pid_of(checkout)?, (*id, &**checkout))))
            .collect()
    }

    /// Whom a checkout waits for.
    pub(super) fn blockers(
        &self,
        waiting: &Waiting,
        by_pid: &BTreeMap<i32, (CheckoutId, &Checkout<L>)>,
    ) -> Vec<Blocker> {
        let blocker = |pid: &i32| {
            let known = by_pid.get(pid);
            Blocker {
                backend_pid: *pid,
                checkout: known.map(|(id, _)| *id),
                app: known.map(|(_, checkout)| checkout.holder.app.clone()),
                route: known.and_then(|(_, checkout)| checkout.route.clone()),
            }
        };
        waiting.blocked_by.iter().map(blocker).collect()
    }
}

impl<L: AsRef<Activity>> Checkout<L> {
    fn is_slow(&self) -> bool {
        matches!(self.mark, Mark::Suspect { of, .. } if of.reason == Reason::SlowStatement)
    }

    /// What it waits for, if it is still the same wait.
    pub(super) fn waiting(&self) -> Option<&Waiting> {
        let seen = self.handle.as_ref().observe();
        self.waiting.as_ref().filter(|(epoch, _)| *epoch == seen.epoch()).map(|(_, waiting)| waiting)
    }
}

/// How many each holds up. Who waits in a row behind others is held up by whoever is at its head: those others have
/// nothing that it could wait for.
pub(super) fn blocks(waits: &BTreeMap<i32, &[i32]>) -> BTreeMap<i32, usize> {
    let mut blocks = BTreeMap::new();
    for pid in waits.keys() {
        let (mut seen, mut next) = (vec![*pid], vec![*pid]);
        while let Some(waiting) = next.pop() {
            match waits.get(&waiting) {
                Some(blocked_by) if !blocked_by.is_empty() => {
                    for pid in *blocked_by {
                        if !seen.contains(pid) {
                            seen.push(*pid);
                            next.push(*pid);
                        }
                    }
                }
                _ if waiting != *pid => *blocks.entry(waiting).or_default() += 1,
                _ => {}
            }
        }
    }
    blocks
}

/// In words, behind "statement in flight".
pub(super) fn words(waiting: &Waiting, blockers: &[Blocker]) -> String {
    let event = waiting.event.as_deref().unwrap_or("something");
    match waiting.wait {
        Wait::Running => "; it is running".to_owned(),
        Wait::Io => format!("; it reads or writes ({event})"),
        Wait::Client => format!("; the server waits for the client ({event})"),
        Wait::Other => format!("; it waits for {event}"),
        Wait::Lock => {
            let names: Vec<_> = blockers.iter().map(name).collect();
            format!("; it waits for a lock ({event}) that {} has", names.join(", "))
        }
    }
}

fn name(blocker: &Blocker) -> String {
    match (&blocker.checkout, &blocker.app, &blocker.route) {
        (Some(id), Some(app), Some(route)) => format!("checkout {id} of {app} {route}"),
        (Some(id), Some(app), None) => format!("checkout {id} of {app}"),
        _ => format!("backend {}, which does not come through pgleash,", blocker.backend_pid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_in_a_row_is_held_up_by_its_head() {
        let row = [(2, [1].as_slice()), (3, &[2]), (4, &[2, 3]), (9, &[]), (7, &[8]), (8, &[7])];
        let blocks = blocks(&row.into_iter().collect());
        assert_eq!(blocks, BTreeMap::from([(1, 3)]), "a deadlock has no head");
    }
}
