//! Clients that come over TLS: what they are shown, what they have to show, and that they are watched like others.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::password::scram_sha_256;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, SslMode, SslNegotiation};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::TlsConnector;

use crate::support::raw::{GSSENC_REQUEST, PROTOCOL_3_0, Raw, SSL_REQUEST};
use crate::support::tls::{Authority, Identity};
use crate::support::{
    Database, Leash, Mode, PATIENCE, Psql, Server, Setup, eventually, eventually_or, finish, in_both_modes,
    within,
};

in_both_modes! {
    psql_and_a_driver_are_served_with_their_password_bound_to_the_channel,
    a_leak_over_tls_is_taken_back,
    statements_and_a_row_of_1_mb_pass_over_tls,
}

const NAME: &str = "localhost";
const PASSWORD: &str = "correct horse";

/// Certificates in files, and an authority that vouches for them.
struct Papers {
    authority: Authority,
    directory: TempDir,
    cert: PathBuf,
    key: PathBuf,
}

impl Papers {
    fn new() -> Papers {
        let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
        let (cert, key) = authority.identity(NAME).write(directory.path(), "door");
        Papers { authority, directory, cert, key }
    }

    /// pgleash with them, and with passwords.
    fn setup(&self, database: &Database, mode: Mode) -> Setup {
        let users = self.directory.path().join("users.toml");
        std::fs::write(&users, format!("app = '{}'\n", scram_sha_256(PASSWORD.as_bytes()))).unwrap();
        self.trusting(database, mode).set("auth.method", "scram-sha-256").set("auth.users", users.display())
    }

    /// pgleash with them, that believes everybody.
    fn trusting(&self, database: &Database, mode: Mode) -> Setup {
        let setup = Leash::on(database).mode(mode);
        setup.set("tls.cert", self.cert.display()).set("tls.key", self.key.display())
    }

    fn psql(&self, database: &Database, leash: &Leash, options: &str) -> Psql {
        let root = self.authority.path().display();
        let options =
            format!("host={NAME} hostaddr=127.0.0.1 sslmode=verify-full sslrootcert={root} {options}");
        Psql::to(database, leash.port(), "app", &options).password(PASSWORD)
    }

    fn connector(&self) -> MakeRustlsConnect {
        MakeRustlsConnect::new(self.client())
    }

    /// A client that knows the authority.
    fn client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.authority.path()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        config
    }
}

/// A driver's configuration for pgleash.
fn driver(leash: &Leash) -> Config {
    let endpoint = leash.endpoint();
    let mut config = Config::new();
    config.host(NAME).hostaddr([127, 0, 0, 1].into()).port(endpoint.port).ssl_mode(SslMode::Require);
    config.user("app").dbname(&endpoint.database).password(PASSWORD).application_name("driver");
    config
}

/// Logs in and asks.
async fn asked(
    config: &Config,
    connector: MakeRustlsConnect,
    sql: &str,
) -> Result<String, tokio_postgres::Error> {
    let asking = async {
        let (client, connection) = config.connect(connector).await?;
        let connection = tokio::spawn(connection);
        let row = client.query_one(sql, &[]).await.map(|row| row.get(0));
        drop(client);
        connection.await.unwrap()?;
        row
    };
    within(PATIENCE, "an answer", asking).await
}

