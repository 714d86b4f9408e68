//! pgleash keeps every Postgres connection on a leash.
//!
//! Modules lie on floors; a lower one never imports a higher one.

pub mod activity;
pub mod clock;
pub mod event;
pub mod forecast;
pub mod ids;
pub mod judge;
pub mod ledger;
pub mod policy;
pub mod snapshot;
pub mod telemetry;
pub mod wire;
