//! Who is let in: passwords, verifiers, questions to the server; and that those who are not learn nothing by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use postgres_protocol::password::scram_sha_256;
use tempfile::TempDir;
use tokio_postgres::{Config, NoTls};

use crate::support::raw::{self, Frame, PROTOCOL_3_0, Raw};
use crate::support::server::LOCKED_PASSWORD;
use crate::support::{
    Database, Leash, Mode, Psql, Server, Setup, eventually_or, finish, in_both_modes, within,
};

in_both_modes! {
    who_knows_the_password_is_let_in_and_nobody_else,
    the_server_is_asked_for_verifiers,
    what_is_not_scram_ends_its_login_only,
}

const PASSWORD: &str = "correct horse";
const QUERY: &str = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1";

/// A directory with a file of users.
struct File {
    directory: TempDir,
}

impl File {
    fn of(text: &str) -> File {
        let file = File { directory: tempfile::tempdir().unwrap() };
        file.write(text);
        file
    }

    /// Like a deployment: in one step.
    fn write(&self, text: &str) {
        let fresh = self.directory.path().join("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.path()).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("users.toml")
    }
}

fn asking(setup: Setup, users: &Path) -> Setup {
    setup
        .set("auth.method", "scram-sha-256")
        .set("auth.users", users.display())
        .expecting(&["client_refused"])
}

/// What a role is answered with this password: the current user, or SQLSTATE and message.
async fn log_in(leash: &Leash, user: &str, password: &str) -> Result<String, (String, String)> {
    let endpoint = leash.endpoint();
    let mut config = Config::new();
    config.host("127.0.0.1").port(endpoint.port).user(user).dbname(&endpoint.database).password(password);
    let answer = async {
        let (client, connection) = config.connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        let row = client.query_one("SELECT current_user::text", &[]).await.map(|row| row.get(0));
        drop(client);
        connection.await.unwrap()?;
        row
    };
    within(Duration::from_secs(20), "an answer to a login", answer).await.map_err(
        |error: tokio_postgres::Error| {
            let told = error.as_db_error().unwrap_or_else(|| panic!("not told: {error:?}"));
            (told.code().code().to_owned(), told.message().to_owned())
        },
    )
}

fn failed(user: &str) -> Result<String, (String, String)> {
    Err(("28P01".into(), format!("password authentication failed for user \"{user}\"")))
}

async fn who_knows_the_password_is_let_in_and_nobody_else(mode: Mode) {
    let database = Server::shared().database().await;
    let verifier = scram_sha_256(PASSWORD.as_bytes());
    let file =
        File::of(&format!("app = \"{PASSWORD}\"\nother = \"{verifier}\"\nlocked = \"{LOCKED_PASSWORD}\"\n"));
    let leash = asking(Leash::on(&database).mode(mode), &file.path()).start().await;
    assert_eq!(log_in(&leash, "app", PASSWORD).await, Ok("app".into()));
    assert_eq!(log_in(&leash, "other", PASSWORD).await, Ok("other".into()), "a verifier");
    assert_eq!(
        log_in(&leash, "locked", LOCKED_PASSWORD).await,
        Ok("locked".into()),
        "the server asks as well"
    );
    let psql = Psql::to(&database, leash.port(), "app", "sslmode=disable").password(PASSWORD);
    assert_eq!(psql.ask("SELECT 6 * 7").await, Ok("42".into()));
    for user in ["app", "other", "locked", "nobody", "postgres"] {
        assert_eq!(log_in(&leash, user, "wrong").await, failed(user));
    }
    let psql = Psql::to(&database, leash.port(), "app", "sslmode=disable");
    let said = psql.ask("SELECT 1").await.unwrap_err();
    assert!(said.contains("no password supplied"), "{said}");
    // Who hangs up to ask for a password is not refused.
    eventually_or("five are told", async || {
        let refused = leash.events_named("client_refused");
        let told = refused.iter().filter(|event| event["reason"] == "password").count();
        if (refused.len(), told) == (5, 5) { Ok(()) } else { Err(format!("{refused:?}")) }
    })
    .await;
    nothing_secret_is_shown(&leash, &[PASSWORD, LOCKED_PASSWORD, &verifier[30..]]).await;
    assert_eq!(leash.metrics().await.sum("clients_refused_total", &[("reason", "password")]), 5.0);
    finish(leash, &database).await;
}

async fn nothing_secret_is_shown(leash: &Leash, secrets: &[&str]) {
    let mut shown = leash.stderr();
    for path in ["/", "/metrics", "/api/v1/snapshot", "/api/v1/events"] {
        shown += &leash.get(path).await.1;
    }
    leash.events().iter().for_each(|event| shown += &event.to_string());
    for secret in secrets {
        assert!(!shown.contains(secret), "{secret} is shown");
    }
}

async fn the_server_is_asked_for_verifiers(mode: Mode) {
    let database = Server::shared().database().await;
    let admin = database.admin().await;
    let role = format!("asked_{}", database.name);
    let md5 = format!("md5_{}", database.name);
    let make = format!(
        "CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'; SET password_encryption = md5; \
         CREATE ROLE {md5} LOGIN PASSWORD '{PASSWORD}'; RESET password_encryption; CREATE SCHEMA evil; \
         CREATE TABLE evil.pg_authid (rolname text, rolpassword text); \
         GRANT USAGE ON SCHEMA evil TO PUBLIC; GRANT SELECT ON evil.pg_authid TO PUBLIC;"
    );
    admin.batch_execute(&make).await.unwrap();
    let forged = scram_sha_256(b"forged");
    admin.batch_execute(&format!("INSERT INTO evil.pg_authid VALUES ('{role}', '{forged}')")).await.unwrap();
    // What the database sets for everybody does not count either.
    admin
        .batch_execute(&format!("ALTER DATABASE {} SET search_path = evil, pg_catalog", database.name))
        .await
        .unwrap();
    let setup = Leash::upstream(&database.url("postgres"), &database.name).mode(mode);
    let setup = setup.set("auth.method", "scram-sha-256").set("auth.query", QUERY);
    let leash = setup.expecting(&["client_refused", "upstream_failed"]).start().await;

    assert_eq!(log_in(&leash, &role, PASSWORD).await, Ok(role.clone()));
    for user in [&role, &md5, "nobody"] {
        assert_eq!(log_in(&leash, user, "forged").await, failed(user));
    }
    assert_eq!(log_in(&leash, &md5, PASSWORD).await, failed(&md5), "MD5 is not offered");
    let hostile =
        Psql::to(&database, leash.port(), &role, "sslmode=disable options='-c search_path=evil,pg_catalog'");
    let said = hostile.password("forged").ask("SELECT 1").await.unwrap_err();
    assert!(said.contains("password authentication failed"), "{said}");
    let quoted = "x' OR rolname = 'postgres";
    assert_eq!(log_in(&leash, quoted, PASSWORD).await, failed(quoted));

    // A new password counts as soon as the old one has been refused.
    admin.batch_execute(&format!("ALTER ROLE {role} PASSWORD 'another'")).await.unwrap();
    eventually_or("the new password is known", async || {
        log_in(&leash, &role, "another").await.map_err(|error| format!("{error:?}"))
    })
    .await;
    assert_eq!(log_in(&leash, &role, PASSWORD).await, failed(&role));
    nothing_secret_is_shown(&leash, &[PASSWORD, "another\"", "SCRAM-SHA-256$"]).await;
    leash.sigterm();
    finish_roles(leash, &database, &[&role, &md5]).await;
    admin.close().await;
}

async fn finish_roles(mut leash: Leash, database: &Database, roles: &[&str]) {
    assert_eq!(leash.wait_exit().await.code(), Some(0));
    leash.assert_calm();
    database.remove().await;
    let postgres = Server::shared().database().await;
    let admin = postgres.admin().await;
    for role in roles {
        admin.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
    }
    admin.close().await;
    postgres.remove().await;
}

#[tokio::test]
async fn a_question_that_the_server_refuses_is_told_to_the_log_and_not_to_the_client() {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).set("auth.method", "scram-sha-256").set("auth.query", QUERY);
    let mut leash = setup.expecting(&["client_refused", "upstream_failed"]).start().await;
    let (code, said) = log_in(&leash, "app", PASSWORD).await.unwrap_err();
    assert_eq!(code, "08006");
    assert!(!said.contains("pg_authid"), "{said}");
    let told = leash.event("upstream_failed", |event| event["sqlstate"] == "42501").await;
    assert!(told["detail"].as_str().unwrap().contains("auth.query: "), "{told}");
    finish(leash, &database).await;
}

