//! Many who ask for the same thing at the same time are served together.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// One request at a time is acted on, and serves all that had come when it began.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    asked: AtomicU64,
    answered: Mutex<u64>,
}

impl Turn {
    /// Runs `act`, or waits for a run of somebody else that began after this call.
    ///
    /// Cancel safe: whoever waits behind a dropped call acts instead.
    pub(crate) async fn take(&self, act: impl AsyncFnOnce()) {
        let ticket = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut answered = self.answered.lock().await;
        if *answered >= ticket {
            return;
        }
        let all = self.asked.load(Ordering::Acquire);
        act().await;
        *answered = all;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::Semaphore;

    use super::*;

    /// A hundred requests while the first is on its way: one more answers them all.
    #[tokio::test]
    async fn requests_that_come_together_are_answered_together() {
        let (turn, acts) = (Arc::new(Turn::default()), Arc::new(AtomicUsize::new(0)));
        let (begun, may_end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (turn, acts) = (Arc::clone(&turn), Arc::clone(&acts));
            let (begun, may_end) = (Arc::clone(&begun), Arc::clone(&may_end));
            tokio::spawn(async move {
                turn.take(async || {
                    acts.fetch_add(1, Ordering::Relaxed);
                    begun.add_permits(1);
                    may_end.acquire().await.unwrap().forget();
                })
                .await;
            })
        };
        let first = ask();
        begun.acquire().await.unwrap().forget();
        let rest: Vec<_> = (0..100).map(|_| ask()).collect();
        while turn.asked.load(Ordering::Relaxed) < 101 {
            tokio::task::yield_now().await;
        }
        may_end.add_permits(101);
        first.await.unwrap();
        for one in rest {
            one.await.unwrap();
        }
        assert_eq!(
            acts.load(Ordering::Relaxed),
            2,
            "a request that came later is never answered by an earlier act"
        );
    }
}
