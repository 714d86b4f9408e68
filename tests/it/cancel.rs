//! Cancel requests: whom they reach, whom they never reach, and that many of them harm nobody.

use std::time::Duration;

use futures_util::future::join_all;
use tokio_postgres::NoTls;

use crate::support::raw::{self, CANCEL_REQUEST, PROTOCOL_3_0, PROTOCOL_3_2, Raw, tags};
use crate::support::tap::{Manner, Tap};
use crate::support::tls::Authority;
use crate::support::{
    Database, Endpoint, Leash, Mode, Server, eventually, eventually_or, finish, in_both_modes, sqlstate,
    within,
};

in_both_modes! {
    a_long_key_cancels,
    who_waits_for_a_connection_is_cancelled_and_nothing_is_sent,
    a_cancel_comes_through_when_nobody_else_does,
    a_storm_of_cancels_leaves_room_for_others,
    a_late_cancel_never_hits_the_next_borrower,
    a_cancel_is_as_encrypted_as_its_connection,
}

async fn login(endpoint: &Endpoint, version: u32, more: &[(&str, &str)]) -> (Raw, Vec<raw::Frame>) {
    let mut client = Raw::connect(endpoint.port).await;
    let mut parameters = vec![("user", endpoint.user.as_str()), ("database", &endpoint.database)];
    parameters.extend(more);
    client.startup(version, &parameters).await;
    let frames = client.until_ready().await;
    client.learn(&frames);
    (client, frames)
}

/// Sends a cancel request, and waits until it has been dealt with.
async fn cancel(port: u16, pid: u32, secret: &[u8]) {
    let mut stranger = Raw::connect(port).await;
    let packet = [&CANCEL_REQUEST.to_be_bytes(), &pid.to_be_bytes(), secret].concat();
    stranger.send_untagged(&packet).await;
    stranger.until_closed().await;
}

/// Waits until this statement runs on the server.
async fn runs(database: &Database, sql: &str) {
    let admin = database.admin().await;
    let question = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' \
         AND query LIKE '{sql}%'"
    );
    eventually(sql, async || (admin.one(&question).await == "1").then_some(())).await;
    admin.close().await;
}

#[tokio::test]
async fn versions_and_options_are_negotiated_as_postgres_18_does() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).start().await;
    let endpoint = leash.endpoint();
    let grease = ("_pq_.test_protocol_negotiation", "");
    for (minor, options, told, length) in [
        (0, vec![], None, 4),
        (1, vec![], None, 4),
        (2, vec![], None, 32),
        (3, vec![], Some(2), 32),
        (9999, vec![grease], Some(2), 32),
        (2, vec![grease], Some(2), 32),
        (0, vec![grease], Some(0), 4),
    ] {
        let (client, frames) = login(&endpoint, PROTOCOL_3_0 | minor, &options).await;
        let negotiation = frames.iter().find(|frame| frame.tag == 'v');
        let spoken = negotiation.map(|frame| u32::from_be_bytes(frame.body[..4].try_into().unwrap()));
        assert_eq!(spoken, told.map(|minor| PROTOCOL_3_0 | minor), "3.{minor}");
        let named =
            negotiation.is_some_and(|frame| frame.body.ends_with(b"_pq_.test_protocol_negotiation\0"));
        assert_eq!(named, !options.is_empty(), "3.{minor}");
        assert_eq!(client.secret.len(), length, "3.{minor}");
        client.close().await;
    }
    finish(leash, &database).await;
}

async fn a_long_key_cancels(mode: Mode) {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(mode).start().await;
    let (mut client, _) = login(&leash.endpoint(), PROTOCOL_3_2, &[]).await;
    client.send(&raw::query("SELECT pg_sleep(60)")).await;
    runs(&database, "SELECT pg_sleep").await;
    let mut near = client.secret.to_vec();
    near[31] ^= 1;
    // A part of the key, or one that is a bit off, does nothing.
    cancel(leash.port(), client.pid, &near).await;
    cancel(leash.port(), client.pid, &client.secret[..4]).await;
    runs(&database, "SELECT pg_sleep").await;
    cancel(leash.port(), client.pid, &client.secret).await;
    let frames = client.until_ready().await;
    assert_eq!((tags(&frames).as_str(), frames[1].field('C').as_str()), ("TEZ", "57014"));
    client.close().await;
    finish(leash, &database).await;
}

