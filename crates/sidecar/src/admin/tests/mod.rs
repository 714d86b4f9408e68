pub(super) mod event_stream;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pgleash_core::Sink;
use pgleash_telemetry::fixtures;
use serde_json::Value;

use super::*;

/// A sidecar in the middle of an incident.
#[derive(Default)]
struct Incident {
    /// What `alive` and `ready` complain of; empty if all is well.
    trouble: Mutex<String>,
    /// How many were asked for.
    snapshots: AtomicU64,
}

impl Incident {
    fn verdict(&self) -> Result<(), String> {
        match self.trouble.lock().as_str() {
            "" => Ok(()),
            "panic" => panic!("a test asked for it"),
            trouble => Err(trouble.to_owned()),
        }
    }
}

impl Source for Incident {
    fn snapshot(&self) -> Snapshot {
        self.snapshots.fetch_add(1, Ordering::Relaxed);
        fixtures::incident()
    }
    fn ready(&self) -> Result<(), String> {
        self.verdict()
    }
    fn alive(&self) -> Result<(), String> {
        self.verdict()
    }
    fn admits(&self, name: &str) -> bool {
        name == "pgleash.test"
    }
}

#[test]
fn metrics_are_served_with_the_content_type_of_prometheus() {
    let answer = Running::start().get("/metrics");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(
        answer.body.contains("pgleash_pool_waiting_clients{pool=\"app@payments\"} 3\n"),
        "{}",
        answer.body
    );
    assert!(
        answer.body.contains("pgleash_checkout_timeouts_total{pool=\"app@payments\"} 1\n"),
        "{}",
        answer.body
    );
}

#[test]
fn health_and_readiness_say_ok_or_why_not() {
    let running = Running::start();
    for path in ["/healthz", "/readyz"] {
        let answer = running.get(path);
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"), "{path}");
    }
    "the keeper has not looked for 12 s".clone_into(&mut running.source.trouble.lock());
    for path in ["/healthz", "/readyz"] {
        let answer = running.get(path);
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (503, "the keeper has not looked for 12 s\n"),
            "{path}"
        );
    }
}

#[test]
fn the_snapshot_is_json() {
    let answer = Running::start().get("/api/v1/snapshot");
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    let snapshot = answer.json();
    assert_eq!((&snapshot["mode"], &snapshot["action"]), (&"transaction".into(), &"reclaim".into()));
    assert_eq!(snapshot["pools"][0]["pool"], "app@payments");
    assert_eq!(snapshot["pools"][0]["stale"][0], serde_json::json!(["idle_in_transaction", 3]));
    assert_eq!(snapshot["pools"][0]["holders"][0]["session"], 1042);
    assert_eq!(snapshot["pools"][1]["exhaustion_forecast_seconds"], Value::Null);
}

#[test]
fn events_can_be_followed_by_sequence_number() {
    let running = Running::start();
    let all = running.get("/api/v1/events").json();
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 32);
    assert_eq!((&all[0]["seq"], &all[0]["event"]), (&Value::from(1), &Value::from("started")));

    let news = running.get("/api/v1/events?after=30").json();
    let seqs: Vec<u64> =
        news.as_array().unwrap().iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [31, 32]);
    assert_eq!(running.get("/api/v1/events?after=32").body, "[]");
}

#[test]
fn a_wrong_sequence_number_is_explained() {
    for query in ["after=yesterday", "after=-1", "after=", "after=1&after=2", "after=%ff"] {
        let answer = Running::start().get(&format!("/api/v1/events?{query}"));
        assert_eq!(answer.status, 400, "{query}: {}", answer.body);
        assert!(answer.json()["error"].as_str().unwrap().contains("a whole number"), "{}", answer.body);
    }
}

#[test]
fn the_page_runs_only_its_own_script() {
    let running = Running::start();
    let (one, other) = (running.get("/"), running.get("/"));
    assert_eq!((one.status, one.header("content-type")), (200, "text/html; charset=utf-8"));
    let policy = one.header("content-security-policy");
    let nonce = policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert_eq!(nonce.len(), 32);
    assert_eq!(one.body.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "the script and the style");
    assert!(!one.body.contains("{{"), "every placeholder is filled");
    assert_ne!(policy, other.header("content-security-policy"), "a nonce is used once");
}

#[test]
fn the_page_may_talk_to_the_control_listener_if_there_is_one() {
    for (control, url) in [
        ("127.0.0.1:9633", "http://127.0.0.1:9633"),
        ("127.0.0.2:9633", "http://127.0.0.2:9633"),
        ("[::1]:9633", "http://localhost:9633"),
    ] {
        let answer = Page::new(Some(control.parse().unwrap())).answer();
        let policy = answer.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.contains(&format!("; connect-src 'self' {url};")), "{policy}");
    }
    let running = Running::start();
    let answer = running.get("/");
    assert!(answer.header("content-security-policy").contains("; connect-src 'self';"));
    assert!(answer.body.contains("data-control=\"\""));
}