async fn psql_and_a_driver_are_served_with_their_password_bound_to_the_channel(mode: Mode) {
    let database = Server::shared().database().await;
    let papers = Papers::new();
    let leash = papers.setup(&database, mode).expecting(&["client_refused"]).start().await;
    for binding in ["require", "prefer", "disable"] {
        let psql = papers.psql(&database, &leash, &format!("channel_binding={binding}"));
        assert_eq!(psql.ask("SELECT 6 * 7").await, Ok("42".into()), "{binding}");
    }
    let said =
        papers.psql(&database, &leash, "channel_binding=require").password("wrong").ask("SELECT 1").await;
    assert!(said.unwrap_err().contains("password authentication failed for user \"app\""));
    for (binding, negotiation) in [
        (ChannelBinding::Require, SslNegotiation::Postgres),
        (ChannelBinding::Disable, SslNegotiation::Postgres),
        (ChannelBinding::Require, SslNegotiation::Direct),
    ] {
        let mut config = driver(&leash);
        config.channel_binding(binding).ssl_negotiation(negotiation);
        let answer = asked(&config, papers.connector(), "SELECT current_user::text").await;
        assert_eq!(answer.unwrap(), "app", "{binding:?} {negotiation:?}");
    }
    let unbound =
        papers.psql(&database, &leash, "sslmode=disable channel_binding=require").ask("SELECT 1").await;
    assert!(unbound.unwrap_err().contains("channel binding"), "there is no channel");
    let clear = papers.psql(&database, &leash, "sslmode=disable").ask("SELECT 'near'").await;
    assert_eq!(clear, Ok("near".into()), "on the same machine");
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_certificate_of_each_kind_is_bound_to() {
    let database = Server::shared().database().await;
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let papers = Papers::new();
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let own = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap().self_signed(&key).unwrap();
        Identity { certificate: own.pem(), key: key.serialize_pem() }.write(papers.directory.path(), "door");
        let leash = papers.setup(&database, Mode::Transaction).start().await;
        // An Ed25519 signature has no hash of its own to bind to.
        let binding = if algorithm == &rcgen::PKCS_ED25519 { "disable" } else { "require" };
        let psql = papers.psql(
            &database,
            &leash,
            &format!("sslmode=require sslrootcert=/nowhere/root channel_binding={binding}"),
        );
        assert_eq!(psql.ask("SELECT 6 * 7").await, Ok("42".into()), "{algorithm:?}");
        leash.sigterm();
        drop(leash);
    }
    database.remove().await;
}

async fn a_leak_over_tls_is_taken_back(mode: Mode) {
    let database = Server::shared().database().await;
    let papers = Papers::new();
    let setup = papers.setup(&database, mode).set("pool.size", 1).set("leaks.idle_in_transaction", "1s");
    let mut leash = setup.expecting(&["leak_detected"]).start().await;
    let (leaker, connection) = driver(&leash).connect(papers.connector()).await.unwrap();
    let connection = tokio::spawn(connection);
    leaker.batch_execute("BEGIN").await.unwrap();
    let told = within(PATIENCE, "it is told", connection).await.unwrap().unwrap_err();
    assert_eq!(told.code().map(|code| code.code()), Some("25P03"), "{told:?}");
    let recycled = leash.event("recycled", |_| true).await;
    assert_eq!(recycled["outcome"], "reissued", "{recycled}");
    assert_eq!(papers.psql(&database, &leash, "").ask("SELECT 'next'").await, Ok("next".into()));
    finish(leash, &database).await;
}

async fn statements_and_a_row_of_1_mb_pass_over_tls(mode: Mode) {
    let database = Server::shared().database().await;
    let papers = Papers::new();
    let leash = papers.setup(&database, mode).set("pool.size", 1).start().await;
    let (client, connection) = driver(&leash).connect(papers.connector()).await.unwrap();
    let connection = tokio::spawn(connection);
    for round in 0..20_i32 {
        let row = client.query_one("SELECT $1::int4 + 1", &[&round]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), round + 1);
    }
    let big = "y".repeat(1 << 20);
    let row = client.query_one("SELECT $1::text || 'z'", &[&big]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), format!("{big}z"));
    let token = client.cancel_token();
    let cancelling = async {
        eventually_or("it runs", async || {
            let admin = database.admin().await;
            let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'";
            let count = admin.one(running).await;
            admin.close().await;
            if count == "1" { Ok(()) } else { Err(count) }
        })
        .await;
        token.cancel_query(papers.connector()).await.unwrap();
    };
    let (cancelled, ()) = tokio::join!(client.batch_execute("SELECT pg_sleep(300)"), cancelling);
    assert_eq!(cancelled.unwrap_err().code().map(|code| code.code()), Some("57014"), "cancelled over TLS");
    drop(client);
    connection.await.unwrap().unwrap();
    finish(leash, &database).await;
}

