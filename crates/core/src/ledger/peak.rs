//! The highest level within the last minute.

use std::collections::VecDeque;

use crate::ids::Moment;

/// The highest level of each of the last seconds.
#[derive(Debug, Default)]
pub(super) struct Peaks {
    /// Second and its highest level, for the seconds in which the level was noted.
    seconds: VecDeque<(u64, usize)>,
}

impl Peaks {
    /// How far back one can ask.
    const SECONDS: u64 = 60;

    /// Notes the level. To be told before it falls, too: what has lasted until now counts as of now.
    pub(super) fn note(&mut self, level: usize, now: Moment) {
        let second = second_of(now);
        match self.seconds.back_mut() {
            Some((last, peak)) if *last == second => *peak = level.max(*peak),
            _ => self.seconds.push_back((second, level)),
        }
        while self.seconds.front().is_some_and(|(first, _)| first + Self::SECONDS < second) {
            self.seconds.pop_front();
        }
    }

    /// The highest level noted within the last minute.
    pub(super) fn highest(&self, now: Moment) -> usize {
        let oldest = second_of(now).saturating_sub(Self::SECONDS);
        let recent = self.seconds.iter().filter(|(second, _)| *second >= oldest);
        recent.map(|(_, level)| *level).max().unwrap_or(0)
    }
}

const fn second_of(moment: Moment) -> u64 {
    moment.as_nanos() / 1_000_000_000
}
