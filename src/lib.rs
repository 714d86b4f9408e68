//! pgleash keeps every Postgres connection on a leash.
//!
//! Modules lie on floors; a lower one never imports a higher one.

pub mod activity;
pub mod check;
pub mod checkout;
pub mod clock;
pub mod config;
pub mod conn;
pub mod dial;
pub mod event;
pub mod forecast;
pub mod healthcheck;
pub mod ids;
pub mod janitor;
pub mod judge;
pub mod keeper;
pub mod ledger;
pub mod opening;
pub mod policy;
pub mod pool;
pub mod probe;
pub mod sidecar;
pub mod snapshot;
pub mod switch;
pub mod telemetry;
pub mod tls;
pub mod wire;
