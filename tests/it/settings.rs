//! Parameters that the server does not report: a SET that stands alone goes with its client, and touches nobody else.

use crate::logins::{enter, knock};
use crate::support::raw::{self, Raw, tags};
use crate::support::{Database, Leash, Mode, Server, eventually, finish};

/// Clients that have the only connection in turn.
struct Scene {
    database: Database,
    leash: Leash,
    one: Raw,
    two: Raw,
}

impl Scene {
    async fn new() -> Self {
        Self::expecting(&[]).await
    }

    async fn expecting(events: &[&'static str]) -> Self {
        Self::on(Server::shared(), events).await
    }

    async fn on(server: &Server, events: &[&'static str]) -> Self {
        let database = server.database().await;
        let setup = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 1);
        let leash = setup.expecting(events).start().await;
        let one = Raw::login(&leash.endpoint(), "one").await;
        let two = Raw::login(&leash.endpoint(), "two").await;
        Self { database, leash, one, two }
    }

    /// Nobody was pinned: the connection is free.
    async fn end(self) {
        self.leash.pool_when("nobody holds it", |pool| pool["holders"].as_array().unwrap().is_empty()).await;
        self.one.close().await;
        self.two.close().await;
        finish(self.leash, &self.database).await;
    }
}

#[tokio::test]
async fn a_set_goes_with_its_client() {
    let mut scene = Scene::new().await;
    let default = scene.two.one("SHOW work_mem").await;
    assert_eq!(tags(&scene.one.query("SET work_mem = '6MB'").await), "CZ");
    assert_eq!(tags(&scene.one.query("SET statement_timeout TO 4321").await), "CZ");
    for _ in 0..2 {
        assert_eq!(scene.two.one("SHOW work_mem").await, default);
        assert_eq!(scene.two.one("SHOW statement_timeout").await, "0");
        assert_eq!(scene.one.one("SHOW work_mem").await, "6MB");
        assert_eq!(scene.one.one("SHOW statement_timeout").await, "4321ms");
    }
    // A RESET takes it back, and touches nothing else.
    assert_eq!(tags(&scene.two.query("SET work_mem = '7MB'").await), "CZ");
    assert_eq!(tags(&scene.one.query("RESET work_mem").await), "CZ");
    for _ in 0..2 {
        assert_eq!(scene.one.one("SHOW work_mem").await, default);
        assert_eq!(scene.one.one("SHOW statement_timeout").await, "4321ms");
        assert_eq!(scene.two.one("SHOW work_mem").await, "7MB");
    }
    assert_eq!(tags(&scene.two.query("SET work_mem TO DEFAULT").await), "CZ");
    assert_eq!(scene.two.one("SHOW work_mem").await, default);
    assert!(tags(&scene.one.query("DISCARD ALL").await).ends_with('Z'));
    assert_eq!(scene.two.one("SHOW statement_timeout").await, "0");
    assert_eq!(scene.one.one("SHOW statement_timeout").await, "0");
    scene.end().await;
}

/// As pgjdbc says it on each of its connections.
#[tokio::test]
async fn a_set_by_the_extended_protocol_goes_with_its_client() {
    let mut scene = Scene::new().await;
    let set = [
        raw::parse("", "SET extra_float_digits = 3"),
        raw::bind("", &[]),
        raw::message(b'D', b"P\0"),
        raw::execute(1),
        raw::sync(),
    ];
    scene.one.send(&set.concat()).await;
    assert_eq!(tags(&scene.one.until_ready().await), "12nCZ");
    assert_eq!(scene.two.one("SHOW extra_float_digits").await, "1");
    assert_eq!(scene.one.one("SHOW extra_float_digits").await, "3");
    scene.end().await;
}

/// What is undone with its batch is not set, here or elsewhere.
#[tokio::test]
async fn a_set_whose_batch_fails_is_not_set() {
    let mut scene = Scene::new().await;
    let alone = |sql| [raw::parse("", sql), raw::bind("", &[]), raw::execute(0)].concat();
    let batch = [alone("SET work_mem = '6MB'"), alone("SELECT 1/0"), raw::sync()].concat();
    scene.one.send(&batch).await;
    assert_eq!(tags(&scene.one.until_ready().await), "12C1EZ");
    let shown = scene.one.one("SHOW work_mem").await;
    assert_ne!(shown, "6MB");
    assert!(tags(&scene.one.query("DISCARD ALL").await).ends_with('Z'));
    assert_eq!(scene.two.one("SHOW work_mem").await, shown);
    assert_eq!(tags(&scene.two.query("SET work_mem = 'banana'").await), "EZ");
    assert_eq!(scene.one.one("SHOW work_mem").await, shown);
    assert_eq!(scene.two.one("SHOW work_mem").await, shown);
    scene.end().await;
}

/// The server says what has been set, in the spelling that it has for it.
#[tokio::test]
async fn a_set_goes_with_its_client_in_any_spelling() {
    let mut scene = Scene::new().await;
    for (sql, name, shown) in [
        // An integer of SQL is decimal; the same text in a parameter is octal.
        ("SET statement_timeout = 0100", "statement_timeout", "100ms"),
        ("SET sort_mem = '6MB'", "work_mem", "6MB"),
        ("SET search_path = \"A b\", \"c,d\"", "search_path", "\"A b\", \"c,d\""),
        ("SET app.tenant = 'ä''\\'", "app.tenant", "ä'\\"),
        ("SET TIME ZONE INTERVAL '+02:30' HOUR TO MINUTE", "timezone", "<+02:30>-02:30"),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, DEFERRABLE, ISOLATION LEVEL SERIALIZABLE",
            "default_transaction_isolation",
            "serializable",
        ),
        ("SET ROLE app", "role", "app"),
    ] {
        let default = scene.two.one(&format!("SELECT coalesce(current_setting('{name}', true), '')")).await;
        assert!(!tags(&scene.one.query(sql).await).contains('E'), "{sql}");
        for _ in 0..2 {
            assert_eq!(
                scene.two.one(&format!("SELECT coalesce(current_setting('{name}', true), '')")).await,
                default,
                "{sql}"
            );
            assert_eq!(scene.one.one(&format!("SHOW {name}")).await, shown, "{sql}");
        }
        assert!(tags(&scene.one.query("DISCARD ALL").await).ends_with('Z'));
    }
    scene.end().await;
}