#[test]
fn every_event_has_words_on_the_page() {
    let running = Running::start();
    let page = running.get("/").body;
    for event in running.get("/api/v1/events").json().as_array().unwrap() {
        let name = event["event"].as_str().unwrap();
        let told = page.contains(&format!("\n  {name}: ("));
        assert!(told || name == "test_notification", "{name}: a running pgleash says it");
    }
}

#[test]
fn the_page_is_small_and_takes_text_from_nowhere_but_text_nodes() {
    let page = Running::start().get("/").body;
    assert!(page.len() < 80_000, "{} bytes", page.len());
    let page = page.replace("\"http://www.w3.org/2000/svg\"", "the name of a namespace");
    for forbidden in [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "http://",
        "https://",
        "style=\"",
    ] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn an_unknown_path_and_a_wrong_method_are_json_errors() {
    let running = Running::start();
    let answer = running.get("/metrics/");
    assert_eq!(answer.status, 404);
    assert!(answer.json()["error"].as_str().unwrap().starts_with("there is no /metrics/; there are /,"));

    for path in ["/", "/metrics", "/api/v1/snapshot"] {
        let answer =
            running.ask(&format!("POST {path} HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 2\r\n\r\n{{}}"));
        assert_eq!((answer.status, answer.header("allow")), (405, "GET,HEAD"), "{path}");
        assert_eq!(answer.json()["error"], "this listener only reads: use GET");
    }
}

#[test]
fn what_a_browser_shows_is_told_by_known_names_only() {
    let running = Running::start();
    let status = |path: &str, line: &str| running.ask(&format!("GET {path} HTTP/1.1\r\n{line}\r\n")).status;
    for path in ["/", "/api/v1/snapshot", "/api/v1/events"] {
        for known in ["", "Host:\r\n", "Host: pgleash.test:80\r\n", "Host: 10.0.0.5:9632\r\n"] {
            assert_eq!(status(path, known), 200, "{path} {known:?}");
        }
        for foreign in ["evil.test", "pgleash.test.evil.test", "localhost\r\nHost: evil.test", "\u{e9}"] {
            assert_eq!(status(path, &format!("Host: {foreign}\r\n")), 421, "{path} {foreign:?}");
        }
        assert_eq!(status(&format!("http://evil.test{path}"), "Host: localhost\r\n"), 421, "{path}");
    }
    assert_eq!(status("/api/v1/stream", "Host: evil.test\r\n"), 421);
    let said = running.ask("GET / HTTP/1.1\r\nHost: evil.test:9632\r\n\r\n");
    let error = said.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("the name evil.test: ask") && error.contains("admin_hosts"), "{error}");
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(status(path, "Host: evil.test\r\n"), 200, "{path}: Prometheus and probes use any name");
    }
}

#[test]
fn every_answer_is_fresh_and_keeps_its_type() {
    let running = Running::start();
    for path in ["/", "/metrics", "/healthz", "/api/v1/snapshot", "/nowhere"] {
        let answer = running.get(path);
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
    }
}

#[test]
fn head_tells_the_length_and_sends_no_body() {
    let answer = Running::start().ask("HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((answer.status, answer.header("content-length"), answer.body.as_str()), (200, "3", ""));
}

#[test]
fn oversized_and_malformed_requests_are_refused() {
    let running = Running::start();
    let long = "a".repeat(Bounds::HEAD);
    let many = (0..Bounds::HEADERS + 1).map(|n| format!("X-{n}: 1\r\n")).collect::<String>();
    for (request, status) in [
        (format!("GET /{long} HTTP/1.1\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nX: {long}"), 431),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), 431),
        ("\0\0\0\u{8}\u{4}\u{2}\u{16}/ a Postgres client\r\n\r\n".to_owned(), 400),
    ] {
        let answer = running.ask(&request);
        assert_eq!(answer.status, status, "{}", &request[..20]);
    }
    assert_eq!(running.get("/healthz").status, 200, "others are served");
}

#[test]
fn a_silent_client_is_cut_off() {
    let running = Running::bounded(Bounds { read: Duration::from_millis(50), ..Bounds::DEFAULT });
    let mut silent = running.connect();
    silent.write_all(b"GET /metrics HTTP/1.1\r\nHost: ").unwrap();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    assert!(!String::from_utf8_lossy(&rest).contains(" 200 "), "{}", String::from_utf8_lossy(&rest));
}

