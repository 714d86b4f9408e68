//! Cancel requests: the keys that clients are given, and the way from a request to the server. Floor 4.
//!
//! PostgreSQL documentation, "Canceling Requests in Progress" and "Message Formats / BackendKeyData".
//! Whoever asks is told nothing, as Postgres tells nothing; its socket is closed once the server has
//! acted, so that a client that waits for that knows that no cancel of its own is on its way any more.

use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use crate::wire::startup::LONG_KEYS_SINCE;

use super::places::{Places, Taken};
use super::session::{Found, Shared};

/// What a client must show to cancel what its session runs. It is ours: the server's own key stays here.
pub enum CancelKey {
    /// Up to protocol 3.1 the message has room for 32 bits.
    Short([u8; 4]),
    /// Since protocol 3.2.
    Long([u8; 32]),
}

impl CancelKey {
    /// A fresh key for a client that speaks this minor version of protocol 3, from the generator that
    /// `rand` keeps for secrets.
    pub fn new(minor: u16) -> Self {
        if minor >= LONG_KEYS_SINCE {
            CancelKey::Long(rand::random())
        } else {
            CancelKey::Short(rand::random())
        }
    }

    /// As the client is told it.
    pub fn bytes(&self) -> &[u8] {
        match self {
            CancelKey::Short(key) => key,
            CancelKey::Long(key) => key,
        }
    }

    /// Whether this is the key. Takes as long for a near miss as for a far one.
    pub fn is(&self, shown: &[u8]) -> bool {
        self.bytes().ct_eq(shown).into()
    }
}

/// What all cancel requests together may use up.
pub struct Desk {
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
    pub fn side_door(&self) -> Option<Taken<'_>> {
        self.latecomers.try_take(Self::LATECOMERS)
    }

    /// Passes a request on to the server connection that the session has now, or tells a session that waits for one.
    /// False if
    /// there are too many requests: it was not passed on.
    pub async fn serve(&self, session: &Shared) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_where_the_protocol_has_room_and_never_alike() {
        assert_eq!([0, 1, 2].map(|minor| CancelKey::new(minor).bytes().len()), [4, 4, 32]);
        let (one, other) = (CancelKey::new(2), CancelKey::new(2));
        assert!(one.is(one.bytes()) && !one.is(other.bytes()));
        assert!(!one.is(&one.bytes()[..4]) && !one.is(&[]), "a part of it is not enough");
    }
}
