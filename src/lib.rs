//! pgleash keeps every Postgres connection on a leash.
//!
//! The floors, lowest first; a lower one never imports a higher one (`tests/it/floors.rs` checks):
//!
//! 0. [`ids`], [`plain`], [`policy`], [`event`], [`snapshot`], [`fingerprint`], [`wire::frame`], [`wire::startup`],
//!    [`wire::vars`], [`wire::pin`], [`wire::reply`], [`wire::tags`]: names, limits, facts, bytes.
//! 1. [`activity`], [`history`], [`ledger`], [`judge`], [`forecast`], [`wire::pulse`]: every checkout and its one
//!    state; evidence in, verdict out. No clock, no I/O, no async, no logging.
//! 2. [`clock`], [`telemetry`]: the one clock; facts to counters and log lines, snapshots to gauges.
//! 3. [`dial`], [`switch`], [`conn`], [`slots`], [`valve`], [`pool`], [`queue`], [`rack`], [`opening`], [`checkout`], [`errand`], [`janitor`], [`probe`], [`survey`], [`keeper`]: connections, their
//!    lending, and the one task that carries out verdicts.
//! 4. [`config`], [`tls`], [`check`], [`healthcheck`], [`drill`], [`report`], [`sidecar`]: what a user meets.

pub mod activity;
pub mod check;
pub mod checkout;
pub mod clock;
pub mod config;
pub mod conn;
pub mod defaults;
pub mod dial;
pub mod drill;
pub mod errand;
pub mod event;
pub mod fingerprint;
pub mod forecast;
pub mod healthcheck;
pub mod history;
pub mod ids;
pub mod janitor;
pub mod judge;
pub mod keeper;
pub mod ledger;
pub mod notify;
pub mod opening;
pub mod plain;
pub mod policy;
pub mod pool;
pub mod probe;
pub mod queue;
pub mod rack;
pub mod report;
pub mod sidecar;
pub mod slots;
pub mod snapshot;
pub mod survey;
pub mod switch;
pub mod telemetry;
pub mod tls;
pub mod top;
pub mod turn;
pub mod valve;
pub mod wire;
