//! The pgleash program under test, its events, its admin pages.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::endpoint::Endpoint;
use super::metrics::Metrics;
use super::server::Database;
use super::{PATIENCE, eventually, within};

/// When a server connection is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// When the client disconnects.
    Session,
    /// At the end of each transaction.
    Transaction,
}

/// How to start pgleash.
pub struct Setup {
    environment: Vec<(String, String)>,
    tolerated: Vec<&'static str>,
    database: String,
    file: Option<String>,
}

impl Setup {
    /// Sets a configuration key, `pool.size` for instance, through the environment.
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.environment.push((variable(key), value.to_string()));
        self
    }

    /// Leaves a key to the configuration file.
    pub fn unset(mut self, key: &str) -> Self {
        self.environment.retain(|(name, _)| *name != variable(key));
        self
    }

    /// Puts this text into its configuration file.
    pub fn file(mut self, text: impl ToString) -> Self {
        self.file = Some(text.to_string());
        self
    }

    /// Opens the control listener, with [`TOKEN`].
    pub fn control(self) -> Self {
        self.set("control", "127.0.0.1:0").set("control_token", TOKEN)
    }

    /// Sets `pool.mode`.
    pub fn mode(self, mode: Mode) -> Self {
        self.set("pool.mode", format!("{mode:?}").to_lowercase())
    }

    /// These events of level `warn` or `error` are part of the story; any other fails the test.
    pub fn expecting(mut self, events: &[&'static str]) -> Self {
        self.tolerated.extend(events);
        self
    }

    /// Starts it and waits until it serves.
    pub async fn start(self) -> Leash {
        let mut leash = self.spawn();
        let started = leash.event("started", |_| true).await;
        leash.port = port_of(&started["listen"]);
        leash.admin_port = port_of(&started["admin"]);
        leash.control_port = started.get("control").map_or(0, port_of);
        leash
    }

    /// Starts it and waits for it to end by itself: the exit code, and what it said on both streams.
    pub async fn run(self) -> (i32, String) {
        let mut leash = self.spawn();
        let status = leash.wait_exit().await;
        let events: Vec<String> = leash.events().iter().map(Value::to_string).collect();
        (status.code().unwrap_or(-1), format!("{}\n{}", leash.stderr(), events.join("\n")))
    }

    fn spawn(self) -> Leash {
        let directory = tempfile::Builder::new().prefix("pgleash-test-cwd-").tempdir().unwrap();
        if let Some(text) = &self.file {
            std::fs::write(directory.path().join("pgleash.toml"), text).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgleash"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.envs(self.environment).current_dir(directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("pgleash starts");
        let output = Arc::new(Output::default());
        collect_events(child.stdout.take().unwrap(), output.clone());
        let mut errors = child.stderr.take().unwrap();
        let sink = output.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = errors.read(&mut chunk) {
                sink.errors.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..read]));
            }
        });
        Leash {
            child,
            output,
            tolerated: self.tolerated,
            database: self.database,
            port: 0,
            admin_port: 0,
            control_port: 0,
            directory,
        }
    }
}

/// The token of [`Setup::control`].
pub const TOKEN: &str = "a-token-that-nobody-must-see";

/// A running pgleash. Killed when dropped.
pub struct Leash {
    child: Child,
    output: Arc<Output>,
    tolerated: Vec<&'static str>,
    database: String,
    port: u16,
    admin_port: u16,
    control_port: u16,
    directory: tempfile::TempDir,
}

#[derive(Default)]
struct Output {
    events: Mutex<Vec<Value>>,
    errors: Mutex<String>,
}

impl Leash {
    /// In front of a database; ports are free ones.
    pub fn on(database: &Database) -> Setup {
        Leash::upstream(&database.url("app"), &database.name)
    }

    /// In front of any URL; clients ask for `database`.
    pub fn upstream(url: &str, database: &str) -> Setup {
        let setup = Setup {
            environment: Vec::new(),
            tolerated: Vec::new(),
            database: database.to_owned(),
            file: None,
        };
        setup.set("listen", "127.0.0.1:0").set("admin", "127.0.0.1:0").set("upstream.url", url)
    }

