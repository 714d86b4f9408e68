//! The way to the server, encrypted: who is trusted, what is sent, and that the relay does not mind.

use std::time::Duration;

use crate::support::raw::{self, tags};
use crate::support::server::LOCKED_PASSWORD;
use crate::support::tap::{Manner, Tap, fatal};
use crate::support::tls::Authority;
use crate::support::{
    Database, Leash, Mode, Server, eventually, finish, in_both_modes, nothing_runs, sqlstate, within,
};

in_both_modes! {
    statements_and_a_row_of_1_mb_pass,
    a_statement_of_a_dead_client_is_cancelled,
    an_idle_transaction_is_taken_back,
}

/// The name on the server's certificate.
const NAME: &str = "db.internal";

const ENCRYPTED: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// A server that speaks TLS, and who vouches for it.
struct Scene {
    authority: Authority,
    _server: Server,
    database: Database,
}

impl Scene {
    async fn new() -> Scene {
        let authority = Authority::new();
        let server = Server::with_tls(&authority.identity(NAME));
        let database = server.database().await;
        Scene { authority, _server: server, database }
    }

    /// By the name on its certificate.
    fn url(&self, user: &str, options: &str) -> String {
        self.url_by(NAME, user, options)
    }

    fn url_by(&self, host: &str, user: &str, options: &str) -> String {
        let Database { name, port } = &self.database;
        format!("postgres://{user}@{host}:{port}/{name}?hostaddr=127.0.0.1&{options}")
    }

    /// With the server's authority as `sslrootcert`.
    fn known(&self, options: &str) -> String {
        format!("{options}&sslrootcert={}", self.authority.path().display())
    }

    async fn leash(&self, mode: Mode, more: &[(&str, &str)]) -> Leash {
        let setup =
            Leash::upstream(&self.url("app", &self.known("sslmode=verify-full")), &self.database.name);
        let setup = more.iter().fold(setup.mode(mode), |setup, (key, value)| setup.set(key, value));
        setup.expecting(&["leak_detected", "recycled"]).start().await
    }
}

/// Whether a client is served encrypted or in the clear; or the SQLSTATE and what was said.
async fn served(url: &str, database: &Database, user: &str) -> Result<bool, (String, String)> {
    let setup = Leash::upstream(url, &database.name).expecting(&["upstream_failed", "client_refused"]);
    let leash = setup.start().await;
    let answer = async {
        let client = leash.endpoint().user(user).try_connect("visitor").await?;
        let encrypted = client.try_one(ENCRYPTED).await;
        client.close().await;
        encrypted
    };
    let served = match answer.await {
        Ok(encrypted) => Ok(encrypted == "t"),
        Err(error) => {
            let said = error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned());
            Err((sqlstate(&error).to_owned(), said))
        }
    };
    leash.sigterm();
    drop(leash);
    served
}

