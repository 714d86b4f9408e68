//! What one client does to its session is never another's, in whatever form it says so.

mod grammar;
mod random;

use crate::support::raw::{self, Raw, tags};
use crate::support::{Database, Leash, Mode, Server, eventually, finish};

/// What a client does, and what shows whether another one has it.
struct Deed {
    sql: &'static str,
    probe: &'static str,
}

const fn deed(sql: &'static str, probe: &'static str) -> Deed {
    Deed { sql, probe }
}

const WORK_MEM: &str = "SELECT current_setting('work_mem')";
const ROLE: &str = "SELECT current_user || ' ' || session_user || ' ' || current_setting('role')";
const LOCKS: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
const TABLES: &str = "SELECT count(*) FROM pg_class WHERE relname = 'planted'";

/// Each way to leave something behind.
const DEEDS: [Deed; 27] = [
    deed("SET work_mem = '8MB'", WORK_MEM),
    deed("SET SESSION work_mem TO '8MB'", WORK_MEM),
    deed("/* a comment */ SET \"work_mem\" = '8MB'", WORK_MEM),
    deed("SELECT set_config('work_mem', '8MB', false)", WORK_MEM),
    deed("SELECT set_config('work' || '_mem', '8MB', false)", WORK_MEM),
    deed("UPDATE pg_settings SET setting = 8192 WHERE name = 'work_mem'", WORK_MEM),
    deed("DO $$ BEGIN SET work_mem = '8MB'; END $$", WORK_MEM),
    deed("DO $$ BEGIN EXECUTE 'set work_mem to ''8MB'''; END $$", WORK_MEM),
    deed("SET statement_timeout = '1h'", "SHOW statement_timeout"),
    deed("SET search_path TO pg_catalog", "SHOW search_path"),
    deed("SET TIME ZONE 'Asia/Tokyo'", "SHOW timezone"),
    deed("SET DateStyle = 'German'", "SHOW datestyle"),
    deed("SET NAMES 'LATIN1'", "SHOW client_encoding"),
    deed("SET session_replication_role = replica", "SHOW session_replication_role"),
    deed("SET row_security = off", "SHOW row_security"),
    deed("SET planted.it = '8'", "SELECT coalesce(current_setting('planted.it', true), '')"),
    deed(
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SHOW default_transaction_isolation",
    ),
    deed("SET ROLE pg_monitor", ROLE),
    deed("SELECT set_config('role', 'pg_monitor', false)", ROLE),
    deed("SET U&\"r\\006fle\" TO pg_monitor", ROLE),
    deed("SET SESSION AUTHORIZATION pg_monitor", ROLE),
    deed("SELECT pg_advisory_lock(99)", LOCKS),
    deed("SELECT pg_try_advisory_lock_shared(1, 2)", LOCKS),
    deed("CREATE TEMP TABLE planted (n int)", TABLES),
    deed("SELECT 1 AS n INTO TEMP planted", TABLES),
    deed("LISTEN planted", "SELECT count(*) FROM pg_listening_channels()"),
    deed(
        "DECLARE planted CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE is_holdable",
    ),
];

/// The form in which a client says it.
#[derive(Clone, Copy, Debug)]
enum Form {
    Simple,
    Multi,
    Unnamed,
    Named,
    Hostile,
    Pieces,
}

impl Form {
    const ALL: [Form; 6] =
        [Form::Simple, Form::Multi, Form::Unnamed, Form::Named, Form::Hostile, Form::Pieces];

    /// What the client sends, up to each of its Syncs.
    fn batches(self, sql: &str) -> Vec<Vec<u8>> {
        let prepared = |name: &str, sql: &str| {
            let run = [raw::bind(name, &[]), raw::execute(0), raw::sync()].concat();
            vec![[raw::parse(name, sql), raw::sync()].concat(), run]
        };
        match self {
            Form::Simple => vec![raw::query(sql)],
            Form::Multi => vec![raw::query(&format!("SELECT 'it''s; ' AS \"--\"; {sql}; SELECT 2"))],
            Form::Unnamed => prepared("", sql),
            Form::Named => prepared("S_1", sql),
            Form::Hostile => prepared("x'\"--;/*$$\\", sql),
            Form::Pieces => prepared("S_2", &format!("/* {} */ {sql}", "long ".repeat(20_000))),
        }
    }
}

async fn plays(client: &mut Raw, form: Form, sql: &str) {
    for batch in form.batches(sql) {
        client.send(&batch).await;
        let answer = client.until_ready().await;
        assert!(!tags(&answer).contains('E'), "{form:?} {sql}: {}", tags(&answer));
    }
}

