//! Prepared statements that clients with the same settings share: what one has had made on a connection
//! serves the others, and nobody is served what was made under other settings.

use crate::support::raw::{self, Frame, Raw, rows, tags};
use crate::support::{Database, Leash, Mode, Server, finish};

const KEPT: &str =
    "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql AND statement NOT LIKE '%pg_prepared%'";

/// Whether the word in it is NULL or a text is decided when it is parsed, by `array_nulls`.
const NULLS: &str = "SELECT CASE WHEN ('{NULL}'::text[])[1] IS NULL THEN 'null' ELSE 'text' END";

/// A moment whose literal is read by TimeZone.
const NEW_YEAR: &str = "SELECT extract(epoch FROM '2026-01-01 00:00'::timestamptz)::bigint";
const IN_UTC: &str = "1767225600";

mod meanings;
mod rough;
mod within;

struct Scene {
    database: Database,
    leash: Leash,
}

impl Scene {
    /// With one connection, which all clients have in turn.
    async fn new() -> Self {
        Self::with_connections(1).await
    }

    async fn with_connections(size: usize) -> Self {
        let database = Server::shared().database().await;
        let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", size).start().await;
        Self { database, leash }
    }

    async fn client(&self, app: &str) -> Raw {
        Raw::login(&self.leash.endpoint(), app).await
    }

    async fn end(self, clients: impl IntoIterator<Item = Raw>) {
        for client in clients {
            client.close().await;
        }
        finish(self.leash, &self.database).await;
    }
}

async fn say(client: &mut Raw, messages: &[Vec<u8>]) -> Vec<Frame> {
    client.send(&messages.concat()).await;
    client.until_ready().await
}

async fn prepare(client: &mut Raw, name: &str, sql: &str) {
    assert_eq!(tags(&say(client, &[raw::parse(name, sql), raw::sync()]).await), "1Z", "{sql}");
}

async fn run(client: &mut Raw, name: &str, parameters: &[&str]) -> String {
    let answer = say(client, &[raw::bind(name, parameters), raw::execute(0), raw::sync()]).await;
    assert_eq!(tags(&answer), "2DCZ");
    rows(&answer)[0][0].clone().unwrap_or_default()
}

/// Each of many clients parses the same text; the connection has it once. Copies are closed with the next
/// that is made, so one may be left.
#[tokio::test]
async fn what_all_clients_prepare_a_connection_has_once() {
    let scene = Scene::new().await;
    let mut clients = Vec::new();
    for n in 0..20 {
        let mut client = scene.client(&format!("pay-{n}")).await;
        prepare(&mut client, "s", "SELECT $1::int + 1").await;
        assert_eq!(run(&mut client, "s", &["41"]).await, "42");
        clients.push(client);
    }
    let kept: u32 = clients[0].one(KEPT).await.parse().unwrap();
    assert!(kept <= 2, "{kept} copies");
    for client in &mut clients {
        assert_eq!(run(client, "s", &["1"]).await, "2");
    }
    scene.end(clients).await;
}

/// A client's own name ends with its Close, and not its neighbour's.
#[tokio::test]
async fn a_name_that_is_closed_is_closed_for_its_client_alone() {
    let scene = Scene::new().await;
    let (mut one, mut two) = (scene.client("one").await, scene.client("two").await);
    prepare(&mut one, "s", "SELECT 'same'").await;
    prepare(&mut two, "s", "SELECT 'same'").await;
    assert_eq!(tags(&say(&mut one, &[raw::message(b'C', b"Ss\0"), raw::sync()]).await), "3Z");
    let gone = say(&mut one, &[raw::bind("s", &[]), raw::sync()]).await;
    assert_eq!(tags(&gone), "EZ");
    assert_eq!(run(&mut two, "s", &[]).await, "same");
    assert_eq!(tags(&two.query("DEALLOCATE s").await), "CZ");
    prepare(&mut one, "s", "SELECT 'other'").await;
    assert_eq!(run(&mut one, "s", &[]).await, "other");
    scene.end([one, two]).await;
}

