//! The stage on which the stories play: a server, pgleash in front of it, clients, and patience.

pub mod endpoint;
pub mod leash;
pub mod metrics;
pub mod psql;
pub mod raw;
pub mod server;
pub mod tap;
pub mod template;
pub mod tls;

use std::future::Future;
use std::time::Duration;

use serde_json::Value;

pub use self::endpoint::{Endpoint, Session, sqlstate};
pub use self::leash::{Leash, Mode, Setup};
pub use self::psql::Psql;
pub use self::server::{Database, Server};

/// How long anything may take that should happen soon.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where a story plays that must end the same with and without pgleash.
pub struct Stage {
    /// Its own database.
    pub database: Database,
    leash: Option<Leash>,
}

impl Stage {
    /// Plain Postgres: keeps the story itself honest.
    pub async fn direct() -> Stage {
        Stage { database: Server::shared().database().await, leash: None }
    }

    /// Through pgleash.
    pub async fn through(mode: Mode) -> Stage {
        let database = Server::shared().database().await;
        let leash = Leash::on(&database).mode(mode).start().await;
        Stage { database, leash: Some(leash) }
    }

    /// Where the story's clients connect.
    pub fn endpoint(&self) -> Endpoint {
        self.leash.as_ref().map_or_else(|| self.database.direct(), Leash::endpoint)
    }

    /// pgleash, if it is there.
    pub fn leash(&self) -> Option<&Leash> {
        self.leash.as_ref()
    }

    /// The curtain: see [`finish`].
    pub async fn finish(self) {
        match self.leash {
            Some(leash) => finish(leash, &self.database).await,
            None => self.database.remove().await,
        }
    }
}

/// Declares each story as three tests: on plain Postgres, and through pgleash in both pool modes.
macro_rules! everywhere {
    ($($story:ident),+ $(,)?) => {
        everywhere!(@stage direct, $crate::support::Stage::direct(), $($story),+);
        everywhere!(@stage session, $crate::support::Stage::through($crate::support::Mode::Session), $($story),+);
        everywhere!(@stage transaction, $crate::support::Stage::through($crate::support::Mode::Transaction), $($story),+);
    };
    (@stage $module:ident, $stage:expr, $($story:ident),+) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $story() {
                    let stage = $stage.await;
                    super::$story(&stage).await;
                    stage.finish().await;
                }
            )+
        }
    };
}
pub(crate) use everywhere;

/// Declares each story as two tests, one for each pool mode.
macro_rules! in_both_modes {
    ($($story:ident),+ $(,)?) => {
        mod session {
            $( #[tokio::test] async fn $story() { super::$story($crate::support::Mode::Session).await; } )+
        }
        mod transaction {
            $( #[tokio::test] async fn $story() { super::$story($crate::support::Mode::Transaction).await; } )+
        }
    };
}
pub(crate) use in_both_modes;

/// What must be true after every story, once its clients have gone: nothing is held, the counts
/// agree, no statement runs on, nothing alarming was said; and pgleash ends cleanly.
pub async fn finish(mut leash: Leash, database: &Database) {
    settled(&leash).await;
    nothing_runs(database).await;
    leash.sigterm();
    let status = leash.wait_exit().await;
    assert_eq!(status.code(), Some(0), "SIGTERM did not end it cleanly: {status}\n{}", leash.stderr());
    nobody_is_left(database).await;
    leash.assert_calm();
    database.remove().await;
}

/// Waits until no connection is held or waited for, and the counts agree.
pub async fn settled(leash: &Leash) {
    eventually_or("every connection is back and the counts agree", async || {
        let snapshot = leash.snapshot().await;
        let pools = snapshot["pools"].as_array().expect("pools is an array");
        let unsettled: Vec<&Value> = pools.iter().filter(|pool| !is_settled(pool)).collect();
        if unsettled.is_empty() { Ok(()) } else { Err(format!("{unsettled:#?}")) }
    })
    .await;
}

/// Waits until no backend of this database but the harness's own has a statement or a transaction.
pub async fn nothing_runs(database: &Database) {
    nobody(database, "AND state <> 'idle'", "no backend runs a statement or a transaction").await;
}

/// Waits until no backend of this database is left.
pub async fn nobody_is_left(database: &Database) {
    nobody(database, "", "no backend is left").await;
}

async fn nobody(database: &Database, filter: &str, what: &str) {
    let admin = database.admin().await;
    let sql = format!(
        "SELECT coalesce(string_agg(format('%s: %s, %s', pid, state, query), '; '), '') FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid() \
         AND application_name <> 'harness' {filter}"
    );
    eventually_or(what, async || {
        let left = admin.one(&sql).await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    admin.close().await;
}

fn is_settled(pool: &Value) -> bool {
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("not a number: {value} in {pool}"));
    let states = pool["connections"].as_object().expect("connections is an object");
    let live: u64 = states.values().map(number).sum();
    pool["holders"].as_array().is_some_and(Vec::is_empty)
        && pool["checkouts"] == pool["checkins"]
        && number(&pool["opened"]) - number(&pool["closed"]) == live
        && number(&pool["connections"]["idle"]) == live
        && pool["waiting"] == 0
}

/// Asks again and again until there is an answer; fails after [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_or(what, async || probe().await.ok_or_else(String::new)).await
}

/// As [`eventually`], and says what was seen last when it fails.
pub async fn eventually_or<T>(what: &str, mut probe: impl AsyncFnMut() -> Result<T, String>) -> T {
    let mut last = String::new();
    let found = async {
        loop {
            match probe().await {
                Ok(found) => return found,
                Err(seen) => last = seen,
            }
            tick().await;
        }
    };
    match tokio::time::timeout(PATIENCE, found).await {
        Ok(found) => found,
        Err(_) => panic!("not within {PATIENCE:?}: {what}; last seen: {last}"),
    }
}

/// The pause between two looks at a condition.
pub async fn tick() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// Fails if something takes longer than it may.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// Sends a signal to a process of the test's own server.
pub fn signal(name: &str, pid: &str) {
    let sent = std::process::Command::new("kill").args([&format!("-{name}"), pid]).output().unwrap();
    assert!(sent.status.success(), "kill -{name} {pid}: {}", String::from_utf8_lossy(&sent.stderr));
}
