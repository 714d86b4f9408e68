//! How many checkouts were stale, over time. Pure.

use std::time::Duration;

use crate::report::history::{Case, Story};

/// A step curve: from each moment on, how many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Curve {
    /// Begin and end.
    pub span: (Duration, Duration),
    /// In order.
    pub steps: Vec<(Duration, usize)>,
    /// The highest.
    pub most: usize,
    /// Connections that all pools may have; 0 if the log does not say.
    pub size: usize,
}

impl Curve {
    /// Of the suspects that were idle.
    pub fn of(story: &Story) -> Self {
        let span = story.span.unwrap_or_default();
        let mut moves: Vec<(Duration, bool)> = Vec::new();
        for case in story.cases.iter().filter(|case| Case::is_idle(case)) {
            moves.push((case.detected, true));
            moves.extend(case.end.map(|end| (end.at, false)));
        }
        // One that begins when another ends is not one more.
        moves.sort_unstable();
        let mut curve = Self { span, size: story.pools.values().sum(), ..Self::default() };
        let mut stale = 0_usize;
        for (at, begins) in moves {
            stale = if begins { stale + 1 } else { stale.saturating_sub(1) };
            curve.most = curve.most.max(stale);
            match curve.steps.last_mut() {
                Some((last, count)) if *last == at => *count = stale,
                _ => curve.steps.push((at, stale)),
            }
        }
        curve
    }

    /// The most in each of so many equal stretches of time.
    pub fn columns(&self, count: usize) -> Vec<usize> {
        let (from, to) = self.span;
        let length = to.saturating_sub(from).as_secs_f64().max(1e-3);
        let mut columns = vec![0; count];
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let place = |at: Duration| {
            let share = at.saturating_sub(from).as_secs_f64() / length;
            ((share * count as f64) as usize).min(count - 1)
        };
        for (step, (at, stale)) in self.steps.iter().enumerate() {
            let until = self.steps.get(step + 1).map_or(to, |(next, _)| *next);
            for column in &mut columns[place(*at)..=place(until)] {
                *column = (*column).max(*stale);
            }
        }
        columns
    }
}
