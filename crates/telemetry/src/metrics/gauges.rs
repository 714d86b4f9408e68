//! State families: a snapshot as gauges, made at the moment of the scrape.

use std::collections::{BTreeMap, HashMap};

use pgleash_core::{ConnState, FlowState, Limits, Pin, PoolKey, PoolSnapshot, Reason, Snapshot};
use prometheus::proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType};

use crate::metrics::labels::{OTHER, StickyTop, Weight, app_label};

/// The phases that a checkout can be in, for `pool_checkouts_stale{activity}`.
const ACTIVITIES: [ConnState; 4] =
    [ConnState::Active, ConnState::IdleInTransaction, ConnState::Held, ConnState::Recycling];

/// What may keep a connection with its client, for `pool_connections_overdue{kept}`: its transaction alone; what a
/// client holds on for while it idles, as LISTEN; `pool.mode`; any other state that it left behind.
const KEPT: [&str; 4] = ["transaction", "purpose", "session_mode", "state"];

/// Which of [`KEPT`] it is.
fn kept(pinned: Option<Pin>) -> usize {
    match pinned {
        None => 0,
        Some(pin) if pin.is_deliberate() => 1,
        Some(Pin::SessionMode) => 2,
        Some(_) => 3,
    }
}

/// Every checkout of `snapshot`, weighed by the `app` label it asks for.
pub(crate) fn checkouts_by_app(snapshot: &Snapshot) -> HashMap<&str, Weight> {
    let mut weights: HashMap<_, Weight> = HashMap::new();
    for holder in snapshot.pools.iter().flat_map(|pool| &pool.holders) {
        let weight = weights.entry(app_label(&holder.holder.app)).or_default();
        weight.count += 1;
        if holder.suspect.is_some_and(is_stale) {
            weight.stale_ms += (holder.idle_seconds * 1000.0) as u64 + 1;
        }
    }
    weights
}

/// All state families of `snapshot`. Pools with the same `label` are shown as one.
pub(crate) fn families<'a>(
    snapshot: &'a Snapshot,
    apps: &StickyTop,
    label: impl Fn(&'a PoolKey) -> &'a str,
) -> Vec<MetricFamily> {
    let mut pools: BTreeMap<&str, Figures> = BTreeMap::new();
    for pool in &snapshot.pools {
        pools.entry(label(&pool.pool)).or_insert_with(|| Figures::empty(pool.limits)).add(pool, apps);
    }
    let mut families = process_families(snapshot);
    families.push(paused_family(snapshot, &pools));
    families.extend(connection_families(&pools));
    families.extend(checkout_families(&pools));
    families.push(pins_family(&pools));
    families.extend(limit_families(&pools));
    families
}

fn process_families(snapshot: &Snapshot) -> Vec<MetricFamily> {
    vec![
        family(
            "pgleash_build_info",
            "Always 1; the version is a label.",
            [(vec![("version", snapshot.version)], 1.0)],
        ),
        family("pgleash_clients", "Clients connected now.", [(vec![], count(snapshot.clients))]),
        family(
            "pgleash_clients_max",
            "Most clients that may be connected (pool.max_clients).",
            [(vec![], count(snapshot.clients_max))],
        ),
        family(
            "pgleash_enforcement_enabled",
            "1 if a leak met now would be taken back: leaks.action is reclaim, and pgleash is not draining. Else 0.",
            [(vec![], f64::from(u8::from(snapshot.enforcing)))],
        ),
        family(
            "pgleash_last_observation_timestamp_seconds",
            "When the keeper last looked at every pool, in seconds since the Unix epoch.",
            [(vec![], snapshot.observed_at_unix_seconds)],
        ),
    ]
}

/// Of each pool, though all pause together: so that it stands beside the queue that it explains.
fn paused_family(snapshot: &Snapshot, pools: &BTreeMap<&str, Figures>) -> MetricFamily {
    let paused = f64::from(u8::from(snapshot.flow != FlowState::Open));
    per_pool(
        pools,
        "pgleash_pool_paused",
        "1 while new checkouts wait because somebody paused pgleash, else 0.",
        |_| paused,
    )
}

