//! Cancel requests: the keys that clients are given, and the way from a request to the server. Floor 4.
//!
//! PostgreSQL documentation, "Canceling Requests in Progress" and "Message Formats / BackendKeyData".
//! Whoever asks is told nothing, as Postgres tells nothing; its socket is closed once the server has
//! acted, so that a client that waits for that knows that no cancel of its own is on its way any more.

use tokio::sync::Semaphore;

use crate::proxy::clients::limit::{Places, Taken};
use crate::proxy::clients::session_handle::Shared;
use crate::proxy::session::Found;

/// What all cancel requests together may use up.
pub(crate) struct Desk {
    callers: Places,
    latecomers: Places,
    upstream: Semaphore,
}

impl Desk {
    /// Requests that may be under way, each with its caller's socket.
    const CALLERS: usize = 256;
    /// Callers that may say that they want to cancel while nobody else gets to say a word.
    const LATECOMERS: usize = 64;
    /// Connections to the server that may be open for requests.
    const UPSTREAM: usize = 16;

    /// A place for a caller of whom there is no room at the door, unless it comes to cancel.
    pub(crate) fn side_door(&self) -> Option<Taken<'_>> {
        self.latecomers.try_take(Self::LATECOMERS)
    }

    /// Passes a request on to the server connection that the session has now, or tells a session that waits for one.
    /// False if
    /// there are too many requests: it was not passed on.
    pub(crate) async fn serve(&self, session: &Shared) -> bool {
        let Some(_place) = self.callers.try_take(Self::CALLERS) else { return false };
        session.turn.take(async || self.pass_on(session).await).await;
        true
    }

    async fn pass_on(&self, session: &Shared) {
        // The semaphore is never closed.
        let _line = self.upstream.acquire().await;
        match session.stand.cancel() {
            Found::Nothing => {}
            Found::Waiting => session.tether.waker.wake(),
            // A cancel that does not get through is a cancel that came too late: the client's statement
            // goes on, and the client may ask again.
            Found::Running(cancel) => drop(cancel.send().await),
        }
    }
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            callers: Places::default(),
            latecomers: Places::default(),
            upstream: Semaphore::new(Self::UPSTREAM),
        }
    }
}