/// A literal is read by the settings of the moment at which it is parsed: whoever has others does not get it.
#[tokio::test]
async fn the_same_text_under_other_settings_is_another_statement() {
    let scene = Scene::new().await;
    let mut utc = scene.client("utc").await;
    utc.query("SET timezone TO 'UTC'").await;
    let mut tokyo = scene.client("tokyo").await;
    tokyo.query("SET timezone TO 'Asia/Tokyo'").await;
    let mut utc_too = scene.client("utc-too").await;
    utc_too.query("SET timezone TO 'UTC'").await;
    for (client, expected) in [(&mut utc, IN_UTC), (&mut tokyo, "1767193200"), (&mut utc_too, IN_UTC)] {
        prepare(client, "s", NEW_YEAR).await;
        assert_eq!(run(client, "s", &[]).await, expected);
    }
    assert_eq!(run(&mut tokyo, "s", &[]).await, "1767193200");
    assert_eq!(run(&mut utc, "s", &[]).await, IN_UTC);
    scene.end([utc, tokyo, utc_too]).await;
}

/// What is set for a transaction alone is the server's secret: statements that are made in it are not shared.
#[tokio::test]
async fn what_is_made_under_a_local_setting_is_not_shared() {
    let scene = Scene::new().await;
    let (mut local, mut plain) = (scene.client("local").await, scene.client("plain").await);
    assert_eq!(tags(&local.query("BEGIN; SET LOCAL array_nulls = off").await), "CCZ");
    prepare(&mut local, "s", NULLS).await;
    assert_eq!(run(&mut local, "s", &[]).await, "text");
    assert_eq!(tags(&local.query("COMMIT").await), "CZ");
    prepare(&mut plain, "s", NULLS).await;
    assert_eq!(run(&mut plain, "s", &[]).await, "null");
    assert_eq!(run(&mut local, "s", &[]).await, "text", "as it was parsed");

    scene.end([local, plain]).await;
}

/// Four clients of two connections, of which the first two are together on one, and then on the other.
struct Movers {
    scene: Scene,
    clients: Vec<Raw>,
}

impl Movers {
    async fn new() -> Self {
        let scene = Scene::with_connections(2).await;
        let mut clients = Vec::new();
        for app in ["first", "second", "holder", "next-holder"] {
            clients.push(scene.client(app).await);
        }
        clients[2].query("BEGIN").await;
        Self { scene, clients }
    }

    async fn move_on(&mut self) {
        self.clients[3].query("BEGIN").await;
        self.clients[2].query("COMMIT").await;
        self.clients.swap(2, 3);
    }

    fn both(&mut self) -> (&mut Raw, &mut Raw) {
        let [first, second, ..] = &mut self.clients[..] else { unreachable!() };
        (first, second)
    }

    async fn end(mut self) {
        self.clients[2].query("COMMIT").await;
        self.scene.end(self.clients).await;
    }
}

/// Nor is a copy of a shared one that had to be made while something was set for a transaction.
#[tokio::test]
async fn what_is_copied_under_a_local_setting_is_one_clients() {
    let mut movers = Movers::new().await;
    let (first, second) = movers.both();
    for client in [&mut *first, &mut *second] {
        prepare(client, "s", NULLS).await;
        assert_eq!(run(client, "s", &[]).await, "null");
    }
    movers.move_on().await;
    let (first, second) = movers.both();
    assert_eq!(tags(&first.query("BEGIN; SET LOCAL array_nulls = off").await), "CCZ");
    assert_eq!(run(first, "s", &[]).await, "text", "it is made on the other connection");
    assert_eq!(tags(&first.query("COMMIT").await), "CZ");
    assert_eq!(run(second, "s", &[]).await, "null");
    assert_eq!(run(first, "s", &[]).await, "null");
    movers.end().await;
}

/// A client whose settings are others by now does not make copies for those who have the old ones.
#[tokio::test]
async fn who_has_set_something_since_does_not_share_any_more() {
    let mut movers = Movers::new().await;
    let (first, second) = movers.both();
    for client in [&mut *first, &mut *second] {
        client.query("SET timezone TO 'UTC'").await;
        prepare(client, "s", NEW_YEAR).await;
        assert_eq!(run(client, "s", &[]).await, IN_UTC);
    }
    first.query("SET timezone TO 'Asia/Tokyo'").await;
    movers.move_on().await;
    let (first, second) = movers.both();
    run(first, "s", &[]).await;
    assert_eq!(run(second, "s", &[]).await, IN_UTC);
    movers.end().await;
}

