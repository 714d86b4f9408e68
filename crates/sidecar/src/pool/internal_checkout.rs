//! A server connection that pgleash itself has something to ask on: nobody's checkout, and counted as none.

use std::sync::Arc;

use deadpool_postgres::ClientWrapper;
use pgleash_core::{CloseReason, Holder};
use pgleash_wire::parameters::Vars;
use tokio::sync;

use crate::pool::acquire::settle;
use crate::pool::job::Lease;
use crate::pool::state::{CheckoutError, WatchedPool};
use crate::upstream::server_conn::ServerConn;

/// A connection on an internal checkout; its wire stays at home. Dropping it closes the connection.
pub(crate) struct InternalCheckout {
    pool: WatchedPool,
    lease: Lease,
}

impl WatchedPool {
    /// Whether the server has taken these parameters before.
    pub(crate) fn has_accepted(&self, vars: &Vars) -> bool {
        self.inner().accepted_parameters.taken().has(vars)
    }

    /// The server has taken these parameters.
    pub(crate) fn record_accepted(&self, vars: Vars) {
        self.inner().accepted_parameters.taken().add(vars);
    }

    /// Waits for the turn to ask whether it does: one connection is enough for a crowd, which may ask the same.
    pub(crate) async fn turn_to_ask(&self) -> sync::MutexGuard<'_, ()> {
        self.inner().accepted_parameters.turn.lock().await
    }

    /// Waits for a slot and a connection as [`WatchedPool::checkout`] does, on behalf of this client.
    ///
    /// Cancel safe: a dropped call gives its slot back, and closes the connection that it was asking about.
    ///
    /// # Errors
    /// See [`CheckoutError`]. Nothing is held then.
    ///
    /// # Panics
    /// In a task that does not run under [`crate::pool::borrower`].
    pub(crate) async fn internal_checkout(&self, holder: &Holder) -> Result<InternalCheckout, CheckoutError> {
        let began = pgleash_clock::now();
        let (permit, since) = self.permit(holder, began).await?;
        let pooled = self.connection(began, since, &Arc::default()).await?;
        self.ledger().sent(pooled.conn.id, pgleash_clock::now());
        Ok(InternalCheckout { pool: self.clone(), lease: Lease { pooled, permit } })
    }
}

impl InternalCheckout {
    /// The connection.
    pub(crate) fn conn(&self) -> &ServerConn {
        &self.lease.pooled.conn
    }

    /// The SQL side.
    pub(crate) fn client(&self) -> &ClientWrapper {
        self.lease.pooled.object()
    }

    /// Gives the connection back as it is; closes it if it does not become quiet.
    pub(crate) async fn release(self) {
        let is_quiet = || self.conn().wire_lease.is_quiet_at_home();
        // tokio-postgres tells an error as soon as it has come, and reads the rest later.
        let quiet = is_quiet() || (settle(self.client()).await && is_quiet());
        let Self { pool, lease } = self;
        let now = pgleash_clock::now();
        match if quiet { pool.keeps(&lease.pooled.conn, now) } else { Err(CloseReason::Unclean) } {
            Err(reason) => pool.discard(lease.pooled, reason),
            Ok(()) => {
                pool.ledger().recycled(lease.pooled.conn.id, now);
                pool.inner().idle_conns.put(lease.pooled);
            }
        }
        drop(lease.permit);
    }
}
