//! Slow is not leaked: what statements in flight wait for, who holds them up, and which index may be missing.

use serde_json::Value;

use crate::support::raw::{self, Raw};
use crate::support::{Database, Leash, Mode, Server, finish, in_both_modes, signal};

in_both_modes! {
    a_lock_wait_names_who_has_the_lock,
    a_client_that_does_not_read_is_what_the_server_waits_for,
    a_table_that_is_read_from_end_to_end_is_told,
    a_statement_that_was_never_so_slow_is_looked_into,
    a_server_that_cannot_be_asked_changes_nothing_else,
    a_server_that_does_not_answer_changes_nothing_else,
}

const TOLD: [&str; 5] =
    ["leak_detected", "reclaim_suppressed", "missing_index_suspected", "survey_failed", "recycled"];

async fn leash(mode: Mode, more: &[(&str, &str)]) -> (Database, Leash) {
    let database = Server::shared().database().await;
    let mut setup =
        Leash::on(&database).mode(mode).set("pool.size", 5).set("leaks.idle_in_transaction", "1s");
    for (key, value) in more {
        setup = setup.set(key, value);
    }
    (database, setup.expecting(&TOLD).start().await)
}

fn holder<'a>(pool: &'a Value, app: &str) -> Option<&'a Value> {
    pool["holders"].as_array()?.iter().find(|holder| holder["app"] == app)
}

async fn a_lock_wait_names_who_has_the_lock(mode: Mode) {
    let (database, mut leash) =
        leash(mode, &[("leaks.action", "observe"), ("leaks.idle_in_transaction", "3s")]).await;
    let setup = database.direct().connect("setup").await;
    setup.batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await.unwrap();
    setup.close().await;
    let mut settles = leash.endpoint().raw("settlement").await;
    settles.query("BEGIN").await;
    settles.query("UPDATE t SET n = 2 /*route='POST%20%2Fsettle'*/").await;
    let mut waits = leash.endpoint().raw("victim").await;
    waits.send(&raw::query("UPDATE t SET n = 3")).await;

    let told = |pool: &Value| holder(pool, "victim").is_some_and(|victim| victim["waits_for"] == "lock");
    let pool = leash.pool_when("the server says what the victim waits for", told).await;
    let (victim, cause) = (holder(&pool, "victim").unwrap(), holder(&pool, "settlement").unwrap());
    let blocker = &victim["blocked_by"][0];
    assert_eq!((&blocker["app"], &blocker["route"]), (&"settlement".into(), &"POST /settle".into()));
    assert_eq!((&blocker["checkout"], &cause["blocks"]), (&cause["id"], &1.into()));
    let why = victim["why"].as_str().unwrap();
    assert!(why.contains("settlement POST /settle has"), "{why}");
    let slow = leash.event("leak_detected", |event| event["reason"] == "slow_statement").await;
    assert_eq!((&slow["app"], &slow["waits_for"]), (&"victim".into(), &"lock".into()), "{slow}");
    assert_eq!(slow["blocked_by"], serde_json::json!([cause["backend_pid"]]));

    settles.query("COMMIT").await;
    waits.until_ready().await;
    settles.close().await;
    waits.close().await;
    finish(leash, &database).await;
}

async fn a_client_that_does_not_read_is_what_the_server_waits_for(mode: Mode) {
    let (database, leash) = leash(mode, &[]).await;
    let mut lazy = leash.endpoint().raw("lazy").await;
    lazy.send(&raw::query("SELECT repeat('x', 1000) FROM generate_series(1, 200000)")).await;
    let told = |pool: &Value| holder(pool, "lazy").is_some_and(|lazy| lazy["waits_for"] == "client");
    leash.pool_when("the server says that it waits for its client", told).await;
    lazy.kill();
    finish(leash, &database).await;
}

/// A table that is too large to be read as often as it is, and one that is not.
async fn two_tables(database: &Database) {
    let setup = database.direct().connect("setup").await;
    setup
        .batch_execute(
            "CREATE TABLE orders AS SELECT n FROM generate_series(1, 50000) n; ANALYZE orders; \
             CREATE TABLE small AS SELECT n FROM generate_series(1, 10) n; SELECT count(*) FROM orders",
        )
        .await
        .unwrap();
    setup.close().await;
}

