//! What judging costs: a look at 10,000 checkouts, the books of one statement, and a scrape of them. `just bench-judgement`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use pgleash_core::{
    Activity, CheckoutId, ConnId, ConnPlace, FlowState, Holder, Ledger, Moment, Phase, Policy, PoolKey,
    Resolution, SessionId, Snapshot,
};
use pgleash_telemetry::Telemetry;

const CHECKOUTS: u64 = 10_000;

fn holder(app: u64) -> Arc<Holder> {
    Arc::new(Holder {
        session: SessionId(1),
        app: format!("app-{app}"),
        user: "app".to_owned(),
        database: "shop".to_owned(),
        client: "10.0.0.1:1".to_owned(),
    })
}

/// A pool of 10,000 whose habits are known, with this share of its checkouts idle in a transaction.
fn pool(idle: f64) -> (Ledger<Arc<Activity>>, Policy, Vec<Arc<Activity>>) {
    let mut ledger = Ledger::new(PoolKey::new("shop", "app"));
    let holders: Vec<_> = (0..8).map(holder).collect();
    let mut activities = Vec::new();
    for n in 1..=CHECKOUTS {
        ledger.dialling(Moment::START);
        ledger.opened(ConnId(n), n as i32, Moment::from_secs(1_000_000), Moment::START);
        let activity = Arc::new(Activity::new());
        activity.begin(Moment::START);
        let holder = Arc::clone(&holders[(n % 8) as usize]);
        ledger.checked_out(
            CheckoutId(n),
            ConnId(n),
            holder,
            Arc::clone(&activity),
            Duration::ZERO,
            Moment::START,
        );
        activities.push(activity);
    }
    let policy = Policy { size: CHECKOUTS as usize * 2, ..Policy::default() };
    for second in 0..120 {
        for activity in &activities {
            let at = Moment::from_secs(second);
            activity.publish(Phase::InTransaction, at).expect("nobody takes it");
            activity.publish(Phase::InFlight, at + Duration::from_millis(100)).expect("nobody takes it");
        }
        ledger.sweep(&policy, Moment::from_secs(second + 1));
    }
    let idle = (CHECKOUTS as f64 * idle) as usize;
    for activity in &activities[..idle] {
        activity.publish(Phase::InTransaction, Moment::from_secs(120)).expect("nobody takes it");
    }
    (ledger, policy, activities)
}

fn sweep(c: &mut Criterion) {
    let mut group = c.benchmark_group("sweep of 10,000 checkouts");
    for (name, idle, at) in [
        ("all busy", 0.0, 121),
        ("half idle for a moment", 0.5, 121),
        ("a tenth idle beyond its limit", 0.1, 129),
    ] {
        let (mut ledger, policy, _activities) = pool(idle);
        let now = Moment::from_secs(at);
        ledger.sweep(&policy, now);
        group.bench_function(name, |b| b.iter(|| black_box(ledger.sweep(&policy, now))));
    }
    let (mut ledger, policy, activities) = pool(0.0);
    let now = Moment::from_secs(121);
    group.bench_function("each has paused since the last", |b| {
        b.iter(|| {
            for activity in &activities {
                activity.publish(Phase::InTransaction, now).expect("nobody takes it");
                activity.publish(Phase::InFlight, now).expect("nobody takes it");
            }
            black_box(ledger.sweep(&policy, now))
        });
    });
    group.finish();
}

fn books(c: &mut Criterion) {
    let activity = Activity::new();
    activity.begin(Moment::START);
    let mut n = 0;
    c.bench_function("a statement: in flight, and idle again", |b| {
        b.iter(|| {
            n += 1;
            let now = Moment::from_nanos(n);
            activity.publish(Phase::InFlight, now).expect("nobody takes it");
            activity.publish(Phase::InTransaction, now).expect("nobody takes it");
        });
    });
    let mut ledger = Ledger::new(PoolKey::new("shop", "app"));
    ledger.dialling(Moment::START);
    ledger.opened(ConnId(1), 1, Moment::from_secs(1_000_000), Moment::START);
    let (holder, handle) = (holder(1), Arc::new(Activity::new()));
    c.bench_function("a checkout: out, one pause, and home", |b| {
        b.iter(|| {
            n += 1000;
            let (id, now) = (CheckoutId(n), Moment::from_nanos(n));
            handle.begin(now);
            ledger.checked_out(id, ConnId(1), Arc::clone(&holder), Arc::clone(&handle), Duration::ZERO, now);
            handle.publish(Phase::InTransaction, now).expect("nobody takes it");
            handle.publish(Phase::InFlight, now).expect("nobody takes it");
            handle.finish().expect("nobody takes it");
            black_box(ledger.checked_in(id, ConnPlace::Idle, Resolution::Returned, now));
        });
    });
}

/// What stands between a request for /metrics and its answer, when 10,000 checkouts are out in one pool. The first
/// part holds the ledger, for which a checkout waits.
fn scrape(c: &mut Criterion) {
    let (mut ledger, policy, _activities) = pool(0.1);
    let now = Moment::from_secs(129);
    ledger.sweep(&policy, now);
    let mut group = c.benchmark_group("scrape of 10,000 checkouts");
    group.bench_function("the pool's state", |b| b.iter(|| black_box(ledger.snapshot(&policy, now))));
    let telemetry = Telemetry::start(Box::new(std::io::sink())).expect("a thread for the log");
    let snapshot = Snapshot {
        version: "0",
        uptime_seconds: 1.0,
        mode: "session",
        config_hash: String::new(),
        action: "reclaim",
        enforcing: true,
        draining: false,
        flow: FlowState::Open,
        observation_age_seconds: 0.1,
        observed_at_unix_seconds: 1.0,
        clients: CHECKOUTS as usize,
        clients_max: CHECKOUTS as usize,
        pools: vec![ledger.snapshot(&policy, now)],
    };
    group.bench_function("its text", |b| b.iter(|| black_box(telemetry.render(&snapshot))));
    group.finish();
}

criterion_group!(judgement, sweep, books, scrape);
criterion_main!(judgement);