/// The client's part of a login with SCRAM, by hand.
async fn login_frames(leash: &Leash, user: &str, password: &str) -> Vec<Frame> {
    let mut client = Raw::connect(leash.port()).await;
    let database = leash.endpoint().database;
    client.startup(PROTOCOL_3_0, &[("user", user), ("database", &database)]).await;
    let mut frames = vec![client.expect('R').await];
    let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    client.send(&initial("SCRAM-SHA-256", scram.message())).await;
    let challenge = client.expect('R').await;
    scram.update(&challenge.body[4..]).unwrap();
    frames.push(challenge);
    client.send(&raw::message(b'p', scram.message())).await;
    frames.extend(client.until_closed().await);
    frames
}

fn initial(mechanism: &str, message: &[u8]) -> Vec<u8> {
    let mut body = BytesMut::new();
    body.put_slice(mechanism.as_bytes());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).unwrap());
    body.put_slice(message);
    raw::message(b'p', &body)
}

/// Salt and iterations of a challenge.
fn cost(challenge: &Frame) -> String {
    let text = String::from_utf8(challenge.body[4..].to_vec()).unwrap();
    text.split_once(",s=").unwrap().1.to_owned()
}

#[tokio::test]
async fn a_stranger_and_a_wrong_password_are_answered_alike() {
    let database = Server::shared().database().await;
    let file = File::of(&format!("app = \"{PASSWORD}\"\n"));
    let leash = asking(Leash::on(&database), &file.path()).start().await;
    let known = login_frames(&leash, "app", "wrong").await;
    let unknown = login_frames(&leash, "who", "wrong").await;
    assert_eq!(raw::tags(&known), "RRE");
    assert_eq!(raw::tags(&unknown), "RRE");
    assert_eq!(known[0], unknown[0], "the same mechanisms");
    let (a, b) = (cost(&known[1]), cost(&unknown[1]));
    assert_eq!((a.len(), a.split_once(",i=").unwrap().1), (b.len(), b.split_once(",i=").unwrap().1));
    let text = |frame: &Frame| String::from_utf8(frame.body.to_vec()).unwrap();
    assert_eq!(text(&known[2]), text(&unknown[2]).replace("\"who\"", "\"app\""), "but for the name");
    // Asked again, both have the salt that they had, also after the file was read again.
    file.write(&format!("app = \"{PASSWORD}\"\n# again\n"));
    eventually_or("it is read again", async || {
        let read = leash.events_named("credentials_reloaded");
        if read.is_empty() { Err(format!("{:?}", leash.events())) } else { Ok(()) }
    })
    .await;
    assert_eq!(cost(&login_frames(&leash, "app", "wrong").await[1]), a);
    assert_eq!(cost(&login_frames(&leash, "who", "wrong").await[1]), b);
    finish(leash, &database).await;
}

