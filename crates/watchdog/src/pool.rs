//! What the loop needs of a pool.

use std::ops::DerefMut;
use std::sync::Arc;

use pgleash_core::{Activity, Enforcement, Event, Ledger, Moment, Policy};

/// A pool that is watched. Clones are the same pool.
pub trait Pool: Clone + Send + Sync + 'static {
    /// How a holder is reached.
    type Handle: AsRef<Activity> + Clone + Send + 'static;

    /// The limits that apply now.
    fn policy(&self) -> Arc<Policy>;

    /// The pool's books, locked. A checkout begins and ends under the same lock, so that it cannot end while it is
    /// taken.
    fn ledger(&self) -> impl DerefMut<Target = Ledger<Self::Handle>>;

    /// What counts against the budget, locked. The loop locks the books while it has this, and never the other way
    /// round.
    fn enforcement(&self) -> impl DerefMut<Target = Enforcement>;

    /// Tells a fact. Must not wait.
    fn emit(&self, event: Event);

    /// Wakes a holder's own task. It looks at its sockets, and rings for attention when it has answered; or it
    /// finds that it has lost its connection.
    fn wake(&self, handle: &Self::Handle);

    /// Asks the server whether this backend waits for its client. False if it does not say so, for whatever reason.
    fn waits_for_client(&self, backend_pid: i32) -> impl Future<Output = bool> + Send;

    /// Every checkout has been looked at: what else is done about once a second. Must not wait.
    fn looked(&self, now: Moment);
}
