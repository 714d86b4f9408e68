//! Cancel requests: the keys that clients are given, and the way from a request to the server. Floor 4.
//!
//! PostgreSQL documentation, "Canceling Requests in Progress" and "Message Formats / BackendKeyData".
//! Whoever asks is told nothing, as Postgres tells nothing; its socket is closed once the server has
//! acted, so that a client that waits for that knows that no cancel of its own is on its way any more.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use subtle::ConstantTimeEq;
use tokio::sync::{Mutex, Semaphore};

use crate::conn::ServerConn;
use crate::wire::startup::LONG_KEYS_SINCE;

use super::places::{Places, Taken};
use super::session::Shared;

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

    /// Passes a request on to the server connection that the session has now, if it has one. False if
    /// there are too many requests: it was not passed on.
    pub async fn serve(&self, session: &Shared) -> bool {
        let Some(_place) = self.callers.try_take(Self::CALLERS) else { return false };
        session.turn.take(async || self.pass_on(session).await).await;
        true
    }

    async fn pass_on(&self, session: &Shared) {
        // The semaphore is never closed.
        let _line = self.upstream.acquire().await;
        let announced = {
            let conn = session.conn.lock().unwrap_or_else(PoisonError::into_inner);
            conn.as_ref().map(ServerConn::announce_cancel)
        };
        if let Some(cancel) = announced {
            // A cancel that does not get through is a cancel that came too late: the client's statement
            // goes on, and the client may ask again.
            let _ = cancel.send().await;
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

/// One request of a session at a time goes to the server, and serves all that had come when it began.
#[derive(Debug, Default)]
pub struct Turn {
    asked: AtomicU64,
    answered: Mutex<u64>,
}

impl Turn {
    /// Runs `act`, or waits for a run of somebody else that began after this call.
    ///
    /// Cancel safe: whoever waits behind a dropped call acts instead.
    pub async fn take(&self, act: impl AsyncFnOnce()) {
        let ticket = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut answered = self.answered.lock().await;
        if *answered >= ticket {
            return;
        }
        let all = self.asked.load(Ordering::Acquire);
        act().await;
        *answered = all;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn keys_are_long_where_the_protocol_has_room_and_never_alike() {
        assert_eq!([0, 1, 2].map(|minor| CancelKey::new(minor).bytes().len()), [4, 4, 32]);
        let (one, other) = (CancelKey::new(2), CancelKey::new(2));
        assert!(one.is(one.bytes()) && !one.is(other.bytes()));
        assert!(!one.is(&one.bytes()[..4]) && !one.is(&[]), "a part of it is not enough");
    }

    /// A hundred requests while the first is on its way: one more answers them all.
    #[tokio::test]
    async fn requests_that_come_together_are_answered_together() {
        let (turn, acts) = (Arc::new(Turn::default()), Arc::new(AtomicUsize::new(0)));
        let (begun, may_end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (turn, acts) = (Arc::clone(&turn), Arc::clone(&acts));
            let (begun, may_end) = (Arc::clone(&begun), Arc::clone(&may_end));
            tokio::spawn(async move {
                turn.take(async || {
                    acts.fetch_add(1, Ordering::Relaxed);
                    begun.add_permits(1);
                    may_end.acquire().await.unwrap().forget();
                })
                .await;
            })
        };
        let first = ask();
        begun.acquire().await.unwrap().forget();
        let rest: Vec<_> = (0..100).map(|_| ask()).collect();
        while turn.asked.load(Ordering::Relaxed) < 101 {
            tokio::task::yield_now().await;
        }
        may_end.add_permits(101);
        first.await.unwrap();
        for one in rest {
            one.await.unwrap();
        }
        assert_eq!(
            acts.load(Ordering::Relaxed),
            2,
            "a request that came later is never answered by an earlier act"
        );
    }
}
