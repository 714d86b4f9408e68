//! The slots of a pool: a fair queue whose size may change while they are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A pool's slots. Clones are the same slots.
#[derive(Clone, Debug)]
pub(crate) struct Permits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    semaphore: Arc<Semaphore>,
    /// Permits that are to be given up as they come home.
    debt: AtomicUsize,
    size: Mutex<usize>,
}

/// A slot that is taken; free again when it is dropped, unless the pool has become smaller.
#[derive(Debug)]
pub(crate) struct Permit {
    permit: Option<OwnedSemaphorePermit>,
    of: Permits,
}

/// The pool is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

impl Permits {
    /// All of them free.
    pub(crate) fn new(size: usize) -> Self {
        let semaphore = Arc::new(Semaphore::new(size));
        Self(Arc::new(Inner { semaphore, debt: AtomicUsize::new(0), size: Mutex::new(size) }))
    }

    /// A slot, if one is free and nobody waits for it.
    ///
    /// # Errors
    /// [`Closed`].
    pub(crate) fn try_take(&self) -> Result<Option<Permit>, Closed> {
        match Arc::clone(&self.0.semaphore).try_acquire_owned() {
            Ok(permit) => Ok(Some(self.permit(permit))),
            Err(tokio::sync::TryAcquireError::NoPermits) => Ok(None),
            Err(tokio::sync::TryAcquireError::Closed) => Err(Closed),
        }
    }

    /// Waits for a slot, first come, first served. Cancel safe.
    ///
    /// # Errors
    /// [`Closed`].
    pub(crate) async fn take(&self) -> Result<Permit, Closed> {
        let permit = Arc::clone(&self.0.semaphore).acquire_owned().await;
        permit.map(|permit| self.permit(permit)).map_err(|_| Closed)
    }

    /// Makes it `size` slots. Permits that are taken stay with whoever has them: where there are too many
    /// they are given up as they come home.
    pub(crate) fn resize(&self, size: usize) {
        let mut before = self.0.size.lock();
        let grown = size.saturating_sub(*before);
        let shrunk = before.saturating_sub(size);
        *before = size;
        let forgiven = (0..grown).take_while(|_| self.0.pay_one()).count();
        self.0.semaphore.add_permits(grown - forgiven);
        self.0.debt.fetch_add(shrunk, Ordering::AcqRel);
        self.settle();
    }

    /// Gives up free slots that are owed. To be called now and then: a slot that came home at the very
    /// moment of a resize may have missed it.
    pub(crate) fn settle(&self) {
        while self.0.semaphore.available_permits() > 0 && self.0.pay_one() {
            if self.0.semaphore.forget_permits(1) == 0 {
                self.0.debt.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Whoever waits, and whoever asks from now on, is told [`Closed`].
    pub(crate) fn close(&self) {
        self.0.semaphore.close();
    }

    fn permit(&self, permit: OwnedSemaphorePermit) -> Permit {
        Permit { permit: Some(permit), of: self.clone() }
    }
}

impl Inner {
    /// Takes one off the debt, if there is one.
    fn pay_one(&self) -> bool {
        let less = |debt: usize| debt.checked_sub(1);
        self.debt.load(Ordering::Acquire) > 0
            && self.debt.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take()
            && self.of.0.pay_one()
        {
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pool_that_shrinks_takes_slots_from_nobody() {
        let permits = Permits::new(3);
        let mut held: Vec<_> = (0..3).map(|_| permits.try_take().unwrap().unwrap()).collect();
        permits.resize(1);
        assert!(permits.try_take().unwrap().is_none());
        held.pop();
        held.pop();
        assert!(permits.try_take().unwrap().is_none(), "two came home, and both were owed");
        held.pop();
        let last = permits.try_take().unwrap();
        assert!(last.is_some() && permits.try_take().unwrap().is_none());
    }

    #[tokio::test]
    async fn whoever_waits_gets_a_slot_as_soon_as_the_pool_grows() {
        let permits = Permits::new(1);
        let held = permits.take().await.unwrap();
        let waiting = tokio::spawn({
            let permits = permits.clone();
            async move { permits.take().await.is_ok() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        permits.resize(2);
        assert!(waiting.await.unwrap());
        drop(held);
        permits.close();
        assert_eq!(permits.take().await.unwrap_err(), Closed);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take,
        Return,
        Resize(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Take),
            3 => Just(Step::Return),
            1 => (1..20_usize).prop_map(Step::Resize),
        ]
    }

    proptest! {
        /// Whatever is taken, given back and resized: a slot is to be had exactly when fewer than the size are out.
        #[test]
        fn there_are_as_many_slots_as_was_last_said(steps in proptest::collection::vec(step(), 1..200)) {
            let (permits, mut size, mut held) = (Permits::new(5), 5, Vec::new());
            for step in steps {
                match step {
                    Step::Take => {
                        let permit = permits.try_take().unwrap();
                        prop_assert_eq!(permit.is_some(), held.len() < size);
                        held.extend(permit);
                    }
                    Step::Return => drop(held.pop()),
                    Step::Resize(to) => {
                        size = to;
                        permits.resize(to);
                    }
                }
            }
        }
    }
}
