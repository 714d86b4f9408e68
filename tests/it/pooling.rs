//! Lending: who gets a server connection, when, in what order, in what state, and for how long.

use std::sync::{Arc, Mutex};

use crate::support::raw::{self, Raw, tags};
use crate::support::{Endpoint, Leash, Mode, Server, Session, eventually, finish, in_both_modes, sqlstate};

in_both_modes! {
    an_exhausted_pool_says_who_holds_it,
    waiters_are_served_in_order,
    a_waiter_that_gives_up_costs_nothing,
    nothing_of_a_session_reaches_the_next_borrower,
    server_connections_are_renewed_at_max_lifetime,
    a_connection_that_misses_its_renewal_is_told,
    unused_server_connections_are_closed_at_idle_timeout,
    each_database_user_pair_has_its_own_pool,
    the_applications_name_is_seen_at_the_server,
    a_dirty_goodbye_is_cleaned_up,
    a_burst_between_two_scrapes_is_seen,
    counts_agree_under_a_crowd,
}

async fn an_exhausted_pool_says_who_holds_it(mode: Mode) {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(mode).set("pool.size", 2).set("pool.wait_timeout", "300ms");
    let mut leash = setup.expecting(&["checkout_timeout"]).start().await;
    let mut holders = Vec::new();
    for n in 0..2 {
        let holder = leash.endpoint().connect(&format!("hoarder-{n}")).await;
        holder.batch_execute("BEGIN").await.unwrap();
        holders.push(holder);
    }
    // A client hears its reply a moment before it is known to idle.
    let idle = |pool: &serde_json::Value| pool["connections"]["idle_in_transaction"] == 2;
    let pool = leash.pool_when("both idle in their transactions", idle).await;
    assert_eq!(pool["utilization_ratio"], 1.0);

    let mut late = leash.endpoint().raw("late").await;
    late.send(&raw::query("SELECT 1")).await;
    let told = late.fatal().await;
    assert_eq!(told.field('C'), "53300");
    let words = format!("{} {} {}", told.field('M'), told.field('D'), told.field('H'));
    assert!(words.contains("2/2") || words.contains("2 of 2"), "held/size is not told: {words}");
    assert!(words.contains("hoarder-"), "the top holder is not told: {words}");
    let event = leash.event("checkout_timeout", |_| true).await;
    assert!(event["waited_seconds"].as_f64().unwrap() >= 0.3, "{event}");
    assert_eq!(leash.metrics().await.sum("checkout_timeouts_total", &[]), 1.0);

    for holder in holders {
        holder.batch_execute("COMMIT").await.unwrap();
        holder.close().await;
    }
    let after = leash.endpoint().connect("after").await;
    assert_eq!(after.one("SELECT 'served'").await, "served");
    after.close().await;
    finish(leash, &database).await;
}

async fn waiters_are_served_in_order(mode: Mode) {
    let database = Server::shared().database().await;
    let leash =
        Leash::on(&database).mode(mode).set("pool.size", 1).set("pool.wait_timeout", "20s").start().await;
    let holder = leash.endpoint().connect("holder").await;
    holder.batch_execute("CREATE SEQUENCE turn; BEGIN").await.unwrap();
    let mut waiters = Vec::new();
    for n in 1..=5 {
        let waiter = leash.endpoint().connect(&format!("waiter-{n}")).await;
        waiters.push(tokio::spawn(async move {
            let turn = waiter.one("SELECT nextval('turn')").await;
            waiter.close().await;
            turn
        }));
        leash.pool_when("it waits in line", |pool| pool["waiting"] == n).await;
    }
    let pool = leash.pool().await;
    assert!(pool["oldest_wait_seconds"].as_f64().unwrap() > 0.0, "{pool}");
    holder.batch_execute("COMMIT").await.unwrap();
    holder.close().await;
    let mut turns = Vec::new();
    for waiter in waiters {
        turns.push(waiter.await.unwrap());
    }
    assert_eq!(turns, ["1", "2", "3", "4", "5"]);
    finish(leash, &database).await;
}

