//! What a client waits for before it is lent a connection: that nothing is paused, a slot, and a server
//! that can be reached.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deadpool_postgres::{Client, ClientWrapper, PoolError};
use pgleash_core::{CloseReason, Event, Holder, Moment, Policy};
use pgleash_wire::parameters::Vars;

use crate::pool::idle::PooledConn;
use crate::pool::pause::Flow;
use crate::pool::permits::{Closed, Permit};
use crate::pool::state::{CheckoutError, DELIVERED, WatchedPool};
use crate::upstream::connector::{Outlook, describe, is_unreachable, may_pass};
use crate::upstream::server_conn::ServerConn;

impl From<Closed> for CheckoutError {
    fn from(_: Closed) -> Self {
        CheckoutError::Closed
    }
}

impl WatchedPool {
    /// How often one that waits for the server looks whether a connection has come home.
    const LOOK: Duration = Duration::from_millis(100);

    /// A slot, if nothing is paused, one is free, and nobody waits for it.
    pub(crate) fn free_permit(&self) -> Result<Option<Permit>, Closed> {
        let inner = self.inner();
        if inner.pause_gate.flow() == Flow::Open { inner.permits.try_take() } else { Ok(None) }
    }

    /// The idle connection that came home last, if it may be lent without asking the server.
    pub(crate) fn fit_spare(&self, now: Moment, vars: &Arc<Vars>) -> Option<PooledConn> {
        let idle_conns = &self.inner().idle_conns;
        let pooled = idle_conns.take_like(vars)?;
        let conn = &pooled.conn;
        let fit = self.keeps(conn, now).is_ok()
            && !pooled.object().is_closed()
            && !asks(conn, now)
            && conn.wire_lease.look().is_ok();
        if fit {
            return Some(pooled);
        }
        idle_conns.put(pooled);
        None
    }

    /// Waits for a slot, if there is none at once; since when the client's patience counts.
    pub(crate) async fn permit(
        &self,
        holder: &Holder,
        began: Moment,
    ) -> Result<(Permit, Moment), CheckoutError> {
        let inner = self.inner();
        if let Some(permit) = self.free_permit()? {
            return Ok((permit, began));
        }
        let _waiting = Waiting::new(self, began);
        let mut since = began;
        loop {
            if inner.pause_gate.flow() != Flow::Open {
                self.resumed().await?;
                since = pgleash_clock::now();
            }
            let permit = tokio::time::timeout(self.patience_left(since), inner.permits.take()).await;
            match permit {
                // A pause that began meanwhile holds it, too.
                _ if inner.pause_gate.flow() != Flow::Open => {}
                Ok(permit) => return Ok((permit?, since)),
                Err(_) => return Err(self.in_vain(holder, began)),
            }
        }
    }

    /// Waits until a pause is over.
    async fn resumed(&self) -> Result<(), CheckoutError> {
        let inner = self.inner();
        let limit = inner.policy.load().wait_timeout.max(Policy::PAUSE_PATIENCE);
        match tokio::time::timeout(limit, inner.pause_gate.changed()).await {
            Ok(Flow::Open | Flow::Paused) => Ok(()),
            Ok(Flow::Over) => Err(CheckoutError::Closed),
            Err(_) => Err(CheckoutError::Paused(limit)),
        }
    }

    fn patience_left(&self, since: Moment) -> Duration {
        self.inner().policy.load().wait_timeout.saturating_sub(pgleash_clock::now().since(since))
    }

    /// Nothing came free in time: the server is away, or others have all there is.
    fn in_vain(&self, holder: &Holder, began: Moment) -> CheckoutError {
        let inner = self.inner();
        if let Some(outlook) = inner.target.load().outage.outlook() {
            return CheckoutError::Unreachable(outlook.words().to_owned());
        }
        let now = pgleash_clock::now();
        let diagnosis = self.ledger().diagnosis(&inner.policy.load(), now);
        inner.sink.emit(Event::CheckoutTimeout {
            pool: inner.key.clone(),
            waited_seconds: now.since(began).as_secs_f64(),
            diagnosis: diagnosis.clone(),
            client: holder.client.clone(),
        });
        CheckoutError::Exhausted(diagnosis)
    }

    /// A connection that is alive, young enough, quiet, and to the right server. Waits for a server that
    /// is away, for what is left of the client's patience; what the server itself says is told at once.
    pub(crate) async fn connection(
        &self,
        began: Moment,
        since: Moment,
        vars: &Arc<Vars>,
    ) -> Result<PooledConn, CheckoutError> {
        let mut waiting = None;
        loop {
            let outage = Arc::clone(&self.inner().target.load().outage);
            let why = match outage.outlook() {
                // Nobody dials now but the one who tries: wait for what it finds, or for a connection to come home.
                Some(outlook) if self.inner().idle_conns.is_empty() => outlook,
                _ => match self.idle_or_new(vars).await {
                    Err(Failed::Away(outlook)) => outlook,
                    Err(Failed::Told(error)) => return Err(error),
                    Ok(found) => return Ok(found),
                },
            };
            let left = self.patience_left(since);
            if left.is_zero() || matches!(why, Outlook::Lasting(_)) {
                return Err(CheckoutError::Unreachable(why.words().to_owned()));
            }
            waiting.get_or_insert_with(|| Waiting::new(self, began));
            let _ = tokio::time::timeout(left.min(Self::LOOK), outage.over()).await;
        }
    }

