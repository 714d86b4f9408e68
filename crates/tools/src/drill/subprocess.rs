//! pgleash as a child process: started with `PGLEASH_*`, heard through its event log, watched through its
//! snapshot, ended with SIGTERM.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use pgleash_core::Moment;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long pgleash may take to say that it listens.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long pgleash may take to exit after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How long one look at the snapshot may take.
const LOOK_DEADLINE: Duration = Duration::from_secs(2);
/// How long it may take to exit once its output has ended.
const LAST_BREATH: Duration = Duration::from_secs(1);
/// Lines of its standard error that are kept for a report.
const KEPT_LINES: usize = 20;

/// One line of the event log: the fields that the drill reads.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
#[allow(missing_docs, reason = "named as in `event::Event`")]
pub struct EventLine {
    pub event: String,
    pub level: String,
    pub listen: Option<String>,
    pub admin: Option<String>,
    pub version: Option<String>,
    pub session: Option<u32>,
    pub reason: Option<String>,
    pub resolution: Option<String>,
    pub because: Option<String>,
    pub outcome: Option<String>,
    pub idle_seconds: Option<f64>,
    pub limit_seconds: Option<f64>,
    pub detail: Option<String>,
}

/// An event line and the moment the drill read it.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When the drill read the line.
    pub at: Moment,
    /// The line.
    pub line: EventLine,
    /// The same, as it was written, if it speaks of a leak; else empty.
    pub text: String,
}

/// What the drill reads of a pool in `/api/v1/snapshot`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[allow(missing_docs, reason = "named as in `snapshot::PoolSnapshot`")]
pub struct PoolLook {
    pub pool: String,
    pub utilization_ratio: f64,
    pub utilization_peak_ratio: f64,
    pub waiting: usize,
}

#[derive(Deserialize)]
struct SnapshotLook {
    pools: Vec<PoolLook>,
}

/// A running pgleash. Dropping it kills the process.
#[derive(Debug)]
pub struct Pgleash {
    child: Child,
    ear: Ear,
    listen: SocketAddr,
    admin: SocketAddr,
    _home: tempfile::TempDir,
}

impl Pgleash {
    /// Starts `program run` with these keys as `PGLEASH_*`, and nothing else of the kind, in an empty
    /// directory, and waits for its `started` event. Its event log is kept in `log`, if there is one.
    ///
    /// # Errors
    /// It could not be started, or ended, or did not say in time that it listens.
    ///
    /// Cancel safe: the process is killed.
    pub async fn start(
        program: &Path,
        keys: &[(&str, String)],
        log: Option<File>,
    ) -> Result<Self, ChildError> {
        let failed = |error| ChildError::Spawn { program: program.to_path_buf(), error };
        let home = tempfile::tempdir().map_err(failed)?;
        let mut command = Command::new(program);
        command.arg("run").current_dir(home.path()).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PGLEASH_"))
        {
            command.env_remove(name);
        }
        command.envs(keys.iter().map(|(key, value)| (format!("PGLEASH_{key}"), value)));
        let mut child = command.spawn().map_err(failed)?;
        let mut ear = Ear::on(&mut child, log);
        let started = tokio::time::timeout(START_DEADLINE, ear.started()).await;
        let Ok(Some((listen, admin))) = started else {
            // Its output has ended, so it is about to exit, or the deadline has passed.
            let status = tokio::time::timeout(LAST_BREATH, child.wait()).await.ok().and_then(Result::ok);
            return Err(ChildError::NotStarted { status, said: ear.last_words() });
        };
        Ok(Self { child, ear, listen, admin, _home: home })
    }

    /// Where clients connect.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// What `wanted` makes of the lines that were heard so far.
    pub fn heard<T>(&self, wanted: impl FnMut(&Heard) -> Option<T>) -> Vec<T> {
        self.ear.lines().iter().filter_map(wanted).collect()
    }

    /// The state of the pools now.
    ///
    /// # Errors
    /// The admin listener did not answer in two seconds with a snapshot.
    pub async fn look(&self) -> Result<Vec<PoolLook>, ChildError> {
        let answer = tokio::time::timeout(LOOK_DEADLINE, get(self.admin, "/api/v1/snapshot")).await;
        let body = match answer {
            Ok(answer) => answer.map_err(|error| ChildError::Snapshot { said: error.to_string() })?,
            Err(_) => {
                return Err(ChildError::Snapshot { said: format!("no answer within {LOOK_DEADLINE:?}") });
            }
        };
        let snapshot: SnapshotLook = serde_json::from_slice(&body)
            .map_err(|error| ChildError::Snapshot { said: error.to_string() })?;
        Ok(snapshot.pools)
    }

