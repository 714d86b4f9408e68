//! Prepared statements that clients with the same settings share: what one has had made on a connection
//! serves the others, and nobody is served what was made under other settings.

use crate::support::raw::{self, Frame, Raw, rows, tags};
use crate::support::{Database, Leash, Mode, Server, finish};

const KEPT: &str =
    "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql AND statement NOT LIKE '%pg_prepared%'";

/// Whether the word in it is NULL or a text is decided when it is parsed, by `array_nulls`.
const NULLS: &str = "SELECT CASE WHEN ('{NULL}'::text[])[1] IS NULL THEN 'null' ELSE 'text' END";

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
    // That of the one who came first, with the plan that the server has made for it.
    let name =
        clients[1].one("SELECT min(name) FROM pg_prepared_statements WHERE statement LIKE '%+ 1'").await;
    assert_eq!(name, "pgleash_1");
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
    let text = "SELECT extract(epoch FROM '2026-01-01 00:00'::timestamptz)::bigint";
    let mut utc = scene.client("utc").await;
    utc.query("SET timezone TO 'UTC'").await;
    let mut tokyo = scene.client("tokyo").await;
    tokyo.query("SET timezone TO 'Asia/Tokyo'").await;
    let mut utc_too = scene.client("utc-too").await;
    utc_too.query("SET timezone TO 'UTC'").await;
    for (client, expected) in
        [(&mut utc, "1767225600"), (&mut tokyo, "1767193200"), (&mut utc_too, "1767225600")]
    {
        prepare(client, "s", text).await;
        assert_eq!(run(client, "s", &[]).await, expected);
    }
    assert_eq!(run(&mut tokyo, "s", &[]).await, "1767193200");
    assert_eq!(run(&mut utc, "s", &[]).await, "1767225600");
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

/// Nor is a copy of a shared one that had to be made while something was set for a transaction.
#[tokio::test]
async fn what_is_copied_under_a_local_setting_goes_with_the_transaction() {
    let scene = Scene::with_connections(2).await;
    let mut clients = Vec::new();
    for app in ["first", "second", "holder", "next-holder"] {
        clients.push(scene.client(app).await);
    }
    let [first, second, holder, next] = &mut clients[..] else { unreachable!() };
    holder.query("BEGIN").await;
    for client in [&mut *first, &mut *second] {
        prepare(client, "s", NULLS).await;
        assert_eq!(run(client, "s", &[]).await, "null");
    }
    next.query("BEGIN").await;
    holder.query("COMMIT").await;
    assert_eq!(tags(&first.query("BEGIN; SET LOCAL array_nulls = off").await), "CCZ");
    assert_eq!(run(first, "s", &[]).await, "text", "it is made on the other connection");
    assert_eq!(tags(&first.query("COMMIT").await), "CZ");
    assert_eq!(run(second, "s", &[]).await, "null");
    assert_eq!(run(first, "s", &[]).await, "null");
    next.query("COMMIT").await;
    scene.end(clients).await;
}
