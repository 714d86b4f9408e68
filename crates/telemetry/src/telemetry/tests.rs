use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use pgleash_core::{CheckoutSnapshot, ConnId, Evidence, PoolKey, PoolSnapshot, Reason, Refusal};
use serde_json::Value;

use super::*;
use crate::fixtures;
use crate::metrics::labels;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn the_catalogue_of_metrics() {
    let page = after_the_incident().render(&fixtures::incident());
    insta::assert_snapshot!("catalogue", catalogue(&page));
}

#[test]
fn an_event_adds_to_its_own_counter_and_to_no_other() {
    let telemetry = telemetry();
    let snapshot = fixtures::incident();
    telemetry.render(&snapshot); // the pools are known now, and every counter stands at 0
    let before = samples(&telemetry.render(&snapshot));

    for event in fixtures::events() {
        telemetry.emit(event);
    }

    let after = samples(&telemetry.render(&snapshot));
    let changed = |(series, value): (&String, &f64)| {
        let moved =
            *value != before[series] && series.starts_with("pgleash_") && !series.contains("_bucket{");
        moved.then(|| format!("{series} {:+.4}", value - before[series]))
    };
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "no series appears late");
    insta::assert_snapshot!("moved", after.iter().filter_map(changed).collect::<Vec<_>>().join("\n"));
}

#[test]
fn counters_stand_at_zero_once_a_pool_opens() {
    let telemetry = telemetry();
    telemetry.emit(Event::PoolOpened { pool: fixtures::payments(), size: 20 });
    let page = telemetry.render(&Snapshot { pools: Vec::new(), ..fixtures::incident() });
    let series = samples(&page);
    for reason in Reason::ALL {
        assert_eq!(
            series[&format!("pgleash_leaks_detected_total{{pool=\"app@payments\",reason=\"{reason}\"}}")],
            0.0
        );
    }
    assert_eq!(series["pgleash_checkout_hold_duration_seconds_count{pool=\"app@payments\"}"], 0.0);
    let moved = |(series, value): (&String, &f64)| {
        series.contains("_total") && series.starts_with("pgleash_") && *value != 0.0
    };
    assert!(!series.iter().any(moved), "nothing has happened: {page}");
}

#[test]
fn the_two_writers_of_the_page_share_no_family() {
    let telemetry = after_the_incident();
    let events = families(&telemetry.meters.counters());
    let both = telemetry.render(&fixtures::incident());
    let all: Vec<String> =
        both.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(str::to_owned).collect();
    let distinct: BTreeSet<_> = all.iter().collect();
    assert_eq!(all.len(), distinct.len(), "a family is written twice:\n{all:#?}");
    assert!(events.len() == 16 && all.len() > events.len() + 25, "{} and {}", events.len(), all.len());
}

