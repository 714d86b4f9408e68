//! The one background task that looks at every checkout and carries out verdicts.
//!
//! It runs on a thread of its own, so that it keeps looking when the data path is busy. It sleeps to
//! the next moment at which a verdict may change, and wakes at least once a second to beat its heart,
//! to close what is spent, and to feed the forecast.

pub(crate) mod wait_sampler;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pgleash_core::{Action, CheckoutId, Due, Event, Moment, Phase, Reason, Suppression, string_enum};
use tokio::sync::Notify;

use crate::pool::state::WatchedPool;
use crate::upstream::backend_probe::Backend;
use crate::upstream::holder_handle::HolderHandle;

/// What the watchdog shares with the rest of the process.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    heartbeat: AtomicU64,
    disarmed: AtomicBool,
    stopped: AtomicBool,
    /// Wakes the watchdog before its time.
    pub attention: Arc<Notify>,
}

impl Watch {
    /// A heart that is silent for longer has stopped.
    pub(crate) const STALE: Duration = Duration::from_secs(10);

    /// Stops enforcement, before a drain: draining is not leaking.
    pub(crate) fn disarm(&self) {
        self.disarmed.store(true, Ordering::Release);
    }

    /// Whether verdicts are not carried out any more.
    pub(crate) fn is_disarmed(&self) -> bool {
        self.disarmed.load(Ordering::Acquire)
    }

    /// When the watchdog last looked at every pool.
    pub(crate) fn last_look(&self) -> Moment {
        Moment::from_nanos(self.heartbeat.load(Ordering::Acquire))
    }

    /// Ends the watchdog.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.attention.notify_one();
    }
}

/// Starts the watchdog on its own thread. `pools` lists the pools there are.
///
/// # Errors
/// The system gives no thread.
pub(crate) fn spawn(
    watch: Arc<Watch>,
    pools: impl Fn() -> Vec<WatchedPool> + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    watch.heartbeat.store(pgleash_clock::now().as_nanos(), Ordering::Release);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("pgleash-keeper".into()).spawn(move || {
        runtime.block_on(Keeper { watch, confirming: Arc::default() }.run(pools));
    })
}

struct Keeper {
    watch: Arc<Watch>,
    /// Checkouts about which the server is being asked.
    confirming: Arc<Mutex<HashSet<CheckoutId>>>,
}

impl Keeper {
    const LONGEST_SLEEP: Duration = Duration::from_secs(1);
    const SHORTEST_SLEEP: Duration = Duration::from_millis(5);

    async fn run(self, pools: impl Fn() -> Vec<WatchedPool>) {
        while !self.watch.stopped.load(Ordering::Acquire) {
            let now = pgleash_clock::now();
            let next = pools().iter().filter_map(|pool| self.look_at(pool, now)).min();
            self.watch.heartbeat.store(now.as_nanos(), Ordering::Release);
            let sleep = next.map_or(Self::LONGEST_SLEEP, |next| next.since(now));
            let sleep = sleep.clamp(Self::SHORTEST_SLEEP, Self::LONGEST_SLEEP);
            drop(tokio::time::timeout(sleep, self.watch.attention.notified()).await);
        }
    }

    /// One look at one pool; when the next is due.
    fn look_at(&self, pool: &WatchedPool, now: Moment) -> Option<Moment> {
        let inner = pool.inner();
        let sweep = inner.ledger().sweep(&inner.policy.load(), now);
        for event in sweep.events {
            inner.sink.emit(event);
        }
        for due in sweep.due {
            self.carry_out(pool, due, now);
        }
        pool.reap(now);
        wait_sampler::look(pool, now);
        inner.probe.expire(now);
        sweep.next
    }

