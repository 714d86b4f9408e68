use super::*;

fn pin(sql: &str) -> Option<Pin> {
    found(sql).pins.reasons().told()
}

fn found(sql: &str) -> Findings {
    let whole = {
        let mut scanner = Scanner::new();
        scanner.feed(sql.as_bytes());
        scanner.finish()
    };
    let mut scanner = Scanner::new();
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
    assert_eq!(pin("select pg_catalog.pg_advisory_lock(1)"), Some(Pin::AdvisoryLock));
    assert_eq!(pin("select pg_try_advisory_lock_shared(1)"), Some(Pin::AdvisoryLock));
    assert_eq!(pin("load 'auto_explain'"), Some(Pin::Load));
    assert_eq!(pin("create or replace temp view v as select 1"), Some(Pin::TempTable));
    assert_eq!(pin("create /* a */ local temporary table t(x int)"), Some(Pin::TempTable));
    assert_eq!(pin("select 1 into temp t"), Some(Pin::TempTable));
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
fn ordinary_statements_do_not() {
    assert_eq!(pin("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 5"), None);
    assert_eq!(pin("select pg_advisory_xact_lock(1)"), None);
    assert_eq!(pin("set local work_mem = '1MB'"), None);
    assert_eq!(pin("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"), None);
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
fn the_names_that_a_text_may_change_are_found() {
    let names = |sql: &str| -> Vec<String> {
        found(sql).touches.into_iter().filter_map(|touched| touched.name).collect()
    };
    for (sql, expected) in [
        ("SET work_mem = 1", vec!["work_mem"]),
        ("begin; SET SESSION statement_timeout = 0; reset datestyle", vec!["statement_timeout", "datestyle"]),
        ("/* route=pay */ set role r", vec!["role"]),
        ("--x\rset role r", vec!["role"]),
        ("select 'it''s; set x = 1'; set y = 'a;b'; set z = 2", vec!["y", "z"]),
        ("select set_config('a.b', 'c;d', false), set_config('e', $1, false)", vec!["a.b", "e"]),
        ("set app.\"Tenant\" = '4'; set app.tenant to 5", vec!["app.tenant"]),
        (
            "do $$ begin set work_mem = '1MB'; perform set_config('x', 'y', false); end $$",
            vec!["work_mem", "x"],
        ),
        ("select E'\\\\' || '--'; set role r", vec!["role"]),
        ("select $a$--$a$; set role r", vec!["role"]),
        ("update t set x = 1", vec![]),
        ("select set from reset", vec![]),
        ("SET LOCAL work_mem = 1", vec![]),
        ("create function f() returns int set work_mem = 1 language sql as 'select 1'", vec![]),
        ("select 'set work_mem = 1'", vec![]),
    ] {
        assert_eq!(names(sql), expected, "{sql}");
    }
}

#[test]
fn what_is_set_back_is_known_in_order() {
    let touches = |sql: &str| -> Vec<(String, bool)> {
        let named =
            |touched: Touched| (touched.name.unwrap_or_else(|| "all".to_owned()), touched.back == Back::Yes);
        found(sql).touches.into_iter().map(named).collect()
    };
    let is = |pairs: &[(&str, bool)]| -> Vec<(String, bool)> {
        pairs.iter().map(|(name, back)| ((*name).to_owned(), *back)).collect()
    };
    assert_eq!(touches("reset x; set x = 1"), is(&[("x", true), ("x", false)]));
    assert_eq!(touches("set x = 1; reset all; set y = 1"), is(&[("x", false), ("all", true), ("y", false)]));
    assert_eq!(touches("set role none; set y = 1"), is(&[("role", true), ("y", false)]));
    assert_eq!(touches("set x = 1; set x = 2"), is(&[("x", false)]));
}

#[test]
fn what_a_text_does_is_of_a_kind() {
    for (sql, kind) in [
        ("reset all", Pins::TOUCHES_ALL.and(Pins::RESETS)),
        ("discard all", Pins::DISCARDS.and(Pins::TOUCHES_ALL).and(Pins::ENDS)),
        ("update pg_catalog.pg_settings set setting = 1 where name = 'x'", Pins::TOUCHES_ALL),
        (r#"select U&"set\005fconfig"('work_mem', '9MB', false)"#, Pins::HIDES),
        (r#"select U&"set!005fconfig" UESCAPE '!' ('work_mem', '9MB', false)"#, Pins::HIDES),
        ("select set_config($1, $2, false)", Pins::HIDES),
        ("do $$ begin execute 'set work_mem = 1'; end $$", Pins::HIDES.and(Pins::TOUCHES_ALL)),
        ("do $$ begin end $$", Pins::TOUCHES_ALL),
        ("call p()", Pins::TOUCHES_ALL),
        ("select setseed(0.5)", Pins::SEEDS),
        ("set seed to 0.5", Pins::SEEDS),
        ("select CURRVAL('s')", Pins::READS_SEQUENCES),
        ("select lastval()", Pins::READS_SEQUENCES),
        ("unlisten *", Pins::ENDS),
        ("close all", Pins::ENDS),
        ("select pg_advisory_unlock_all()", Pins::ENDS),
        ("set local search_path = 'pg_temp'", Pins::MOVES_PATH),
        ("set schema 'pg_temp'", Pins::MOVES_PATH),
        ("select set_config('search_path', 'pg_temp', true)", Pins::MOVES_PATH),
    ] {
        assert_eq!(found(sql).pins.within(kind), kind, "{sql}");
    }
    assert_eq!(found("select 1").pins, Pins::default());
    assert!(!found("do $$ begin perform 1; end $$").pins.has(Pins::HIDES));
}
