//! Frames of 100 MB. They are compared by length and hash, and pgleash's memory must not see them.

use crate::support::raw::{self, Raw};
use crate::support::{Database, Endpoint, Leash, Mode, Server, finish};

const LARGE: usize = 100_000_000;
/// What pgleash's memory may grow by while frames of [`LARGE`] pass.
const BOUND: u64 = 8 << 20;

/// A row, the same by a portal, a parameter, and COPY both ways in one message each.
#[tokio::test]
async fn frames_of_100_mb_pass_and_are_not_gathered() {
    // Text that is not the same everywhere, so that a piece that is lost, doubled or moved is seen.
    let text: String = (0..LARGE / 1000).map(|n| format!("{n:01000}")).collect();
    let database = Server::shared().database().await;
    let expected = play(&database.direct(), &text).await;
    let lengths: Vec<usize> =
        expected.iter().map(|(_, length, _)| *length).filter(|length| *length > 1000).collect();
    assert_eq!(lengths, [LARGE + 6, LARGE + 6, LARGE + 1], "the server said what it should");
    for mode in [Mode::Session, Mode::Transaction] {
        let database = Server::shared().database().await;
        let leash = Leash::on(&database).mode(mode).start().await;
        warm(&database, &leash.endpoint()).await;
        let before = leash.peak_memory();
        assert_eq!(play(&leash.endpoint(), &text).await, expected, "{mode:?}");
        let grown = leash.peak_memory() - before;
        assert!(grown < BOUND, "{mode:?}: memory grew by {} MB for frames of 100 MB", grown >> 20);
        finish(leash, &database).await;
    }
    database.remove().await;
}

async fn warm(database: &Database, endpoint: &Endpoint) {
    let mut client = Raw::login(endpoint, "warm").await;
    assert_eq!(client.one("SELECT current_database()").await, database.name);
    client.close().await;
}

async fn play(endpoint: &Endpoint, text: &str) -> Vec<(char, usize, String)> {
    let mut client = Raw::login(endpoint, "large").await;
    let sql = "SELECT string_agg(lpad(g::text, 1000, '-'), '') FROM generate_series(1, 100000) g";
    let mut heard = Vec::new();
    client.send(&raw::query(sql)).await;
    heard.extend(client.digests_until_ready().await);
    client
        .send(
            &[raw::parse("", "SELECT $1::text"), raw::bind("", &[text]), raw::execute(0), raw::sync()]
                .concat(),
        )
        .await;
    heard.extend(client.digests_until_ready().await);
    // Not compressed: that would take the server most of the time.
    client.query("CREATE TABLE large (s text); ALTER TABLE large ALTER s SET STORAGE EXTERNAL").await;
    client
        .send(&[raw::query("COPY large FROM STDIN"), raw::copy_data(text), raw::copy_done()].concat())
        .await;
    heard.extend(client.digests_until_ready().await);
    client.send(&raw::query("COPY large TO STDOUT")).await;
    heard.extend(client.digests_until_ready().await);
    client.query("DROP TABLE large").await;
    client.close().await;
    heard
}
