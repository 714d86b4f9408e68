//! What one holder's connection is doing, in one atomic word.
//!
//! The data path publishes; the watchdog observes, and takes the connection by a compare-and-swap on
//! what it observed. Whoever swaps first has it: a holder that moves voids the verdict, a verdict
//! that is carried out stops the holder at its next byte. So a checkout with work in flight cannot
//! be reclaimed: the word in which it was seen idle no longer stands.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::fingerprint;
use crate::ids::Moment;
use crate::trace::Trace;

/// What a lent connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Phase {
    /// Nothing in flight, no transaction.
    Held = 0,
    /// The server has something to do or to say.
    InFlight = 1,
    /// Nothing in flight, a transaction is open.
    InTransaction = 2,
    /// The server waits in mid-protocol for the client.
    AwaitsClient = 3,
}

/// The holder has lost the connection, or has given it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaimed;

/// A pause: the client has the word, and nothing is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pause {
    /// With a transaction open.
    InTransaction,
    /// Outside a transaction.
    Held,
}

impl Pause {
    /// Both kinds.
    pub const ALL: [Pause; 2] = [Pause::InTransaction, Pause::Held];

    /// What a holder in this phase is having; `None` if it does not pause.
    pub const fn of(phase: Phase) -> Option<Pause> {
        match phase {
            Phase::Held => Some(Pause::Held),
            Phase::InTransaction => Some(Pause::InTransaction),
            Phase::InFlight | Phase::AwaitsClient => None,
        }
    }
}

/// One look at an [`Activity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    word: u64,
    /// What the connection is doing.
    pub phase: Phase,
    /// When a byte last went either way.
    pub last_active: Moment,
}

impl Observed {
    /// Changes whenever the holder moves.
    pub fn epoch(&self) -> u64 {
        self.word >> EPOCH_SHIFT
    }

    /// What was seen of no holder in particular.
    #[cfg(test)]
    pub(crate) fn fake(phase: Phase, last_active: Moment) -> Self {
        Self { word: 0, phase, last_active }
    }
}

const TAKEN: u64 = 1;
const OVER: u64 = 2;
const PHASE_SHIFT: u32 = 2;
const PHASE_MASK: u64 = 3 << PHASE_SHIFT;
const EPOCH_SHIFT: u32 = 4;

/// One holder's activity. Lives as long as the client's session and serves its checkouts in turn.
#[derive(Debug, Default)]
pub struct Activity {
    /// epoch, phase, OVER, TAKEN.
    word: AtomicU64,
    last_active: AtomicU64,
    /// The epoch about which the watchdog asks whether there is really nothing to read.
    asked: AtomicU64,
    /// The epoch at which the holder's task last looked and found nothing.
    answered: AtomicU64,
    /// The longest pause of each kind that ended by the client's going on, in nanoseconds, since it was asked
    /// for last; 0 if none did.
    paused: [AtomicU64; Pause::ALL.len()],
    /// The trace that the last statement belongs to: id, high and low, and span. Read without a lock, so it is
    /// a hint.
    trace: [AtomicU64; 3],
    /// The beginning of the last statement. Only its fingerprint is ever shown.
    statement: Mutex<Vec<u8>>,
}

impl Activity {
    /// Between checkouts.
    pub fn new() -> Self {
        Self { word: AtomicU64::new(OVER), ..Self::default() }
    }

    /// A checkout begins: something is about to be sent.
    pub fn begin(&self, now: Moment) {
        self.last_active.store(now.as_nanos(), Ordering::Relaxed);
        for pause in &self.paused {
            pause.store(0, Ordering::Relaxed);
        }
        // What the client said before was of another checkout.
        self.statement.lock().clear();
        for word in &self.trace {
            word.store(0, Ordering::Relaxed);
        }
        let epoch = (self.word.load(Ordering::Relaxed) >> EPOCH_SHIFT) + 1;
        self.word.store(epoch << EPOCH_SHIFT | (Phase::InFlight as u64) << PHASE_SHIFT, Ordering::Release);
    }

    /// The holder moved, and is now in `phase`.
    ///
    /// # Errors
    /// [`Reclaimed`] if the connection was reclaimed: not one more byte may be forwarded.
    pub fn publish(&self, phase: Phase, now: Moment) -> Result<(), Reclaimed> {
        if let Some(pause) = Pause::of(phase_in(self.word.load(Ordering::Relaxed))) {
            let since = Moment::from_nanos(self.last_active.load(Ordering::Relaxed));
            let length = u64::try_from(now.since(since).as_nanos()).unwrap_or(u64::MAX).max(1);
            self.paused[pause as usize].fetch_max(length, Ordering::Relaxed);
        }
        // Before the word: who sees the new epoch must not see the old time with it.
        self.last_active.store(now.as_nanos(), Ordering::Release);
        self.swap(|word| ((word >> EPOCH_SHIFT) + 1) << EPOCH_SHIFT | (phase as u64) << PHASE_SHIFT)
    }

