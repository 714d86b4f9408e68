//! The loop.
//!
//! It sleeps to the next moment at which a verdict may change, and wakes at least once a second to beat its heart, to
//! close what is spent, and to feed the forecast.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use pgleash_core::{Act, Action, CheckoutId, Due, Facts, Moment, Suppression};

use crate::pool::Pool;
use crate::watch::Watch;

const LONGEST_SLEEP: Duration = Duration::from_secs(1);
const SHORTEST_SLEEP: Duration = Duration::from_millis(5);

/// Starts the loop on a thread of its own, so that it keeps looking when the data path is busy. `pools` lists the pools
/// there are. The thread ends after [`Watch::stop`].
///
/// # Errors
/// The system gives no thread, or no runtime.
pub fn spawn<P: Pool>(
    watch: Arc<Watch>,
    pools: impl Fn() -> Vec<P> + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    watch.beat(pgleash_clock::now());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("pgleash-keeper".into()).spawn(move || {
        runtime.block_on(keep(watch, pools, pgleash_clock::now));
    })
}

/// Looks at all that `pools` lists, by the clock `now`, until [`Watch::stop`]. Must run on a tokio runtime with timers.
/// Questions to the server go on in tasks of their own.
pub async fn keep<P: Pool>(
    watch: Arc<Watch>,
    pools: impl Fn() -> Vec<P>,
    now: impl Fn() -> Moment + Clone + Send + 'static,
) {
    let mut keeper = Keeper { watch, now, confirming: HashMap::new() };
    while !keeper.watch.is_stopped() {
        let now = (keeper.now)();
        keeper.confirming.retain(|_, asking| !asking.is_finished());
        let next = pools().iter().filter_map(|pool| keeper.look_at(pool, now)).min();
        keeper.watch.beat(now);
        let sleep = next.map_or(LONGEST_SLEEP, |next| next.since(now));
        let sleep = sleep.clamp(SHORTEST_SLEEP, LONGEST_SLEEP);
        drop(tokio::time::timeout(sleep, keeper.watch.attention().notified()).await);
    }
}

struct Keeper<C> {
    watch: Arc<Watch>,
    now: C,
    /// Checkouts about which the server is being asked, or was a moment ago.
    confirming: HashMap<CheckoutId, tokio::task::JoinHandle<()>>,
}

impl<C: Fn() -> Moment + Clone + Send + 'static> Keeper<C> {
    /// One look at one pool; when the next is due.
    fn look_at<P: Pool>(&mut self, pool: &P, now: Moment) -> Option<Moment> {
        let policy = pool.policy();
        let sweep = pool.ledger().sweep(&policy, now);
        sweep.events.into_iter().for_each(|event| pool.emit(event));
        for due in sweep.due {
            if let Some(due) = enforce(pool, due, self.watch.is_disarmed(), None, now) {
                self.ask_server(pool, due);
            }
        }
        pool.looked(now);
        sweep.next
    }

    /// Asks about one checkout once at a time, and a second later at the earliest if the server did not confirm.
    fn ask_server<P: Pool>(&mut self, pool: &P, due: Due<P::Handle>) {
        let (pool, clock) = (pool.clone(), self.now.clone());
        self.confirming.entry(due.checkout).or_insert_with(|| {
            tokio::spawn(async move {
                let confirmed = pool.waits_for_client(due.evidence.backend_pid).await;
                // A drain that began meanwhile does not void the answer.
                enforce(&pool, due, false, Some(confirmed), clock());
                if !confirmed {
                    tokio::time::sleep(LONGEST_SLEEP).await;
                }
            })
        });
    }
}

/// Decides about one checkout that is due, and does what is decided. Gives it back if the server is to be asked first.
fn enforce<P: Pool>(
    pool: &P,
    due: Due<P::Handle>,
    draining: bool,
    confirmed: Option<bool>,
    now: Moment,
) -> Option<Due<P::Handle>> {
    let policy = pool.policy();
    let mut enforcement = pool.enforcement();
    let facts = Facts::of(&due, draining, confirmed);
    let because = match enforcement.decide(&facts, &policy, now) {
        Act::Nothing => return None,
        Act::AskServer => return Some(due),
        Act::AskHolder => {
            pool.wake(&due.handle);
            return None;
        }
        Act::Reclaim => {
            // Decided and done under both locks.
            let taken = pool.ledger().reclaim(&due);
            if taken {
                enforcement.reclaimed(now);
                pool.wake(&due.handle);
                return None;
            }
            Suppression::Moved
        }
        Act::LeaveAlone(because) => because,
    };
    drop(enforcement);
    let told = pool.ledger().suppressed(due, because, policy.action == Action::Observe, now);
    told.into_iter().for_each(|event| pool.emit(event));
    None
}
