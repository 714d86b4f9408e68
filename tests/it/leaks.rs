//! Leaks: found, told, taken back, counted; and what is never taken.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::raw::{self, Raw};
use crate::support::{Database, Leash, Mode, Server, Setup, eventually, finish, in_both_modes};

in_both_modes! {
    an_idle_transaction_is_taken_back,
    a_reclaim_serves_the_one_who_waits,
    observe_finds_and_does_not_act,
    observe_comes_to_the_verdicts_of_reclaim,
    a_slow_statement_is_reported_and_never_taken,
    a_missing_sync_is_a_wedge,
    a_missing_sync_after_a_flush_is_a_wedge,
    an_abandoned_copy_is_a_wedge,
    half_a_message_is_a_wedge,
    half_a_message_in_a_transaction_is_a_wedge,
    half_a_message_before_the_reclaim_is_no_regret,
    rows_that_nobody_reads_are_reported_and_not_taken,
    a_failed_transaction_left_open_is_taken_back,
    the_budget_holds,
    a_suspect_that_comes_home_is_counted_as_returned,
    a_holder_that_speaks_after_the_reclaim_is_regretted,
    healthy_neighbours_are_left_alone,
    a_holder_that_moves_starts_afresh,
    a_stalled_data_path_wrongs_nobody,
}

/// What a story of leaks is allowed to say.
const TOLD: &[&str] = &["leak_detected", "reclaim_suppressed", "reclaim_regretted", "recycled"];

/// pgleash with a limit of `limit` for idle transactions, over a database with a table `t`.
async fn leaky(mode: Mode, limit: &str, size: usize, more: impl Fn(Setup) -> Setup) -> (Database, Leash) {
    leaky_on(Server::shared(), mode, limit, size, more).await
}

async fn leaky_on(
    server: &Server,
    mode: Mode,
    limit: &str,
    size: usize,
    more: impl Fn(Setup) -> Setup,
) -> (Database, Leash) {
    let database = server.database().await;
    let app = database.direct().connect("harness").await;
    app.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    app.close().await;
    let setup = Leash::on(&database).mode(mode).set("leaks.idle_in_transaction", limit);
    let setup = setup.set("pool.size", size).set("leaks.budget", "100%/1m").expecting(TOLD);
    (database, more(setup).start().await)
}

/// A client that leaks: it begins, writes, and is silent.
async fn leak(leash: &Leash, app: &str) -> Raw {
    let mut leaker = leash.endpoint().raw(app).await;
    leaker.query("BEGIN").await;
    leaker.query("INSERT INTO t VALUES (1)").await;
    leaker
}

fn of(session: u32) -> impl Fn(&Value) -> bool {
    move |event| event["session"] == session
}

/// The whole story in the events: detected, resolved as reclaimed, recycled.
async fn assert_reclaimed(leash: &mut Leash, session: u32, reason: &str) -> Value {
    let detected = leash.event("leak_detected", of(session)).await;
    assert_eq!(detected["reason"], reason, "{detected}");
    let resolved = leash.event("leak_resolved", of(session)).await;
    assert_eq!(
        (&resolved["resolution"], &resolved["reason"]),
        (&"reclaimed".into(), &reason.into()),
        "{resolved}"
    );
    let idle = resolved["idle_seconds"].as_f64().unwrap();
    let limit = resolved["limit_seconds"].as_f64().unwrap();
    assert!(idle >= limit, "taken before its time: {resolved}");
    assert!(idle < limit + 2.0, "taken late: {resolved}");
    leash.event("recycled", |event| event["checkout"] == detected["checkout"]).await
}