/// What another connection would refuse, or be ended by, stays where it was said.
#[tokio::test]
async fn what_is_not_the_same_elsewhere_pins() {
    let mut scene = Scene::new().await;
    for (sql, shown) in [("SET temp_buffers = '2MB'", "2MB"), ("SET idle_session_timeout = '1h'", "1h")] {
        assert!(tags(&scene.one.query(sql).await).ends_with("CZ"), "{sql}");
        scene.leash.pool_when(sql, |pool| pool["holders"][0]["pinned"] == "setting").await;
        let name = sql.split(' ').nth(1).unwrap();
        assert_eq!(scene.one.one(&format!("SHOW {name}")).await, shown);
        assert!(tags(&scene.one.query("DISCARD ALL").await).ends_with('Z'));
    }
    scene.end().await;
}

/// The client waits behind a RESET until it has its own again, but not with the data of a COPY in the same text.
#[tokio::test]
async fn a_copy_behind_a_reset_goes_on() {
    let mut scene = Scene::new().await;
    scene.one.query("CREATE TABLE copied (n int)").await;
    scene.one.send(&raw::query("RESET work_mem; COPY copied FROM STDIN")).await;
    scene.one.expect('C').await;
    scene.one.expect('G').await;
    scene.one.send(&[raw::copy_data("7\n"), raw::copy_done()].concat()).await;
    assert_eq!(tags(&scene.one.until_ready().await), "CZ");
    assert_eq!(scene.two.one("SELECT n FROM copied").await, "7");
    scene.end().await;
}

