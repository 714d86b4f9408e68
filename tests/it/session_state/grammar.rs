//! What clients do to their sessions, at random.

use crate::support::raw;

/// SplitMix64: the same numbers for the same seed, everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

/// The form in which a client says something.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    Simple,
    /// In one text with others.
    Multi,
    Unnamed,
    /// Prepared by name, then executed.
    Named,
    /// In one batch with others.
    Pipeline,
}

impl Form {
    pub const ALL: [Form; 5] = [Form::Simple, Form::Multi, Form::Unnamed, Form::Named, Form::Pipeline];

    /// What is sent, up to each answer.
    pub fn batches(self, sql: &str) -> Vec<Vec<u8>> {
        let runs =
            |name: &str, sql: &str| [raw::parse(name, sql), raw::bind(name, &[]), raw::execute(0)].concat();
        match self {
            Form::Simple => vec![raw::query(sql)],
            Form::Multi => vec![raw::query(&format!("SELECT 'x; y' AS \"--\"; {sql}; SELECT 2"))],
            Form::Unnamed => vec![[runs("", sql), raw::sync()].concat()],
            Form::Named => {
                let close = raw::message(b'C', b"Snamed'x\0");
                vec![
                    [close, raw::parse("named'x", sql), raw::sync()].concat(),
                    [raw::bind("named'x", &[]), raw::execute(0), raw::sync()].concat(),
                ]
            }
            Form::Pipeline => {
                let batch = [runs("", "SELECT 1"), runs("", sql), runs("", "SELECT 2"), raw::sync()];
                vec![batch.concat()]
            }
        }
    }
}

/// What a client, or the administrator, does.
#[derive(Clone, Debug)]
pub enum Deed {
    Says(Form, String),
    /// The client leaves, and comes again.
    Leave {
        kills: bool,
    },
    /// `ALTER DATABASE` and `ALTER ROLE ... IN DATABASE` with this behind it.
    Administer(String),
    /// `ALTER SYSTEM` with this behind it, and a reload.
    Configure(String),
}

#[derive(Clone, Debug)]
pub struct Step {
    pub client: usize,
    pub deed: Deed,
}

const VALUES: [(&str, &[&str]); 22] = [
    ("work_mem", &["'8MB'", "'9MB'", "4096", "DEFAULT"]),
    ("statement_timeout", &["'1h'", "'2h'", "0", "DEFAULT"]),
    ("lock_timeout", &["'1h'", "070"]),
    ("search_path", &["a", "b, a", "\"$user\", public", "'b'", "pg_temp, a", "DEFAULT"]),
    ("datestyle", &["German", "'SQL, DMY'", "ISO", "DEFAULT"]),
    ("TimeZone", &["'Asia/Tokyo'", "'UTC'", "'Europe/Berlin'", "DEFAULT"]),
    ("intervalstyle", &["iso_8601", "postgres_verbose", "DEFAULT"]),
    ("application_name", &["'one'", "'it''s'", "''", "DEFAULT"]),
    ("client_encoding", &["'LATIN1'", "'UTF8'", "DEFAULT"]),
    ("extra_float_digits", &["3", "0", "DEFAULT"]),
    ("app.tenant", &["'42'", "'4''3'", "7"]),
    ("\"app\".\"user\"", &["'ann'", "'bob'"]),
    ("bytea_output", &["escape", "hex"]),
    ("jit", &["off", "on", "DEFAULT"]),
    ("default_transaction_isolation", &["serializable", "'repeatable read'", "DEFAULT"]),
    ("default_transaction_read_only", &["on", "off", "DEFAULT"]),
    ("default_transaction_deferrable", &["on", "off"]),
    ("row_security", &["off", "on"]),
    ("session_replication_role", &["replica", "origin"]),
    ("standard_conforming_strings", &["off", "on", "DEFAULT"]),
    ("xmloption", &["document", "content"]),
    ("work_memory", &["1"]),
];

