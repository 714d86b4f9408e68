//! The figures of both runs, as `--json` writes them. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use pgleash_core::PoolMode;
use serde::Serialize;

use crate::drill::app::Journal;
use crate::drill::chart;
use crate::drill::chart::Point;
use crate::drill::expected::{Audit, Leaks, Verdict};
use crate::drill::scenario::{MINUTES, Phase, Scenario};
use crate::drill::stats::Spread;
use crate::drill::workload::Kind;

/// Points of the utilization curve for each scenario minute.
const POINTS_PER_MINUTE: f64 = 10.0;

/// A pool is exhausted when it was so at this many looks in a row, which is about half a second: a shorter
/// queue is a burst.
const EXHAUSTED_LOOKS: usize = 5;

/// The whole drill.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was played.
    pub setting: Setting,
    /// Without and with the watchdog.
    pub runs: [RunReport; 2],
    /// Whether the watchdog did its work.
    pub verdict: Verdict,
}

/// What was played, and with which limits.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// Which workload.
    pub scenario: Kind,
    /// Draws everything.
    pub seed: u64,
    /// How pgleash lends.
    pub mode: PoolMode,
    /// The server, in words.
    pub server: String,
    /// Real minutes of a run; the scenario has fifteen.
    pub minutes: f64,
    /// How many times faster than life.
    pub compression: f64,
    /// Payments a second at the baseline.
    pub rate: f64,
    /// Server connections in the pool.
    pub pool_size: usize,
    /// The share of checkouts that leak after the deploy.
    pub leak_share: f64,
    /// Rows that a payment's lookup reads once its index is gone.
    pub history_rows: i64,
    /// pgleash's `leaks.idle_in_transaction`, seconds; 30 in the scenario.
    pub idle_in_transaction_seconds: f64,
    /// pgleash's `leaks.idle_session`, seconds; 60 in the scenario.
    pub idle_session_seconds: f64,
    /// The window of pgleash's `leaks.budget` of 25 %, seconds; 60 in the scenario.
    pub budget_window_seconds: f64,
    /// pgleash's `pool.wait_timeout`, seconds; not compressed.
    pub wait_timeout_seconds: f64,
    /// The longest that a healthy payment is silent in mid-transaction, seconds.
    pub longest_think_seconds: f64,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// `without pgleash's watchdog` or `with` it.
    pub name: &'static str,
    /// `leaks.action`.
    pub action: &'static str,
    /// Payments.
    pub payments: Payments,
    /// Use of the pool.
    pub utilization: Utilization,
    /// Leaks, and who was hit.
    pub leaks: Leaks,
    /// The database's books.
    pub audit: Audit,
    /// What others than the payments service did, by who it was and how it ended.
    pub others: BTreeMap<String, u64>,
    /// How long DROP INDEX CONCURRENTLY took, seconds; `null` if it hung until the run was over, or none is dropped.
    pub index_drop_seconds: Option<f64>,
    /// The latest that the drill itself was with a payment, seconds.
    pub generator_lag_seconds: f64,
}

/// Payments of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Payments {
    /// Customers who arrived.
    pub tried: u64,
    /// Acknowledged.
    pub paid: u64,
    /// Failed, the bug's own victims apart.
    pub failed: u64,
    /// Failed, by SQLSTATE or in words.
    pub failures: BTreeMap<String, u64>,
    /// Forgotten in mid-transaction by the bug itself.
    pub lost_to_bug: u64,
    /// From arrival to answer or failure.
    pub latency: Option<Spread>,
    /// The same from the beginning of the campaign on.
    pub latency_under_campaign: Option<Spread>,
}

/// Use of the pool in one run.
#[derive(Clone, Debug, Serialize)]
pub struct Utilization {
    /// Highest share of the pool in use.
    pub peak_ratio: f64,
    /// Mean share of the pool in use in scenario minute 12.
    pub minute_12_ratio: Option<f64>,
    /// The scenario minute from which on every connection was out and somebody waited, for half a second at
    /// least.
    pub exhausted_at_minute: Option<f64>,
    /// Most clients that waited at once.
    pub most_waiting: usize,
    /// The curve.
    pub series: Vec<Point>,
}

/// One look at the pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Since the beginning of the run.
    pub at: Duration,
    /// Share in use.
    pub utilization: f64,
    /// Highest share in use within the last minute.
    pub peak: f64,
    /// Clients waiting.
    pub waiting: usize,
}

impl Setting {
    /// The setting of a scenario on a server.
    pub fn of(scenario: &Scenario, server: String, history_rows: i64) -> Self {
        let limits = scenario.limits();
        Self {
            scenario: scenario.kind,
            seed: scenario.seed,
            mode: scenario.mode,
            server,
            minutes: scenario.minutes,
            compression: scenario.compression(),
            rate: scenario.rate,
            pool_size: scenario.pool_size(),
            leak_share: scenario.leak_share(),
            history_rows,
            idle_in_transaction_seconds: limits.idle_in_transaction.as_secs_f64(),
            idle_session_seconds: limits.idle_session.as_secs_f64(),
            budget_window_seconds: limits.budget_window.as_secs_f64(),
            wait_timeout_seconds: limits.wait_timeout.as_secs_f64(),
            longest_think_seconds: scenario.longest_think().as_secs_f64(),
        }
    }
}

impl Sample {
    /// Every connection is out, and somebody waits.
    fn exhausted(&self) -> bool {
        self.utilization > 0.999 && self.waiting > 0
    }
}

