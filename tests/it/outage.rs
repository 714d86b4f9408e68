//! The server goes away and comes back: who waits, who is told what, and how often it is knocked at.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::raw::{self, Raw};
use crate::support::tap::{Manner, Tap, fatal};
use crate::support::{
    Endpoint, Leash, Mode, PATIENCE, Server, eventually, eventually_or, finish, in_both_modes, sqlstate,
    within,
};

in_both_modes! {
    a_restart_with_fifty_clients_in_different_states,
    a_server_that_starts_is_waited_for,
    a_server_that_is_down_is_not_met_by_a_crowd,
    a_demoted_server_is_left,
}

async fn logged_in(endpoint: &Endpoint) -> Raw {
    let mut client = Raw::connect(endpoint.port).await;
    client.startup(raw::PROTOCOL_3_0, &[("user", &endpoint.user), ("database", &endpoint.database)]).await;
    client
}

/// The incident: ten idle clients, ten in a transaction, ten with a statement in flight, ten that wait
/// in the queue, ten that come while the server is down.
async fn a_restart_with_fifty_clients_in_different_states(mode: Mode) {
    let mut server = Server::private();
    let database = server.database().await;
    let setup = Leash::on(&database).mode(mode).set("pool.size", 20).set("pool.wait_timeout", "25s");
    let told = &["upstream_failed", "leak_detected"];
    let mut leash = setup.expecting(told).start().await;
    let endpoint = leash.endpoint();
    let idle = join_all((0..10).map(|_| endpoint.raw("idle"))).await;
    let mut open = join_all((0..10).map(|_| endpoint.raw("open"))).await;
    let mut busy = join_all((0..10).map(|_| endpoint.raw("busy"))).await;
    let mut queued = join_all((0..10).map(|_| endpoint.raw("queued"))).await;
    for client in &mut open {
        client.query("BEGIN").await;
    }
    for client in &mut busy {
        client.send(&raw::query("SELECT pg_sleep(60)")).await;
    }
    leash.pool_when("all are at work", |pool| pool["connections"]["active"] == 10).await;
    for client in &mut queued {
        client.send(&raw::query("SELECT 'queued'")).await;
    }
    leash.pool_when("ten wait", |pool| pool["waiting"] == 10).await;

    server.stop();
    for client in open.iter_mut().chain(&mut busy) {
        let code = client.fatal().await.field('C');
        assert!(["57P01", "57P02", "08006"].contains(&code.as_str()), "{code}");
    }
    leash.event("upstream_failed", |_| true).await;
    eventually("it says that it is not ready", async || (leash.get("/readyz").await.0 == 503).then_some(()))
        .await;
    let mut early = join_all((0..10).map(|_| logged_in(&endpoint))).await;
    for client in &mut early {
        client.send(&raw::query("SELECT 'early'")).await;
    }
    leash.pool_when("all of them wait", |pool| pool["waiting"] == 20).await;

    server.start();
    for mut client in queued.into_iter().chain(early) {
        while !raw::tags(&client.until_ready().await).ends_with("TDCZ") {}
        client.close().await;
    }
    for mut client in idle {
        assert_eq!(client.one("SELECT 'as if nothing had been'").await, "as if nothing had been");
        client.close().await;
    }
    let recovered = leash.event("upstream_recovered", |_| true).await;
    assert!(recovered["attempts"].as_u64().is_some_and(|attempts| attempts >= 1), "{recovered}");
    assert_eq!(leash.get("/readyz").await.0, 200);
    finish(leash, &database).await;
}

