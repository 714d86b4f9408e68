//! Event families: one match from fact to number.
//!
//! Counters go through the `metrics` facade into a recorder of our own. Durations are histograms of
//! the `prometheus` crate: the facade's exporter keeps every sample until somebody reads them (memory
//! without bound), and now and then loses one that is recorded while they are read.
//!
//! Handles are made once for each pool. A hot event (a checkout begins or ends) then costs a look
//! through the pools and a few atomic additions: no lock, no formatting, no allocation.

use std::sync::OnceLock;

use metrics::{Counter, SharedString, counter, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use parking_lot::Mutex;
use pgleash_core::{
    Channel, CloseReason, Delivery, Event, PoolKey, Reason, RecycleAction, RecycleOutcome, Refusal,
    Resolution, Suppression,
};
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, HistogramVec};

use crate::metrics::labels::{OTHER, POOLS_MAX, pool_label};

const CHECKOUTS: &str = "pgleash_checkouts_total";
const CHECKINS: &str = "pgleash_checkins_total";
const TIMEOUTS: &str = "pgleash_checkout_timeouts_total";
const OPENED: &str = "pgleash_connections_opened_total";
const CLOSED: &str = "pgleash_connections_closed_total";
const UPSTREAM_FAILURES: &str = "pgleash_upstream_failures_total";
const DETECTED: &str = "pgleash_leaks_detected_total";
const RESOLVED: &str = "pgleash_leaks_resolved_total";
const RECYCLES: &str = "pgleash_recycles_total";
const SUPPRESSED: &str = "pgleash_reclaims_suppressed_total";
const DRY_RUN: &str = "pgleash_dry_run_outcomes_total";
const REGRETTED: &str = "pgleash_reclaims_regretted_total";
const REFUSED: &str = "pgleash_clients_refused_total";
const NOTIFICATIONS: &str = "pgleash_notifications_total";
const FOLDED: &str = "pgleash_label_values_folded_total";
const DROPPED: &str = "pgleash_log_lines_dropped_total";

const COUNTERS: [(&str, &str); 16] = [
    (CHECKOUTS, "Checkouts that began: a client was lent a server connection."),
    (CHECKINS, "Checkouts that ended: a server connection was given back, taken back or lost."),
    (TIMEOUTS, "Clients that waited pool.wait_timeout for a server connection in vain and were told 53300."),
    (OPENED, "Server connections opened."),
    (CLOSED, "Server connections closed, by reason. Opened minus closed are live."),
    (
        UPSTREAM_FAILURES,
        "Attempts to open a server connection that the upstream server did not answer or refused.",
    ),
    (DETECTED, "Checkouts that became suspect, and certain leaks that were met, by reason."),
    (RESOLVED, "Detected leaks that are over, by resolution; returned means that the suspicion was wrong."),
    (
        RECYCLES,
        "Server connections that did not come home clean and were dealt with, by action and by what came of it.",
    ),
    (SUPPRESSED, "Suspects that were due and were left alone, by reason."),
    (
        DRY_RUN,
        "Suspects that would have been taken if leaks.action were reclaim, by what became of them; returned means that it would have been wrong.",
    ),
    (REGRETTED, "Holders that came back after their connection was taken: the reclaim was wrong."),
    (REFUSED, "Clients turned away or cut off, by reason."),
    (NOTIFICATIONS, "Notifications to receivers elsewhere, by channel and by what became of them."),
    (
        FOLDED,
        "Label values beyond the bound that were shown as other: a pool once when it opens, an app at each scrape.",
    ),
    (DROPPED, "Event log lines lost because the log was blocked or could not be written."),
];

/// Upper bounds of the buckets, seconds.
const WAIT_BOUNDS: [f64; 16] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const HOLD_BOUNDS: [f64; 19] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    900.0, 3600.0,
];
const LIFETIME_BOUNDS: [f64; 14] = [
    1.0, 10.0, 60.0, 300.0, 600.0, 900.0, 1200.0, 1500.0, 1620.0, 1800.0, 2100.0, 3600.0, 14_400.0, 86_400.0,
];