    async fn idle_or_new(&self, vars: &Arc<Vars>) -> Result<PooledConn, Failed> {
        loop {
            let pooled = match self.inner().idle_conns.take_like(vars) {
                Some(pooled) if pooled.object().is_closed() => {
                    self.discard(pooled, CloseReason::ServerLost);
                    continue;
                }
                Some(pooled) => pooled,
                None => self.opened().await?,
            };
            match self.may_be_lent(&pooled).await {
                Ok(()) => return Ok(pooled),
                Err(reason) => self.discard(pooled, reason),
            }
        }
    }

    /// A new connection.
    async fn opened(&self) -> Result<PooledConn, Failed> {
        loop {
            let object = self.objects().get().await.map_err(|error| self.not_opened(error))?;
            match DELIVERED.with(std::cell::RefCell::take) {
                Some(conn) => {
                    self.enlist(&conn);
                    return Ok(PooledConn::new(object, conn));
                }
                // One whose task has died, and that deadpool took for idle.
                None => drop(Client::take(object)),
            }
        }
    }

    /// Whether an idle connection may be lent, or why it is to be closed instead.
    async fn may_be_lent(&self, pooled: &PooledConn) -> Result<(), CloseReason> {
        let (object, conn) = (pooled.object(), &pooled.conn);
        self.keeps(conn, pgleash_clock::now())?;
        if conn.wire_lease.look().is_err() && !settle(object).await {
            return Err(CloseReason::ServerLost);
        }
        if !asks(conn, pgleash_clock::now()) {
            return Ok(());
        }
        match tokio::time::timeout(Policy::RESET_DEADLINE, conn.target.attrs.fits(object)).await {
            Ok(Ok(true)) => {
                conn.fitted.store(pgleash_clock::now().as_nanos(), Ordering::Relaxed);
                Ok(())
            }
            Ok(Ok(false)) => Err(CloseReason::Replaced),
            Ok(Err(_)) | Err(_) => Err(CloseReason::ServerLost),
        }
    }

    /// A connection could not be opened: told, and if the server is away, everybody waits for it.
    fn not_opened(&self, error: PoolError) -> Failed {
        let PoolError::Backend(error) = error else { return Failed::Told(CheckoutError::Closed) };
        let inner = self.inner();
        let sqlstate = error.code().map_or("08006", |code| code.code()).to_owned();
        let detail = describe(&error);
        let pool = inner.key.clone();
        inner.sink.emit(Event::UpstreamFailed { pool: pool.clone(), sqlstate, detail: detail.clone() });
        if !is_unreachable(&error) {
            return Failed::Told(CheckoutError::Upstream(error));
        }
        let why =
            if may_pass(&error) { Outlook::Passing(detail.into()) } else { Outlook::Lasting(detail.into()) };
        let (target, sink) = (inner.target.load_full(), Arc::clone(&inner.sink));
        target.outage.begins(&target, why.clone(), move |recovery| {
            sink.emit(Event::UpstreamRecovered {
                pool,
                down_seconds: recovery.lasted.as_secs_f64(),
                attempts: recovery.attempts,
            });
        });
        Failed::Away(why)
    }
}

/// Why there is no connection at this moment.
enum Failed {
    /// The server cannot be reached.
    Away(Outlook),
    /// The client is to be told.
    Told(CheckoutError),
}

/// Whether the server has to be asked if it still fits `target_session_attrs`.
fn asks(conn: &ServerConn, now: Moment) -> bool {
    /// How long it is believed to after it was asked.
    const FITTED: Duration = Duration::from_secs(1);
    let asked = Moment::from_nanos(conn.fitted.load(Ordering::Relaxed));
    conn.target.attrs.may_change() && now.since(asked) >= FITTED
}

/// A connection that has said something unasked, or an error that is not all it has to say, may be sound: one
/// round trip tells.
pub(crate) async fn settle(object: &ClientWrapper) -> bool {
    let asked = tokio::time::timeout(Policy::RESET_DEADLINE, object.batch_execute("")).await;
    matches!(asked, Ok(Ok(())))
}

/// A client that waits, in the ledger as long as this lives.
struct Waiting<'a> {
    pool: &'a WatchedPool,
    key: u64,
}

impl<'a> Waiting<'a> {
    fn new(pool: &'a WatchedPool, began: Moment) -> Self {
        let key = pool.ledger().wait_begins(began);
        Self { pool, key }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.ledger().wait_ends(self.key);
    }
}