async fn a_waiter_that_gives_up_costs_nothing(mode: Mode) {
    let database = Server::shared().database().await;
    let leash =
        Leash::on(&database).mode(mode).set("pool.size", 1).set("pool.wait_timeout", "20s").start().await;
    let holder = leash.endpoint().connect("holder").await;
    holder.batch_execute("BEGIN").await.unwrap();
    let mut waiter = leash.endpoint().raw("impatient").await;
    waiter.send(&raw::query("SELECT 1")).await;
    leash.pool_when("it waits", |pool| pool["waiting"] == 1).await;
    waiter.kill();
    leash.pool_when("nobody waits any more", |pool| pool["waiting"] == 0).await;
    holder.batch_execute("COMMIT").await.unwrap();
    holder.close().await;
    let next = leash.endpoint().connect("next").await;
    assert_eq!(next.one("SELECT 1").await, "1");
    next.close().await;
    finish(leash, &database).await;
}

/// Leaves every kind of state that a session can have.
async fn make_a_mess(client: &Session) {
    client
        .batch_execute(
            "SET work_mem = '123MB'; SET search_path = pg_catalog; CREATE TEMP TABLE secret (n int); \
             PREPARE plan AS SELECT 1; SELECT pg_advisory_lock(42); LISTEN gossip; \
             DECLARE held CURSOR WITH HOLD FOR SELECT 1; SET SESSION application_name = 'renamed'; \
             SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        )
        .await
        .unwrap();
}

/// What of it can be seen.
const MESS: &str = "SELECT concat_ws(' ', current_setting('work_mem'), current_setting('search_path'), \
    'temp', (SELECT count(*) FROM pg_class WHERE relname = 'secret' AND pg_table_is_visible(oid)), \
    'plans', (SELECT count(*) FROM pg_prepared_statements WHERE NOT statement LIKE '%concat_ws%'), \
    'locks', (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
    'channels', (SELECT count(*) FROM pg_listening_channels()), \
    'cursors', (SELECT count(*) FROM pg_cursors WHERE is_holdable), \
    'read only', current_setting('default_transaction_read_only'))";
const MESSY: &str = "123MB pg_catalog temp 1 plans 1 locks 1 channels 1 cursors 1 read only on";
const CLEAN: &str = "4MB \"$user\", public temp 0 plans 0 locks 0 channels 0 cursors 0 read only off";

/// Keeps the two texts above honest.
#[tokio::test]
async fn a_mess_is_a_mess_on_plain_postgres() {
    let database = Server::shared().database().await;
    let client = database.direct().connect("messy").await;
    assert_eq!(client.one(MESS).await, CLEAN);
    make_a_mess(&client).await;
    assert_eq!(client.one(MESS).await, MESSY);
    client.batch_execute("DISCARD ALL").await.unwrap();
    assert_eq!(client.one(MESS).await, CLEAN);
    client.close().await;
}

async fn nothing_of_a_session_reaches_the_next_borrower(mode: Mode) {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(mode).set("pool.size", 1).start().await;
    let messy = leash.endpoint().connect("messy").await;
    make_a_mess(&messy).await;
    let backend = messy.backend_pid().await;
    assert_eq!(messy.one(MESS).await, MESSY);
    messy.close().await;

    let mut next = leash.endpoint().raw("next").await;
    assert_eq!(next.one(MESS).await, CLEAN);
    assert_eq!(next.one("SHOW application_name").await, "next");
    assert_eq!(
        next.one("SELECT pg_backend_pid()").await,
        backend.to_string(),
        "the backend was not re-issued"
    );
    // Nor does it hear what the other listened to.
    let speaker = database.admin().await;
    speaker.batch_execute("NOTIFY gossip, 'for the other'").await.unwrap();
    assert_eq!(tags(&next.query("SELECT 1").await), "TDCZ");
    speaker.close().await;
    next.close().await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn transactions_of_many_clients_share_few_backends() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 2).start().await;
    let mut clients = Vec::new();
    for n in 0..10 {
        clients.push(leash.endpoint().connect(&format!("client-{n}")).await);
    }
    let mut backends: Vec<i32> = Vec::new();
    for round in 0..3 {
        for client in &clients {
            client.batch_execute("BEGIN").await.unwrap();
            backends.push(client.backend_pid().await);
            assert_eq!(client.one(&format!("SELECT {round}")).await, round.to_string());
            client.batch_execute("COMMIT").await.unwrap();
        }
    }
    backends.sort_unstable();
    backends.dedup();
    assert!(backends.len() <= 2, "{backends:?}");
    // The last client has its answer a moment before its connection is home.
    let nobody = |pool: &serde_json::Value| pool["holders"].as_array().is_some_and(Vec::is_empty);
    leash.pool_when("no client between transactions holds a connection", nobody).await;
    assert_eq!(leash.snapshot().await["clients"], 10);
    for client in clients {
        client.close().await;
    }
    finish(leash, &database).await;
}

