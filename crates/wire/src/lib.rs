//! The Postgres wire protocol, as far as a relay needs it: headers, first packets, and who owes whom.
//!
//! Pure: bytes in, facts out. Facts about the protocol are from the PostgreSQL documentation,
//! chapter "Frontend/Backend Protocol", and, where it is silent, from the server's behaviour.

mod attribution;
mod conn_state;
pub mod frame;
pub mod message;
pub mod parameters;
mod prepared;
mod scan;
pub mod scram;
pub mod session_query;
mod session_state;
mod sqlcommenter;
pub mod startup;
#[cfg(test)]
mod tests;

pub use crate::attribution::{Reader, Said};
pub use crate::conn_state::{ConnActivity, ProtocolState, Whose};
pub use crate::prepared::{Down, Library, Names, Prepared, Up};
pub use crate::scan::{Scanner, Touched};
pub use crate::session_state::SessionState;
pub use crate::sqlcommenter::Tags;
