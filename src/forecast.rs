//! Time to exhaustion. Floor 1, pure.
//!
//! What is stale is not coming back by itself; when stale checkouts grow, the room between them and
//! what healthy work needs shrinks to nothing at a time that can be foretold. A traffic spike raises
//! what is in use, not what is stale, so it moves the room and never the growth.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ids::Moment;

/// One look: when, how many were stale, how many healthy checkouts were in use.
type Sample = (Moment, usize, usize);

/// A sliding window of samples, one a second at most.
#[derive(Debug, Default)]
pub struct Forecast {
    samples: VecDeque<Sample>,
}

impl Forecast {
    /// How far back the growth is measured.
    const WINDOW: Duration = Duration::from_secs(300);
    const SPACING: Duration = Duration::from_millis(900);
    /// Fewer samples than this say nothing.
    const ENOUGH: usize = 10;

    /// No samples.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one look; looks closer than a second to the last are dropped.
    pub fn sample(&mut self, now: Moment, stale: usize, in_use: usize) {
        if self.samples.back().is_some_and(|(last, ..)| now.since(*last) < Self::SPACING) {
            return;
        }
        self.samples.push_back((now, stale, in_use.saturating_sub(stale)));
        while self.samples.front().is_some_and(|(first, ..)| now.since(*first) > Self::WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Seconds until stale checkouts leave less than healthy work needs (its 95th percentile in the
    /// window) in a pool of `size`; `None` while stale checkouts do not grow.
    #[allow(clippy::cast_precision_loss, reason = "pool sizes are small")]
    pub fn seconds_to_exhaustion(&self, size: usize) -> Option<f64> {
        let (_, stale, _) = *self.samples.back()?;
        let growth = self.growth_per_second()?;
        // Once stale checkouts have come back or were taken back, the growth before that says nothing.
        let most = self.samples.iter().map(|(_, stale, _)| *stale).max()?;
        if self.samples.len() < Self::ENOUGH || growth <= 1e-6 || stale == 0 || stale < most {
            return None;
        }
        let mut healthy: Vec<_> = self.samples.iter().map(|(.., healthy)| *healthy).collect();
        healthy.sort_unstable();
        let needed = healthy[(healthy.len() - 1) * 95 / 100];
        let room = size as f64 - needed as f64 - stale as f64;
        Some((room / growth).max(0.0))
    }

    /// Least-squares slope of the stale count.
    #[allow(clippy::cast_precision_loss, reason = "pool sizes are small")]
    fn growth_per_second(&self) -> Option<f64> {
        let (start, ..) = *self.samples.front()?;
        let n = self.samples.len() as f64;
        let points =
            || self.samples.iter().map(|(at, stale, _)| (at.since(start).as_secs_f64(), *stale as f64));
        let (mean_x, mean_y) = points().fold((0.0, 0.0), |(x, y), (px, py)| (x + px / n, y + py / n));
        let (cov, var) = points().fold((0.0, 0.0), |(cov, var), (x, y)| {
            (cov + (x - mean_x) * (y - mean_y), var + (x - mean_x).powi(2))
        });
        (var > 0.0).then(|| cov / var)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(stale: impl Fn(u64) -> usize, in_use: impl Fn(u64) -> usize) -> Option<f64> {
        let mut forecast = Forecast::new();
        for second in 0..60 {
            forecast.sample(Moment::from_secs(second), stale(second), in_use(second));
        }
        forecast.seconds_to_exhaustion(100)
    }

    #[test]
    fn a_steady_leak_is_foretold() {
        // One more every 2 s, 20 healthy: at 59 s 29 are stale, room for 51, 102 s to go.
        let eta = forecast(|t| (t / 2) as usize, |t| 20 + (t / 2) as usize).unwrap();
        assert!((95.0..110.0).contains(&eta), "{eta}");
    }

    #[test]
    fn a_leak_that_is_being_taken_back_is_not_exhausting_anything() {
        assert_eq!(forecast(|t| if t < 50 { (t / 10) as usize } else { 1 }, |_| 20), None);
    }

    #[test]
    fn a_spike_without_a_leak_is_not() {
        assert_eq!(forecast(|_| 0, |t| if t > 20 { 95 } else { 20 }), None);
        assert_eq!(forecast(|_| 3, |t| 20 + t as usize), None);
    }
}
