//! The sidecar: bind, spawn, serve, drain.

pub(crate) mod socket_handover;

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::Arc;
use std::time::Duration;

use pgleash_core::{Event, Sink};
use pgleash_telemetry::Telemetry;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin::control::Control;
use crate::admin::cors::Origins;
use crate::admin::http_server::HttpServer;
use crate::config::start_error::RunError;
use crate::config::target::target;
use crate::config::{Config, Sources};
use crate::net::inherited_sockets::Sockets;
use crate::process::socket_handover::{Offer, Predecessor};
use crate::proxy::auth::Credentials;
use crate::proxy::listener::Listener;
use crate::reload::Reloader;

pub(crate) use crate::proxy::clients::hub::Hub;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Clients that were cut off because they did not leave in time.
    pub clients_cut: usize,
}

/// Serves until SIGTERM or SIGINT, or until another process has taken over; then drains. `sources` is where
/// `config` was read from, and is read again.
///
/// # Errors
/// Only before it serves.
pub async fn run(config: Config, sources: Sources, telemetry: Arc<Telemetry>) -> Result<Outcome, RunError> {
    // The clock starts here.
    pgleash_clock::now();
    let target = target(&config)?;
    let credentials = Credentials::load(&config, &target).map_err(RunError::Credentials)?;
    let mut signals = Signals::new().map_err(RunError::System)?;
    let hangup = signal(SignalKind::hangup()).map_err(RunError::System)?;
    let Listeners { client_listener, admin, control, mut offer, predecessor } =
        Listeners::open(&config).await?;

    let hub = Arc::new(Hub::new(config, target, credentials, telemetry.clone()));
    let reloader = Reloader::new(Arc::clone(&hub), sources);
    let pages = Pages::spawn(admin, control, &hub, &reloader, &telemetry).map_err(RunError::System)?;
    let keeper = {
        let hub = Arc::clone(&hub);
        pgleash_watchdog::spawn(Arc::clone(&hub.watch), move || hub.pools()).map_err(RunError::System)?
    };
    telemetry.emit(Event::Started {
        version: env!("CARGO_PKG_VERSION"),
        listen: client_listener.address(),
        admin: pages.admin.address().to_string(),
        control: pages.control.as_ref().map(|control| control.address().to_string()),
        action: hub.action(),
        limits: hub.limits(),
    });
    // One that has gone meanwhile needs to be told nothing.
    if predecessor.is_some_and(|predecessor| predecessor.served().is_ok()) {
        telemetry.emit(Event::TookOver { listen: client_listener.address() });
    }
    let watching = tokio::spawn(reloader.watch(hangup));
    let replaced = tokio::select! {
        () = client_listener.serve(&hub) => false,
        () = crate::proxy::auth::follow(&hub) => false,
        () = signals.stop() => false,
        () = taken(&mut offer) => true,
    };
    watching.abort();
    drop(offer);
    let mut pages = Some(pages);
    if replaced {
        client_listener.leave();
        if let Some(pages) = pages.take() {
            pages.stop().await;
        }
        let limit_seconds = hub.config.load().drain_timeout.as_secs_f64();
        hub.sink.emit(Event::HandedOver { clients: hub.clients(), limit_seconds });
        wait_for_clients(&hub, &mut signals).await;
        hub.begin_drain();
    } else {
        hub.begin_drain();
        client_listener.close(&hub).await;
    }
    let clients_cut = drain(&hub, &mut signals).await;
    hub.watch.stop();
    // The watchdog's thread ends within one look; it must not outlive what it looks at.
    let _ = tokio::task::spawn_blocking(move || keeper.join()).await;
    telemetry.emit(Event::Stopped { drained: clients_cut == 0, clients_cut });
    if let Some(pages) = pages {
        pages.stop().await;
    }
    Ok(Outcome { clients_cut })
}

/// Resolves when another process serves the sockets; never if none can.
async fn taken(offer: &mut Option<Offer>) {
    match offer {
        Some(offer) => offer.taken().await,
        None => std::future::pending().await,
    }
}

/// Nobody comes any more: who is here may go on for as long as a drain may take, or until it is told to stop.
async fn wait_for_clients(hub: &Arc<Hub>, signals: &mut Signals) {
    let limit = hub.config.load().drain_timeout;
    tokio::select! {
        () = hub.emptied() => {}
        () = tokio::time::sleep(limit) => {}
        () = signals.stop() => {}
    }
}

