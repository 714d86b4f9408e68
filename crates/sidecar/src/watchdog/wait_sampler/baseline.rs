//! How long statements usually run, by their fingerprints, as far as they were ever seen to run for long. Pure.

use std::collections::HashMap;
use std::time::Duration;

use pgleash_core::{Moment, Running};

/// What is known of the statements that were seen.
#[derive(Debug, Default)]
pub(crate) struct Usual {
    kinds: HashMap<String, Kind>,
}

#[derive(Clone, Copy, Debug)]
struct Kind {
    /// The longest that one ran, in earlier spells.
    before: Duration,
    /// The longest in the spell that goes on.
    now: Duration,
    seen: Moment,
}

impl Usual {
    /// Fingerprints that are known. Beyond it the one that was seen longest ago is forgotten.
    const MOST: usize = 500;
    /// Not seen for so long, a spell is over.
    const SPELL: Duration = Duration::from_secs(60);
    /// What was seen longer ago says nothing about now.
    const FORGET: Duration = Duration::from_secs(3600);
    /// So many times as long is slow.
    const TIMES: u32 = 3;

    /// Takes in what runs, and gives back what runs for far longer than it was seen to run before: of what was never
    /// seen, all.
    pub(crate) fn note(&mut self, running: Vec<Running>, now: Moment) -> Vec<Running> {
        let mut slow = Vec::new();
        for statement in running {
            if !self.kinds.contains_key(&statement.fingerprint) {
                self.make_room();
            }
            let new = Kind { before: Duration::ZERO, now: Duration::ZERO, seen: now };
            let kind = self.kinds.entry(statement.fingerprint.clone()).or_insert(new);
            let unseen = now.since(kind.seen);
            if unseen > Self::FORGET {
                *kind = new;
            } else if unseen > Self::SPELL {
                kind.before = kind.before.max(std::mem::take(&mut kind.now));
            }
            kind.now = kind.now.max(statement.for_so_long);
            kind.seen = now;
            if statement.for_so_long > kind.before * Self::TIMES {
                slow.push(statement);
            }
        }
        slow
    }

    fn make_room(&mut self) {
        if self.kinds.len() >= Self::MOST
            && let Some(oldest) =
                self.kinds.iter().min_by_key(|(_, kind)| kind.seen).map(|(name, _)| name.clone())
        {
            self.kinds.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(fingerprint: &str, seconds: u64) -> Vec<Running> {
        let for_so_long = Duration::from_secs(seconds);
        vec![Running { fingerprint: fingerprint.to_owned(), for_so_long, app: "shop".to_owned() }]
    }

    fn is_slow(usual: &mut Usual, fingerprint: &str, seconds: u64, at: u64) -> bool {
        !usual.note(running(fingerprint, seconds), Moment::from_secs(at)).is_empty()
    }

    #[test]
    fn a_statement_is_slow_by_what_it_took_before() {
        let mut usual = Usual::default();
        assert!(is_slow(&mut usual, "report", 2, 0), "it was never seen to take so long");
        assert!(is_slow(&mut usual, "report", 20, 18), "the same spell");
        assert!(!is_slow(&mut usual, "report", 40, 600), "it has taken 20 s before");
        assert!(is_slow(&mut usual, "report", 61, 621));
        assert!(is_slow(&mut usual, "lookup", 2, 600), "another is not known by it");
        assert!(is_slow(&mut usual, "report", 2, 5000), "of an hour ago nothing is known");
    }

    #[test]
    fn what_is_known_is_bounded() {
        let mut usual = Usual::default();
        for n in 0..2000 {
            is_slow(&mut usual, &format!("select {n}"), 1, n);
        }
        assert_eq!(usual.kinds.len(), Usual::MOST);
    }
}
