//! What the admin pages ask.

use pgleash_core::Snapshot;

/// What the admin server asks the sidecar. Called on the admin thread, at each request; must not
/// block for long.
pub(crate) trait Source: Send + Sync {
    /// The whole process, now.
    fn snapshot(&self) -> Snapshot;

    /// Whether clients are served: the listener is up, not draining, and the upstream server was
    /// reachable at the last attempt.
    ///
    /// # Errors
    /// The reason, in one sentence.
    fn ready(&self) -> Result<(), String>;

    /// Whether the watchdog's heart beats. Never asks the database.
    ///
    /// # Errors
    /// The reason, in one sentence.
    fn alive(&self) -> Result<(), String>;

    /// Whether `name`, of a host and without a port, is one by which a browser may ask for the page and the API.
    fn admits(&self, name: &str) -> bool;
}
