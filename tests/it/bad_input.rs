//! Bad input of every kind: a clear word for the one who sent it, and nothing for the others.

use std::time::Duration;

use tokio::net::TcpListener;

use crate::support::raw::Raw;
use crate::support::server::{LOCKED_PASSWORD, free_port};
use crate::support::{
    Database, Leash, Mode, Server, Session, eventually_or, finish, in_both_modes, sqlstate, within,
};

in_both_modes! {
    what_the_server_refuses_is_told_in_its_words,
    an_unreachable_server_is_told_and_recovers,
}

#[tokio::test]
async fn unknown_and_ill_typed_keys_are_all_told_at_once() {
    let setup = Leash::upstream("postgres://app@127.0.0.1:1/app", "app");
    let setup = setup.set("pool.sise", 3).set("pool.size", "many").set("leaks.budget", "lots");
    let (code, said) = setup.set("leaks.action", "destroy").set("pool.mode", "statement").run().await;
    assert_eq!(code, 64, "{said}");
    for clue in
        ["pool.size", "many", "leaks.budget", "leaks.action", "destroy", "observe", "pool.mode", "statement"]
    {
        assert!(said.contains(clue), "{clue} is not mentioned: {said}");
    }
    assert!(said.contains("pool.sise") || said.contains("PGLEASH_POOL_SISE"), "{said}");
}

#[tokio::test]
async fn values_out_of_range_are_refused() {
    for (key, value) in [
        ("pool.size", "0"),
        ("pool.size", "-1"),
        ("pool.wait_timeout", "soon"),
        ("pool.max_lifetime", "5 parsecs"),
        ("leaks.budget", "250%/1m"),
        ("leaks.idle_in_transaction", "0s"),
        ("listen", "nowhere"),
        ("listen", "127.0.0.1:99999"),
        ("upstream.url", "mysql://app@127.0.0.1/app"),
        ("workers", "none"),
    ] {
        let setup = Leash::upstream("postgres://app@127.0.0.1:1/app", "app").set(key, value);
        let (code, said) = setup.run().await;
        assert_eq!(code, 64, "{key} = {value}: {said}");
        assert!(said.contains(key), "{key} = {value}: {said}");
        // A URL may hold a password, so it is not repeated.
        assert!(said.contains(value) != key.ends_with("url"), "{key} = {value}: {said}");
    }
}

/// Clients are trusted in this version, so only the machine itself may be one.
#[tokio::test]
async fn an_open_address_is_refused() {
    let (code, said) =
        Leash::upstream("postgres://app@127.0.0.1:1/app", "app").set("listen", "0.0.0.0:0").run().await;
    assert_eq!(code, 64, "{said}");
    for clue in ["listen", "0.0.0.0", "reachable from other machines", "127.0.0.1"] {
        assert!(said.contains(clue), "{clue} is not mentioned: {said}");
    }
}