/// What another client sees, unless it is told that the only connection is taken.
async fn sees(client: &mut Raw, probe: &str) -> Option<String> {
    client.send(&raw::query(probe)).await;
    loop {
        let frame = client.frame().await.expect("an answer");
        match frame.tag {
            'D' => {
                let value = frame.columns()[0].clone().unwrap_or_default();
                client.until_ready().await;
                return Some(value);
            }
            'E' => {
                assert_eq!(frame.field('C'), "53300", "{probe}: {}", frame.field('M'));
                return None;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_one_client_did_is_never_anothers_in_whatever_form_it_came() {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 1);
    let leash = setup.set("pool.wait_timeout", "100ms").expecting(&["checkout_timeout"]).start().await;
    // Some need a superuser.
    let sidecar = leash.endpoint().user("postgres");
    for Deed { sql, probe } in &DEEDS {
        let mut fresh = Raw::login(&database.direct().user("postgres"), "two").await;
        let default = sees(&mut fresh, probe).await.unwrap();
        fresh.close().await;
        for form in Form::ALL {
            let mut one = Raw::login(&sidecar, "one").await;
            let mut two = Raw::login(&sidecar, "two").await;
            plays(&mut one, form, sql).await;
            if let Some(seen) = sees(&mut two, probe).await {
                assert_eq!(seen, default, "{form:?} {sql}: seen beside its client");
                two.close().await;
            }
            // Its client has it, whoever came in between.
            let own = one.one(probe).await;
            assert_ne!(own, default, "{form:?} {sql}: its own client has lost it");
            one.close().await;
            let after = eventually("the connection is free again", async || {
                let mut three = Raw::login(&sidecar, "three").await;
                sees(&mut three, probe).await
            });
            assert_eq!(after.await, default, "{form:?} {sql}: seen after its client");
        }
    }
    finish(leash, &database).await;
}

/// What role and database set is asked for at each login: who comes after a change finds it, who came before keeps
/// what it found, and whoever may not log in any more is refused in the server's words.
#[tokio::test]
async fn defaults_are_those_of_the_login() {
    let server = Server::private();
    let database = server.database().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).expecting(&["client_refused"]).start().await;
    let admin = database.admin().await;
    let shows = "SELECT current_setting('work_mem') || ' ' || current_setting('DateStyle')";
    let mut before = Raw::login(&leash.endpoint(), "before").await;
    assert_eq!(before.one(shows).await, "4MB ISO, MDY");
    let set = "SET work_mem = '9MB'; ALTER ROLE app SET datestyle = 'German, DMY'";
    admin.batch_execute(&format!("ALTER DATABASE {} {set}", database.name)).await.unwrap();
    let mut after = Raw::login(&leash.endpoint(), "after").await;
    assert!(after.parameters.contains(&("DateStyle".to_owned(), "German, DMY".to_owned())));
    for _ in 0..3 {
        assert_eq!(after.one(shows).await, "9MB German, DMY");
        assert_eq!(before.one(shows).await, "4MB ISO, MDY");
    }
    // Each goes back to its own.
    for (client, own) in [(&mut before, "4MB ISO, MDY"), (&mut after, "9MB German, DMY")] {
        client.query("SET work_mem = '1MB'; SET datestyle = 'SQL'").await;
        client.query("RESET ALL").await;
        assert_eq!(client.one(shows).await, own);
        client.query("DISCARD ALL").await;
        assert_eq!(client.one(shows).await, own);
    }
    admin.batch_execute("ALTER ROLE app NOLOGIN").await.unwrap();
    let mut late = Raw::connect(leash.port()).await;
    late.startup(raw::PROTOCOL_3_0, &[("user", "app"), ("database", &database.name)]).await;
    let refused = late.fatal().await;
    assert_eq!(
        (refused.field('C'), refused.field('M')),
        ("28000".into(), "role \"app\" is not permitted to log in".into())
    );
    admin.batch_execute("ALTER ROLE app LOGIN; ALTER ROLE app RESET ALL").await.unwrap();
    for client in [before, after] {
        client.close().await;
    }
    admin.close().await;
    finish(leash, &database).await;
}

/// A pool of one, and a client that comes while it is held: what could not be asked at its login is asked before its
/// first statement.
#[tokio::test]
async fn defaults_are_asked_for_when_there_is_a_connection_to_ask_on() {
    let server = Server::private();
    let database = server.database().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 1).start().await;
    let admin = database.admin().await;
    let mut holder = Raw::login(&leash.endpoint(), "holder").await;
    holder.query("BEGIN").await;
    admin.batch_execute(&format!("ALTER DATABASE {} SET work_mem = '9MB'", database.name)).await.unwrap();
    let mut late = Raw::login(&leash.endpoint(), "late").await;
    holder.query("COMMIT").await;
    assert_eq!(late.one("SHOW work_mem").await, "9MB");
    assert_eq!(holder.one("SHOW work_mem").await, "4MB");
    late.close().await;
    holder.close().await;
    admin.close().await;
    finish(leash, &database).await;
}

/// `ALTER SYSTEM` with this behind it, and a reload. It is everybody's on the server, which must be the test's own.
async fn configure(database: &Database, what: &str) {
    let admin = database.admin().await;
    // The reload is told by a setting that means nothing to a session. Once a new connection shows it, each backend has
    // been signalled, and looks at its configuration before its next statement.
    let mark =
        admin.one("SELECT setting::int % 1000 + 1 FROM pg_settings WHERE name = 'checkpoint_warning'").await;
    admin.batch_execute(&format!("ALTER SYSTEM {what}")).await.unwrap();
    admin.batch_execute(&format!("ALTER SYSTEM SET checkpoint_warning = {mark}")).await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    admin.close().await;
    eventually("the server has read its configuration again", async || {
        let late = database.admin().await;
        let shown = late.one("SELECT setting FROM pg_settings WHERE name = 'checkpoint_warning'").await;
        late.close().await;
        (shown == mark).then_some(())
    })
    .await;
}

/// A reload of the server's configuration is for everybody at once, whenever they came; what a client has set itself
/// stays, and a RESET goes back to what the server has now.
#[tokio::test]
async fn a_reload_reaches_each_session_that_has_set_nothing_else() {
    let server = Server::private();
    let database = server.database().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 2).start().await;
    let shows = "SELECT current_setting('work_mem') || ' ' || current_setting('DateStyle')";
    let mut plain = Raw::login(&leash.endpoint(), "plain").await;
    let mut own = Raw::login(&leash.endpoint(), "own").await;
    own.query("SET work_mem = '9MB'; SET datestyle = 'German'").await;
    let mut open = Raw::login(&leash.endpoint(), "open").await;
    open.query("BEGIN").await;
    assert_eq!(plain.one(shows).await, "4MB ISO, MDY");
    configure(&database, "SET work_mem = '3MB'").await;
    configure(&database, "SET datestyle = 'SQL, DMY'").await;
    let mut late = Raw::login(&leash.endpoint(), "late").await;
    assert!(late.parameters.contains(&("DateStyle".to_owned(), "SQL, DMY".to_owned())));
    for _ in 0..3 {
        assert_eq!(plain.one(shows).await, "3MB SQL, DMY");
        assert_eq!(own.one(shows).await, "9MB German, DMY");
        assert_eq!(open.one(shows).await, "3MB SQL, DMY", "in the middle of its transaction");
        assert_eq!(late.one(shows).await, "3MB SQL, DMY");
    }
    own.query("RESET ALL").await;
    assert_eq!(own.one(shows).await, "3MB SQL, DMY");
    open.query("COMMIT").await;
    configure(&database, "RESET ALL").await;
    for client in [&mut plain, &mut own, &mut open, &mut late] {
        assert_eq!(client.one(shows).await, "4MB ISO, MDY");
    }
    for client in [plain, own, open, late] {
        client.close().await;
    }
    finish(leash, &database).await;
}

