//! A pool, and what all of its parts share.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use deadpool_postgres::Pool;
use parking_lot::{Mutex, MutexGuard};
use pgleash_core::{ConnId, Enforcement, Ledger, LivePolicy, PoolKey, Sink};
use pgleash_wire::Library;
use pgleash_wire::message::SqlState;
use tokio::sync::{Notify, mpsc};

use crate::pool::accepted_parameters::AcceptedParameters;
use crate::pool::defaults::Known;
use crate::pool::idle::IdleConns;
use crate::pool::job::Job;
use crate::pool::pause::PauseGate;
use crate::pool::permits::Permits;
use crate::upstream::backend_probe::Probe;
use crate::upstream::connector::Target;
use crate::upstream::error::describe;
use crate::upstream::holder_handle::HolderHandle;
use crate::upstream::server_conn::ServerConn;
use crate::watchdog::wait_sampler::Survey;

/// A pool of server connections for one (database, user). Clones are the same pool.
#[derive(Clone)]
pub(crate) struct WatchedPool(pub(crate) Arc<Inner>);

tokio::task_local! {
    /// Carries a connection just dialled from deadpool's `Connect`, which runs in the caller's task,
    /// to the caller of `get`.
    pub(crate) static DELIVERED: RefCell<Option<Arc<ServerConn>>>;
}

/// Why there is no connection for a client.
#[derive(Debug)]
pub(crate) enum CheckoutError {
    /// None came free within `wait_timeout`; the text says who has them.
    Exhausted(String),
    /// The server refused, or was lost on the way.
    Upstream(tokio_postgres::Error),
    /// The server could not be reached within `wait_timeout`; the text says what it came to last.
    Unreachable(String),
    /// pgleash was paused for longer than a client may wait.
    Paused(Duration),
    /// The server did not answer while the client's parameters were set.
    Stalled,
    /// The role may not log in any more, in the server's words.
    Refused(SqlState, String),
    /// The pool is closed.
    Closed,
}

impl fmt::Display for CheckoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckoutError::Exhausted(diagnosis) => write!(f, "connection pool exhausted: {diagnosis}"),
            CheckoutError::Upstream(error) => write!(f, "upstream server: {}", describe(error)),
            CheckoutError::Unreachable(why) => write!(f, "upstream server is unreachable: {why}"),
            CheckoutError::Paused(limit) => {
                write!(f, "pgleash is paused, and was not resumed within {} s", limit.as_secs())
            }
            CheckoutError::Stalled => f.write_str("upstream server: no answer while parameters were set"),
            CheckoutError::Refused(_, message) => f.write_str(message),
            CheckoutError::Closed => f.write_str("pgleash is shutting down"),
        }
    }
}

impl std::error::Error for CheckoutError {}

impl CheckoutError {
    /// Whether the server has answered, with an error.
    pub(crate) fn is_from_server(&self) -> bool {
        matches!(self, CheckoutError::Upstream(error) if error.as_db_error().is_some())
    }
}

pub(crate) struct Inner {
    pub(crate) key: PoolKey,
    pub(crate) policy: Arc<LivePolicy>,
    pub(crate) pause_gate: Arc<PauseGate>,
    /// The server that new connections go to, and old ones must have gone to.
    pub(crate) target: ArcSwap<Target>,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) probe: Probe,
    pub(crate) survey: Survey,
    pub(crate) ledger: Mutex<Ledger<HolderHandle>>,
    /// What counts against the budget.
    pub(crate) enforcement: Mutex<Enforcement>,
    /// Tells the watchdog to look now.
    pub(crate) attention: Arc<Notify>,
    pub(crate) permits: Permits,
    pub(crate) objects: OnceLock<Pool>,
    pub(crate) idle_conns: IdleConns,
    /// Every live connection.
    pub(crate) roster: Mutex<BTreeMap<ConnId, Arc<ServerConn>>>,
    /// What the pool's clients have prepared.
    pub(crate) library: Arc<Library>,
    pub(crate) recycler: mpsc::UnboundedSender<Job>,
    pub(crate) welcome: ArcSwapOption<BTreeMap<String, String>>,
    /// What clients have asked for at their logins that the server took.
    pub(crate) accepted_parameters: AcceptedParameters,
    /// What role and database set for its connections.
    pub(crate) known: Known,
}

impl Inner {
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger<HolderHandle>> {
        self.ledger.lock()
    }

    /// What a server connection reported at login is what clients are greeted with.
    pub(crate) fn welcomed_with(&self, parameters: &BTreeMap<String, String>) {
        if self.welcome.load().as_deref() != Some(parameters) {
            self.welcome.store(Some(Arc::new(parameters.clone())));
        }
    }

    pub(crate) fn roster(&self) -> MutexGuard<'_, BTreeMap<ConnId, Arc<ServerConn>>> {
        self.roster.lock()
    }
}