#[tokio::test]
async fn a_taken_port_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for key in ["listen", "admin"] {
        let (code, said) =
            Leash::upstream("postgres://app@127.0.0.1:1/app", "app").set(key, &address).run().await;
        assert_eq!(code, 1, "{key}: {said}");
        assert!(said.contains(&address) && said.to_lowercase().contains("in use"), "{key}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

/// A pgleash and a client of it, in a transaction, that must not be disturbed.
pub async fn with_bystander(mode: Mode) -> (Database, Leash, Session) {
    let database = Server::shared().database().await;
    let told = &["client_refused", "leak_detected", "upstream_failed", "recycled"];
    let leash = Leash::on(&database).mode(mode).expecting(told).start().await;
    let bystander = leash.endpoint().connect("bystander").await;
    bystander.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    bystander.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    (database, leash, bystander)
}

/// It was not: its transaction commits, and a new client is served.
pub async fn undisturbed(database: Database, leash: Leash, bystander: Session) {
    bystander.batch_execute("COMMIT").await.unwrap();
    assert_eq!(bystander.one("SELECT count(*) FROM t").await, "1");
    bystander.close().await;
    let late = leash.endpoint().connect("late").await;
    assert_eq!(late.one("SELECT 1").await, "1");
    late.close().await;
    finish(leash, &database).await;
}

async fn what_the_server_refuses_is_told_in_its_words(mode: Mode) {
    let (database, leash, bystander) = with_bystander(mode).await;
    let mut nowhere = leash.endpoint();
    nowhere.database = "no_such_database".to_owned();
    for (endpoint, code) in [(nowhere, "3D000"), (leash.endpoint().user("no_such_role"), "28000")] {
        let refused = async {
            let client = endpoint.try_connect("refused").await?;
            client.try_one("SELECT 1").await
        };
        assert_eq!(sqlstate(&refused.await.unwrap_err()), code);
    }
    undisturbed(database, leash, bystander).await;
}

#[tokio::test]
async fn a_wrong_password_is_told_and_never_logged() {
    for (password, right) in [("wrong-password", false), (LOCKED_PASSWORD, true)] {
        let database = Server::shared().database().await;
        let url = database.url(&format!("locked:{password}"));
        let setup = Leash::upstream(&url, &database.name).expecting(&["upstream_failed", "client_refused"]);
        let leash = setup.start().await;
        let served = async {
            let client = leash.endpoint().user("locked").try_connect("keyholder").await?;
            let served = client.try_one("SELECT current_user::text").await;
            client.close().await;
            served
        };
        match served.await {
            Ok(user) => assert!(right && user == "locked"),
            Err(error) => assert!(!right && sqlstate(&error) == "28P01", "{error:?}"),
        }
        let (_, snapshot) = leash.get("/api/v1/snapshot").await;
        let (_, page) = leash.get("/").await;
        let (_, metrics) = leash.get("/metrics").await;
        let events: String = leash.events().iter().map(ToString::to_string).collect();
        for text in [events, leash.stderr(), snapshot, page, metrics] {
            assert!(!text.contains(password), "the password is shown: {text}");
        }
        finish(leash, &database).await;
    }
}

async fn an_unreachable_server_is_told_and_recovers(mode: Mode) {
    let mut server = Server::private();
    let database = server.database().await;
    server.stop();
    let setup =
        Leash::on(&database).mode(mode).expecting(&["upstream_failed", "client_refused", "checkout_timeout"]);
    let mut leash = setup.set("pool.wait_timeout", "2s").start().await;
    let served = async |leash: &Leash| {
        let client = leash.endpoint().try_connect("hopeful").await?;
        let served = client.try_one("SELECT 'served'").await;
        client.close().await;
        served
    };
    let error = served(&leash).await.unwrap_err();
    assert_eq!(sqlstate(&error), "08006", "{error:?}");
    leash.event("upstream_failed", |_| true).await;
    let (status, _) = leash.get("/healthz").await;
    assert_eq!(status, 200, "health is pgleash's own, not the database's");
    let (status, _) = leash.get("/readyz").await;
    assert_eq!(status, 503, "it cannot serve, and says so");
    server.start();
    let answer = eventually_or("it serves once the server is there", async || {
        served(&leash).await.map_err(|error| format!("{error:?}"))
    });
    assert_eq!(answer.await, "served");
    let (status, _) = leash.get("/readyz").await;
    assert_eq!(status, 200);
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_user_without_a_password_makes_nobody_else_wait() {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).expecting(&["upstream_failed", "client_refused"]);
    let mut leash = setup.start().await;
    let refused = leash.endpoint().user("locked").try_connect("stranger").await.err().expect("no password");
    assert_eq!(sqlstate(&refused), "28P01", "{refused:?}");
    leash.event("client_refused", |event| event["reason"] == "login").await;
    assert_eq!(leash.get("/readyz").await.0, 200, "the server is there");
    let client = leash.endpoint().connect("welcome").await;
    assert_eq!(client.one("SELECT 1").await, "1");
    client.close().await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn readiness_follows_the_server_of_a_pool_that_is_known() {
    let mut server = Server::private();
    let database = server.database().await;
    let setup = Leash::on(&database).expecting(&["upstream_failed", "client_refused"]);
    let leash = setup.start().await;
    let client = leash.endpoint().connect("before").await;
    assert_eq!(client.one("SELECT 1").await, "1");
    client.close().await;
    server.stop();
    eventually_or("it is not ready", async || {
        if let Ok(client) = leash.endpoint().try_connect("meanwhile").await {
            drop(client.try_one("SELECT 1").await);
        }
        let (status, body) = leash.get("/readyz").await;
        if status == 503 { Ok(()) } else { Err(body) }
    })
    .await;
    server.start();
    // Nobody is sent to a sidecar that is not ready: it finds out by itself.
    eventually_or("it is ready again", async || {
        let (status, body) = leash.get("/readyz").await;
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn nobody_at_the_servers_address_is_no_reason_not_to_start() {
    let url = format!("postgres://app@127.0.0.1:{}/app", free_port());
    let setup =
        Leash::upstream(&url, "app").expecting(&["upstream_failed", "client_refused", "checkout_timeout"]);
    let mut leash = setup.set("pool.wait_timeout", "1s").start().await;
    let refused = async {
        let client = leash.endpoint().try_connect("hopeful").await?;
        client.try_one("SELECT 1").await
    };
    assert_eq!(sqlstate(&refused.await.unwrap_err()), "08006");
    leash.sigterm();
    assert_eq!(leash.wait_exit().await.code(), Some(0));
    leash.assert_calm();
}

/// The longest test: the time limit of a login is not configurable.
#[tokio::test]
async fn a_client_that_sends_nothing_is_let_go() {
    let (database, mut leash, bystander) = with_bystander(Mode::Transaction).await;
    let mut silent = Raw::connect(leash.port()).await;
    let mut halting = Raw::connect(leash.port()).await;
    halting.send(&[0, 0, 0, 99]).await;
    for client in [&mut silent, &mut halting] {
        within(Duration::from_secs(100), "the silent client is let go", client.until_closed_patiently())
            .await;
    }
    leash.event("client_refused", |event| event["reason"] == "login_timeout").await;
    undisturbed(database, leash, bystander).await;
}

#[tokio::test]
async fn clients_beyond_the_limit_are_told() {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).set("pool.max_clients", 2).expecting(&["client_refused"]);
    let mut leash = setup.start().await;
    let first = leash.endpoint().connect("first").await;
    let second = leash.endpoint().connect("second").await;
    let third = leash.endpoint().try_connect("third").await.err().expect("the third is refused");
    assert_eq!(sqlstate(&third), "53300");
    leash.event("client_refused", |event| event["reason"] == "too_many_clients").await;
    second.close().await;
    let third = eventually_or("there is room again", async || {
        leash.endpoint().try_connect("third").await.map_err(|error| format!("{error:?}"))
    });
    let third = third.await;
    assert_eq!(third.one("SELECT 1").await, "1");
    third.close().await;
    assert_eq!(first.one("SELECT 1").await, "1");
    first.close().await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn garbage_at_the_admin_port_harms_nobody() {
    let (database, leash, bystander) = with_bystander(Mode::Transaction).await;
    assert_eq!(leash.get("/no/such/page").await.0, 404);
    let mut garbage = Raw::connect(leash.admin_port()).await;
    garbage.try_send(&[0xff; 4096]).await;
    let mut long = Raw::connect(leash.admin_port()).await;
    long.try_send(format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20)).as_bytes()).await;
    assert_eq!(leash.get("/healthz").await.0, 200);
    undisturbed(database, leash, bystander).await;
}
