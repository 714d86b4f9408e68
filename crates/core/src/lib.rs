//! What pgleash knows and decides: every checkout, the evidence about it, and the verdict.
//!
//! Pure. There is no clock, no I/O and no async in here: the time is an argument, what happened comes in as calls, what
//! follows from it goes out as values. So everything can be tested on a clock that the test owns, and the sidecar, a
//! library or an observer can share it.
//!
//! ```text
//!  what happened ──▶ Ledger ──▶ sweep(policy, now) ──▶ Due: who is due, why, and the evidence
//!  (checkout, statement,           │                    └──▶ Enforcement::decide ──▶ Act: what is done now
//!   answer, return)                └──▶ Event, Snapshot: what people and machines read
//! ```

#[doc(hidden)]
pub use serde;

mod activity;
mod enforce;
mod event;
pub mod fingerprint;
mod forecast;
mod history;
mod ids;
mod invalid_value;
mod judge;
mod labels;
mod ledger;
mod pin;
mod policy;
mod snapshot;
mod string_enum;
pub mod text;
mod trace;

pub use crate::activity::{Activity, Phase, Reclaimed};
pub use crate::enforce::{Act, Enforcement, Facts};
pub use crate::event::{
    Channel, CloseReason, Credential, Delivery, Event, Evidence, Grounds, InForce, LeftAlone, Level, Reason,
    RecycleAction, RecycleOutcome, Refusal, Resolution, Sink, Suppression, TopHolder, Wait, Widening,
};
pub use crate::ids::{CheckoutId, ConnId, Holder, Moment, PoolKey, SessionId};
pub use crate::invalid_value::InvalidValue;
pub use crate::ledger::{ConnPlace, Due, Ledger, Running, Waiting};
pub use crate::pin::{Pin, Pins};
pub use crate::policy::{Action, Budget, LivePolicy, Policy, PoolMode, Rules};
pub use crate::snapshot::{
    CheckoutSnapshot, ConnCounts, ConnState, FlowState, Limits, PoolSnapshot, Snapshot,
};
pub use crate::trace::Trace;