#[tokio::test]
async fn what_comes_in_the_clear_before_the_handshake_is_refused() {
    let database = Server::shared().database().await;
    let papers = Papers::new();
    let mut leash =
        papers.trusting(&database, Mode::Transaction).expecting(&["client_refused"]).start().await;
    // What somebody on the way has put in front of the client's own, behind either request for encryption: a startup
    // packet, the beginning of one, the other request, a handshake that would put what follows into his hands.
    let startup = [&[0, 0, 0, 18, 0, 3, 0, 0][..], b"user\0app\0\0"].concat();
    let request = |code: u32| [8_u32.to_be_bytes(), code.to_be_bytes()].concat();
    let hello = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec();
    for (asked, answer) in [(SSL_REQUEST, None), (GSSENC_REQUEST, Some('N'))] {
        for early in
            [&startup, &startup[..1].to_vec(), &request(SSL_REQUEST), &request(GSSENC_REQUEST), &hello]
        {
            let before = leash.events_named("client_refused").len();
            let mut client = Raw::connect(leash.port()).await;
            client.send(&[request(asked), early.clone()].concat()).await;
            if let Some(answer) = answer {
                assert_eq!(client.byte().await, answer);
            }
            let told = client.fatal().await;
            assert_eq!(told.field('C'), "08P01", "{asked} {early:?}: {}", told.field('M'));
            let refused = eventually("the log tells", async || {
                leash.events_named("client_refused").get(before).cloned()
            })
            .await;
            assert!(refused["detail"].as_str().unwrap().contains("before the request"), "{refused}");
        }
    }
    // The same after the answer, where a handshake is due.
    let mut client = Raw::connect(leash.port()).await;
    client.send_untagged(&SSL_REQUEST.to_be_bytes()).await;
    assert_eq!(client.byte().await, 'S');
    client.startup(PROTOCOL_3_0, &[("user", "app"), ("database", &database.name)]).await;
    within(PATIENCE, "the end", client.until_closed_patiently()).await;
    leash.event("client_refused", |event| event["reason"] == "tls").await;
    assert!(leash.pool().await.is_null(), "nobody was let in");
    finish(leash, &database).await;
}

/// A handshake by hand, and what answers the bytes that follow it.
async fn spoken(papers: &Papers, leash: &Leash, alpn: Option<&[u8]>, ask: bool, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", leash.port())).await.unwrap();
    if ask {
        stream.write_all(&[8_u32.to_be_bytes(), SSL_REQUEST.to_be_bytes()].concat()).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'S');
    }
    let mut config = papers.client();
    config.alpn_protocols = alpn.map(<[u8]>::to_vec).into_iter().collect();
    let connector = TlsConnector::from(Arc::new(config));
    let mut answer = Vec::new();
    if let Ok(mut tls) = connector.connect(ServerName::try_from(NAME).unwrap(), stream).await {
        let _ = tls.write_all(bytes).await;
        let _ = within(PATIENCE, "the end", tls.read_to_end(&mut answer)).await;
    }
    answer
}

#[tokio::test]
async fn tls_within_tls_and_a_foreign_protocol_are_refused() {
    let database = Server::shared().database().await;
    let papers = Papers::new();
    let leash = papers.trusting(&database, Mode::Transaction).expecting(&["client_refused"]).start().await;
    let again = [8_u32.to_be_bytes(), SSL_REQUEST.to_be_bytes()].concat();
    let answer = spoken(&papers, &leash, Some(b"postgresql"), true, &again).await;
    assert!(answer.first() == Some(&b'E') && answer.windows(5).any(|code| code == b"0A000"), "{answer:?}");
    for alpn in [None, Some(&b"h2"[..])] {
        // Whoever speaks TLS at once and does not say that it is for Postgres may have been sent here by mistake.
        assert_eq!(spoken(&papers, &leash, alpn, false, &again).await.first(), None, "{alpn:?}");
    }
    let clear = Psql::to(&database, leash.port(), "app", "sslmode=disable");
    assert_eq!(clear.ask("SELECT 1").await, Ok("1".into()));
    finish(leash, &database).await;
}