/// No limit is near, and nothing is reported as slow.
async fn a_statement_that_was_never_so_slow_is_looked_into(mode: Mode) {
    let (database, mut leash) = leash(mode, &[("leaks.idle_in_transaction", "10m")]).await;
    two_tables(&database).await;
    let reader = leash.endpoint().connect("shop@3.3.0").await;
    let slow = leash.endpoint().connect("shop@3.3.0").await;
    let read = async {
        loop {
            reader.batch_execute("SELECT count(*) FROM orders WHERE n = 7").await.unwrap();
        }
    };
    let work = async {
        loop {
            slow.batch_execute("SELECT count(*) FROM generate_series(1, 20000000) n").await.unwrap();
        }
    };
    let told = tokio::select! {
        told = leash.event("missing_index_suspected", |_| true) => told,
        () = read => unreachable!(),
        () = work => unreachable!(),
    };
    assert_eq!((&told["table"], &told["apps"][0]), (&"public.orders".into(), &"shop@3.3.0".into()), "{told}");
    assert_eq!(
        told["statements"],
        serde_json::json!(["select count(*) from generate_series(?) n"]),
        "{told}"
    );
    assert!(leash.events_named("leak_detected").is_empty());
    drop((reader, slow));
    finish(leash, &database).await;
}

async fn a_table_that_is_read_from_end_to_end_is_told(mode: Mode) {
    let (database, mut leash) = leash(mode, &[]).await;
    two_tables(&database).await;
    let mut slow = leash.endpoint().raw("shop@3.3.0").await;
    slow.send(&raw::query("SELECT pg_sleep(60)")).await;
    leash.event("leak_detected", |event| event["reason"] == "slow_statement").await;
    let reader = leash.endpoint().connect("shop@3.3.0").await;
    let read = async {
        loop {
            reader
                .batch_execute("SELECT count(*) FROM orders WHERE n = 7; SELECT * FROM small")
                .await
                .unwrap();
        }
    };
    let told = tokio::select! {
        told = leash.event("missing_index_suspected", |_| true) => told,
        () = read => unreachable!(),
    };
    assert_eq!((&told["table"], &told["apps"][0]), (&"public.orders".into(), &"shop@3.3.0".into()), "{told}");
    let rows = |name: &str| told[name].as_f64().unwrap();
    assert!(rows("rows_read_per_second") > 3.0 * rows("usual_rows_read_per_second"), "{told}");
    reader.close().await;
    slow.kill();
    finish(leash, &database).await;
}

async fn a_server_that_cannot_be_asked_changes_nothing_else(mode: Mode) {
    let (database, mut leash) = leash(mode, &[("leaks.budget", "100%/1m")]).await;
    let admin = database.admin().await;
    let role = format!("limited_{}", mode_name(mode));
    admin
        .batch_execute(&format!("DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN CONNECTION LIMIT 2"))
        .await
        .unwrap();
    let endpoint = leash.endpoint().user(&role);
    let mut slow = Raw::login(&endpoint, "slow").await;
    slow.send(&raw::query("SELECT pg_sleep(60)")).await;
    let mut leak = Raw::login(&endpoint, "leak").await;
    leak.query("BEGIN").await;
    // There is no connection left to ask with: that is told, and the leak is found and taken all the same.
    let failed = leash.event("survey_failed", |_| true).await;
    assert!(failed["detail"].as_str().unwrap().contains("connections"), "{failed}");
    let over = leash.event("leak_resolved", |event| event["app"] == "leak").await;
    assert_eq!(over["resolution"], "reclaimed");
    leash.event("leak_detected", |event| event["reason"] == "slow_statement").await;
    assert_eq!(leash.events_named("survey_failed").len(), 1, "it is told once");

    admin.batch_execute(&format!("ALTER ROLE {role} CONNECTION LIMIT -1")).await.unwrap();
    leash.event("survey_recovered", |_| true).await;
    slow.kill();
    admin.close().await;
    finish(leash, &database).await;
}

/// The backend of the reserved connection hangs in the middle of its life.
async fn a_server_that_does_not_answer_changes_nothing_else(mode: Mode) {
    let (database, mut leash) = leash(mode, &[("leaks.budget", "100%/1m")]).await;
    let mut slow = leash.endpoint().raw("slow").await;
    slow.send(&raw::query("SELECT pg_sleep(60)")).await;
    let told = |pool: &Value| holder(pool, "slow").is_some_and(|slow| slow["waits_for"] != Value::Null);
    leash.pool_when("the server has been asked once", told).await;
    let admin = database.admin().await;
    let asked = format!(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgleash probe' AND datname = '{}'",
        database.name
    );
    let reserved = admin.one(&asked).await;
    signal("STOP", &reserved);

    let failed = leash.event("survey_failed", |_| true).await;
    assert_eq!(failed["detail"], "no answer in time", "{failed}");
    let mut leak = leash.endpoint().raw("leak").await;
    leak.query("BEGIN").await;
    let over = leash.event("leak_resolved", |event| event["app"] == "leak").await;
    assert_eq!((&over["resolution"], &over["reason"]), (&"reclaimed".into(), &"idle_in_transaction".into()));
    // It is asked over another connection then.
    leash.event("survey_recovered", |_| true).await;
    signal("CONT", &reserved);
    slow.kill();
    admin.close().await;
    finish(leash, &database).await;
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Session => "session",
        Mode::Transaction => "transaction",
    }
}