/// A RESET in an open transaction goes back to the login's values, whatever has failed or was reported before it.
#[tokio::test]
async fn a_reset_in_a_transaction_goes_back_to_the_login() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 1).start().await;
    let shows = "SELECT current_setting('app.tenant', true) || ' ' || current_setting('work_mem')";
    for before in [
        "SELECT 1",
        "SET LOCAL standard_conforming_strings = off",
        "SELECT set_config('standard_conforming_strings', 'off', true)",
        "SELECT set_config('role', 'app', false)",
        "SAVEPOINT x; SET work_mem = '9MB'; ROLLBACK TO x",
    ] {
        let mut client = Raw::connect(leash.port()).await;
        let own = ("options", "-c app.tenant=1 -c work_mem=6MB");
        client.startup(raw::PROTOCOL_3_0, &[("user", "app"), ("database", &database.name), own]).await;
        client.until_ready().await;
        client.query("BEGIN").await;
        client.query(before).await;
        for resets in ["RESET app.tenant", "SET work_mem = DEFAULT", "RESET ALL"] {
            plays(&mut client, Form::Unnamed, resets).await;
            assert_eq!(client.one(shows).await, "1 6MB", "{before}; {resets}");
        }
        client.query("ROLLBACK").await;
        assert_eq!(client.one(shows).await, "1 6MB", "{before}, at its end");
        client.close().await;
    }
    finish(leash, &database).await;
}

