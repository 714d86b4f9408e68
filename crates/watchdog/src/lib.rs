//! The watchdog: one loop that looks at every checkout of every pool, and carries out what is decided about those that
//! are due.
//!
//! It decides nothing itself, and does not know what is held. The judge of [`pgleash_core`] says who is due, its
//! [`Enforcement`](pgleash_core::Enforcement) what may be done about it. A sidecar, a library or an observer
//! implements [`Pool`] for what it has, and shares a [`Watch`] with the loop.
//!
//! ```text
//!            ┌────────────────────── sleep to the next verdict, or to attention ◀─────────────────────┐
//!            ▼                                                                                        │
//!  for each Pool: Ledger::sweep ──▶ Due ──▶ Enforcement::decide ──▶ Act: reclaim, ask, leave alone ───┘
//! ```
//!
//! [`spawn`] runs the loop on a thread of its own; [`keep`] is the loop, for a runtime and a clock of the caller's.

mod looking;
mod pool;
#[cfg(test)]
mod tests;
mod watch;

pub use crate::looking::{keep, spawn};
pub use crate::pool::Pool;
pub use crate::watch::Watch;
