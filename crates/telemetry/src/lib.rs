//! What people and machines learn of pgleash: each [`Event`](pgleash_core::Event) becomes a count, a line in the
//! event log, and, if it matters, a notification; each [`Snapshot`](pgleash_core::Snapshot) becomes gauges.
//!
//! ```text
//!  Event ──▶ Telemetry::emit ──┬──▶ counters    ──┐
//!                              ├──▶ event log     ├──▶ Telemetry::render ──▶ /metrics
//!                              └──▶ notify        │
//!  Snapshot ──────────────────────▶ gauges      ──┘
//! ```
//!
//! To emit costs the data path a few atomics; lines and letters are written by threads of their own.

mod event_log;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
mod metrics;
pub mod notify;
mod telemetry;

pub use crate::event_log::Record;
pub use crate::telemetry::{Telemetry, open_log};
