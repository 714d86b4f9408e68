//! Whether the server can be reached, as far as those who dialled it know.
//!
//! While it cannot, nobody dials but one task, with pauses that grow and differ, so that a server that comes
//! back is not met by a crowd. Everybody else waits for what that task finds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use pgleash_core::Moment;
use tokio::sync::watch;

use crate::upstream::connector::{Target, describe, is_unreachable, may_pass};

/// Why the server cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// It may be back soon: it is worth waiting for.
    Passing(Arc<str>),
    /// Somebody has to do something first: its certificate is not trusted.
    Lasting(Arc<str>),
}

impl Outlook {
    /// What was said last.
    pub(crate) fn words(&self) -> &str {
        match self {
            Outlook::Passing(state) | Outlook::Lasting(state) => state,
        }
    }
}

/// What came of an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recovery {
    /// How long it lasted.
    pub lasted: Duration,
    /// How often the server was tried.
    pub attempts: u64,
}

/// Shared by all who dial one server.
#[derive(Debug)]
pub(crate) struct Outage {
    /// `None` while the server can be reached, as far as is known.
    state: watch::Sender<Option<Outlook>>,
    trying: AtomicBool,
    /// When the last outage ended, and with which pause: one that follows at once is the same.
    last: Mutex<(Moment, Duration)>,
}

impl Outage {
    /// The pause before the first attempt.
    const FIRST_PAUSE: Duration = Duration::from_millis(50);
    /// The longest pause, before it is made shorter or longer by up to half at random.
    const LONGEST_PAUSE: Duration = Duration::from_millis(600);
    /// A server that is lost again within this time is still coming back.
    const SAME: Duration = Duration::from_secs(5);

    /// The server is believed to be there.
    pub(crate) fn none() -> Arc<Self> {
        let (state, _) = watch::channel(None);
        let last = Mutex::new((Moment::START, Self::FIRST_PAUSE));
        Arc::new(Self { state, trying: AtomicBool::new(false), last })
    }

    /// Why the server cannot be reached; `None` if it can, as far as is known.
    pub(crate) fn outlook(&self) -> Option<Outlook> {
        self.state.borrow().clone()
    }

    /// Resolves when the server can be reached. Cancel safe.
    pub(crate) async fn over(&self) {
        let mut state = self.state.subscribe();
        // The sender lives as long as we do.
        let _ = state.wait_for(Option::is_none).await;
    }

    /// Somebody could not reach the server. The first to say so sets a task to work that tries it, as
    /// `target`, until it is there or nobody shares this outage any more; `on_end` is told then.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(crate) fn begins(
        self: &Arc<Self>,
        target: &Target,
        why: Outlook,
        on_end: impl FnOnce(Recovery) + Send + 'static,
    ) {
        self.state.send_replace(Some(why));
        if self.trying.swap(true, Ordering::AcqRel) {
            return;
        }
        let (outage, mut target) = (Arc::downgrade(self), target.clone());
        // The task must not keep alive what it waits for.
        target.outage = Outage::none();
        let pause = self.first_pause();
        tokio::spawn(async move {
            let began = pgleash_clock::now();
            let Some((pause, attempts)) = until_reached(&outage, &target, pause).await else { return };
            let Some(outage) = outage.upgrade() else { return };
            let ended = pgleash_clock::now();
            *outage.last() = (ended, pause);
            outage.trying.store(false, Ordering::Release);
            outage.state.send_replace(None);
            on_end(Recovery { lasted: ended.since(began), attempts });
        });
    }

    fn first_pause(&self) -> Duration {
        let (ended, pause) = *self.last();
        let same = ended > Moment::START && pgleash_clock::now().since(ended) < Self::SAME;
        if same { longer(pause) } else { Self::FIRST_PAUSE }
    }

    fn last(&self) -> MutexGuard<'_, (Moment, Duration)> {
        self.last.lock()
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(Outage::LONGEST_PAUSE)
}

/// Tries the server until it answers, and be it with a refusal: the pause it had come to, and how often it
/// was tried. `None` if nobody wants to know any more.
async fn until_reached(
    outage: &Weak<Outage>,
    target: &Target,
    mut pause: Duration,
) -> Option<(Duration, u64)> {
    for attempt in 1.. {
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
        if outage.strong_count() == 0 {
            break;
        }
        // A connection that is opened ends with its client, at once.
        let why = match target.dial_aside(()).await {
            Err(error) if may_pass(&error) => Outlook::Passing(describe(&error).into()),
            Err(error) if is_unreachable(&error) => Outlook::Lasting(describe(&error).into()),
            _ => return Some((pause, attempt)),
        };
        outage.upgrade()?.state.send_replace(Some(why));
        pause = longer(pause);
    }
    None
}
