//! What role and database set for the connections of a pool, and whether the role may log in.
//!
//! Both may change while the pool is there. A small question tells, before a login and once in a while; connections
//! from before a change are closed as they come home.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use deadpool_postgres::ClientWrapper;
use parking_lot::{Mutex, MutexGuard};
use pgleash_core::{Holder, Moment, SessionId};
use pgleash_wire::session_query;
use pgleash_wire::session_query::{Admission, Defaults};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::pool::state::{CheckoutError, Inner, WatchedPool};
use crate::pool::{answered, borrower};
use crate::turn::Turn;
use crate::upstream::server_conn::ServerConn;

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
    /// Held while defaults and generation change together.
    changing: Mutex<()>,
}

impl Known {
    /// Whether a connection of this generation has what new ones find.
    pub(crate) fn is_current(&self, generation: u64) -> bool {
        self.generation.load(Ordering::Acquire) == generation
    }

    /// Those with this key and their generation, if they are what new connections find.
    fn with_key(&self, key: &str) -> Option<(Arc<Defaults>, u64)> {
        let _still = self.still();
        self.same(key)
    }

    fn same(&self, key: &str) -> Option<(Arc<Defaults>, u64)> {
        let same = self.defaults.load_full().filter(|known| known.key == key)?;
        Some((same, self.generation.load(Ordering::Acquire)))
    }

    /// A new connection has found these: the pool's, from here on. Those that another one has found meanwhile stay.
    fn adopt(&self, found: Defaults) -> (Arc<Defaults>, u64) {
        let _still = self.still();
        if let Some(same) = self.same(&found.key) {
            return same;
        }
        let found = Arc::new(found);
        // Where others were known, they have changed, and nobody has been told so far.
        if self.defaults.swap(Some(Arc::clone(&found))).is_some() {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        (found, self.generation.load(Ordering::Acquire))
    }

    /// The server says that new connections find what has this key. If that is not what is known, whoever opens the
    /// next one finds what it is.
    fn expect(&self, key: &str) {
        let _still = self.still();
        if self.defaults.load().as_ref().is_some_and(|known| known.key != key) {
            self.defaults.store(None);
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn still(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
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
    let key = match rows(client, &session_query::defaults_question(&inner.key.user)).await {
        Ok(rows) => rows.first().map(|row| session_query::defaults_row(columns(row)).0),
        Err(error) if error.as_db_error().is_some() => {
            client.batch_execute("ROLLBACK").await?;
            None
        }
        Err(error) => return Err(error),
    };
    let key = key.unwrap_or_default();
    let found = match inner.known.with_key(&key) {
        Some(known) => known,
        None => {
            let mut defaults = Defaults { key, ..Defaults::default() };
            for row in rows(client, session_query::VALUES_QUESTION).await? {
                defaults.row(columns(&row));
            }
            inner.known.adopt(defaults)
        }
    };
    client.batch_execute("SET application_name = 'pgleash'").await?;
    Ok(found)
}

/// The rows of all results of a text.
pub(crate) async fn rows(client: &Client, sql: &str) -> Result<Vec<SimpleQueryRow>, tokio_postgres::Error> {
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    Ok(client.simple_query(sql).await?.into_iter().filter_map(row).collect())
}

/// A row's columns as text.
pub(crate) fn columns<'a>(row: &'a SimpleQueryRow) -> impl Fn(usize) -> Option<&'a str> {
    move |at| row.try_get(at).ok().flatten()
}

impl WatchedPool {
    /// What new connections find; nothing before the first one.
    pub(crate) fn defaults(&self) -> Arc<Defaults> {
        self.inner().known.defaults.load_full().unwrap_or_default()
    }

    /// Whether the pool's role may log in, by what the server says now; `None` if every connection is held, so that
    /// it could not be asked.
    ///
    /// Cancel safe.
    pub(crate) async fn admission(&self, holder: &Arc<Holder>) -> Option<Admission> {
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
    pub(crate) async fn ask_on(
        &self,
        conn: &ServerConn,
        client: &ClientWrapper,
    ) -> Result<Admission, CheckoutError> {
        let question = session_query::defaults_question(&self.key().user);
        self.hear(&answered(rows(client, &question)).await?);
        self.welcome_again(conn);
        Ok((**self.inner().known.admission.load()).clone())
    }

    /// Whether this connection has the defaults that a new one would find.
    pub(crate) fn is_current(&self, conn: &ServerConn) -> bool {
        self.inner().known.is_current(conn.generation)
    }

    /// Asks now, in a task of its own, whether the defaults have changed. On the data path's runtime.
    pub(crate) fn refresh_defaults(&self) {
        let pool = self.clone();
        self.inner().known.due.store(false, Ordering::Relaxed);
        self.inner().known.asked.store(pgleash_clock::now().as_nanos(), Ordering::Relaxed);
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
    pub(crate) fn doubt_defaults(&self) {
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
        let inner = self.inner();
        if self.held() >= inner.policy.load().size || inner.target.load().outage.outlook().is_some() {
            return;
        }
        // The wait has an end; the question, once it is on its way, goes on to its own.
        let Ok(Ok(internal_checkout)) = tokio::time::timeout(PATIENCE, self.internal_checkout(holder)).await
        else {
            return;
        };
        if self.ask_on(internal_checkout.conn(), internal_checkout.client()).await.is_err() {
            return;
        }
        let changed = !self.is_current(internal_checkout.conn());
        internal_checkout.release().await;
        if changed
            && let Ok(Ok(internal_checkout)) =
                tokio::time::timeout(PATIENCE, self.internal_checkout(holder)).await
        {
            internal_checkout.release().await;
        }
    }

    fn hear(&self, rows: &[SimpleQueryRow]) {
        let known = &self.inner().known;
        known.asked.store(pgleash_clock::now().as_nanos(), Ordering::Relaxed);
        let Some(row) = rows.first() else { return };
        let (key, admission) = session_query::defaults_row(columns(row));
        known.admission.store(Arc::new(admission));
        known.answers.fetch_add(1, Ordering::AcqRel);
        known.expect(&key);
    }
}