#[tokio::test]
async fn settings_follow_their_client_between_transactions() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 2).start().await;
    let one = leash.endpoint().connect("one").await;
    let two = leash.endpoint().connect("two").await;
    one.batch_execute("SET work_mem = '11MB'; SET TIME ZONE 'Asia/Tokyo'").await.unwrap();
    two.batch_execute("SET work_mem = '22MB'").await.unwrap();
    for _ in 0..3 {
        assert_eq!(two.one("SELECT current_setting('work_mem')").await, "22MB");
        assert_eq!(one.one("SELECT current_setting('work_mem')").await, "11MB");
        assert_eq!(one.one("SHOW TimeZone").await, "Asia/Tokyo");
    }
    one.close().await;
    assert_eq!(
        two.one("SHOW TimeZone").await,
        two.one("SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'").await
    );
    two.close().await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn prepared_statements_survive_a_change_of_backend() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 2).start().await;
    let one = leash.endpoint().connect("one").await;
    let two = leash.endpoint().connect("two").await;
    // Both drivers call their first statement the same.
    let add = one.prepare("SELECT $1::int + 1").await.unwrap();
    let double = two.prepare("SELECT $1::int * 2").await.unwrap();
    for n in 1..20 {
        assert_eq!(one.query_one(&add, &[&n]).await.unwrap().get::<_, i32>(0), n + 1);
        assert_eq!(two.query_one(&double, &[&n]).await.unwrap().get::<_, i32>(0), n * 2);
    }
    one.close().await;
    two.close().await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn session_state_pins_and_the_pin_is_shown() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 2).start().await;
    let client = leash.endpoint().connect("pinner").await;
    client.batch_execute("CREATE TEMP TABLE mine (n int)").await.unwrap();
    client.batch_execute("INSERT INTO mine VALUES (7)").await.unwrap();
    assert_eq!(client.one("SELECT n FROM mine").await, "7");
    let pool = leash.pool().await;
    let holder = &pool["holders"][0];
    assert_eq!(holder["app"], "pinner", "{pool}");
    assert!(holder["pinned"].is_string(), "the reason of the pin is not shown: {holder}");
    client.close().await;
    finish(leash, &database).await;
}

async fn server_connections_are_renewed_at_max_lifetime(mode: Mode) {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(mode).set("pool.size", 1).set("pool.max_lifetime", "2s");
    let mut leash = setup.start().await;
    let client = leash.endpoint().connect("first").await;
    let first = client.backend_pid().await;
    client.close().await;
    // Idle: it is closed when its time has come, with no client near.
    let closed = leash.event("connection_closed", |event| event["backend_pid"] == first).await;
    assert_eq!(closed["reason"], "max_lifetime");
    assert!(
        closed["age_seconds"].as_f64().unwrap() >= 1.8,
        "closed before its time less the jitter: {closed}"
    );
    // Held: it is closed when it comes back.
    let client = leash.endpoint().connect("second").await;
    client.batch_execute("BEGIN").await.unwrap();
    let second = client.backend_pid().await;
    assert_ne!(second, first);
    leash.pool_when("the held connection is overdue", |pool| pool["overdue"] == 1).await;
    assert_eq!(client.backend_pid().await, second, "a held connection is not cut for its age");
    client.batch_execute("COMMIT").await.unwrap();
    client.close().await;
    let closed = leash.event("connection_closed", |event| event["backend_pid"] == second).await;
    assert_eq!(closed["reason"], "max_lifetime");
    finish(leash, &database).await;
}

