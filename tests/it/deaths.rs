//! Clients and server backends that die, and what is said and done about it. `faults/states.rs` has them die in
//! every state.

use std::time::Duration;

use crate::support::raw::{self, Raw};
use crate::support::{
    Database, Leash, Mode, PATIENCE, Server, eventually, eventually_or, finish, in_both_modes, nothing_runs,
    within,
};

in_both_modes! {
    a_client_dies_idle,
    a_client_dies_in_a_transaction,
    a_client_dies_in_mid_statement_and_the_statement_is_cancelled,
    a_client_dies_while_its_statement_waits_for_a_lock,
    a_client_says_goodbye_in_mid_statement_and_the_statement_is_cancelled,
    a_client_dies_behind_a_full_pipeline_and_the_statement_is_cancelled,
    what_a_client_sent_before_it_hung_up_is_done_and_answered,
    so_is_what_had_to_wait_for_the_answer_before_it,
    a_backend_dies_idle_and_is_not_lent_again,
    a_backend_dies_in_a_transaction,
    a_backend_dies_in_mid_statement,
    the_server_restarts,
}

/// A pool of one, so that what a death leaves behind meets the next client.
struct Scene {
    database: Database,
    leash: Leash,
}

impl Scene {
    async fn new(mode: Mode) -> Scene {
        let database = Server::shared().database().await;
        let setup = Leash::on(&database).mode(mode).set("pool.size", 1);
        let leash = setup.expecting(&["leak_detected", "recycled"]).start().await;
        let client = leash.endpoint().connect("setup").await;
        client.batch_execute("CREATE TABLE t (n int)").await.unwrap();
        client.close().await;
        Scene { database, leash }
    }

    /// A client whose connection will be cut.
    async fn victim(&self) -> Raw {
        self.leash.endpoint().raw("victim").await
    }

    /// Waits until the server runs a statement of the victim that looks like this.
    async fn wait_until_running(&self, query: &str) -> i32 {
        let admin = self.database.admin().await;
        let sql = format!(
            "SELECT coalesce(min(pid), 0) FROM pg_stat_activity \
             WHERE datname = current_database() AND state = 'active' AND query LIKE '{query}%'"
        );
        let pid = eventually("the statement runs", async || {
            admin.one(&sql).await.parse::<i32>().ok().filter(|pid| *pid != 0)
        })
        .await;
        admin.close().await;
        pid
    }

    async fn terminate(&self, pid: i32) {
        let admin = self.database.admin().await;
        assert_eq!(admin.one(&format!("SELECT pg_terminate_backend({pid})")).await, "t");
        admin.close().await;
    }

    /// The one slot is free again soon, nothing of the victim has stayed, and nothing runs on.
    async fn heals(self) {
        within(Duration::from_secs(10), "nothing of the dead client runs on", nothing_runs(&self.database))
            .await;
        let next = self.leash.endpoint().connect("next").await;
        assert_eq!(next.one("SELECT count(*) FROM t").await, "0");
        next.batch_execute("BEGIN; LOCK TABLE t; ROLLBACK").await.unwrap();
        next.close().await;
        finish(self.leash, &self.database).await;
    }
}

async fn a_client_dies_idle(mode: Mode) {
    let scene = Scene::new(mode).await;
    let mut victim = scene.victim().await;
    let backend = victim.one("SELECT pg_backend_pid()").await;
    victim.kill();
    let next = scene.leash.endpoint().connect("next").await;
    assert_eq!(next.backend_pid().await.to_string(), backend, "a clean connection is used again");
    next.close().await;
    scene.heals().await;
}

async fn a_client_dies_in_a_transaction(mode: Mode) {
    let mut scene = Scene::new(mode).await;
    let mut victim = scene.victim().await;
    victim.query("BEGIN").await;
    victim.query("INSERT INTO t VALUES (1)").await;
    let session = victim.pid;
    victim.kill();
    let detected = scene.leash.event("leak_detected", |event| event["session"] == session).await;
    assert!(["orphaned", "dirty_return"].contains(&detected["reason"].as_str().unwrap()), "{detected}");
    let resolved = scene.leash.event("leak_resolved", |event| event["session"] == session).await;
    assert_eq!(resolved["resolution"], "disconnected");
    let recycled = scene.leash.event("recycled", |event| event["checkout"] == detected["checkout"]).await;
    assert_eq!(
        (&recycled["action"], &recycled["outcome"]),
        (&"reset".into(), &"reissued".into()),
        "{recycled}"
    );
    scene.heals().await;
}

