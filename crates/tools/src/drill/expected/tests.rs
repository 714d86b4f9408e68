use super::*;

const LIMITS: Limits = Limits {
    idle_in_transaction: Duration::from_secs(2),
    idle_session: Duration::from_secs(4),
    floor: Duration::from_secs(5),
    budget_window: Duration::from_secs(4),
    wait_timeout: Duration::from_secs(2),
};

fn planted(session: u32, leak: Leak, at: u64) -> Planted {
    Planted { session, leak, at: Duration::from_secs(at) }
}

fn event(at: u64, text: &str) -> TimedEvent {
    (Duration::from_secs(at), serde_json::from_str(text).unwrap())
}

fn detected(at: u64, session: u32, reason: &str) -> TimedEvent {
    event(at, &format!(r#"{{"event":"leak_detected","session":{session},"reason":"{reason}"}}"#))
}

fn resolved(at: u64, session: u32, resolution: &str) -> TimedEvent {
    let text = format!(
        r#"{{"event":"leak_resolved","session":{session},"reason":"idle_session","resolution":"{resolution}",
            "idle_seconds":4.1,"limit_seconds":4.0}}"#
    );
    event(at, &text)
}

fn sound_books() -> Audit {
    Audit { books: Books { payments: 10, sums_agree: true }, acknowledged: 10, in_doubt: 0 }
}

fn verdict(leaks: &Leaks, audit: &Audit) -> Verdict {
    let mut verdict = Verdict::default();
    let named = Named { app: "payments@1.9.0".to_owned(), route: "POST /refund".to_owned() };
    let leaks = Leaks { named_first: Some(named), ..leaks.clone() };
    verdict.weigh("with", Kind::Incident, &leaks, audit);
    verdict
}

#[test]
fn two_leaks_are_found_in_time_and_taken_back_and_a_suspect_comes_home() {
    let leaks = [planted(1, Leak::MidTransaction, 10), planted(2, Leak::AfterCommit, 20)];
    let events = [
        detected(11, 1, "idle_in_transaction"),
        resolved(12, 1, "reclaimed"),
        detected(15, 3, "idle_in_transaction"),
        resolved(16, 3, "returned"),
        detected(22, 2, "idle_session"),
        resolved(24, 2, "reclaimed"),
    ];
    let judged = judge(Action::Reclaim, &LIMITS, &leaks, &[], &events);
    assert_eq!((judged.planted, judged.found, judged.reclaimed, judged.wrong_reason), (2, 2, 2, 0));
    assert_eq!((judged.suspects_came_home, judged.regrets), (1, 0));
    let after_commit = &judged.delays[1];
    assert_eq!(after_commit.to_detection.unwrap().median_seconds, 2.0);
    assert_eq!(after_commit.to_reclaim.unwrap().median_seconds, 4.0);
    assert!(verdict(&judged, &sound_books()).passed());
}

#[test]
fn a_leak_that_was_found_but_not_taken_back_is_missed_when_reclaiming_and_not_when_observing() {
    let leaks = [planted(1, Leak::MidTransaction, 10)];
    let events = [detected(11, 1, "idle_in_transaction"), resolved(60, 1, "disconnected")];
    let judged = judge(Action::Reclaim, &LIMITS, &leaks, &[], &events);
    assert!(judged.missed[0].found);
    assert_eq!(
        verdict(&judged, &sound_books()).failings,
        [Failing::Missed { run: "with", leaks: 1 }],
        "the drill fails"
    );
    let observed = judge(Action::Observe, &LIMITS, &leaks, &[], &events);
    assert!(verdict(&observed, &sound_books()).passed());
}

#[test]
fn a_leak_that_nobody_named_is_missed_in_either_run() {
    let leaks = [planted(1, Leak::AfterCommit, 10)];
    for action in [Action::Observe, Action::Reclaim] {
        let judged = judge(action, &LIMITS, &leaks, &[], &[detected(11, 2, "idle_session")]);
        assert_eq!(judged.missed.len(), 1);
        assert!(!verdict(&judged, &sound_books()).passed());
    }
}

#[test]
fn a_healthy_checkout_that_was_taken_fails_the_drill_with_its_evidence() {
    let leaks = [planted(1, Leak::AfterCommit, 1)];
    let events = [detected(2, 1, "idle_session"), resolved(3, 1, "reclaimed"), resolved(5, 9, "reclaimed")];
    let judged = judge(Action::Reclaim, &LIMITS, &leaks, &[], &events);
    assert_eq!(judged.healthy_killed[0].idle_and_limit_seconds, Some((4.1, 4.0)));
    let verdict = verdict(&judged, &sound_books());
    assert_eq!(verdict.failings, [Failing::HealthyKilled { run: "with", checkouts: 1 }]);
    assert!(verdict.to_string().starts_with("FAILED"), "{verdict}");
}