/// A holder that is never idle, and so never a leak of another kind, keeps its connection from being
/// renewed: that is told, and nothing is taken.
async fn a_connection_that_misses_its_renewal_is_told(mode: Mode) {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(mode).set("pool.size", 1).set("pool.max_lifetime", "1s");
    let mut leash = setup.set("leaks.idle_in_transaction", "1s").expecting(&["leak_detected"]).start().await;
    let client = leash.endpoint().connect("workaholic").await;
    client.batch_execute("BEGIN").await.unwrap();
    let backend = client.backend_pid().await;
    eventually("it is told as overdue", async || {
        assert_eq!(client.one("SELECT pg_backend_pid() FROM pg_sleep(0.05)").await, backend.to_string());
        leash.events_named("leak_detected").into_iter().find(|event| event["reason"] == "overdue")
    })
    .await;
    client.batch_execute("COMMIT").await.unwrap();
    client.close().await;
    let closed = leash.event("connection_closed", |event| event["backend_pid"] == backend).await;
    assert_eq!(closed["reason"], "max_lifetime");
    let resolved = leash.event("leak_resolved", |event| event["reason"] == "overdue").await;
    let how = if mode == Mode::Session { "disconnected" } else { "returned" };
    assert_eq!(resolved["resolution"], how);
    finish(leash, &database).await;
}

async fn unused_server_connections_are_closed_at_idle_timeout(mode: Mode) {
    let database = Server::shared().database().await;
    let mut leash = Leash::on(&database).mode(mode).set("pool.idle_timeout", "1s").start().await;
    let mut clients = Vec::new();
    for n in 0..3 {
        let client = leash.endpoint().connect(&format!("client-{n}")).await;
        client.batch_execute("BEGIN").await.unwrap();
        clients.push(client);
    }
    leash.pool_when("three are lent", |pool| pool["connections"]["idle_in_transaction"] == 3).await;
    for client in clients {
        client.batch_execute("COMMIT").await.unwrap();
        client.close().await;
    }
    leash.event("connection_closed", |event| event["reason"] == "idle_timeout").await;
    leash.pool_when("all are closed", |pool| pool["opened"] == 3 && pool["closed"] == 3).await;
    crate::support::nobody_is_left(&database).await;
    let again = leash.endpoint().connect("again").await;
    assert_eq!(again.one("SELECT 1").await, "1");
    again.close().await;
    finish(leash, &database).await;
}

