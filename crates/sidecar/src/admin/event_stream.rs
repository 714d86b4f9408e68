//! `GET /api/v1/stream`: what the page shows, each second, as server-sent events.
//!
//! Each message has the whole [`Snapshot`] and the events that are newer than the reader's last one, so that
//! whoever comes back, also after a message was lost, has all there is. It comes each second whether anything has
//! changed or not: that is the heartbeat. All streams send at the same moment, and share one snapshot.
//!
//! [`Snapshot`]: pgleash_core::Snapshot

use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use parking_lot::Mutex;
use pgleash_core::Moment;
use pgleash_telemetry::Telemetry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::admin::http_server::{Lease, failure};
use crate::admin::source::Source;

/// The streams of one admin server.
pub(crate) struct Streams {
    source: Arc<dyn Source>,
    telemetry: Arc<Telemetry>,
    /// Tells this process from the next: sequence numbers begin anew in each.
    run: String,
    places: Arc<Semaphore>,
    latest: Mutex<Option<(Moment, Arc<str>)>>,
}

impl Streams {
    /// How many there may be.
    pub(crate) const MOST: usize = 16;
    const PERIOD: Duration = Duration::from_secs(1);
    /// A snapshot that is younger is good enough for another stream.
    const FRESH: Duration = Duration::from_millis(400);

    /// No stream yet.
    pub(crate) fn new(source: Arc<dyn Source>, telemetry: Arc<Telemetry>) -> Self {
        let run = format!("{:08x}", rand::random::<u32>());
        let places = Arc::new(Semaphore::new(Self::MOST));
        Self { source, telemetry, run, places, latest: Mutex::default() }
    }

    /// A stream for a reader whose last message was `last`, if it says so; 503 when there are too many. It ends
    /// when the server stops, or when its reader takes longer for a message than for any other answer.
    pub(crate) fn open(self: &Arc<Self>, last: Option<&str>, lease: Lease) -> Response {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let said = format!(
                "{} live pages are open already: close one, or ask /api/v1/snapshot and /api/v1/events",
                Self::MOST
            );
            return ([(RETRY_AFTER, "5")], failure(StatusCode::SERVICE_UNAVAILABLE, &said)).into_response();
        };
        let seen = last.and_then(|last| self.seq_of(last)).unwrap_or(0);
        let reader = Reader { streams: Arc::clone(self), lease, seen, turn: Turn::First, _place: place };
        let messages = unfold(reader, |mut reader| async move {
            let message = reader.next().await?;
            Some((Ok::<_, io::Error>(message), reader))
        });
        ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(messages)).into_response()
    }

    /// The sequence number in the id of a message, if it is one of this process.
    fn seq_of(&self, id: &str) -> Option<u64> {
        let (run, seq) = id.split_once('.')?;
        (run == self.run).then(|| seq.parse().ok())?
    }

    /// The snapshot, as JSON on one line.
    fn snapshot(&self) -> Arc<str> {
        let mut latest = self.latest.lock();
        let now = pgleash_clock::now();
        match &*latest {
            Some((made, text)) if now.since(*made) < Self::FRESH => Arc::clone(text),
            _ => {
                // Plain values with string keys: this cannot fail.
                let text = serde_json::to_string(&self.source.snapshot()).unwrap_or_default();
                let text: Arc<str> = text.into();
                *latest = Some((now, Arc::clone(&text)));
                text
            }
        }
    }
}

/// One who reads a stream.
struct Reader {
    streams: Arc<Streams>,
    lease: Lease,
    /// `seq` of the last event that was sent.
    seen: u64,
    turn: Turn,
    _place: OwnedSemaphorePermit,
}

/// Which message is due.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The first, at once.
    First,
    /// Another, at the next full second.
    Next,
    /// None: the server stops, and its last word was said.
    Over,
}

impl Reader {
    /// The next message; when the server stops one more, at once, and then `None`. It is asked for only once the one
    /// before is on its way, so what a slow reader costs is one message.
    async fn next(&mut self) -> Option<String> {
        self.lease.extend(Streams::PERIOD);
        let turn = self.turn;
        self.turn = match turn {
            Turn::First => Turn::Next,
            Turn::Next => self.wait().await,
            Turn::Over => return None,
        };
        Some(self.message(if turn == Turn::First { "retry: 1000\n" } else { "" }))
    }

    /// Until the next full second, or until the server stops.
    async fn wait(&mut self) -> Turn {
        let period = Streams::PERIOD.as_nanos() as u64;
        let wait = Duration::from_nanos(period - pgleash_clock::now().as_nanos() % period);
        tokio::select! {
            () = self.lease.stopping() => Turn::Over,
            () = tokio::time::sleep(wait) => Turn::Next,
        }
    }

    fn message(&mut self, lead: &str) -> String {
        let snapshot = self.streams.snapshot();
        let events = self.streams.telemetry.events_after(self.seen);
        self.seen = events.last().map_or(self.seen, |last| last.seq);
        let events = serde_json::to_string(&events).unwrap_or_default();
        let (run, seen) = (&self.streams.run, self.seen);
        let mut message = String::with_capacity(snapshot.len() + events.len() + 128);
        let _ = write!(
            message,
            "{lead}id: {run}.{seen}\ndata: {{\"run\":\"{run}\",\"seq\":{seen},\"snapshot\":{snapshot},\"events\":{events}}}\n\n"
        );
        message
    }
}
