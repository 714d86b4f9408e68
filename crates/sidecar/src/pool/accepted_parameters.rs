//! Parameters that the server is known to accept.

use parking_lot::{Mutex, MutexGuard};
use pgleash_wire::parameters::Accepted;
use tokio::sync;

/// What the server has been asked to take.
#[derive(Default)]
pub(crate) struct AcceptedParameters {
    taken: Mutex<Accepted>,
    pub(crate) turn: sync::Mutex<()>,
}

impl AcceptedParameters {
    /// There is another server to ask.
    pub(crate) fn forget(&self) {
        *self.taken() = Accepted::default();
    }

    pub(crate) fn taken(&self) -> MutexGuard<'_, Accepted> {
        self.taken.lock()
    }
}
