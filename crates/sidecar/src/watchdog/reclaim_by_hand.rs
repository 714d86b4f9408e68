//! A reclaim that a person asks for.

use std::time::Duration;

use pgleash_core::{CheckoutId, Phase, string_enum};

use crate::pool::state::WatchedPool;
use crate::upstream::backend_probe::Backend;

/// How long the holder's own task may take to look at its sockets, and how often that is asked.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);

string_enum! {
    /// What came of a reclaim that a person asked for.
    ByHand {
        /// The holder has lost the connection.
        Taken => "taken",
        /// There is no such checkout, or it is over.
        Unknown => "unknown",
        /// A statement is in flight: that is never taken.
        InFlight => "in_flight",
        /// The holder moved meanwhile, or its task did not get to look at its socket.
        Moved => "moved",
        /// The server does not confirm that it waits for the client.
        Unconfirmed => "unconfirmed",
    }
}

impl ByHand {
    /// In words.
    pub(crate) const fn said(self) -> &'static str {
        match self {
            ByHand::Taken => "taken back; its client was told",
            ByHand::Unknown => "there is no such checkout, or it is over",
            ByHand::InFlight => "a statement is in flight; nothing was done",
            ByHand::Moved => "the holder moved meanwhile; nothing was done",
            ByHand::Unconfirmed => "the server does not say that it waits for the client; nothing was done",
        }
    }
}

/// Takes a connection from its holder because a person says so: without limit and budget, but as every
/// other reclaim never with work in flight, after the holder's own task has looked, and by one swap.
/// `of` is the process id of its backend, if the person knows it: numbers of checkouts begin anew in each process.
/// Takes a second at most, and three more for a question to the server.
pub(crate) async fn reclaim_by_hand(pool: &WatchedPool, checkout: CheckoutId, of: Option<i32>) -> ByHand {
    let inner = pool.inner();
    let Some((handle, backend_pid)) = inner.ledger().leash_of(checkout) else { return ByHand::Unknown };
    if of.is_some_and(|of| of != backend_pid) {
        return ByHand::Unknown;
    }
    let patience = pgleash_clock::now() + PATIENCE;
    let seen = loop {
        let seen = handle.as_ref().observe();
        if seen.phase == Phase::InFlight {
            return ByHand::InFlight;
        }
        if handle.as_ref().confirm(seen) {
            break seen;
        }
        if pgleash_clock::now() >= patience {
            return ByHand::Moved;
        }
        handle.0.waker.wake();
        tokio::time::sleep(LOOK).await;
    };
    if seen.phase == Phase::AwaitsClient {
        let Some(conn) = pool.conn_of(backend_pid) else { return ByHand::Unknown };
        if inner.probe.ask(&conn).await != Ok(Backend::WaitsForClient) {
            return ByHand::Unconfirmed;
        }
    }
    let mut ledger = inner.ledger();
    if !handle.as_ref().take(seen) {
        return ByHand::Moved;
    }
    let told = ledger.reclaiming_by_hand(checkout, seen.phase, pgleash_clock::now());
    drop(ledger);
    told.into_iter().for_each(|event| inner.sink.emit(event));
    handle.0.waker.wake();
    ByHand::Taken
}
