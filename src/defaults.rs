//! What role and database set for the connections of a pool, and whether the role may log in. Floor 3.
//!
//! Both may change while the pool is there. A small question tells, before a login and once in a while; connections
//! from before a change are closed as they come home.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use deadpool_postgres::ClientWrapper;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::clock;
use crate::conn::ServerConn;
use crate::ids::{Holder, Moment, SessionId};
use crate::policy::Policy;
use crate::pool::{CheckoutError, Inner, WatchedPool, borrower};
use crate::turn::Turn;
use crate::wire::look::{self, Admission, Defaults};

/// A pool in use asks so often, if nobody logs in.
const EVERY: Duration = Duration::from_secs(30);
/// A login does not wait longer for a connection to ask on.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is known of a pool's defaults.
#[derive(Default)]
pub(crate) struct Known {
    /// Those that a connection has to have to be kept; `None` until the next one is opened.
    pub(crate) defaults: ArcSwapOption<Defaults>,
    /// Goes up when they change: a connection of before has a smaller one.
    generation: AtomicU64,
    admission: ArcSwap<Admission>,
    asked: AtomicU64,
    /// Somebody wants to know now.
    due: AtomicBool,
    answers: AtomicU64,
    turn: Turn,
}

impl Known {
    /// Whether a connection of this generation has what new ones find.
    pub(crate) fn is_current(&self, generation: u64) -> bool {
        self.generation.load(Ordering::Acquire) == generation
    }

    /// New connections find something else from now on, which is known if it was found.
    fn change(&self, found: Option<Arc<Defaults>>) {
        self.defaults.store(found);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

/// What a connection that was just opened finds, on which nothing is set yet. It bears pgleash's name from here on.
///
/// # Errors
/// The connection is lost. What the server will not say is taken for unknown.
pub(crate) async fn found(
    client: &Client,
    inner: &Inner,
) -> Result<(Arc<Defaults>, u64), tokio_postgres::Error> {
    let key = match rows(client, &look::defaults_question(&inner.key.user)).await {
        Ok(rows) => rows.first().map(|row| look::defaults_row(|at| row.try_get(at).ok().flatten()).0),
        Err(error) if error.as_db_error().is_some() => {
            client.batch_execute("ROLLBACK").await?;
            None
        }
        Err(error) => return Err(error),
    };
    let key = key.unwrap_or_default();
    let known = inner.known.defaults.load_full().filter(|known| known.key == key);
    let defaults = match known {
        Some(known) => known,
        None => {
            let mut defaults = Defaults { key, ..Defaults::default() };
            for row in rows(client, look::VALUES_QUESTION).await? {
                defaults.row(|at| row.try_get(at).ok().flatten());
            }
            let defaults = Arc::new(defaults);
            if inner.known.defaults.load().is_some() {
                // They have changed, and nobody has been told so far.
                inner.known.change(Some(Arc::clone(&defaults)));
            } else {
                inner.known.defaults.store(Some(Arc::clone(&defaults)));
            }
            defaults
        }
    };
    let generation = inner.known.generation.load(Ordering::Acquire);
    client.batch_execute("SET application_name = 'pgleash'").await?;
    Ok((defaults, generation))
}

async fn rows(client: &Client, sql: &str) -> Result<Vec<SimpleQueryRow>, tokio_postgres::Error> {
    Ok(only_rows(client.simple_query(sql).await?))
}

fn only_rows(messages: Vec<SimpleQueryMessage>) -> Vec<SimpleQueryRow> {
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

impl WatchedPool {
    /// What new connections find; nothing before the first one.
    pub fn defaults(&self) -> Arc<Defaults> {
        self.inner().known.defaults.load_full().unwrap_or_default()
    }

    /// Whether the pool's role may log in, by what the server says now; `None` if every connection is held, so that
    /// it could not be asked.
    ///
    /// Cancel safe.
    pub async fn admission(&self, holder: &Arc<Holder>) -> Option<Admission> {
        let known = &self.inner().known;
        let before = known.answers.load(Ordering::Acquire);
        let asking = known.turn.take(async || {
            // To its end, whoever stops waiting for it: a question that is dropped costs its connection.
            let (pool, holder) = (self.clone(), Arc::clone(holder));
            drop(tokio::spawn(borrower(async move { pool.ask_defaults(&holder).await })).await);
        });
        let _ = tokio::time::timeout(PATIENCE, asking).await;
        let answered = known.answers.load(Ordering::Acquire) > before;
        answered.then(|| (**known.admission.load()).clone())
    }

    /// The same, on this connection, which somebody has.
    ///
    /// # Errors
    /// The server's, or it does not answer in time.
    pub async fn ask_on(
        &self,
        conn: &ServerConn,
        client: &ClientWrapper,
    ) -> Result<Admission, CheckoutError> {
        let question = look::defaults_question(&self.key().user);
        match tokio::time::timeout(Policy::RESET_DEADLINE, rows(client, &question)).await {
            Ok(Ok(rows)) => self.hear(&rows),
            Ok(Err(error)) => return Err(CheckoutError::Upstream(error)),
            Err(_) => return Err(CheckoutError::Stalled),
        }
        self.welcome_again(conn);
        Ok((**self.inner().known.admission.load()).clone())
    }

    /// Whether this connection has the defaults that a new one would find.
    pub fn is_current(&self, conn: &ServerConn) -> bool {
        self.inner().known.is_current(conn.generation)
    }

    /// Asks now, in a task of its own, whether the defaults have changed. On the data path's runtime.
    pub fn refresh_defaults(&self) {
        let pool = self.clone();
        self.inner().known.due.store(false, Ordering::Relaxed);
        self.inner().known.asked.store(clock::now().as_nanos(), Ordering::Relaxed);
        tokio::spawn(borrower(async move {
            let key = pool.key();
            let (user, database) = (key.user.to_string(), key.database.to_string());
            let itself = "pgleash".to_owned();
            let holder =
                Holder { session: SessionId(0), app: itself.clone(), user, database, client: itself };
            pool.admission(&Arc::new(holder)).await;
        }));
    }

    /// Asks at the next checkout.
    pub fn doubt_defaults(&self) {
        self.inner().known.due.store(true, Ordering::Relaxed);
    }

    /// Whether it is time to ask again.
    pub(crate) fn asks_again(&self, now: Moment) -> bool {
        if self.inner().known.due.load(Ordering::Relaxed) {
            return true;
        }
        let asked = Moment::from_nanos(self.inner().known.asked.load(Ordering::Relaxed));
        now.since(asked) >= EVERY
    }

    async fn ask_defaults(&self, holder: &Holder) {
        if self.held() >= self.inner().policy.load().size {
            return;
        }
        let Ok(errand) = self.errand(holder).await else { return };
        if self.ask_on(errand.conn(), errand.client()).await.is_err() {
            return;
        }
        let changed = !self.is_current(errand.conn());
        errand.come_home().await;
        if changed && let Ok(errand) = self.errand(holder).await {
            errand.come_home().await;
        }
    }

    fn hear(&self, rows: &[SimpleQueryRow]) {
        let known = &self.inner().known;
        known.asked.store(clock::now().as_nanos(), Ordering::Relaxed);
        let Some(row) = rows.first() else { return };
        let (key, admission) = look::defaults_row(|at| row.try_get(at).ok().flatten());
        known.admission.store(Arc::new(admission));
        known.answers.fetch_add(1, Ordering::AcqRel);
        if known.defaults.load().as_ref().is_some_and(|defaults| defaults.key != key) {
            // Whoever opens the next connection finds what they are now.
            known.change(None);
        }
    }
}
