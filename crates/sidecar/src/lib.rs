//! The sidecar: a Postgres pool that knows who holds its connections, behind the Postgres protocol.
//!
//! ```text
//!  client ──▶ proxy: login, session, relay ──▶ pool: acquire, lend, recycle ──▶ upstream: the server
//!                      │                                ▲
//!                      └── what happens ──▶ ledger ◀── watchdog: looks, asks, reclaims
//!  operator ──▶ admin: page, metrics, control
//! ```
//!
//! [`config::load`] reads a configuration, [`run`] serves until it is told to stop.

mod admin;
pub mod config;
mod net;
mod pool;
mod process;
mod proxy;
mod reload;
pub mod tls;
mod turn;
mod upstream;
mod watchdog;

pub use crate::config::start_error::RunError;
pub use crate::process::{Outcome, run};
pub use crate::proxy::auth::users_file::Users;