async fn each_database_user_pair_has_its_own_pool(mode: Mode) {
    let database = Server::shared().database().await;
    let elsewhere = Server::shared().database().await;
    let leash = Leash::on(&database).mode(mode).set("pool.size", 1).start().await;
    let mut there = leash.endpoint();
    there.database = elsewhere.name.clone();
    let mut clients = Vec::new();
    for endpoint in [leash.endpoint(), leash.endpoint().user("other"), there] {
        let client = endpoint.connect("same-app").await;
        client.batch_execute("BEGIN").await.unwrap();
        let seen = client.one("SELECT current_user || '@' || current_database()").await;
        assert_eq!(seen, format!("{}@{}", endpoint.user, endpoint.database));
        clients.push(client);
    }
    let pools: Vec<String> = leash.snapshot().await["pools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pool| pool["pool"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(pools.len(), 3, "{pools:?}");
    for client in clients {
        client.batch_execute("COMMIT").await.unwrap();
        client.close().await;
    }
    finish(leash, &database).await;
}

async fn the_applications_name_is_seen_at_the_server(mode: Mode) {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(mode).set("pool.size", 1).start().await;
    let admin = database.admin().await;
    let mut backends = Vec::new();
    for app in ["alpha", "beta", "alpha"] {
        let client = leash.endpoint().connect(app).await;
        client.batch_execute("BEGIN").await.unwrap();
        let pid = client.backend_pid().await;
        let seen =
            admin.one(&format!("SELECT application_name FROM pg_stat_activity WHERE pid = {pid}")).await;
        assert_eq!(seen, app);
        client.batch_execute("COMMIT").await.unwrap();
        backends.push(pid);
        client.close().await;
    }
    backends.dedup();
    assert_eq!(backends.len(), 1, "it was one backend throughout");
    admin.close().await;
    finish(leash, &database).await;
}

/// A client says Terminate in mid-transaction: a leak of the certain kind, cleaned up at once.
async fn a_dirty_goodbye_is_cleaned_up(mode: Mode) {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(mode).set("pool.size", 1).expecting(&["leak_detected"]);
    let mut leash = setup.start().await;
    let client = leash.endpoint().connect("sloppy").await;
    client.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    client.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    client.close().await;
    leash.event("leak_detected", |event| event["reason"] == "dirty_return" && event["app"] == "sloppy").await;
    leash.event("recycled", |event| event["outcome"] == "reissued").await;
    let next = leash.endpoint().connect("next").await;
    assert_eq!(next.one("SELECT count(*) FROM t").await, "0");
    next.close().await;
    finish(leash, &database).await;
}

async fn a_burst_between_two_scrapes_is_seen(mode: Mode) {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(mode).set("pool.size", 4).start().await;
    let mut burst = Vec::new();
    for n in 0..4 {
        let client = leash.endpoint().connect(&format!("burst-{n}")).await;
        client.batch_execute("BEGIN").await.unwrap();
        burst.push(client);
    }
    for client in burst {
        client.batch_execute("COMMIT").await.unwrap();
        client.close().await;
    }
    let pool = leash.pool_when("all are home", |pool| pool["utilization_ratio"] == 0.0).await;
    assert_eq!(pool["utilization_peak_ratio"], 1.0, "{pool}");
    assert_eq!(leash.metrics().await.sum("pool_utilization_peak_ratio", &[]), 1.0);
    finish(leash, &database).await;
}

async fn counts_agree_under_a_crowd(mode: Mode) {
    let database = Server::shared().database().await;
    let leash =
        Leash::on(&database).mode(mode).set("pool.size", 4).set("pool.wait_timeout", "25s").start().await;
    let setup = leash.endpoint().connect("setup").await;
    setup.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    setup.close().await;
    let failures = Arc::new(Mutex::new(Vec::new()));
    let mut crowd = Vec::new();
    for n in 0..24 {
        let (endpoint, failures) = (leash.endpoint(), failures.clone());
        crowd.push(tokio::spawn(async move {
            let client = endpoint.connect(&format!("member-{}", n % 3)).await;
            for round in 0..5 {
                client.batch_execute("BEGIN").await.unwrap();
                let insert = client.execute("INSERT INTO t VALUES ($1)", &[&(n * 100 + round)]).await;
                if let Err(error) = insert.and(client.batch_execute("COMMIT").await) {
                    failures.lock().unwrap().push(sqlstate(&error).to_owned());
                }
            }
            client.close().await;
        }));
    }
    for member in crowd {
        member.await.unwrap();
    }
    assert!(failures.lock().unwrap().is_empty(), "{failures:?}");
    let client = leash.endpoint().connect("count").await;
    assert_eq!(client.one("SELECT count(DISTINCT n) FROM t").await, "120");
    client.close().await;
    let pool = leash.pool_when("all are home", |pool| pool["checkouts"] == pool["checkins"]).await;
    assert!(pool["connections"]["idle"].as_u64().unwrap() <= 4, "{pool}");
    let metrics = leash.metrics().await;
    assert_eq!(metrics.sum("checkouts_total", &[]), pool["checkouts"].as_f64().unwrap());
    assert_eq!(metrics.sum("checkins_total", &[]), pool["checkins"].as_f64().unwrap());
    assert_eq!(metrics.sum("connections_opened_total", &[]), pool["opened"].as_f64().unwrap());
    finish(leash, &database).await;
}

#[tokio::test]
async fn half_a_header_costs_nothing() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).set("pool.size", 1).start().await;
    let mut slow = leash.endpoint().raw("slow").await;
    let statement = raw::query("SELECT 'whole'");
    // 1. The first bytes of a statement come, and then nothing for a while.
    slow.send(&statement[..3]).await;
    let mut other = leash.endpoint().raw("other").await;
    for _ in 0..20 {
        assert_eq!(other.one("SELECT 1").await, "1");
    }
    // 2. Nobody was lent a connection for it, nor for a login: twenty statements.
    assert_eq!(leash.pool().await["checkouts"], 20);
    // 3. The rest comes, and is answered.
    slow.send(&statement[3..]).await;
    assert_eq!(raw::tags(&slow.until_ready().await), "TDCZ");
    slow.close().await;
    other.close().await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn clients_that_come_together_share_one_pool() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).set("pool.size", 2).set("pool.wait_timeout", "20s").start().await;
    let endpoint = leash.endpoint();
    let logins = (0..40).map(|_| endpoint.raw("crowd"));
    let clients = futures_util::future::join_all(logins).await;
    let opened = leash.metrics().await.sum("connections_opened_total", &[]);
    assert!(opened <= 2.0, "{opened} connections for a pool of 2");
    for client in clients {
        client.close().await;
    }
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_reset_takes_nothing_from_anybody() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).set("pool.size", 1).start().await;
    let login = async || {
        let mut client = Raw::connect(leash.port()).await;
        let endpoint = leash.endpoint();
        let options = "-c statement_timeout=77s";
        let mut startup = vec![("user", endpoint.user.as_str()), ("database", &endpoint.database)];
        startup.extend([("application_name", "alike"), ("options", options)]);
        client.startup(raw::PROTOCOL_3_0, &startup).await;
        client.until_ready().await;
        client
    };
    let (mut one, mut other) = (login().await, login().await);
    for reset in ["DISCARD ALL", "RESET ALL", "BEGIN; RESET ALL; ROLLBACK"] {
        assert_eq!(one.one("SHOW statement_timeout").await, "77s");
        one.query(reset).await;
        assert_eq!(other.one("SHOW statement_timeout").await, "77s", "of another client, after {reset}");
        assert_eq!(one.one("SHOW statement_timeout").await, "77s", "after {reset}");
        assert_eq!(one.one("SHOW application_name").await, "alike", "after {reset}");
    }
    let mut plain = leash.endpoint().raw("plain").await;
    one.query("BEGIN; RESET ALL; ROLLBACK").await;
    assert_eq!(plain.one("SHOW statement_timeout").await, "0", "nothing is left for others");
    leash.pool_when("nobody is pinned", |pool| pool["holders"].as_array().unwrap().is_empty()).await;
    for client in [one, other, plain] {
        client.close().await;
    }
    finish(leash, &database).await;
}

