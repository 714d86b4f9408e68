//! Readers that do not read. What they should read waits where it comes from: pgleash holds the writer
//! back and gathers nothing.

use crate::support::raw::{self, Raw};
use crate::support::{Leash, Mode, Server, eventually, finish, in_both_modes, signal};

use super::{healed, standstill};

in_both_modes! {
    a_client_that_does_not_read_holds_the_server_back,
    a_server_that_does_not_read_holds_the_client_back,
}

/// What pgleash's memory may grow by, for any amount that waits.
const BOUND: u64 = 4 << 20;
const MANY: usize = 200_000;

async fn a_client_that_does_not_read_holds_the_server_back(mode: Mode) {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).mode(mode).set("pool.size", 2).start().await;
    let mut setup = leash.endpoint().raw("setup").await;
    setup.query("CREATE TABLE t (n int)").await;
    setup.close().await;
    let admin = database.admin().await;
    let before = leash.peak_memory();
    // 200 MB in rows of a kilobyte, and in one row.
    for sql in [
        format!("SELECT repeat('x', 1000) FROM generate_series(1, {MANY})"),
        format!("SELECT repeat('y', {MANY}000)"),
    ] {
        let mut reader = leash.endpoint().raw("reader").await;
        reader.send(&raw::query(&sql)).await;
        let blocked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND wait_event = 'ClientWrite'";
        eventually("the server is held back", async || (admin.one(blocked).await == "1").then_some(())).await;
        let grown = standstill(&leash).await - before;
        assert!(grown < BOUND, "memory grew by {} kB while nobody read", grown >> 10);
        let other = leash.endpoint().connect("other").await;
        assert_eq!(other.one("SELECT 'served meanwhile'").await, "served meanwhile");
        other.close().await;
        // It reads after all, and misses nothing.
        let digests = reader.digests_until_ready().await;
        let bytes: usize =
            digests.iter().filter(|(tag, ..)| *tag == 'D').map(|(_, length, _)| length - 6).sum();
        assert_eq!(bytes, MANY * 1000);
        reader.close().await;
        let grown = leash.peak_memory() - before;
        assert!(grown < BOUND, "memory grew by {} kB while it was read", grown >> 10);
    }
    admin.close().await;
    healed(&leash, &database, "slow readers").await;
    finish(leash, &database).await;
}

async fn a_server_that_does_not_read_holds_the_client_back(mode: Mode) {
    // Of its own: a stopped backend would hold up what others do on a shared server.
    let server = Server::private();
    let database = server.database().await;
    let leash =
        Leash::on(&database).mode(mode).set("pool.size", 2).expecting(&["leak_detected"]).start().await;
    let mut setup = leash.endpoint().raw("setup").await;
    setup.query("CREATE TABLE t (n int); CREATE TABLE s (s text)").await;
    setup.close().await;
    let before = leash.peak_memory();
    let line = raw::copy_data(&("z".repeat(99_999) + "\n"));
    let parse = raw::parse("", "SELECT length($1)");
    for (what, begin, reply, more, end) in [
        ("a copy", raw::query("COPY s FROM STDIN"), "G", line, raw::copy_done()),
        (
            "a parameter",
            [parse, raw::flush()].concat(),
            "1",
            raw::bind("", &["w".repeat(50_000_000).as_str()]),
            raw::sync(),
        ),
    ] {
        let mut writer = leash.endpoint().raw("writer").await;
        let backend = writer.one("SELECT 1").await;
        assert_eq!(backend, "1");
        writer.send(&begin).await;
        for tag in reply.chars() {
            writer.expect(tag).await;
        }
        let pool = leash.pool_when("it is linked", |pool| pool["holders"][0]["backend_pid"].is_u64()).await;
        let backend = pool["holders"][0]["backend_pid"].to_string();
        signal("STOP", &backend);
        writer.send_until_full(&more).await;
        let grown = standstill(&leash).await - before;
        signal("CONT", &backend);
        assert!(grown < BOUND, "{what}: memory grew by {} kB while the server did not read", grown >> 10);
        // The frame that did not go out whole cannot be finished any more.
        drop(end);
        writer.reset();
        healed(&leash, &database, what).await;
    }
    finish(leash, &database).await;
}

/// A reader that never reads again is nobody's leak while its statement runs; when it dies all is freed.
#[tokio::test]
async fn a_reader_that_dies_unread_frees_everything() {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 1);
    let leash = setup.expecting(&["leak_detected"]).start().await;
    let mut setup = leash.endpoint().raw("setup").await;
    setup.query("CREATE TABLE t (n int)").await;
    setup.close().await;
    for _ in 0..3 {
        let mut reader: Raw = leash.endpoint().raw("reader").await;
        reader.send(&raw::query("SELECT repeat('x', 200000000)")).await;
        reader.expect('T').await;
        reader.reset();
        healed(&leash, &database, "a reader that died").await;
    }
    finish(leash, &database).await;
}
