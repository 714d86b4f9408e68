use super::*;
use crate::fixtures::{events, evidence, payments};

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn record(event: Event, seconds: u64) -> Record {
    Record { seq: 1, time: at(seconds), event }
}

fn suspect(checkout: u64) -> Evidence {
    Evidence { checkout: CheckoutId(checkout), ..evidence() }
}

fn detected(checkout: u64) -> Event {
    let reason = Reason::IdleInTransaction;
    Event::LeakDetected { pool: payments(), reason, evidence: suspect(checkout) }
}

fn taken_back(checkout: u64) -> Event {
    let (reason, resolution) = (Reason::IdleInTransaction, Resolution::Reclaimed);
    Event::LeakResolved {
        pool: payments(),
        reason,
        resolution,
        left_alone: None,
        evidence: suspect(checkout),
    }
}

#[test]
fn many_leaks_are_one_incident_with_a_begin_and_an_end() {
    let mut incidents = Incidents::default();
    let begin = incidents.hear(&record(detected(1), 100)).unwrap();
    assert_eq!(
        (begin.status, begin.severity, begin.what),
        (Status::Triggered, Severity::Warning, "idle_in_transaction")
    );
    assert_eq!((begin.pool.as_str(), begin.app.as_str()), ("app@payments", "checkout-api"));
    for checkout in 2..=40 {
        assert_eq!(incidents.hear(&record(detected(checkout), 100 + checkout)), None);
        assert_eq!(incidents.hear(&record(taken_back(checkout - 1), 130 + checkout)), None);
    }
    assert_eq!(incidents.quiet(at(10_000)), [], "one is still out");
    incidents.hear(&record(taken_back(40), 200));
    assert_eq!(incidents.quiet(at(499)), [], "more may follow");
    let end = incidents.quiet(at(500)).pop().unwrap();
    assert_eq!((end.status, &end.key, end.count), (Status::Resolved, &begin.key, 40));
    assert_eq!(end.summary, "idle_in_transaction in app@payments is over: 40 in 1.7 min, 40 taken back");
    assert_ne!(incidents.hear(&record(detected(41), 501)).unwrap().key, begin.key, "a new incident");
}

#[test]
fn a_server_that_is_away_is_over_as_soon_as_it_is_back() {
    let mut incidents = Incidents::default();
    let failed = || Event::UpstreamFailed {
        pool: payments(),
        sqlstate: "08006".to_owned(),
        detail: "connection refused".to_owned(),
    };
    let begin = incidents.hear(&record(failed(), 10)).unwrap();
    assert_eq!((begin.severity, incidents.hear(&record(failed(), 11))), (Severity::Critical, None));
    let back = Event::UpstreamRecovered { pool: payments(), down_seconds: 7.0, attempts: 9 };
    let end = incidents.hear(&record(back.clone(), 17)).unwrap();
    assert_eq!((end.status, end.key), (Status::Resolved, begin.key));
    assert_eq!(incidents.hear(&record(back, 18)), None, "of nothing that was told");
}

#[test]
fn of_a_whole_incident_only_what_needs_somebody_is_told() {
    let mut incidents = Incidents::default();
    let told = events().into_iter().filter_map(|event| incidents.hear(&record(event, 1)));
    let told: Vec<_> = told.map(|notice| (notice.status, notice.what)).collect();
    let triggered = |what| (Status::Triggered, what);
    let expected = [
        triggered("upstream_unreachable"),
        (Status::Resolved, "upstream_unreachable"),
        triggered("idle_in_transaction"),
        triggered("pool_exhausted"),
        triggered("budget_exhausted"),
        triggered("false_reclaim"),
        triggered("credentials_kept"),
        triggered("reload_refused"),
    ];
    assert!(expected.iter().all(|what| told.contains(what)), "{told:?}");
    assert_eq!(told.len(), expected.len(), "{told:?}");
}

#[test]
fn facts_that_were_missed_do_not_keep_an_incident_open_for_ever() {
    let mut incidents = Incidents::default();
    incidents.hear(&record(detected(1), 100));
    incidents.missed();
    assert_eq!(incidents.quiet(at(400)).len(), 1);
}

#[test]
fn the_incidents_at_one_time_are_bounded() {
    let mut incidents = Incidents::default();
    for n in 0..1000 {
        let pool = PoolKey::new("shop", &format!("user{n}"));
        let reason = Reason::IdleSession;
        incidents.hear(&record(Event::LeakDetected { pool, reason, evidence: suspect(n) }, 1));
    }
    assert_eq!(incidents.open.len(), Incidents::MOST + 1);
}
