//! Percentiles of a few thousand values, exactly.

use std::time::Duration;

use serde::Serialize;

/// Median, 99th percentile and maximum, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// How many values.
    pub count: usize,
    /// Half of the values are no greater.
    pub median_seconds: f64,
    /// Ninety-nine in a hundred values are no greater.
    pub p99_seconds: f64,
    /// The greatest value.
    pub max_seconds: f64,
}

impl Spread {
    /// The spread of the values; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = Duration>) -> Option<Self> {
        let mut values: Vec<Duration> = values.into_iter().collect();
        values.sort_unstable();
        Some(Self {
            count: values.len(),
            median_seconds: percentile(&values, 50)?.as_secs_f64(),
            p99_seconds: percentile(&values, 99)?.as_secs_f64(),
            max_seconds: values.last()?.as_secs_f64(),
        })
    }
}

/// The nearest-rank percentile of sorted values; `None` if there are none.
pub fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(values: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        values.into_iter().map(Duration::from_secs).collect()
    }

    #[test]
    fn a_percentile_is_a_value_that_occurred() {
        let values = seconds(1..=100);
        assert_eq!(percentile(&values, 50), Some(Duration::from_secs(50)));
        assert_eq!(percentile(&values, 99), Some(Duration::from_secs(99)));
        assert_eq!(percentile(&values, 100), Some(Duration::from_secs(100)));
        assert_eq!(percentile(&seconds([3]), 99), Some(Duration::from_secs(3)));
        assert_eq!(percentile(&[], 99), None);
    }

    #[test]
    fn a_spread_sorts_its_values() {
        let spread = Spread::of(seconds([9, 1, 5])).unwrap();
        assert_eq!((spread.count, spread.median_seconds, spread.max_seconds), (3, 5.0, 9.0));
        assert_eq!(Spread::of([]), None);
    }
}
