//! Parameters that the server does not report: a SET that stands alone goes with its client, and touches nobody else.

use crate::support::raw::{self, Raw, tags};
use crate::support::{Database, Leash, Mode, Server, finish};

/// Clients that have the only connection in turn.
struct Scene {
    database: Database,
    leash: Leash,
    one: Raw,
    two: Raw,
}

impl Scene {
    async fn new() -> Self {
        let database = Server::shared().database().await;
        let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 1).start().await;
        let one = Raw::login(&leash.endpoint(), "one").await;
        let two = Raw::login(&leash.endpoint(), "two").await;
        Self { database, leash, one, two }
    }

    /// Nobody was pinned: the connection is free.
    async fn end(self) {
        self.leash.pool_when("nobody holds it", |pool| pool["holders"].as_array().unwrap().is_empty()).await;
        self.one.close().await;
        self.two.close().await;
        finish(self.leash, &self.database).await;
    }
}

#[tokio::test]
async fn a_set_goes_with_its_client() {
    let mut scene = Scene::new().await;
    let default = scene.two.one("SHOW work_mem").await;
    assert_eq!(tags(&scene.one.query("SET work_mem = '6MB'").await), "CZ");
    assert_eq!(tags(&scene.one.query("SET statement_timeout TO 4321").await), "CZ");
    for _ in 0..2 {
        assert_eq!(scene.two.one("SHOW work_mem").await, default);
        assert_eq!(scene.two.one("SHOW statement_timeout").await, "0");
        assert_eq!(scene.one.one("SHOW work_mem").await, "6MB");
        assert_eq!(scene.one.one("SHOW statement_timeout").await, "4321ms");
    }
    // A RESET pins until all is reset.
    assert_eq!(tags(&scene.one.query("RESET work_mem").await), "CZ");
    assert_eq!(scene.one.one("SHOW work_mem").await, default);
    assert_eq!(scene.one.one("SHOW statement_timeout").await, "4321ms");
    assert!(tags(&scene.one.query("DISCARD ALL").await).ends_with('Z'));
    assert_eq!(scene.two.one("SHOW statement_timeout").await, "0");
    assert_eq!(scene.one.one("SHOW statement_timeout").await, "0");
    scene.end().await;
}

/// As pgjdbc says it on each of its connections.
#[tokio::test]
async fn a_set_by_the_extended_protocol_goes_with_its_client() {
    let mut scene = Scene::new().await;
    let set = [
        raw::parse("", "SET extra_float_digits = 3"),
        raw::bind("", &[]),
        raw::message(b'D', b"P\0"),
        raw::execute(1),
        raw::sync(),
    ];
    scene.one.send(&set.concat()).await;
    assert_eq!(tags(&scene.one.until_ready().await), "12nCZ");
    assert_eq!(scene.two.one("SHOW extra_float_digits").await, "1");
    assert_eq!(scene.one.one("SHOW extra_float_digits").await, "3");
    scene.end().await;
}

/// What is undone with its batch is not set, here or elsewhere.
#[tokio::test]
async fn a_set_whose_batch_fails_is_not_set() {
    let mut scene = Scene::new().await;
    let alone = |sql| [raw::parse("", sql), raw::bind("", &[]), raw::execute(0)].concat();
    let batch = [alone("SET work_mem = '6MB'"), alone("SELECT 1/0"), raw::sync()].concat();
    scene.one.send(&batch).await;
    assert_eq!(tags(&scene.one.until_ready().await), "12C1EZ");
    let shown = scene.one.one("SHOW work_mem").await;
    assert_ne!(shown, "6MB");
    assert!(tags(&scene.one.query("DISCARD ALL").await).ends_with('Z'));
    assert_eq!(scene.two.one("SHOW work_mem").await, shown);
    assert_eq!(tags(&scene.two.query("SET work_mem = 'banana'").await), "EZ");
    assert_eq!(scene.one.one("SHOW work_mem").await, shown);
    assert_eq!(scene.two.one("SHOW work_mem").await, shown);
    scene.end().await;
}
