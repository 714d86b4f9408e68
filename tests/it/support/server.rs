//! A real PostgreSQL, started by the tests and surely ended with them.
//!
//! Each server is a copy of the template (see `template.rs`) on a free port. A small shell keeps the
//! postmaster: it waits for the end of a pipe that the test process holds, so the server goes away
//! however the test process ends, even killed. cargo-nextest runs each test in a process of its own:
//! there the processes share one server, and the shell waits for the file lock that each of them holds.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::endpoint::{Endpoint, Session};
use super::template::{HBA, configure, copy_of, copy_of_template, give_to_owner, run, run_as_owner, version};
use super::tls::Identity;

pub use super::template::binaries;

/// The password of the role `locked`.
pub const LOCKED_PASSWORD: &str = "right-password";

/// Runs the postmaster ($1) of directory $2 on port $3 until standard input ends, and removes the
/// directory unless the last word was `keep`. If there is a lease directory $4, it runs until nobody
/// holds its lease, or there is a file `stop`.
const KEEPER: &str = r#"
trap '' INT TERM HUP
"$1" -D "$2/data" -p "$3" -k "$2" >>"$2/log" 2>&1 </dev/null &
pid=$!
last=
if [ -n "$4" ]; then
    while sleep 1; do
        if [ -e "$2/stop" ]; then last=keep; rm "$2/stop"; break; fi
        flock --nonblock "$4/entry" sh -c 'flock --nonblock "$1/lease" rm -rf "$1"' sh "$4" && break
    done
else
    last=$(cat)
fi
kill -QUIT $pid 2>/dev/null
wait $pid
[ "$last" = keep ] || rm -rf "$2"
"#;

/// One PostgreSQL server.
pub struct Server {
    dir: PathBuf,
    port: u16,
    keeper: Option<Child>,
    /// Open as long as this process needs a server that it shares.
    lease: Option<fs::File>,
}