/// A client that keeps its connection goes back to its own parameters as well, and keeps what else it has.
#[tokio::test]
async fn a_reset_of_a_kept_connection_goes_back_to_the_login() {
    for mode in [Mode::Session, Mode::Transaction] {
        let database = Server::shared().database().await;
        let leash = Leash::on(&database).mode(mode).set("pool.size", 1).start().await;
        let endpoint = leash.endpoint();
        let mut client = Raw::connect(leash.port()).await;
        let mut startup = vec![("user", endpoint.user.as_str()), ("database", &endpoint.database)];
        startup.extend([("application_name", "keeps"), ("options", "-c search_path=mine")]);
        client.startup(raw::PROTOCOL_3_0, &startup).await;
        client.until_ready().await;
        client.query("LISTEN jobs").await;
        let backend = client.one("SELECT pg_backend_pid()").await;
        client.query("SET search_path = other; SET application_name = 'changed'").await;
        for _ in 0..2 {
            assert!(raw::tags(&client.query("RESET ALL").await).ends_with('Z'), "in {mode:?}");
            assert_eq!(client.one("SHOW search_path").await, "mine");
            assert_eq!(client.one("SHOW application_name").await, "keeps");
        }
        assert_eq!(client.one("SELECT pg_backend_pid()").await, backend);
        client.query("NOTIFY jobs").await;
        client.close().await;
        finish(leash, &database).await;
    }
}

/// A client that logs in with settings of its own, and what it has been told of them.
struct Setter {
    client: Raw,
    told: std::collections::BTreeMap<String, String>,
}

impl Setter {
    async fn login(endpoint: &Endpoint) -> Setter {
        let mut client = Raw::connect(endpoint.port).await;
        let options = "-c work_mem=6MB -c search_path=mine -c TimeZone=Europe/Berlin";
        let mut startup = vec![("user", endpoint.user.as_str()), ("database", &endpoint.database)];
        startup.extend([("application_name", "setter"), ("DateStyle", "German"), ("options", options)]);
        client.startup(raw::PROTOCOL_3_0, &startup).await;
        let frames = client.until_ready().await;
        client.learn(&frames);
        let told = client.parameters.iter().cloned().collect();
        Setter { client, told }
    }