#[tokio::test]
async fn who_has_to_speak_tls_is_told() {
    let database = Server::shared().database().await;
    let papers = Papers::new();
    let setup = papers.setup(&database, Mode::Transaction).set("tls.mode", "require");
    let leash = setup.expecting(&["client_refused"]).start().await;
    let said = papers.psql(&database, &leash, "sslmode=disable").ask("SELECT 1").await.unwrap_err();
    assert!(said.contains("lets in encrypted connections only"), "{said}");
    assert_eq!(papers.psql(&database, &leash, "").ask("SELECT 1").await, Ok("1".into()));
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_certificate_is_renewed_without_a_restart_and_a_broken_one_is_left_aside() {
    let database = Server::shared().database().await;
    let papers = Papers::new();
    let setup = papers.setup(&database, Mode::Transaction).expecting(&["credentials_kept", "client_refused"]);
    let mut leash = setup.start().await;
    let (staying, connection) = driver(&leash).connect(papers.connector()).await.unwrap();
    let connection = tokio::spawn(connection);

    std::fs::write(&papers.cert, "not a certificate").unwrap();
    let kept = leash.event("credentials_kept", |event| event["what"] == "certificate").await;
    assert!(kept["detail"].as_str().unwrap().contains("tls.cert"), "{kept}");
    assert_eq!(
        papers.psql(&database, &leash, "").ask("SELECT 1").await,
        Ok("1".into()),
        "the old one serves"
    );

    let renewed = Authority::new();
    renewed.identity(NAME).write(papers.directory.path(), "door");
    leash.event("credentials_reloaded", |event| event["what"] == "certificate").await;
    let said = papers.psql(&database, &leash, "").ask("SELECT 1").await.unwrap_err();
    assert!(said.contains("SSL error"), "the old authority does not know it: {said}");
    let root = format!("sslrootcert={} channel_binding=require", renewed.path().display());
    assert_eq!(papers.psql(&database, &leash, &root).ask("SELECT 2").await, Ok("2".into()));
    staying.batch_execute("SELECT 1").await.expect("who is connected stays connected");
    drop(staying);
    connection.await.unwrap().unwrap();
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_client_shows_a_certificate_where_one_is_asked_for() {
    let database = Server::shared().database().await;
    let (papers, clients, strangers) = (Papers::new(), Authority::new(), Authority::new());
    let setup = papers.setup(&database, Mode::Transaction).set("tls.client_ca", clients.path().display());
    let leash = setup.expecting(&["client_refused"]).start().await;
    let shows = |authority: &Authority, name: &str| {
        let (cert, key) = authority.identity("app").write(papers.directory.path(), name);
        format!("sslcert={} sslkey={}", cert.display(), key.display())
    };
    let answer = papers.psql(&database, &leash, &shows(&clients, "client")).ask("SELECT 6 * 7").await;
    assert_eq!(answer, Ok("42".into()));
    let said =
        papers.psql(&database, &leash, &shows(&clients, "client")).password("wrong").ask("SELECT 1").await;
    assert!(said.unwrap_err().contains("password authentication failed"), "besides its password");
    for options in [shows(&strangers, "stranger"), String::new()] {
        assert!(papers.psql(&database, &leash, &options).ask("SELECT 1").await.is_err(), "{options}");
    }
    finish(leash, &database).await;
}

#[tokio::test]
async fn certificates_that_are_of_no_use_keep_it_from_starting() {
    let (papers, other) = (Papers::new(), Authority::new());
    let (_, foreign) = other.identity(NAME).write(papers.directory.path(), "other");
    let nowhere = PathBuf::from("/nowhere/tls.pem");
    for (cert, key, clue) in [
        (&papers.cert, &foreign, "tls.key"),
        (&papers.key, &papers.key, "holds no certificate"),
        (&papers.cert, &papers.cert, "holds no private key"),
        (&nowhere, &papers.key, "cannot be read"),
    ] {
        let setup = Leash::upstream("postgres://app@127.0.0.1:1/app", "app");
        let (code, said) = setup.set("tls.cert", cert.display()).set("tls.key", key.display()).run().await;
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(clue) && !said.contains("BEGIN"), "{clue}: {said}");
    }
}

#[tokio::test]
async fn a_handshake_that_halts_makes_nobody_wait() {
    let database = Server::shared().database().await;
    let papers = Papers::new();
    let leash = papers.setup(&database, Mode::Transaction).expecting(&["client_refused"]).start().await;
    let mut halting = Vec::new();
    for _ in 0..20 {
        let mut client = Raw::connect(leash.port()).await;
        client.send_untagged(&SSL_REQUEST.to_be_bytes()).await;
        assert_eq!(client.byte().await, 'S');
        client.send(&[0x16, 3, 1, 2]).await;
        halting.push(client);
    }
    assert_eq!(papers.psql(&database, &leash, "").ask("SELECT 1").await, Ok("1".into()));
    for mut client in halting {
        within(Duration::from_secs(100), "it is let go", client.until_closed_patiently()).await;
    }
    finish(leash, &database).await;
}