#[test]
fn two_thousand_silent_clients_hold_up_nobody() {
    const SILENT: usize = 2000;
    // So long that none of them makes room by its timeout.
    let patient = Duration::from_secs(3600);
    let running = Running::bounded(Bounds { read: patient, whole: patient, ..Bounds::DEFAULT });
    let silent: Vec<TcpStream> = (0..SILENT)
        .map(|nth| {
            let mut silent = running.connect();
            if nth % 2 == 0 {
                let _ = silent.write_all(b"GET /metrics HTTP/1.1\r\nHost: ");
            }
            silent
        })
        .collect();
    let began = pgleash_clock::now();
    for path in ["/healthz", "/metrics", "/readyz", "/api/v1/snapshot"] {
        assert_eq!(running.get(path).status, 200, "{path}");
    }
    let took = pgleash_clock::now().since(began);
    assert!(took < Duration::from_secs(1), "a probe waits for a second by default; this took {took:?}");
    drop(silent);
}

#[test]
fn a_crowd_that_asks_at_once_is_answered_to_the_last() {
    let running = Running::start();
    let ask = |_| {
        let mut client = running.connect();
        client.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        client
    };
    let crowd: Vec<TcpStream> = (0..200).map(ask).collect();
    let answered = crowd.into_iter().filter(|client| read(client).contains(" 200 OK")).count();
    assert_eq!(answered, 200, "each of them asked as soon as it was there");
}

/// All that is sent, whatever ends it.
fn read(mut client: impl Read) -> String {
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn clients_that_do_not_read_are_cut_off_and_make_room() {
    let whole = Duration::from_millis(300);
    let running = Running::bounded(Bounds { connections: 2, whole, ..Bounds::DEFAULT });
    for _ in 0..4000 {
        // Enough for an answer that does not fit into the kernel's buffers.
        let detail = "x".repeat(4000);
        running.telemetry.emit(pgleash_core::Event::UpstreamFailed {
            pool: fixtures::payments(),
            sqlstate: "08006".to_owned(),
            detail,
        });
    }
    let slow: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut slow = running.connect();
            slow.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            slow
        })
        .collect();
    // All places are taken, twice over; the fifth client gets its answer nevertheless.
    assert_eq!(running.get("/healthz").status, 200);
    drop(slow);
}

#[test]
fn a_panic_costs_one_answer_only() {
    let running = Running::start();
    "panic".clone_into(&mut running.source.trouble.lock());
    let mut client = running.connect();
    client.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut rest = String::new();
    let _ = client.read_to_string(&mut rest);
    assert_eq!(rest, "");
    running.source.trouble.lock().clear();
    assert_eq!(running.get("/healthz").status, 200);
}

#[test]
fn stopping_lets_nobody_in_and_frees_the_port() {
    let Running { server, address, .. } = Running::start();
    assert_eq!(server.address(), address);
    server.stop();
    assert!(TcpStream::connect(address).is_err());
    TcpListener::bind(address).unwrap();
}

#[test]
fn stopping_waits_for_an_idle_client_only_so_long() {
    let Running { server, address, .. } =
        Running::bounded(Bounds { stop: Duration::from_millis(20), ..Bounds::DEFAULT });
    let mut idle = TcpStream::connect(address).unwrap();
    idle.write_all(b"GET").unwrap();
    server.stop();
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest);
    assert!(rest.is_empty());
}

#[test]
fn many_clients_are_served_at_once() {
    let running = Running::start();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for path in ["/metrics", "/api/v1/snapshot", "/api/v1/events", "/"].iter().cycle().take(40) {
                    assert_eq!(running.get(path).status, 200);
                }
            });
        }
    });
}

struct Running {
    server: HttpServer,
    address: SocketAddr,
    source: Arc<Incident>,
    telemetry: Arc<Telemetry>,
}

impl Running {
    fn start() -> Self {
        Self::bounded(Bounds::DEFAULT)
    }

    /// A server that has seen the whole incident.
    fn bounded(bounds: Bounds) -> Self {
        let telemetry = Arc::new(Telemetry::start(Box::new(std::io::sink())).unwrap());
        fixtures::events().into_iter().for_each(|event| telemetry.emit(event));
        let source = Arc::new(Incident::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let app = App::new(Arc::clone(&source) as Arc<dyn Source>, Arc::clone(&telemetry), None);
        let server = spawn_bounded("admin", listener, router(app), bounds).unwrap();
        let address = server.address();
        Self { server, address, source, telemetry }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    fn ask(&self, request: &str) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        // A refusal may reset the connection after its answer was sent.
        let _ = stream.read_to_end(&mut answer);
        Answer::parse(&String::from_utf8(answer).unwrap())
    }
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header =
            |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Self { status, headers: lines.filter_map(header).collect(), body: body.to_owned() }
    }

    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or_else(|| panic!("no {name} in {:?}", self.headers), |(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}
