use super::*;

fn pin(sql: &str) -> Option<Pin> {
    found(sql).pins.told()
}

fn none_reset() -> Resets {
    Resets::default()
}

fn found(sql: &str) -> Findings {
    let whole = {
        let mut scanner = Scanner::new(Reported::default());
        scanner.feed(sql.as_bytes());
        scanner.finish()
    };
    let mut scanner = Scanner::new(Reported::default());
    sql.as_bytes().chunks(1).for_each(|byte| scanner.feed(byte));
    assert_eq!(scanner.finish(), whole, "in pieces: {sql}");
    whole
}

#[test]
fn what_leaves_state_behind_pins() {
    assert_eq!(pin("LISTEN jobs"), Some(Pin::Listen));
    assert_eq!(pin("select 1; prepare p as select 2"), Some(Pin::SqlPrepare));
    assert_eq!(pin("CREATE TEMP TABLE t(x int)"), Some(Pin::TempTable));
    assert_eq!(pin("create table pg_temp.t(x int)"), Some(Pin::TempTable));
    assert_eq!(pin("declare c cursor with hold for select 1"), Some(Pin::HoldableCursor));
    assert_eq!(pin("update pg_catalog.pg_settings set setting = 1 where name = 'x'"), Some(Pin::Setting));
    assert_eq!(pin(r#"select U&"set\005fconfig"('work_mem', '9MB', false)"#), Some(Pin::Setting));
    assert_eq!(
        pin(r#"select U&"set!005fconfig" UESCAPE '!' ('work_mem', '9MB', false)"#),
        Some(Pin::Setting)
    );
    assert_eq!(pin("select pg_catalog.pg_advisory_lock(1)"), Some(Pin::AdvisoryLock));
    assert_eq!(pin("select pg_try_advisory_lock_shared(1)"), Some(Pin::AdvisoryLock));
    assert_eq!(pin("set search_path to a"), Some(Pin::Setting));
    assert_eq!(pin("begin; SET SESSION statement_timeout = 0"), Some(Pin::Setting));
    assert_eq!(pin("/* route=pay */ set role r"), Some(Pin::Role));
    assert_eq!(pin("-- hi\nset role r"), Some(Pin::Role));
    assert_eq!(pin("select set_config('a.b','c',false)"), Some(Pin::Setting));
    assert_eq!(pin("load 'auto_explain'"), Some(Pin::Load));
    assert_eq!(pin("create or replace temp view v as select 1"), Some(Pin::TempTable));
    assert_eq!(pin("create /* a */ local temporary table t(x int)"), Some(Pin::TempTable));
    assert_eq!(pin("select 1 into temp t"), Some(Pin::TempTable));
    assert_eq!(pin("--x\rset role r"), Some(Pin::Role));
}

#[test]
fn what_a_block_does_pins() {
    assert_eq!(pin("DO $$ BEGIN SET work_mem = '1MB'; END $$"), Some(Pin::Setting));
    assert_eq!(pin("DO $$ BEGIN EXECUTE 'SET work_mem = 1'; END $$"), Some(Pin::Setting));
    assert_eq!(pin("do 'begin listen x; end'"), Some(Pin::Listen));
    assert_eq!(pin("DO $$ BEGIN SET LOCAL work_mem = 1; END $$"), None);
}

#[test]
fn what_people_write_to_each_other_does_not() {
    assert_eq!(pin("insert into notes values ('please listen; set up a temporary job')"), None);
    assert_eq!(pin("insert into notes values ($1, 'it''s set; set it')"), None);
    assert_eq!(pin("select temp, temporary from weather where temp > 3"), None);
}

#[test]
fn nothing_hides_behind_a_quote_that_is_none() {
    for text in [
        "/* it's */ listen x",
        "-- it's\nlisten x",
        "select \"it's\"; listen x",
        "select $$it's$$; listen x",
        "select $a$it's$a$; listen x",
        "select $ab_1$it's$ab_1$; listen x",
        "select E'it\\'s'; listen x",
        "select '\\'; listen x; select '",
        "/* /* */ it's */ listen x",
        "select '' ; listen x",
        "select 'a''b'; listen x",
        "select '/*'; listen x",
        "select '--'; listen x",
        "select $1'a'; listen x",
        "select 1 - '-'; listen x",
    ] {
        assert_eq!(pin(text), Some(Pin::Listen), "{text}");
    }
}

#[test]
fn what_ends_state_is_told() {
    let ends = |sql: &str| {
        let found = found(sql);
        (found.resets, found.releases, found.pins.without(Pins::IN_TRANSACTION))
    };
    let none = Pins::default();
    assert_eq!(ends("DISCARD ALL"), (Resets::all(), none, none));
    let both = Pins::of(Pin::Listen).and(Pins::of(Pin::Setting));
    assert_eq!(ends("unlisten *; reset all"), (Resets::all(), both, none));
    assert_eq!(ends("UNLISTEN *"), (none_reset(), Pins::of(Pin::Listen), none));
    assert_eq!(ends("unlisten jobs"), (none_reset(), none, none));
    assert_eq!(ends("unlisten \"jobs\""), (none_reset(), none, none));
    let reset = |name: &str| Resets::Of(vec![name.to_owned()]);
    assert_eq!(ends("reset role"), (reset("role"), Pins::of(Pin::Role), none));
    let authorization = Pins::of(Pin::SessionAuthorization);
    assert_eq!(ends("RESET SESSION AUTHORIZATION"), (reset("session_authorization"), authorization, none));
    assert_eq!(ends("set session authorization joe"), (none_reset(), none, authorization));
    assert_eq!(ends("set session role joe"), (none_reset(), none, Pins::of(Pin::Role)));
    assert_eq!(ends("reset work_mem"), (reset("work_mem"), none, Pins::of(Pin::Setting)));
    assert_eq!(ends("select pg_advisory_unlock_all()"), (none_reset(), Pins::of(Pin::AdvisoryLock), none));
    assert_eq!(ends("select 'reset all'"), (none_reset(), none, none));
}

#[test]
fn a_setting_counts_until_the_transaction_is_over() {
    let set = |sql: &str| !found(sql).pins.within(Pins::SETTING_IN_TRANSACTION).is_empty();
    for text in [
        "SET LOCAL search_path = a",
        "begin; set timezone to 'UTC'",
        "/* so */ reset datestyle",
        "discard all",
        "do $$ begin set local array_nulls = off; end $$",
        "call change_settings()",
        "select set_config('timezone', 'UTC', true)",
        "set local lock_timeout = 1; set local work_mem = 1",
        "SET LOCAL app.tenant = '42'",
    ] {
        assert!(set(text), "{text}");
    }
    for text in [
        "update t set x = 1",
        "select 'set'",
        "begin",
        "select set from reset",
        "set transaction read only",
        "set constraints all deferred",
        "SET LOCAL pgleash.hold = '10m'",
        "set local statement_timeout = 1; set local idle_in_transaction_session_timeout = 1",
    ] {
        assert!(!set(text), "{text}");
    }
    assert_eq!(pin("set local work_mem = '1GB'"), None, "the client keeps nothing for it");
}

#[test]
fn what_changes_what_names_mean_is_told() {
    let changes = |sql: &str| !found(sql).pins.within(Pins::NAMES_IN_TRANSACTION).is_empty();
    for text in [
        "CREATE TABLE t (n int)",
        "create or replace function f() returns int language sql as 'select 1'",
        "begin; DROP VIEW v",
        "/* so */ alter table t rename to u",
        "import foreign schema s from server f into t",
        "select 1 as n into t",
        "with a as (select 1) select * into t from a",
        "explain analyze create table t as select 1",
        "do $$ begin alter table t add n int; end $$",
        "do $$ begin execute 'drop table t'; end $$",
        "commit prepared 'x'",
    ] {
        assert!(changes(text), "{text}");
    }
    for text in [
        "insert into t values (1)",
        "insert /* here */ into t values ('create')",
        "merge into t using u on true when matched then delete",
        "select alter, drop from t",
        "select 'create table t'",
        "select 1 /*action='create',route='into'*/",
        "set local work_mem = 1",
    ] {
        assert!(!changes(text), "{text}");
    }
}

#[test]
fn what_the_server_reports_needs_no_pin() {
    let pins = |reported: &[&str], sql: &str| {
        let reported = Reported::of(reported.iter().copied());
        let mut scanner = Scanner::new(reported);
        scanner.feed(sql.as_bytes());
        scanner.finish().pins.told()
    };
    assert_eq!(pins(&["TimeZone"], "set search_path to a"), Some(Pin::Setting));
    assert_eq!(pins(&["TimeZone", "search_path"], "set search_path to a"), None);
    assert_eq!(
        pins(&["is_superuser", "session_authorization"], "set is_superuser = off"),
        Some(Pin::Setting)
    );
}

#[test]
fn ordinary_statements_do_not() {
    assert_eq!(pin("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 5"), None);
    assert_eq!(pin("select pg_advisory_xact_lock(1)"), None);
    assert_eq!(pin("set local work_mem = '1MB'"), None);
    assert_eq!(pin("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"), None);
    assert_eq!(pin("set application_name = 'x'; set time zone 'UTC'; set timezone to 'UTC'"), None);
    assert_eq!(pin("set names 'utf8'"), None);
    assert_eq!(pin("select hold, load from template"), None);
    assert_eq!(pin("declare c cursor for select 1"), None);
    assert_eq!(pin("select setting from pg_settings where name = 'work_mem'"), None);
    assert_eq!(pin("deallocate prepare p"), None);
    assert_eq!(pin("deallocate p; prepare p as select 1"), Some(Pin::SqlPrepare));
    assert_eq!(pin(""), None);
}

#[test]
fn a_literal_that_looks_like_a_comment_hides_nothing() {
    assert_eq!(pin("select '--', pg_advisory_lock(1)"), Some(Pin::AdvisoryLock));
    assert_eq!(pin("select '/*'; listen x"), Some(Pin::Listen));
}

#[test]
fn which_parameters_are_set_back_is_told() {
    let resets = |sql: &str| found(sql).resets;
    let of = |names: &[&str]| Resets::Of(names.iter().map(|name| (*name).to_owned()).collect());
    assert_eq!(resets("RESET TimeZone"), of(&["timezone"]));
    assert_eq!(resets("reset time zone"), of(&["timezone"]));
    assert_eq!(resets("set time zone default"), of(&["timezone"]));
    assert_eq!(resets("SET SESSION TIME ZONE LOCAL"), of(&["timezone"]));
    assert_eq!(resets("set names default"), of(&["client_encoding"]));
    assert_eq!(resets("set datestyle to default; reset \"search_path\""), of(&["datestyle", "search_path"]));
    assert_eq!(resets("SET application_name = DEFAULT"), of(&["application_name"]));
    assert_eq!(resets("do $$ begin reset datestyle; end $$"), of(&["datestyle"]));
    assert_eq!(resets("set application_name = 'default'; select default"), none_reset());
    assert_eq!(resets("set local timezone to default"), none_reset());
    assert_eq!(resets("update t set timezone = default"), none_reset());
    assert_eq!(resets(&"reset work_mem; reset datestyle;".repeat(9)), of(&["work_mem", "datestyle"]));
    let many: String = (0..40).map(|n| format!("reset x{n};")).collect();
    assert_eq!(resets(&many), Resets::all());
    // What is set behind its reset stays; what is set before is reset.
    assert_eq!(resets("reset work_mem; set work_mem = 1; reset datestyle"), of(&["datestyle"]));
    assert_eq!(resets("set work_mem = 1; reset work_mem"), of(&["work_mem"]));
    assert_eq!(resets("reset all; set work_mem = 1"), Resets::AllBut(vec!["work_mem".to_owned()]));
    assert_eq!(found("set work_mem = 1; set x = 2").sets.unwrap().text(), "x");
    assert_eq!(found("set work_mem to default").sets, None);
}
