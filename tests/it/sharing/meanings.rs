//! Prepared statements and DDL: what is parsed when names have come to mean something else is another statement, and
//! what is undone with a transaction has changed nothing for others.

use super::{Scene, prepare, run};
use crate::support::raw::{self, Raw, tags};
use crate::support::{Leash, Mode, Server, eventually};

const WHICH: &str = "SELECT which FROM t";

/// Whatever is not said otherwise is looked for in the schema `front`, then in `public`, which has the table.
async fn scene(connections: usize) -> Scene {
    let database = Server::shared().database().await;
    let admin = database.admin().await;
    let path = format!(
        "CREATE SCHEMA front; GRANT ALL ON SCHEMA front, public TO app, other; \
         ALTER DATABASE {} SET search_path = front, public; \
         CREATE TABLE public.t AS SELECT 'back'::text AS which; GRANT ALL ON public.t TO app, other",
        database.name
    );
    admin.batch_execute(&path).await.unwrap();
    admin.close().await;
    let leash = Leash::on(&database).mode(Mode::Transaction).set("pool.size", connections).start().await;
    Scene { database, leash }
}

async fn all_say(clients: &mut [&mut Raw], sql: &str) {
    for client in clients {
        let answer = client.query(sql).await;
        assert!(!tags(&answer).contains('E'), "{sql}: {answer:?}");
    }
}

async fn pid(client: &mut Raw) -> String {
    client.one("SELECT pg_backend_pid()").await
}

/// Two clients that take one of two connections each in turn, so that the others have the one that is wanted.
struct Holders(Raw, Raw);

impl Holders {
    async fn new(scene: &Scene) -> Self {
        Self(scene.client("holder").await, scene.client("next-holder").await)
    }

    /// From now on the others have this connection, or the other one.
    async fn leave_only(&mut self, wanted: &str, is_wanted: bool) {
        all_say(&mut [&mut self.0], "BEGIN").await;
        if (pid(&mut self.0).await == wanted) == is_wanted {
            all_say(&mut [&mut self.1], "BEGIN").await;
            all_say(&mut [&mut self.0], "COMMIT").await;
            std::mem::swap(&mut self.0, &mut self.1);
        }
    }

    async fn let_go(&mut self) {
        all_say(&mut [&mut self.0], "COMMIT").await;
    }

    /// What `s` says to this client on the connection, or on the other one.
    async fn run_on(&mut self, wanted: &str, is_wanted: bool, client: &mut Raw) -> String {
        self.leave_only(wanted, is_wanted).await;
        let said = run(client, "s", &[]).await;
        self.let_go().await;
        said
    }
}

/// Both connections know the text as it was. A client changes what its name means, and another parses the text for
/// the first time: it means what it says now, on whichever connection it is used.
async fn what_is_parsed_after(changes: &[&str]) {
    let scene = scene(2).await;
    let mut holders = Holders::new(&scene).await;
    let (mut old, mut fresh) = (scene.client("old").await, scene.client("fresh").await);
    prepare(&mut old, "s", WHICH).await;
    let first = pid(&mut old).await;
    for is_first in [true, false] {
        assert_eq!(holders.run_on(&first, is_first, &mut old).await, "back");
    }
    holders.leave_only(&first, true).await;
    for change in changes {
        all_say(&mut [&mut old], change).await;
    }
    prepare(&mut fresh, "s", WHICH).await;
    assert_eq!(run(&mut fresh, "s", &[]).await, "front", "{changes:?}");
    holders.let_go().await;
    assert_eq!(holders.run_on(&first, false, &mut fresh).await, "front", "elsewhere, after {changes:?}");
    scene.end([old, fresh, holders.0, holders.1]).await;
}

#[tokio::test]
async fn a_table_may_be_made_in_many_ways() {
    what_is_parsed_after(&["CREATE TABLE front.t AS SELECT 'front'::text AS which"]).await;
    what_is_parsed_after(&["SELECT 'front'::text AS which INTO front.t"]).await;
    what_is_parsed_after(&["WITH a AS (SELECT 'front'::text AS which) SELECT * INTO front.t FROM a"]).await;
    what_is_parsed_after(&["EXPLAIN ANALYZE CREATE TABLE front.t AS SELECT 'front'::text AS which"]).await;
    what_is_parsed_after(&["DO $$ BEGIN CREATE TABLE front.t AS SELECT 'front'::text AS which; END $$"])
        .await;
    what_is_parsed_after(&[
        "DO $$ BEGIN EXECUTE 'CREATE TABLE front.t AS SELECT ''front''::text AS which'; END $$",
        // What is put together may be anything, so the client would keep its connection.
        "DISCARD ALL",
    ])
    .await;
    what_is_parsed_after(&["BEGIN", "CREATE TABLE front.t AS SELECT 'front'::text AS which", "COMMIT"]).await;
}

/// Until its transaction is over, nobody else sees what DDL has changed: who parses meanwhile parses what was.
#[tokio::test]
async fn what_is_parsed_while_ddl_is_under_way_is_not_what_is_parsed_after_it() {
    let scene = scene(2).await;
    let mut holders = Holders::new(&scene).await;
    let (mut migration, mut old, mut fresh) =
        (scene.client("migration").await, scene.client("old").await, scene.client("fresh").await);
    all_say(&mut [&mut migration], "BEGIN").await;
    all_say(&mut [&mut migration], "CREATE TABLE front.t (which text)").await;
    all_say(&mut [&mut migration], "INSERT INTO front.t VALUES ('front')").await;
    prepare(&mut old, "s", WHICH).await;
    assert_eq!(run(&mut old, "s", &[]).await, "back");
    let its = pid(&mut old).await;
    all_say(&mut [&mut migration], "COMMIT").await;
    holders.leave_only(&its, false).await;
    prepare(&mut fresh, "s", WHICH).await;
    assert_eq!(run(&mut fresh, "s", &[]).await, "front");
    holders.let_go().await;
    assert_eq!(
        holders.run_on(&its, true, &mut fresh).await,
        "front",
        "where it was parsed before the COMMIT"
    );
    scene.end([migration, old, fresh, holders.0, holders.1]).await;
}

