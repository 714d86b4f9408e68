//! From start to stop.

use std::time::{Duration, Instant};

use crate::support::raw;
use crate::support::{Leash, Mode, Server, eventually, in_both_modes, nobody_is_left, within};

in_both_modes! {
    sigterm_lets_work_finish,
    a_drain_has_an_end,
    a_second_sigint_quits_at_once,
    draining_is_not_leaking,
}

#[tokio::test]
async fn the_admin_pages_answer() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).start().await;
    for path in ["/healthz", "/readyz", "/", "/metrics", "/api/v1/snapshot", "/api/v1/events"] {
        assert_eq!(leash.get(path).await.0, 200, "{path}");
    }
    let metrics = leash.metrics().await;
    assert!(metrics.names().iter().all(|name| name.starts_with("pgleash_") || name.starts_with("process_")));
    assert_eq!(metrics.sum("enforcement_enabled", &[]), 1.0);
    let snapshot = leash.snapshot().await;
    assert_eq!((&snapshot["action"], &snapshot["enforcing"]), (&"reclaim".into(), &true.into()));
    crate::support::finish(leash, &database).await;
}

#[tokio::test]
async fn each_event_line_is_json_with_time_and_level() {
    let database = Server::shared().database().await;
    let mut leash = Leash::on(&database).start().await;
    let client = leash.endpoint().connect("client").await;
    assert_eq!(client.one("SELECT 'a secret literal'").await, "a secret literal");
    client.close().await;
    leash.event("connection_opened", |event| event["pool"] == format!("app@{}", database.name)).await;
    for event in leash.events() {
        let time = event["time"].as_str().unwrap_or_default();
        assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{event}");
        assert!(event["level"].is_string() && event["event"].is_string(), "{event}");
        assert!(!event.to_string().contains("secret literal"), "{event}");
    }
    crate::support::finish(leash, &database).await;
}

async fn sigterm_lets_work_finish(mode: Mode) {
    let database = Server::shared().database().await;
    let mut leash = Leash::on(&database)
        .mode(mode)
        .set("drain_timeout", "20s")
        .expecting(&["client_refused"])
        .start()
        .await;
    let mut idle = leash.endpoint().raw("idle").await;
    idle.query("CREATE TABLE t (n int)").await;
    let mut busy = leash.endpoint().raw("busy").await;
    busy.query("BEGIN").await;
    busy.query("INSERT INTO t VALUES (1)").await;
    leash.sigterm();
    let draining = leash.event("draining", |_| true).await;
    assert_eq!(draining["clients"], 2, "{draining}");
    // Who does nothing is asked to leave; who is at work may finish it.
    assert_eq!(idle.fatal().await.field('C'), "57P01");
    busy.query("INSERT INTO t VALUES (2)").await;
    busy.send(&raw::query("COMMIT")).await;
    assert_eq!(raw::tags(&busy.until_ready().await), "CZ");
    assert_eq!(busy.fatal().await.field('C'), "57P01");
    let status = within(Duration::from_secs(5), "it ends once nobody is left", leash.wait_exit()).await;
    assert_eq!(status.code(), Some(0));
    let stopped = leash.event("stopped", |_| true).await;
    assert_eq!((&stopped["drained"], &stopped["clients_cut"]), (&true.into(), &0.into()), "{stopped}");
    nobody_is_left(&database).await;
    let direct = database.direct().connect("harness").await;
    assert_eq!(direct.one("SELECT count(*) FROM t").await, "2");
    direct.close().await;
    leash.assert_calm();
}

async fn a_drain_has_an_end(mode: Mode) {
    let database = Server::shared().database().await;
    let mut leash = Leash::on(&database)
        .mode(mode)
        .set("drain_timeout", "1s")
        .expecting(&["leak_detected"])
        .start()
        .await;
    let mut stuck = leash.endpoint().raw("stuck").await;
    stuck.query("BEGIN").await;
    let mut slow = leash.endpoint().raw("slow").await;
    slow.send(&raw::query("SELECT pg_sleep(300)")).await;
    leash
        .pool_when("both hold", |pool| pool["holders"].as_array().is_some_and(|holders| holders.len() == 2))
        .await;
    leash.sigterm();
    let status = within(Duration::from_secs(8), "it ends at the limit", leash.wait_exit()).await;
    assert_eq!(status.code(), Some(0));
    let stopped = leash.event("stopped", |_| true).await;
    assert_eq!((&stopped["drained"], &stopped["clients_cut"]), (&false.into(), &2.into()), "{stopped}");
    assert_eq!(stuck.fatal().await.field('C'), "57P01");
    nobody_is_left(&database).await;
    leash.assert_calm();
}

async fn a_second_sigint_quits_at_once(mode: Mode) {
    let database = Server::shared().database().await;
    let mut leash = Leash::on(&database).mode(mode).set("drain_timeout", "60s").start().await;
    let mut stuck = leash.endpoint().raw("stuck").await;
    stuck.query("BEGIN").await;
    leash.sigint();
    leash.event("draining", |_| true).await;
    let second = Instant::now();
    leash.sigint();
    within(Duration::from_secs(5), "it quits", leash.wait_exit()).await;
    assert!(second.elapsed() < Duration::from_secs(3), "it took its time: {:?}", second.elapsed());
    stuck.until_closed().await;
    nobody_is_left(&database).await;
    assert!(!leash.stderr().contains("panicked"), "{}", leash.stderr());
}

/// Enforcement stops first: a holder that would be taken is left to finish.
async fn draining_is_not_leaking(mode: Mode) {
    let database = Server::shared().database().await;
    let setup =
        Leash::on(&database).mode(mode).set("drain_timeout", "60s").set("leaks.idle_in_transaction", "1s");
    let mut leash = setup.expecting(&["leak_detected", "reclaim_suppressed", "client_refused"]).start().await;
    let mut holder = leash.endpoint().raw("holder").await;
    holder.query("CREATE TABLE t (n int)").await;
    holder.query("BEGIN").await;
    // A statement is in flight until the drain has begun: the limit, which is short, cannot pass before it.
    let admin = database.admin().await;
    admin.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
    holder.send(&raw::query("INSERT INTO t VALUES (1)")).await;
    leash.pool_when("it waits for the lock", |pool| pool["connections"]["active"] == 1).await;
    leash.sigterm();
    leash.event("draining", |_| true).await;
    admin.batch_execute("COMMIT").await.unwrap();
    admin.close().await;
    assert_eq!(raw::tags(&holder.until_ready().await), "CZ");
    assert_eq!(leash.snapshot().await["enforcing"], false);
    assert_eq!(leash.get("/readyz").await.0, 503);
    assert_eq!(leash.get("/healthz").await.0, 200);
    eventually("the limit has passed", async || {
        let idle = leash.pool().await["holders"][0]["idle_seconds"].as_f64()?;
        (idle > 1.5).then_some(())
    })
    .await;
    holder.send(&raw::query("COMMIT")).await;
    assert_eq!(raw::tags(&holder.until_ready().await), "CZ");
    assert_eq!(holder.fatal().await.field('C'), "57P01");
    assert_eq!(leash.wait_exit().await.code(), Some(0));
    leash.assert_calm();
}
