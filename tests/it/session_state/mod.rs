//! What one client does to its session is never another's, in whatever form it says so.

mod grammar;
mod random;

use crate::support::raw::{self, Raw, tags};
use crate::support::{Leash, Mode, Server, eventually, finish};

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