    fn carry_out(&self, pool: &WatchedPool, due: Due<HolderHandle>, now: Moment) {
        // What was published is old if the data path stalls. The holder's own task has the last word:
        // it is woken, looks at its sockets, and wakes us. While it does not, nothing is done.
        if !due.handle.as_ref().confirm(due.seen) {
            return due.handle.0.waker.wake();
        }
        if self.watch.is_disarmed() {
            // What it would have come to before counts.
            if due.left_alone.is_none() {
                suppress(pool, due, Suppression::Draining, now);
            }
        } else if is_only_watched(pool) && due.left_alone == Some(Suppression::Observe) {
            // Its verdict has been told.
        } else if due.reason == Reason::ProtocolWedge {
            self.confirm_then_act(pool, due);
        } else {
            act(pool, due, now);
        }
    }

    /// A wedge is certain only when the server says that it waits for its client.
    fn confirm_then_act(&self, pool: &WatchedPool, due: Due<HolderHandle>) {
        if !self.lock().insert(due.checkout) {
            return;
        }
        let (pool, confirming) = (pool.clone(), Arc::clone(&self.confirming));
        tokio::spawn(async move {
            let checkout = due.checkout;
            let conn = pool.conn_of(due.evidence.backend_pid);
            let waits = match conn {
                Some(conn) => pool.inner().probe.ask(&conn).await == Ok(Backend::WaitsForClient),
                None => false,
            };
            if waits {
                act(&pool, due, pgleash_clock::now());
            } else {
                suppress(&pool, due, Suppression::Unconfirmed, pgleash_clock::now());
                tokio::time::sleep(Keeper::LONGEST_SLEEP).await;
            }
            confirming.lock().remove(&checkout);
        });
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, HashSet<CheckoutId>> {
        self.confirming.lock()
    }
}

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
    let patience = pgleash_clock::now() + Keeper::LONGEST_SLEEP;
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
        tokio::time::sleep(Keeper::SHORTEST_SLEEP).await;
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

/// Whether what is due is told, and not done.
fn is_only_watched(pool: &WatchedPool) -> bool {
    pool.inner().policy.load().action == Action::Observe
}

/// Takes the connection from its holder, if the budget allows and nobody has moved. Where nothing may be
/// done it comes to the same verdict, budget included, and tells it.
fn act(pool: &WatchedPool, due: Due<HolderHandle>, now: Moment) {
    let inner = pool.inner();
    let policy = inner.policy.load();
    let mut reclaims = inner.reclaims.lock();
    while reclaims.front().is_some_and(|at| now.since(*at) >= policy.budget.per) {
        reclaims.pop_front();
    }
    if reclaims.len() >= policy.budget.allowance(policy.size) {
        drop(reclaims);
        return suppress(pool, due, Suppression::Budget, now);
    }
    if is_only_watched(pool) {
        // A swap would fail if it has moved.
        if due.handle.as_ref().observe().epoch() != due.seen.epoch() {
            drop(reclaims);
            return suppress(pool, due, Suppression::Moved, now);
        }
        reclaims.push_back(now);
        drop(reclaims);
        return suppress(pool, due, Suppression::Observe, now);
    }
    // Decided and done under one swap, and under the ledger's lock, so that the checkout cannot end
    // between the swap and the mark.
    let mut ledger = inner.ledger();
    if due.handle.as_ref().take(due.seen) {
        ledger.reclaiming(due.checkout);
        drop(ledger);
        reclaims.push_back(now);
        due.handle.0.waker.wake();
    } else {
        drop(ledger);
        drop(reclaims);
        suppress(pool, due, Suppression::Moved, now);
    }
}

/// Notes why nothing was done, and tells it once for each suspicion; and once more when it would have been
/// done in the end, had that been allowed.
fn suppress(pool: &WatchedPool, due: Due<HolderHandle>, because: Suppression, now: Moment) {
    let inner = pool.inner();
    let suspect = inner.ledger().left_alone(due.checkout, due.seen, because, now);
    if !suspect || due.left_alone.is_some() && because != Suppression::Observe {
        return;
    }
    let Due { reason, evidence, .. } = due;
    let (pool, dry_run) = (inner.key.clone(), is_only_watched(pool));
    inner.sink.emit(Event::ReclaimSuppressed { pool, reason, because, dry_run, evidence });
}