async fn an_idle_transaction_is_taken_back(mode: Mode) {
    let (database, mut leash) = leaky(mode, "3s", 1, |setup| setup).await;
    let mut leaker = leak(&leash, "forgetful").await;
    let backend = leaker.one("SELECT pg_backend_pid()").await;
    let suspect = leash
        .pool_when("the holder is suspect", |pool| pool["holders"][0]["suspect"] == "idle_in_transaction")
        .await;
    let holder = &suspect["holders"][0];
    assert_eq!((&holder["app"], &holder["session"]), (&"forgetful".into(), &leaker.pid.into()));
    assert!(!holder["why"].as_str().unwrap().is_empty() && !holder["next"].as_str().unwrap().is_empty());

    let told = leaker.fatal().await;
    assert_eq!(told.field('C'), "25P03", "{}", told.field('M'));
    let recycled = assert_reclaimed(&mut leash, leaker.pid, "idle_in_transaction").await;
    assert_eq!(
        (&recycled["action"], &recycled["outcome"]),
        (&"reset".into(), &"reissued".into()),
        "{recycled}"
    );

    let mut next = leash.endpoint().raw("next").await;
    assert_eq!(next.one("SELECT pg_backend_pid()").await, backend, "the backend was re-issued");
    assert_eq!(next.one("SELECT count(*) FROM t").await, "0", "the leaked transaction was rolled back");
    let metrics = leash.metrics().await;
    assert_eq!(metrics.sum("leaks_detected_total", &[("reason", "idle_in_transaction")]), 1.0);
    assert_eq!(metrics.sum("leaks_resolved_total", &[("resolution", "reclaimed")]), 1.0);
    assert_eq!(metrics.sum("recycles_total", &[("outcome", "reissued")]), 1.0);
    assert_eq!(metrics.sum("reclaims_regretted_total", &[]), 0.0);
    next.close().await;
    finish(leash, &database).await;
}

