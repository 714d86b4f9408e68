//! Bounds on label values, so that no client can make series without end.

use std::collections::HashMap;
use std::time::Duration;

use pgleash_core::{Moment, PoolKey};

/// What values beyond a bound are shown as.
pub(crate) const OTHER: &str = "other";
/// What an empty `application_name` is shown as: an empty label value means no label to Prometheus.
pub(crate) const UNSET: &str = "unset";
/// Pools with a `pool` label of their own; the first ones to open.
pub(crate) const POOLS_MAX: usize = 64;
/// Applications with an `app` label of their own.
pub(crate) const APPS_MAX: usize = 20;

/// Longest label value, bytes. Names in Postgres end at 63.
const LENGTH_MAX: usize = 130;
/// An application keeps its place for this long after it was last seen.
const KEEP: Duration = Duration::from_secs(3600);
/// Or for this long, if one that has stale checkouts has none.
const KEEP_FROM_SUSPECTS: Duration = Duration::from_secs(60);

/// How much a value counts: by what is stale, then by how many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Weight {
    /// How long its stale checkouts have been idle for, in milliseconds.
    pub(crate) stale_ms: u64,
    /// Its checkouts.
    pub(crate) count: usize,
}

/// The `pool` label of `pool`.
pub(crate) fn pool_label(pool: &PoolKey) -> String {
    cut(&pool.to_string()).to_owned()
}

/// The `app` label of an `application_name`, before [`StickyTop::fold`].
pub(crate) fn app_label(app: &str) -> &str {
    if app.is_empty() { UNSET } else { cut(app) }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(LENGTH_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The label values that have a place of their own. Sticky: a place, once given, is kept while its
/// value is seen, so that no series flaps between itself and `other`.
pub(crate) struct StickyTop {
    places: usize,
    last_seen: HashMap<String, Moment>,
}

impl StickyTop {
    /// None has a place yet; at most `places` will.
    pub(crate) fn new(places: usize) -> Self {
        Self { places, last_seen: HashMap::with_capacity(places) }
    }

    /// Takes notice of the values present at `now`, each with its weight. The biggest newcomers, who leaks
    /// before the others, get the free places, then the places that have been unused for an hour; one who leaks
    /// gets a place that has been unused for a minute. Returns how many values got none.
    pub(crate) fn admit<'a>(
        &mut self,
        weights: impl IntoIterator<Item = (&'a str, Weight)>,
        now: Moment,
    ) -> u64 {
        let mut newcomers = Vec::new();
        for (value, weight) in weights {
            match self.last_seen.get_mut(value) {
                Some(seen) => *seen = now,
                None if value == OTHER => {}
                None => newcomers.push((value, weight)),
            }
        }
        newcomers.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));

        let mut folded = 0;
        for (value, weight) in newcomers {
            let kept = if weight.stale_ms > 0 { KEEP_FROM_SUSPECTS } else { KEEP };
            if self.last_seen.len() < self.places || self.evict(now, kept) {
                self.last_seen.insert(value.to_owned(), now);
            } else {
                folded += 1;
            }
        }
        folded
    }

    /// `value` if it has a place, else `other`.
    pub(crate) fn fold<'a>(&self, value: &'a str) -> &'a str {
        if self.last_seen.contains_key(value) { value } else { OTHER }
    }

    /// Frees the place that has been unused longest, if that is longer than `kept`.
    fn evict(&mut self, now: Moment, kept: Duration) -> bool {
        let oldest = self.last_seen.iter().min_by_key(|(_, seen)| **seen);
        let Some(value) = oldest.filter(|(_, seen)| now.since(**seen) > kept).map(|(value, _)| value.clone())
        else {
            return false;
        };
        self.last_seen.remove(&value).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn of(count: usize) -> Weight {
        Weight { stale_ms: 0, count }
    }

    #[test]
    fn who_leaks_gets_the_place_of_one_who_has_left() {
        let mut top = StickyTop::new(2);
        top.admit([("here", of(9)), ("left", of(5))], Moment::from_secs(0));
        let leaks = Weight { stale_ms: 1, count: 1 };
        let seen = [("here", of(9)), ("crowd", of(50)), ("leaks", leaks)];
        assert_eq!(top.admit(seen, Moment::from_secs(61)), 1);
        assert_eq!((top.fold("leaks"), top.fold("here"), top.fold("crowd")), ("leaks", "here", OTHER));
    }

    #[test]
    fn the_biggest_newcomers_get_the_places_and_keep_them() {
        let mut top = StickyTop::new(2);
        let folded = top.admit([("small", of(1)), ("big", of(9)), ("middle", of(5))], Moment::from_secs(0));
        assert_eq!(folded, 1);
        assert_eq!((top.fold("big"), top.fold("middle"), top.fold("small")), ("big", "middle", OTHER));

        let folded = top.admit([("small", of(100)), ("big", of(1))], Moment::from_secs(60));
        assert_eq!(folded, 1, "a place is not taken from a value that was seen a minute ago");
        assert_eq!(top.fold("middle"), "middle");
    }

    #[test]
    fn a_place_unused_for_an_hour_goes_to_a_newcomer() {
        let mut top = StickyTop::new(1);
        top.admit([("gone", of(1))], Moment::from_secs(0));
        assert_eq!(top.admit([("new", of(1))], Moment::from_secs(3601)), 0);
        assert_eq!((top.fold("new"), top.fold("gone")), ("new", OTHER));
    }

    #[test]
    fn an_application_called_other_takes_no_place() {
        let mut top = StickyTop::new(1);
        assert_eq!(top.admit([(OTHER, of(7)), ("web", of(1))], Moment::START), 0);
        assert_eq!(top.fold("web"), "web");
    }

    #[test]
    fn long_names_are_cut_at_a_character() {
        let long = "é".repeat(100);
        assert_eq!(app_label(&long).len(), LENGTH_MAX);
        assert!(pool_label(&PoolKey::new(&long, &long)).len() <= LENGTH_MAX);
        assert_eq!(app_label(""), UNSET);
    }
}
