//! The tests that run the program, against a real PostgreSQL. One binary; each module one subject.
#![allow(unreachable_pub, reason = "a test has no outside")]
#![allow(clippy::unwrap_used, reason = "a test that fails to unwrap has failed")]
#![allow(clippy::disallowed_methods, reason = "tests stand outside the process whose clock it is")]

mod attribution;
mod auth;
mod bad_input;
mod cancel;
mod check;
mod cli;
mod client_tls;
mod control;
mod crates;
mod deaths;
mod differential;
mod drill;
mod faults;
mod handover;
mod leaks;
mod lifecycle;
mod logins;
mod malformed;
mod notify;
mod outage;
mod pooling;
mod prepared;
mod protocol;
mod reload;
mod report;
mod session_state;
mod settings;
mod sharing;
mod slow;
mod standby;
mod support;
mod tls;
mod top;
mod unix_socket;
mod upstream_hosts;
