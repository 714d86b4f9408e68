//! Several hosts in `upstream.url`: the first that fits is used.

use crate::support::raw;
use crate::support::server::free_port;
use crate::support::{Database, Leash, Mode, Server, finish, in_both_modes, signal};

in_both_modes! {
    a_dead_host_is_passed_over,
    a_host_that_does_not_fit_is_passed_over,
}

/// Sixteen connections at a time: that all of them go to the first of two hosts is one chance in 65536.
#[tokio::test]
async fn hosts_share_the_load_if_asked_to() {
    let database = Server::shared().database().await;
    let twin = Server::private();
    let other = twin.database_named(&database.name).await;
    let url = url(other.port, &database, "load_balance_hosts=random");
    let leash = Leash::upstream(&url, &database.name).set("pool.size", 17).start().await;
    let mut clients = Vec::new();
    let mut ports = std::collections::BTreeSet::new();
    for _ in 0..17 {
        let client = leash.endpoint().connect("one of many").await;
        client.batch_execute("BEGIN").await.unwrap();
        ports.insert(client.one("SELECT inet_server_port()").await);
        clients.push(client);
    }
    assert_eq!(ports, [other.port, database.port].map(|port| port.to_string()).into());
    for client in clients {
        client.batch_execute("COMMIT").await.unwrap();
        client.close().await;
    }
    leash.sigterm();
    drop(leash);
    database.remove().await;
}

/// The server is asked whether it still fits, and whoever wanted the connection leaves before it answers.
#[tokio::test]
async fn who_leaves_while_the_server_is_asked_leaves_no_connection_behind() {
    let database = Server::shared().database().await;
    let url = url(free_port(), &database, "target_session_attrs=read-write");
    let leash = Leash::upstream(&url, &database.name).mode(Mode::Transaction).start().await;
    let mut leaver = leash.endpoint().raw("leaver").await;
    let backend = leaver.one("SELECT pg_backend_pid()").await;
    leash
        .pool_when("it is not believed any more", |pool| {
            pool["oldest_connection_seconds"].as_f64() > Some(1.2)
        })
        .await;
    signal("STOP", &backend);
    leaver.send(&raw::query("SELECT 'nobody will read it'")).await;
    leaver.kill();
    leash.pool_when("its connection is closed", |pool| pool["closed"] == 1).await;
    signal("CONT", &backend);
    let mut next = leash.endpoint().raw("next").await;
    assert_ne!(next.one("SELECT pg_backend_pid()").await, backend);
    next.close().await;
    finish(leash, &database).await;
}

fn url(first_port: u16, database: &Database, options: &str) -> String {
    let Database { name, port } = database;
    format!("postgres://app@127.0.0.1:{first_port},127.0.0.1:{port}/{name}?{options}")
}

async fn a_dead_host_is_passed_over(mode: Mode) {
    let database = Server::shared().database().await;
    let leash = Leash::upstream(&url(free_port(), &database, ""), &database.name).mode(mode).start().await;
    let client = leash.endpoint().connect("visitor").await;
    assert_eq!(client.one("SELECT current_database()").await, database.name);
    client.close().await;
    let (status, why) = leash.get("/readyz").await;
    assert_eq!(status, 200, "{why}");
    finish(leash, &database).await;
}

/// Two servers with a database of one name, read-only on the first.
async fn a_host_that_does_not_fit_is_passed_over(mode: Mode) {
    let database = Server::shared().database().await;
    let standby = Server::private();
    let stale = standby.database_named(&database.name).await;
    let admin = stale.admin().await;
    let read_only = format!("ALTER DATABASE {} SET default_transaction_read_only = on", stale.name);
    admin.batch_execute(&read_only).await.unwrap();
    admin.close().await;

    let url = url(stale.port, &database, "target_session_attrs=read-write");
    let leash = Leash::upstream(&url, &database.name).mode(mode).start().await;
    let client = leash.endpoint().connect("writer").await;
    client.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    assert_eq!(client.one("SELECT inet_server_port()").await, database.port.to_string());
    let pool = leash.pool_when("the connection is on the books", |pool| pool["opened"] == 1).await;
    assert_eq!(pool["closed"], 0, "what did not fit was never opened: {pool}");
    client.close().await;
    finish(leash, &database).await;
}
