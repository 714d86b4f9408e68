//! Clients and servers that die, in every state that a conversation can be in.

use std::time::Duration;

use crate::support::raw::{self, PROTOCOL_3_0, Raw};
use crate::support::{
    Database, Endpoint, Leash, Mode, Server, eventually, eventually_or, finish, in_both_modes, settled,
    signal, within,
};

use super::healed;

in_both_modes! {
    clients_hang_up,
    clients_are_reset,
    backends_are_terminated,
    backends_are_killed,
    the_server_stops_and_starts,
}

/// States before the client has a server connection.
const AT_THE_DOOR: [&str; 5] =
    ["connected", "half a startup packet", "asked for TLS", "logged in", "half a header"];

/// States in which the client has a server connection, in session mode at least.
const LINKED: [&str; 18] = [
    "at rest",
    "half a query",
    "half a parse",
    "in a transaction",
    "in a failed transaction",
    "in mid-statement",
    "statements on their way",
    "in a batch",
    "in a batch without a flush",
    "in a batch that failed",
    "with a portal suspended",
    "in a copy in",
    "in mid-message of a copy in",
    "in a copy in of a batch",
    "in a copy out",
    "rows wait to be read",
    "listening",
    "with a statement of its own",
];

/// Brings a new connection into a state.
async fn bring_into(state: &str, endpoint: &Endpoint) -> Raw {
    let mut client = Raw::connect(endpoint.port).await;
    match state {
        "connected" => return client,
        "half a startup packet" => {
            client.send(b"\0\0\0\x63\0\x03\0\0user\0ap").await;
            return client;
        }
        "asked for TLS" => {
            client.send_untagged(&raw::SSL_REQUEST.to_be_bytes()).await;
            assert_eq!(client.byte().await, 'N');
            return client;
        }
        _ => {}
    }
    client.startup(PROTOCOL_3_0, &[("user", &endpoint.user), ("database", &endpoint.database)]).await;
    client.until_ready().await;
    let insert = |n: u32| format!("INSERT INTO t VALUES ({n})");
    let bytes = match state {
        "logged in" => Vec::new(),
        "half a header" => b"Q\0\0".to_vec(),
        // More of it than pgleash looks at.
        "half a query" => raw::query(&" ".repeat(1000))[..900].to_vec(),
        "half a parse" => raw::parse("s1", &insert(1))[..7].to_vec(),
        "in mid-statement" => raw::query("INSERT INTO t SELECT 1 FROM pg_sleep(300)"),
        "statements on their way" => {
            let batch =
                [raw::parse("", &insert(1)), raw::bind("", &[]), raw::execute(0), raw::sync()].concat();
            [raw::query("BEGIN"), batch.repeat(50), raw::query("SELECT pg_sleep(300)"), batch].concat()
        }
        "in a batch without a flush" => {
            [raw::parse("", &insert(1)), raw::bind("", &[]), raw::execute(0)].concat()
        }
        "rows wait to be read" => raw::query("SELECT repeat('x', 1000) FROM generate_series(1, 1000000)"),
        _ => return talk_into(state, client).await,
    };
    client.send(&bytes).await;
    client
}

/// Those that take more than one exchange.
async fn talk_into(state: &str, mut client: Raw) -> Raw {
    let batch = |sql: &str, rows| [raw::parse("", sql), raw::bind("", &[]), raw::execute(rows)].concat();
    let (said, reply) = match state {
        "at rest" => (raw::query("SELECT 1"), "TDCZ"),
        "in a transaction" => (raw::query("BEGIN; INSERT INTO t VALUES (1)"), "CCZ"),
        "in a failed transaction" => (raw::query("BEGIN; SELECT 1/0"), "CEZ"),
        "in a batch" => ([batch("INSERT INTO t VALUES (1)", 0), raw::flush()].concat(), "12C"),
        "in a batch that failed" => (raw::parse("", "selec"), "E"),
        "with a portal suspended" => (
            [raw::query("BEGIN"), batch("SELECT generate_series(1, 9)", 2), raw::sync()].concat(),
            "CZ12DDsZ",
        ),
        "in a copy in" | "in mid-message of a copy in" => (raw::query("COPY t FROM STDIN"), "G"),
        "in a copy in of a batch" => ([batch("COPY t FROM STDIN", 0), raw::flush()].concat(), "12G"),
        "in a copy out" => {
            (raw::query("COPY (SELECT repeat('x', 999) FROM generate_series(1, 1000000)) TO STDOUT"), "Hd")
        }
        "listening" => (raw::query("LISTEN news"), "CZ"),
        "with a statement of its own" => ([raw::parse("s1", "SELECT 1"), raw::sync()].concat(), "1Z"),
        other => panic!("no such state: {other}"),
    };
    client.send(&said).await;
    for tag in reply.chars() {
        client.expect(tag).await;
    }
    match state {
        "in a copy in" | "in a copy in of a batch" => client.send(&raw::copy_data("1\n2\n")).await,
        "in mid-message of a copy in" => client.send(&raw::copy_data("1\n2\n")[..6]).await,
        _ => {}
    }
    client
}

/// A pool of one, so that what a death leaves behind meets the next client.
async fn scene(server: &Server, mode: Mode) -> (Database, Leash) {
    let database = server.database().await;
    let told = &["leak_detected", "client_refused", "upstream_failed", "checkout_timeout"];
    let setup = Leash::on(&database).mode(mode).set("pool.size", 1).set("pool.wait_timeout", "2s");
    let leash = setup.expecting(told).start().await;
    let client = database.direct().connect("setup").await;
    // It must outlive a crash.
    client.batch_execute("SET synchronous_commit = on; CREATE TABLE t (n int)").await.unwrap();
    client.close().await;
    (database, leash)
}