/// The FunctionCall message names a function by its oid, and nothing else.
#[tokio::test]
async fn a_setting_by_function_call_is_no_neighbours() {
    let mut scene = Scene::new().await;
    let default = scene.two.one("SHOW work_mem").await;
    let set_config: u32 = scene.one.one("SELECT 'set_config'::regproc::oid").await.parse().unwrap();
    scene.one.send(&raw::function_call(set_config, &["work_mem", "7MB", "false"])).await;
    assert_eq!(tags(&scene.one.until_ready().await), "VZ");
    assert_eq!(scene.one.one("SHOW work_mem").await, "7MB");
    scene.leash.pool_when("it pins", |pool| pool["holders"][0]["pinned"] == "setting").await;
    assert!(tags(&scene.one.query("DISCARD ALL").await).ends_with('Z'));
    assert_eq!(scene.two.one("SHOW work_mem").await, default);
    scene.end().await;
}

/// A name may be spelled by the numbers of its letters, behind any sign.
#[tokio::test]
async fn a_setting_in_disguise_is_no_neighbours() {
    let mut scene = Scene::new().await;
    let sql = r#"SELECT U&"set!005fconfig" UESCAPE '!' ('work_mem', '7MB', false)"#;
    assert_eq!(scene.one.one(sql).await, "7MB");
    scene.leash.pool_when("it pins", |pool| pool["holders"][0]["pinned"] == "setting").await;
    assert!(tags(&scene.one.query("DISCARD ALL").await).ends_with('Z'));
    scene.end().await;
}

/// A client's limit for its own statements is none for what has to be set for the next one, which waits for a lock.
#[tokio::test]
async fn a_short_limit_is_not_the_neighbours() {
    // All databases of a server have the table that is locked.
    let server = Server::private();
    let mut scene = Scene::on(&server, &[]).await;
    assert_eq!(tags(&scene.two.query("SET default_tablespace = 'pg_default'").await), "CZ");
    assert_eq!(tags(&scene.two.query("SET statement_timeout = '25s'").await), "CZ");
    assert_eq!(tags(&scene.one.query("SET statement_timeout = '100ms'").await), "CZ");
    let locker = scene.database.admin().await;
    locker.batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_tablespace").await.unwrap();
    scene.two.send(&raw::query("SHOW statement_timeout")).await;
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pg_tablespace'::regclass \
                   AND clock_timestamp() - waitstart > '150ms'::interval";
    eventually("it has waited for longer", async || (locker.one(waiting).await == "1").then_some(())).await;
    locker.batch_execute("COMMIT").await.unwrap();
    let answer = scene.two.until_ready().await;
    assert_eq!(raw::rows(&answer)[0][0].as_deref(), Some("25s"));
    locker.close().await;
    scene.end().await;
}

/// It goes back to what the client logged in with.
#[tokio::test]
async fn a_reset_goes_back_to_the_login() {
    let mut scene = Scene::new().await;
    let mut mine = enter(&scene.leash, &[("work_mem", "5MB"), ("statement_timeout", "4321")]).await;
    for reset in ["RESET work_mem", "SET work_mem TO DEFAULT"] {
        assert_eq!(tags(&mine.query("SET work_mem = '9MB'").await), "CZ");
        assert_eq!(scene.one.one("SHOW work_mem").await, "4MB");
        assert_eq!(mine.one("SHOW work_mem").await, "9MB");
        assert_eq!(tags(&mine.query(reset).await), "CZ");
        assert_eq!(scene.one.one("SHOW work_mem").await, "4MB");
        assert_eq!(mine.one("SHOW work_mem").await, "5MB");
        assert_eq!(mine.one("SHOW statement_timeout").await, "4321ms");
    }
    // Also by the extended protocol, and for one who keeps the connection for another reason.
    assert_eq!(tags(&mine.query("SET work_mem = '9MB'").await), "CZ");
    assert_eq!(tags(&mine.query("CREATE TEMP TABLE kept ()").await), "CZ");
    let reset = [raw::parse("", "RESET work_mem"), raw::bind("", &[]), raw::execute(0), raw::sync()];
    mine.send(&reset.concat()).await;
    assert_eq!(tags(&mine.until_ready().await), "12CZ");
    assert_eq!(mine.one("SHOW work_mem").await, "5MB");
    assert_eq!(tags(&mine.query("DROP TABLE kept; DISCARD TEMP").await), "CCZ");
    assert_eq!(scene.one.one("SHOW work_mem").await, "4MB");
    assert_eq!(mine.one("SHOW work_mem").await, "5MB");
    mine.close().await;
    scene.end().await;
}