    async fn query(&mut self, sql: &str) -> Vec<raw::Frame> {
        let frames = self.client.query(sql).await;
        for frame in frames.iter().filter(|frame| frame.tag == 'S') {
            let texts: Vec<_> = frame.body.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            self.told.insert(texts[0].to_string(), texts[1].to_string());
        }
        frames
    }

    /// What is set, as the server says, and what the client has been told.
    async fn settings(&mut self) -> Vec<Option<String>> {
        let names = ["DateStyle", "TimeZone", "application_name", "work_mem", "search_path", "IntervalStyle"];
        let shown = names.map(|name| format!("current_setting('{name}')")).join(",");
        let row = self.query(&format!("SELECT {shown}")).await.iter().find(|frame| frame.tag == 'D').cloned();
        let told = ["DateStyle", "TimeZone", "application_name"].map(|name| self.told.get(name).cloned());
        [row.unwrap().columns(), told.to_vec()].concat()
    }
}

/// RESET and its like count when the server has done them, and for good; and go back to the login.
#[tokio::test]
async fn what_is_reset_is_what_a_server_of_its_own_would_reset() {
    let steps = [
        "SET DateStyle = 'ISO'",
        "RESET DateStyle",
        "SET TIME ZONE 'Asia/Tokyo'; SET IntervalStyle = 'iso_8601'",
        "SET TIME ZONE DEFAULT",
        "SET application_name = 'other'; SET DateStyle = 'SQL'",
        "SET application_name TO DEFAULT",
        "RESET nonsense",
        "BEGIN; RESET DateStyle; ROLLBACK",
        "BEGIN; RESET ALL; ROLLBACK",
        "RESET ALL; SELECT 1/0",
        "BEGIN; RESET ALL; SELECT 1/0",
        "ROLLBACK",
        "BEGIN; DISCARD ALL",
        "ROLLBACK",
        "BEGIN; RESET DateStyle; COMMIT",
        "SET DateStyle = 'SQL'",
        "DO $$ BEGIN RESET DateStyle; END $$",
        "RESET work_mem",
        "BEGIN; SET work_mem = '9MB'; ROLLBACK",
        "SET work_mem = '9MB'",
        "RESET DateStyle",
        "SET work_mem TO DEFAULT",
        "RESET ALL; SET work_mem = '8MB'; SET TimeZone = 'UTC'",
        "BEGIN; RESET work_mem",
        "SET work_mem = '10MB'",
        "COMMIT",
        "RESET ALL",
        "SET search_path = elsewhere; SET DateStyle = 'ISO'",
        "DISCARD ALL",
    ];
    for (mode, begins) in [
        (Mode::Transaction, "SELECT 1"),
        (Mode::Transaction, "CREATE TEMP TABLE kept ()"),
        (Mode::Session, "SELECT 1"),
    ] {
        let database = Server::shared().database().await;
        let leash = Leash::on(&database).mode(mode).set("pool.size", 2).start().await;
        let mut direct = Setter::login(&database.direct()).await;
        let mut through = Setter::login(&leash.endpoint()).await;
        let mut other = leash.endpoint().raw("other").await;
        for step in [begins].iter().chain(&steps) {
            let (want, heard) = (direct.query(step).await, through.query(step).await);
            let status = |frames: &[raw::Frame]| frames.last().unwrap().body.clone();
            assert_eq!(status(&heard), status(&want), "{step}, in {mode:?}");
            // In a transaction the server's own defaults are seen, until its end.
            if status(&want)[..] == *b"I" {
                let clock =
                    other.one("SELECT current_setting('DateStyle') || current_setting('work_mem')").await;
                assert_eq!(clock, "ISO, MDY4MB", "nobody else has heard of {step}");
                assert_eq!(
                    through.settings().await,
                    direct.settings().await,
                    "{begins}, {step}, in {mode:?}"
                );
            }
        }
        for client in [direct.client, through.client, other] {
            client.close().await;
        }
        finish(leash, &database).await;
    }
}