async fn a_client_dies_in_mid_statement_and_the_statement_is_cancelled(mode: Mode) {
    let mut scene = Scene::new(mode).await;
    let mut victim = scene.victim().await;
    victim.send(&raw::query("INSERT INTO t SELECT 1 FROM pg_sleep(300)")).await;
    scene.wait_until_running("INSERT INTO t").await;
    victim.kill();
    // PgBouncer, PgCat and PgDog leave it running for the five minutes.
    within(Duration::from_secs(10), "the statement is cancelled", nothing_runs(&scene.database)).await;
    let recycled = scene.leash.event("recycled", |event| event["action"] == "cancel").await;
    assert!(["reissued", "closed"].contains(&recycled["outcome"].as_str().unwrap()), "{recycled}");
    scene.heals().await;
}

async fn a_client_dies_while_its_statement_waits_for_a_lock(mode: Mode) {
    let scene = Scene::new(mode).await;
    let admin = scene.database.admin().await;
    admin.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
    let mut victim = scene.victim().await;
    victim.send(&raw::query("INSERT INTO t VALUES (1)")).await;
    scene.wait_until_running("INSERT INTO t").await;
    victim.kill();
    // Asked on another connection: within a transaction the answer does not change.
    let watcher = scene.database.admin().await;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                   AND state <> 'idle' AND application_name <> 'harness'";
    eventually("it no longer waits", async || (watcher.one(running).await == "0").then_some(())).await;
    watcher.close().await;
    admin.batch_execute("ROLLBACK").await.unwrap();
    admin.close().await;
    scene.heals().await;
}

/// As every client of libpq does whose application closes its connection on a timeout of its own.
async fn a_client_says_goodbye_in_mid_statement_and_the_statement_is_cancelled(mode: Mode) {
    let mut scene = Scene::new(mode).await;
    let mut victim = scene.victim().await;
    victim.send(&raw::query("INSERT INTO t SELECT 1 FROM pg_sleep(300)")).await;
    scene.wait_until_running("INSERT INTO t").await;
    victim.send(&raw::terminate()).await;
    let session = victim.pid;
    victim.kill();
    let detected = scene.leash.event("leak_detected", |event| event["session"] == session).await;
    assert!(["orphaned", "dirty_return"].contains(&detected["reason"].as_str().unwrap()), "{detected}");
    scene.leash.event("recycled", |event| event["action"] == "cancel").await;
    scene.heals().await;
}

/// So much is sent behind the statement that pgleash reads no more from the client.
async fn a_client_dies_behind_a_full_pipeline_and_the_statement_is_cancelled(mode: Mode) {
    let scene = Scene::new(mode).await;
    let mut victim = scene.victim().await;
    victim.send(&raw::query("INSERT INTO t SELECT 1 FROM pg_sleep(300)")).await;
    scene.wait_until_running("INSERT INTO t").await;
    victim.send_until_full(&raw::query(&format!("SELECT '{}'", "x".repeat(100_000)))).await;
    // A plain close would come behind all that, when the server reads again.
    victim.reset();
    scene.heals().await;
}

async fn what_a_client_sent_before_it_hung_up_is_done_and_answered(mode: Mode) {
    let scene = Scene::new(mode).await;
    let mut client = scene.victim().await;
    // One that hangs up while it waits in the queue is served no more.
    client.query("SELECT 'the queue is empty'").await;
    client.send(&raw::query("INSERT INTO t VALUES (1); DELETE FROM t RETURNING n")).await;
    client.shut_write().await;
    let answer = client.until_closed().await;
    assert_eq!(raw::tags(&answer), "CTDCZ");
    assert_eq!(raw::rows(&answer), [[Some("1".to_owned())]]);
    scene.heals().await;
}