impl Payments {
    /// Sums a journal up.
    pub fn of(journal: &Journal, scenario: &Scenario) -> Self {
        let (paid, lost_to_bug, failed) = journal.counts();
        let campaign = scenario.moment(Phase::Spike.begins());
        let under_campaign =
            journal.payments.iter().filter(|(at, _, _)| scenario.kind.has_campaign() && *at >= campaign);
        Self {
            tried: paid + lost_to_bug + failed,
            paid,
            failed,
            failures: journal.failures(),
            lost_to_bug,
            latency: Spread::of(journal.payments.iter().map(|(_, took, _)| *took)),
            latency_under_campaign: Spread::of(under_campaign.map(|(_, took, _)| *took)),
        }
    }
}

impl Utilization {
    /// Sums the samples of a run up. `refused` is when a client was first told that there is no connection
    /// for it: that is exhaustion too, however the looks fell.
    pub fn of(samples: &[Sample], refused: Option<Duration>, scenario: &Scenario) -> Self {
        let minute = |sample: &Sample| scenario.minute(sample.at);
        let samples: Vec<Sample> =
            samples.iter().filter(|sample| minute(sample) < MINUTES).copied().collect();
        let queued = samples.windows(EXHAUSTED_LOOKS).find(|looks| looks.iter().all(Sample::exhausted));
        let exhausted = queued.map(|looks| looks[0].at).into_iter().chain(refused).min();
        let series = chart::condense(&samples, scenario, POINTS_PER_MINUTE);
        let around_12 = series.iter().filter(|point| (11.75..12.25).contains(&point.minute));
        Self {
            peak_ratio: samples.iter().map(|sample| sample.peak.max(sample.utilization)).fold(0.0, f64::max),
            minute_12_ratio: mean(around_12.map(|point| point.mean)),
            exhausted_at_minute: exhausted.map(|at| scenario.minute(at)),
            most_waiting: samples.iter().map(|sample| sample.waiting).max().unwrap_or(0),
            series,
        }
    }
}

/// The mean; `None` of nothing.
pub fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    (count > 0.0).then(|| sum / count)
}

/// A report of a drill that failed, for the tests of what shows it.
#[cfg(test)]
#[allow(clippy::cast_precision_loss, reason = "small numbers")]
pub(super) fn sample_report() -> Report {
    use pgleash_core::Action;

    use crate::drill::app::{Cut, Outcome, Planted};
    use crate::drill::expected::{Named, judge};
    use crate::drill::scenario::Leak;
    use crate::drill::schema::Books;

    let scenario =
        Scenario { seed: 7, minutes: 1.0, rate: 40.0, mode: PoolMode::Session, kind: Kind::Incident };
    let second = Duration::from_secs;
    let named = Named { app: "payments@1.9.0".to_owned(), route: "POST /refund".to_owned() };
    let run = |name, action, slope: f64, failures: u64| {
        let mut journal = Journal::default();
        let outcome = |n: u64| {
            if n < failures { Outcome::Failed("53300 pool exhausted".into()) } else { Outcome::Paid }
        };
        journal.payments = (0..2000).map(|n| (second(50), Duration::from_millis(n), outcome(n))).collect();
        journal.planted = vec![
            Planted { session: 5, leak: Leak::MidTransaction, at: second(10) },
            Planted { session: 6, leak: Leak::AfterCommit, at: second(20) },
        ];
        let event =
            |at, text: &str| (Duration::from_millis(at), serde_json::from_str(text).unwrap_or_default());
        let mut events = vec![
            event(11_010, r#"{"event":"leak_detected","session":5,"reason":"idle_in_transaction"}"#),
            event(22_020, r#"{"event":"leak_detected","session":6,"reason":"idle_session"}"#),
        ];
        if action == Action::Reclaim {
            let text = r#"{"event":"leak_resolved","session":5,"reason":"idle_in_transaction","resolution":"reclaimed"}"#;
            events.push(event(12_020, text));
            journal.cuts.push(Cut { session: 77, code: "25P03".into(), at: second(30) });
        }
        let samples: Vec<Sample> = (0..600_u32)
            .map(|tenth| {
                let utilization = (0.2 + slope * f64::from(tenth) / 600.0).min(1.0);
                let waiting = if utilization >= 1.0 { 9 } else { 0 };
                let at = Duration::from_millis(u64::from(tenth) * 100);
                Sample { at, utilization, peak: utilization, waiting }
            })
            .collect();
        let (acknowledged, _, _) = journal.counts();
        RunReport {
            name,
            action: if action == Action::Reclaim { "reclaim" } else { "observe" },
            payments: Payments::of(&journal, &scenario),
            utilization: Utilization::of(&samples, None, &scenario),
            leaks: Leaks {
                named_first: Some(named.clone()),
                ..judge(action, &scenario.limits(), &journal.planted, &journal.cuts, &events)
            },
            audit: Audit {
                books: Books { payments: acknowledged, sums_agree: true },
                acknowledged,
                in_doubt: 0,
            },
            others: BTreeMap::new(),
            index_drop_seconds: (action == Action::Reclaim).then_some(1.25),
            generator_lag_seconds: 0.01,
        }
    };
    let runs = [
        run("without the watchdog", Action::Observe, 0.9, 321),
        run("with the watchdog", Action::Reclaim, 0.2, 0),
    ];
    let mut verdict = Verdict::default();
    runs.iter().for_each(|run| verdict.weigh(run.name, scenario.kind, &run.leaks, &run.audit));
    Report { setting: Setting::of(&scenario, "PostgreSQL 17.1".to_owned(), 74_321), runs, verdict }
}
