//! The admin server: metrics, health, the page, and the read-only API.
//!
//! It runs on an operating system thread and a runtime of its own, so that it answers while the data
//! path is busy, and so that nobody who reads slowly can hold up the data path. It serves one
//! request a connection; the request, the time and the number of connections are bounded.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::middleware::map_response;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use crate::snapshot::Snapshot;
use crate::telemetry::Telemetry;

/// What the admin server asks the sidecar. Called on the admin thread, at each request; must not
/// block for long.
pub trait Source: Send + Sync {
    /// The whole process, now.
    fn snapshot(&self) -> Snapshot;

    /// Whether clients are served: the listener is up, not draining, and the upstream server was
    /// reachable at the last attempt.
    ///
    /// # Errors
    /// The reason, in one sentence.
    fn ready(&self) -> Result<(), String>;

    /// Whether the keeper's heart beats. Never asks the database.
    ///
    /// # Errors
    /// The reason, in one sentence.
    fn alive(&self) -> Result<(), String>;
}

/// A running admin server. Dropping it stops it without waiting; [`AdminServer::stop`] waits.
pub struct AdminServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl AdminServer {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, lets the answers under way end for at most two seconds, and ends the thread.
    /// Blocks the calling thread meanwhile.
    pub fn stop(mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread does not panic: each request runs in a task that would catch it.
            let _ = thread.join();
        }
    }
}

/// Serves on `listener`, which is already bound, until the returned value is stopped or dropped.
///
/// # Errors
/// The listener cannot be used without blocking, or the operating system refused a thread.
pub fn spawn(
    listener: TcpListener,
    source: Arc<dyn Source>,
    telemetry: Arc<Telemetry>,
) -> io::Result<AdminServer> {
    spawn_bounded(listener, router(App { source, telemetry }), Bounds::DEFAULT)
}

/// What one client, and all of them, can use up.
#[derive(Clone, Copy)]
struct Bounds {
    /// Connections served at a time; more wait in the kernel's queue.
    connections: u32,
    /// From the first byte of a request to the end of its headers.
    read: Duration,
    /// From the accepted connection to the end of the answer.
    whole: Duration,
    /// For answers under way when the server stops.
    stop: Duration,
}

impl Bounds {
    const DEFAULT: Bounds = Bounds {
        connections: 64,
        read: Duration::from_secs(5),
        whole: Duration::from_secs(10),
        stop: Duration::from_secs(2),
    };
    /// Request line and headers together, bytes.
    const HEAD: usize = 16 * 1024;
    /// Number of headers.
    const HEADERS: usize = 64;
    /// Pause after a failed accept (no file descriptor left), so that it does not spin.
    const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
}

fn spawn_bounded(listener: TcpListener, router: Router, bounds: Bounds) -> io::Result<AdminServer> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _context = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let (stop, stopped) = oneshot::channel();
    let serve = move || runtime.block_on(serve(listener, router, bounds, stopped));
    let thread = thread::Builder::new().name("pgleash-admin".into()).spawn(serve)?;
    Ok(AdminServer { address, stop: Some(stop), thread: Some(thread) })
}

/// Accepts until `stopped` resolves, then waits for the answers under way.
async fn serve(
    listener: tokio::net::TcpListener,
    router: Router,
    bounds: Bounds,
    mut stopped: oneshot::Receiver<()>,
) {
    let places = Arc::new(Semaphore::new(bounds.connections as usize));
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            (stream, place) = accept(&listener, &places) => {
                tokio::spawn(answer(stream, place, router.clone(), bounds));
            }
        }
    }
    drop(listener);
    let _ = timeout(bounds.stop, places.acquire_many(bounds.connections)).await;
}

/// The next connection, once there is a place for it. Cancel safe: a place that was not used is free
/// again, a connection that was not accepted stays in the kernel's queue.
async fn accept(
    listener: &tokio::net::TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed: there is always a place in the end.
    let place = Arc::clone(places).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(_) => sleep(Bounds::ACCEPT_PAUSE).await,
        }
    }
}

/// One connection, one request, one answer; cut off when it takes too long.
async fn answer(stream: TcpStream, place: Option<OwnedSemaphorePermit>, router: Router, bounds: Bounds) {
    let connection = http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .max_buf_size(Bounds::HEAD)
        .max_headers(Bounds::HEADERS)
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.read)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // Whatever went wrong is the client's doing, and it knows: there is nobody else to tell.
    let _ = timeout(bounds.whole, connection).await;
    drop(place);
}

#[derive(Clone)]
struct App {
    source: Arc<dyn Source>,
    telemetry: Arc<Telemetry>,
}

fn router(app: App) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/api/v1/snapshot", get(snapshot))
        .route("/api/v1/events", get(events))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(map_response(harden))
        .with_state(app)
}

async fn metrics(State(app): State<App>) -> impl IntoResponse {
    ([(CONTENT_TYPE, Telemetry::CONTENT_TYPE)], app.telemetry.render(&app.source.snapshot()))
}

async fn healthz(State(app): State<App>) -> Response {
    verdict(app.source.alive())
}

async fn readyz(State(app): State<App>) -> Response {
    verdict(app.source.ready())
}

fn verdict(verdict: Result<(), String>) -> Response {
    match verdict {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn snapshot(State(app): State<App>) -> Json<Snapshot> {
    Json(app.source.snapshot())
}

#[derive(Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
}

async fn events(State(app): State<App>, query: Result<Query<After>, QueryRejection>) -> Response {
    match query {
        Ok(Query(After { after })) => Json(app.telemetry.events_after(after)).into_response(),
        Err(_) => failure(
            StatusCode::BAD_REQUEST,
            "after is the sequence number of the last event you have, a whole number: /api/v1/events?after=120",
        ),
    }
}

/// The page. Its script and style carry a nonce that the policy names; nothing else may run.
async fn page() -> impl IntoResponse {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    ([(CONTENT_SECURITY_POLICY, policy)], Html(include_str!("page.html").replace("{{nonce}}", &nonce)))
}

async fn not_found(uri: Uri) -> Response {
    let known = "/, /metrics, /healthz, /readyz, /api/v1/snapshot, /api/v1/events";
    failure(StatusCode::NOT_FOUND, &format!("there is no {}; there are {known}", uri.path()))
}

async fn method_not_allowed() -> Response {
    failure(StatusCode::METHOD_NOT_ALLOWED, "this listener only reads: use GET")
}

fn failure(status: StatusCode, error: &str) -> Response {
    #[derive(Serialize)]
    struct Failure<'a> {
        error: &'a str,
    }
    (status, Json(Failure { error })).into_response()
}

/// Headers that every answer carries.
async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[cfg(test)]
mod tests;