/// What the name means is not known before the statement in front of it has been answered.
async fn so_is_what_had_to_wait_for_the_answer_before_it(mode: Mode) {
    let scene = Scene::new(mode).await;
    let mut client = scene.victim().await;
    client.query("SELECT 'the queue is empty'").await;
    let named =
        [raw::parse("s", "DELETE FROM t"), raw::bind("s", &[]), raw::execute(0), raw::sync()].concat();
    client.send(&[raw::query("SELECT pg_sleep(0.2)"), named].concat()).await;
    client.shut_write().await;
    assert_eq!(raw::tags(&client.until_closed().await), "TDCZ12CZ");
    scene.heals().await;
}

async fn a_backend_dies_idle_and_is_not_lent_again(mode: Mode) {
    let mut scene = Scene::new(mode).await;
    let client = scene.leash.endpoint().connect("before").await;
    let backend = client.backend_pid().await;
    client.close().await;
    scene.leash.pool_when("it is home", |pool| pool["connections"]["idle"] == 1).await;
    scene.terminate(backend).await;
    // Noticed when it dies, not when it is borrowed: no client has come near.
    let closed = scene.leash.event("connection_closed", |event| event["backend_pid"] == backend).await;
    assert_eq!(closed["reason"], "server_lost");
    scene.leash.pool_when("none is idle", |pool| pool["connections"]["idle"] == 0).await;
    let client = scene.leash.endpoint().connect("after").await;
    assert_ne!(client.backend_pid().await, backend);
    client.close().await;
    scene.heals().await;
}

async fn a_backend_dies_in_a_transaction(mode: Mode) {
    let mut scene = Scene::new(mode).await;
    let mut victim = scene.victim().await;
    victim.query("BEGIN").await;
    victim.query("INSERT INTO t VALUES (1)").await;
    let backend: i32 = victim.one("SELECT pg_backend_pid()").await.parse().unwrap();
    scene.terminate(backend).await;
    // The client hears the server's own words.
    let told = victim.fatal().await;
    assert_eq!(told.field('C'), "57P01", "{}", told.field('M'));
    let closed = scene.leash.event("connection_closed", |event| event["backend_pid"] == backend).await;
    assert_eq!(closed["reason"], "server_lost");
    scene.heals().await;
}

async fn a_backend_dies_in_mid_statement(mode: Mode) {
    let mut scene = Scene::new(mode).await;
    let mut victim = scene.victim().await;
    victim.send(&raw::query("INSERT INTO t SELECT 1 FROM pg_sleep(300)")).await;
    let backend = scene.wait_until_running("INSERT INTO t").await;
    scene.terminate(backend).await;
    let told = victim.fatal().await;
    assert_eq!(told.field('C'), "57P01", "{}", told.field('M'));
    scene.leash.event("connection_closed", |event| event["backend_pid"] == backend).await;
    scene.heals().await;
}

async fn the_server_restarts(mode: Mode) {
    let mut server = Server::private();
    let database = server.database().await;
    let setup = Leash::on(&database).mode(mode).set("pool.wait_timeout", "2s");
    let leash = setup.expecting(&["upstream_failed", "leak_detected", "client_refused", "checkout_timeout"]);
    let leash = leash.start().await;
    let idle = leash.endpoint().connect("idle").await;
    let mut busy = leash.endpoint().raw("busy").await;
    assert_eq!(idle.one("SELECT 1").await, "1");
    busy.query("BEGIN").await;
    server.stop();
    assert!(["57P02", "57P01", "08006"].contains(&busy.fatal().await.field('C').as_str()));
    leash.pool_when("every connection is counted as closed", |pool| pool["opened"] == pool["closed"]).await;

    let mut early = Raw::connect(leash.port()).await;
    let parameters = [("user", "app"), ("database", &database.name)];
    early.startup(raw::PROTOCOL_3_0, &parameters).await;
    early.try_send(&raw::query("SELECT 1")).await;
    let told = early.fatal().await;
    assert_eq!(told.field('C'), "08006", "{}", told.field('M'));

    server.start();
    let healed = eventually_or("clients are served again", async || {
        let client = leash.endpoint().try_connect("later").await.map_err(|error| format!("{error:?}"))?;
        let served = client.try_one("SELECT 'back'").await;
        client.close().await;
        served.map_err(|error| format!("{error:?}"))
    });
    assert_eq!(within(PATIENCE, "recovery", healed).await, "back");
    idle.close().await;
    finish(leash, &database).await;
}