#[test]
fn promtool_finds_nothing_to_say() {
    let page = after_the_incident().render(&fixtures::incident());
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match started {
        Ok(promtool) => promtool,
        Err(error) => {
            eprintln!("not checked, promtool cannot be started: {error}");
            return;
        }
    };
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let told = promtool.wait_with_output().unwrap();
    let said = [told.stdout, told.stderr].concat();
    assert!(told.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn names_from_clients_are_escaped_the_same_way_by_both_writers() {
    let telemetry = telemetry();
    let odd = ["quo\"te", "new\nline", "back\\slash", "two\\\\", "end\\", "mix\\\"ed\\n", "🐘é{}=,"];
    let mut snapshot = fixtures::incident();
    snapshot.pools = odd.iter().map(|name| fixtures::quiet_pool(PoolKey::new("db", name), 5)).collect();
    for pool in &snapshot.pools {
        telemetry.emit(Event::PoolOpened { pool: pool.pool.clone(), size: 5 });
    }

    let series = samples(&telemetry.render(&snapshot));
    for name in odd {
        let label = format!("{name}@db").replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        for family in ["pgleash_pool_connections_max", "pgleash_checkouts_total"] {
            let wanted = format!("{family}{{pool=\"{label}\"}}");
            assert!(series.contains_key(&wanted), "{wanted} is not among {:#?}", series.keys());
        }
    }
}

#[test]
fn whose_leak_it_is_and_what_keeps_an_old_connection_can_be_told() {
    let series = samples(&telemetry().render(&fixtures::incident()));
    let idle = |app| series[&format!("pgleash_pool_stale_seconds{{pool=\"app@payments\",app=\"{app}\"}}")];
    assert_eq!(["checkout-api", "ledger-worker", "other"].map(idle), [68.5, 0.0, 0.0], "busy ones have none");
    let overdue =
        |kept| series[&format!("pgleash_pool_connections_overdue{{pool=\"app@payments\",kept=\"{kept}\"}}")];
    assert_eq!(["transaction", "purpose", "session_mode", "state"].map(overdue), [0.0, 1.0, 0.0, 0.0]);
}

/// `checkouts` of as many clients, each of an application of its own, in a hundred pools.
fn crowd(checkouts: usize) -> Snapshot {
    let one = fixtures::incident().pools[0].holders[0].clone();
    let mut pools: Vec<_> =
        (0..100).map(|n| fixtures::quiet_pool(PoolKey::new(&format!("db{n}"), "u"), 5)).collect();
    for n in 0..checkouts {
        let holder = fixtures::holder(n as u32, &format!("{n} {}", "name".repeat(40)));
        pools[n % 100].holders.push(CheckoutSnapshot { holder, ..one.clone() });
    }
    Snapshot { clients: checkouts, clients_max: checkouts, pools, ..fixtures::incident() }
}

#[test]
fn a_page_of_ten_thousand_checkouts_is_no_longer_than_one_of_a_thousand() {
    const LARGEST: usize = 1 << 20;
    let page = |checkouts| {
        let (telemetry, snapshot) = (telemetry(), crowd(checkouts));
        for pool in &snapshot.pools {
            telemetry.emit(Event::PoolOpened { pool: pool.pool.clone(), size: 5 });
        }
        telemetry.render(&snapshot)
    };
    let (small, large) = (page(1000), page(10_000));
    let (few, many) = (samples(&small).len(), samples(&large).len());
    assert_eq!(few, many, "series: their number hangs on pools and on the bound of applications");
    let each = many / (labels::POOLS_MAX + 1);
    assert!(each < 180, "{each} series for each pool that has a label of its own");
    assert!(large.len() < LARGEST, "{} bytes", large.len());
}

#[test]
fn facts_are_taken_in_while_a_page_is_made() {
    let (telemetry, snapshot) = (telemetry(), crowd(10_000));
    let scraping = AtomicBool::new(true);
    let emitted = std::thread::scope(|scope| {
        scope.spawn(|| {
            telemetry.render(&snapshot);
            scraping.store(false, Ordering::Release);
        });
        let mut emitted = 0u64;
        while scraping.load(Ordering::Acquire) {
            telemetry.emit(Event::CheckedOut { pool: fixtures::payments(), waited_seconds: 0.0 });
            emitted += 1;
        }
        emitted
    });
    // If an emit waited for the page there would be a few of them; a page of this length takes as long as thousands.
    assert!(emitted > 100, "{emitted} facts while one page was made");
}

#[test]
fn pools_beyond_the_bound_are_shown_as_one_and_the_worst_of_them_is_seen() {
    let telemetry = telemetry();
    let pools: Vec<PoolSnapshot> = (0..labels::POOLS_MAX + 3)
        .map(|n| fixtures::quiet_pool(PoolKey::new("db", &format!("u{n}")), 5))
        .collect();
    for pool in &pools {
        telemetry.emit(Event::PoolOpened { pool: pool.pool.clone(), size: 5 });
        telemetry.emit(Event::CheckedOut { pool: pool.pool.clone(), waited_seconds: 0.0 });
    }
    let mut snapshot = Snapshot { pools, ..fixtures::incident() };
    let last = snapshot.pools.last_mut().unwrap();
    last.utilization_ratio = 1.0;
    last.exhaustion_forecast_seconds = Some(7.0);

    let series = samples(&telemetry.render(&snapshot));
    let of = |family: &str, pool: &str| series[&format!("{family}{{pool=\"{pool}\"}}")];
    assert_eq!(of("pgleash_pool_connections_max", "u63@db"), 5.0);
    assert_eq!(of("pgleash_pool_connections_max", "other"), 15.0);
    assert_eq!(of("pgleash_pool_utilization_ratio", "other"), 1.0);
    assert_eq!(of("pgleash_pool_exhaustion_forecast_seconds", "other"), 7.0);
    assert_eq!(of("pgleash_pool_exhaustion_forecast_seconds", "u0@db"), f64::INFINITY);
    assert_eq!(of("pgleash_checkouts_total", "other"), 3.0);
    assert_eq!(series["pgleash_label_values_folded_total{label=\"pool\"}"], 3.0);
}

#[test]
fn applications_beyond_the_bound_are_other_and_nothing_is_lost() {
    let telemetry = telemetry();
    let mut snapshot = fixtures::incident();
    let first = snapshot.pools[0].holders[0].clone();
    snapshot.pools[0].holders = (0..50)
        .map(|n| {
            let mut holder = first.clone();
            holder.holder = fixtures::holder(n, &format!("app-{}", n.min(30)));
            holder
        })
        .collect();

    let series = samples(&telemetry.render(&snapshot));
    let apps: Vec<_> =
        series.iter().filter(|(name, _)| name.starts_with("pgleash_pool_checkouts{pool=\"app@")).collect();
    assert_eq!(apps.len(), labels::APPS_MAX + 1);
    assert_eq!(apps.iter().map(|(_, value)| **value).sum::<f64>(), 50.0);
    assert_eq!(
        series["pgleash_pool_checkouts{pool=\"app@payments\",app=\"app-30\"}"], 20.0,
        "the biggest has a place"
    );
    assert_eq!(series["pgleash_label_values_folded_total{label=\"app\"}"], 11.0);
}

#[test]
fn a_pool_whose_name_reads_like_another_does_not_spoil_the_page() {
    let telemetry = telemetry();
    let twins = [PoolKey::new("c", "a@b"), PoolKey::new("b@c", "a")];
    let snapshot =
        Snapshot { pools: twins.map(|pool| fixtures::quiet_pool(pool, 5)).to_vec(), ..fixtures::incident() };
    let page = telemetry.render(&snapshot);
    let of_size: Vec<_> =
        page.lines().filter(|line| line.starts_with("pgleash_pool_connections_max{")).collect();
    assert_eq!(of_size, ["pgleash_pool_connections_max{pool=\"a@b@c\"} 10"]);
}

#[test]
fn before_the_first_client_the_page_has_no_pools_and_is_well_formed() {
    let page = telemetry().render(&Snapshot { pools: Vec::new(), ..fixtures::incident() });
    assert!(page.contains("\npgleash_clients 31\n") && !page.contains("pool=\""), "{page}");
}

#[test]
fn the_log_has_one_json_object_a_line() {
    let (telemetry, log) = logged();
    for event in fixtures::events() {
        telemetry.emit(event);
    }
    assert!(telemetry.flush(SOON));

    let text = String::from_utf8(log.0.lock().clone()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert!(
        !names.contains(&"checked_out") && !names.contains(&"label_folded"),
        "debug facts are only counted"
    );
    assert_eq!((names.first(), names.last(), lines.len()), (Some(&"started"), Some(&"stopped"), 32));

    let detected = &lines[names.iter().position(|name| *name == "leak_detected").unwrap()];
    assert_eq!(detected["level"], "warn");
    assert_eq!(detected["reason"], "idle_in_transaction");
    assert_eq!((&detected["session"], &detected["app"]), (&Value::from(1042), &Value::from("checkout-api")));
    let time = detected["time"].as_str().unwrap();
    assert_eq!(
        (time.len(), time.as_bytes()[10], time.as_bytes()[19], &time[23..]),
        (24, b'T', b'.', "Z"),
        "{time}"
    );
    assert!(text.starts_with("{\"time\":\"") && text.contains("\",\"level\":\"info\","), "{text}");
}

#[test]
fn the_latest_thousand_events_can_be_asked_for() {
    let telemetry = telemetry();
    for size in 1..=1500 {
        telemetry.emit(Event::PoolOpened { pool: fixtures::payments(), size });
    }
    assert!(telemetry.flush(SOON));
    let all = telemetry.events_after(0);
    assert_eq!((all.len(), all[0].seq, all[999].seq), (1000, 501, 1500));
    let news = telemetry.events_after(1498);
    assert_eq!(news.iter().map(|record| record.seq).collect::<Vec<_>>(), [1499, 1500]);
    assert!(telemetry.events_after(1500).is_empty());
}

#[test]
fn a_storm_of_refusals_and_connections_pushes_no_decision_out() {
    let telemetry = telemetry();
    let pool = fixtures::payments;
    telemetry.emit(Event::LeakDetected {
        pool: pool(),
        reason: Reason::Orphaned,
        evidence: fixtures::evidence(),
    });
    telemetry.emit(Event::ExhaustionForeseen { pool: pool(), in_seconds: 300.0, stale: 4, holders: vec![] });
    for n in 0..3000 {
        let (client, detail) = (format!("10.0.0.1:{n}"), String::new());
        telemetry.emit(Event::ClientRefused { reason: Refusal::Password, client: client.clone(), detail });
        let diagnosis = String::new();
        telemetry.emit(Event::CheckoutTimeout { pool: pool(), waited_seconds: 5.0, diagnosis, client });
        telemetry.emit(Event::ConnectionOpened {
            pool: pool(),
            conn: ConnId(n),
            backend_pid: 1,
            connect_seconds: 0.001,
        });
    }
    let all = telemetry.events_after(0);
    let count = |is: fn(&Event) -> bool| all.iter().filter(|record| is(&record.event)).count();
    assert!(matches!(all[0].event, Event::LeakDetected { .. }), "{:?}", all[0]);
    assert!(matches!(all[1].event, Event::ExhaustionForeseen { .. }), "{:?}", all[1]);
    assert_eq!(count(|event| matches!(event, Event::ConnectionOpened { .. })), 1000);
    assert_eq!(all.len(), 2002, "and a thousand of those who got nothing");
    assert!(all.is_sorted_by(|one, next| one.seq < next.seq), "one list, in order");
    assert_eq!(telemetry.events_after(9000).len(), 2, "whoever keeps up misses nothing");
}

#[test]
fn a_blocked_log_costs_lines_but_never_blocks_the_data_path() {
    let (log, unblock, entered) = BlockedLog::new();
    let telemetry = Telemetry::start(Box::new(log)).unwrap();
    telemetry.emit(Event::LeakDetected {
        pool: fixtures::payments(),
        reason: Reason::Orphaned,
        evidence: evidence(0),
    });
    entered.recv_timeout(SOON).expect("the writer takes the first line, and is stuck with it");

    for n in 0..20_000 {
        let evidence = evidence(n);
        telemetry.emit(Event::LeakDetected {
            pool: fixtures::payments(),
            reason: Reason::Orphaned,
            evidence,
        });
    }
    assert!(!telemetry.flush(Duration::from_millis(20)), "the log is still blocked");
    assert_eq!(telemetry.events_after(0).last().unwrap().seq, 20_001, "the newest can still be asked for");

    drop(unblock);
    assert!(telemetry.flush(SOON));
    let series = samples(&telemetry.render(&fixtures::incident()));
    assert_eq!(series["pgleash_log_lines_dropped_total"], f64::from(20_000 - 8192));
    let detected = "pgleash_leaks_detected_total{pool=\"app@payments\",reason=\"orphaned\"}";
    assert_eq!(series[detected], 20_001.0, "what was not logged was counted");
}

#[test]
fn a_log_that_cannot_be_written_is_counted() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let telemetry = Telemetry::start(Box::new(Full)).unwrap();
    for event in fixtures::events() {
        telemetry.emit(event);
    }
    assert!(telemetry.flush(SOON));
    let series = samples(&telemetry.render(&fixtures::incident()));
    assert_eq!(series["pgleash_log_lines_dropped_total"], 32.0);
}

#[test]
fn facts_from_many_threads_are_all_counted_while_somebody_scrapes() {
    const THREADS: usize = 4;
    const EACH: usize = 20_000;
    let telemetry = telemetry();
    let snapshot = fixtures::incident();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let telemetry = &telemetry;
            scope.spawn(move || {
                // Two pools, one of them first met by all threads at once.
                let pools = [fixtures::payments(), PoolKey::new("late", "comer")];
                for n in 0..EACH {
                    let pool = pools[(n + thread) % 2].clone();
                    telemetry.emit(Event::CheckedOut { pool: pool.clone(), waited_seconds: 0.001 });
                    telemetry.emit(Event::CheckedIn { pool, held_seconds: 0.002 });
                }
            });
        }
        let mut before = 0.0;
        for _ in 0..50 {
            let series = samples(&telemetry.render(&snapshot));
            let count = series["pgleash_checkouts_total{pool=\"app@payments\"}"];
            assert!(count >= before, "a counter never falls");
            before = count;
        }
    });
    let series = samples(&telemetry.render(&snapshot));
    for pool in ["app@payments", "comer@late"] {
        let half = (THREADS * EACH / 2) as f64;
        for family in ["checkouts_total", "checkins_total", "checkout_hold_duration_seconds_count"] {
            assert_eq!(series[&format!("pgleash_{family}{{pool=\"{pool}\"}}")], half, "{family} of {pool}");
        }
    }
}