/// The pool is full, so is the list of clients, and callers who say nothing fill the doorstep.
/// In whatever form it asks, and however often: what it has sent behind it is done.
async fn who_waits_for_a_connection_is_cancelled_and_nothing_is_sent(mode: Mode) {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(mode).set("pool.size", 1).start().await;
    let admin = database.admin().await;
    admin.batch_execute("CREATE TABLE written (n int); GRANT ALL ON written TO app").await.unwrap();
    let mut holder = Raw::login(&leash.endpoint(), "holder").await;
    let mut waiter = Raw::login(&leash.endpoint(), "waiter").await;
    assert_eq!(tags(&holder.query("BEGIN").await), "CZ");
    let insert = "INSERT INTO written VALUES (1)";
    let alone = [raw::parse("s", insert), raw::bind("s", &[]), raw::execute(0)].concat();
    for (batch, ends) in [
        (raw::query(insert), vec![]),
        ([alone.clone(), raw::sync()].concat(), vec![]),
        ([alone.clone(), raw::flush()].concat(), raw::sync()),
        (raw::query(&format!("{insert} /* {} */", "long ".repeat(20_000))), vec![]),
    ] {
        waiter.send(&batch).await;
        leash.pool_when("it waits", |pool| pool["waiting"] == 1).await;
        cancel(leash.port(), waiter.pid, &waiter.secret).await;
        let error = waiter.expect('E').await;
        assert_eq!((error.field('V'), error.field('C')), ("ERROR".to_owned(), "57014".to_owned()));
        assert_eq!(error.field('M'), "canceling statement due to user request");
        waiter.send(&ends).await;
        assert_eq!(tags(&waiter.until_ready().await), "Z");
    }
    // One that has nothing under way is not cancelled, and neither is what it says next.
    cancel(leash.port(), waiter.pid, &waiter.secret).await;
    waiter.send(&raw::query("SELECT 3")).await;
    leash.pool_when("it waits", |pool| pool["waiting"] == 1).await;
    assert_eq!(tags(&holder.query("COMMIT").await), "CZ");
    holder.close().await;
    assert_eq!(tags(&waiter.until_ready().await), "TDCZ");
    assert_eq!(admin.one("SELECT count(*) FROM written").await, "0");
    // What was never sent was never prepared.
    waiter.send(&[raw::bind("s", &[]), raw::sync()].concat()).await;
    assert_eq!(waiter.expect('E').await.field('C'), "26000");
    waiter.until_ready().await;
    waiter.close().await;
    admin.close().await;
    finish(leash, &database).await;
}

async fn a_cancel_comes_through_when_nobody_else_does(mode: Mode) {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(mode).set("pool.size", 1).set("pool.max_clients", 2);
    let leash = setup.set("pool.wait_timeout", "60s").expecting(&["client_refused"]).start().await;
    let (mut busy, _) = login(&leash.endpoint(), PROTOCOL_3_0, &[]).await;
    busy.send(&raw::query("SELECT pg_sleep(60)")).await;
    runs(&database, "SELECT pg_sleep").await;
    let (mut waiting, _) = login(&leash.endpoint(), PROTOCOL_3_0, &[]).await;
    waiting.send(&raw::query("SELECT 'served'")).await;
    leash.pool_when("one waits", |pool| pool["waiting"] == 1).await;
    let silent = join_all((0..80).map(|_| Raw::connect(leash.port()))).await;
    eventually_or("the doorstep is full", async || match leash.endpoint().try_connect("refused").await {
        Err(error) if error.as_db_error().is_some_and(|db| db.message().contains("said who they are")) => {
            Ok(())
        }
        other => Err(format!("{:?}", other.err())),
    })
    .await;
    let cancelled = cancel(leash.port(), busy.pid, &busy.secret);
    within(Duration::from_secs(5), "the cancel is served", cancelled).await;
    assert!(tags(&busy.until_ready().await).ends_with("EZ"));
    busy.close().await;
    assert_eq!(tags(&waiting.until_ready().await), "TDCZ", "who waited has the connection");
    waiting.close().await;
    drop(silent);
    finish(leash, &database).await;
}