/// The server analyses a statement anew after an ANALYZE, under the settings of whoever comes first.
#[tokio::test]
async fn what_is_analysed_anew_under_a_local_setting_is_one_clients() {
    let scene = Scene::new().await;
    let (mut one, mut two) = (scene.client("one").await, scene.client("two").await);
    one.query("CREATE TABLE moments AS SELECT 1 AS n").await;
    let text = &format!("{NEW_YEAR} FROM moments");
    for client in [&mut one, &mut two] {
        client.query("SET timezone TO 'UTC'").await;
        prepare(client, "s", text).await;
        assert_eq!(run(client, "s", &[]).await, IN_UTC);
    }
    two.query("ANALYZE moments").await;
    assert_eq!(tags(&one.query("BEGIN; SET LOCAL timezone TO 'Asia/Tokyo'").await), "CCSZ");
    run(&mut one, "s", &[]).await;
    one.query("COMMIT").await;
    assert_eq!(run(&mut two, "s", &[]).await, IN_UTC);
    let mut fresh = scene.client("fresh").await;
    fresh.query("SET timezone TO 'UTC'").await;
    prepare(&mut fresh, "s", text).await;
    assert_eq!(run(&mut fresh, "s", &[]).await, IN_UTC);
    scene.end([one, two, fresh]).await;
}

/// What is parsed after names have come to mean something else is never what was parsed before.
#[tokio::test]
async fn what_is_parsed_anew_means_what_names_mean_now() {
    let mut movers = Movers::new().await;
    let (first, second) = movers.both();
    first.query("CREATE FUNCTION kind(bigint) RETURNS text LANGUAGE sql AS $$ SELECT 'bigint' $$").await;
    for client in [&mut *first, &mut *second] {
        prepare(client, "s", "SELECT kind(1)").await;
        assert_eq!(run(client, "s", &[]).await, "bigint");
    }
    movers.move_on().await;
    let (first, second) = movers.both();
    assert_eq!((run(first, "s", &[]).await, run(second, "s", &[]).await), ("bigint".into(), "bigint".into()));
    first.query("CREATE FUNCTION kind(int) RETURNS text LANGUAGE sql AS $$ SELECT 'int' $$").await;
    assert_eq!(tags(&say(first, &[raw::message(b'C', b"Ss\0"), raw::sync()]).await), "3Z");
    prepare(first, "s", "SELECT kind(1)").await;
    assert_eq!(run(first, "s", &[]).await, "int");
    movers.move_on().await;
    let (first, _) = movers.both();
    assert_eq!(run(first, "s", &[]).await, "int");
    movers.end().await;
}

/// A copy that was made under what one transaction had set is not used in the next one, which has set something else.
#[tokio::test]
async fn what_one_transaction_has_set_is_not_the_next_ones() {
    let scene = Scene::new().await;
    let mut one = scene.client("one").await;
    one.query("SET timezone TO 'UTC'").await;
    prepare(&mut one, "s", NEW_YEAR).await;
    assert_eq!(run(&mut one, "s", &[]).await, IN_UTC);
    one.query("BEGIN; SET LOCAL timezone TO 'Asia/Tokyo'").await;
    run(&mut one, "s", &[]).await;
    one.query("COMMIT").await;
    one.query("BEGIN; SET LOCAL array_nulls = off").await;
    assert_eq!(run(&mut one, "s", &[]).await, IN_UTC);
    one.query("COMMIT").await;
    assert_eq!(run(&mut one, "s", &[]).await, IN_UTC);
    one.query("SET timezone TO 'Asia/Tokyo'").await;
    run(&mut one, "s", &[]).await;
    one.query("SET timezone TO 'UTC'").await;
    one.query("SET datestyle TO 'German'").await;
    assert_eq!(run(&mut one, "s", &[]).await, IN_UTC);
    scene.end([one]).await;
}

/// The same for a client that keeps its connection.
#[tokio::test]
async fn what_one_transaction_of_a_pinned_client_has_set_is_not_the_next_ones() {
    for set in ["SET LOCAL timezone TO 'Asia/Tokyo'", "SELECT set_config('timezone', 'Asia/Tokyo', true)"] {
        let scene = Scene::new().await;
        let mut one = scene.client("one").await;
        one.query("SET timezone TO 'UTC'").await;
        prepare(&mut one, "s", NEW_YEAR).await;
        assert_eq!(run(&mut one, "s", &[]).await, IN_UTC);
        one.query("LISTEN x").await;
        one.query(&format!("BEGIN; {set}")).await;
        run(&mut one, "s", &[]).await;
        one.query("COMMIT").await;
        assert_eq!(run(&mut one, "s", &[]).await, IN_UTC, "{set}");
        scene.end([one]).await;
    }
}

