//! Room for the connections of one HTTP server. Floor 4.
//!
//! Whoever has not asked for anything yet keeps its place only while nobody else wants it: the one that goes is the
//! oldest of the address that has the most such connections. So a flood of connections that say nothing costs those
//! who ask nothing but the moment that it takes to turn the flood away.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// The places of one server.
pub(super) struct Room {
    places: Arc<Semaphore>,
    quiet: Mutex<Quiet>,
}

/// Those who have not asked yet, in the order in which they came.
#[derive(Default)]
struct Quiet {
    last: u64,
    guests: BTreeMap<u64, (IpAddr, oneshot::Sender<()>)>,
}

impl Quiet {
    /// The oldest of the address with the most of them.
    fn to_go(&self) -> Option<u64> {
        let mut of_address: HashMap<IpAddr, (usize, u64)> = HashMap::new();
        for (number, (from, _)) in &self.guests {
            of_address.entry(*from).or_insert((0, *number)).0 += 1;
        }
        let most = of_address.into_values().max_by_key(|(count, oldest)| (*count, u64::MAX - oldest));
        most.map(|(_, oldest)| oldest)
    }
}

impl Room {
    /// Room for `places` connections.
    pub(super) fn new(places: u32) -> Arc<Self> {
        Arc::new(Self { places: Arc::new(Semaphore::new(places as usize)), quiet: Mutex::default() })
    }

    /// A place for a connection that was accepted from `peer`. If there is none, one who has not asked yet goes; if there
    /// is no such one, it waits. Cancel safe.
    pub(super) async fn admit(self: &Arc<Self>, peer: IpAddr) -> Place {
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) => {
                self.send_one_away();
                // The semaphore is never closed: there is a place in the end.
                Arc::clone(&self.places).acquire_owned().await.ok()
            }
        };
        let (away, sent_away) = oneshot::channel();
        let mut quiet = self.quiet();
        quiet.last += 1;
        let number = quiet.last;
        quiet.guests.insert(number, (peer.to_canonical(), away));
        Place { guest: Guest { room: Arc::clone(self), number }, sent_away, _place: place }
    }

    /// Waits until all of `places` are free.
    pub(super) async fn emptied(&self, places: u32) {
        let _ = self.places.acquire_many(places).await;
    }

    fn send_one_away(&self) {
        let mut quiet = self.quiet();
        if let Some((_, away)) = quiet.to_go().and_then(|number| quiet.guests.remove(&number)) {
            let _ = away.send(());
        }
    }

    fn quiet(&self) -> MutexGuard<'_, Quiet> {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection; free when it is dropped.
pub(super) struct Place {
    guest: Guest,
    sent_away: oneshot::Receiver<()>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Whose it is.
    pub(super) fn guest(&self) -> Guest {
        self.guest.clone()
    }

    /// Resolves when it has to go; never once it has asked. Cancel safe.
    pub(super) async fn sent_away(&mut self) {
        if (&mut self.sent_away).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.guest.has_asked();
    }
}

/// One connection.
#[derive(Clone)]
pub(super) struct Guest {
    room: Arc<Room>,
    number: u64,
}

impl Guest {
    /// Its request is there: it keeps its place.
    pub(super) fn has_asked(&self) {
        self.room.quiet().guests.remove(&self.number);
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
        let room = Room::new(4);
        let mut lonely = room.admit(address("10.0.0.1")).await;
        let mut asked = room.admit(address("10.0.0.2")).await;
        asked.guest().has_asked();
        let mut older = room.admit(address("10.0.0.2")).await;
        let mut newer = room.admit(address("::ffff:10.0.0.2")).await;
        let (admitted, ()) = tokio::join!(room.admit(address("10.0.0.3")), async {
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
            others.push(room.admit(address("10.0.0.4")).await);
        }
        others.iter().for_each(|place| place.guest().has_asked());
        admitted.guest().has_asked();
        let waits = room.admit(address("10.0.0.5")).now_or_never().is_none();
        assert!(waits, "all are being answered");
        drop((others, admitted));
        room.emptied(4).await;
        assert!(room.quiet().guests.is_empty());
    }
}