/// Every event family, with the recorder they are kept in.
pub(crate) struct Counters {
    recorder: PrometheusRecorder,
    durations: Durations,
    pools: Pools,
    refused: Vec<Counter>,
    /// By [`Channel`], then by [`Delivery`].
    notifications: Vec<Vec<Counter>>,
    folded_pools: Counter,
    folded_apps: Counter,
    dropped: Counter,
}

impl Counters {
    /// All families are described; those without a `pool` label stand at 0.
    pub(crate) fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let (refused, notifications, folded_pools, folded_apps, dropped) =
            with_local_recorder(&recorder, || {
                for (name, help) in COUNTERS {
                    metrics::describe_counter!(name, help);
                }
                let refused = Refusal::ALL
                    .iter()
                    .map(|reason| counter!(REFUSED, "reason" => reason.as_str()))
                    .collect();
                (
                    refused,
                    Channel::ALL.iter().map(|channel| deliveries(*channel)).collect(),
                    counter!(FOLDED, "label" => "pool"),
                    counter!(FOLDED, "label" => "app"),
                    counter!(DROPPED),
                )
            });
        let (durations, pools) = (Durations::new(), Pools::new());
        Self { recorder, durations, pools, refused, notifications, folded_pools, folded_apps, dropped }
    }

    /// The counters, in the text format.
    pub(crate) fn counters(&self) -> String {
        self.recorder.handle().render()
    }

    /// The histograms.
    pub(crate) fn durations(&self) -> Vec<MetricFamily> {
        let Durations { wait, hold, lifetime } = &self.durations;
        [wait, hold, lifetime].into_iter().flat_map(Collector::collect).collect()
    }

    /// Counts log lines that were lost.
    pub(crate) fn lines_dropped(&self) -> Counter {
        self.dropped.clone()
    }

    /// The `pool` label of `pool`: its own, or `other`.
    pub(crate) fn label(&self, pool: &PoolKey) -> &str {
        &self.pool(pool).label
    }

    /// Counts `count` values of `label` that were shown as `other`.
    pub(crate) fn folded(&self, label: &'static str, count: u64) {
        match label {
            "pool" => self.folded_pools.increment(count),
            "app" => self.folded_apps.increment(count),
            _ => with_local_recorder(&self.recorder, || counter!(FOLDED, "label" => label).increment(count)),
        }
    }

    /// The one place where a fact becomes a number.
    pub(crate) fn count(&self, event: &Event) {
        match event {
            Event::Started { .. }
            | Event::Draining { .. }
            | Event::Stopped { .. }
            | Event::CredentialsReloaded { .. }
            | Event::CredentialsKept { .. }
            | Event::UpstreamRecovered { .. }
            | Event::LimitWidened { .. }
            | Event::MissingIndexSuspected { .. }
            | Event::SurveyFailed { .. }
            | Event::SurveyRecovered { .. }
            | Event::ExhaustionForeseen { .. }
            | Event::ExhaustionAverted { .. }
            | Event::Reloaded { .. }
            | Event::ReloadRefused { .. }
            | Event::Paused { .. }
            | Event::Resumed { .. }
            | Event::TookOver { .. }
            | Event::HandedOver { .. }
            | Event::NotificationsFailing { .. }
            | Event::NotificationsRecovered { .. }
            | Event::TestNotification => {}
            Event::PoolOpened { pool, .. } => {
                if self.pool(pool).label == OTHER {
                    self.folded_pools.increment(1);
                }
            }
            Event::ConnectionOpened { pool, .. } => self.pool(pool).opened.increment(1),
            Event::ConnectionClosed { pool, reason, age_seconds, .. } => {
                let meters = self.pool(pool);
                meters.closed[*reason as usize].increment(1);
                meters.lifetime.observe(*age_seconds);
            }
            Event::CheckedOut { pool, waited_seconds } => self.checked_out(pool, *waited_seconds),
            Event::CheckedIn { pool, held_seconds } => self.checked_in(pool, *held_seconds),
            Event::CheckoutTimeout { pool, .. } => self.pool(pool).timeouts.increment(1),
            Event::LeakDetected { pool, reason, .. } => {
                self.pool(pool).detected[*reason as usize].increment(1)
            }
            Event::LeakResolved { pool, reason, resolution, left_alone, .. } => {
                let meters = self.pool(pool);
                meters.resolved[*reason as usize][*resolution as usize].increment(1);
                if left_alone.is_some_and(|spared| spared.because == Suppression::Observe) {
                    meters.dry_run[*resolution as usize].increment(1);
                }
            }
            Event::ReclaimSuppressed { pool, because, .. } => {
                self.pool(pool).suppressed[*because as usize].increment(1);
            }
            Event::Recycled { pool, action, outcome, .. } => {
                self.pool(pool).recycles[*action as usize][*outcome as usize].increment(1);
            }
            Event::ReclaimRegretted { pool, .. } => self.pool(pool).regretted.increment(1),
            Event::ClientRefused { reason, .. } => self.refused[*reason as usize].increment(1),
            Event::UpstreamFailed { pool, .. } => self.pool(pool).upstream_failures.increment(1),
            Event::Notified { channel, outcome } => {
                self.notifications[*channel as usize][*outcome as usize].increment(1);
            }
            Event::LabelFolded { label } => self.folded(label, 1),
        }
    }

    pub(crate) fn checked_out(&self, pool: &PoolKey, waited_seconds: f64) {
        let meters = self.pool(pool);
        meters.checkouts.increment(1);
        meters.wait.observe(waited_seconds);
    }

    pub(crate) fn checked_in(&self, pool: &PoolKey, held_seconds: f64) {
        let meters = self.pool(pool);
        meters.checkins.increment(1);
        meters.hold.observe(held_seconds);
    }

    fn pool(&self, pool: &PoolKey) -> &PoolMeters {
        self.pools.get(pool, |label| {
            with_local_recorder(&self.recorder, || PoolMeters::register(label, &self.durations))
        })
    }
}