#[tokio::test]
async fn users_are_read_again_and_a_broken_file_changes_nothing() {
    let database = Server::shared().database().await;
    let file = File::of("app = \"first\"\n");
    let mut leash = asking(Leash::on(&database), &file.path()).expecting(&["credentials_kept"]).start().await;
    assert_eq!(log_in(&leash, "app", "first").await, Ok("app".into()));
    file.write("app = \"lantern\"\nlocked = \"right-password\"\n");
    leash.event("credentials_reloaded", |event| event["detail"] == "2 users").await;
    assert_eq!(log_in(&leash, "app", "lantern").await, Ok("app".into()));
    assert_eq!(log_in(&leash, "app", "first").await, failed("app"));
    assert_eq!(log_in(&leash, "locked", LOCKED_PASSWORD).await, Ok("locked".into()), "for the server too");
    file.write("app = walrus\n");
    let kept = leash.event("credentials_kept", |_| true).await;
    assert!(kept["detail"].as_str().unwrap().contains("line 1: not TOML"), "{kept}");
    assert_eq!(log_in(&leash, "app", "lantern").await, Ok("app".into()));
    nothing_secret_is_shown(&leash, &["lantern", "walrus", LOCKED_PASSWORD]).await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_user_with_a_verifier_alone_needs_a_server_that_asks_for_nothing() {
    let database = Server::shared().database().await;
    let file = File::of(&format!("locked = \"{}\"\n", scram_sha_256(PASSWORD.as_bytes())));
    let setup = asking(Leash::on(&database), &file.path()).expecting(&["upstream_failed"]);
    let leash = setup.start().await;
    let (code, said) = log_in(&leash, "locked", PASSWORD).await.unwrap_err();
    assert_eq!(code, "28P01");
    assert!(said.contains("upstream server did not let pgleash in"), "{said}");
    finish(leash, &database).await;
}

async fn what_is_not_scram_ends_its_login_only(mode: Mode) {
    let database = Server::shared().database().await;
    let file = File::of(&format!("app = \"{PASSWORD}\"\n"));
    let leash = asking(Leash::on(&database).mode(mode), &file.path()).start().await;
    let first = b"n,,n=,r=abc";
    let huge = [b"n,,n=,r=", &[b'x'; 1100][..]].concat();
    let stories: Vec<(&str, Vec<u8>)> = vec![
        ("a query", raw::query("SELECT 1")),
        ("a password in the clear", raw::message(b'p', b"correct horse\0")),
        ("an empty response", raw::message(b'p', b"")),
        ("another mechanism", initial("PLAIN", b"\0app\0correct horse")),
        (
            "a mechanism that was not offered",
            initial("SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abc"),
        ),
        ("no first message", [b"p\0\0\0\x16SCRAM-SHA-256\0".to_vec(), vec![0xff; 4]].concat()),
        ("an authorization identity", initial("SCRAM-SHA-256", b"n,a=postgres,n=,r=abc")),
        ("no nonce", initial("SCRAM-SHA-256", b"n,,n=,r=")),
        ("not UTF-8", initial("SCRAM-SHA-256", b"n,,n=\xff,r=abc")),
        ("a zero byte", initial("SCRAM-SHA-256", b"n,,n=\0,r=abc")),
        ("one byte", initial("SCRAM-SHA-256", b"n")),
        ("a message that is too long", initial("SCRAM-SHA-256", &huge)),
        ("a length of 2 GB", [b"p\x7f\xff\xff\xff".to_vec(), vec![b'x'; 100]].concat()),
        ("a length of 0", b"p\0\0\0\0".to_vec()),
        ("no proof", [initial("SCRAM-SHA-256", first), raw::message(b'p', b"c=biws,r=abc")].concat()),
        (
            "a short proof",
            [initial("SCRAM-SHA-256", first), raw::message(b'p', b"c=biws,r=abc,p=YQ==")].concat(),
        ),
        (
            "the first message again",
            [initial("SCRAM-SHA-256", first), initial("SCRAM-SHA-256", first)].concat(),
        ),
    ];
    for (what, bytes) in &stories {
        let mut client = Raw::connect(leash.port()).await;
        client.startup(PROTOCOL_3_0, &[("user", "app"), ("database", &database.name)]).await;
        client.expect('R').await;
        client.try_send(bytes).await;
        let frames = within(Duration::from_secs(10), what, client.until_closed()).await;
        let last = frames.last().unwrap_or_else(|| panic!("{what}: closed without a word"));
        assert_eq!((last.tag, last.field('C').as_str()), ('E', "08P01"), "{what}");
        assert!(!last.field('M').contains("horse"), "{what}: {}", last.field('M'));
    }
    eventually_or("each is told", async || {
        let refused = leash.events_named("client_refused");
        if refused.len() == stories.len() { Ok(()) } else { Err(format!("{refused:?}")) }
    })
    .await;
    assert_eq!(log_in(&leash, "app", PASSWORD).await, Ok("app".into()));
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_login_that_halts_makes_nobody_wait_and_ends() {
    let database = Server::shared().database().await;
    let file = File::of(&format!("app = \"{PASSWORD}\"\n"));
    let mut leash = asking(Leash::on(&database), &file.path()).start().await;
    let mut halting = Vec::new();
    for _ in 0..20 {
        let mut client = Raw::connect(leash.port()).await;
        client.startup(PROTOCOL_3_0, &[("user", "app"), ("database", &database.name)]).await;
        client.expect('R').await;
        client.send(b"p\0\0\x01\0SCRAM").await;
        halting.push(client);
    }
    assert_eq!(log_in(&leash, "app", PASSWORD).await, Ok("app".into()));
    for mut client in halting {
        within(Duration::from_secs(100), "it is let go", client.until_closed_patiently()).await;
    }
    leash.event("client_refused", |event| event["reason"] == "login_timeout").await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_file_of_users_that_is_of_no_use_keeps_it_from_starting() {
    let file = File::of("app = \"md5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"\nother = 3\n");
    let (code, said) =
        asking(Leash::upstream("postgres://app@127.0.0.1:1/app", "app"), &file.path()).run().await;
    assert_eq!(code, 1, "{said}");
    for clue in ["auth.users", "line 1: app: MD5", "line 2: other"] {
        assert!(said.contains(clue), "{clue}: {said}");
    }
}