/// A purpose that is gone by the time that the server is asked keeps nothing, and one that is there is shown.
#[tokio::test]
async fn the_server_says_what_pins() {
    let database = Server::shared().database().await;
    let setup =
        Leash::on(&database).mode(Mode::Transaction).set("pool.size", 1).set("pool.wait_timeout", "100ms");
    let leash = setup.expecting(&["checkout_timeout", "client_refused"]).start().await;
    let mut one = Raw::login(&leash.endpoint(), "reports").await;
    for free in [
        "CREATE TEMP TABLE gone (n int) ON COMMIT DROP",
        "BEGIN; CREATE TEMP TABLE gone (n int); ROLLBACK",
        "CREATE TEMP TABLE gone (n int); DROP TABLE gone",
        "LISTEN x; UNLISTEN x",
        "SELECT pg_advisory_lock(7); SELECT pg_advisory_unlock(7)",
        "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; CLOSE c; COMMIT",
        "SELECT 'listen', 'pg_temp'",
    ] {
        assert!(!tags(&one.query(free).await).contains('E'), "{free}");
        leash.pool_when(free, |pool| pool["holders"].as_array().unwrap().is_empty()).await;
    }
    one.query("CREATE TEMP TABLE kept AS SELECT 'secret' AS word").await;
    let pool = leash.pool_when("it is pinned", |pool| pool["holders"][0]["pinned"] == "temp_table").await;
    let holder = &pool["holders"][0];
    assert!(holder["pinned_seconds"].as_f64().is_some_and(|age| age < 60.0), "{holder}");
    let by = holder["pinned_by"].as_str().unwrap().to_lowercase();
    assert!(by.contains("create temp table kept") && !by.contains("secret"), "{by}");
    assert_eq!(leash.metrics().await.sum("pins", &[("reason", "temp_table")]), 1.0);
    let mut two = Raw::login(&leash.endpoint(), "two").await;
    two.send(&raw::query("SELECT 1")).await;
    let told = two.fatal().await.field('M');
    assert!(told.contains("1 pinned by temp_table (app reports)"), "{told}");
    one.query("DROP TABLE kept").await;
    leash.pool_when("it is free", |pool| pool["holders"].as_array().unwrap().is_empty()).await;
    one.close().await;
    finish(leash, &database).await;
}

/// Notifications that come while pgleash asks the server something are the client's.
#[tokio::test]
async fn a_listener_misses_nothing_by_setting_something() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).start().await;
    let admin = database.admin().await;
    let mut listener = Raw::login(&leash.endpoint(), "listener").await;
    listener.query("LISTEN jobs").await;
    let mut heard = 0;
    for n in 0..50 {
        admin.batch_execute(&format!("NOTIFY jobs, '{n}'")).await.unwrap();
        let answer = listener.query(&format!("SET work_mem = '{}MB'", 1 + n % 7)).await;
        heard += answer.iter().filter(|frame| frame.tag == 'A').count();
    }
    while heard < 50 {
        let answer = listener.query("SELECT 1").await;
        heard += answer.iter().filter(|frame| frame.tag == 'A').count();
    }
    assert_eq!(heard, 50);
    listener.close().await;
    admin.close().await;
    finish(leash, &database).await;
}

/// Of the error in an answer.
fn code(answer: &[raw::Frame]) -> String {
    answer.iter().find(|frame| frame.tag == 'E').map(|error| error.field('C')).unwrap_or_default()
}

/// Sequences and the generator behind `random()` are a session's own, too.
#[tokio::test]
async fn sequences_and_seeds_are_no_neighbours() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 1).start().await;
    let mut one = Raw::login(&leash.endpoint(), "one").await;
    let mut two = Raw::login(&leash.endpoint(), "two").await;
    one.query("CREATE SEQUENCE s").await;
    assert_eq!(one.one("SELECT nextval('s')").await, "1");
    assert_eq!(one.one("SELECT currval('s')").await, "1", "nobody else has had the connection since");
    for asks in ["SELECT lastval()", "SELECT CURRVAL('s')"] {
        assert_eq!(code(&two.query(asks).await), "55000", "{asks}");
        one.query("SELECT nextval('s')").await;
        two.query("BEGIN").await;
        assert_eq!(code(&two.query(asks).await), "55000", "{asks}, in a transaction");
        two.query("ROLLBACK").await;
        one.query("SELECT nextval('s')").await;
    }
    let mut seen = Vec::new();
    for _ in 0..2 {
        one.query("SELECT setseed(0.25)").await;
        seen.push(two.one("SELECT random()").await);
    }
    assert_ne!(seen[0], seen[1]);
    one.close().await;
    two.close().await;
    finish(leash, &database).await;
}