/// One counter for each thing that may become of a notification.
fn deliveries(channel: Channel) -> Vec<Counter> {
    let series = |outcome: &Delivery| counter!(NOTIFICATIONS, "channel" => channel.as_str(), "outcome" => outcome.as_str());
    Delivery::ALL.iter().map(series).collect()
}

struct Durations {
    wait: HistogramVec,
    hold: HistogramVec,
    lifetime: HistogramVec,
}

impl Durations {
    fn new() -> Self {
        let family = |name: &str, help: &str, bounds: &[f64]| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(bounds.to_vec()), &["pool"])
                .expect("name and bounds are constants, made once by every test")
        };
        Self {
            wait: family(
                "pgleash_checkout_wait_duration_seconds",
                "How long clients waited for the server connection that they got, in seconds.",
                &WAIT_BOUNDS,
            ),
            hold: family(
                "pgleash_checkout_hold_duration_seconds",
                "How long a server connection was lent, from checkout to its end, in seconds.",
                &HOLD_BOUNDS,
            ),
            lifetime: family(
                "pgleash_connection_lifetime_seconds",
                "Age of server connections when they were closed, in seconds.",
                &LIFETIME_BOUNDS,
            ),
        }
    }
}

/// The pools met so far. Only grows, so that readers need no lock.
struct Pools {
    own: [OnceLock<(PoolKey, PoolMeters)>; POOLS_MAX],
    other: OnceLock<PoolMeters>,
    adding: Mutex<()>,
}

impl Pools {
    fn new() -> Self {
        Self { own: [const { OnceLock::new() }; POOLS_MAX], other: OnceLock::new(), adding: Mutex::new(()) }
    }

