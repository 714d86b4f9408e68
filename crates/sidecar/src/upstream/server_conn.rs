//! One server connection, as its holders and the recycler share it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use pgleash_core::{CloseReason, ConnId, Moment};
use pgleash_wire::parameters;
use pgleash_wire::parameters::Vars;
use pgleash_wire::session_query::Defaults;

use crate::upstream::connector::{Address, Dialled, Security, Target};
use crate::upstream::wire_lease::WireLease;

/// Nobody has said why a connection is closed.
const UNSAID: u8 = u8::MAX;

/// A server connection.
pub(crate) struct ServerConn {
    /// Its name in the ledger.
    pub id: ConnId,
    /// Process id of its backend.
    pub backend_pid: i32,
    /// Parameters the server reported at login.
    pub parameters: BTreeMap<String, String>,
    /// What the server's role and database set when it was opened.
    pub defaults: Arc<Defaults>,
    /// Smaller than the pool's if these have changed since.
    pub generation: u64,
    /// The only session that has had it since its values of sequences were discarded last; [`ServerConn::NOBODY`] if
    /// nobody has had it since, [`ServerConn::SEVERAL`] if it was not only one.
    pub sequences_of: AtomicU32,
    /// `random()` was seeded by a client.
    pub seeded: AtomicBool,
    /// A library was loaded by a client: nobody else may have it.
    pub loaded: AtomicBool,
    /// Lends the wire.
    pub wire_lease: WireLease,
    /// End of its life, jitter included.
    pub expires: Moment,
    /// When it was ready for its first statement.
    pub opened: Moment,
    /// Where its server is.
    pub address: Address,
    /// How it was dialled.
    pub target: Arc<Target>,
    /// When its server was last seen to fit `target_session_attrs`.
    pub fitted: AtomicU64,
    security: Option<Security>,
    cancel_key: Vec<u8>,
    /// The parameters that are set on it, over its defaults.
    applied: Mutex<Arc<Vars>>,
    cancels: AtomicU32,
    tainted: AtomicBool,
    close_reason: AtomicU8,
    /// The connection task has been woken since the wire came home.
    pub watched: AtomicBool,
}

impl ServerConn {
    /// No session's number.
    pub(crate) const NOBODY: u32 = 0;
    /// No session's number either.
    pub(crate) const SEVERAL: u32 = u32::MAX;

    /// Whether values of sequences may be there that are not this session's.
    pub(crate) fn has_sequences_of_others(&self, session: u32) -> bool {
        ![Self::NOBODY, session].contains(&self.sequences_of.load(Ordering::Relaxed))
    }

    /// This session has it now.
    pub(crate) fn is_used_by(&self, session: u32) {
        let now = if self.has_sequences_of_others(session) { Self::SEVERAL } else { session };
        self.sequences_of.store(now, Ordering::Relaxed);
    }

    /// A connection just dialled.
    pub(crate) fn new(
        id: ConnId,
        dialled: &Dialled,
        target: Arc<Target>,
        (defaults, generation): (Arc<Defaults>, u64),
        (expires, opened): (Moment, Moment),
    ) -> Self {
        Self {
            id,
            backend_pid: dialled.login.backend_pid,
            parameters: dialled.login.parameters.clone(),
            defaults,
            generation,
            sequences_of: AtomicU32::new(Self::NOBODY),
            seeded: AtomicBool::new(false),
            loaded: AtomicBool::new(false),
            wire_lease: dialled.wire_lease.clone(),
            expires,
            opened,
            address: dialled.address.clone(),
            target,
            fitted: AtomicU64::new(opened.as_nanos()),
            security: dialled.security.clone(),
            cancel_key: dialled.login.cancel_key.clone(),
            applied: Mutex::new(Arc::new(Vars::from([("application_name".into(), "pgleash".into())]))),
            cancels: AtomicU32::new(0),
            tainted: AtomicBool::new(false),
            close_reason: AtomicU8::new(UNSAID),
            watched: AtomicBool::new(true),
        }
    }

    /// The SQL that sets these parameters on it; `None` if they are set.
    pub(crate) fn change_to(&self, vars: &Arc<Vars>) -> Option<String> {
        let applied = self.locked_applied();
        if Arc::ptr_eq(&applied, vars) { None } else { parameters::change(&applied, vars) }
    }

    /// Another encoding than ours is set on it, which is to be reset now: from here on it is ours.
    pub(crate) fn takes_our_encoding(&self) -> bool {
        let mut applied = self.locked_applied();
        applied.contains_key(parameters::ENCODING)
            && Arc::make_mut(&mut applied).remove(parameters::ENCODING).is_some()
    }

    /// These parameters are set on it now.
    pub(crate) fn set_applied(&self, vars: &Arc<Vars>) {
        let mut applied = self.locked_applied();
        if !Arc::ptr_eq(&applied, vars) {
            *applied = Arc::clone(vars);
        }
    }

    /// What is set on it.
    pub(crate) fn applied(&self) -> Arc<Vars> {
        Arc::clone(&self.locked_applied())
    }

    /// Whether these very parameters are set on it.
    pub(crate) fn has_applied(&self, vars: &Arc<Vars>) -> bool {
        Arc::ptr_eq(&self.locked_applied(), vars)
    }

    fn locked_applied(&self) -> MutexGuard<'_, Arc<Vars>> {
        self.applied.lock()
    }

    /// Says why it is about to be closed. The first word counts; without one it was lost.
    pub(crate) fn closing(&self, reason: CloseReason) {
        let _ =
            self.close_reason.compare_exchange(UNSAID, reason as u8, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Why it is closed.
    pub(crate) fn close_reason(&self) -> CloseReason {
        let reason = self.close_reason.load(Ordering::Relaxed);
        CloseReason::ALL
            .iter()
            .copied()
            .find(|known| *known as u8 == reason)
            .unwrap_or(CloseReason::ServerLost)
    }

    /// Announces a cancel request. While one is announced the connection is not lent to anybody else,
    /// so that a late cancel cannot hit the next borrower.
    pub(crate) fn announce_cancel(self: &Arc<Self>) -> Cancel {
        self.cancels.fetch_add(1, Ordering::AcqRel);
        Cancel(Arc::clone(self))
    }

    /// Whether a cancel request is on its way to it.
    pub(crate) fn has_cancel_in_flight(&self) -> bool {
        self.cancels.load(Ordering::Acquire) > 0
    }

    /// Whether a cancel request may hit it at any time: its own end is unknown.
    pub(crate) fn is_tainted(&self) -> bool {
        self.tainted.load(Ordering::Acquire)
    }
}

/// A cancel request on its way; counted until it is dropped.
pub(crate) struct Cancel(Arc<ServerConn>);

impl Cancel {
    /// How long a cancel request may take.
    const DEADLINE: Duration = Duration::from_secs(5);

    /// Sends it, and returns when the server has acted on it.
    ///
    /// # Errors
    /// The server cannot be reached, or does not answer within 5 s. It may act later, so the connection
    /// is not lent again.
    pub(crate) async fn send(self) -> std::io::Result<()> {
        let ServerConn { address, backend_pid, cancel_key, security, .. } = &*self.0;
        let sending = address.cancel(*backend_pid, cancel_key, security.as_ref());
        let sent = tokio::time::timeout(Self::DEADLINE, sending).await.map_err(std::io::Error::from);
        let sent = sent.and_then(std::convert::identity);
        if sent.is_err() {
            self.0.tainted.store(true, Ordering::Release);
        }
        sent
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.cancels.fetch_sub(1, Ordering::AcqRel);
    }
}