/// The clients have been asked to leave: waits for them, and cuts off those that stay. How many were cut.
async fn drain(hub: &Arc<Hub>, signals: &mut Signals) -> usize {
    let limit = hub.config.load().drain_timeout;
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

/// The listening sockets, fresh or from a process that runs already.
struct Listeners {
    client_listener: Listener,
    admin: StdTcpListener,
    control: Option<StdTcpListener>,
    /// On offer to the next process.
    offer: Option<Offer>,
    predecessor: Option<Predecessor>,
}

impl Listeners {
    async fn open(config: &Config) -> Result<Self, RunError> {
        let handover = config.handover.as_deref();
        let refuse = |error| RunError::Bind {
            key: "handover",
            address: handover.map_or_else(String::new, |path| path.display().to_string()),
            error,
        };
        let mut predecessor = handover.map(Predecessor::ask).transpose().map_err(refuse)?.flatten();
        let mut inherited = match &mut predecessor {
            Some(predecessor) => std::mem::take(&mut predecessor.sockets),
            None => Sockets::default(),
        };
        let client_listener = Listener::open(&config.listen, &mut inherited).await?;
        let admin = bind("admin", config.admin, &mut inherited)?;
        let control = config.control.map(|address| bind("control", address, &mut inherited)).transpose()?;
        let offer = match handover {
            None => None,
            Some(path) => {
                let mut sockets = Sockets::default();
                sockets.add(&client_listener).map_err(refuse)?;
                sockets.add(&admin).map_err(refuse)?;
                control.iter().try_for_each(|control| sockets.add(control)).map_err(refuse)?;
                Some(Offer::new(path, sockets, predecessor.as_ref()).map_err(refuse)?)
            }
        };
        Ok(Self { client_listener, admin, control, offer, predecessor })
    }
}

fn bind(key: &'static str, address: SocketAddr, inherited: &mut Sockets) -> Result<StdTcpListener, RunError> {
    if let Some(socket) = inherited.tcp(address) {
        return Ok(socket);
    }
    let refuse = |error| RunError::Bind { key, address: address.to_string(), error };
    StdTcpListener::bind(address).map_err(refuse)
}

/// What is served over HTTP.
struct Pages {
    admin: HttpServer,
    control: Option<HttpServer>,
}

impl Pages {
    fn spawn(
        admin: StdTcpListener,
        control: Option<StdTcpListener>,
        hub: &Arc<Hub>,
        reloader: &Arc<Reloader>,
        telemetry: &Arc<Telemetry>,
    ) -> io::Result<Self> {
        let token = hub.config.load().control_token.clone();
        let control = match control.zip(token) {
            None => None,
            Some((listener, token)) => {
                let (hub, reloader) = (Arc::clone(hub), Arc::clone(reloader));
                let (telemetry, origins) = (Arc::clone(telemetry), Origins::of(admin.local_addr()?));
                Some(crate::admin::control::spawn(
                    listener,
                    Control { hub, reloader, telemetry, token, origins },
                )?)
            }
        };
        let (source, told) = (Arc::clone(hub), Arc::clone(telemetry));
        let admin = crate::admin::spawn(admin, source, told, control.as_ref().map(HttpServer::address))?;
        Ok(Self { admin, control })
    }

    /// Lets the answers under way end for a moment.
    async fn stop(self) {
        let stop = move || {
            self.control.into_iter().for_each(HttpServer::stop);
            self.admin.stop();
        };
        let _ = tokio::task::spawn_blocking(stop).await;
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
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

impl crate::admin::source::Source for Hub {
    fn snapshot(&self) -> pgleash_core::Snapshot {
        Hub::snapshot(self)
    }

    fn ready(&self) -> Result<(), String> {
        Hub::ready(self)
    }

    fn alive(&self) -> Result<(), String> {
        let silence = pgleash_clock::now().since(self.watch.last_look());
        if silence <= pgleash_watchdog::Watch::STALE {
            Ok(())
        } else {
            Err(format!("the keeper has not looked at the pools for {:.0} s", silence.as_secs_f64()))
        }
    }

    fn admits(&self, name: &str) -> bool {
        self.config.load().admin_hosts.admit(name)
    }
}
