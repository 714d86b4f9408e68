//! The journal of logged events: bounded, numbered, written to the log by a thread of its own.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use std::{io, thread};

use metrics::Counter;
use parking_lot::{Condvar, Mutex, MutexGuard};
use pgleash_core::{Event, Level};
use serde::{Serialize, Serializer};

/// Events of each kind that `/api/v1/events` can still show.
const LATEST: usize = 1000;
/// Events that may wait for the log. Beyond it the oldest are given up.
const UNWRITTEN_MAX: usize = 8192;
/// Lines given to the log in one write.
const BATCH: usize = 256;

/// One logged event. Serializes as one flat object: `time`, `level`, `seq`, then the event's fields.
#[derive(Debug)]
pub struct Record {
    /// Position in the journal of this process, from 1.
    pub seq: u64,
    /// Since the Unix epoch.
    pub time: Duration,
    /// What happened.
    pub event: Event,
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Line<'a> {
            time: String,
            level: Level,
            seq: u64,
            #[serde(flatten)]
            event: &'a Event,
        }
        let time = humantime::format_rfc3339_millis(UNIX_EPOCH + self.time).to_string();
        Line { time, level: self.event.level(), seq: self.seq, event: &self.event }.serialize(serializer)
    }
}

/// The latest events of each kind, and those that the log still has to get.
pub(crate) struct EventLog {
    state: Mutex<State>,
    grew: Condvar,
    wrote: Condvar,
    dropped: Counter,
}

/// What an event tells of, as far as many of one kind must not push out those of another.
#[derive(Clone, Copy)]
enum Kind {
    /// What pgleash has found, decided and done, and its own life.
    Decision,
    /// One of the many who got nothing: as many as there are clients.
    Refusal,
    /// Server connections that come and go.
    Connection,
}

impl Kind {
    const COUNT: usize = 3;

    fn of(event: &Event) -> Self {
        match event {
            Event::ConnectionOpened { .. } | Event::ConnectionClosed { .. } => Kind::Connection,
            Event::ClientRefused { .. } | Event::CheckoutTimeout { .. } | Event::UpstreamFailed { .. } => {
                Kind::Refusal
            }
            _ => Kind::Decision,
        }
    }
}

struct State {
    /// The latest records of each kind, by `seq`.
    latest: [VecDeque<Arc<Record>>; Kind::COUNT],
    /// Records that are not in the writer's hands yet, by `seq`.
    unwritten: VecDeque<Arc<Record>>,
    /// `seq` of the newest record; 0 before the first.
    newest: u64,
    /// All records up to this `seq` are in the log, or were given up.
    settled: u64,
    closed: bool,
}

impl State {
    fn latest_after(&self, after: u64) -> Vec<Arc<Record>> {
        let newer = |records: &VecDeque<Arc<Record>>| records.partition_point(|record| record.seq <= after);
        let mut all: Vec<_> =
            self.latest.iter().flat_map(|records| records.range(newer(records)..).cloned()).collect();
        all.sort_unstable_by_key(|record| record.seq);
        all
    }
}

impl EventLog {
    /// An empty journal; `dropped` counts lines that did not reach the log.
    pub(crate) fn new(dropped: Counter) -> Self {
        let state = State {
            latest: Default::default(),
            unwritten: VecDeque::new(),
            newest: 0,
            settled: 0,
            closed: false,
        };
        Self { state: Mutex::new(state), grew: Condvar::new(), wrote: Condvar::new(), dropped }
    }

    /// Takes one event. Never waits for the log.
    pub(crate) fn append(&self, event: Event) {
        let mut state = self.lock();
        state.newest += 1;
        let kind = Kind::of(&event);
        let record = Arc::new(Record { seq: state.newest, time: pgleash_clock::wall(), event });
        state.unwritten.push_back(Arc::clone(&record));
        if state.unwritten.len() > UNWRITTEN_MAX {
            state.unwritten.pop_front();
            self.dropped.increment(1);
        }
        let latest = &mut state.latest[kind as usize];
        latest.push_back(record);
        if latest.len() > LATEST {
            latest.pop_front();
        }
        drop(state);
        self.grew.notify_all();
    }

    /// The latest records with a `seq` above `after`, oldest first.
    pub(crate) fn latest_after(&self, after: u64) -> Vec<Arc<Record>> {
        self.lock().latest_after(after)
    }

    /// The same; while there is none it waits, at most `within`.
    pub(crate) fn await_after(&self, after: u64, within: Duration) -> Vec<Arc<Record>> {
        let mut state = self.lock();
        let nothing = |state: &mut State| state.newest <= after && !state.closed;
        self.grew.wait_while_for(&mut state, nothing, within);
        state.latest_after(after)
    }

    /// `seq` of the newest record; 0 before the first.
    pub(crate) fn newest(&self) -> u64 {
        self.lock().newest
    }

    /// Waits until all records present now are settled, at most `within`.
    pub(crate) fn flush(&self, within: Duration) -> bool {
        let mut state = self.lock();
        let goal = state.newest;
        !self.wrote.wait_while_for(&mut state, |state| state.settled < goal, within).timed_out()
    }

    /// Lets the writer end once it has written what is left.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.grew.notify_all();
    }

    /// Waits for records and moves some into `batch`; false when closed and nothing is left.
    fn take(&self, batch: &mut Vec<Arc<Record>>) -> bool {
        let mut state = self.lock();
        let waiting = |state: &mut State| state.unwritten.is_empty() && !state.closed;
        self.grew.wait_while(&mut state, waiting);
        let most = state.unwritten.len().min(BATCH);
        batch.extend(state.unwritten.drain(..most));
        !batch.is_empty()
    }

    fn settle(&self, seq: u64) {
        self.lock().settled = seq;
        self.wrote.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// Starts the thread that writes `event_log` to `log`. It ends after [`EventLog::close`].
pub(crate) fn spawn_writer(event_log: &Arc<EventLog>, log: Box<dyn Write + Send>) -> io::Result<()> {
    let event_log = Arc::clone(event_log);
    thread::Builder::new().name("pgleash-log".into()).spawn(move || write_out(&event_log, log)).map(drop)
}

fn write_out(event_log: &EventLog, mut log: Box<dyn Write + Send>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut text = Vec::new();
    let mut torn = false;
    while event_log.take(&mut batch) {
        text.clear();
        if torn {
            text.push(b'\n');
        }
        for record in &batch {
            // Events are plain values with string keys: this cannot fail, and a Vec takes all.
            let _ = serde_json::to_writer(&mut text, record.as_ref());
            text.push(b'\n');
        }
        torn = log.write_all(&text).and_then(|()| log.flush()).is_err();
        if torn {
            event_log.dropped.increment(batch.len() as u64);
        }
        if let Some(last) = batch.last() {
            event_log.settle(last.seq);
        }
        batch.clear();
    }
}
