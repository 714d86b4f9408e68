//! What the books show, in words and numbers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use crate::activity::{Activity, Pause, Phase};
use crate::event::TopHolder;
use crate::ids::{CheckoutId, Moment};
use crate::judge;
use crate::ledger::sweep::{Habits, Idlers, idlers_of, turnover};
use crate::ledger::{Checkout, ConnPlace, Ledger, Mark, wait_events};
use crate::pin::Pin;
use crate::policy::Policy;
use crate::snapshot::{CheckoutSnapshot, ConnCounts, ConnState, Limits, PoolSnapshot};

impl<L: AsRef<Activity> + Clone> Ledger<L> {
    /// How many holders are named.
    pub const TOP: usize = 3;

    /// One sentence on who has the pool, for the client that got nothing.
    pub fn diagnosis(&self, policy: &Policy, now: Moment) -> String {
        let oldest = self.checkouts.first_key_value().map(|(_, checkout)| now.since(checkout.started));
        let mut told = format!(
            "{} of {} server connections of {} in use, {} of them stale, oldest checkout {:.1} s",
            self.in_use(),
            policy.size,
            self.pool,
            self.stale(),
            oldest.unwrap_or_default().as_secs_f64(),
        );
        let mut tops = self.top_holders(now);
        if tops.is_empty() {
            // Nothing is stale yet: then the one who pauses most.
            tops = self.tops(|checkout| Pause::of(checkout.handle.as_ref().observe().phase).is_some(), now);
            tops.truncate(1);
        }
        for (n, top) in tops.into_iter().enumerate() {
            let app = if top.app.is_empty() { "(no application_name)" } else { &top.app };
            let route = top.route.map(|route| format!(" {route}")).unwrap_or_default();
            let lead = if n == 0 { ", most idle: " } else { ", " };
            let _ = write!(told, "{lead}{app}{route} ({} for {:.1} s in all)", top.stale, top.stale_seconds);
        }
        told.push_str(&self.pins());
        let _ = write!(told, ", {} clients waiting", self.waits.len());
        told
    }

    /// How many connections their clients keep between transactions, for which reasons, and whose the most are.
    fn pins(&self) -> String {
        let mut reasons: BTreeMap<Pin, (usize, BTreeMap<&str, usize>)> = BTreeMap::new();
        for checkout in self.checkouts.values() {
            // In session mode every client keeps its connection, and `in use` says so.
            if let Some((pin, ..)) = checkout.pinned.as_ref().filter(|(pin, ..)| *pin != Pin::SessionMode) {
                let (count, apps) = reasons.entry(*pin).or_default();
                *count += 1;
                *apps.entry(&checkout.holder.app).or_default() += 1;
            }
        }
        let mut told = String::new();
        for (pin, (count, apps)) in reasons {
            let app = apps.iter().max_by_key(|(_, count)| **count).map_or("", |(app, _)| app);
            let app = if app.is_empty() { "(no application_name)" } else { app };
            let _ = write!(told, ", {count} pinned by {pin} (app {app})");
        }
        told
    }

    /// Who has the stale checkouts, by the time they have been idle for, at most [`Self::TOP`] of them: the cause,
    /// where those that merely wait or work are its victims.
    pub fn top_holders(&self, now: Moment) -> Vec<TopHolder> {
        self.tops(Checkout::is_stale, now)
    }

    fn tops(&self, counts: impl Fn(&Checkout<L>) -> bool, now: Moment) -> Vec<TopHolder> {
        let mut tops = BTreeMap::new();
        for checkout in self.checkouts.values().filter(|checkout| counts(checkout)) {
            let idle = now.since(checkout.handle.as_ref().observe().last_active).as_secs_f64();
            let top: &mut (usize, f64) =
                tops.entry((&checkout.holder.app, checkout.route.as_ref())).or_default();
            *top = (top.0 + 1, top.1 + idle);
        }
        let mut tops: Vec<_> = tops
            .into_iter()
            .map(|((app, route), (stale, stale_seconds))| TopHolder {
                app: app.clone(),
                route: route.cloned(),
                stale,
                stale_seconds,
            })
            .collect();
        tops.sort_by(|a, b| b.stale_seconds.total_cmp(&a.stale_seconds));
        tops.truncate(Self::TOP);
        tops
    }

