//! Time to exhaustion. Pure.
//!
//! What is stale is not coming back by itself; when stale checkouts grow, the room between them and
//! what healthy work needs shrinks to nothing at a time that can be foretold. A traffic spike raises
//! what is in use, not what is stale, so it moves the room and never the growth. A crowd that falls silent
//! at once is a step and not a growth: to be believed, stale checkouts must have grown in each third of a span, and what
//! counts is the middle one of the three growths.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ids::Moment;

/// One look: when, how many were stale, how many healthy checkouts were in use.
type Sample = (Moment, usize, usize);

/// What has become of the outlook.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Turn {
    /// The pool will be full in so many seconds, if nothing changes.
    Foreseen(f64),
    /// It will not any more.
    Averted,
}

/// A sliding window of samples, one a second at most.
#[derive(Debug, Default)]
pub(crate) struct Forecast {
    samples: VecDeque<Sample>,
    /// It was told that the pool will be full; since when that is not so any more.
    foreseen: Option<Option<Moment>>,
}

impl Forecast {
    /// Exhaustion within this is worth telling.
    pub(crate) const HORIZON: Duration = Duration::from_secs(600);
    /// It is averted when it has been further away than that, by half as much again, for this long.
    const CALM: Duration = Duration::from_secs(60);
    /// Thirds of the spans over which growth is measured, shortest first: a fast leak is seen soon, a slow one at all.
    const THIRDS: [u64; 4] = [30, 60, 120, 300];
    const WINDOW: Duration = Duration::from_secs(910);
    const SPACING: Duration = Duration::from_millis(900);
    /// How far back the need of healthy work is looked at.
    const NEED: Duration = Duration::from_secs(300);
    /// Growth in the whole span below which it may be chance.
    const ENOUGH: usize = 6;

