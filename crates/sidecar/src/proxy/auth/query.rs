//! Asks the server for a user's verifier.
//!
//! The question goes over a connection of its own, as the user of `upstream.url`, on which nothing of a client is
//! ever set but the name it gave, as a parameter: no client chooses what `search_path` finds (CVE-2025-12819 was
//! a pooler that let it).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex as StdMutex;
use pgleash_core::{Event, Moment, PoolKey, Sink};
use pgleash_wire::scram::Verifier;
use tokio::sync::Mutex;

use crate::pool::describe;
use crate::upstream::connector::{Dialled, Target};

/// How long an answer counts.
const FRESH: Duration = Duration::from_secs(30);
/// Answers that are kept; beyond it those that are old are forgotten, or all.
const MOST: usize = 1000;
/// How long the server may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection that is older is replaced, so that it does not outlive a change of the server.
const LIFETIME: Duration = Duration::from_secs(600);

const SETUP: &str = "SET search_path = pg_catalog, pg_temp; SET statement_timeout = '5s'";

/// What is known of a user.
#[derive(Clone)]
pub(crate) enum Known {
    /// What a proof is checked against.
    Verifier(Verifier),
    /// There is such a user, but without a SCRAM verifier.
    NoVerifier,
    /// There is none.
    Nobody,
}

/// The question, and the answers.
pub(crate) struct Lookup {
    sql: String,
    target: ArcSwap<Target>,
    /// One question at a time; who waits is bounded by those who may knock, and by the time for a login. Taken out
    /// while it is used, so that one whose question was dropped is not used again.
    conn: Mutex<Option<Open>>,
    answers: StdMutex<HashMap<String, (Moment, Known)>>,
}

/// A connection, when it was opened, and to where.
struct Open {
    dialled: Dialled,
    since: Moment,
    target: Arc<Target>,
}

impl Lookup {
    /// Asks with `sql`, whose `$1` is the user's name, as the user that `target` has, in its database.
    pub(crate) fn new(sql: String, target: &Target) -> Self {
        let user = target.postgres.get_user().unwrap_or_default();
        let database = target.postgres.get_dbname().unwrap_or(user);
        Self {
            sql,
            target: ArcSwap::from_pointee(target.for_login(database, user)),
            conn: Mutex::default(),
            answers: StdMutex::default(),
        }
    }

    /// Asks another server from now on, in whose database and as whom it says.
    pub(crate) fn retarget(&self, target: &Target) {
        let user = target.postgres.get_user().unwrap_or_default();
        let database = target.postgres.get_dbname().unwrap_or(user);
        self.target.store(Arc::new(target.for_login(database, user)));
        self.answers.lock().clear();
    }

    /// Asks, or remembers. Cancel safe.
    ///
    /// # Errors
    /// The server cannot be asked, or does not understand the question; what was wrong went to `sink`.
    pub(crate) async fn ask(&self, user: &str, sink: &Arc<dyn Sink>) -> Result<Known, Unanswered> {
        if let Some(known) = self.remembered(user) {
            return Ok(known);
        }
        let mut conn = self.conn.lock().await;
        // Whoever waited in front may have asked the same.
        if let Some(known) = self.remembered(user) {
            return Ok(known);
        }
        let target = self.target.load_full();
        let usable = conn.take().filter(|open| {
            let young = pgleash_clock::now().since(open.since) < LIFETIME;
            young && Arc::ptr_eq(&open.target, &target) && !open.dialled.client.is_closed()
        });
        let asking = async {
            let open = match usable {
                Some(open) => open,
                None => open(Arc::clone(&target)).await?,
            };
            let known = self.put(&open.dialled, user).await?;
            Ok::<_, tokio_postgres::Error>((open, known))
        };
        let failure = match tokio::time::timeout(PATIENCE, asking).await {
            Ok(Ok((open, known))) => {
                *conn = Some(open);
                self.remember(user, &known);
                return Ok(known);
            }
            Ok(Err(error)) => (error.code().map_or("08006", |code| code.code()).to_owned(), describe(&error)),
            Err(_) => ("08006".to_owned(), "no answer within 5 s".to_owned()),
        };
        let (sqlstate, why) = failure;
        let detail = format!("auth.query: {why}");
        let [database, user] =
            [target.postgres.get_dbname(), target.postgres.get_user()].map(Option::unwrap_or_default);
        sink.emit(Event::UpstreamFailed { pool: PoolKey::new(database, user), sqlstate, detail });
        Err(Unanswered)
    }

    /// A proof has failed: if the answer is not just come, the password may have changed meanwhile.
    pub(crate) fn doubt(&self, user: &str) {
        let mut answers = self.answers.lock();
        let old = |asked: Moment| pgleash_clock::now().since(asked) > Duration::from_secs(1);
        if answers.get(user).is_some_and(|(asked, _)| old(*asked)) {
            answers.remove(user);
        }
    }

    async fn put(&self, conn: &Dialled, user: &str) -> Result<Known, tokio_postgres::Error> {
        let Some(row) = conn.client.query_opt(&self.sql, &[&user]).await? else { return Ok(Known::Nobody) };
        let Some(last) = row.len().checked_sub(1) else { return Ok(Known::NoVerifier) };
        let stored: Option<&str> = row.try_get(last)?;
        // A function that returns a row of nulls has found nobody, or somebody without a password.
        Ok(stored.and_then(Verifier::parse).map_or(Known::NoVerifier, Known::Verifier))
    }

    fn remembered(&self, user: &str) -> Option<Known> {
        let answers = self.answers.lock();
        let (asked, known) = answers.get(user)?;
        (pgleash_clock::now().since(*asked) < FRESH).then(|| known.clone())
    }

    fn remember(&self, user: &str, known: &Known) {
        let mut answers = self.answers.lock();
        let now = pgleash_clock::now();
        if answers.len() >= MOST {
            answers.retain(|_, (asked, _)| now.since(*asked) < FRESH);
        }
        if answers.len() >= MOST {
            answers.clear();
        }
        answers.insert(user.to_owned(), (now, known.clone()));
    }
}

/// The server could not be asked.
#[derive(Debug)]
pub(crate) struct Unanswered;

async fn open(target: Arc<Target>) -> Result<Open, tokio_postgres::Error> {
    let dialled = target.dial_aside(()).await?;
    dialled.client.batch_execute(SETUP).await?;
    Ok(Open { dialled, since: pgleash_clock::now(), target })
}
