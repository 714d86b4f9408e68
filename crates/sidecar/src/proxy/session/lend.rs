//! A client gets a connection, and finds its own session there.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use pgleash_core::Resolution;

use crate::net::stream::Io;
use crate::pool::acquire::settle;
use crate::pool::checkout::Checkout;
use crate::pool::job::Plan;
use crate::pool::state::CheckoutError;
use crate::proxy::clients::session_handle::{Borrowed, SessionHandle};
use crate::proxy::relay::buffer::Pipe;
use crate::proxy::relay::reads_sequences;
use crate::proxy::session::{Session, set_parameters};
use crate::upstream::server_conn::ServerConn;

impl Session {
    /// Whether nothing has to be done on a connection before this client may have it.
    pub(super) fn is_ready(&self, checkout: &Checkout) -> bool {
        let conn = checkout.conn();
        !self.unasked
            && !self.wants_sequences(conn)
            && (conn.has_applied(&self.vars) && Arc::ptr_eq(&self.defaults, &conn.defaults)
                || conn.change_to(&self.wanted_on(conn)).is_none())
    }

    /// Whether it may read values of sequences that are another session's there.
    fn wants_sequences(&self, conn: &ServerConn) -> bool {
        (self.reads_sequences || reads_sequences(self.up.unseen()))
            && conn.has_sequences_of_others(self.holder.session.0)
    }

    /// A connection with this client's parameters set on it, which may be `at_once` at hand.
    pub(super) async fn borrow_connection(
        &mut self,
        mut at_once: Option<Checkout>,
    ) -> Result<Borrowed, CheckoutError> {
        self.handle.client_phase.waits();
        let checkout = loop {
            let borrowed = match at_once.take() {
                Some(checkout) => Borrowed::Lent(checkout),
                None => self.wait().await?,
            };
            let Borrowed::Lent(checkout) = borrowed else { return Ok(borrowed) };
            // One of before is not for a client that came after the defaults have changed.
            if !self.unasked || self.ask_admission(&checkout).await? {
                break checkout;
            }
            checkout.recycle(None, Plan::Close, Resolution::Returned, None);
        };
        if let Err(error) = self.equip(&checkout).await {
            // A value that the server refused is the client's fault, not the connection's.
            let refused = error.is_from_server();
            let wire = if refused && settle(checkout.client()).await { checkout.lend().ok() } else { None };
            let plan = if wire.is_some() { Plan::Reset } else { Plan::Close };
            checkout.recycle(wire, plan, Resolution::Returned, None);
            return Err(error);
        }
        Ok(Borrowed::Lent(checkout))
    }

    /// A connection that comes free, as it is; or what became of the client meanwhile.
    async fn wait(&mut self) -> Result<Borrowed, CheckoutError> {
        let waiting = pin!(self.pool.checkout(&self.holder, &self.handle.holder_state, &self.vars));
        tokio::select! {
            biased;
            checkout = waiting => checkout.map(Borrowed::Lent),
            left = gone(&mut self.client, &mut self.up, &self.handle) => Ok(left),
        }
    }

    /// Makes a connection what this client expects.
    async fn equip(&mut self, checkout: &Checkout) -> Result<(), CheckoutError> {
        let conn = checkout.conn();
        if self.wants_sequences(conn) {
            self.forget_sequences(checkout).await?;
        }
        set_parameters(conn, checkout.client(), &self.wanted_on(conn)).await
    }
}

/// Resolves when the client hangs up or cancels, or the session is told to leave, while it waits in the queue.
async fn gone(client: &mut Io, up: &mut Pipe, handle: &SessionHandle) -> Borrowed {
    poll_fn(|cx| {
        handle.holder_state.waker.register(cx.waker());
        loop {
            if handle.orders.is_cut() {
                return Poll::Ready(Borrowed::Gone);
            }
            if handle.client_phase.is_cancelled() {
                return Poll::Ready(Borrowed::Cancelled);
            }
            if !up.has_room() {
                return Poll::Pending;
            }
            match std::task::ready!(up.poll_fill(cx, client)) {
                Ok(0) | Err(_) => return Poll::Ready(Borrowed::Gone),
                Ok(_) => {}
            }
        }
    })
    .await
}
