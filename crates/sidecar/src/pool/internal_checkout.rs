//! A server connection that pgleash itself has something to ask on: nobody's checkout, and counted as none. Floor 3.

use std::sync::Arc;

use deadpool_postgres::ClientWrapper;
use pgleash_core::{CloseReason, Holder};
use pgleash_wire::parameters::Vars;
use tokio::sync;

use crate::pool::acquire::settle;
use crate::pool::job::Kit;
use crate::pool::state::{CheckoutError, WatchedPool};
use crate::upstream::server_conn::ServerConn;

/// A connection on an errand; its wire stays at home. Dropping it closes the connection.
pub(crate) struct Errand {
    pool: WatchedPool,
    kit: Kit,
}

impl WatchedPool {
    /// Whether the server has taken these parameters before.
    pub(crate) fn takes(&self, vars: &Vars) -> bool {
        self.inner().trials.taken().has(vars)
    }

    /// The server has taken these parameters.
    pub(crate) fn has_taken(&self, vars: Vars) {
        self.inner().trials.taken().add(vars);
    }

    /// Waits for the turn to ask whether it does: one connection is enough for a crowd, which may ask the same.
    pub(crate) async fn turn_to_ask(&self) -> sync::MutexGuard<'_, ()> {
        self.inner().trials.turn.lock().await
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
    pub(crate) async fn errand(&self, holder: &Holder) -> Result<Errand, CheckoutError> {
        let began = pgleash_clock::now();
        let (slot, since) = self.slot(holder, began).await?;
        let spare = self.connection(began, since, &Arc::default()).await?;
        self.ledger().sent(spare.conn.id, pgleash_clock::now());
        Ok(Errand { pool: self.clone(), kit: Kit { spare, slot } })
    }
}

impl Errand {
    /// The connection.
    pub(crate) fn conn(&self) -> &ServerConn {
        &self.kit.spare.conn
    }

    /// The SQL side.
    pub(crate) fn client(&self) -> &ClientWrapper {
        self.kit.spare.object()
    }

    /// Gives the connection back as it is; closes it if it does not become quiet.
    pub(crate) async fn come_home(self) {
        let is_quiet = || self.conn().switch.is_quiet_at_home();
        // tokio-postgres tells an error as soon as it has come, and reads the rest later.
        let quiet = is_quiet() || (settle(self.client()).await && is_quiet());
        let Self { pool, kit } = self;
        let now = pgleash_clock::now();
        match if quiet { pool.keeps(&kit.spare.conn, now) } else { Err(CloseReason::Unclean) } {
            Err(reason) => pool.discard(kit.spare, reason),
            Ok(()) => {
                pool.ledger().recycled(kit.spare.conn.id, now);
                pool.inner().rack.put(kit.spare);
            }
        }
        drop(kit.slot);
    }
}
