//! A throw-away PostgreSQL server, for drills, tests and benches.

mod temp_postgres;

pub use crate::temp_postgres::{Options, Scratch, ScratchError};
