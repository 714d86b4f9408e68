//! What an administrator may do: pause and resume, take a connection back, reload. And who may not.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::leash::TOKEN;
use crate::support::raw;
use crate::support::{Leash, Mode, Server, eventually_or, finish, in_both_modes, tick, within};

in_both_modes! {
    a_pause_lets_the_server_be_restarted_and_no_client_notices,
    a_paused_pgleash_can_be_drained,
    a_checkout_is_taken_back_by_hand_but_never_at_work,
}

#[tokio::test]
async fn nobody_is_heard_without_the_token() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).control().start().await;
    for authorization in ["", "Bearer", "Bearer a-token-that-nobody-must-sea", TOKEN, "Basic YTpi"] {
        let (status, body) = leash.control("POST /api/v1/pause", authorization).await;
        assert_eq!(status, 401, "{authorization}: {body}");
        assert!(serde_json::from_str::<Value>(&body).is_ok_and(|body| body["error"].is_string()), "{body}");
    }
    assert_eq!(leash.snapshot().await["flow"], "open");
    assert_eq!(leash.control("GET /api/v1/pause", &format!("bearer {TOKEN}")).await.0, 405);
    assert_eq!(leash.post("/api/v1/nonsense").await.0, 404);
    assert_eq!(leash.post("/api/v1/checkouts/all/reclaim").await.0, 400);
    let (status, answer) = leash.post("/api/v1/checkouts/4711/reclaim").await;
    assert_eq!((status, &answer["result"]), (404, &json!("unknown")));
    let (status, answer) = leash.post("/api/v1/reload").await;
    assert_eq!((status, answer), (200, json!({ "changed": [], "needs_restart": [] })));
    let as_another = format!("Bearer {TOKEN}\r\nHost: evil.test");
    let (status, body) = leash.control("POST /api/v1/pause", &as_another).await;
    assert_eq!(status, 421, "a page of somebody else's that took this address: {body}");
    // The admin listener only reads, whatever is shown to it.
    assert_eq!(leash.get("/api/v1/pause").await.0, 404);
    let told: String = leash.events().iter().map(ToString::to_string).collect();
    assert!(!told.contains(TOKEN) && !leash.stderr().contains(TOKEN));
    finish(leash, &database).await;
}

async fn a_pause_lets_the_server_be_restarted_and_no_client_notices(mode: Mode) {
    let mut server = Server::private();
    let database = server.database().await;
    let setup = Leash::on(&database).mode(mode).control().set("pool.wait_timeout", "3s");
    let mut leash = setup.start().await;
    let mut at_work = leash.endpoint().raw("at work").await;
    at_work.query("CREATE TABLE t (n int)").await;
    at_work.query("BEGIN").await;
    let (status, answer) = leash.post("/api/v1/pause").await;
    assert_eq!((status, answer), (200, json!({ "flow": "pausing", "checkouts": 1 })));
    let (status, why) = leash.get("/readyz").await;
    assert_eq!((status, why.trim()), (503, "paused"));
    assert_eq!(leash.metrics().await.sum("pool_paused", &[]), 1.0);
    let mut waiting = leash.endpoint().raw("waiting").await;
    waiting.send(&raw::query("SELECT 'served'")).await;
    leash.pool_when("it waits", |pool| pool["waiting"] == 1).await;
    at_work.query("INSERT INTO t VALUES (1)").await;
    at_work.query("COMMIT").await;
    if mode == Mode::Session {
        at_work.close().await;
    }
    eventually_or("no server connection is left", async || {
        let snapshot = leash.snapshot().await;
        if snapshot["flow"] == "paused" { Ok(()) } else { Err(snapshot.to_string()) }
    })
    .await;
    leash.event("connection_closed", |event| event["reason"] == "paused").await;
    let admin = database.admin().await;
    // The harness stops it as a crash would.
    admin.batch_execute("CHECKPOINT").await.unwrap();
    admin.close().await;
    server.stop();
    server.start();
    // Longer than it would wait otherwise.
    leash
        .pool_when("it has waited for 4 s", |pool| pool["oldest_wait_seconds"].as_f64().unwrap() > 4.0)
        .await;
    assert_eq!(leash.post("/api/v1/resume").await.0, 200);
    assert_eq!(raw::tags(&waiting.until_ready().await), "TDCZ");
    assert_eq!(waiting.one("SELECT count(*) FROM t").await, "1");
    waiting.close().await;
    assert_eq!(leash.get("/readyz").await.0, 200);
    let resumed = leash.event("resumed", |_| true).await;
    assert_eq!(resumed["waiting"], 1, "{resumed}");
    assert_eq!(leash.metrics().await.sum("pool_paused", &[]), 0.0);
    finish(leash, &database).await;
}

async fn a_paused_pgleash_can_be_drained(mode: Mode) {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(mode).control().set("drain_timeout", "20s");
    let mut leash = setup.expecting(&["client_refused"]).start().await;
    let mut at_work = leash.endpoint().raw("at work").await;
    at_work.query("BEGIN").await;
    leash.post("/api/v1/pause").await;
    let mut waiting = leash.endpoint().raw("waiting").await;
    waiting.send(&raw::query("SELECT 1")).await;
    leash.pool_when("it waits", |pool| pool["waiting"] == 1).await;
    leash.sigterm();
    let told = within(Duration::from_secs(10), "it is told", waiting.fatal()).await;
    assert_eq!(told.field('C'), "57P01", "nothing of it was begun: {}", told.field('M'));
    at_work.send(&raw::query("COMMIT")).await;
    assert_eq!(raw::tags(&at_work.until_ready().await), "CZ");
    assert_eq!(at_work.fatal().await.field('C'), "57P01");
    assert_eq!(within(Duration::from_secs(10), "it ends", leash.wait_exit()).await.code(), Some(0));
    leash.assert_calm();
    database.remove().await;
}

async fn a_checkout_is_taken_back_by_hand_but_never_at_work(mode: Mode) {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(mode).control().set("pool.size", 1).set("leaks.action", "observe");
    let mut leash = setup.expecting(&["leak_detected"]).start().await;
    let mut holder = leash.endpoint().raw("holder").await;
    holder.query("BEGIN").await;
    holder.send(&raw::query("SELECT pg_sleep(2)")).await;
    let pool = leash.pool_when("it is at work", |pool| pool["holders"][0]["phase"] == "active").await;
    let reclaim = format!("/api/v1/checkouts/{}/reclaim", pool["holders"][0]["id"]);
    let (status, answer) = leash.post(&reclaim).await;
    assert_eq!((status, &answer["result"]), (409, &json!("in_flight")), "{answer}");
    holder.until_ready().await;
    tick().await;
    let (status, answer) = leash.post(&reclaim).await;
    assert_eq!((status, &answer["result"], &answer["outcome"]), (200, &json!("taken"), &json!("reissued")));
    let told = holder.fatal().await;
    assert_eq!(told.field('C'), "25P03");
    assert!(told.field('M').contains("administrator"), "{}", told.field('M'));
    let resolved = leash.event("leak_resolved", |_| true).await;
    assert_eq!(resolved["resolution"], "reclaimed", "{resolved}");
    assert_eq!(leash.post(&reclaim).await.0, 404, "it is over");
    let next = leash.endpoint().connect("next").await;
    assert_eq!(next.one("SELECT 'served'").await, "served");
    next.close().await;
    finish(leash, &database).await;
}
