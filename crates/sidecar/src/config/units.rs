//! Units of time for the table of keys.

use std::time::Duration;

pub(crate) const DAY: Duration = Duration::from_secs(86_400);
