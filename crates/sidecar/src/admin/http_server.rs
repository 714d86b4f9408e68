//! An HTTP server on an operating system thread and a runtime of its own: it answers while the data path is
//! busy, and nobody who reads slowly can hold up the data path. It serves one request a connection; the
//! request, the time and the number of connections are bounded. An answer that goes on for as long as it is read
//! has a lease.

use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use axum::http::header::{CACHE_CONTROL, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pgleash_core::Moment;
use rustix::net::RecvFlags;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::admin::connection_limit::{ConnectionLimit, ConnectionPermit};

/// A running server. Dropping it stops it without waiting; [`HttpServer::stop`] waits.
pub(crate) struct HttpServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, lets the answers under way end for at most two seconds, and ends the thread.
    /// Blocks the calling thread meanwhile.
    pub(crate) fn stop(mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread does not panic: each request runs in a task that would catch it.
            let _ = thread.join();
        }
    }
}

/// What one client, and all of them, can use up.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// Connections served at a time. For one more, one that has not asked yet goes, see [`ConnectionLimit`]; while all are being
    /// answered, more wait in the kernel's queue.
    pub(crate) connections: u32,
    /// From the accepted connection to the end of the headers.
    pub(crate) read: Duration,
    /// From the accepted connection to the end of the answer, unless its [`Lease`] is extended.
    pub(crate) whole: Duration,
    /// For answers under way when the server stops.
    pub(crate) stop: Duration,
}

impl Bounds {
    pub(crate) const DEFAULT: Bounds = Bounds {
        connections: 64,
        read: Duration::from_secs(2),
        whole: Duration::from_secs(10),
        stop: Duration::from_secs(2),
    };
    /// Request line and headers together, bytes.
    pub(crate) const HEAD: usize = 16 * 1024;
    /// Number of headers.
    pub(crate) const HEADERS: usize = 64;
    /// Connections that the kernel keeps until they are accepted; of more it drops the first packet, which is sent again a
    /// second later.
    const BACKLOG: i32 = 1024;
    /// Pause after a failed accept (no file descriptor left), so that it does not spin.
    const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
}

/// How long the connection of a request may last. Every request carries one; only an answer that has no end
/// extends it, each time that the client has read what there was.
#[derive(Clone)]
pub(crate) struct Lease {
    /// Nanoseconds since the process started.
    until: Arc<AtomicU64>,
    whole: Duration,
    stopping: watch::Receiver<()>,
}

impl Lease {
    fn new(whole: Duration, stopping: watch::Receiver<()>) -> Self {
        let lease = Self { until: Arc::default(), whole, stopping };
        lease.extend(Duration::ZERO);
        lease
    }

    /// What is sent within `wait` from now may take as long as a whole answer.
    pub(crate) fn extend(&self, wait: Duration) {
        self.until.fetch_max((pgleash_clock::now() + wait + self.whole).as_nanos(), Ordering::Relaxed);
    }

    fn left(&self) -> Duration {
        Moment::from_nanos(self.until.load(Ordering::Relaxed)).since(pgleash_clock::now())
    }

    /// Resolves when the server stops. Cancel safe.
    pub(crate) async fn stopping(&mut self) {
        // Nothing is ever sent; the sender goes when the server stops.
        while self.stopping.changed().await.is_ok() {}
    }
}

/// Serves `router` on `listener` until the returned value is stopped or dropped.
///
/// # Errors
/// The listener cannot be used without blocking, or the operating system refused a thread.
pub(crate) fn spawn_bounded(
    name: &str,
    listener: TcpListener,
    router: Router,
    bounds: Bounds,
) -> io::Result<HttpServer> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    rustix::net::listen(&listener, Bounds::BACKLOG)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _context = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let (stop, stopped) = oneshot::channel();
    let serve = move || runtime.block_on(serve(listener, router, bounds, stopped));
    let thread = thread::Builder::new().name(name.into()).spawn(serve)?;
    Ok(HttpServer { address, stop: Some(stop), thread: Some(thread) })
}

/// Accepts until `stopped` resolves, then waits for the answers under way.
async fn serve(
    listener: tokio::net::TcpListener,
    router: Router,
    bounds: Bounds,
    mut stopped: oneshot::Receiver<()>,
) {
    let limit = ConnectionLimit::new(bounds.connections);
    let (running, stopping) = watch::channel(());
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            (stream, place) = accept(&listener, &limit) => {
                let lease = Lease::new(bounds.whole, stopping.clone());
                tokio::spawn(answer(stream, place, router.clone(), bounds.read, lease));
            }
        }
    }
    drop(listener);
    drop(running);
    let _ = timeout(bounds.stop, limit.emptied(bounds.connections)).await;
}

/// The next connection, once there is a place for it. Dropped when the server stops, and with it a connection that has
/// no place yet.
async fn accept(
    listener: &tokio::net::TcpListener,
    limit: &Arc<ConnectionLimit>,
) -> (TcpStream, ConnectionPermit) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, limit.admit(peer.ip()).await),
            Err(_) => sleep(Bounds::ACCEPT_PAUSE).await,
        }
    }
}

/// One connection, one request, one answer; cut off when its lease is over.
async fn answer(
    stream: TcpStream,
    mut place: ConnectionPermit,
    router: Router,
    read: Duration,
    lease: Lease,
) {
    let until = pgleash_clock::now() + read;
    if !timeout(read, speaks(&stream, &mut place)).await.unwrap_or(false) {
        return;
    }
    let (router, carried, guest) = (TowerToHyperService::new(router), lease.clone(), place.guest());
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        guest.has_asked();
        request.extensions_mut().insert(carried.clone());
        router.call(request)
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .max_buf_size(Bounds::HEAD)
        .max_headers(Bounds::HEADERS)
        .timer(TokioTimer::new())
        .header_read_timeout(until.since(pgleash_clock::now()))
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // Whatever went wrong is the client's doing, and it knows: there is nobody else to tell.
    let answered = async {
        while timeout(lease.left(), connection.as_mut()).await.is_err() && !lease.left().is_zero() {}
    };
    tokio::select! {
        // What has come is read first.
        biased;
        () = answered => {}
        () = place.sent_away() => {}
    }
}

/// Whether there is something to read, or the end, before it has to make room.
async fn speaks(stream: &TcpStream, place: &mut ConnectionPermit) -> bool {
    loop {
        tokio::select! {
            readable = stream.readable() => return readable.is_ok(),
            () = place.sent_away() => {
                // The system is asked: where this thread was busy, what has come may not have been noticed yet.
                let peeked = rustix::net::recv(stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
                if peeked.is_err() {
                    return false;
                }
                place.stay();
            }
        }
    }
}

/// An error, as JSON.
pub(crate) fn failure(status: StatusCode, error: &str) -> Response {
    #[derive(Serialize)]
    struct Failure<'a> {
        error: &'a str,
    }
    (status, Json(Failure { error })).into_response()
}

/// Headers that every answer carries.
pub(crate) async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