    /// The holder gives the connection back.
    ///
    /// # Errors
    /// [`Reclaimed`] if it was reclaimed before.
    pub fn finish(&self) -> Result<(), Reclaimed> {
        self.swap(|word| ((word >> EPOCH_SHIFT) + 1) << EPOCH_SHIFT | OVER)
    }

    fn swap(&self, next: impl Fn(u64) -> u64) -> Result<(), Reclaimed> {
        let step = |word| (word & TAKEN == 0).then(|| next(word));
        self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).map(drop).map_err(|_| Reclaimed)
    }

    /// What the holder is doing.
    pub fn observe(&self) -> Observed {
        let word = self.word.load(Ordering::Acquire);
        let last_active = Moment::from_nanos(self.last_active.load(Ordering::Acquire));
        Observed { word, phase: phase_in(word), last_active }
    }

    /// The longest pause of this kind that has ended since this was asked last in this checkout; `None` if
    /// none did.
    pub fn longest_pause(&self, pause: Pause) -> Option<Duration> {
        let longest = &self.paused[pause as usize];
        // A look that finds nothing writes nothing: there are many more looks than pauses.
        let some = longest.load(Ordering::Relaxed) != 0;
        some.then(|| Duration::from_nanos(longest.swap(0, Ordering::Relaxed)))
    }

    /// The holder sends this statement, whose memory it gets that of the last for. It belongs to this trace, if any.
    pub fn says(&self, statement: &mut Vec<u8>, trace: Trace) {
        std::mem::swap(&mut *self.statement.lock(), statement);
        let words = [(trace.id >> 64) as u64, trace.id as u64, trace.span];
        for (kept, word) in self.trace.iter().zip(words) {
            kept.store(word, Ordering::Relaxed);
        }
    }

    /// The fingerprint of the holder's last statement; empty if it has sent none with a text.
    pub fn statement(&self) -> String {
        let statement = self.statement.lock().clone();
        fingerprint::of(&statement)
    }

    /// The trace that it belongs to.
    pub fn trace(&self) -> Option<Trace> {
        let [high, low, span] = [0, 1, 2].map(|n: usize| self.trace[n].load(Ordering::Relaxed));
        let trace = Trace { id: u128::from(high) << 64 | u128::from(low), span };
        (trace.id != 0).then_some(trace)
    }

    /// Asks the holder's task to look at its sockets again: what is published may be old, because the
    /// data path was stalled, while the client's next statement waits to be read. True if it has looked
    /// since it was seen like this, and found nothing.
    pub fn confirm(&self, seen: Observed) -> bool {
        let confirmed = self.answered.load(Ordering::Acquire) == seen.epoch();
        if !confirmed {
            self.asked.store(seen.epoch(), Ordering::Release);
        }
        confirmed
    }

    /// Whether the watchdog has asked, and the answer would be about now.
    pub fn is_asked(&self) -> bool {
        let epoch = self.word.load(Ordering::Relaxed) >> EPOCH_SHIFT;
        self.asked.load(Ordering::Acquire) == epoch && self.answered.load(Ordering::Relaxed) != epoch
    }

    /// The holder's task has looked at its sockets after it was asked, and there is nothing to read.
    pub fn answer(&self) {
        let epoch = self.word.load(Ordering::Relaxed) >> EPOCH_SHIFT;
        self.answered.store(epoch, Ordering::Release);
    }

    /// Takes the connection from the holder, if nothing has changed since `seen` and nothing is in
    /// flight. True if it is taken: the holder will forward nothing any more.
    pub fn take(&self, seen: Observed) -> bool {
        seen.phase != Phase::InFlight
            && seen.word & (TAKEN | OVER) == 0
            && self
                .word
                .compare_exchange(seen.word, seen.word | TAKEN, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }

    /// Whether the connection was taken from the holder.
    pub fn is_taken(&self) -> bool {
        self.word.load(Ordering::Acquire) & TAKEN != 0
    }
}

const fn phase_in(word: u64) -> Phase {
    match (word & PHASE_MASK) >> PHASE_SHIFT {
        0 => Phase::Held,
        1 => Phase::InFlight,
        2 => Phase::InTransaction,
        _ => Phase::AwaitsClient,
    }
}

