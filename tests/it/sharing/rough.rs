//! What is shared, while others close, cancel, kill, and send more at once than a connection keeps.

use super::{Scene, prepare, run, say};
use crate::support::raw::{self, rows, tags};
use crate::support::{Session, eventually};

/// More statements in one batch than a connection keeps, each of them used in the next.
#[tokio::test]
async fn a_pipeline_of_more_statements_than_are_kept() {
    const MANY: usize = 300;
    let scene = Scene::new().await;
    let (mut one, mut two) = (scene.client("one").await, scene.client("two").await);
    for client in [&mut one, &mut two] {
        let mut batch: Vec<_> =
            (0..MANY).map(|n| raw::parse(&format!("s{n}"), &format!("SELECT {n} + $1::int"))).collect();
        // In the same batch: by then the server has been told to forget none, or the first of them.
        batch.extend([raw::bind("s0", &["7"]), raw::execute(0), raw::sync()]);
        let answer = say(client, &batch).await;
        assert_eq!(tags(&answer), format!("{}2DCZ", "1".repeat(MANY)));
        assert_eq!(rows(&answer)[0][0].as_deref(), Some("7"));
    }
    for client in [&mut one, &mut two] {
        let uses = (0..MANY).flat_map(|n| [raw::bind(&format!("s{n}"), &["1"]), raw::execute(0)]);
        let batch: Vec<_> = uses.chain([raw::sync()]).collect();
        let said: Vec<_> = rows(&say(client, &batch).await).into_iter().map(|row| row[0].clone()).collect();
        let expected: Vec<_> = (0..MANY).map(|n| Some((n + 1).to_string())).collect();
        assert_eq!(said, expected);
    }
    scene.end([one, two]).await;
}

#[tokio::test]
async fn the_same_text_with_other_types_is_another_statement() {
    let scene = Scene::new().await;
    let (mut one, mut two) = (scene.client("one").await, scene.client("two").await);
    for (client, oid, name) in [(&mut one, 23_u32, "integer"), (&mut two, 25, "text")] {
        let body = [b"s\0SELECT pg_typeof($1)\0\0\x01", &oid.to_be_bytes()[..]].concat();
        assert_eq!(tags(&say(client, &[raw::message(b'P', &body), raw::sync()]).await), "1Z");
        assert_eq!(run(client, "s", &["1"]).await, name);
    }
    assert_eq!(run(&mut one, "s", &["1"]).await, "integer");
    scene.end([one, two]).await;
}

/// Who discards everything discards what is his.
#[tokio::test]
async fn what_one_discards_the_others_keep() {
    let scene = Scene::new().await;
    let (mut one, mut two) = (scene.client("one").await, scene.client("two").await);
    for all in ["DEALLOCATE ALL", "DISCARD ALL"] {
        for client in [&mut one, &mut two] {
            prepare(client, all, "SELECT 'kept'").await;
        }
        assert!(tags(&one.query(all).await).ends_with('Z'));
        let gone = say(&mut one, &[raw::bind(all, &[]), raw::sync()]).await;
        assert_eq!(gone.iter().find(|frame| frame.tag == 'E').unwrap().field('C'), "26000");
        assert_eq!(run(&mut two, all, &[]).await, "kept");
        // By the extended protocol, with what follows in the same batch.
        prepare(&mut one, all, "SELECT 'kept'").await;
        let batch = [
            raw::parse("", "DEALLOCATE ALL"),
            raw::bind("", &[]),
            raw::execute(0),
            raw::parse("new", "SELECT 'kept'"),
            raw::bind("new", &[]),
            raw::execute(0),
            raw::sync(),
        ];
        assert_eq!(tags(&say(&mut one, &batch).await), "12C12DCZ");
        assert_eq!(run(&mut two, all, &[]).await, "kept");
        assert!(tags(&one.query("DEALLOCATE ALL").await).ends_with('Z'));
    }
    scene.end([one, two]).await;
}

/// A shared statement has to be made on the other connection, and the server cannot yet, for its table is locked.
#[tokio::test]
async fn who_cancels_while_a_statement_is_made_is_told_so_and_keeps_it() {
    let scene = Scene::with_connections(2).await;
    let (mut one, mut holder) = (scene.client("one").await, scene.client("holder").await);
    one.query("CREATE TABLE t AS SELECT 'here' AS x").await;
    prepare(&mut one, "s", "SELECT x FROM t").await;
    let first = one.one("SELECT pg_backend_pid()").await;
    holder.query("BEGIN").await;
    while holder.one("SELECT pg_backend_pid()").await != first {
        let mut next = scene.client("next-holder").await;
        next.query("BEGIN").await;
        holder.query("COMMIT").await;
        holder.close().await;
        holder = next;
    }
    let locker = scene.database.direct().connect("locker").await;
    locker.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
    let uses = [raw::bind("s", &[]), raw::execute(0), raw::sync()].concat();
    one.send(&uses).await;
    until_blocked(&locker).await;
    let endpoint = scene.leash.endpoint();
    let mut canceller = raw::Raw::connect(endpoint.port).await;
    let cancel = [&raw::CANCEL_REQUEST.to_be_bytes()[..], &one.pid.to_be_bytes(), &one.secret].concat();
    canceller.send_untagged(&cancel).await;
    let answer = one.until_ready().await;
    assert_eq!((tags(&answer).as_str(), answer[0].field('C').as_str()), ("EZ", "57014"));
    one.send(&uses).await;
    until_blocked(&locker).await;
    locker.batch_execute("COMMIT").await.unwrap();
    assert_eq!(tags(&one.until_ready().await), "2DCZ");
    locker.close().await;
    holder.query("COMMIT").await;
    scene.end([one, holder]).await;
}

async fn until_blocked(locker: &Session) {
    let blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass";
    eventually("it waits for the lock", async || (locker.one(blocked).await == "1").then_some(())).await;
}

/// A description that somebody was given is that of his statement, whatever becomes of the table.
#[tokio::test]
async fn who_was_told_of_other_columns_is_told_to_ask_anew() {
    let scene = Scene::new().await;
    let (mut one, mut two) = (scene.client("one").await, scene.client("two").await);
    one.query("CREATE TABLE t AS SELECT 1 AS x").await;
    for client in [&mut one, &mut two] {
        prepare(client, "s", "SELECT * FROM t").await;
        assert_eq!(run(client, "s", &[]).await, "1");
    }
    one.query("ALTER TABLE t ADD y int").await;
    let describes = [raw::message(b'D', b"Ss\0"), raw::sync()];
    let uses = [raw::bind("s", &[]), raw::execute(0), raw::sync()];
    for client in [&mut one, &mut two] {
        let told = say(client, &describes).await;
        assert_eq!(
            told.iter().find(|frame| frame.tag == 'E').map(|frame| frame.field('C')).as_deref(),
            Some("0A000")
        );
        let answer = say(client, &uses).await;
        assert_eq!((tags(&answer).as_str(), answer[0].field('C').as_str()), ("EZ", "0A000"));
        assert_eq!(tags(&say(client, &[raw::message(b'C', b"Ss\0"), raw::sync()]).await), "3Z");
        prepare(client, "s", "SELECT * FROM t").await;
        assert_eq!(run(client, "s", &[]).await, "1");
    }
    scene.end([one, two]).await;
}