    /// Everything there is to show.
    #[allow(clippy::cast_precision_loss, reason = "pool sizes are small")]
    pub fn snapshot(&self, policy: &Policy, now: Moment) -> PoolSnapshot {
        let size = policy.size.max(1) as f64;
        let age = |moment: Moment| now.since(moment).as_secs_f64();
        let mut connections = ConnCounts {
            idle: self.counts[ConnPlace::Idle.kind()],
            recycling: self.counts[ConnPlace::Recycling.kind()],
            ..ConnCounts::default()
        };
        let idlers = idlers_of(self.out(), &self.history);
        let mut habits = Habits::new(&self.history, policy, &self.pool, now);
        let by_pid = self.by_pid();
        let mut holders: Vec<_> = self
            .checkouts
            .iter()
            .map(|(id, checkout)| self.show(*id, checkout, &idlers, &mut habits, policy, now))
            .collect();
        self.tell_waits(&mut holders, &by_pid);
        // A connection that died under its holder is no longer in any state.
        let live = self.checkouts.values().map(|checkout| self.conns.contains_key(&checkout.conn));
        for (holder, _) in holders.iter().zip(live).filter(|(_, live)| *live) {
            match holder.phase {
                ConnState::IdleInTransaction => connections.idle_in_transaction += 1,
                ConnState::Held => connections.held += 1,
                ConnState::Active | ConnState::Idle | ConnState::Recycling => connections.active += 1,
            }
        }
        let suspects = |reason| holders.iter().filter(|holder| holder.suspect == Some(reason)).count();
        let overdue = self
            .conns
            .values()
            .filter(|conn| matches!(conn.place, ConnPlace::Lent(_)) && conn.expires <= now)
            .count();
        PoolSnapshot {
            pool: self.pool.clone(),
            size: policy.size,
            connections,
            utilization_ratio: self.in_use() as f64 / size,
            utilization_peak_ratio: self.peaks.highest(now).max(self.in_use()) as f64 / size,
            waiting: self.waits.len(),
            oldest_wait_seconds: self.waits.first_key_value().map_or(0.0, |(_, since)| age(*since)),
            oldest_checkout_seconds: holders.first().map_or(0.0, |holder| holder.age_seconds),
            oldest_connection_seconds: self.conns.values().map(|conn| age(conn.opened)).fold(0.0, f64::max),
            stale: judge::JUDGED.iter().map(|reason| (*reason, suspects(*reason))).collect(),
            overdue,
            top_holders: self.top_holders(now),
            stale_growth_per_second: self.forecast.growth_per_second(),
            exhaustion_forecast_seconds: self.forecast.seconds_to_exhaustion(policy.size),
            limits: Limits {
                idle_in_transaction: policy.idle_in_transaction.as_secs_f64(),
                idle_session: policy.idle_session.as_secs_f64(),
                max_lifetime: policy.max_lifetime.as_secs_f64(),
                idle_timeout: policy.idle_timeout.as_secs_f64(),
                wait_timeout: policy.wait_timeout.as_secs_f64(),
            },
            opened: self.opened,
            closed: self.closed,
            checkouts: self.started,
            checkins: self.ended,
            holders,
        }
    }

    fn show(
        &self,
        id: CheckoutId,
        checkout: &Checkout<L>,
        idlers: &Idlers,
        habits: &mut Habits<'_>,
        policy: &Policy,
        now: Moment,
    ) -> CheckoutSnapshot {
        let mut case = checkout.case(habits, self.is_pressed(policy));
        let seen = case.seen;
        let conn = self.conns.get(&checkout.conn);
        if case.asks_for_turnover(policy, now) {
            case.turnover = turnover(&case, &self.history, idlers);
        }
        let verdict = judge::judge(&case, policy, now);
        let (why, next) = match checkout.mark {
            Mark::Reclaiming(of) => (format!("taken back: {}", of.reason), "being recycled".to_owned()),
            Mark::Held => judge::explain(&case, &verdict, policy, None, now),
            Mark::Suspect { left_alone, .. } => {
                let because = left_alone.map(|spared| spared.because);
                judge::explain(&case, &verdict, policy, because, now)
            }
        };
        let suspect = checkout.mark != Mark::Held;
        CheckoutSnapshot {
            id,
            holder: Arc::clone(&checkout.holder),
            route: checkout.route.clone(),
            waits_for: None,
            blocked_by: Vec::new(),
            blocks: 0,
            statement: suspect.then(|| checkout.statement.clone()).flatten(),
            trace: suspect.then(|| checkout.trace.clone()).flatten(),
            limit_seconds: verdict.limit.as_secs_f64(),
            grounds: verdict.grounds,
            phase: match seen.phase {
                Phase::InFlight | Phase::AwaitsClient => ConnState::Active,
                Phase::InTransaction => ConnState::IdleInTransaction,
                Phase::Held => ConnState::Held,
            },
            age_seconds: now.since(checkout.started).as_secs_f64(),
            idle_seconds: now.since(seen.last_active).as_secs_f64(),
            waited_seconds: checkout.waited.as_secs_f64(),
            backend_pid: conn.map_or(0, |conn| conn.backend_pid),
            connection_age_seconds: conn.map_or(0.0, |conn| now.since(conn.opened).as_secs_f64()),
            connection_uses: conn.map_or(0, |conn| conn.uses),
            pinned: checkout.pinned.as_ref().map(|(pin, ..)| *pin),
            pinned_seconds: checkout.pinned.as_ref().map(|(_, since, _)| now.since(*since).as_secs_f64()),
            pinned_by: checkout.pinned.as_ref().map(|(.., by)| Arc::clone(by)).filter(|by| !by.is_empty()),
            overdue: conn.is_some_and(|conn| conn.expires <= now),
            suspect: match checkout.mark {
                Mark::Held => None,
                Mark::Suspect { of, .. } | Mark::Reclaiming(of) => Some(of.reason),
            },
            why,
            next,
        }
    }

    /// What statements in flight wait for, and who holds others up.
    fn tell_waits(
        &self,
        holders: &mut [CheckoutSnapshot],
        by_pid: &BTreeMap<i32, (CheckoutId, &Checkout<L>)>,
    ) {
        let mut waits: BTreeMap<i32, &[i32]> = BTreeMap::new();
        for (holder, checkout) in holders.iter_mut().zip(self.checkouts.values()) {
            let Some(waiting) = checkout.waiting().filter(|_| holder.phase == ConnState::Active) else {
                continue;
            };
            holder.waits_for = Some(waiting.wait);
            holder.blocked_by = self.blockers(waiting, by_pid);
            holder.why.push_str(&wait_events::words(waiting, &holder.blocked_by));
            waits.insert(holder.backend_pid, &waiting.blocked_by);
        }
        let blocks = wait_events::blocks(&waits);
        for holder in holders {
            holder.blocks = blocks.get(&holder.backend_pid).copied().unwrap_or(0);
            if holder.blocks > 0 {
                let others = if holder.blocks == 1 { "another waits" } else { "others wait" };
                let count = if holder.blocks == 1 { String::new() } else { format!("{} ", holder.blocks) };
                let _ = write!(holder.why, "; {count}{others} for its locks");
            }
        }
    }
}