impl AsRef<Activity> for Activity {
    fn as_ref(&self) -> &Activity {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T1: Moment = Moment::from_secs(1);
    const T2: Moment = Moment::from_secs(2);

    #[test]
    fn a_holder_that_moves_voids_the_verdict() {
        let activity = Activity::new();
        activity.begin(T1);
        activity.publish(Phase::InTransaction, T1).unwrap();
        let seen = activity.observe(); // 1. the keeper sees it idle in transaction
        activity.publish(Phase::InFlight, T2).unwrap(); // 2. the holder sends COMMIT
        assert!(!activity.take(seen)); // 3. the keeper comes too late
        activity.publish(Phase::InTransaction, T2).unwrap();
        assert!(!activity.take(seen), "same phase, later epoch");
    }

    #[test]
    fn a_holder_that_lost_its_connection_forwards_nothing() {
        let activity = Activity::new();
        activity.begin(T1);
        activity.publish(Phase::InTransaction, T1).unwrap();
        assert!(activity.take(activity.observe()));
        assert_eq!(activity.publish(Phase::InFlight, T2), Err(Reclaimed));
        assert_eq!(activity.finish(), Err(Reclaimed));
    }

    #[test]
    fn a_pause_counts_when_the_client_goes_on_and_is_told_once() {
        let second = |n| Moment::from_secs(n);
        let activity = Activity::new();
        activity.begin(second(0));
        activity.publish(Phase::InTransaction, second(1)).unwrap();
        assert_eq!(activity.longest_pause(Pause::InTransaction), None, "it is not over");
        for (idle_until, next_idle) in [(4, 10), (11, 12)] {
            activity.publish(Phase::InFlight, second(idle_until)).unwrap();
            activity.publish(Phase::InTransaction, second(next_idle)).unwrap();
        }
        assert_eq!(activity.longest_pause(Pause::Held), None);
        assert_eq!(activity.longest_pause(Pause::InTransaction), Some(Duration::from_secs(3)));
        assert_eq!(activity.longest_pause(Pause::InTransaction), None);
        activity.publish(Phase::InFlight, second(14)).unwrap();
        activity.begin(second(20));
        assert_eq!(activity.longest_pause(Pause::InTransaction), None, "of another checkout");
    }

    #[test]
    fn silence_is_confirmed_by_the_holders_own_task() {
        let activity = Activity::new();
        activity.begin(T1);
        activity.publish(Phase::Held, T1).unwrap();
        let seen = activity.observe();
        assert!(!activity.is_asked());
        assert!(!activity.confirm(seen)); // 1. the keeper asks
        assert!(activity.is_asked()); // 2. the task is woken, looks, finds nothing
        activity.answer();
        assert!(!activity.is_asked());
        assert!(activity.confirm(seen)); // 3. the keeper knows
        activity.publish(Phase::Held, T2).unwrap();
        assert!(!activity.confirm(activity.observe()), "an answer is about one epoch");
    }

    #[test]
    fn work_in_flight_and_checkouts_that_are_over_cannot_be_taken() {
        let activity = Activity::new();
        assert!(!activity.take(activity.observe()));
        activity.begin(T1);
        assert!(!activity.take(activity.observe()));
        activity.publish(Phase::Held, T1).unwrap();
        activity.finish().unwrap();
        assert!(!activity.take(activity.observe()));
    }

    /// What the holder and the watchdog each believe, thousands of times at once: of a move that must
    /// not be taken for idle (2. in the first story) and a taking, never both go through.
    #[test]
    fn never_do_both_holder_and_keeper_succeed() {
        const ROUNDS: usize = 5_000;
        let activity = Activity::new();
        let barrier = std::sync::Barrier::new(2);
        let (mut moved, mut taken) = (0, 0);
        std::thread::scope(|scope| {
            let keeper = scope.spawn(|| {
                let mut won = Vec::with_capacity(ROUNDS);
                for _ in 0..ROUNDS {
                    barrier.wait(); // The holder is idle in transaction.
                    let seen = activity.observe();
                    barrier.wait(); // Now both act on that.
                    won.push(activity.take(seen));
                    barrier.wait();
                }
                won
            });
            let mut sent = Vec::with_capacity(ROUNDS);
            for _ in 0..ROUNDS {
                activity.begin(T1);
                activity.publish(Phase::InTransaction, T1).unwrap();
                barrier.wait();
                barrier.wait();
                sent.push(activity.publish(Phase::InFlight, T2).is_ok());
                barrier.wait();
            }
            for (sent, won) in sent.into_iter().zip(keeper.join().unwrap()) {
                assert!(sent != won, "exactly one has the connection: sent {sent}, taken {won}");
                moved += usize::from(sent);
                taken += usize::from(won);
            }
        });
        assert_eq!(moved + taken, ROUNDS);
        assert!(!activity.take(activity.observe()));
    }
}
