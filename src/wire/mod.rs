//! The Postgres wire protocol, as far as a relay needs it: headers, first packets, and who owes whom.
//!
//! Pure: bytes in, facts out. Facts about the protocol are from the PostgreSQL documentation,
//! chapter "Frontend/Backend Protocol", and, where it is silent, from the server's behaviour.

pub mod clause;
pub mod frame;
pub mod look;
pub mod pin;
pub mod prepared;
pub mod pulse;
pub mod reply;
pub mod scan;
pub mod scram;
pub mod startup;
pub mod tags;
pub mod vars;

#[cfg(test)]
mod tests;