    /// No samples.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Takes one look; looks closer than a second to the last are dropped.
    pub(crate) fn sample(&mut self, now: Moment, stale: usize, in_use: usize) {
        if self.samples.back().is_some_and(|(last, ..)| now.since(*last) < Self::SPACING) {
            return;
        }
        self.samples.push_back((now, stale, in_use.saturating_sub(stale)));
        while self.samples.front().is_some_and(|(first, ..)| now.since(*first) > Self::WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Seconds until stale checkouts leave less than healthy work needs (its 95th percentile in the last five
    /// minutes) in a pool of `size`; `None` while stale checkouts do not grow.
    #[allow(clippy::cast_precision_loss, reason = "pool sizes are small")]
    pub(crate) fn seconds_to_exhaustion(&self, size: usize) -> Option<f64> {
        let (_, stale, _) = *self.samples.back()?;
        let growth = self.growth_per_second()?;
        let room = size as f64 - self.needed() as f64 - stale as f64;
        Some((room / growth).max(0.0))
    }

    /// Whether the outlook has turned, by the last sample; each turn is told once.
    pub(crate) fn turn(&mut self, size: usize) -> Option<Turn> {
        let (now, ..) = *self.samples.back()?;
        let horizon = Self::HORIZON.as_secs_f64();
        let eta = self.seconds_to_exhaustion(size);
        match (&mut self.foreseen, eta) {
            (None, Some(eta)) if eta <= horizon => {
                self.foreseen = Some(None);
                Some(Turn::Foreseen(eta))
            }
            (Some(calm), Some(eta)) if eta <= horizon * 1.5 => {
                *calm = None;
                None
            }
            (Some(calm), _) => {
                let over = now.since(*calm.get_or_insert(now)) >= Self::CALM;
                if over {
                    self.foreseen = None;
                }
                over.then_some(Turn::Averted)
            }
            (None, _) => None,
        }
    }

    fn needed(&self) -> usize {
        let Some((now, ..)) = self.samples.back() else { return 0 };
        let recent = self.samples.iter().rev().take_while(|(at, ..)| now.since(*at) <= Self::NEED);
        let mut healthy: Vec<_> = recent.map(|(.., healthy)| *healthy).collect();
        healthy.sort_unstable();
        healthy[(healthy.len() - 1) * 95 / 100]
    }

    /// By how much stale checkouts grow, a second, over the shortest span that says something; `None` if none does.
    #[allow(clippy::cast_precision_loss, reason = "pool sizes are small")]
    pub(crate) fn growth_per_second(&self) -> Option<f64> {
        Self::THIRDS.iter().find_map(|third| {
            let [d, c, b, a] = [0, 1, 2, 3]
                .map(|n| self.stale_before(n * third))
                .into_iter()
                .collect::<Option<Vec<_>>>()?[..]
            else {
                return None;
            };
            let mut growths = [b.saturating_sub(a), c.saturating_sub(b), d.saturating_sub(c)];
            growths.sort_unstable();
            let grows = growths[0] > 0 && growths.iter().sum::<usize>() >= Self::ENOUGH;
            grows.then(|| growths[1] as f64 / *third as f64)
        })
    }

    /// The least that was stale in three samples, of which the last is so many seconds old.
    fn stale_before(&self, seconds: u64) -> Option<usize> {
        let (now, ..) = *self.samples.back()?;
        let until = Duration::from_secs(seconds);
        let end = self.samples.partition_point(|(at, ..)| now.since(*at) >= until);
        let three = end.checked_sub(3)?..end;
        self.samples.range(three).map(|(_, stale, _)| *stale).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(seconds: u64, stale: impl Fn(u64) -> usize, healthy: impl Fn(u64) -> usize) -> Forecast {
        let mut forecast = Forecast::new();
        for second in 0..seconds {
            forecast.sample(Moment::from_secs(second), stale(second), healthy(second) + stale(second));
        }
        forecast
    }

    /// Every turn, with the second in which it was told.
    fn turns(seconds: u64, stale: impl Fn(u64) -> usize, healthy: impl Fn(u64) -> usize) -> Vec<(u64, Turn)> {
        let mut forecast = Forecast::new();
        let mut turns = Vec::new();
        for second in 0..seconds {
            forecast.sample(Moment::from_secs(second), stale(second), healthy(second) + stale(second));
            turns.extend(forecast.turn(100).map(|turn| (second, turn)));
        }
        turns
    }

    #[test]
    fn a_steady_leak_is_foretold() {
        // One more every 2 s, 20 healthy: at 99 s 49 are stale, room for 31, 62 s to go.
        let eta = watch(100, |t| (t / 2) as usize, |_| 20).seconds_to_exhaustion(100).unwrap();
        assert!((55.0..70.0).contains(&eta), "{eta}");
        // One more a minute: five minutes are too short to tell, a quarter of an hour is not.
        let slow = |seconds| watch(seconds, |t| (t / 60) as usize, |_| 20).seconds_to_exhaustion(100);
        assert_eq!(slow(300), None);
        let eta = slow(905).unwrap();
        assert!((3600.0..4800.0).contains(&eta), "{eta}");
    }

    #[test]
    fn one_that_comes_home_does_not_undo_what_is_known_of_the_others() {
        let blip = |t| if t == 150 { 9 } else { (t / 10) as usize };
        let eta = watch(200, blip, |_| 20).seconds_to_exhaustion(100);
        assert!(eta.is_some_and(|eta| (500.0..900.0).contains(&eta)), "{eta:?}");
        let fewer = |t: u64| (t / 10) as usize - usize::from(t >= 150);
        assert!(watch(200, fewer, |_| 20).seconds_to_exhaustion(100).is_some());
    }

    #[test]
    fn a_leak_that_is_being_taken_back_is_not_exhausting_anything() {
        assert_eq!(turns(600, |t| (t / 5).min(6) as usize, |_| 20), []);
        assert_eq!(
            watch(90, |t| if t < 50 { (t / 10) as usize } else { 1 }, |_| 20).seconds_to_exhaustion(100),
            None
        );
    }

    #[test]
    fn a_crowd_that_falls_silent_at_once_is_a_step() {
        assert_eq!(turns(1200, |t| if t > 100 { 40 } else { 0 }, |_| 20), []);
        assert_eq!(turns(1200, |t| (t.saturating_sub(100) * 2).min(40) as usize, |_| 20), []);
    }

    #[test]
    fn a_spike_without_a_leak_is_not() {
        assert_eq!(turns(600, |_| 0, |t| if t > 20 { 95 } else { 20 }), []);
        assert_eq!(turns(600, |_| 3, |t| 20 + (t / 10) as usize), []);
    }

    #[test]
    fn it_is_told_once_and_averted_once() {
        // One more every 10 s, until at 400 s all come back.
        let told = turns(900, |t| if t < 400 { (t / 10) as usize } else { 0 }, |_| 40);
        let [(at, Turn::Foreseen(eta)), (over, Turn::Averted)] = told[..] else { panic!("{told:?}") };
        assert!((60..200).contains(&at) && eta <= 600.0, "{told:?}");
        assert!((460..470).contains(&over), "{told:?}");
    }
}
