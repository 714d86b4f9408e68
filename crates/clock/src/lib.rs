//! The one place that reads a clock.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pgleash_core::Moment;

/// The moment it is, on the process's monotonic clock.
#[allow(clippy::disallowed_methods, reason = "this is the clock")]
pub fn now() -> Moment {
    static START: OnceLock<Instant> = OnceLock::new();
    Moment::START + START.get_or_init(Instant::now).elapsed()
}

/// Wall-clock time since the Unix epoch, for what people read. Never used for a decision.
#[allow(clippy::disallowed_methods, reason = "this is the clock")]
pub fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
