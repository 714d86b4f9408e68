//! Turns facts into counters, log lines and the list of latest events; turns snapshots into gauges.
//!
//! [`Telemetry`] is the one [`Sink`] of a running process, and the one writer of `/metrics`:
//!
//! - event families (counters, histograms) are kept in recorders that this value owns, so several
//!   `Telemetry` values may live in one process;
//! - state families (gauges) are made from a [`Snapshot`] at the moment of the scrape;
//! - every fact above debug level is kept in a bounded journal, which one thread writes to the log.
//!
//! A blocked log never blocks [`Sink::emit`]: the oldest unwritten lines are given up, and counted.

#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pgleash_core::{Event, Level, PoolKey, Sink, Snapshot};
use prometheus::TextEncoder;
use prometheus::proto::MetricFamily;

pub(crate) use crate::event_log::Record;

/// Where facts go: counters, the event log, and the list of latest events.
pub struct Telemetry {
    meters: crate::metrics::counters::Counters,
    apps: Mutex<crate::metrics::labels::StickyTop>,
    event_log: Arc<crate::event_log::EventLog>,
}

impl Telemetry {
    /// Starts the thread that writes `log`. It ends when the value is dropped; lines that were taken
    /// but not yet written are still written, unless the process ends first: call
    /// [`Telemetry::flush`] before that.
    ///
    /// # Errors
    /// The operating system refused a thread.
    pub fn start(log: Box<dyn Write + Send>) -> io::Result<Self> {
        let meters = crate::metrics::counters::Counters::new();
        let event_log = Arc::new(crate::event_log::EventLog::new(meters.lines_dropped()));
        crate::event_log::spawn_writer(&event_log, log)?;
        Ok(Self {
            meters,
            apps: Mutex::new(crate::metrics::labels::StickyTop::new(crate::metrics::labels::APPS_MAX)),
            event_log,
        })
    }

    /// The page that Prometheus reads: state families of `snapshot`, `process_*`, event families.
    /// Text format 0.0.4; see [`Telemetry::CONTENT_TYPE`].
    pub fn render(&self, snapshot: &Snapshot) -> String {
        let mut families = {
            let mut apps = self.apps.lock();
            let folded = apps.admit(crate::metrics::gauges::checkouts_by_app(snapshot), pgleash_clock::now());
            self.meters.folded("app", folded);
            crate::metrics::gauges::families(snapshot, &apps, |pool| self.meters.label(pool))
        };
        families.extend(self.meters.durations());
        families.extend(process_families());
        families.retain(|family| !family.get_metric().is_empty());

        let mut page = String::new();
        // A String takes all, and only a family without a name or samples is refused.
        let _ = TextEncoder::new().encode_utf8(&families, &mut page);
        // The encoder writes `inf`; the format's own spelling is `+Inf`. No label ends a line.
        let mut page = page.replace(" inf\n", " +Inf\n");
        page.push_str(&self.meters.counters());
        page
    }

    /// The Content-Type of [`Telemetry::render`].
    pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// The latest logged events with a sequence number above `after`, oldest first; at most 1000 of each
    /// kind: decisions, refusals, connections. Sequence numbers begin at 1 in each process.
    pub fn events_after(&self, after: u64) -> Vec<Arc<Record>> {
        self.event_log.latest_after(after)
    }

    /// As [`Telemetry::events_after`]; if there is none yet, blocks until there is, or `within` has passed.
    pub fn await_events(&self, after: u64, within: Duration) -> Vec<Arc<Record>> {
        self.event_log.await_after(after, within)
    }

    /// Sequence number of the newest logged event; 0 before the first.
    pub fn newest_event(&self) -> u64 {
        self.event_log.newest()
    }

    /// Blocks until every event emitted so far has reached the log, or `within` has passed.
    /// Returns whether all of them have.
    pub fn flush(&self, within: Duration) -> bool {
        self.event_log.flush(within)
    }
}

impl Sink for Telemetry {
    fn emit(&self, event: Event) {
        self.meters.count(&event);
        if event.level() > Level::Debug {
            self.event_log.append(event);
        }
    }

    fn checked_out(&self, pool: &PoolKey, waited: Duration) {
        self.meters.checked_out(pool, waited.as_secs_f64());
    }

    fn checked_in(&self, pool: &PoolKey, held: Duration) {
        self.meters.checked_in(pool, held.as_secs_f64());
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.event_log.close();
    }
}

/// Opens the event log that `events.log` names: `stdout`, or a file that is appended to (so that it
/// may be rotated by copy and truncate).
///
/// # Errors
/// The file cannot be opened; the message names it.
pub fn open_log(target: &str) -> io::Result<Box<dyn Write + Send>> {
    if target == "stdout" {
        return Ok(Box::new(io::stdout()));
    }
    match OpenOptions::new().create(true).append(true).open(Path::new(target)) {
        Ok(file) => Ok(Box::new(file)),
        Err(error) => {
            Err(io::Error::new(error.kind(), format!("cannot open the event log {target}: {error}")))
        }
    }
}

/// `process_*`: CPU, memory, file descriptors, threads.
#[cfg(target_os = "linux")]
fn process_families() -> Vec<MetricFamily> {
    use prometheus::core::Collector;
    prometheus::process_collector::ProcessCollector::for_self().collect()
}

/// `process_*` is read from /proc, which other systems do not have.
#[cfg(not(target_os = "linux"))]
fn process_families() -> Vec<MetricFamily> {
    Vec::new()
}