/// A text that waits for a lock means what it means when it gets it: by then it is not what it was when it was sent.
#[tokio::test]
async fn what_waits_for_ddl_means_what_it_means_after_it() {
    let scene = scene(2).await;
    let mut holders = Holders::new(&scene).await;
    let (mut migration, mut old, mut fresh) =
        (scene.client("migration").await, scene.client("old").await, scene.client("fresh").await);
    let admin = scene.database.admin().await;
    admin.batch_execute("ALTER TABLE public.t OWNER TO app").await.unwrap();
    prepare(&mut old, "s", WHICH).await;
    let first = pid(&mut old).await;
    for is_first in [true, false] {
        assert_eq!(holders.run_on(&first, is_first, &mut old).await, "back");
    }
    all_say(&mut [&mut migration], "BEGIN").await;
    all_say(&mut [&mut migration], "LOCK TABLE public.t").await;
    all_say(&mut [&mut migration], "CREATE TABLE front.t AS SELECT 'front'::text AS which").await;
    fresh.send(&[raw::parse("s", WHICH), raw::sync()].concat()).await;
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'public.t'::regclass";
    eventually("it waits", async || (admin.one(waits).await == "1").then_some(())).await;
    all_say(&mut [&mut migration], "COMMIT").await;
    assert_eq!(tags(&fresh.until_ready().await), "1Z");
    for is_first in [true, false] {
        assert_eq!(holders.run_on(&first, is_first, &mut fresh).await, "front");
    }
    admin.close().await;
    scene.end([migration, old, fresh, holders.0, holders.1]).await;
}

/// The server analyses a statement anew when its table is dropped, and does not when the drop is rolled back.
#[tokio::test]
async fn what_was_analysed_under_ddl_that_is_rolled_back_is_nobody_elses() {
    for by_name in [false, true] {
        let scene = scene(1).await;
        let (mut one, mut two) = (scene.client("one").await, scene.client("two").await);
        all_say(&mut [&mut one], "CREATE TABLE front.t AS SELECT 'front'::text AS which").await;
        for client in [&mut one, &mut two] {
            prepare(client, "s", WHICH).await;
            assert_eq!(run(client, "s", &[]).await, "front");
        }
        all_say(&mut [&mut one], "BEGIN").await;
        if by_name {
            prepare(&mut one, "drop", "DROP TABLE front.t").await;
            let drop = [raw::bind("drop", &[]), raw::execute(0)];
            let batch = [&drop[..], &[raw::bind("s", &[]), raw::execute(0), raw::sync()]].concat();
            one.send(&batch.concat()).await;
            let answer = one.until_ready().await;
            assert_eq!(raw::rows(&answer)[0][0].as_deref(), Some("back"));
        } else {
            all_say(&mut [&mut one], "DROP TABLE front.t").await;
            assert_eq!(run(&mut one, "s", &[]).await, "back");
        }
        all_say(&mut [&mut one], "ROLLBACK").await;
        assert_eq!(run(&mut two, "s", &[]).await, "front");
        scene.end([one, two]).await;
    }
}

/// Nor does what is parsed in that transaction serve anybody who parses the same later.
#[tokio::test]
async fn what_was_parsed_under_ddl_that_is_rolled_back_is_nobody_elses() {
    let scene = scene(2).await;
    let mut holders = Holders::new(&scene).await;
    let (mut one, mut two) = (scene.client("one").await, scene.client("two").await);
    all_say(&mut [&mut one], "CREATE TABLE front.t AS SELECT 'front'::text AS which").await;
    all_say(&mut [&mut one], "BEGIN").await;
    let its = pid(&mut one).await;
    all_say(&mut [&mut one], "DROP TABLE front.t").await;
    prepare(&mut one, "s", WHICH).await;
    assert_eq!(run(&mut one, "s", &[]).await, "back");
    all_say(&mut [&mut one], "ROLLBACK").await;
    holders.leave_only(&its, false).await;
    prepare(&mut two, "s", WHICH).await;
    assert_eq!(run(&mut two, "s", &[]).await, "front");
    holders.let_go().await;
    assert_eq!(holders.run_on(&its, true, &mut two).await, "front");
    scene.end([one, two, holders.0, holders.1]).await;
}

/// Who migrates is often another user, with a pool of its own.
#[tokio::test]
async fn ddl_of_another_user_counts_for_all_of_its_database() {
    let scene = scene(2).await;
    let mut holders = Holders::new(&scene).await;
    let (mut old, mut fresh) = (scene.client("old").await, scene.client("fresh").await);
    let mut migration = Raw::login(&scene.leash.endpoint().user("other"), "migration").await;
    prepare(&mut old, "s", WHICH).await;
    let first = pid(&mut old).await;
    for is_first in [true, false] {
        assert_eq!(holders.run_on(&first, is_first, &mut old).await, "back");
    }
    let change = "CREATE TABLE front.t (which text); INSERT INTO front.t VALUES ('front'); \
                  GRANT ALL ON front.t TO app";
    all_say(&mut [&mut migration], change).await;
    holders.leave_only(&first, true).await;
    prepare(&mut fresh, "s", WHICH).await;
    assert_eq!(run(&mut fresh, "s", &[]).await, "front");
    holders.let_go().await;
    assert_eq!(holders.run_on(&first, false, &mut fresh).await, "front");
    scene.end([migration, old, fresh, holders.0, holders.1]).await;
}