async fn a_storm_of_cancels_leaves_room_for_others(mode: Mode) {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(mode).expecting(&["client_refused"]).start().await;
    let open = || std::fs::read_dir(format!("/proc/{}/fd", leash.pid())).unwrap().count();
    let (mut victim, _) = login(&leash.endpoint(), PROTOCOL_3_2, &[]).await;
    victim.send(&raw::query("SELECT pg_sleep(60)")).await;
    runs(&database, "SELECT pg_sleep").await;
    let before = open();
    let wrong = [7; 32];
    let storm = (0..600).map(|n| {
        let secret = if n % 2 == 0 { &victim.secret[..] } else { &wrong };
        cancel(leash.port(), victim.pid, secret)
    });
    let others = async {
        for _ in 0..10 {
            let client = leash.endpoint().connect("bystander").await;
            assert_eq!(client.one("SELECT 'served'").await, "served");
            client.close().await;
        }
    };
    within(Duration::from_secs(25), "the storm passes", async { tokio::join!(join_all(storm), others) })
        .await;
    let frames = victim.until_ready().await;
    assert_eq!(frames[1].field('C'), "57014");
    assert_eq!(victim.one("SELECT 'usable'").await, "usable");
    victim.close().await;
    eventually_or("its descriptors are given back", async || {
        if open() <= before + 8 { Ok(()) } else { Err(format!("{before} before, {} now", open())) }
    })
    .await;
    finish(leash, &database).await;
}

/// Some cancel their own short statements, at moments that differ; others, on the same two
/// connections, never do. Whatever the first get, the others are never told of a cancel.
async fn a_late_cancel_never_hits_the_next_borrower(mode: Mode) {
    const ROUNDS: usize = 40;
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(mode).set("pool.size", 2).set("pool.wait_timeout", "60s");
    let leash = setup.start().await;
    let endpoint = leash.endpoint();
    let hasty = async |n: usize| {
        let mut cancelled = 0;
        for round in 0..ROUNDS {
            let client = endpoint.connect("hasty").await;
            // It has a connection by now, in session mode: a cancel of one that waits for it does nothing.
            client.one("SELECT 1").await;
            let token = client.cancel_token();
            let micros = 200 * ((round * 7 + n * 3) % 20);
            let statement = client.try_one("SELECT pg_sleep(0.1)");
            let cancel = async {
                tokio::time::sleep(Duration::from_micros(micros as u64)).await;
                token.cancel_query(NoTls).await
            };
            // It does not wait for its cancel to be dealt with: the next borrower is there before it.
            tokio::select! {
                answer = async { tokio::join!(statement, cancel).0 } => match answer {
                    Ok(_) => {}
                    Err(error) => {
                        assert_eq!(sqlstate(&error), "57014", "{error:?}");
                        cancelled += 1;
                    }
                },
                () = tokio::time::sleep(Duration::from_millis(5)), if round % 2 == 0 => {}
            }
            if round % 3 == 0 { drop(client) } else { client.close().await }
        }
        cancelled
    };
    let patient = async || {
        for round in 0..ROUNDS * 2 {
            let client = endpoint.connect("patient").await;
            assert_eq!(client.one(&format!("SELECT {round} FROM pg_sleep(0.001)")).await, round.to_string());
            client.close().await;
        }
    };
    let (cancelled, ..) = tokio::join!(
        async { hasty(0).await + hasty(1).await },
        async { hasty(2).await + hasty(3).await },
        patient(),
        patient(),
        patient(),
    );
    assert!(cancelled > 0, "not one cancel came in time: this proves nothing");
    finish(leash, &database).await;
}

/// A tap before a server that speaks TLS sees no cancel key.
async fn a_cancel_is_as_encrypted_as_its_connection(mode: Mode) {
    let authority = Authority::new();
    let server = Server::with_tls(&authority.identity("db.internal"));
    let database = server.database().await;
    let tap = Tap::new(Manner::Pass(database.port)).await;
    for (options, encrypted) in [
        (format!("sslmode=verify-full&sslrootcert={}", authority.path().display()), true),
        ("sslmode=prefer".to_owned(), true),
        ("sslmode=disable".to_owned(), false),
    ] {
        let seen = tap.first_packets().len();
        let url =
            format!("postgres://app@db.internal:{}/{}?hostaddr=127.0.0.1&{options}", tap.port, database.name);
        let leash = Leash::upstream(&url, &database.name).mode(mode).start().await;
        let (mut client, _) = login(&leash.endpoint(), PROTOCOL_3_2, &[]).await;
        client.send(&raw::query("SELECT pg_sleep(60)")).await;
        runs(&database, "SELECT pg_sleep").await;
        cancel(leash.port(), client.pid, &client.secret).await;
        assert!(tags(&client.until_ready().await).ends_with("EZ"));
        client.close().await;
        leash.sigterm();
        drop(leash);
        let in_the_clear = tap.first_packets()[seen..].contains(&CANCEL_REQUEST);
        assert_eq!(in_the_clear, !encrypted, "{options}");
    }
    database.remove().await;
}
