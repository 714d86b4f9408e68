//! What waits to be sent to one receiver, and when. Pure: it takes `now`.

use std::collections::VecDeque;
use std::time::Duration;

use pgleash_core::{Delivery, Moment};

/// What a receiver answered, or why it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has it.
    Taken,
    /// It may take it later, not before this time if it said so.
    Later(String, Option<Duration>),
    /// It will never take it.
    Never(String),
}

/// Requests for one receiver: in order, bounded, paced, and tried again while that may help.
#[derive(Debug)]
pub struct RetryQueue<T> {
    waiting: VecDeque<(T, Moment)>,
    /// Attempts at the first one that failed.
    failures: u32,
    not_before: Moment,
    /// Requests that may go now without exceeding the pace, and when that was so.
    tokens: f64,
    counted: Moment,
}

impl<T> RetryQueue<T> {
    /// More than this do not wait: the oldest is given up.
    pub const ROOM: usize = 256;
    /// Requests a minute, lastingly; the same number may go at once.
    pub const PACE: f64 = 60.0;
    /// A request that could not be sent for so long is given up.
    pub const PATIENCE: Duration = Duration::from_secs(900);
    const FIRST_PAUSE: Duration = Duration::from_secs(1);
    const LONGEST_PAUSE: Duration = Duration::from_secs(60);

    /// Nothing waits.
    pub fn new(now: Moment) -> Self {
        Self { waiting: VecDeque::new(), failures: 0, not_before: now, tokens: Self::PACE, counted: now }
    }

    /// Takes a request in. [`Delivery::Dropped`] if the oldest had to go for it.
    pub fn push(&mut self, request: T, now: Moment) -> Option<Delivery> {
        self.waiting.push_back((request, now));
        if self.waiting.len() <= Self::ROOM {
            return None;
        }
        self.waiting.pop_front();
        self.failures = 0;
        Some(Delivery::Dropped)
    }

    /// When the first one may be sent; `None` if nothing waits.
    pub fn due(&self) -> Option<Moment> {
        let wait = ((1.0 - self.tokens) * 60.0 / Self::PACE).max(0.0);
        let paced = self.counted + Duration::from_secs_f64(wait);
        self.waiting.front().map(|_| self.not_before.max(paced))
    }

    /// The first one, if it may be sent now.
    pub fn first(&mut self, now: Moment) -> Option<&T> {
        let earned = now.since(self.counted).as_secs_f64() * Self::PACE / 60.0;
        self.tokens = (self.tokens + earned).min(Self::PACE);
        self.counted = now;
        if now < self.not_before || self.tokens < 1.0 {
            return None;
        }
        self.waiting.front().map(|(request, _)| request)
    }

    /// The first one was tried. What came of it, if that is settled. `jitter` is from 0 to 1.
    pub fn tried(&mut self, answer: &Answer, jitter: f64, now: Moment) -> Option<Delivery> {
        self.tokens -= 1.0;
        let settled = match answer {
            Answer::Taken => Some(Delivery::Sent),
            Answer::Never(_) => Some(Delivery::Refused),
            Answer::Later(_, after) => {
                self.failures += 1;
                self.not_before = now + after.unwrap_or_else(|| self.pause(jitter)).min(Self::PATIENCE);
                let since = self.waiting.front().map_or(now, |(_, since)| *since);
                (now.since(since) >= Self::PATIENCE).then_some(Delivery::Dropped)
            }
        };
        if settled.is_some() {
            self.waiting.pop_front();
            self.failures = 0;
        }
        settled
    }

    /// Doubles with each failure; the half of it is chance, so that many sidecars do not come at once.
    fn pause(&self, jitter: f64) -> Duration {
        let doublings = (self.failures.saturating_sub(1)).min(16);
        let longest = Self::FIRST_PAUSE.saturating_mul(1 << doublings).min(Self::LONGEST_PAUSE);
        longest.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Moment {
        Moment::from_secs(seconds)
    }

    fn later() -> Answer {
        Answer::Later("503".to_owned(), None)
    }

    #[test]
    fn what_fails_is_tried_again_ever_more_rarely_and_keeps_its_place() {
        let mut retry_queue = RetryQueue::new(at(0));
        retry_queue.push("trigger", at(0));
        retry_queue.push("resolve", at(0));
        let mut pauses = Vec::new();
        let mut now = at(0);
        for _ in 0..8 {
            assert_eq!(retry_queue.first(now), Some(&"trigger"));
            assert_eq!(retry_queue.tried(&later(), 1.0, now), None);
            let due = retry_queue.due().unwrap();
            assert_eq!(retry_queue.first(now), None, "not before its time");
            pauses.push(due.since(now).as_secs());
            now = due;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(retry_queue.tried(&Answer::Taken, 1.0, now), Some(Delivery::Sent));
        assert_eq!(retry_queue.first(now), Some(&"resolve"));
    }

    #[test]
    fn a_receiver_says_when_it_wants_to_be_asked_again() {
        let mut retry_queue = RetryQueue::new(at(0));
        retry_queue.push("a", at(0));
        retry_queue.tried(&Answer::Later("429".to_owned(), Some(Duration::from_secs(17))), 0.0, at(0));
        assert_eq!(retry_queue.due(), Some(at(17)));
    }

    #[test]
    fn what_nobody_will_ever_take_is_given_up_at_once_and_the_rest_after_a_while() {
        let mut retry_queue = RetryQueue::new(at(0));
        retry_queue.push("malformed", at(0));
        retry_queue.push("late", at(0));
        assert_eq!(retry_queue.tried(&Answer::Never("400".to_owned()), 0.0, at(0)), Some(Delivery::Refused));
        assert_eq!(retry_queue.tried(&later(), 0.0, at(899)), None);
        assert_eq!(retry_queue.tried(&later(), 0.0, at(900)), Some(Delivery::Dropped));
        assert_eq!(retry_queue.due(), None);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let mut retry_queue = RetryQueue::new(at(0));
        for n in 0..RetryQueue::<usize>::ROOM {
            assert_eq!(retry_queue.push(n, at(0)), None);
        }
        assert_eq!(retry_queue.push(1000, at(0)), Some(Delivery::Dropped));
        assert_eq!(retry_queue.first(at(0)), Some(&1));
    }

    #[test]
    fn a_flood_is_paced() {
        let mut retry_queue = RetryQueue::new(at(0));
        for n in 0..200 {
            assert_eq!(retry_queue.push(n, at(0)), None);
        }
        let mut sent = 0;
        for second in 0..60 {
            while retry_queue.first(at(second)).is_some() {
                retry_queue.tried(&Answer::Taken, 0.0, at(second));
                sent += 1;
            }
        }
        assert_eq!(sent, 60 + 59);
        assert!(retry_queue.due().unwrap() > at(59));
    }
}