    /// The meters of `pool`; a pool first met is given its own while there is room.
    fn get(&self, pool: &PoolKey, register: impl Fn(String) -> PoolMeters) -> &PoolMeters {
        if let Some(found) = self.find(pool) {
            return found;
        }
        if self.own[POOLS_MAX - 1].get().is_none() {
            let _adding = self.adding.lock();
            if let Some(found) = self.find(pool) {
                return found;
            }
            if let Some(free) = self.own.iter().find(|place| place.get().is_none()) {
                return &free.get_or_init(|| (pool.clone(), register(pool_label(pool)))).1;
            }
        }
        self.other.get_or_init(|| register(OTHER.to_owned()))
    }

    fn find(&self, pool: &PoolKey) -> Option<&PoolMeters> {
        let mut met = self.own.iter().map_while(OnceLock::get);
        met.find(|(key, _)| key == pool).map(|(_, meters)| meters)
    }
}

/// The handles of one pool. A `Vec` is indexed by its enum, in the order of `ALL`.
struct PoolMeters {
    label: String,
    checkouts: Counter,
    checkins: Counter,
    wait: Histogram,
    hold: Histogram,
    lifetime: Histogram,
    timeouts: Counter,
    opened: Counter,
    closed: Vec<Counter>,
    upstream_failures: Counter,
    detected: Vec<Counter>,
    /// By reason, then by resolution.
    resolved: Vec<Vec<Counter>>,
    recycles: Vec<Vec<Counter>>,
    suppressed: Vec<Counter>,
    dry_run: Vec<Counter>,
    regretted: Counter,
}

impl PoolMeters {
    /// Makes every series of the pool, so that counters stand at 0 before the first event.
    fn register(label: String, durations: &Durations) -> Self {
        // The exporter takes a lone backslash for the beginning of an escape: give it two.
        let pool = SharedString::from(label.replace('\\', "\\\\"));
        let counter = |name: &'static str| counter!(name, "pool" => pool.clone());
        let by = |name: &'static str, key: &'static str, value: &'static str| counter!(name, "pool" => pool.clone(), key => value);
        let histogram = |family: &HistogramVec| family.with_label_values(&[label.as_str()]);
        let recycles = |action: &RecycleAction| {
            let outcomes = RecycleOutcome::ALL.iter();
            let series = |outcome: &RecycleOutcome| counter!(RECYCLES, "pool" => pool.clone(), "action" => action.as_str(), "outcome" => outcome.as_str());
            outcomes.map(series).collect()
        };
        let resolved = |reason: &Reason| {
            let series = |end: &Resolution| counter!(RESOLVED, "pool" => pool.clone(), "reason" => reason.as_str(), "resolution" => end.as_str());
            Resolution::ALL.iter().map(series).collect()
        };
        Self {
            checkouts: counter(CHECKOUTS),
            checkins: counter(CHECKINS),
            wait: histogram(&durations.wait),
            hold: histogram(&durations.hold),
            lifetime: histogram(&durations.lifetime),
            timeouts: counter(TIMEOUTS),
            opened: counter(OPENED),
            closed: CloseReason::ALL.iter().map(|reason| by(CLOSED, "reason", reason.as_str())).collect(),
            upstream_failures: counter(UPSTREAM_FAILURES),
            detected: Reason::ALL.iter().map(|reason| by(DETECTED, "reason", reason.as_str())).collect(),
            resolved: Reason::ALL.iter().map(resolved).collect(),
            recycles: RecycleAction::ALL.iter().map(recycles).collect(),
            suppressed: Suppression::ALL.iter().map(|why| by(SUPPRESSED, "reason", why.as_str())).collect(),
            dry_run: Resolution::ALL.iter().map(|end| by(DRY_RUN, "resolution", end.as_str())).collect(),
            regretted: counter(REGRETTED),
            label,
        }
    }
}
