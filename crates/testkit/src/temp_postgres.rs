//! A throw-away PostgreSQL server from the machine's binaries.
//!
//! [`Scratch::start`] makes a cluster in a temporary directory and starts it on a free port of 127.0.0.1,
//! with `fsync=off`: what was committed outlives a crash of the server, but not one of the machine.
//! Dropping it ends the server and removes the directory. PostgreSQL refuses to run as root, so under root
//! it runs as `postgres` if there is such a user, else as `nobody`.
//!
//! ```no_run
//! # async fn example() -> Result<(), pgleash_testkit::ScratchError> {
//! use pgleash_testkit::{Options, Scratch};
//!
//! let mut server = Scratch::start(Options::default()).await?;
//! println!("{} is process {}", server.url(), server.pid());
//! server.kill();              // as if it crashed
//! server.restart().await?;    // same directory, same port
//! server.stop().await?;
//! # Ok(())
//! # }
//! ```

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_postgres::error::SqlState;

/// The superuser of every scratch server, and the database it starts with.
const SUPERUSER: &str = "postgres";
/// How long the server may take to accept its first connection. Recovery after a kill is included.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long a fast shutdown may take before the server is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How often to look whether the server is up, or down.
const LOOK: Duration = Duration::from_millis(20);

/// What to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of `initdb` and `postgres`. By default `PATH` is searched, then
    /// `/usr/lib/postgresql/*/bin`, newest first.
    pub pg_bin: Option<PathBuf>,
    /// `max_connections`.
    pub max_connections: usize,
    /// Further settings, as in `postgresql.conf`. A later one wins.
    pub settings: Vec<(String, String)>,
    /// With a password, every role logs in by SCRAM-SHA-256 and the superuser has this password.
    /// Without, every login is trusted.
    pub password: Option<String>,
    /// Files to put into the data directory, owned by the server and readable by it alone: a TLS key and
    /// certificate, or a `pg_hba.conf` of your own.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { pg_bin: None, max_connections: 100, settings: Vec::new(), password: None, files: Vec::new() }
    }
}

/// A running scratch server. Dropping it ends the server at once and removes its directory.
#[derive(Debug)]
pub struct Scratch {
    child: Child,
    port: u16,
    launch: Launch,
    password: Option<String>,
}

impl Scratch {
    /// Makes a cluster, starts it, and returns once it accepts connections: one to two seconds.
    ///
    /// # Errors
    /// No binaries were found, or `initdb` or the server failed; the error has their last words.
    ///
    /// Cancel safe: what was begun is stopped and removed.
    pub async fn start(options: Options) -> Result<Self, ScratchError> {
        let bin = find_binaries(options.pg_bin.as_deref())?;
        let launch = Launch::prepare(bin, &options).await?;
        let port = free_port().map_err(ScratchError::io("find a free port on 127.0.0.1"))?;
        let child = launch.spawn(port)?;
        let mut server = Self { child, port, launch, password: options.password };
        server.accept().await?;
        Ok(server)
    }

    /// Where the superuser `postgres` connects, with its password if there is one.
    pub fn url(&self) -> String {
        self.url_for(SUPERUSER, SUPERUSER)
    }

