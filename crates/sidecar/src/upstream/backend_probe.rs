//! Asks the server about its backends, over a connection of its own.
//!
//! Never through the guarded pool: the question must be answered when the pool is exhausted. The
//! connection is opened when it is needed and kept for a short while.

use std::time::Duration;

use pgleash_core::{Moment, RecycleOutcome};
use tokio::sync::Mutex;
use tokio_postgres::SimpleQueryMessage;

use crate::upstream::connector::{Dialled, Target, describe};
use crate::upstream::server_conn::ServerConn;

/// What the server says a backend is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// There is no such backend.
    Gone,
    /// It waits to read from, or write to, its client.
    WaitsForClient,
    /// Anything else.
    Busy,
}

/// A reserved connection, when there is one.
#[derive(Default)]
pub(crate) struct Probe {
    open: Mutex<Option<Line>>,
}

impl Probe {
    /// Longest time for one question, connecting included.
    const PATIENCE: Duration = Duration::from_secs(3);
    /// How long a backend may take to end after its connection was closed.
    const ENDING: Duration = Duration::from_secs(2);
    /// An unused connection is kept for so long.
    const KEEP: Duration = Duration::from_secs(10);

    /// What a backend of this connection is doing.
    ///
    /// # Errors
    /// The server cannot be asked, in words.
    pub(crate) async fn ask(&self, conn: &ServerConn) -> Result<Backend, String> {
        let question = format!("SELECT wait_event_type {}", from_backend(conn));
        let rows = self.query(conn, &question).await?;
        let row = rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_owned()),
            _ => None,
        });
        Ok(match row.as_deref() {
            None => Backend::Gone,
            Some("Client") => Backend::WaitsForClient,
            Some(_) => Backend::Busy,
        })
    }

    /// Waits until the backend of a closed connection is gone, and ends it if it lingers.
    pub(crate) async fn verify_gone(&self, conn: &ServerConn) -> RecycleOutcome {
        match self.gone_within(conn, Self::ENDING).await {
            Ok(true) => return RecycleOutcome::Closed,
            Ok(false) => {}
            Err(_) => return RecycleOutcome::Unverified,
        }
        let end = format!("SELECT pg_catalog.pg_terminate_backend(pid) {}", from_backend(conn));
        match self.query(conn, &end).await {
            Ok(_) if matches!(self.gone_within(conn, Self::ENDING).await, Ok(true)) => RecycleOutcome::Closed,
            _ => RecycleOutcome::BackendLingers,
        }
    }

    async fn gone_within(&self, conn: &ServerConn, limit: Duration) -> Result<bool, String> {
        let deadline = pgleash_clock::now() + limit;
        let mut pause = Duration::from_millis(2);
        loop {
            if self.ask(conn).await? == Backend::Gone {
                return Ok(true);
            }
            if pgleash_clock::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Closes a connection that nobody has used for a while.
    pub(crate) fn expire(&self, now: Moment) {
        if let Ok(mut open) = self.open.try_lock()
            && open.as_ref().is_some_and(|line| now.since(line.used) >= Self::KEEP)
        {
            *open = None;
        }
    }

    /// Of several hosts only the connection's own knows about its backend.
    pub(crate) async fn query(
        &self,
        conn: &ServerConn,
        sql: &str,
    ) -> Result<Vec<SimpleQueryMessage>, String> {
        let asking = async {
            let mut open = self.open.lock().await;
            // Out of its place while it is asked: one that does not answer in time is not asked again.
            let known = open.take().filter(|line| line.leads_to(conn));
            let mut line = match known {
                Some(line) => line,
                None => {
                    let dialled = target_for(&conn.target).dial_at(&conn.address).await;
                    let dialled = dialled.map_err(|error| describe(&error))?;
                    Line { dialled, used: pgleash_clock::now() }
                }
            };
            let rows = line.dialled.client.simple_query(sql).await.map_err(|error| describe(&error))?;
            line.used = pgleash_clock::now();
            *open = Some(line);
            Ok(rows)
        };
        tokio::time::timeout(Self::PATIENCE, asking)
            .await
            .unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }
}

/// The backend of this connection. One that is younger than the connection only has the same number. Both
/// ages are measured each by its own clock, so it does not matter what time the server thinks it is.
fn from_backend(conn: &ServerConn) -> String {
    let age = pgleash_clock::now().since(conn.opened).as_secs_f64() - 1.0;
    format!(
        "FROM pg_catalog.pg_stat_activity WHERE pid = {} AND backend_start <= \
         pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => {age})",
        conn.backend_pid
    )
}

/// The reserved connection; it ends when it is dropped.
struct Line {
    dialled: Dialled,
    used: Moment,
}

impl Line {
    fn leads_to(&self, conn: &ServerConn) -> bool {
        !self.dialled.client.is_closed() && self.dialled.address == conn.address
    }
}

/// The same server and role, under another name and with short deadlines.
fn target_for(target: &Target) -> Target {
    let mut target = target.clone();
    target.postgres.application_name("pgleash probe");
    target.postgres.options("-c statement_timeout=1000 -c lock_timeout=1000");
    target
}

impl Drop for Line {
    fn drop(&mut self) {
        self.dialled.task.abort();
    }
}