/// What is said as it is.
const PLAIN: [&str; 44] = [
    "RESET ALL",
    "DISCARD ALL",
    "DISCARD ALL",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
    "SET ROLE pg_monitor",
    "SET ROLE app",
    "SET ROLE NONE",
    "RESET ROLE",
    "SELECT set_config('role', 'app', false)",
    "SET SESSION AUTHORIZATION app",
    "RESET SESSION AUTHORIZATION",
    "SET SESSION AUTHORIZATION DEFAULT",
    "SET TIME ZONE 'Asia/Tokyo'",
    "SET TIME ZONE INTERVAL '+02:00' HOUR TO MINUTE",
    "SET NAMES 'LATIN1'",
    "SET SCHEMA 'b'",
    "SET XML OPTION DOCUMENT",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ WRITE",
    "RESET TIME ZONE",
    "UPDATE pg_settings SET setting = 'off' WHERE name = 'jit'",
    "DO $$ BEGIN SET work_mem = '7MB'; END $$",
    "DO $$ BEGIN PERFORM set_config('app.tenant', '99', false); END $$",
    "DO $$ BEGIN EXECUTE 'SET app.user = ''eve'''; END $$",
    "SELECT n FROM which",
    "SELECT n FROM which",
    "SELECT date '2026-02-01', timestamptz '2026-01-01 00:00+00', interval '1 day 2 hours'",
    "SELECT '\\101', 1.1::float8, '\\x41'::bytea",
    "SELECT nextval('public.s')",
    "SELECT currval('public.s')",
    "SELECT lastval()",
    "SELECT setseed(0.25), random()",
    "CREATE TEMP TABLE IF NOT EXISTS scratch (n int)",
    "DROP TABLE IF EXISTS scratch",
    "CREATE TEMP TABLE gone (n int) ON COMMIT DROP",
    "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
    "CLOSE ALL",
    "SELECT pg_advisory_lock(pg_backend_pid() * 0 + 0) IS NULL, pg_advisory_unlock(0)",
    "SELECT pg_advisory_unlock_all()",
    "LISTEN jobs",
    "UNLISTEN *",
    "PREPARE plan AS SELECT 1",
    "DEALLOCATE ALL",
];

const TRANSACTION: [&str; 11] = [
    "BEGIN",
    "BEGIN",
    "COMMIT",
    "COMMIT",
    "ROLLBACK",
    "ROLLBACK",
    "SAVEPOINT x",
    "ROLLBACK TO x",
    "RELEASE x",
    "SELECT 1/0",
    "COMMIT AND CHAIN",
];

const DEFAULTS: [&str; 8] = [
    "SET work_mem = '5MB'",
    "SET datestyle = 'SQL, MDY'",
    "SET TimeZone = 'America/New_York'",
    "SET search_path = b",
    "SET jit = off",
    "RESET work_mem",
    "RESET datestyle",
    "RESET ALL",
];

const SYSTEM: [&str; 10] = [
    "SET work_mem = '3MB'",
    "SET datestyle = 'Postgres, DMY'",
    "SET TimeZone = 'Asia/Kolkata'",
    "SET search_path = a",
    "SET intervalstyle = sql_standard",
    "SET bytea_output = escape",
    "SET lock_timeout = '3h'",
    "RESET work_mem",
    "RESET datestyle",
    "RESET ALL",
];

const LOGINS: [&[(&str, &str)]; 6] = [
    &[],
    &[("application_name", "mine")],
    &[("application_name", "mine"), ("DateStyle", "German"), ("TimeZone", "Asia/Tokyo")],
    &[("options", "-c work_mem=6MB -c search_path=a")],
    &[("application_name", "else"), ("options", "-c app.tenant=1 -c statement_timeout=1h")],
    &[("options", "-c search_path=pg_temp,a"), ("client_encoding", "LATIN1")],
];

/// What a client logs in with.
pub type Login = Vec<(&'static str, &'static str)>;

/// Clients by what they log in with, and what they do.
pub fn program(random: &mut Random, steps: usize) -> (Vec<Login>, Vec<Step>) {
    let clients = 3 + random.below(3);
    let logins = (0..clients).map(|_| random.pick(&LOGINS).to_vec()).collect();
    let step = |random: &mut Random| Step {
        client: usize::try_from(random.below(clients)).unwrap(),
        deed: deed(random),
    };
    (logins, (0..steps).map(|_| step(random)).collect())
}

fn deed(random: &mut Random) -> Deed {
    match random.below(100) {
        0..=3 => Deed::Leave { kills: random.below(2) == 0 },
        4..=6 => Deed::Administer(random.pick(&DEFAULTS).to_owned()),
        7 => Deed::Configure(random.pick(&SYSTEM).to_owned()),
        8..=24 => Deed::Says(
            random.pick(&[Form::Simple, Form::Unnamed, Form::Simple]),
            random.pick(&TRANSACTION).to_owned(),
        ),
        25..=59 => Deed::Says(random.pick(&Form::ALL), setting(random)),
        _ => Deed::Says(random.pick(&Form::ALL), random.pick(&PLAIN).to_owned()),
    }
}

fn setting(random: &mut Random) -> String {
    let (name, values) = random.pick(&VALUES);
    let value = random.pick(values);
    let bare = name.replace('"', "");
    let literal =
        if value.starts_with('\'') { value.to_owned() } else { format!("'{}'", value.replace('\'', "''")) };
    match random.below(9) {
        0 => format!("RESET {name}"),
        1 => format!("SET LOCAL {name} = {value}"),
        2 => format!("SET SESSION {name} TO {value}"),
        3 => format!("SELECT set_config('{bare}', {literal}, false)"),
        4 => format!("SELECT set_config('{bare}', {literal}, true)"),
        5 => format!("/* so */ SET {name} = {value} -- there"),
        _ => format!("SET {name} = {value}"),
    }
}
