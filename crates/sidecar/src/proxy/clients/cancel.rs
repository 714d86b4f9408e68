//! Cancel requests: the keys that clients are given, and the way from a request to the server.
//!
//! PostgreSQL documentation, "Canceling Requests in Progress" and "Message Formats / BackendKeyData".
//! Whoever asks is told nothing, as Postgres tells nothing; its socket is closed once the server has
//! acted, so that a client that waits for that knows that no cancel of its own is on its way any more.

use tokio::sync::Semaphore;

use crate::proxy::clients::limit::{ClientLimit, ClientPermit};
use crate::proxy::clients::session_handle::SessionHandle;
use crate::proxy::session::Found;

/// What all cancel requests together may use up.
pub(crate) struct CancelQueue {
    callers: ClientLimit,
    latecomers: ClientLimit,
    upstream: Semaphore,
}

impl CancelQueue {
    /// Requests that may be under way, each with its caller's socket.
    const CALLERS: usize = 256;
    /// Callers that may say that they want to cancel while nobody else gets to say a word.
    const LATECOMERS: usize = 64;
    /// Connections to the server that may be open for requests.
    const UPSTREAM: usize = 16;

    /// A place for a caller of whom there is no room at the door, unless it comes to cancel.
    pub(crate) fn cancel_only(&self) -> Option<ClientPermit<'_>> {
        self.latecomers.try_take(Self::LATECOMERS)
    }

    /// Passes a request on to the server connection that the session has now, or tells a session that waits for one.
    /// False if
    /// there are too many requests: it was not passed on.
    pub(crate) async fn serve(&self, session: &SessionHandle) -> bool {
        let Some(_place) = self.callers.try_take(Self::CALLERS) else { return false };
        session.turn.take(async || self.pass_on(session).await).await;
        true
    }

    async fn pass_on(&self, session: &SessionHandle) {
        // The semaphore is never closed.
        let _line = self.upstream.acquire().await;
        match session.client_phase.cancel() {
            Found::Nothing => {}
            Found::Waiting => session.holder_state.waker.wake(),
            // A cancel that does not get through is a cancel that came too late: the client's statement
            // goes on, and the client may ask again.
            Found::Running(cancel) => drop(cancel.send().await),
        }
    }
}

impl Default for CancelQueue {
    fn default() -> Self {
        Self {
            callers: ClientLimit::default(),
            latecomers: ClientLimit::default(),
            upstream: Semaphore::new(Self::UPSTREAM),
        }
    }
}