fn connection_families(pools: &BTreeMap<&str, Figures>) -> Vec<MetricFamily> {
    vec![
        family(
            "pgleash_pool_connections",
            "Live server connections by what they are doing; each is in exactly one state.",
            pools.iter().flat_map(|(pool, figures)| {
                let series = |(state, count): (&ConnState, &f64)| {
                    (vec![("pool", *pool), ("state", state.as_str())], *count)
                };
                ConnState::ALL.iter().zip(&figures.connections).map(series).collect::<Vec<_>>()
            }),
        ),
        per_pool(
            pools,
            "pgleash_pool_connections_max",
            "Most server connections of the pool (pool.size).",
            |pool| pool.size,
        ),
        family(
            "pgleash_pool_connections_overdue",
            "Server connections that are older than pool.max_lifetime and still held, by what keeps them.",
            pools.iter().flat_map(|(pool, figures)| {
                let series =
                    |(kept, count): (&&'static str, &f64)| (vec![("pool", *pool), ("kept", *kept)], *count);
                KEPT.iter().zip(&figures.overdue).map(series).collect::<Vec<_>>()
            }),
        ),
        per_pool(
            pools,
            "pgleash_pool_oldest_connection_age_seconds",
            "Age of the oldest server connection in seconds; 0 if there is none.",
            |pool| pool.oldest_connection,
        ),
        per_pool(
            pools,
            "pgleash_pool_utilization_ratio",
            "Server connections lent or coming home, over pool.size; 1 when the pool is exhausted.",
            |pool| pool.utilization,
        ),
        per_pool(
            pools,
            "pgleash_pool_utilization_peak_ratio",
            "Highest pool utilization within the last minute; no burst between two scrapes is lost.",
            |pool| pool.utilization_peak,
        ),
    ]
}

fn checkout_families<'a>(pools: &'a BTreeMap<&'a str, Figures>) -> Vec<MetricFamily> {
    vec![
        family(
            "pgleash_pool_checkouts",
            "Checkouts that are out, by application_name. Applications beyond the bound are other.",
            pools.iter().flat_map(|(pool, figures)| {
                let series = |(app, (held, _)): (&'a String, &(f64, f64))| {
                    (vec![("pool", *pool), ("app", app.as_str())], *held)
                };
                figures.apps.iter().map(series).collect::<Vec<_>>()
            }),
        ),
        family(
            "pgleash_pool_stale_seconds",
            "How long stale checkouts have been idle for, added up, in seconds, by application_name: the most is the cause.",
            pools.iter().flat_map(|(pool, figures)| {
                let series = |(app, (_, idle)): (&'a String, &(f64, f64))| {
                    (vec![("pool", *pool), ("app", app.as_str())], *idle)
                };
                figures.apps.iter().map(series).collect::<Vec<_>>()
            }),
        ),
        family(
            "pgleash_pool_checkouts_stale",
            "Suspect checkouts that nothing moves on, by what their connection is doing: what is not coming back.",
            pools.iter().flat_map(|(pool, figures)| {
                let series = |(activity, count): (&ConnState, &f64)| {
                    (vec![("pool", *pool), ("activity", activity.as_str())], *count)
                };
                ACTIVITIES.iter().zip(&figures.stale).map(series).collect::<Vec<_>>()
            }),
        ),
        family(
            "pgleash_leaks_active",
            "Checkouts that are suspect now, by reason; slow_statement and overdue are reported, not taken back.",
            pools.iter().flat_map(|(pool, figures)| {
                let series = |(reason, count): (&Reason, &f64)| {
                    (vec![("pool", *pool), ("reason", reason.as_str())], *count)
                };
                Reason::ALL.iter().zip(&figures.leaks).map(series).collect::<Vec<_>>()
            }),
        ),
        per_pool(pools, "pgleash_pool_waiting_clients", "Clients waiting for a server connection.", |pool| {
            pool.waiting
        }),
        per_pool(
            pools,
            "pgleash_pool_oldest_wait_seconds",
            "How long the client that has waited longest has waited, in seconds; 0 if nobody waits.",
            |pool| pool.oldest_wait,
        ),
        per_pool(
            pools,
            "pgleash_pool_oldest_checkout_age_seconds",
            "Age of the oldest checkout in seconds; 0 if there is none.",
            |pool| pool.oldest_checkout,
        ),
        per_pool(
            pools,
            "pgleash_pool_exhaustion_forecast_seconds",
            "Seconds until the pool is full of stale checkouts; +Inf when they do not grow.",
            |pool| pool.forecast,
        ),
    ]
}

fn pins_family(pools: &BTreeMap<&str, Figures>) -> MetricFamily {
    let samples = pools.iter().flat_map(|(pool, figures)| {
        let series =
            |(reason, count): (&Pin, &f64)| (vec![("pool", *pool), ("reason", reason.as_str())], *count);
        Pin::ALL.iter().zip(&figures.pins).map(series).collect::<Vec<_>>()
    });
    family(
        "pgleash_pins",
        "Server connections that clients keep between transactions, by the reason.",
        samples,
    )
}

fn limit_families(pools: &BTreeMap<&str, Figures>) -> [MetricFamily; 1] {
    let samples = pools.iter().flat_map(|(pool, figures)| {
        let limits = &figures.limits;
        [
            ("idle_in_transaction", limits.idle_in_transaction),
            ("idle_session", limits.idle_session),
            ("max_lifetime", limits.max_lifetime),
            ("idle_timeout", limits.idle_timeout),
            ("wait_timeout", limits.wait_timeout),
        ]
        .map(|(limit, seconds)| (vec![("pool", *pool), ("limit", limit)], seconds))
    });
    [family("pgleash_pool_limit_seconds", "The limits in force, in seconds, by configuration key.", samples)]
}