#[test]
fn a_kill_that_only_the_client_noticed_counts_too_and_once() {
    let cut = |session| Cut { session, code: "25P03".into(), at: Duration::from_secs(5) };
    let judged = judge(Action::Reclaim, &LIMITS, &[], &[cut(9), cut(9)], &[resolved(5, 9, "reclaimed")]);
    assert_eq!(judged.healthy_killed.len(), 1);
    let judged = judge(Action::Reclaim, &LIMITS, &[], &[cut(8)], &[]);
    assert_eq!(judged.healthy_killed.len(), 1);
}

#[test]
fn a_wrong_reason_and_a_regret_and_a_suppression_are_counted() {
    let leaks = [planted(1, Leak::AfterCommit, 10)];
    let events = [
        detected(11, 1, "idle_in_transaction"),
        event(12, r#"{"event":"reclaim_suppressed","session":1,"because":"budget"}"#),
        event(13, r#"{"event":"reclaim_regretted","session":1}"#),
    ];
    let judged = judge(Action::Reclaim, &LIMITS, &leaks, &[], &events);
    assert_eq!((judged.wrong_reason, judged.regrets, judged.suppressed["budget"]), (1, 1, 1));
    assert!(
        verdict(&judged, &sound_books()).failings.contains(&Failing::Regretted { run: "with", reclaims: 1 })
    );
}

#[test]
fn a_run_in_which_nothing_was_planted_proves_nothing() {
    let judged = judge(Action::Reclaim, &LIMITS, &[], &[], &[]);
    assert_eq!(verdict(&judged, &sound_books()).failings, [Failing::NothingPlanted { run: "with" }]);
}

#[test]
fn the_books_balance_only_if_every_acknowledged_payment_is_there_and_no_other() {
    let audit =
        |payments, sums_agree| Audit { books: Books { payments, sums_agree }, acknowledged: 10, in_doubt: 2 };
    assert!(audit(10, true).balances() && audit(12, true).balances());
    assert!(!audit(9, true).balances(), "an acknowledged payment is gone");
    assert!(!audit(13, true).balances(), "a rolled back payment is booked");
    assert!(!audit(10, false).balances());
    let leaks = [planted(1, Leak::AfterCommit, 1)];
    let found = judge(Action::Observe, &LIMITS, &leaks, &[], &[detected(2, 1, "idle_session")]);
    let verdict = verdict(&found, &audit(9, true));
    assert_eq!(verdict.failings, [Failing::BooksDoNotBalance { run: "with" }]);
}

#[test]
fn a_cause_that_is_not_named_first_fails_the_drill() {
    let leaks = [planted(1, Leak::MidTransaction, 10)];
    let events = [detected(11, 1, "idle_in_transaction"), resolved(12, 1, "reclaimed")];
    let judged = judge(Action::Reclaim, &LIMITS, &leaks, &[], &events);
    let victim = Named { app: "payments@1.9.0".to_owned(), route: "POST /pay".to_owned() };
    for named_first in [None, Some(victim)] {
        let mut verdict = Verdict::default();
        let judged = Leaks { named_first: named_first.clone(), ..judged.clone() };
        verdict.weigh("with", Kind::Incident, &judged, &sound_books());
        assert_eq!(verdict.failings, [Failing::Misnamed { run: "with", named: named_first }]);
    }
}

#[test]
fn where_nothing_leaks_nothing_may_be_taken() {
    let calm = judge(Action::Reclaim, &LIMITS, &[], &[], &[detected(11, 3, "slow_statement")]);
    let mut verdict = Verdict::default();
    verdict.weigh("with", Kind::SlowQueries, &calm, &sound_books());
    assert_eq!(verdict.to_string(), "PASSED: nothing leaked, and nothing was taken back");
    let hit = judge(Action::Reclaim, &LIMITS, &[], &[], &[resolved(12, 3, "reclaimed")]);
    verdict.weigh("with", Kind::SlowQueries, &hit, &sound_books());
    assert_eq!(verdict.failings, [Failing::HealthyKilled { run: "with", checkouts: 1 }]);
}
