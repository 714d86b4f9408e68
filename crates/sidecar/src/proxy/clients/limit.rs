//! Places of which there is a bound, which may change while they are taken. Floor 4.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many places are taken.
#[derive(Debug, Default)]
pub(crate) struct Places(AtomicUsize);

impl Places {
    /// Takes a place if fewer than `limit` are taken. It is free again when the returned value is dropped.
    pub(crate) fn try_take(&self, limit: usize) -> Option<Taken<'_>> {
        let one_more = |taken: usize| (taken < limit).then_some(taken + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok().map(|_| Taken(&self.0))
    }
}

impl Places {
    /// Whether no place is taken.
    pub(crate) fn are_free(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

/// A place that is taken.
#[derive(Debug)]
pub(crate) struct Taken<'a>(&'a AtomicUsize);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_up_to_a_limit_that_may_move() {
        let places = Places::default();
        let (first, second) = (places.try_take(2), places.try_take(2));
        assert!(first.is_some() && second.is_some() && places.try_take(2).is_none());
        let third = places.try_take(3);
        assert!(third.is_some(), "the limit has grown");
        drop(first);
        assert!(places.try_take(2).is_none(), "it has shrunk below what is taken");
        drop((second, third));
        assert!(places.try_take(1).is_some());
    }
}