/// What is shown for one `pool` label. Where pools share the label: sums of what is counted, the
/// worst of what is measured.
struct Figures {
    connections: [f64; ConnState::ALL.len()],
    size: f64,
    utilization: f64,
    utilization_peak: f64,
    waiting: f64,
    oldest_wait: f64,
    oldest_checkout: f64,
    oldest_connection: f64,
    overdue: [f64; KEPT.len()],
    forecast: f64,
    leaks: [f64; Reason::ALL.len()],
    stale: [f64; ACTIVITIES.len()],
    pins: [f64; Pin::ALL.len()],
    /// By `app` label: how many checkouts, and the seconds that stale ones have been idle for.
    apps: BTreeMap<String, (f64, f64)>,
    limits: Limits,
}

impl Figures {
    fn empty(limits: Limits) -> Self {
        Self {
            connections: [0.0; ConnState::ALL.len()],
            size: 0.0,
            utilization: 0.0,
            utilization_peak: 0.0,
            waiting: 0.0,
            oldest_wait: 0.0,
            oldest_checkout: 0.0,
            oldest_connection: 0.0,
            overdue: [0.0; KEPT.len()],
            forecast: f64::INFINITY,
            leaks: [0.0; Reason::ALL.len()],
            stale: [0.0; ACTIVITIES.len()],
            pins: [0.0; Pin::ALL.len()],
            apps: BTreeMap::from([(OTHER.to_owned(), (0.0, 0.0))]),
            limits,
        }
    }

    fn add(&mut self, pool: &PoolSnapshot, apps: &StickyTop) {
        for (sum, state) in self.connections.iter_mut().zip(ConnState::ALL) {
            *sum += count(pool.connections.get(*state));
        }
        self.size += count(pool.size);
        self.waiting += count(pool.waiting);
        self.utilization = self.utilization.max(pool.utilization_ratio);
        self.utilization_peak = self.utilization_peak.max(pool.utilization_peak_ratio);
        self.oldest_wait = self.oldest_wait.max(pool.oldest_wait_seconds);
        self.oldest_checkout = self.oldest_checkout.max(pool.oldest_checkout_seconds);
        self.oldest_connection = self.oldest_connection.max(pool.oldest_connection_seconds);
        self.forecast = self.forecast.min(pool.exhaustion_forecast_seconds.unwrap_or(f64::INFINITY));
        for (reason, suspects) in &pool.stale {
            if *reason != Reason::Overdue {
                self.leaks[*reason as usize] += count(*suspects);
            }
        }
        self.leaks[Reason::Overdue as usize] += count(pool.overdue);
        for holder in &pool.holders {
            let stale = holder.suspect.is_some_and(is_stale);
            let (held, idle) =
                self.apps.entry(apps.fold(app_label(&holder.holder.app)).to_owned()).or_default();
            *held += 1.0;
            *idle += if stale { holder.idle_seconds } else { 0.0 };
            self.overdue[kept(holder.pinned)] += count(usize::from(holder.overdue));
            if let Some(pin) = holder.pinned {
                self.pins[pin as usize] += 1.0;
            }
            let activity = ACTIVITIES.iter().position(|activity| *activity == holder.phase);
            if let (Some(activity), true) = (activity, stale) {
                self.stale[activity] += 1.0;
            }
        }
    }
}

/// Whether a checkout suspect for `reason` is one that nothing moves on.
fn is_stale(reason: Reason) -> bool {
    match reason {
        Reason::DirtyReturn
        | Reason::ProtocolWedge
        | Reason::Orphaned
        | Reason::IdleInTransaction
        | Reason::IdleSession => true,
        Reason::Overdue | Reason::SlowStatement => false,
    }
}

fn per_pool(
    pools: &BTreeMap<&str, Figures>,
    name: &str,
    help: &str,
    value: impl Fn(&Figures) -> f64,
) -> MetricFamily {
    family(name, help, pools.iter().map(|(pool, figures)| (vec![("pool", *pool)], value(figures))))
}

fn family<'a>(
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Vec<(&'static str, &'a str)>, f64)>,
) -> MetricFamily {
    let metrics = samples.into_iter().map(|(labels, value)| {
        let labels = labels.into_iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        });
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = Metric::from_gauge(gauge);
        metric.set_label(labels.collect());
        metric
    });
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(MetricType::GAUGE);
    family.set_metric(metrics.collect());
    family
}

#[allow(clippy::cast_precision_loss, reason = "counts of connections and clients are far below 2^53")]
fn count(of: usize) -> f64 {
    of as f64
}