#[test]
fn two_of_them_in_one_process_do_not_see_each_other() {
    let (one, other) = (after_the_incident(), telemetry());
    let timeouts = "pgleash_checkout_timeouts_total{pool=\"app@payments\"}";
    assert_eq!(samples(&one.render(&fixtures::incident()))[timeouts], 1.0);
    assert_eq!(samples(&other.render(&fixtures::incident()))[timeouts], 0.0);
}

#[test]
fn a_log_file_that_cannot_be_opened_is_named() {
    let error = open_log("/nonexistent/pgleash.log").err().unwrap();
    assert!(error.to_string().contains("/nonexistent/pgleash.log"), "{error}");
}

#[test]
fn a_log_file_is_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.log");
    for _ in 0..2 {
        let telemetry = Telemetry::start(open_log(path.to_str().unwrap()).unwrap()).unwrap();
        telemetry.emit(Event::Stopped { drained: true, clients_cut: 0 });
        assert!(telemetry.flush(SOON));
    }
    assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 2);
}

fn telemetry() -> Telemetry {
    Telemetry::start(Box::new(io::sink())).unwrap()
}

fn after_the_incident() -> Telemetry {
    let telemetry = telemetry();
    for event in fixtures::events() {
        telemetry.emit(event);
    }
    telemetry
}

