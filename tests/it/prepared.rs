//! Prepared statements of clients that move from connection to connection. Each story is told twice: on
//! plain Postgres, and in transaction mode by a client that is on another connection after each `move_on`.

use crate::support::raw::{self, Frame, Raw, message, rows, tags};
use crate::support::{Database, Leash, Mode, Server, finish};

/// A client, and those who make it move.
struct Scene {
    database: Database,
    leash: Option<Leash>,
    client: Raw,
    /// With two connections, one holds a transaction open at any time, so the client has the other.
    holders: Option<[Raw; 2]>,
}

impl Scene {
    async fn direct() -> Scene {
        let database = Server::shared().database().await;
        let client = Raw::login(&database.direct(), "mover").await;
        Scene { database, leash: None, client, holders: None }
    }

    async fn moving() -> Scene {
        let database = Server::shared().database().await;
        let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 2).start().await;
        let client = Raw::login(&leash.endpoint(), "mover").await;
        let mut first = Raw::login(&leash.endpoint(), "holder-1").await;
        let second = Raw::login(&leash.endpoint(), "holder-2").await;
        assert_eq!(tags(&first.query("BEGIN").await), "CZ");
        Scene { database, leash: Some(leash), client, holders: Some([first, second]) }
    }

    /// The client's next transaction is on another connection.
    async fn move_on(&mut self) {
        let Some([holds, free]) = &mut self.holders else { return };
        assert_eq!(tags(&free.query("BEGIN").await), "CZ");
        assert_eq!(tags(&holds.query("COMMIT").await), "CZ");
        std::mem::swap(holds, free);
    }

    /// Sends messages, and reads up to ReadyForQuery.
    async fn say(&mut self, messages: &[Vec<u8>]) -> Vec<Frame> {
        self.client.send(&messages.concat()).await;
        self.client.until_ready().await
    }

    async fn other(&mut self, sql: &str) {
        let other = self.database.direct().connect("other").await;
        other.batch_execute(sql).await.unwrap();
        other.close().await;
    }

    /// Nothing pinned the client: it was on other connections throughout.
    async fn end(self) {
        if let (Some(leash), Some(holders)) = (&self.leash, self.holders) {
            let holds = |pool: &serde_json::Value| {
                pool["holders"].as_array().unwrap().iter().any(|holder| holder["app"] == "mover")
            };
            leash.pool_when("the client holds nothing", |pool| !holds(pool)).await;
            for mut holder in holders {
                holder.query("COMMIT").await;
                holder.close().await;
            }
        }
        self.client.close().await;
        match self.leash {
            Some(leash) => finish(leash, &self.database).await,
            None => self.database.remove().await,
        }
    }
}

