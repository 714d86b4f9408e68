//! The configuration changes while clients are served.

use serde_json::{Value, json};

use crate::support::raw::{self, Raw};
use crate::support::{Leash, Mode, Server, finish, in_both_modes};

in_both_modes! {
    a_pool_grows_and_shrinks_and_nobody_loses_a_connection,
    another_server_gets_the_next_transactions,
}

fn live(pool: &Value) -> u64 {
    let states = pool["connections"].as_object().expect("an object");
    states.values().map(|count| count.as_u64().expect("a number")).sum()
}

async fn in_transaction(leash: &Leash) -> Raw {
    let mut client = leash.endpoint().raw("worker").await;
    client.query("BEGIN").await;
    client
}

async fn a_pool_grows_and_shrinks_and_nobody_loses_a_connection(mode: Mode) {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(mode).set("pool.wait_timeout", "30s");
    let mut leash = setup.file("[pool]\nsize = 1\n").start().await;
    let mut first = in_transaction(&leash).await;
    let mut second = leash.endpoint().raw("worker").await;
    second.send(&raw::query("BEGIN")).await;
    leash.pool_when("the second waits", |pool| pool["waiting"] == 1).await;

    // The file is all it takes.
    leash.rewrite("[pool]\nsize = 3\n");
    let reloaded = leash.event("reloaded", |_| true).await;
    assert_eq!(reloaded["changed"], json!(["pool.size: 1 -> 3"]), "{reloaded}");
    assert_eq!(raw::tags(&second.until_ready().await), "CZ");
    let mut third = in_transaction(&leash).await;
    let pool = leash.pool().await;
    assert_eq!((&pool["size"], live(&pool)), (&json!(3), 3), "{pool}");
    assert_eq!(leash.metrics().await.sum("pool_connections_max", &[]), 3.0);

    leash.rewrite("[pool]\nsize = 1\n");
    leash.event("reloaded", |event| event["changed"] == json!(["pool.size: 3 -> 1"])).await;
    for client in [&mut first, &mut second, &mut third] {
        assert_eq!(client.one("SELECT 'still mine'").await, "still mine");
        client.query("COMMIT").await;
    }
    let mut clients = vec![first, second, third];
    if mode == Mode::Session {
        // There the connection comes home with the client.
        for client in clients.drain(1..) {
            client.close().await;
        }
    }
    leash.pool_when("one is left", |pool| live(pool) == 1).await;
    let mut fourth = leash.endpoint().raw("worker").await;
    for client in clients {
        client.close().await;
    }
    assert_eq!(fourth.one("SELECT 'served'").await, "served");
    fourth.close().await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_name_counts_as_soon_as_it_is_in_the_file() {
    let database = Server::shared().database().await;
    let mut leash = Leash::on(&database).file("admin_hosts = \"off\"\n").start().await;
    let by_name = "http://pgleash.test/api/v1/snapshot";
    let (status, said) = leash.get(by_name).await;
    assert!(status == 421 && said.contains("admin_hosts"), "{status} {said}");
    leash.rewrite("admin_hosts = \"*.test\"\n");
    let reloaded = leash.event("reloaded", |_| true).await;
    assert_eq!(reloaded["changed"], json!(["admin_hosts: off -> *.test"]), "{reloaded}");
    assert_eq!(leash.get(by_name).await.0, 200);
    assert_eq!(leash.get("http://pgleash.example/api/v1/snapshot").await.0, 421);
    finish(leash, &database).await;
}

async fn another_server_gets_the_next_transactions(mode: Mode) {
    let (one, other) = (Server::private(), Server::private());
    let (before, after) = (one.database_named("shop").await, other.database_named("shop").await);
    let with = |port: u16| format!("[upstream]\nurl = \"postgres://app:hush-hush@127.0.0.1:{port}/shop\"\n");
    let setup = Leash::upstream("", "shop").mode(mode).unset("upstream.url").file(with(before.port));
    let mut leash = setup.start().await;
    let port = "SELECT inet_server_port()";
    let mut at_work = in_transaction(&leash).await;
    assert_eq!(at_work.one(port).await, before.port.to_string());
    leash.rewrite(with(after.port));
    let reloaded = leash.event("reloaded", |_| true).await;
    assert!(reloaded["changed"][0].as_str().unwrap().contains(&after.port.to_string()), "{reloaded}");
    assert!(!reloaded.to_string().contains("hush"), "{reloaded}");
    // Who is in a transaction finishes it where it began.
    assert_eq!(at_work.one(port).await, before.port.to_string());
    at_work.query("COMMIT").await;
    let mut next = leash.endpoint().raw("next").await;
    assert_eq!(next.one(port).await, after.port.to_string());
    next.close().await;
    at_work.close().await;
    leash.event("connection_closed", |event| event["reason"] == "replaced").await;
    leash.sigterm();
    assert_eq!(leash.wait_exit().await.code(), Some(0));
    leash.assert_calm();
}

#[tokio::test]
async fn what_cannot_change_is_named_and_the_rest_is_done() {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).file("[pool]\nsize = 2\n").expecting(&["reloaded"]);
    let mut leash = setup.start().await;
    leash.rewrite("workers = 2\n[pool]\nsize = 4\nmode = \"session\"\n[leaks]\naction = \"observe\"\n");
    leash.signal("HUP");
    let reloaded = leash.event("reloaded", |_| true).await;
    assert_eq!(reloaded["needs_restart"], json!(["workers", "pool.mode"]), "{reloaded}");
    assert_eq!(reloaded["changed"], json!(["pool.size: 2 -> 4", "leaks.action: reclaim -> observe"]));
    assert_eq!(reloaded["level"], "warn");
    assert_eq!(leash.snapshot().await["enforcing"], false);
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_wrong_file_changes_nothing_and_is_told_whole() {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).file("[pool]\nsize = 2\n").expecting(&["reload_refused"]);
    let mut leash = setup.start().await;
    let client = leash.endpoint().connect("client").await;
    assert_eq!(client.one("SELECT 1").await, "1");
    leash.rewrite(
        "[upstream]\nurl = \"postgres://app:hush-hush@db/shop?no=1\"\n[pool]\nsize = 0\nwait_timeout = 7\n",
    );
    let refused = leash.event("reload_refused", |_| true).await;
    assert_eq!(refused["problems"].as_array().map(Vec::len), Some(3), "{refused}");
    assert!(!refused.to_string().contains("hush"), "{refused}");
    assert_eq!(leash.pool().await["size"], 2);
    assert_eq!(client.one("SELECT 1").await, "1");
    client.close().await;
    finish(leash, &database).await;
}