#[tokio::test]
async fn each_sslmode_encrypts_and_trusts_as_libpq_does() {
    let scene = Scene::new().await;
    let database = &scene.database;
    for (options, encrypted) in [
        ("sslmode=disable", false),
        ("sslmode=prefer", true),
        ("sslmode=require", true),
        (&scene.known("sslmode=require"), true),
        (&scene.known("sslmode=verify-ca"), true),
        (&scene.known("sslmode=verify-full"), true),
    ] {
        assert_eq!(served(&scene.url("app", options), database, "app").await, Ok(encrypted), "{options}");
    }

    let by_another_name = |options| scene.url_by("elsewhere.internal", "app", options);
    let known = scene.known("sslmode=verify-ca");
    assert_eq!(served(&by_another_name(&known), database, "app").await, Ok(true), "the chain is right");
    let known = scene.known("sslmode=verify-full");
    let (code, said) = served(&by_another_name(&known), database, "app").await.unwrap_err();
    assert_eq!(code, "08006", "{said}");
    assert!(said.contains("certificate") && said.contains("name"), "{said}");

    let stranger = Authority::new();
    for mode in ["require", "verify-ca", "verify-full"] {
        let options = format!("sslmode={mode}&sslrootcert={}", stranger.path().display());
        let (code, said) = served(&scene.url("app", &options), database, "app").await.unwrap_err();
        assert_eq!(code, "08006", "{mode}: {said}");
        assert!(said.contains("certificate"), "{mode}: {said}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_spoken_to_in_the_clear_only_if_that_may_be() {
    let database = Server::shared().database().await;
    let url = |mode: &str| format!("{}?sslmode={mode}", database.url("app"));
    assert_eq!(served(&url("prefer"), &database, "app").await, Ok(false));
    let (code, said) = served(&url("require"), &database, "app").await.unwrap_err();
    assert_eq!(code, "08006", "{said}");
    assert!(said.contains("TLS"), "{said}");
    database.remove().await;
}

/// CVE-2021-23222: what somebody on the way puts behind the server's yes, in the clear, is no part of what the server
/// says over TLS.
#[tokio::test]
async fn what_comes_in_the_clear_behind_the_servers_yes_is_not_its_word() {
    let database = Server::shared().database().await;
    let injected = fatal("28P01", "said by somebody on the way");
    let welcome = [raw::message(b'R', &[0; 4]), raw::message(b'Z', b"I")].concat();
    for said in [injected, welcome] {
        let tap = Tap::new(Manner::Say([&b"S"[..], &said].concat())).await;
        let url = format!("postgres://app@127.0.0.1:{}/{}?sslmode=require", tap.port, database.name);
        let (code, told) = served(&url, &database, "app").await.unwrap_err();
        assert_eq!(code, "08006", "{told}");
        assert!(told.contains("TLS handshake: received corrupt message"), "{told}");
        assert_eq!(tap.first_packets(), [raw::SSL_REQUEST], "nothing was said to it in the clear");
    }
    database.remove().await;
}

#[tokio::test]
async fn a_scram_password_is_proved_with_the_channel_bound_to_it() {
    let scene = Scene::new().await;
    let locked = format!("locked:{LOCKED_PASSWORD}");
    for (options, user) in [
        ("sslmode=require&channel_binding=require", &locked),
        ("sslmode=require&channel_binding=disable", &locked),
        ("sslmode=disable", &locked),
    ] {
        let served = served(&scene.url(user, options), &scene.database, "locked").await;
        assert_eq!(served, Ok(options.starts_with("sslmode=require")), "{options}");
    }

    let wrong = scene.url("locked:wrong-password", "sslmode=require&channel_binding=require");
    let (code, said) = served(&wrong, &scene.database, "locked").await.unwrap_err();
    assert_eq!(code, "28P01", "{said}");
    let unbound = scene.url(&locked, "sslmode=disable&channel_binding=require");
    let (code, said) = served(&unbound, &scene.database, "locked").await.unwrap_err();
    assert_eq!(code, "28P01", "there is no channel to bind: {said}");
}

#[tokio::test]
async fn a_certificate_of_pgleashs_own_is_shown_to_a_server_that_asks() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let server = Server::with_tls_for(&authority.identity(NAME), authority.path());
    let database = server.database().await;
    let url = |options: &str| {
        let (root, port) = (authority.path().display(), database.port);
        format!(
            "postgres://other@{NAME}:{port}/{}?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={root}{options}",
            database.name
        )
    };
    let shown = |authority: &Authority, name: &str| {
        let (cert, key) = authority.identity("pgleash").write(directory.path(), name);
        format!("&sslcert={}&sslkey={}", cert.display(), key.display())
    };
    let own = shown(&authority, "own");
    assert_eq!(served(&url(&own), &database, "other").await, Ok(true));
    let stranger = shown(&Authority::new(), "stranger");
    for options in [&stranger, ""] {
        assert!(served(&url(options), &database, "other").await.is_err(), "{options}");
    }
}

async fn statements_and_a_row_of_1_mb_pass(mode: Mode) {
    const BIG: usize = 1024 * 1024;
    let scene = Scene::new().await;
    let leash = scene.leash(mode, &[("pool.size", "1")]).await;
    let mut client = leash.endpoint().raw("relayed").await;
    assert_eq!(client.one(ENCRYPTED).await, "t");
    client.query("CREATE TABLE t (n int)").await;
    for round in 1..=20 {
        client.query("BEGIN").await;
        client.query("INSERT INTO t VALUES (1)").await;
        client.query("COMMIT").await;
        assert_eq!(client.one("SELECT count(*) FROM t").await, round.to_string());
    }
    let frames = client.query(&format!("SELECT repeat('x', {BIG})")).await;
    assert_eq!(tags(&frames), "TDCZ");
    assert_eq!(frames[1].body.len(), BIG + 6);
    assert!(frames[1].body[6..].iter().all(|byte| *byte == b'x'));

    let big = "y".repeat(BIG);
    let sql = "SELECT md5($1::text) = md5(repeat('y', 1048576))";
    client.send(&[raw::parse("", sql), raw::bind("", &[&big]), raw::execute(0), raw::sync()].concat()).await;
    let frames = client.until_ready().await;
    assert_eq!(raw::rows(&frames), [[Some("t".to_owned())]]);
    client.close().await;
    // The connection goes to the next client and back, whole.
    let next = leash.endpoint().connect("next").await;
    assert_eq!(next.one("SELECT count(*) FROM t").await, "20");
    next.close().await;
    finish(leash, &scene.database).await;
}

async fn a_statement_of_a_dead_client_is_cancelled(mode: Mode) {
    let scene = Scene::new().await;
    let leash = scene.leash(mode, &[]).await;
    let mut victim = leash.endpoint().raw("victim").await;
    victim.send(&raw::query("SELECT pg_sleep(300)")).await;
    let admin = scene.database.admin().await;
    let running =
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'";
    eventually("it runs", async || (admin.one(running).await == "1").then_some(())).await;
    admin.close().await;
    victim.kill();
    within(Duration::from_secs(10), "it is cancelled", nothing_runs(&scene.database)).await;
    finish(leash, &scene.database).await;
}

async fn an_idle_transaction_is_taken_back(mode: Mode) {
    let scene = Scene::new().await;
    let mut leash = scene.leash(mode, &[("pool.size", "1"), ("leaks.idle_in_transaction", "1s")]).await;
    let mut leaker = leash.endpoint().raw("forgetful").await;
    leaker.query("BEGIN").await;
    let backend = leaker.one("SELECT pg_backend_pid()").await;
    assert_eq!(leaker.fatal().await.field('C'), "25P03");
    let recycled = leash.event("recycled", |_| true).await;
    assert_eq!(recycled["outcome"], "reissued", "{recycled}");
    let next = leash.endpoint().connect("next").await;
    assert_eq!(next.backend_pid().await.to_string(), backend);
    next.close().await;
    finish(leash, &scene.database).await;
}