async fn a_reclaim_serves_the_one_who_waits(mode: Mode) {
    let (database, mut leash) = leaky(mode, "1s", 1, |setup| setup.set("pool.wait_timeout", "20s")).await;
    let mut leaker = leak(&leash, "forgetful").await;
    let waiter = leash.endpoint().connect("waiter").await;
    assert_eq!(waiter.one("SELECT 'served'").await, "served");
    waiter.close().await;
    assert_eq!(leaker.fatal().await.field('C'), "25P03");
    assert_reclaimed(&mut leash, leaker.pid, "idle_in_transaction").await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn an_idle_session_is_taken_back() {
    let (database, mut leash) =
        leaky(Mode::Session, "30s", 1, |setup| setup.set("leaks.idle_session", "1s")).await;
    let mut sleeper = leash.endpoint().raw("sleeper").await;
    let backend = sleeper.one("SELECT pg_backend_pid()").await;
    let told = sleeper.fatal().await;
    assert_eq!(told.field('C'), "57P05", "{}", told.field('M'));
    assert_reclaimed(&mut leash, sleeper.pid, "idle_session").await;
    let next = leash.endpoint().connect("next").await;
    assert_eq!(next.backend_pid().await.to_string(), backend);
    next.close().await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn an_idle_session_that_holds_nothing_is_no_leak() {
    let (database, leash) =
        leaky(Mode::Transaction, "1s", 2, |setup| setup.set("leaks.idle_session", "1s")).await;
    let quiet = leash.endpoint().connect("quiet").await;
    assert_eq!(quiet.one("SELECT 1").await, "1");
    // It has been idle for longer than another that leaked and was taken back.
    let mut leaker = leak(&leash, "forgetful").await;
    assert_eq!(leaker.fatal().await.field('C'), "25P03");
    assert_eq!(quiet.one("SELECT 2").await, "2");
    quiet.close().await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_listener_holds_for_a_reason() {
    let (database, leash) =
        leaky(Mode::Session, "1s", 2, |setup| setup.set("leaks.idle_session", "1s")).await;
    let mut listener = leash.endpoint().connect("listener").await;
    listener.batch_execute("LISTEN news").await.unwrap();
    let mut sleeper = leash.endpoint().raw("sleeper").await;
    sleeper.query("SELECT 1").await;
    assert_eq!(sleeper.fatal().await.field('C'), "57P05");
    let speaker = database.admin().await;
    speaker.batch_execute("NOTIFY news, 'still there'").await.unwrap();
    assert_eq!(listener.notification().await.payload(), "still there");
    speaker.close().await;
    listener.close().await;
    finish(leash, &database).await;
}

async fn observe_finds_and_does_not_act(mode: Mode) {
    let (database, mut leash) = leaky(mode, "1s", 1, |setup| setup.set("leaks.action", "observe")).await;
    let mut holder = leak(&leash, "observed").await;
    leash.event("leak_detected", of(holder.pid)).await;
    let suppressed = leash.event("reclaim_suppressed", of(holder.pid)).await;
    assert_eq!(suppressed["because"], "observe");
    // It is left in peace, and can still finish.
    holder.query("COMMIT").await;
    let resolved = leash.event("leak_resolved", of(holder.pid)).await;
    assert_eq!(resolved["resolution"], "returned");
    let seconds = |key: &str| resolved[key].as_f64().unwrap();
    assert_eq!(resolved["left_alone"], "observe", "what came of the verdict is told: {resolved}");
    assert!(seconds("left_alone_seconds") > 0.0, "{resolved}");
    assert!(seconds("idle_seconds") >= seconds("limit_seconds"), "the pause that has ended: {resolved}");
    assert_eq!(holder.one("SELECT count(*) FROM t").await, "1");
    holder.close().await;
    assert_eq!(leash.events_named("reclaim_suppressed").len(), 1, "told once for each checkout");
    let metrics = leash.metrics().await;
    assert_eq!(metrics.sum("reclaims_suppressed_total", &[("reason", "observe")]), 1.0);
    assert_eq!(metrics.sum("leaks_resolved_total", &[("resolution", "reclaimed")]), 0.0);
    assert_eq!(metrics.sum("dry_run_outcomes_total", &[("resolution", "returned")]), 1.0);
    assert_eq!(metrics.sum("enforcement_enabled", &[]), 0.0);
    finish(leash, &database).await;
}

/// The budget is spent on what would have been taken, and the server is asked about a wedge.
async fn observe_comes_to_the_verdicts_of_reclaim(mode: Mode) {
    let (database, mut leash) =
        leaky(mode, "1s", 4, |setup| setup.set("leaks.action", "observe").set("leaks.budget", "25%/3s"))
            .await;
    let mut wedged = leash.endpoint().raw("wedged").await;
    wedged.send(&[raw::parse("", "SELECT 1"), raw::flush()].concat()).await;
    let verdict = leash.event("reclaim_suppressed", of(wedged.pid)).await;
    assert_eq!((&verdict["because"], &verdict["reason"]), (&"observe".into(), &"protocol_wedge".into()));
    let second = leak(&leash, "second").await;
    let verdict = leash.event("reclaim_suppressed", of(second.pid)).await;
    assert_eq!(verdict["because"], "budget", "one of four in three seconds");
    let of_second = of(second.pid);
    leash.event("reclaim_suppressed", |event| of_second(event) && event["because"] == "observe").await;

    wedged.send(&raw::sync()).await;
    let resolved = leash.event("leak_resolved", of(wedged.pid)).await;
    assert_eq!((&resolved["resolution"], &resolved["left_alone"]), (&"returned".into(), &"observe".into()));
    drop(second);
    // It is orphaned as well, which needs no verdict.
    let judged = |event: &Value| of_second(event) && event["left_alone"] != Value::Null;
    let resolved = leash.event("leak_resolved", judged).await;
    assert_eq!(
        (&resolved["resolution"], &resolved["left_alone"]),
        (&"disconnected".into(), &"observe".into())
    );
    let metrics = leash.metrics().await;
    let outcomes = |end: &str| metrics.sum("dry_run_outcomes_total", &[("resolution", end)]);
    assert_eq!((outcomes("returned"), outcomes("disconnected")), (1.0, 1.0));
    drop(wedged);
    finish(leash, &database).await;
}

async fn a_slow_statement_is_reported_and_never_taken(mode: Mode) {
    let (database, mut leash) = leaky(mode, "1s", 1, |setup| setup.set("leaks.idle_session", "1s")).await;
    let mut slow = leash.endpoint().raw("slow").await;
    slow.send(&raw::query("SELECT pg_sleep(4)")).await;
    let reported = leash.event("leak_detected", of(slow.pid)).await;
    assert_eq!(reported["reason"], "slow_statement");
    assert_eq!(raw::tags(&slow.until_ready().await), "TDCZ", "it runs to its end");
    let resolved = leash.event("leak_resolved", of(slow.pid)).await;
    assert_eq!(resolved["resolution"], "returned");
    slow.close().await;
    finish(leash, &database).await;
}

async fn assert_wedged(leash: &mut Leash, mut client: Raw) {
    let told = client.fatal().await;
    assert_eq!(told.field('C'), "08P01", "{}", told.field('M'));
    assert_reclaimed(leash, client.pid, "protocol_wedge").await;
}

async fn serves(leash: &Leash) {
    let next = leash.endpoint().connect("next").await;
    assert_eq!(next.one("SELECT count(*) FROM t").await, "0");
    next.close().await;
}

async fn a_missing_sync_is_a_wedge(mode: Mode) {
    let (database, mut leash) = leaky(mode, "1s", 1, |setup| setup).await;
    let mut client = leash.endpoint().raw("no-sync").await;
    let insert = [raw::parse("", "INSERT INTO t VALUES (1)"), raw::bind("", &[]), raw::execute(0)];
    client.send(&insert.concat()).await;
    assert_wedged(&mut leash, client).await;
    serves(&leash).await;
    finish(leash, &database).await;
}

/// Its length is lawful, and the rest never comes.
async fn half_a_message_is_a_wedge(mode: Mode) {
    let (database, mut leash) = leaky(mode, "1s", 1, |setup| setup).await;
    let mut client = leash.endpoint().raw("half").await;
    client.send(&raw::query(&"x".repeat(100_000))[..2_000]).await;
    assert_wedged(&mut leash, client).await;
    serves(&leash).await;
    finish(leash, &database).await;
}

async fn half_a_message_in_a_transaction_is_a_wedge(mode: Mode) {
    let (database, mut leash) = leaky(mode, "1s", 1, |setup| setup).await;
    let mut client = leak(&leash, "half").await;
    client.send(&raw::query(&"x".repeat(100_000))[..50_000]).await;
    assert_wedged(&mut leash, client).await;
    serves(&leash).await;
    finish(leash, &database).await;
}

/// A holder is regretted for what it says after the taking, and not for what it had begun to say before.
async fn half_a_message_before_the_reclaim_is_no_regret(mode: Mode) {
    let (database, mut leash) = leaky(mode, "1s", 1, |setup| setup).await;
    let mut client = leak(&leash, "half").await;
    client.send(&raw::parse("", "SELECT 1")[..4]).await;
    assert_eq!(client.fatal().await.field('C'), "25P03");
    assert_reclaimed(&mut leash, client.pid, "idle_in_transaction").await;
    client.kill();
    serves(&leash).await;
    assert_eq!(leash.events_named("reclaim_regretted"), Vec::<Value>::new());
    finish(leash, &database).await;
}

async fn a_missing_sync_after_a_flush_is_a_wedge(mode: Mode) {
    let (database, mut leash) = leaky(mode, "1s", 1, |setup| setup).await;
    let mut client = leash.endpoint().raw("no-sync").await;
    let insert =
        [raw::parse("", "INSERT INTO t VALUES (1)"), raw::bind("", &[]), raw::execute(0), raw::flush()];
    client.send(&insert.concat()).await;
    for tag in ['1', '2', 'C'] {
        client.expect(tag).await;
    }
    assert_wedged(&mut leash, client).await;
    serves(&leash).await;
    finish(leash, &database).await;
}

async fn an_abandoned_copy_is_a_wedge(mode: Mode) {
    let (database, mut leash) = leaky(mode, "1s", 1, |setup| setup).await;
    let mut client = leash.endpoint().raw("copier").await;
    client.send(&raw::query("COPY t FROM STDIN")).await;
    client.expect('G').await;
    client.send(&raw::copy_data("1\n")).await;
    assert_wedged(&mut leash, client).await;
    serves(&leash).await;
    finish(leash, &database).await;
}

async fn rows_that_nobody_reads_are_reported_and_not_taken(mode: Mode) {
    // A server of its own: a backend that cannot send holds up the others' CREATE and DROP DATABASE.
    let server = Server::private();
    let (database, mut leash) = leaky_on(&server, mode, "1s", 1, |setup| setup).await;
    let mut client = leash.endpoint().raw("unread").await;
    client.send(&raw::query("SELECT repeat('x', 1000) FROM generate_series(1, 1000000)")).await;
    // It may be a slow reader with a reason: rows are in flight, and that is never a leak.
    leash
        .event("leak_detected", |event| event["session"] == client.pid && event["reason"] == "slow_statement")
        .await;
    let pid = client.pid;
    drop(client);
    // Gone, it is an orphan: the statement is cancelled, and the connection serves the next one.
    let orphan =
        leash.event("leak_detected", |event| event["session"] == pid && event["reason"] == "orphaned").await;
    assert_eq!(orphan["app"], "unread");
    serves(&leash).await;
    finish(leash, &database).await;
}

async fn a_failed_transaction_left_open_is_taken_back(mode: Mode) {
    let (database, mut leash) = leaky(mode, "1s", 1, |setup| setup).await;
    let mut client = leak(&leash, "failed").await;
    let frames = client.query("SELECT 1/0").await;
    assert_eq!(frames.last().unwrap().body[0], b'E');
    assert_eq!(client.fatal().await.field('C'), "25P03");
    assert_reclaimed(&mut leash, client.pid, "idle_in_transaction").await;
    serves(&leash).await;
    finish(leash, &database).await;
}

async fn the_budget_holds(mode: Mode) {
    let (database, leash) = leaky(mode, "1s", 4, |setup| setup.set("leaks.budget", "25%/10m")).await;
    let mut leakers = Vec::new();
    for n in 0..3 {
        leakers.push(leak(&leash, &format!("leaker-{n}")).await);
    }
    let over_budget = eventually("two are over the budget", async || {
        let over: Vec<Value> = leash.events_named("reclaim_suppressed");
        (over.len() >= 2).then_some(over)
    })
    .await;
    assert!(over_budget.iter().all(|event| event["because"] == "budget"), "{over_budget:?}");
    let spared: Vec<u64> = over_budget.iter().map(|event| event["session"].as_u64().unwrap()).collect();
    let mut taken = 0;
    for mut leaker in leakers {
        if spared.contains(&u64::from(leaker.pid)) {
            leaker.query("COMMIT").await;
            leaker.close().await;
        } else {
            assert_eq!(leaker.fatal().await.field('C'), "25P03");
            taken += 1;
        }
    }
    assert_eq!(taken, 1, "25 % of 4 is one");
    assert!(leash.metrics().await.sum("reclaims_suppressed_total", &[("reason", "budget")]) >= 2.0);
    finish(leash, &database).await;
}

async fn a_suspect_that_comes_home_is_counted_as_returned(mode: Mode) {
    let (database, mut leash) = leaky(mode, "6s", 1, |setup| setup).await;
    let mut slow = leak(&leash, "thoughtful").await;
    leash.event("leak_detected", of(slow.pid)).await;
    slow.query("COMMIT").await;
    let resolved = leash.event("leak_resolved", of(slow.pid)).await;
    assert_eq!(resolved["resolution"], "returned");
    slow.close().await;
    assert_eq!(leash.metrics().await.sum("leaks_resolved_total", &[("resolution", "returned")]), 1.0);
    finish(leash, &database).await;
}

async fn a_holder_that_speaks_after_the_reclaim_is_regretted(mode: Mode) {
    let (database, mut leash) = leaky(mode, "1s", 1, |setup| setup).await;
    let mut holder = leak(&leash, "late").await;
    leash.event("leak_resolved", of(holder.pid)).await;
    holder.try_send(&raw::query("COMMIT")).await;
    assert_eq!(holder.fatal().await.field('C'), "25P03");
    let regretted = leash.event("reclaim_regretted", of(holder.pid)).await;
    assert!(regretted["after_seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!(leash.metrics().await.sum("reclaims_regretted_total", &[]), 1.0);
    serves(&leash).await;
    finish(leash, &database).await;
}

async fn healthy_neighbours_are_left_alone(mode: Mode) {
    let (database, mut leash) = leaky(mode, "1s", 4, |setup| setup).await;
    let busy = leash.endpoint().connect("busy").await;
    let mut leakers = Vec::new();
    for n in 0..3 {
        leakers.push(leak(&leash, &format!("leaker-{n}")).await);
    }
    // It thinks for a third of the limit between its statements, as long as the others are found.
    let started = Instant::now();
    let mut transactions = 0;
    while leash.events_named("leak_resolved").len() < 3 || transactions < 3 {
        assert!(started.elapsed() < Duration::from_secs(20), "the leaks are not found");
        busy.batch_execute("BEGIN").await.unwrap();
        busy.batch_execute("SELECT pg_sleep(0.05)").await.unwrap();
        tokio::time::sleep(Duration::from_millis(330)).await;
        busy.batch_execute("COMMIT").await.unwrap();
        transactions += 1;
    }
    for mut leaker in leakers {
        assert_eq!(leaker.fatal().await.field('C'), "25P03");
        assert_reclaimed(&mut leash, leaker.pid, "idle_in_transaction").await;
    }
    busy.close().await;
    let wronged = leash.events().into_iter().find(|event| event["app"] == "busy");
    assert!(wronged.is_none(), "{wronged:?}");
    finish(leash, &database).await;
}

async fn a_holder_that_moves_starts_afresh(mode: Mode) {
    let (database, leash) = leaky(mode, "2s", 1, |setup| setup).await;
    let mut holder = leak(&leash, "mover").await;
    for round in 1..=3 {
        let suspect = "it is suspect once more";
        eventually(suspect, async || (leash.events_named("leak_detected").len() == round).then_some(()))
            .await;
        holder.query("SELECT 1").await;
        let cleared = "the suspicion is dropped";
        eventually(cleared, async || (leash.events_named("leak_resolved").len() == round).then_some(()))
            .await;
    }
    holder.query("COMMIT").await;
    holder.close().await;
    let resolutions = leash.events_named("leak_resolved");
    assert!(resolutions[..3].iter().all(|event| event["resolution"] == "returned"), "{resolutions:?}");
    assert!(resolutions.iter().all(|event| event["resolution"] != "reclaimed"), "{resolutions:?}");
    finish(leash, &database).await;
}

/// While pgleash stands still, a healthy client's next statement waits in its socket: by what pgleash last
/// published the client is idle for longer than the limit, and it is not.
async fn a_stalled_data_path_wrongs_nobody(mode: Mode) {
    let (database, leash) = leaky(mode, "1s", 8, |setup| setup).await;
    let mut clients = Vec::new();
    for n in 0..8 {
        clients.push(leak(&leash, &format!("prompt-{n}")).await);
    }
    leash.signal("STOP");
    for client in &mut clients {
        client.send(&raw::query("COMMIT")).await;
    }
    // The stall itself: longer than the limit, from the last byte that pgleash has seen.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    leash.signal("CONT");
    for mut client in clients {
        assert_eq!(raw::tags(&client.until_ready().await), "CZ");
        client.close().await;
    }
    finish(leash, &database).await;
}
