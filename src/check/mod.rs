//! `pgleash check`: would it work here? Looks at this machine, then asks the upstream server.
//!
//! What can be tried is tried: it opens connections as the sidecar does, and cancels and terminates a
//! session of its own.

pub(crate) mod client_access;
pub(crate) mod machine;
mod next;
pub(crate) mod report;
mod server_limits;
mod server_tls;
pub(crate) mod upstream;

use pgleash_sidecar::config::Loaded;

pub(crate) use crate::check::next::Given;
pub(crate) use crate::check::report::Report;

/// Looks at everything. Takes half a minute at most. `given` is how the command was typed.
///
/// Dropping the future gives up; sessions it opened on the server end with it.
pub(crate) async fn check(loaded: &Loaded, given: &Given) -> Report {
    let mut report = Report::default();
    machine::look(loaded, &mut report);
    client_access::look(loaded, &mut report);
    upstream::look(&loaded.config, &mut report).await;
    report.conclude(given);
    report
}
