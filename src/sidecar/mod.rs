//! The sidecar: bind, spawn, serve, drain. Floor 4.

pub mod admin;
pub mod cancel;
pub mod gate;
mod hub;
pub mod pipe;
mod places;
pub mod relay;
pub mod session;
pub mod words;

use std::fmt;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};

use crate::clock;
use crate::config::{Config, Listen, Upstream};
use crate::dial::{Outage, Target, Tls};
use crate::event::{Event, Sink};
use crate::keeper;
use crate::pool::borrower;
use crate::telemetry::Telemetry;
use crate::tls::{self, TlsMode};

pub use hub::Hub;

/// Why the sidecar did not start, or could not go on.
#[derive(Debug)]
pub enum RunError {
    /// An address cannot be listened on.
    Bind {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// The TLS configuration does not work.
    Tls(String),
    /// The system refused a thread or a signal handler.
    System(io::Error),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Bind { key, address, error } => {
                write!(f, "{key} = {address}: cannot listen there: {error}")?;
                if error.kind() == io::ErrorKind::AddrInUse {
                    write!(f, "; another process has the port, choose another one or end that process")?;
                }
                Ok(())
            }
            RunError::Tls(why) => write!(f, "upstream.url: {why}"),
            RunError::System(error) => write!(f, "the system refused: {error}"),
        }
    }
}

impl std::error::Error for RunError {}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Clients that were cut off because they did not leave in time.
    pub clients_cut: usize,
}

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Only before it serves.
pub async fn run(config: Config, telemetry: Arc<Telemetry>) -> Result<Outcome, RunError> {
    // The clock starts here.
    clock::now();
    let target = target(&config)?;
    let door = Door::bind(&config.listen).await?;
    let admin = bind_admin(&config)?;
    let mut signals = Signals::new().map_err(RunError::System)?;

    let hub = Arc::new(Hub::new(config, target, telemetry.clone()));
    let admin = admin::spawn(admin, hub.clone(), telemetry.clone()).map_err(RunError::System)?;
    let keeper = {
        let hub = Arc::clone(&hub);
        keeper::spawn(Arc::clone(&hub.watch), move || hub.pools()).map_err(RunError::System)?
    };
    telemetry.emit(Event::Started {
        version: env!("CARGO_PKG_VERSION"),
        listen: door.address(),
        admin: admin.address().to_string(),
        action: hub.action(),
    });

    tokio::select! {
        () = door.serve(&hub) => {}
        () = signals.stop() => {}
    }
    drop(door);
    let clients_cut = drain(&hub, &mut signals).await;
    hub.watch.stop();
    // The keeper's thread ends within one look; it must not outlive what it looks at.
    let _ = tokio::task::spawn_blocking(move || keeper.join()).await;
    telemetry.emit(Event::Stopped { drained: clients_cut == 0, clients_cut });
    let _ = tokio::task::spawn_blocking(move || admin.stop()).await;
    Ok(Outcome { clients_cut })
}

/// Stops enforcing, asks the clients to leave, and cuts off those that stay. How many were cut.
async fn drain(hub: &Arc<Hub>, signals: &mut Signals) -> usize {
    let limit = hub.config.load().drain_timeout;
    hub.begin_drain();
    let clients = hub.clients();
    hub.sink.emit(Event::Draining { clients, limit_seconds: limit.as_secs_f64() });
    tokio::select! {
        () = hub.emptied() => {}
        () = tokio::time::sleep(limit) => {}
        () = signals.interrupted_again() => {}
    }
    let cut = hub.clients();
    hub.cut_all();
    // Long enough for their last words and for the rollback of what they held.
    let _ = tokio::time::timeout(Duration::from_secs(2), hub.settled()).await;
    hub.close();
    cut
}

fn target(config: &Config) -> Result<Target, RunError> {
    let mode = config.upstream.tls.mode;
    let tls = match mode {
        TlsMode::Disable => Tls::Disable,
        _ => {
            let connector =
                tls::connector(&config.upstream.tls).map_err(|error| RunError::Tls(error.to_string()))?;
            if mode == TlsMode::Prefer { Tls::Prefer(connector) } else { Tls::Require(connector) }
        }
    };
    let Upstream { postgres, attrs, .. } = &config.upstream;
    Ok(Target { postgres: postgres.clone(), tls, attrs: *attrs, outage: Outage::none() })
}

fn bind_admin(config: &Config) -> Result<StdTcpListener, RunError> {
    let refuse = |error| RunError::Bind { key: "admin", address: config.admin.to_string(), error };
    StdTcpListener::bind(config.admin).map_err(refuse)
}

/// Where Postgres clients come in.
enum Door {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The path of a Unix socket; removed when it is dropped.
struct SocketFile(std::path::PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have removed it: then there is nothing to do.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Door {
    async fn bind(listen: &Listen) -> Result<Self, RunError> {
        let bound = match listen {
            Listen::Tcp(address) => TcpListener::bind(address).await.map(Door::Tcp),
            Listen::Unix(path) => bind_unix(path).map(|socket| Door::Unix(socket, SocketFile(path.clone()))),
        };
        bound.map_err(|error| RunError::Bind { key: "listen", address: listen.to_string(), error })
    }

    fn address(&self) -> String {
        match self {
            Door::Tcp(listener) => listener.local_addr().map_or_else(|_| "?".to_owned(), |at| at.to_string()),
            Door::Unix(_, file) => file.0.display().to_string(),
        }
    }

    /// Lets clients in, for ever. An accept that fails (no descriptors left) is tried again a little later.
    async fn serve(&self, hub: &Arc<Hub>) {
        loop {
            let accepted = match self {
                Door::Tcp(listener) => {
                    listener.accept().await.map(|(stream, from)| gate::Caller::tcp(stream, from))
                }
                Door::Unix(listener, _) => {
                    listener.accept().await.map(|(stream, _)| gate::Caller::unix(stream))
                }
            };
            match accepted {
                Ok(caller) => drop(tokio::spawn(borrower(gate::admit(Arc::clone(hub), caller)))),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// A socket file that nobody listens on is left over from a process that died: it is replaced.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    async fn interrupted_again(&mut self) {
        self.interrupt.recv().await;
    }
}

impl admin::Source for Hub {
    fn snapshot(&self) -> crate::snapshot::Snapshot {
        Hub::snapshot(self)
    }

    fn ready(&self) -> Result<(), String> {
        Hub::ready(self)
    }

    fn alive(&self) -> Result<(), String> {
        let silence = clock::now().since(self.watch.last_look());
        if silence <= keeper::Watch::STALE {
            Ok(())
        } else {
            Err(format!("the keeper has not looked at the pools for {:.0} s", silence.as_secs_f64()))
        }
    }
}