/// Two statements of a client with the same text, parsed under different settings, are two.
#[tokio::test]
async fn what_was_parsed_twice_is_two_statements() {
    let scene = Scene::new().await;
    let mut one = scene.client("one").await;
    one.query("BEGIN; SET LOCAL array_nulls = off").await;
    prepare(&mut one, "off", NULLS).await;
    one.query("COMMIT").await;
    one.query("BEGIN; SET LOCAL timezone TO 'UTC'").await;
    prepare(&mut one, "on", NULLS).await;
    one.query("COMMIT").await;
    assert_eq!(run(&mut one, "on", &[]).await, "null");
    assert_eq!(run(&mut one, "off", &[]).await, "text");
    let moment = "SELECT extract(epoch FROM 'now'::timestamptz)";
    prepare(&mut one, "first", moment).await;
    let first = run(&mut one, "first", &[]).await;
    prepare(&mut one, "second", moment).await;
    assert_ne!(run(&mut one, "second", &[]).await, first);
    assert_eq!(run(&mut one, "first", &[]).await, first);
    scene.end([one]).await;
}

/// What the server takes for constant may be so for one transaction only, such as whose rows it sees.
#[tokio::test]
async fn what_one_transaction_has_folded_is_nobody_elses() {
    let scene = Scene::new().await;
    let (mut one, mut two) = (scene.client("one").await, scene.client("two").await);
    one.query("CREATE FUNCTION tenant() RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT current_setting('app.tenant') $$")
        .await;
    for client in [&mut one, &mut two] {
        prepare(client, "s", "SELECT tenant()").await;
    }
    for tenant in 1..5 {
        let client = if tenant % 2 == 1 { &mut one } else { &mut two };
        client.query(&format!("BEGIN; SET LOCAL app.tenant = '{tenant}'")).await;
        assert_eq!(run(client, "s", &[]).await, tenant.to_string());
        client.query("COMMIT").await;
    }
    scene.end([one, two]).await;
}

/// The letters of a text are read once, by the server of one's own. What would be read as something else has to be made
/// anew, and its client is told so as after a change of its tables.
#[tokio::test]
async fn a_text_is_never_read_as_another_one() {
    for (text, set, back) in [
        ("SELECT length('é')", "SET client_encoding TO 'LATIN1'", "SET client_encoding TO 'UTF8'"),
        (
            "SELECT length('\\n') - 1",
            "SET standard_conforming_strings = off",
            "SET standard_conforming_strings = on",
        ),
    ] {
        let scene = Scene::new().await;
        let mut one = scene.client("one").await;
        prepare(&mut one, "s", text).await;
        assert_eq!(run(&mut one, "s", &[]).await, "1");
        one.query(set).await;
        let answer = say(&mut one, &[raw::bind("s", &[]), raw::execute(0), raw::sync()]).await;
        assert_eq!((tags(&answer).as_str(), answer[0].field('C').as_str()), ("EZ", "0A000"), "{text}");
        one.query(back).await;
        assert_eq!(run(&mut one, "s", &[]).await, "1");
        scene.end([one]).await;
    }
}

/// What is sent behind the end of a transaction, before that is answered, is used under what is set then.
#[tokio::test]
async fn what_a_transaction_has_set_ends_with_it_in_a_pipeline() {
    let scene = Scene::new().await;
    let mut one = scene.client("one").await;
    one.query("SET timezone TO 'UTC'").await;
    prepare(&mut one, "s", NEW_YEAR).await;
    let uses = [raw::bind("s", &[]), raw::execute(0), raw::sync()].concat();
    let begin = raw::query("BEGIN; SET LOCAL timezone TO 'Asia/Tokyo'");
    one.send(&[begin, uses.clone(), raw::query("COMMIT"), uses].concat()).await;
    let mut said = Vec::new();
    for _ in 0..4 {
        said.extend(rows(&one.until_ready().await));
    }
    assert_eq!(said.last().unwrap()[0].as_deref(), Some(IN_UTC), "{said:?}");
    scene.end([one]).await;
}