    /// Where its clients connect, as `app`.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint { port: self.port, user: "app".to_owned(), database: self.database.clone() }
    }

    /// Its port for clients; 0 if it listens on a Unix socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its port for administrators.
    pub fn admin_port(&self) -> u16 {
        self.admin_port
    }

    /// Replaces its configuration file, whole at once.
    pub fn rewrite(&self, text: impl ToString) {
        let path = self.directory.path().join("pgleash.toml");
        let fresh = path.with_extension("fresh");
        std::fs::write(&fresh, text.to_string()).unwrap();
        std::fs::rename(fresh, path).unwrap();
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Every event so far.
    pub fn events(&self) -> Vec<Value> {
        self.output.events.lock().unwrap().clone()
    }

    /// The events of one name so far.
    pub fn events_named(&self, name: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["event"] == name).collect()
    }

    /// Waits for an event, which may have been there already.
    pub async fn wait_for_event(&mut self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let patience = std::time::Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.events().into_iter().find(&mut wanted) {
                return event;
            }
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || std::time::Instant::now() > patience {
                panic!("no event {what}; exit: {ended:?}; events: {}\n{}", self.told(), self.stderr());
            }
            super::tick().await;
        }
    }

    /// Waits for an event of this name for which `wanted` holds.
    pub async fn event(&mut self, name: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        self.wait_for_event(name, |event| event["event"] == name && wanted(event)).await
    }

    /// `/api/v1/snapshot`.
    pub async fn snapshot(&self) -> Value {
        let (status, body) = self.get("/api/v1/snapshot").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// The snapshot of the pool of `app` on the test's database; `Null` before its first client.
    pub async fn pool(&self) -> Value {
        let key = format!("app@{}", self.database);
        let mut snapshot = self.snapshot().await;
        let pools = snapshot["pools"].as_array_mut().expect("pools is an array");
        pools.iter_mut().find(|pool| pool["pool"] == key).map(Value::take).unwrap_or_default()
    }

    /// Waits until the pool's snapshot is as wanted.
    pub async fn pool_when(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let seen = Mutex::new(Value::Null);
        let found = async {
            eventually(what, async || {
                let pool = self.pool().await;
                *seen.lock().unwrap() = pool.clone();
                wanted(&pool).then_some(pool)
            })
            .await
        };
        let patience = PATIENCE - std::time::Duration::from_secs(1);
        match tokio::time::timeout(patience, found).await {
            Ok(pool) => pool,
            Err(_) => {
                panic!("not met: {what}; the pool is {:#}; events: {}", seen.lock().unwrap(), self.told())
            }
        }
    }

    /// `/metrics`, parsed.
    pub async fn metrics(&self) -> Metrics {
        let (status, body) = self.get("/metrics").await;
        assert_eq!(status, 200, "{body}");
        Metrics::parse(&body)
    }

    /// One page of the admin listener: status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        self.ask(self.admin_port, &format!("GET {path}"), "").await
    }

    /// Asks the control listener for something, with the token: status and body.
    pub async fn post(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.control(&format!("POST {path}"), &format!("Bearer {TOKEN}")).await;
        (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: not JSON: {body}")))
    }

    /// The same with any method and authorization.
    pub async fn control(&self, request: &str, authorization: &str) -> (u16, String) {
        self.ask(self.control_port, request, &format!("Authorization: {authorization}\r\n")).await
    }

    async fn ask(&self, port: u16, what: &str, more: &str) -> (u16, String) {
        let answer = async {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let request = format!("{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            String::from_utf8(answer).unwrap()
        };
        let answer = within(PATIENCE, what, answer).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("not HTTP: {answer}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (
            status,
            if head.to_lowercase().contains("transfer-encoding: chunked") {
                unchunk(body)
            } else {
                body.into()
            },
        )
    }

    /// Sends SIGTERM.
    pub fn sigterm(&self) {
        self.signal("TERM");
    }

    /// Sends SIGINT.
    pub fn sigint(&self) {
        self.signal("INT");
    }

    /// Sends a signal by its name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(status.unwrap().success(), "pgleash has gone");
    }

    /// Waits for the process to end.
    pub async fn wait_exit(&mut self) -> ExitStatus {
        let output = self.output.clone();
        let status = eventually("pgleash ends", async || self.child.try_wait().unwrap()).await;
        // The readers own a clone each until they have read to the end.
        eventually("the last words are read", async || (Arc::strong_count(&output) == 2).then_some(())).await;
        status
    }

    /// Highest resident memory so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// What it wrote to standard error.
    pub fn stderr(&self) -> String {
        self.output.errors.lock().unwrap().clone()
    }

    /// This event is part of the story from now on.
    pub fn tolerate(&mut self, event: &'static str) {
        self.tolerated.push(event);
    }

    /// Fails if it panicked, or said a warning or an error that is not part of the story.
    pub fn assert_calm(&self) {
        let errors = self.stderr();
        assert!(!errors.contains("panicked"), "pgleash panicked:\n{errors}");
        for event in self.events() {
            let alarming = event["level"] == "warn" || event["level"] == "error";
            let name = event["event"].as_str().unwrap_or_default();
            assert!(!alarming || self.tolerated.contains(&name), "unexpected: {event}\nall: {}", self.told());
        }
    }

    fn told(&self) -> String {
        self.events().iter().map(|event| format!("\n  {event}")).collect()
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- pgleash said:{}\n{}", self.told(), self.stderr());
        }
    }
}

fn collect_events(stdout: ChildStdout, output: Arc<Output>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { return };
            let event = serde_json::from_str(&line).unwrap_or_else(
                |_| serde_json::json!({ "event": "not_json", "level": "error", "line": line }),
            );
            output.events.lock().unwrap().push(event);
        }
    });
}

/// `pool.size` is `PGLEASH_POOL_SIZE`.
fn variable(key: &str) -> String {
    format!("PGLEASH_{}", key.replace('.', "_").to_uppercase())
}

fn port_of(address: &Value) -> u16 {
    let address = address.as_str().unwrap_or_else(|| panic!("not an address: {address}"));
    if address.starts_with('/') {
        return 0;
    }
    address.rsplit(':').next().unwrap().parse().unwrap()
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap();
        if length == 0 {
            break;
        }
        whole.push_str(&rest[..length]);
        body = rest[length..].trim_start_matches("\r\n");
    }
    whole
}