async fn clients_hang_up(mode: Mode) {
    clients_die(mode, Raw::kill).await;
}

async fn clients_are_reset(mode: Mode) {
    clients_die(mode, Raw::reset).await;
}

async fn clients_die(mode: Mode, die: fn(Raw)) {
    let (database, leash) = scene(Server::shared(), mode).await;
    for state in AT_THE_DOOR.iter().chain(&LINKED) {
        let client = bring_into(state, &leash.endpoint()).await;
        arrived(&leash, state, mode).await;
        die(client);
        healed(&leash, &database, state).await;
    }
    // In the queue: somebody else has the one connection.
    let holder = leash.endpoint().connect("holder").await;
    holder.batch_execute("BEGIN").await.unwrap();
    let mut client = leash.endpoint().raw("waiting").await;
    client.send(&raw::query("INSERT INTO t VALUES (1)")).await;
    leash.pool_when("it waits", |pool| pool["waiting"] == 1).await;
    die(client);
    leash.pool_when("it waits no more", |pool| pool["waiting"] == 0).await;
    holder.batch_execute("COMMIT").await.unwrap();
    holder.close().await;
    healed(&leash, &database, "in the queue").await;
    finish(leash, &database).await;
}

/// Whether a client in this state holds a connection; `None` if that is not certain at any moment.
fn holds(state: &str, mode: Mode) -> Option<bool> {
    match state {
        "at rest" => Some(mode == Mode::Session),
        // In transaction mode nobody borrows for a name that has not come; in session mode, in a moment.
        "half a parse" | "with a statement of its own" => None,
        state if LINKED.contains(&state) => Some(true),
        _ => Some(false),
    }
}

/// Waits until pgleash is where the client is.
async fn arrived(leash: &Leash, state: &str, mode: Mode) {
    match holds(state, mode) {
        Some(true) => drop(leash.pool_when(state, |pool| pool["holders"][0]["backend_pid"].is_u64()).await),
        Some(false) => settled(leash).await,
        None => {}
    }
}

/// How a backend's death is told, if the client has one and is told at all: by the server, or by pgleash.
const DEATHS: [&str; 4] = ["57P01", "57P02", "57P03", "08006"];

async fn backends_are_terminated(mode: Mode) {
    let (database, leash) = scene(Server::shared(), mode).await;
    let admin = database.admin().await;
    for state in LINKED {
        let client = bring_into(state, &leash.endpoint()).await;
        arrived(&leash, state, mode).await;
        let sql = "SELECT coalesce(bool_and(pg_terminate_backend(pid)), false) FROM pg_stat_activity \
                   WHERE datname = current_database() AND application_name <> 'harness' AND backend_type = 'client backend'";
        assert_eq!(admin.one(sql).await, "t", "{state}: there is a backend");
        ends_or_goes_on(client, state, mode).await;
        healed(&leash, &database, state).await;
    }
    admin.close().await;
    finish(leash, &database).await;
}

/// SIGKILL: the server cannot say a last word, and restarts with all its other backends.
async fn backends_are_killed(mode: Mode) {
    let server = Server::private();
    let (database, leash) = scene(&server, mode).await;
    for state in LINKED {
        let client = bring_into(state, &leash.endpoint()).await;
        arrived(&leash, state, mode).await;
        let admin = database.admin().await;
        let pids = admin.one(BACKENDS).await;
        signal("KILL", pids.split(' ').next().unwrap());
        // The server ends all other connections before it comes back, this one too.
        eventually("the server has noticed", async || admin.try_one("SELECT 1").await.err()).await;
        ends_or_goes_on(client, state, mode).await;
        returns(&database).await;
        healed(&leash, &database, state).await;
    }
    finish(leash, &database).await;
}

const BACKENDS: &str = "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity \
                        WHERE datname = current_database() AND application_name <> 'harness'";

async fn the_server_stops_and_starts(mode: Mode) {
    let mut server = Server::private();
    let (database, leash) = scene(&server, mode).await;
    for state in LINKED {
        let client = bring_into(state, &leash.endpoint()).await;
        arrived(&leash, state, mode).await;
        server.stop();
        ends_or_goes_on(client, state, mode).await;
        server.start();
        healed(&leash, &database, state).await;
    }
    finish(leash, &database).await;
}

/// Waits until the server lets clients in again.
async fn returns(database: &Database) {
    eventually_or("the server is back", async || {
        let client = database.direct().try_connect("harness").await.map_err(|error| format!("{error:?}"))?;
        client.close().await;
        Ok(())
    })
    .await;
}

/// A client that holds a connection is told of its death by a FATAL, and by nothing after it, unless it
/// has half a message before it. One that holds none does not notice, and is let go as ever.
async fn ends_or_goes_on(mut client: Raw, state: &str, mode: Mode) {
    let holds = holds(state, mode);
    if holds != Some(true) {
        client.shut_write().await;
    }
    let frames = within(Duration::from_secs(10), state, client.until_closed()).await;
    let fatal = |frame: &&raw::Frame| frame.tag == 'E' && frame.field('V') == "FATAL";
    let told: Vec<_> = frames.iter().filter(fatal).collect();
    for error in &told {
        assert!(DEATHS.contains(&error.field('C').as_str()), "{state}: {}", raw::describe(error));
    }
    let in_mid_message = ["in a copy out", "rows wait to be read"].contains(&state);
    let expected = match holds {
        Some(true) if !in_mid_message => 1..=1,
        Some(true) | None => 0..=1,
        Some(false) => 0..=0,
    };
    assert!(expected.contains(&told.len()), "{state}: told {} times: {}", told.len(), raw::tags(&frames));
    if !told.is_empty() {
        assert!(frames.last().as_ref().is_some_and(fatal), "{state}: something came after the last word");
    }
}