fn evidence(session: u32) -> Evidence {
    Evidence { holder: fixtures::holder(session, "web"), ..fixtures::evidence() }
}

/// A log that a test can read.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().write(text)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logged() -> (Telemetry, Shared) {
    let log = Shared::default();
    (Telemetry::start(Box::new(log.clone())).unwrap(), log)
}

/// A log whose writes block until a test drops the other end.
struct BlockedLog {
    blocked: Receiver<()>,
    entered: Sender<()>,
}

impl BlockedLog {
    fn new() -> (Self, Sender<()>, Receiver<()>) {
        let ((unblock, blocked), (entered, seen)) = (channel(), channel());
        (Self { blocked, entered }, unblock, seen)
    }
}

impl Write for BlockedLog {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let _ = self.entered.send(());
        let _ = self.blocked.recv();
        Ok(text.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Series to value. A label value is kept as it is written.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn families(page: &str) -> BTreeSet<String> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(str::to_owned).collect()
}

/// For each family its type, help, and label names with the values of closed sets.
fn catalogue(page: &str) -> String {
    let mut by_name: BTreeMap<&str, (BTreeSet<String>, String, &str)> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.is_empty()) {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            by_name.entry(name).or_default().1 = help.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            by_name.entry(name).or_default().2 = kind;
        } else if let Some((name, rest)) = line.split_once('{') {
            let family =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            let (labels, _) = rest.rsplit_once('}').unwrap();
            by_name.entry(family).or_default().0.insert(labels.replace(",", " "));
        }
    }
    let mut text = String::new();
    for (name, (series, help, kind)) in by_name {
        text += &format!("{name} ({kind})\n    {help}\n");
        let payments: Vec<_> = series.iter().filter(|labels| !labels.contains("analyst@reports")).collect();
        text += &payments.iter().map(|labels| format!("    {labels}\n")).collect::<String>();
    }
    text
}
