//! A primary and a standby that streams from it: who is served by which, and what a failover is like.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::support::raw::{self, Raw};
use crate::support::{Database, Leash, Mode, Server, Session, Setup, eventually_or, in_both_modes, sqlstate};

in_both_modes! {
    each_is_served_by_the_server_that_it_asks_for,
    without_a_standby_who_prefers_one_is_served_by_the_primary,
    a_failover_with_clients_in_different_states,
    who_waits_in_vain_for_a_new_primary_is_told_in_time,
    a_standby_that_becomes_the_primary_is_left_by_those_who_want_a_standby,
}

struct Pair {
    primary: Server,
    standby: Server,
    /// The same database on either.
    on_primary: Database,
    on_standby: Database,
}

impl Pair {
    async fn new() -> Pair {
        let mut primary = Server::primary();
        let on_primary = primary.database_named("shop").await;
        let standby = primary.standby();
        let on_standby = standby.replica_of(&on_primary);
        let admin = on_primary.admin().await;
        admin
            .batch_execute("CREATE TABLE payments (who text); ALTER TABLE payments OWNER TO app")
            .await
            .unwrap();
        admin.close().await;
        let pair = Pair { primary, standby, on_primary, on_standby };
        pair.catch_up().await;
        pair
    }

    /// Waits until the standby has all that the primary has.
    async fn catch_up(&self) {
        let admin = self.on_primary.admin().await;
        let written = admin.one("SELECT pg_current_wal_lsn()").await;
        let behind =
            format!("SELECT coalesce(max(replay_lsn), '0/0') - '{written}' FROM pg_stat_replication");
        eventually_or("the standby has all of it", async || {
            let bytes = admin.one(&behind).await;
            if bytes.starts_with('-') { Err(bytes) } else { Ok(()) }
        })
        .await;
        admin.close().await;
    }

    /// pgleash in front of both, which meets the server that does not fit first.
    fn leash(&self, mode: Mode, attrs: &str) -> Setup {
        let (primary, standby) = (self.on_primary.port, self.on_standby.port);
        let (first, second) = if attrs.ends_with("standby") || attrs == "read-only" {
            (primary, standby)
        } else {
            (standby, primary)
        };
        let url =
            format!("postgres://app@127.0.0.1:{first},127.0.0.1:{second}/shop?target_session_attrs={attrs}");
        Leash::upstream(&url, "shop").mode(mode)
    }
}

async fn port(client: &Session) -> String {
    client.one("SELECT inet_server_port()").await
}

async fn end(mut leash: Leash) {
    leash.sigterm();
    assert_eq!(leash.wait_exit().await.code(), Some(0));
    leash.assert_calm();
}

/// What every client of a failover writes, and the port of the server that took it.
fn payment(who: &str) -> Vec<u8> {
    raw::query(&format!("INSERT INTO payments VALUES ('{who}') RETURNING inet_server_port()"))
}

async fn each_is_served_by_the_server_that_it_asks_for(mode: Mode) {
    let pair = Pair::new().await;
    let (primary, standby) = (pair.on_primary.port.to_string(), pair.on_standby.port.to_string());
    let wanted = [
        ("read-write", &primary),
        ("primary", &primary),
        ("standby", &standby),
        ("prefer-standby", &standby),
        ("read-only", &standby),
    ];
    for (attrs, wanted) in wanted {
        let leash = pair.leash(mode, attrs).start().await;
        let client = leash.endpoint().connect("visitor").await;
        assert_eq!(port(&client).await, *wanted, "{attrs}");
        let written = client.simple_query("INSERT INTO payments VALUES ('visitor')").await;
        let refused = written.err().map(|error| sqlstate(&error).to_owned());
        assert_eq!(refused.as_deref(), (*wanted == standby).then_some("25006"), "{attrs}");
        client.close().await;
        end(leash).await;
    }
}