    /// Where a role connects to a database. The role is given the superuser's password, if there is one.
    pub fn url_for(&self, user: &str, database: &str) -> String {
        let password = self.password.as_ref().map(|password| format!(":{password}")).unwrap_or_default();
        format!("postgres://{user}{password}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// The port on 127.0.0.1. It stays the same over [`Scratch::restart`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the server wrote to its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.launch.log()).unwrap_or_default()
    }

    /// Ends the server as a crash would: no goodbye to its clients, recovery at the next start. Nothing that
    /// was committed is lost, and the directory stays for [`Scratch::restart`]. Waits until the server is
    /// gone.
    pub fn kill(&mut self) {
        self.signal(Signal::QUIT);
        let begin = pgleash_clock::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if pgleash_clock::now().since(begin) > STOP_DEADLINE {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Starts the server again on the same directory and port, ending it first if it still runs.
    ///
    /// # Errors
    /// As [`Scratch::start`]. The directory is removed when the server is dropped, started or not.
    pub async fn restart(&mut self) -> Result<(), ScratchError> {
        self.kill();
        self.child = self.launch.spawn(self.port)?;
        self.accept().await
    }

    /// Shuts the server down in order, ending its sessions, and removes its directory.
    ///
    /// # Errors
    /// The server did not stop in ten seconds and was killed.
    ///
    /// Cancel safe: the server is then killed and the directory removed at once.
    pub async fn stop(mut self) -> Result<(), ScratchError> {
        self.signal(Signal::INT);
        let begin = pgleash_clock::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if pgleash_clock::now().since(begin) > STOP_DEADLINE {
                return Err(ScratchError::Stuck);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    fn signal(&mut self, signal: Signal) {
        // An exited child keeps its id until it is waited for, and `try_wait` would have said so.
        if matches!(self.child.try_wait(), Ok(None))
            && let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, signal);
        }
    }

    async fn accept(&mut self) -> Result<(), ScratchError> {
        let begin = pgleash_clock::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(ScratchError::Server { said: format!("{status}\n{}", tail(&self.log())) });
            }
            if ready(&self.url()).await {
                return Ok(());
            }
            if pgleash_clock::now().since(begin) > START_DEADLINE {
                return Err(ScratchError::Server {
                    said: format!("no connection within {START_DEADLINE:?}\n{}", tail(&self.log())),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether the server answers a login with anything but "the database system is starting up".
async fn ready(url: &str) -> bool {
    match tokio_postgres::connect(url, tokio_postgres::NoTls).await {
        Ok(_) => true,
        // A login that is refused is an answer: a `pg_hba.conf` of the caller's may do that.
        Err(error) => error.code().is_some_and(|code| *code != SqlState::CANNOT_CONNECT_NOW),
    }
}

/// How the server is launched: binaries, directory, user, settings.
#[derive(Debug)]
struct Launch {
    bin: PathBuf,
    home: TempDir,
    user: Option<User>,
    settings: Vec<(String, String)>,
}

impl Launch {
    async fn prepare(bin: PathBuf, options: &Options) -> Result<Self, ScratchError> {
        let home = tempfile::Builder::new()
            .prefix("pgleash-scratch-")
            .tempdir()
            .map_err(ScratchError::io("make a temporary directory"))?;
        let user = User::to_run_as()?;
        if let Some(user) = user {
            chown(home.path(), Some(user.uid), Some(user.gid))
                .map_err(ScratchError::io("give the directory to the server's user"))?;
        }
        let mut settings = default_settings(options.max_connections);
        settings.extend(options.settings.iter().cloned());
        let launch = Self { bin, home, user, settings };
        launch.initdb(options.password.as_deref()).await?;
        for (name, contents) in &options.files {
            launch.put(&launch.data().join(name), contents)?;
        }
        Ok(launch)
    }

    async fn initdb(&self, password: Option<&str>) -> Result<(), ScratchError> {
        let mut command = self.command("initdb");
        command.arg("--pgdata").arg(self.data());
        command.args(["--username", SUPERUSER, "--encoding", "UTF8", "--no-locale", "--no-sync"]);
        if let Some(password) = password {
            let file = self.home.path().join("password");
            self.put(&file, password.as_bytes())?;
            command.args(["--auth", "scram-sha-256"]).arg("--pwfile").arg(file);
        } else {
            command.args(["--auth", "trust"]);
        }
        let mut command = tokio::process::Command::from(command);
        let output = command.kill_on_drop(true).output().await.map_err(ScratchError::io("run initdb"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = format!("{}\n{}", output.status, tail(&String::from_utf8_lossy(&output.stderr)));
        Err(ScratchError::Initdb { said })
    }

    fn spawn(&self, port: u16) -> Result<Child, ScratchError> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log());
        let log = log.map_err(ScratchError::io("open the server's log"))?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).arg("-p").arg(port.to_string());
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdout(Stdio::null()).stderr(log);
        command.spawn().map_err(ScratchError::io("run postgres"))
    }

    /// A command from the binaries, as the server's user, deaf to the terminal's Ctrl-C.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.current_dir(self.home.path()).stdin(Stdio::null()).process_group(0);
        // The caller's PGDATA, PGPORT, PGOPTIONS and the like are about another server.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    fn put(&self, path: &Path, contents: &[u8]) -> Result<(), ScratchError> {
        let failed = ScratchError::io("put a file into the server's directory");
        let put = || {
            std::fs::write(path, contents)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            self.user.map_or(Ok(()), |user| chown(path, Some(user.uid), Some(user.gid)))
        };
        put().map_err(failed)
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("server.log")
    }
}

fn default_settings(max_connections: usize) -> Vec<(String, String)> {
    let max_connections = max_connections.to_string();
    let settings = [
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", ""),
        ("max_connections", &max_connections),
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("shared_buffers", "64MB"),
        ("jit", "off"),
        ("log_min_messages", "warning"),
    ];
    settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// An unprivileged user of the machine.
#[derive(Clone, Copy, Debug)]
struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// Whom to run the server as; `None` if we are not root and so run it as ourselves.
    fn to_run_as() -> Result<Option<User>, ScratchError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let found = ["postgres", "nobody"].iter().find_map(|name| User::named(name, &users));
        found.map(Some).ok_or(ScratchError::NoUser)
    }

    /// Looks a user up in the text of `/etc/passwd`.
    fn named(name: &str, users: &str) -> Option<User> {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some(User { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    }
}

/// The directory that has both `initdb` and `postgres`.
fn find_binaries(given: Option<&Path>) -> Result<PathBuf, ScratchError> {
    let has_both = |dir: &PathBuf| ["initdb", "postgres"].iter().all(|name| dir.join(name).is_file());
    if let Some(given) = given {
        let given = given.to_path_buf();
        return if has_both(&given) { Ok(given) } else { Err(ScratchError::NotThere(given)) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let packaged = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let packaged = newest_first(packaged.map(|entry| entry.path().join("bin")).collect());
    std::env::split_paths(&path).chain(packaged).find(has_both).ok_or(ScratchError::NoBinaries)
}

/// Sorts `/usr/lib/postgresql/15/bin` and its siblings by version, highest first.
fn newest_first(mut dirs: Vec<PathBuf>) -> Vec<PathBuf> {
    dirs.sort_by_key(|dir| {
        let version = dir.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        std::cmp::Reverse(version.and_then(|version| version.parse::<u32>().ok()))
    });
    dirs
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.trim_end().lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Why there is no scratch server.
#[derive(Debug)]
pub enum ScratchError {
    /// Neither `PATH` nor `/usr/lib/postgresql/*/bin` has `initdb` and `postgres`.
    NoBinaries,
    /// The given directory does not have `initdb` and `postgres`.
    NotThere(PathBuf),
    /// We are root, and there is neither a `postgres` nor a `nobody` user.
    NoUser,
    /// `initdb` failed; its last words.
    Initdb {
        /// Exit status and end of its output.
        said: String,
    },
    /// The server ended or never accepted a connection; its last words.
    Server {
        /// What happened and the end of its log.
        said: String,
    },
    /// The server did not stop in time and was killed.
    Stuck,
    /// The operating system refused something.
    Io {
        /// What could not be done.
        doing: &'static str,
        /// Why.
        error: std::io::Error,
    },
}

impl ScratchError {
    fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Io { doing, error }
    }
}

impl fmt::Display for ScratchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBinaries => f.write_str(
                "PostgreSQL's server programs were not found in PATH or /usr/lib/postgresql/*/bin: install the \
                 server package (Debian: apt-get install postgresql), or name their directory with --pg-bin, or \
                 an existing server with --upstream",
            ),
            Self::NotThere(dir) => {
                write!(f, "{} does not have initdb and postgres: --pg-bin must name their directory", dir.display())
            }
            Self::NoUser => f.write_str(
                "PostgreSQL refuses to run as root, and this machine has neither a postgres nor a nobody user: \
                 run as another user, or name an existing server with --upstream",
            ),
            Self::Initdb { said } => write!(f, "initdb failed: {said}"),
            Self::Server { said } => write!(f, "the throw-away PostgreSQL did not start: {said}"),
            Self::Stuck => write!(f, "the throw-away PostgreSQL did not stop within {STOP_DEADLINE:?} and was killed"),
            Self::Io { doing, error } => write!(f, "cannot {doing}: {error}"),
        }
    }
}

impl std::error::Error for ScratchError {}