/// 57P03 is not a refusal: who waits is served as soon as the server has started.
async fn a_server_that_starts_is_waited_for(mode: Mode) {
    let database = Server::shared().database().await;
    let starting = fatal("57P03", "the database system is starting up");
    let tap = Tap::new(Manner::Say(starting)).await;
    let url = format!("postgres://app@127.0.0.1:{}/{}?sslmode=disable", tap.port, database.name);
    let setup = Leash::upstream(&url, &database.name).mode(mode).set("pool.wait_timeout", "20s");
    let mut leash = setup.expecting(&["upstream_failed"]).start().await;
    let client = async {
        let client = leash.endpoint().connect("early").await;
        let served = client.one("SELECT 'served'").await;
        client.close().await;
        served
    };
    let server = async {
        eventually_or("it was tried again", async || {
            let tries = tap.first_packets().len();
            if tries >= 3 { Ok(()) } else { Err(format!("{tries} tries")) }
        })
        .await;
        tap.turn(Manner::Pass(database.port));
    };
    let (served, ()) = tokio::join!(client, server);
    assert_eq!(served, "served");
    let failed = leash.event("upstream_failed", |_| true).await;
    assert_eq!(failed["sqlstate"], "57P03", "{failed}");
    // The server's own refusal is told at once.
    tap.turn(Manner::Say(fatal("3D000", "database \"elsewhere\" does not exist")));
    let elsewhere = Endpoint { database: "elsewhere".to_owned(), ..leash.endpoint() };
    let refused = within(Duration::from_secs(10), "the refusal", elsewhere.try_connect("lost")).await;
    assert_eq!(refused.err().map(|error| sqlstate(&error).to_owned()).as_deref(), Some("3D000"));
    leash.tolerate("client_refused");
    tap.turn(Manner::Pass(database.port));
    finish(leash, &database).await;
}

/// 400 clients wait for two seconds for a server that hangs up on everybody.
async fn a_server_that_is_down_is_not_met_by_a_crowd(mode: Mode) {
    const SIZE: usize = 10;
    let tap = Tap::new(Manner::Close).await;
    let url = format!("postgres://app@127.0.0.1:{}/app?sslmode=disable", tap.port);
    let setup = Leash::upstream(&url, "app").mode(mode).set("pool.size", SIZE).set("pool.wait_timeout", "2s");
    let mut leash = setup.expecting(&["upstream_failed", "client_refused"]).start().await;
    let endpoint = leash.endpoint();
    let mut clients = join_all((0..400).map(|_| logged_in(&endpoint))).await;
    let told = join_all(clients.iter_mut().map(Raw::fatal));
    for frame in within(PATIENCE, "all are told", told).await {
        assert_eq!(frame.field('C'), "08006", "{}", frame.field('M'));
    }
    let dials = tap.first_packets().len();
    // The first dial of each slot, and then one that tries, at most every 25 ms at first and 300 ms later.
    assert!((2..=SIZE + 60).contains(&dials), "{dials} connections for 400 clients");
    leash.sigterm();
    assert_eq!(leash.wait_exit().await.code(), Some(0));
    leash.assert_calm();
}

/// After a failover without a restart: the first server turns read-only, its connections stay open.
async fn a_demoted_server_is_left(mode: Mode) {
    let old = Server::private();
    let new = Server::private();
    let (before, after) = (old.database_named("shop").await, new.database_named("shop").await);
    let url = format!(
        "postgres://app@127.0.0.1:{},127.0.0.1:{}/shop?target_session_attrs=read-write",
        before.port, after.port
    );
    let mut leash = Leash::upstream(&url, "shop").mode(mode).set("pool.size", 1).start().await;
    let write = async || {
        let client = leash.endpoint().connect("writer").await;
        let port = client.try_one("CREATE TABLE IF NOT EXISTS t (n int); SELECT inet_server_port()").await;
        client.close().await;
        port.map_err(|error| format!("{error:?}"))
    };
    assert_eq!(write().await, Ok(before.port.to_string()));
    let admin = before.admin().await;
    admin.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    admin.close().await;
    eventually_or("writers are served by the new server", async || match write().await {
        Ok(port) if port == after.port.to_string() => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    leash.event("connection_closed", |event| event["reason"] == "replaced").await;
    leash.sigterm();
    assert_eq!(leash.wait_exit().await.code(), Some(0));
    leash.assert_calm();
}
