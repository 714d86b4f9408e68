//! What a client asks for at its login is tried there.

use crate::support::raw::{self, Frame, Raw, tags};
use crate::support::{Database, Leash, Mode, Server, eventually, finish, in_both_modes};

in_both_modes! {
    a_login_is_tried_once,
    a_login_that_the_server_refuses_leaves_nothing,
    a_crowd_does_not_open_the_whole_pool,
    a_login_does_not_wait_for_a_full_pool,
    a_login_that_could_not_be_tried_is_refused_later,
    a_login_in_a_pause_is_let_in,
    a_login_while_the_server_is_away_is_let_in,
}

/// Knocks with these parameters.
pub async fn knock(leash: &Leash, parameters: &[(&str, &str)]) -> Raw {
    let to = leash.endpoint();
    let mut client = Raw::connect(to.port).await;
    let who = [("user", to.user.as_str()), ("database", &to.database)];
    client.startup(raw::PROTOCOL_3_0, &[&who, parameters].concat()).await;
    client
}

/// Logs in with them.
pub async fn enter(leash: &Leash, parameters: &[(&str, &str)]) -> Raw {
    let mut client = knock(leash, parameters).await;
    let greeting = client.until_ready().await;
    client.learn(&greeting);
    client
}

async fn with_one_connection(mode: Mode, told: &[&'static str]) -> (Database, Leash) {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(mode).set("pool.size", 1).set("pool.wait_timeout", "10s");
    (database, setup.expecting(told).start().await)
}

/// What the only connection was last used for.
async fn last_statement(database: &Database) -> String {
    let admin = database.admin().await;
    let sql = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app'";
    let said = admin.one(sql).await;
    admin.close().await;
    said
}

async fn checkouts(leash: &Leash) -> f64 {
    leash.metrics().await.sum("checkouts_total", &[])
}

/// A login asks the server about what it does not know yet, and counts as no checkout; the next one costs nothing.
async fn a_login_is_tried_once(mode: Mode) {
    let (database, leash) = with_one_connection(mode, &[]).await;
    let mine = [("application_name", "one"), ("work_mem", "5MB"), ("TimeZone", "Asia/Tokyo")];
    let mut one = enter(&leash, &mine).await;
    assert!(last_statement(&database).await.contains("set_config('work_mem','5MB'"));
    leash.pool_when("it is home", |pool| pool["connections"]["idle"] == 1).await;
    assert_eq!(checkouts(&leash).await, 0.0);
    assert_eq!(
        one.one("SELECT current_setting('work_mem') || current_setting('TimeZone')").await,
        "5MBAsia/Tokyo"
    );
    one.close().await;

    // Another name is no other parameter, and neither is what is set anyway.
    let mut other = leash.endpoint().raw("other").await;
    assert_eq!(other.one("SELECT current_setting('work_mem')").await, "4MB");
    other.close().await;
    leash.pool_when("it is home", |pool| pool["connections"]["idle"] == 1).await;
    let before = last_statement(&database).await;
    let again = [("application_name", "two"), ("work_mem", "5MB"), ("TimeZone", "Asia/Tokyo")];
    let mut two = enter(&leash, &[&again[..], &[("client_encoding", "utf-8")]].concat()).await;
    let last = last_statement(&database).await;
    assert_ne!(last, before, "it is asked whether the role may log in");
    assert!(last.contains("'defaults'") && !last.contains("5MB"), "it is not asked again for these: {last}");
    assert_eq!(two.one("SELECT current_setting('work_mem')").await, "5MB");
    two.close().await;
    finish(leash, &database).await;
}

/// Refused in the server's words, before there is a session; the value stays out of the log.
async fn a_login_that_the_server_refuses_leaves_nothing(mode: Mode) {
    let (database, mut leash) = with_one_connection(mode, &["client_refused"]).await;
    let mut first = leash.endpoint().raw("first").await;
    let backend = first.one("SELECT pg_backend_pid()").await;
    first.close().await;
    let refused = [
        ("work_mem", "s3cret", "22023", "invalid value for parameter \"work_mem\": \"s3cret\""),
        ("s3cret", "1", "42704", "unrecognized configuration parameter \"s3cret\""),
        ("log_statement", "all", "42501", "permission denied to set parameter \"log_statement\""),
    ];
    for (name, value, code, words) in refused {
        let said = knock(&leash, &[("search_path", "elsewhere"), (name, value)]).await.until_closed().await;
        assert_eq!(tags(&said), "E", "{name}");
        let field = |field: char| said[0].field(field);
        assert_eq!((field('V'), field('C'), field('M')), ("FATAL".into(), code.into(), words.into()));
    }
    let told = leash.event("client_refused", |event| event["detail"].to_string().contains("work_mem")).await;
    assert_eq!(told["reason"], "login");
    assert!(!told.to_string().contains("s3cret"), "{told}");
    leash.pool_when("nobody has it", |pool| pool["connections"]["idle"] == 1).await;
    assert_eq!(leash.snapshot().await["clients"], 0);

    let mut next = leash.endpoint().raw("next").await;
    assert_eq!(next.one("SELECT pg_backend_pid()").await, backend, "no connection was lost by it");
    assert_ne!(next.one("SHOW search_path").await, "elsewhere");
    next.close().await;
    assert_eq!(leash.metrics().await.sum("connections_opened_total", &[]), 1.0);
    finish(leash, &database).await;
}

async fn a_crowd_does_not_open_the_whole_pool(mode: Mode) {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(mode).set("pool.size", 8).start().await;
    leash.endpoint().raw("first").await.close().await;
    let sizes = ["5MB", "6MB", "7MB"].map(|size| [("work_mem", size)]);
    let crowd = futures_util::future::join_all((0..30).map(|n| enter(&leash, &sizes[n % 3]))).await;
    // One is asked whether the role may log in, another one perhaps for the parameters.
    let opened = leash.metrics().await.sum("connections_opened_total", &[]);
    assert!(opened <= 2.0, "{opened} of 8");
    futures_util::future::join_all(crowd.into_iter().map(Raw::close)).await;
    finish(leash, &database).await;
}

/// Somebody who has the only connection.
async fn holder(leash: &Leash) -> Raw {
    let mut holder = leash.endpoint().raw("holder").await;
    assert_eq!(tags(&holder.query("BEGIN").await), "CZ");
    holder
}

async fn let_go(mut holder: Raw) {
    holder.query("COMMIT").await;
    holder.close().await;
}

async fn a_login_does_not_wait_for_a_full_pool(mode: Mode) {
    let (database, leash) = with_one_connection(mode, &[]).await;
    let holder = holder(&leash).await;
    let mut late = enter(&leash, &[("work_mem", "5MB")]).await;
    assert_eq!(leash.pool().await["waiting"], 0, "it waits for nothing any more");
    let_go(holder).await;
    assert_eq!(late.one("SHOW work_mem").await, "5MB");
    late.close().await;
    assert_eq!(leash.metrics().await.sum("checkout_timeouts_total", &[]), 0.0);
    finish(leash, &database).await;
}

async fn a_login_that_could_not_be_tried_is_refused_later(mode: Mode) {
    let (database, leash) = with_one_connection(mode, &[]).await;
    let holder = holder(&leash).await;
    let mut late = enter(&leash, &[("work_mem", "lots")]).await;
    let_go(holder).await;
    late.send(&raw::query("SELECT 1")).await;
    let told: Frame = late.fatal().await;
    assert_eq!(told.field('C'), "22023");
    let next = eventually("the connection is clean", async || {
        let mut next = leash.endpoint().raw("next").await;
        let shown = next.one("SHOW work_mem").await;
        next.close().await;
        Some(shown)
    });
    assert_eq!(next.await, "4MB");
    finish(leash, &database).await;
}

/// The next statement waits, as everybody's does.
async fn a_login_in_a_pause_is_let_in(mode: Mode) {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(mode).control().start().await;
    leash.endpoint().raw("first").await.close().await;
    assert_eq!(leash.post("/api/v1/pause").await.0, 200);
    let mut late = enter(&leash, &[("work_mem", "5MB")]).await;
    late.send(&raw::query("SHOW work_mem")).await;
    leash.pool_when("it waits", |pool| pool["waiting"] == 1).await;
    assert_eq!(leash.post("/api/v1/resume").await.0, 200);
    assert_eq!(raw::rows(&late.until_ready().await)[0][0].as_deref(), Some("5MB"));
    late.close().await;
    finish(leash, &database).await;
}

async fn a_login_while_the_server_is_away_is_let_in(mode: Mode) {
    let mut server = Server::private();
    let database = server.database().await;
    let setup = Leash::on(&database).mode(mode).set("pool.wait_timeout", "20s");
    let leash = setup.expecting(&["upstream_failed"]).start().await;
    leash.endpoint().raw("first").await.close().await;
    server.stop();
    let mut late = enter(&leash, &[("work_mem", "5MB")]).await;
    late.send(&raw::query("SHOW work_mem")).await;
    server.start();
    assert_eq!(raw::rows(&late.until_ready().await)[0][0].as_deref(), Some("5MB"));
    late.close().await;
    finish(leash, &database).await;
}
