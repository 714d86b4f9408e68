//! ClientLimit of which there is a bound, which may change while they are taken.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many places are taken.
#[derive(Debug, Default)]
pub(crate) struct ClientLimit(AtomicUsize);

impl ClientLimit {
    /// Takes a place if fewer than `limit` are taken. It is free again when the returned value is dropped.
    pub(crate) fn try_take(&self, limit: usize) -> Option<ClientPermit<'_>> {
        let one_more = |taken: usize| (taken < limit).then_some(taken + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok().map(|_| ClientPermit(&self.0))
    }
}

impl ClientLimit {
    /// Whether no place is taken.
    pub(crate) fn are_free(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

/// A place that is taken.
#[derive(Debug)]
pub(crate) struct ClientPermit<'a>(&'a AtomicUsize);

impl Drop for ClientPermit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_up_to_a_limit_that_may_move() {
        let client_limit = ClientLimit::default();
        let (first, second) = (client_limit.try_take(2), client_limit.try_take(2));
        assert!(first.is_some() && second.is_some() && client_limit.try_take(2).is_none());
        let third = client_limit.try_take(3);
        assert!(third.is_some(), "the limit has grown");
        drop(first);
        assert!(client_limit.try_take(2).is_none(), "it has shrunk below what is taken");
        drop((second, third));
        assert!(client_limit.try_take(1).is_some());
    }
}
