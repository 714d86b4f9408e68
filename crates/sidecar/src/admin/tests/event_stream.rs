//! The page's stream: who gets what, who is turned away, and what one who does not read can hold up.

use std::io::{BufRead, BufReader};
use std::sync::atomic::Ordering;

use super::*;
use crate::admin::event_stream::Streams;

/// One who reads a stream.
struct Listener {
    lines: BufReader<TcpStream>,
    head: String,
}

/// One message.
struct Message {
    id: String,
    data: Value,
}

impl Message {
    fn seqs(&self) -> Vec<u64> {
        let events = self.data["events"].as_array().unwrap();
        events.iter().map(|event| event["seq"].as_u64().unwrap()).collect()
    }
}

impl Listener {
    /// Asks for the stream, with more headers.
    fn ask(running: &Running, more: &str) -> Self {
        Self::try_ask(running, more).unwrap_or_else(|head| panic!("cut off in {head:?}"))
    }

    /// The same, or what came of the answer's head before the end.
    fn try_ask(running: &Running, more: &str) -> Result<Self, String> {
        let mut stream = running.connect();
        write!(stream, "GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n{more}\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if !lines.read_line(&mut head).is_ok_and(|read| read > 0) {
                return Err(head);
            }
        }
        Ok(Self { lines, head })
    }

    /// The same, for one who has read message `last`.
    fn after(running: &Running, last: &str) -> Self {
        Self::ask(running, &format!("Last-Event-ID: {last}\r\n"))
    }

    /// The next message; `None` at the end of the stream.
    fn next(&mut self) -> Option<Message> {
        let (mut id, mut line) = (String::new(), String::new());
        loop {
            line.clear();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // Lines with the lengths of chunks are of no interest here.
            if let Some(said) = line.strip_prefix("id: ") {
                said.trim_end().clone_into(&mut id);
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some(Message { id, data: serde_json::from_str(data).unwrap() });
            }
        }
    }
}

fn upstream_failed(detail: String) -> pgleash_core::Event {
    pgleash_core::Event::UpstreamFailed { pool: fixtures::payments(), sqlstate: "08006".to_owned(), detail }
}

#[test]
fn a_message_has_the_snapshot_and_what_is_new() {
    let running = Running::start();
    let mut listener = Listener::ask(&running, "");
    assert!(listener.head.starts_with("HTTP/1.1 200 "), "{}", listener.head);
    for header in ["content-type: text/event-stream", "cache-control: no-store"] {
        assert!(listener.head.contains(header), "{}", listener.head);
    }
    let first = listener.next().unwrap();
    assert_eq!(first.seqs(), (1..=32).collect::<Vec<_>>());
    assert_eq!(first.data["snapshot"]["pools"][0]["pool"], "app@payments");
    assert_eq!(first.id, format!("{}.32", first.data["run"].as_str().unwrap()));
    assert!(listener.next().unwrap().seqs().is_empty(), "a heartbeat");
    running.telemetry.emit(upstream_failed("line one\nline two".to_owned()));
    let news = std::iter::from_fn(|| listener.next()).find(|message| !message.seqs().is_empty()).unwrap();
    assert_eq!(news.seqs(), [33]);
    assert_eq!(news.data["events"][0]["detail"], "line one\nline two");
    assert!(listener.next().unwrap().seqs().is_empty(), "told once");
}

#[test]
fn who_comes_back_gets_what_was_missed_and_of_another_run_all() {
    let running = Running::start();
    let run = Listener::ask(&running, "").next().unwrap().data["run"].as_str().unwrap().to_owned();
    let seqs = |last: &str| Listener::after(&running, last).next().unwrap().seqs();
    assert_eq!(seqs(&format!("{run}.30")), [31, 32]);
    assert_eq!(seqs(&format!("{run}.32")), [0; 0]);
    for other in ["another.30", "30", "", ".", &format!("{run}."), &format!("{run}.-1"), &format!("{run}.x")]
    {
        assert_eq!(seqs(other).len(), 32, "{other}");
    }
}

#[test]
fn one_too_many_is_told_why_and_comes_in_when_another_leaves() {
    let running = Running::start();
    let mut listeners: Vec<_> = (0..Streams::MOST).map(|_| Listener::ask(&running, "")).collect();
    let refused = running.get("/api/v1/stream");
    assert_eq!((refused.status, refused.header("retry-after")), (503, "5"));
    let said = refused.json()["error"].as_str().unwrap().to_owned();
    assert!(said.starts_with("16 live pages are open already"), "{said}");
    assert_eq!(running.get("/healthz").status, 200, "others are served");
    listeners.pop();
    while !Listener::ask(&running, "").head.starts_with("HTTP/1.1 200 ") {}
    assert!(listeners.iter_mut().all(|listener| listener.next().is_some()));
    let messages = listeners.len() as u64 + 1;
    let made = running.source.snapshots.load(Ordering::Relaxed);
    assert!(made < messages, "{made} snapshots for at least {messages} messages: they share");
}

#[test]
fn who_does_not_read_is_cut_off_and_holds_up_nobody() {
    // Short, but not so short that a busy machine cuts off one who reads.
    let whole = Duration::from_secs(3);
    let running = Running::bounded(Bounds { whole, ..Bounds::DEFAULT });
    let run = Listener::ask(&running, "").next().unwrap().data["run"].as_str().unwrap().to_owned();
    for _ in 0..1000 {
        // Enough for a message that does not fit into the kernel's buffers.
        running.telemetry.emit(upstream_failed("x".repeat(1000)));
    }
    let silent: Vec<_> = (0..Streams::MOST).map(|_| silent(&running)).collect();
    assert_eq!(running.get("/healthz").status, 200);
    // All places are taken, until those who do not read have lost theirs.
    let newest = running.telemetry.newest_event();
    let last = format!("Last-Event-ID: {run}.{newest}\r\n");
    let mut reads = loop {
        match Listener::try_ask(&running, &last) {
            Ok(listener) if listener.head.starts_with("HTTP/1.1 200 ") => break listener,
            // Who asks without a pause would hold up everybody itself.
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    // The first comes at once, and each other at a full second.
    assert!(
        (0..6).all(|_| reads.next().is_some()),
        "one who reads stays for longer than any answer may take"
    );
    drop(silent);
}

/// One who asks for the stream and never reads.
fn silent(running: &Running) -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&running.address.into()).unwrap();
    socket.send(b"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    socket
}

#[test]
fn streams_end_with_the_last_word_when_the_server_stops() {
    let running = Running::start();
    let mut listener = Listener::ask(&running, "");
    listener.next().unwrap();
    running.telemetry.emit(pgleash_core::Event::Stopped { drained: true, clients_cut: 0 });
    running.server.stop();
    let last = std::iter::from_fn(|| listener.next()).last().unwrap();
    assert_eq!(last.data["events"][0]["event"], "stopped");
}

#[test]
fn who_only_asks_for_the_headers_takes_no_place() {
    let running = Running::start();
    for _ in 0..=Streams::MOST {
        assert_eq!(running.ask("HEAD /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 200);
    }
    Listener::ask(&running, "").next().unwrap();
}