macro_rules! stories {
    ($($story:ident),+ $(,)?) => {
        mod direct {
            $( #[tokio::test] async fn $story() { super::$story(super::Scene::direct().await).await; } )+
        }
        mod moving {
            $( #[tokio::test] async fn $story() { super::$story(super::Scene::moving().await).await; } )+
        }
    };
}

stories! {
    a_name_works_on_every_connection,
    a_statement_is_described_before_it_is_bound,
    a_name_can_be_taken_once,
    a_name_can_be_taken_again_after_close,
    a_name_that_was_never_made_is_told_as_the_client_wrote_it,
    a_parse_that_fails_makes_no_name,
    what_is_skipped_after_an_error_has_not_happened,
    a_pipeline_mixes_statements_and_errors,
    rows_of_another_shape_are_never_sent,
    a_table_that_is_gone_is_told_at_the_bind,
    a_failed_transaction_refuses_what_must_be_made_first,
    deallocate_takes_a_protocol_level_name,
    a_pipeline_of_deallocates_takes_each_name,
    deallocate_takes_what_cannot_be_made_any_more,
    deallocate_all_takes_every_name,
    discard_all_takes_every_name,
    the_unnamed_statement_lives_on,
    the_unnamed_statement_ends_with_a_query,
    parameter_types_are_those_of_the_first_parse,
    copy_in_a_pipeline_keeps_the_order,
    a_sync_in_a_failing_copy_keeps_the_order,
    a_statement_of_many_kilobytes_moves,
    wrong_counts_of_parameters_are_told_with_the_clients_name,
    flush_answers_without_sync,
}

fn describe(name: &str) -> Vec<u8> {
    message(b'D', format!("S{name}\0").as_bytes())
}

fn close(name: &str) -> Vec<u8> {
    message(b'C', format!("S{name}\0").as_bytes())
}

fn run(name: &str, parameters: &[&str]) -> Vec<u8> {
    [raw::bind(name, parameters), raw::execute(0), raw::sync()].concat()
}

fn values(frames: &[Frame]) -> String {
    rows(frames).concat().into_iter().map(|value| value.unwrap_or_default()).collect::<Vec<_>>().join(",")
}

/// SQLSTATE and message of the only error.
fn error(frames: &[Frame]) -> (String, String) {
    let errors: Vec<_> = frames.iter().filter(|frame| frame.tag == 'E').collect();
    assert_eq!(errors.len(), 1, "{}", tags(frames));
    (errors[0].field('C'), errors[0].field('M'))
}

fn told(code: &str, text: &str) -> (String, String) {
    (code.to_owned(), text.to_owned())
}

async fn a_name_works_on_every_connection(mut scene: Scene) {
    let made = scene.say(&[raw::parse("add", "SELECT $1::int + 1"), raw::sync()]).await;
    assert_eq!(tags(&made), "1Z");
    for n in 0..6 {
        scene.move_on().await;
        let answer = scene.say(&[run("add", &[&n.to_string()])]).await;
        assert_eq!((tags(&answer), values(&answer)), ("2DCZ".to_owned(), (n + 1).to_string()));
    }
    scene.end().await;
}

async fn a_statement_is_described_before_it_is_bound(mut scene: Scene) {
    scene.say(&[raw::parse("s", "SELECT $1::int AS a, 'x'::text AS b"), raw::sync()]).await;
    let first = scene.say(&[describe("s"), raw::sync()]).await;
    assert_eq!(tags(&first), "tTZ");
    scene.move_on().await;
    let second = scene.say(&[describe("s"), run("s", &["1"])]).await;
    assert_eq!(tags(&second), "tT2DCZ");
    assert_eq!(first[..2], second[..2]);
    scene.end().await;
}

async fn a_name_can_be_taken_once(mut scene: Scene) {
    scene.say(&[raw::parse("s", "SELECT 1"), raw::sync()]).await;
    for _ in 0..3 {
        let again = scene.say(&[raw::parse("s", "SELECT 2"), run("s", &[])]).await;
        assert_eq!(tags(&again), "EZ");
        assert_eq!(error(&again), told("42P05", "prepared statement \"s\" already exists"));
        scene.move_on().await;
        assert_eq!(values(&scene.say(&[run("s", &[])]).await), "1");
        scene.move_on().await;
    }
    let both = scene.say(&[raw::parse("t", "SELECT 1"), raw::parse("t", "SELECT 2"), raw::sync()]).await;
    assert_eq!((tags(&both), error(&both).0), ("1EZ".to_owned(), "42P05".to_owned()));
    scene.end().await;
}

async fn a_name_can_be_taken_again_after_close(mut scene: Scene) {
    for n in 0..4 {
        let sql = format!("SELECT {n}");
        let made = scene.say(&[close("s"), raw::parse("s", &sql), run("s", &[])]).await;
        assert_eq!((tags(&made), values(&made)), ("312DCZ".to_owned(), n.to_string()));
        scene.move_on().await;
        assert_eq!(values(&scene.say(&[run("s", &[])]).await), n.to_string());
    }
    let gone = scene.say(&[close("s"), run("s", &[])]).await;
    assert_eq!(tags(&gone), "3EZ");
    assert_eq!(error(&gone), told("26000", "prepared statement \"s\" does not exist"));
    scene.end().await;
}

async fn a_name_that_was_never_made_is_told_as_the_client_wrote_it(mut scene: Scene) {
    for messages in [run("nobody's", &[]), [describe("nobody's"), raw::sync()].concat()] {
        let answer = scene.say(&[messages]).await;
        assert_eq!(tags(&answer), "EZ");
        assert_eq!(error(&answer), told("26000", "prepared statement \"nobody's\" does not exist"));
    }
    assert_eq!(tags(&scene.say(&[close("nobody's"), raw::sync()]).await), "3Z");
    scene.end().await;
}

async fn a_parse_that_fails_makes_no_name(mut scene: Scene) {
    let failed = scene.say(&[raw::parse("s", "SELEC 1"), describe("s"), raw::sync()]).await;
    assert_eq!((tags(&failed), error(&failed).0), ("EZ".to_owned(), "42601".to_owned()));
    assert_eq!(error(&scene.say(&[run("s", &[])]).await).0, "26000");
    let made = scene.say(&[raw::parse("s", "SELECT 1"), run("s", &[])]).await;
    assert_eq!(tags(&made), "12DCZ");
    scene.end().await;
}

async fn what_is_skipped_after_an_error_has_not_happened(mut scene: Scene) {
    scene.say(&[raw::parse("kept", "SELECT 'kept'"), raw::sync()]).await;
    let skipped = scene
        .say(&[raw::parse("bad", "SELEC"), close("kept"), raw::parse("new", "SELECT 1"), raw::sync()])
        .await;
    assert_eq!(tags(&skipped), "EZ");
    scene.move_on().await;
    assert_eq!(values(&scene.say(&[run("kept", &[])]).await), "kept");
    assert_eq!(error(&scene.say(&[run("new", &[])]).await).0, "26000");
    scene.end().await;
}

async fn a_pipeline_mixes_statements_and_errors(mut scene: Scene) {
    let setup = ["SELECT 'a'", "SELECT 'b'", "SELECT 1 / ($1::int * (random() * 0)::int)"];
    for (name, sql) in ["a", "b", "div"].iter().zip(setup) {
        scene.say(&[raw::parse(name, sql), raw::sync()]).await;
        scene.move_on().await;
    }
    for _ in 0..3 {
        let batches = [
            [raw::bind("a", &[]), raw::execute(0), raw::bind("b", &[]), raw::execute(0), raw::sync()]
                .concat(),
            [raw::bind("div", &["0"]), raw::execute(0), raw::bind("a", &[]), raw::execute(0), raw::sync()]
                .concat(),
            [raw::parse("", "SELECT 'u'"), run("", &[])].concat(),
            [raw::bind("nobody", &[]), raw::bind("b", &[]), raw::sync()].concat(),
            run("b", &[]),
        ];
        scene.client.send(&batches.concat()).await;
        let mut seen = Vec::new();
        for _ in 0..batches.len() {
            let answer = scene.client.until_ready().await;
            seen.push((tags(&answer), values(&answer)));
        }
        let want = [("2DC2DCZ", "a,b"), ("2EZ", ""), ("12DCZ", "u"), ("EZ", ""), ("2DCZ", "b")];
        assert_eq!(seen, want.map(|(tags, values)| (tags.to_owned(), values.to_owned())));
        scene.move_on().await;
    }
    scene.end().await;
}

async fn rows_of_another_shape_are_never_sent(mut scene: Scene) {
    scene.other("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await;
    scene.say(&[raw::parse("s", "SELECT * FROM t"), raw::sync()]).await;
    assert_eq!(values(&scene.say(&[run("s", &[])]).await), "1");
    scene.other("ALTER TABLE t ADD b text DEFAULT 'new'").await;
    let stale = told("0A000", "cached plan must not change result type");
    for _ in 0..4 {
        let answer = scene.say(&[run("s", &[])]).await;
        assert_eq!((tags(&answer), error(&answer)), ("EZ".to_owned(), stale.clone()));
        let answer = scene.say(&[describe("s"), raw::sync()]).await;
        assert_eq!((tags(&answer), error(&answer)), ("tEZ".to_owned(), stale.clone()));
        scene.move_on().await;
    }
    let again = scene.say(&[raw::parse("s", "SELECT 1"), raw::sync()]).await;
    assert_eq!(error(&again).0, "42P05");
    // The client makes it anew, under the same name and under another.
    let anew = scene.say(&[close("s"), raw::parse("s", "SELECT * FROM t"), run("s", &[])]).await;
    assert_eq!((tags(&anew), values(&anew)), ("312DCZ".to_owned(), "1,new".to_owned()));
    for _ in 0..3 {
        scene.move_on().await;
        assert_eq!(values(&scene.say(&[run("s", &[])]).await), "1,new");
    }
    // And back again: it is the old rows' statement that fits now.
    scene.other("ALTER TABLE t DROP b").await;
    assert_eq!(error(&scene.say(&[run("s", &[])]).await), stale);
    scene.move_on().await;
    assert_eq!(error(&scene.say(&[run("s", &[])]).await), stale);
    scene.end().await;
}

async fn a_table_that_is_gone_is_told_at_the_bind(mut scene: Scene) {
    scene.other("CREATE TABLE t (a int)").await;
    scene.say(&[raw::parse("s", "SELECT a FROM t"), raw::sync()]).await;
    scene.other("DROP TABLE t").await;
    for _ in 0..3 {
        scene.move_on().await;
        let answer = scene.say(&[run("s", &[]), run("s", &[])]).await;
        assert_eq!(tags(&answer), "EZ");
        assert_eq!(error(&answer), told("42P01", "relation \"t\" does not exist"));
        assert_eq!(tags(&scene.client.until_ready().await), "EZ");
    }
    scene.other("CREATE TABLE t (a int); INSERT INTO t VALUES (7)").await;
    scene.move_on().await;
    assert_eq!(values(&scene.say(&[run("s", &[])]).await), "7");
    scene.end().await;
}

async fn a_failed_transaction_refuses_what_must_be_made_first(mut scene: Scene) {
    scene.say(&[raw::parse("s", "SELECT 1"), raw::sync()]).await;
    scene.say(&[raw::parse("undo", "ROLLBACK"), raw::sync()]).await;
    scene.move_on().await;
    assert_eq!(tags(&scene.client.query("BEGIN").await), "CZ");
    assert_eq!(tags(&scene.client.query("SELECT 1/0").await), "EZ");
    let aborted = "current transaction is aborted, commands ignored until end of transaction block";
    for messages in [run("s", &[]), [raw::parse("t", "SELECT 2"), raw::sync()].concat()] {
        let answer = scene.say(&[messages]).await;
        assert_eq!((tags(&answer), error(&answer)), ("EZ".to_owned(), told("25P02", aborted)));
    }
    assert_eq!(tags(&scene.say(&[run("undo", &[])]).await), "2CZ");
    scene.move_on().await;
    assert_eq!(values(&scene.say(&[run("s", &[])]).await), "1");
    assert_eq!(error(&scene.say(&[run("t", &[])]).await).0, "26000");
    scene.end().await;
}

async fn deallocate_takes_a_protocol_level_name(mut scene: Scene) {
    for text in ["DEALLOCATE _pg3_0", "deallocate prepare \"_pg3_0\";"] {
        for simple in [true, false] {
            scene.say(&[raw::parse("_pg3_0", "SELECT 1"), raw::sync()]).await;
            scene.move_on().await;
            let answer = if simple {
                scene.client.query(text).await
            } else {
                scene.say(&[raw::parse("", text), run("", &[])]).await
            };
            let want = if simple { "CZ" } else { "12CZ" };
            assert_eq!(tags(&answer), want, "{text}");
            assert_eq!(&answer[answer.len() - 2].body[..], b"DEALLOCATE\0");
            assert_eq!(error(&scene.say(&[run("_pg3_0", &[])]).await).0, "26000");
        }
    }
    let gone = scene.client.query("DEALLOCATE _pg3_0").await;
    assert_eq!(error(&gone), told("26000", "prepared statement \"_pg3_0\" does not exist"));
    scene.end().await;
}

async fn a_pipeline_of_deallocates_takes_each_name(mut scene: Scene) {
    let drop = |name: &str| {
        let sql = format!("DEALLOCATE {name}");
        [raw::parse("", &sql), raw::bind("", &[]), raw::execute(0)].concat()
    };
    for _ in 0..2 {
        for name in ["a", "b", "c"] {
            scene.say(&[raw::parse(name, &format!("SELECT 'old {name}'")), raw::sync()]).await;
        }
        scene.move_on().await;
        let batch = [drop("a"), drop("b"), raw::parse("a", "SELECT 'new'"), run("a", &[])];
        let answer = scene.say(&batch).await;
        assert_eq!((tags(&answer), values(&answer)), ("12C12C12DCZ".to_owned(), "new".to_owned()));
        scene.move_on().await;
        assert_eq!(values(&scene.say(&[run("a", &[])]).await), "new");
        assert_eq!(error(&scene.say(&[run("b", &[])]).await).0, "26000");
        // Made, dropped, made and dropped again, in one batch; the second drop of the same finds nothing.
        let batch =
            [raw::parse("b", "SELECT 1"), drop("b"), raw::parse("b", "SELECT 2"), drop("b"), drop("b")];
        let answer = scene.say(&[batch.concat(), raw::sync()]).await;
        assert_eq!(tags(&answer), "112C112C12EZ");
        assert_eq!(error(&answer), told("26000", "prepared statement \"b\" does not exist"));
        // What is skipped has not happened.
        let skipped = scene.say(&[run("nobody", &[])[..].to_vec(), drop("c"), raw::sync()]).await;
        assert_eq!(tags(&skipped), "EZ");
        assert_eq!(tags(&scene.client.until_ready().await), "12CZ");
        let failing = [raw::bind("nobody", &[]), drop("a"), raw::sync()];
        assert_eq!(tags(&scene.say(&failing).await), "EZ");
        scene.move_on().await;
        assert_eq!(values(&scene.say(&[run("a", &[])]).await), "new");
        assert_eq!(tags(&scene.say(&[close("a"), raw::sync()]).await), "3Z");
    }
    scene.end().await;
}

async fn deallocate_takes_what_cannot_be_made_any_more(mut scene: Scene) {
    for simple in [true, false] {
        scene.other("CREATE TABLE t (a int)").await;
        scene.say(&[raw::parse("s", "SELECT * FROM t"), raw::sync()]).await;
        scene.other("DROP TABLE t").await;
        scene.move_on().await;
        // In a failed transaction it fails, and the name stays.
        scene.client.query("BEGIN; SELECT 1/0").await;
        assert_eq!(error(&scene.client.query("DEALLOCATE s").await).0, "25P02");
        scene.client.query("ROLLBACK").await;
        assert_eq!(error(&scene.say(&[raw::parse("s", "SELECT 1"), raw::sync()]).await).0, "42P05");
        scene.move_on().await;
        let answer = if simple {
            scene.client.query("DEALLOCATE s").await
        } else {
            scene.say(&[raw::parse("", "DEALLOCATE s"), run("", &[])]).await
        };
        assert_eq!(tags(&answer), if simple { "CZ" } else { "12CZ" });
        let again = scene.say(&[raw::parse("s", "SELECT 'other'"), run("s", &[])]).await;
        assert_eq!(values(&again), "other");
        scene.say(&[close("s"), raw::sync()]).await;
    }
    scene.end().await;
}

async fn deallocate_all_takes_every_name(mut scene: Scene) {
    every_name_is_taken(&mut scene, "DEALLOCATE ALL").await;
    scene.end().await;
}

async fn discard_all_takes_every_name(mut scene: Scene) {
    every_name_is_taken(&mut scene, "DISCARD ALL").await;
    scene.end().await;
}

async fn every_name_is_taken(scene: &mut Scene, sql: &str) {
    scene.say(&[raw::parse("a", "SELECT 1"), raw::parse("b", "SELECT 2"), raw::sync()]).await;
    assert_eq!(tags(&scene.client.query(sql).await).replace('S', ""), "CZ");
    for _ in 0..2 {
        for name in ["a", "b"] {
            assert_eq!(error(&scene.say(&[run(name, &[])]).await).0, "26000");
        }
        scene.move_on().await;
    }
    let made = scene.say(&[raw::parse("a", "SELECT 3"), run("a", &[])]).await;
    assert_eq!((tags(&made), values(&made)), ("12DCZ".to_owned(), "3".to_owned()));
    scene.move_on().await;
    let taken = scene.say(&[raw::parse("", sql), run("", &[])]).await;
    assert_eq!(tags(&taken).replace('S', ""), "12CZ");
    assert_eq!(error(&scene.say(&[run("a", &[])]).await).0, "26000");
}

async fn the_unnamed_statement_lives_on(mut scene: Scene) {
    let made = scene.say(&[raw::parse("", "SELECT $1::int * 2 AS twice"), raw::sync()]).await;
    assert_eq!(tags(&made), "1Z");
    for n in 1..5 {
        scene.move_on().await;
        let answer = scene.say(&[run("", &[&n.to_string()])]).await;
        assert_eq!((tags(&answer), values(&answer)), ("2DCZ".to_owned(), (2 * n).to_string()));
        scene.move_on().await;
        assert_eq!(tags(&scene.say(&[describe(""), raw::sync()]).await), "tTZ");
    }
    // A Parse that is skipped takes nothing's place.
    let skipped = scene.say(&[run("nobody", &[]), raw::parse("", "SELECT 'other'"), raw::sync()]).await;
    assert_eq!(tags(&skipped), "EZ");
    // A failed one leaves none.
    assert_eq!(tags(&scene.client.until_ready().await), "1Z");
    let failed = scene.say(&[raw::parse("", "SELEC"), raw::sync()]).await;
    assert_eq!(tags(&failed), "EZ");
    let gone = told("26000", "unnamed prepared statement does not exist");
    assert_eq!(error(&scene.say(&[run("", &[])]).await), gone);
    scene.move_on().await;
    assert_eq!(error(&scene.say(&[run("", &[])]).await), gone);
    scene.end().await;
}

async fn the_unnamed_statement_ends_with_a_query(mut scene: Scene) {
    scene.say(&[raw::parse("", "SELECT 1"), raw::sync()]).await;
    scene.client.query("SELECT 2").await;
    for _ in 0..3 {
        let gone = scene.say(&[run("", &[])]).await;
        assert_eq!((tags(&gone), error(&gone).0), ("EZ".to_owned(), "26000".to_owned()));
        let gone = scene.say(&[describe(""), raw::sync()]).await;
        assert_eq!((tags(&gone), error(&gone).0), ("EZ".to_owned(), "26000".to_owned()));
        scene.move_on().await;
    }
    scene.end().await;
}

async fn parameter_types_are_those_of_the_first_parse(mut scene: Scene) {
    scene.other("CREATE TABLE t (a int); INSERT INTO t VALUES (7)").await;
    scene.say(&[raw::parse("s", "SELECT 'found' FROM t WHERE a = $1"), raw::sync()]).await;
    let first = scene.say(&[describe("s"), raw::sync()]).await;
    scene.other("ALTER TABLE t ALTER a TYPE bigint").await;
    for _ in 0..3 {
        scene.move_on().await;
        let answer = scene.say(&[describe("s"), run("s", &["7"])]).await;
        assert_eq!((tags(&answer), values(&answer)), ("tT2DCZ".to_owned(), "found".to_owned()));
        assert_eq!(first[0], answer[0], "the type of $1");
    }
    scene.end().await;
}

async fn copy_in_a_pipeline_keeps_the_order(mut scene: Scene) {
    scene.other("CREATE TABLE t (a int)").await;
    scene
        .say(&[
            raw::parse("copy", "COPY t FROM STDIN"),
            raw::parse("n", "SELECT count(*) FROM t"),
            raw::sync(),
        ])
        .await;
    for n in 1..4 {
        scene.move_on().await;
        let copying =
            [raw::bind("copy", &[]), raw::execute(0), raw::copy_data("1\n"), raw::copy_done(), raw::sync()];
        assert_eq!(tags(&scene.say(&copying).await), "2GCZ");
        scene.move_on().await;
        let answer = scene.say(&[run("n", &[])]).await;
        assert_eq!((tags(&answer), values(&answer)), ("2DCZ".to_owned(), n.to_string()));
        // One that fails, with more behind it.
        let failing =
            [raw::bind("copy", &[]), raw::execute(0), raw::copy_data("x\n"), raw::copy_done(), raw::sync()];
        scene.client.send(&[failing.concat(), run("n", &[])].concat()).await;
        assert_eq!(tags(&scene.client.until_ready().await), "2GEZ");
        assert_eq!(values(&scene.client.until_ready().await), n.to_string());
    }
    scene.end().await;
}

/// The statements have to be made on the connection first, in a transaction, so that it is never quiet.
async fn a_sync_in_a_failing_copy_keeps_the_order(mut scene: Scene) {
    scene.other("CREATE TABLE t (a int)").await;
    for (name, sql) in [("copy", "COPY t FROM STDIN"), ("undo", "ROLLBACK"), ("n", "SELECT count(*) FROM t")]
    {
        scene.say(&[raw::parse(name, sql), raw::sync()]).await;
    }
    for ends in [raw::copy_fail("no more"), [raw::copy_data("x\n"), raw::copy_done()].concat()] {
        scene.move_on().await;
        assert_eq!(tags(&scene.client.query("BEGIN").await), "CZ");
        scene.client.send(&[raw::bind("copy", &[]), raw::execute(0), raw::sync()].concat()).await;
        for tag in "2G".chars() {
            scene.client.expect(tag).await;
        }
        let failed = scene.say(&[raw::sync(), raw::copy_data("1\n"), raw::sync(), ends, raw::sync()]).await;
        assert_eq!(tags(&failed), "EZ");
        assert_eq!(tags(&scene.say(&[run("undo", &[])]).await), "2CZ");
        assert_eq!(values(&scene.say(&[run("n", &[])]).await), "0");
    }
    scene.end().await;
}

async fn a_statement_of_many_kilobytes_moves(mut scene: Scene) {
    let long = "x".repeat(300_000);
    let sql = format!("SELECT length('{long}') + $1::int");
    let made = scene.say(&[raw::parse("long", &sql), raw::sync()]).await;
    assert_eq!(tags(&made), "1Z");
    for n in 0..3 {
        scene.move_on().await;
        let parameter = n.to_string();
        let wide = "y".repeat(100_000);
        let answer = scene
            .say(&[raw::parse("", "SELECT length($1)"), run("", &[&wide]), run("long", &[&parameter])])
            .await;
        assert_eq!(values(&answer), "100000");
        let answer = scene.client.until_ready().await;
        assert_eq!((tags(&answer), values(&answer)), ("2DCZ".to_owned(), (300_000 + n).to_string()));
    }
    scene.end().await;
}

async fn wrong_counts_of_parameters_are_told_with_the_clients_name(mut scene: Scene) {
    scene.say(&[raw::parse("one", "SELECT $1::int"), raw::sync()]).await;
    scene.move_on().await;
    let message = "bind message supplies 2 parameters, but prepared statement \"one\" requires 1";
    assert_eq!(error(&scene.say(&[run("one", &["1", "2"])]).await), told("08P01", message));
    scene.end().await;
}

async fn flush_answers_without_sync(mut scene: Scene) {
    scene.say(&[raw::parse("s", "SELECT 5"), raw::sync()]).await;
    scene.move_on().await;
    scene.client.send(&[raw::parse("t", "SELECT 6"), raw::flush()].concat()).await;
    scene.client.expect('1').await;
    scene.client.send(&[describe("t"), raw::bind("s", &[]), raw::flush()].concat()).await;
    for tag in "tT2".chars() {
        scene.client.expect(tag).await;
    }
    let rest = scene.say(&[raw::execute(0), raw::sync()]).await;
    assert_eq!((tags(&rest), values(&rest)), ("DCZ".to_owned(), "5".to_owned()));
    scene.end().await;
}

#[tokio::test]
async fn many_clients_share_few_connections_with_the_same_statements() {
    let database = Server::shared().database().await;
    let setup =
        Leash::on(&database).mode(Mode::Transaction).set("pool.size", 3).set("pool.wait_timeout", "25s");
    let leash = setup.start().await;
    let mut running = tokio::task::JoinSet::new();
    for client in 0..200_i32 {
        let endpoint = leash.endpoint();
        running.spawn(async move {
            let session = endpoint.connect("crowd").await;
            let add = session.prepare("SELECT $1::int + 1").await.unwrap();
            let own = session.prepare(&format!("SELECT $1::int * {}", client % 7)).await.unwrap();
            for n in 0..5 {
                assert_eq!(session.query_one(&add, &[&n]).await.unwrap().get::<_, i32>(0), n + 1);
                assert_eq!(session.query_one(&own, &[&n]).await.unwrap().get::<_, i32>(0), n * (client % 7));
            }
            session.close().await;
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    finish(leash, &database).await;
}

/// While the server has not said what they are, the texts of statements are kept; not without bound.
#[tokio::test]
async fn long_statements_sent_at_once_are_not_gathered() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 1).start().await;
    let mut client = Raw::login(&leash.endpoint(), "writer").await;
    assert_eq!(client.one("SELECT 1").await, "1");
    let before = leash.peak_memory();
    let sql = format!("SELECT length('{}')", "x".repeat(1_000_000));
    for n in 0..100 {
        client.send(&raw::parse(&format!("s{n}"), &sql)).await;
    }
    client.send(&run("s99", &[])).await;
    let answer = client.until_ready().await;
    assert_eq!((tags(&answer), values(&answer)), (format!("{}2DCZ", "1".repeat(100)), "1000000".to_owned()));
    let grown = leash.peak_memory() - before;
    // 16 MiB of them are kept, to be made elsewhere.
    assert!(grown < 40 << 20, "memory grew by {} MB for statements of 100 MB", grown >> 20);
    client.close().await;
    finish(leash, &database).await;
}

/// A connection keeps the statements that were used last, and the others work still.
#[tokio::test]
async fn a_connection_keeps_so_many_statements_and_no_more() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 1).start().await;
    let mut client = Raw::login(&leash.endpoint(), "hoarder").await;
    for n in 0..300 {
        client.send(&[raw::parse(&format!("s{n}"), &format!("SELECT {n}")), raw::sync()].concat()).await;
        assert_eq!(tags(&client.until_ready().await), "1Z");
    }
    for n in [0, 150, 299, 1] {
        client.send(&run(&format!("s{n}"), &[])).await;
        assert_eq!(values(&client.until_ready().await), n.to_string());
    }
    let kept: usize = client.one("SELECT count(*) FROM pg_prepared_statements").await.parse().unwrap();
    // One more may wait to be closed with the next that is made.
    assert!((250..=257).contains(&kept), "{kept}");
    client.close().await;
    finish(leash, &database).await;
}

/// What pins a session, and what ends the pin.
#[tokio::test]
async fn a_pin_ends_with_its_reason() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 2).start().await;
    let mut client = Raw::login(&leash.endpoint(), "pinner").await;
    for (pins, reason, ends) in [
        ("LISTEN jobs", "listen", "UNLISTEN *"),
        ("CREATE TEMP TABLE mine (n int)", "temp_table", "DISCARD TEMP"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "holdable_cursor", "CLOSE ALL"),
        ("SELECT pg_advisory_lock(1)", "advisory_lock", "SELECT pg_advisory_unlock_all()"),
        ("PREPARE p AS SELECT 1", "sql_prepare", "DEALLOCATE ALL"),
        ("LISTEN jobs", "listen", "DISCARD ALL"),
    ] {
        assert!(!tags(&client.query(pins).await).contains('E'), "{pins}");
        let pool = leash.pool_when("it is pinned", |pool| pool["holders"][0]["pinned"] == reason).await;
        assert_eq!(pool["holders"][0]["app"], "pinner");
        // What is rolled back has not ended; cursors, locks and statements are not the transaction's.
        if ["UNLISTEN *", "DISCARD TEMP"].contains(&ends) {
            client.query(&format!("BEGIN; {ends}; ROLLBACK")).await;
            leash.pool_when("it is still pinned", |pool| pool["holders"][0]["pinned"] == reason).await;
        }
        assert!(!tags(&client.query(ends).await).contains('E'), "{ends}");
        leash.pool_when("it is free", |pool| pool["holders"].as_array().unwrap().is_empty()).await;
    }
    client.close().await;
    finish(leash, &database).await;
}