/// Half a SET has come when the RESET before it is answered, so the connection is not given back in between.
#[tokio::test]
async fn a_set_right_behind_a_reset_is_known() {
    for reset in ["RESET ALL", "RESET work_mem"] {
        let mut scene = Scene::new().await;
        let (first, second) = (raw::query(reset), raw::query("SET work_mem = '9MB'"));
        scene.one.send(&[&first[..], &second[..3]].concat()).await;
        let mut heard = tags(&scene.one.until_ready().await);
        scene.one.send(&second[3..]).await;
        heard += &tags(&scene.one.until_ready().await);
        assert_eq!(heard.replace('S', ""), "CZCZ", "{reset}");
        assert_eq!(scene.two.one("SHOW work_mem").await, "4MB", "{reset}");
        assert_eq!(scene.one.one("SHOW work_mem").await, "9MB", "{reset}");
        scene.end().await;
    }
}

/// A role is not reset with all other parameters: where it is not known what is set, it is set back by itself.
#[tokio::test]
async fn the_role_of_a_login_is_its_own() {
    let mut scene = Scene::new().await;
    let admin = scene.database.admin().await;
    admin.batch_execute("CREATE ROLE helper; GRANT helper TO app").await.unwrap();
    let mut mine = enter(&scene.leash, &[("role", "helper")]).await;
    for mess in [
        "SELECT 1",
        "BEGIN; RESET ALL; ROLLBACK",
        "RESET ALL; SELECT 1/0",
        "RESET ALL",
        "RESET ROLE",
        "DISCARD ALL",
    ] {
        mine.query(mess).await;
        assert_eq!(scene.one.one("SELECT current_user").await, "app", "{mess}");
        assert_eq!(mine.one("SELECT current_user").await, "helper", "{mess}");
    }
    mine.close().await;
    admin.batch_execute("DROP ROLE helper").await.unwrap();
    admin.close().await;
    scene.end().await;
}

/// The values of one client are set on a connection on which another has set its encoding.
#[tokio::test]
async fn a_value_is_set_whatever_encoding_was_before() {
    let scene = Scene::expecting(&["client_refused"]).await;
    for encoding in ["LATIN1", "SJIS", "WIN1251"] {
        let mut before = enter(&scene.leash, &[("client_encoding", encoding)]).await;
        let mut mine =
            enter(&scene.leash, &[("app.name", "größe ‘ß’ \\"), ("application_name", encoding)]).await;
        for _ in 0..2 {
            assert_eq!(before.one("SHOW client_encoding").await, encoding);
            assert_eq!(mine.one("SHOW app.name").await, "größe ‘ß’ \\", "{encoding}");
            assert_eq!(mine.one("SHOW client_encoding").await, "UTF8", "{encoding}");
        }
        before.close().await;
        mine.close().await;
    }
    // What the server makes of a name is asked, and its error told, in an encoding that both understand.
    let mut before = enter(&scene.leash, &[("client_encoding", "LATIN1")]).await;
    before.one("SELECT 1").await;
    let named = enter(&scene.leash, &[("application_name", "größe")]).await;
    let name = named.parameters.iter().find(|(name, _)| name == "application_name").cloned().unwrap().1;
    before.one("SELECT 1").await;
    let direct = scene.database.direct();
    let mut told = Raw::connect(direct.port).await;
    let who = [("user", direct.user.as_str()), ("database", &direct.database), ("application_name", "größe")];
    told.startup(raw::PROTOCOL_3_0, &who).await;
    let greeting = told.until_ready().await;
    told.learn(&greeting);
    assert!(told.parameters.contains(&("application_name".to_owned(), name)), "{:?}", told.parameters);
    let wrong = [("client_encoding", "LATIN1"), ("work_mem", "größe")];
    let said = knock(&scene.leash, &wrong).await.until_closed().await;
    assert_eq!((said[0].field('C'), said[0].field('M').contains("größe")), ("22023".into(), true));
    for client in [before, named, told] {
        client.close().await;
    }
    scene.end().await;
}
