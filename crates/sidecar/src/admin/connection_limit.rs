//! ConnectionLimit for the connections of one HTTP server.
//!
//! Whoever has not asked for anything yet keeps its place only while nobody else wants it: the one that goes is the
//! oldest of the address that has the most such connections, once it has had a moment to ask. So a flood of connections that say nothing costs those
//! who ask nothing but the moment that it takes to turn the flood away.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use pgleash_core::Moment;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

/// The places of one server.
pub(crate) struct ConnectionLimit {
    places: Arc<Semaphore>,
    quiet: Mutex<Quiet>,
}

/// Those who have not asked yet, in the order in which they came.
#[derive(Default)]
struct Quiet {
    last: u64,
    guests: BTreeMap<u64, Silent>,
}

struct Silent {
    from: IpAddr,
    since: Moment,
    away: oneshot::Sender<()>,
}

impl Quiet {
    /// The oldest of the address with the most of them.
    fn to_go(&self) -> Option<u64> {
        let mut of_address: HashMap<IpAddr, (usize, u64)> = HashMap::new();
        for (number, silent) in &self.guests {
            of_address.entry(silent.from).or_insert((0, *number)).0 += 1;
        }
        let most = of_address.into_values().max_by_key(|(count, oldest)| (*count, u64::MAX - oldest));
        most.map(|(_, oldest)| oldest)
    }
}

impl ConnectionLimit {
    /// How long one may take to ask before it has to make room: a request that came with its connection may not have
    /// been read yet.
    const MOMENT: Duration = Duration::from_millis(10);

    /// ConnectionLimit for `places` connections.
    pub(crate) fn new(places: u32) -> Arc<Self> {
        Arc::new(Self { places: Arc::new(Semaphore::new(places as usize)), quiet: Mutex::default() })
    }

    /// A place for a connection that was accepted from `peer`. If there is none, one who has not asked yet goes; if there
    /// is no such one, it waits. Cancel safe.
    pub(crate) async fn admit(self: &Arc<Self>, peer: IpAddr) -> ConnectionPermit {
        let mut place = Arc::clone(&self.places).try_acquire_owned().ok();
        while place.is_none() {
            self.send_one_away(pgleash_clock::now());
            // The semaphore is never closed: there is a place in the end.
            let freed = timeout(Self::MOMENT, Arc::clone(&self.places).acquire_owned()).await;
            place = freed.ok().and_then(Result::ok);
        }
        let from = peer.to_canonical();
        let number = {
            let mut quiet = self.quiet();
            quiet.last += 1;
            quiet.last
        };
        let sent_away = self.sits_down(number, from);
        let guest = Guest { limit: Arc::clone(self), number, asked: Arc::default() };
        ConnectionPermit { guest, from, sent_away, _place: place }
    }

    /// From now on it may be sent away, which the answer then tells.
    fn sits_down(&self, number: u64, from: IpAddr) -> oneshot::Receiver<()> {
        let (away, sent_away) = oneshot::channel();
        self.quiet().guests.insert(number, Silent { from, since: pgleash_clock::now(), away });
        sent_away
    }

    /// Waits until all of `places` are free.
    pub(crate) async fn emptied(&self, places: u32) {
        let _ = self.places.acquire_many(places).await;
    }

    fn send_one_away(&self, now: Moment) {
        let mut quiet = self.quiet();
        let Some(number) = quiet.to_go() else { return };
        if quiet.guests.get(&number).is_some_and(|silent| now.since(silent.since) >= Self::MOMENT)
            && let Some(silent) = quiet.guests.remove(&number)
        {
            let _ = silent.away.send(());
        }
    }

    fn quiet(&self) -> MutexGuard<'_, Quiet> {
        self.quiet.lock()
    }
}

/// The place of one connection; free when it is dropped.
pub(crate) struct ConnectionPermit {
    guest: Guest,
    from: IpAddr,
    sent_away: oneshot::Receiver<()>,
    _place: Option<OwnedSemaphorePermit>,
}

impl ConnectionPermit {
    /// Whose it is.
    pub(crate) fn guest(&self) -> Guest {
        self.guest.clone()
    }

    /// It was sent away, and its request was found to be there, unread: it has another moment.
    pub(crate) fn stay(&mut self) {
        self.sent_away = self.guest.limit.sits_down(self.guest.number, self.from);
    }

    /// Resolves when it has to go; never once it has asked. Cancel safe; once it has resolved, not to be asked again
    /// before [`ConnectionPermit::stay`].
    pub(crate) async fn sent_away(&mut self) {
        if (&mut self.sent_away).await.is_err() || self.guest.asked.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.guest.has_asked();
    }
}

/// One connection.
#[derive(Clone)]
pub(crate) struct Guest {
    limit: Arc<ConnectionLimit>,
    number: u64,
    asked: Arc<AtomicBool>,
}

impl Guest {
    /// Its request is there: it keeps its place.
    pub(crate) fn has_asked(&self) {
        self.asked.store(true, Ordering::Relaxed);
        self.limit.quiet().guests.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn the_oldest_of_who_has_most_goes_and_who_has_asked_stays() {
        let limit = ConnectionLimit::new(4);
        let mut lonely = limit.admit(address("10.0.0.1")).await;
        let mut asked = limit.admit(address("10.0.0.2")).await;
        asked.guest().has_asked();
        let mut older = limit.admit(address("10.0.0.2")).await;
        let mut newer = limit.admit(address("::ffff:10.0.0.2")).await;
        let (admitted, ()) = tokio::join!(limit.admit(address("10.0.0.3")), async {
            tokio::select! {
                () = older.sent_away() => drop(older),
                () = newer.sent_away() => panic!("the newer one was sent away"),
                () = lonely.sent_away() => panic!("it is the only one of its address"),
                () = asked.sent_away() => panic!("it is being answered"),
            }
        });
        drop((lonely, asked, newer));
        let mut others = Vec::new();
        for _ in 0..3 {
            others.push(limit.admit(address("10.0.0.4")).await);
        }
        others.iter().for_each(|place| place.guest().has_asked());
        admitted.guest().has_asked();
        let waits = limit.admit(address("10.0.0.5")).now_or_never().is_none();
        assert!(waits, "all are being answered");
        drop((others, admitted));
        limit.emptied(4).await;
        assert!(limit.quiet().guests.is_empty());
    }
}