impl Server {
    /// The server that the tests of this process, or of this run of cargo-nextest, share.
    pub fn shared() -> &'static Server {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var("NEXTEST_RUN_ID") {
            Ok(run) => Server::leased(&run),
            Err(_) => Server::private(),
        })
    }

    /// PostgreSQL's major version.
    pub fn major() -> u32 {
        let version = version();
        version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or_else(|| panic!("{version}"))
    }

    /// A server of one's own, to be stopped and started at will.
    pub fn private() -> Server {
        Server::on_free_port(None, |_| {})
    }

    /// A server of one's own that speaks TLS and shows `identity`.
    pub fn with_tls(identity: &Identity) -> Server {
        Server::on_free_port(None, |data| speak_tls(data, identity))
    }

    /// The same, that lets the role `other` in only with a certificate signed by this authority.
    pub fn with_tls_for(identity: &Identity, authority: &Path) -> Server {
        Server::on_free_port(None, |data| {
            speak_tls(data, identity);
            let root = data.join("root.crt");
            fs::copy(authority, &root).unwrap();
            give_to_owner(&root);
            configure(data, "ssl_ca_file = 'root.crt'\n");
            let rules = "hostssl all other 127.0.0.1/32 trust clientcert=verify-ca\n\
                         host all other 127.0.0.1/32 reject\n";
            fs::write(data.join("pg_hba.conf"), format!("{rules}{HBA}")).unwrap();
        })
    }

    /// A server of one's own from which others may stream: see [`Server::standby`].
    pub fn primary() -> Server {
        Server::on_free_port(None, |data| {
            let streaming = "wal_level = replica\nmax_wal_senders = 4\nwal_keep_size = 64MB\n";
            configure(data, &format!("{streaming}synchronous_commit = on\n"));
            let rules = "host replication postgres 127.0.0.1/32 trust\n";
            fs::write(data.join("pg_hba.conf"), format!("{rules}{HBA}")).unwrap();
        })
    }

    /// A hot standby that streams from this server, a [`Server::primary`], which is restarted for that.
    ///
    /// It begins with a copy of the files of a server at rest, as PostgreSQL's documentation allows ("File
    /// System Level Backup"), since not every build of PostgreSQL that tests run on has pg_basebackup.
    pub fn standby(&mut self) -> Server {
        self.stop();
        let dir = copy_of(&self.dir.join("data"));
        self.start();
        let data = dir.join("data");
        configure(&data, &format!("primary_conninfo = 'host=127.0.0.1 port={} user=postgres'\n", self.port));
        fs::write(data.join("standby.signal"), "").unwrap();
        give_to_owner(&data.join("standby.signal"));
        Server::start_in(dir, None)
    }

    /// Makes a primary of a standby, and waits until it is one.
    pub fn promote(&self) {
        let mut promotion = Command::new(binaries().join("pg_ctl"));
        promotion.args(["promote", "--silent", "--pgdata"]).arg(self.dir.join("data")).current_dir("/");
        run_as_owner(&mut promotion);
        run(&mut promotion);
    }

    /// `prepare` may change the data directory before the first start.
    fn on_free_port(lease: Option<&Path>, prepare: impl Fn(&Path)) -> Server {
        let dir = copy_of_template();
        prepare(&dir.join("data"));
        Server::start_in(dir, lease)
    }

    fn start_in(dir: PathBuf, lease: Option<&Path>) -> Server {
        let mut server = Server { dir, port: 0, keeper: None, lease: None };
        for _ in 0..5 {
            server.port = free_port();
            if server.try_start(lease) {
                return server;
            }
        }
        panic!("PostgreSQL does not start: {}", server.log());
    }

    /// The server of a run, started by the first process that asks. It stays while a process holds
    /// the lease, which ends with the process.
    fn leased(run: &str) -> Server {
        let home = std::env::temp_dir().join(format!("pgleash-test-run-{run}"));
        let entry = enter(&home);
        let lease = open_shared(&home.join("lease"));
        lease.lock_shared().unwrap();
        let running = fs::read_to_string(home.join("port")).ok().and_then(|port| port.parse().ok());
        let mut server = match running {
            Some(port) => Server { dir: PathBuf::new(), port, keeper: None, lease: None },
            None => Server::on_free_port(Some(&home), |_| {}),
        };
        fs::write(home.join("port"), server.port.to_string()).unwrap();
        server.lease = Some(lease);
        drop(entry);
        server
    }

    /// Ends the server at once, as a crash would; its data and its port stay.
    pub fn stop(&mut self) {
        self.end(b"keep");
    }

    /// Starts it again on the same port.
    pub fn start(&mut self) {
        assert!(self.try_start(None), "PostgreSQL does not start again: {}", self.log());
    }

    /// A fresh, empty database that `app` owns.
    pub async fn database(&self) -> Database {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self.database_named(&name).await
    }

    /// The same, of this name.
    pub async fn database_named(&self, name: &str) -> Database {
        let database = Database { name: name.to_owned(), port: self.port };
        let postgres = database.endpoint("postgres", "postgres").connect("harness").await;
        postgres.batch_execute(&format!("CREATE DATABASE {} OWNER app", database.name)).await.unwrap();
        postgres.close().await;
        database
    }

    /// The database of this name that came with another server's data.
    pub fn replica_of(&self, database: &Database) -> Database {
        Database { port: self.port, ..database.clone() }
    }

    fn try_start(&mut self, lease: Option<&Path>) -> bool {
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper"]).arg(binaries().join("postgres"));
        command.arg(&self.dir).arg(self.port.to_string());
        command.arg(lease.unwrap_or(Path::new("")));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.current_dir("/").process_group(0);
        run_as_owner(&mut command);
        let logged = self.log().len();
        self.keeper = Some(command.spawn().expect("sh starts"));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.ready() {
            // Who comes too early is turned away with a FATAL of its own.
            let fatal = |line: &str| line.contains("FATAL:") && !line.contains("the database system is");
            let failed = self.log()[logged..].lines().any(fatal);
            if failed || Instant::now() > deadline {
                if lease.is_some() {
                    fs::write(self.dir.join("stop"), "").unwrap();
                }
                self.end(b"keep");
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// What `pg_ctl` looks at: the last line of the pid file.
    fn ready(&self) -> bool {
        let pid_file = fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap_or_default();
        pid_file.lines().nth(7).is_some_and(|status| ["ready", "standby"].contains(&status.trim()))
    }

    fn log(&self) -> String {
        fs::read(self.dir.join("log"))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    fn end(&mut self, last_word: &[u8]) {
        if let Some(mut keeper) = self.keeper.take() {
            let mut pipe = keeper.stdin.take().expect("the keeper has a pipe");
            let _ = pipe.write_all(last_word);
            drop(pipe);
            keeper.wait().expect("the keeper ends");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.lease.is_some() {
            return;
        }
        self.end(b"");
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// One database on a [`Server`].
#[derive(Clone, Debug)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Its server's TCP port on 127.0.0.1.
    pub port: u16,
}

impl Database {
    /// The way to it without pgleash, as `app`.
    pub fn direct(&self) -> Endpoint {
        self.endpoint("app", &self.name)
    }

    /// As the superuser, without pgleash; application name `harness`.
    pub async fn admin(&self) -> Session {
        self.endpoint("postgres", &self.name).connect("harness").await
    }

    /// Drops it, with whoever is connected.
    pub async fn remove(&self) {
        let postgres = self.endpoint("postgres", "postgres").connect("harness").await;
        postgres.batch_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name)).await.unwrap();
        postgres.close().await;
    }

    /// The URL for `upstream.url`.
    pub fn url(&self, user: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{}", self.port, self.name)
    }

    fn endpoint(&self, user: &str, database: &str) -> Endpoint {
        Endpoint { port: self.port, user: user.to_owned(), database: database.to_owned() }
    }
}

/// Locks the entry of a run's directory, which is made if it is not there. Whoever ends the run's
/// server removes the directory under the same lock.
fn enter(home: &Path) -> fs::File {
    loop {
        let _ = fs::create_dir(home);
        give_to_owner(home);
        let path = home.join("entry");
        let entry = open_shared(&path);
        entry.lock().unwrap();
        let inode = entry.metadata().unwrap().ino();
        if fs::metadata(&path).is_ok_and(|there| there.ino() == inode) {
            return entry;
        }
    }
}

fn open_shared(path: &Path) -> fs::File {
    let file = fs::File::create(path).unwrap();
    give_to_owner(path);
    file
}

/// Puts a certificate into a data directory.
fn speak_tls(data: &Path, identity: &Identity) {
    for (name, text) in [("server.crt", &identity.certificate), ("server.key", &identity.key)] {
        let path = data.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        give_to_owner(&path);
    }
    configure(data, "ssl = on\n");
}

/// A TCP port on which nobody listens at this moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