async fn without_a_standby_who_prefers_one_is_served_by_the_primary(mode: Mode) {
    let Pair { primary: _primary, mut standby, on_primary, on_standby } = Pair::new().await;
    let url = format!(
        "postgres://app@127.0.0.1:{},127.0.0.1:{}/shop?target_session_attrs=prefer-standby",
        on_primary.port, on_standby.port
    );
    let leash = Leash::upstream(&url, "shop").mode(mode).start().await;
    let client = leash.endpoint().connect("reader").await;
    assert_eq!(port(&client).await, on_standby.port.to_string());
    client.close().await;
    standby.stop();
    eventually_or("the next is served by the primary", async || {
        let client = leash.endpoint().connect("reader").await;
        // The connection to the standby may have been lent before its end was seen.
        let port = client.try_one("SELECT inet_server_port()").await;
        client.close().await;
        match port {
            Ok(port) if port == on_primary.port.to_string() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    end(leash).await;
}

/// The incident: clients with a transaction open and with a statement in flight when the primary dies, in the
/// queue, and coming while there is no primary. Then the standby is promoted.
async fn a_failover_with_clients_in_different_states(mode: Mode) {
    let mut pair = Pair::new().await;
    let setup = pair.leash(mode, "read-write").set("pool.size", 4).set("pool.wait_timeout", "25s");
    let mut leash = setup
        .expecting(&["upstream_failed", "leak_detected", "survey_failed", "survey_recovered"])
        .start()
        .await;
    let endpoint = leash.endpoint();
    let first = endpoint.connect("first").await;
    first.batch_execute("INSERT INTO payments VALUES ('first')").await.unwrap();
    first.close().await;
    pair.catch_up().await;

    let idle = endpoint.raw("idle").await;
    let mut cut = join_all((0..4).map(|_| endpoint.raw("in flight"))).await;
    for (at, client) in cut.iter_mut().enumerate() {
        client.query("BEGIN; INSERT INTO payments VALUES ('lost')").await;
        if at % 2 == 0 {
            client.send(&raw::query("SELECT pg_sleep(60)")).await;
        }
    }
    leash.pool_when("two are at work", |pool| pool["connections"]["active"] == 2).await;
    let mut waiting = join_all((0..3).map(|_| endpoint.raw("queued"))).await;
    for client in &mut waiting {
        client.send(&payment("queued")).await;
    }
    leash.pool_when("three wait", |pool| pool["waiting"] == 3).await;

    pair.primary.stop();
    let mut by_the_server = 0;
    for client in &mut cut {
        let told = client.until_closed().await;
        let words = told.iter().filter(|frame| "NE".contains(frame.tag));
        let codes: Vec<String> = words.map(|frame| frame.field('C')).collect();
        match codes.first().map(String::as_str) {
            Some("57P01") => by_the_server += 1,
            // A server that ends at once may end before all of its backends have said so.
            Some("08006") if codes.len() == 1 => {}
            _ => panic!("the server's own word first: {codes:?}"),
        }
        assert!(told.last().is_some_and(|frame| frame.tag == 'E'), "{codes:?}");
    }
    assert!(by_the_server > 0, "the server has told nobody");
    let failed = leash.event("upstream_failed", |_| true).await;
    assert_eq!(failed["sqlstate"], "08006", "{failed}");
    let mut early = join_all((0..2).map(|_| endpoint.raw("early"))).await;
    for client in &mut early {
        client.send(&payment("early")).await;
    }
    leash.pool_when("all of them wait", |pool| pool["waiting"] == 5).await;

    pair.standby.promote();
    for mut client in waiting.into_iter().chain(early) {
        assert_eq!(served_by(&mut client).await, pair.on_standby.port.to_string());
        client.close().await;
    }
    for mut client in [idle, endpoint.raw("late").await] {
        client.send(&payment("late")).await;
        assert_eq!(served_by(&mut client).await, pair.on_standby.port.to_string());
        client.close().await;
    }
    leash.event("upstream_recovered", |_| true).await;
    assert_eq!(leash.get("/readyz").await.0, 200);
    let books = pair.on_standby.admin().await;
    let all = "SELECT string_agg(who || ' ' || n, ', ') \
               FROM (SELECT who, count(*) AS n FROM payments GROUP BY who ORDER BY who) AS t";
    assert_eq!(books.one(all).await, "early 2, first 1, late 2, queued 3");
    books.close().await;
    end(leash).await;
}

async fn served_by(client: &mut Raw) -> String {
    let frames = client.until_ready().await;
    raw::rows(&frames)[0][0].clone().unwrap()
}

async fn who_waits_in_vain_for_a_new_primary_is_told_in_time(mode: Mode) {
    let mut pair = Pair::new().await;
    let setup = pair.leash(mode, "primary").set("pool.wait_timeout", "1s");
    let leash = setup.expecting(&["upstream_failed", "client_refused"]).start().await;
    let endpoint = leash.endpoint();
    let mut waiting = endpoint.raw("waiting").await;
    pair.primary.stop();
    let asked = Instant::now();
    waiting.send(&payment("waiting")).await;
    let word = waiting.fatal().await;
    let waited = asked.elapsed();
    assert_eq!(word.field('C'), "08006", "{}", word.field('M'));
    assert!(waited >= Duration::from_secs(1) && waited < Duration::from_secs(10), "{waited:?}");

    pair.standby.promote();
    eventually_or("the next is served by the new primary", async || {
        let client = endpoint.connect("next").await;
        let port = client.try_one("SELECT inet_server_port()").await;
        client.close().await;
        match port {
            Ok(port) if port == pair.on_standby.port.to_string() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    end(leash).await;
}

/// Its connections outlive the promotion: PostgreSQL closes none.
async fn a_standby_that_becomes_the_primary_is_left_by_those_who_want_a_standby(mode: Mode) {
    let pair = Pair::new().await;
    let setup = pair.leash(mode, "standby").set("pool.wait_timeout", "1s").set("pool.size", 1);
    let mut leash = setup.expecting(&["upstream_failed"]).start().await;
    let reader = leash.endpoint().connect("reader").await;
    assert_eq!(port(&reader).await, pair.on_standby.port.to_string());
    reader.close().await;
    pair.standby.promote();
    let refusal = eventually_or("readers are not sent to a primary", async || {
        let client = leash.endpoint().connect("reader").await;
        let served = client.try_one("SELECT inet_server_port()").await;
        client.close().await;
        served.map_or_else(Ok, Err)
    })
    .await;
    assert_eq!(sqlstate(&refusal), "08006", "{refusal:?}");
    leash.event("connection_closed", |event| event["reason"] == "replaced").await;
    end(leash).await;
}