    /// Returns when the process has ended by itself, which it should not.
    ///
    /// Cancel safe.
    pub async fn ended(&mut self) -> ChildError {
        let status = self.child.wait().await.ok();
        ChildError::Ended { status, said: self.ear.last_words() }
    }

    /// Asks it to stop and returns all that it said.
    ///
    /// # Errors
    /// It did not exit with 0 in thirty seconds. It is gone in any case.
    pub async fn stop(mut self) -> Result<Vec<Heard>, ChildError> {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let status = tokio::time::timeout(STOP_DEADLINE, self.child.wait()).await;
        match status {
            Ok(Ok(status)) if status.success() => {
                // The pipe may still hold its last lines.
                let _ = tokio::time::timeout(LOOK_DEADLINE, &mut self.ear.reader).await;
                let heard = self.ear.lines().clone();
                Ok(heard)
            }
            status => {
                let _ = self.child.start_kill();
                let status = status.ok().and_then(Result::ok);
                Err(ChildError::NotStopped { status, said: self.ear.last_words() })
            }
        }
    }
}

/// Listens to both outputs of the process.
#[derive(Debug)]
struct Ear {
    lines: Arc<Mutex<Vec<Heard>>>,
    complaints: Arc<Mutex<VecDeque<String>>>,
    addresses: watch::Receiver<Option<(SocketAddr, SocketAddr)>>,
    reader: JoinHandle<()>,
}

impl Ear {
    fn on(child: &mut Child, mut log: Option<File>) -> Self {
        let (tell, addresses) = watch::channel(None);
        let lines = Arc::<Mutex<Vec<Heard>>>::default();
        let complaints = Arc::<Mutex<VecDeque<String>>>::default();
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let (heard, refused) = (lines.clone(), complaints.clone());
        let reader = tokio::spawn(async move {
            let Some(stdout) = stdout else { return };
            let mut stdout = BufReader::new(stdout).lines();
            while let Ok(Some(text)) = stdout.next_line().await {
                if let Some(file) = &mut log
                    && let Err(error) = writeln!(file, "{text}")
                {
                    keep(&refused, format!("the drill could not write the event log: {error}"));
                    log = None;
                }
                match serde_json::from_str::<EventLine>(&text) {
                    Ok(line) => {
                        if let Some(addresses) = addresses_of(&line) {
                            let _ = tell.send(Some(addresses));
                        }
                        let told = line.event.starts_with("leak_") || line.event.starts_with("reclaim_");
                        let text = if told { text } else { String::new() };
                        lock(&heard).push(Heard { at: pgleash_clock::now(), line, text });
                    }
                    Err(_) => keep(&refused, text),
                }
            }
        });
        let kept = complaints.clone();
        tokio::spawn(async move {
            let Some(stderr) = stderr else { return };
            let mut stderr = BufReader::new(stderr).lines();
            while let Ok(Some(text)) = stderr.next_line().await {
                keep(&kept, text);
            }
        });
        Self { lines, complaints, addresses, reader }
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Heard>> {
        lock(&self.lines)
    }

    /// The addresses of the `started` event; `None` if the output ended without one.
    async fn started(&mut self) -> Option<(SocketAddr, SocketAddr)> {
        *self.addresses.wait_for(Option::is_some).await.ok()?
    }

    /// What it complained of last, for a report: its standard error, and its worst events.
    fn last_words(&self) -> String {
        let mut words: Vec<String> = lock(&self.complaints).iter().cloned().collect();
        let lines = self.lines();
        let errors = lines.iter().filter(|heard| heard.line.level == "error");
        words.extend(errors.rev().take(3).map(|heard| {
            format!("event {}: {}", heard.line.event, heard.line.detail.as_deref().unwrap_or("no detail"))
        }));
        if words.is_empty() { "it said nothing".to_owned() } else { words.join("\n") }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

fn keep(lines: &Mutex<VecDeque<String>>, text: String) {
    let mut lines = lock(lines);
    if lines.len() == KEPT_LINES {
        lines.pop_front();
    }
    lines.push_back(text);
}

fn addresses_of(line: &EventLine) -> Option<(SocketAddr, SocketAddr)> {
    if line.event != "started" {
        return None;
    }
    Some((line.listen.as_ref()?.parse().ok()?, line.admin.as_ref()?.parse().ok()?))
}

/// One GET, in HTTP/1.0 so that the body ends with the connection.
async fn get(address: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let head = head.ok_or_else(|| std::io::Error::other(format!("no HTTP answer from {address}")))?;
    let body = answer.split_off(head + 4);
    let first = String::from_utf8_lossy(&answer);
    let first = first.lines().next().unwrap_or_default();
    if first.split(' ').nth(1) == Some("200") {
        return Ok(body);
    }
    Err(std::io::Error::other(format!("GET {path}: {first}")))
}

/// What went wrong with the child.
#[derive(Debug)]
#[allow(missing_docs, reason = "`said` is the end of its output")]
pub enum ChildError {
    /// The program could not be run.
    Spawn { program: PathBuf, error: std::io::Error },
    /// It did not say that it listens.
    NotStarted { status: Option<ExitStatus>, said: String },
    /// It ended in the middle of a run.
    Ended { status: Option<ExitStatus>, said: String },
    /// SIGTERM did not end it in order.
    NotStopped { status: Option<ExitStatus>, said: String },
    /// `/api/v1/snapshot` did not answer.
    Snapshot { said: String },
}

impl fmt::Display for ChildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended =
            |status: &Option<ExitStatus>| status.map_or("still running".to_owned(), |s| s.to_string());
        match self {
            Self::Spawn { program, error } => {
                write!(f, "cannot run {}: {error}; name pgleash's binary with --pgleash", program.display())
            }
            Self::NotStarted { status: Some(status), said } => {
                write!(f, "pgleash ended before it listened ({status}):\n{said}")
            }
            Self::NotStarted { status: None, said } => {
                write!(f, "pgleash did not say within {START_DEADLINE:?} that it listens:\n{said}")
            }
            Self::Ended { status, said } => {
                write!(f, "pgleash ended during the drill ({}):\n{said}", ended(status))
            }
            Self::NotStopped { status, said } => write!(
                f,
                "pgleash did not exit with 0 within {STOP_DEADLINE:?} of SIGTERM ({}):\n{said}",
                ended(status)
            ),
            Self::Snapshot { said } => write!(f, "pgleash's /api/v1/snapshot does not answer: {said}"),
        }
    }
}

impl std::error::Error for ChildError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_line_gives_up_what_the_drill_reads() {
        let text = r#"{"time":"2026-01-02T03:04:05.678Z","level":"warn","event":"leak_detected","pool":"a@b",
            "reason":"idle_session","checkout":9,"session":7,"app":"payments@1.9.0","user":"a","database":"b",
            "client":"127.0.0.1:5","backend_pid":4,"age_seconds":2.5,"idle_seconds":2.0,"limit_seconds":4.0}"#;
        let line: EventLine = serde_json::from_str(text).unwrap();
        assert_eq!((line.event.as_str(), line.session), ("leak_detected", Some(7)));
        assert_eq!((line.reason.as_deref(), line.idle_seconds), (Some("idle_session"), Some(2.0)));
        assert_eq!(addresses_of(&line), None);
    }

    #[test]
    fn the_started_event_tells_the_addresses() {
        let text = r#"{"event":"started","listen":"127.0.0.1:40001","admin":"127.0.0.1:40002"}"#;
        let line: EventLine = serde_json::from_str(text).unwrap();
        let (listen, admin) = addresses_of(&line).unwrap();
        assert_eq!((listen.port(), admin.port()), (40001, 40002));
    }

    #[tokio::test]
    async fn a_program_that_ends_at_once_is_reported_with_its_status() {
        let error = Pgleash::start(Path::new("false"), &[], None).await.unwrap_err();
        assert!(error.to_string().contains("exit status: 1"), "{error}");
        let error = Pgleash::start(Path::new("/no/such/program"), &[], None).await.unwrap_err();
        assert!(error.to_string().contains("--pgleash"), "{error}");
    }
}
