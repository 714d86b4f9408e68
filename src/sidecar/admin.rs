//! The admin server: metrics, health, the page, and the read-only API.
//!
//! It runs beside the data path: see [`super::http`].

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde::Deserialize;

use crate::snapshot::Snapshot;
use crate::telemetry::Telemetry;

use super::hosts::only_by_known_names;
use super::http::{Bounds, HttpServer, Lease, failure, harden, spawn_bounded};
use super::page::Page;
use super::stream::Streams;

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

    /// Whether `name`, of a host and without a port, is one by which a browser may ask for the page and the API.
    fn admits(&self, name: &str) -> bool;
}

/// Serves on `listener`, which is already bound, until the returned value is stopped or dropped. The page offers to
/// take connections back if there is a `control` listener.
///
/// # Errors
/// The listener cannot be used without blocking, or the operating system refused a thread.
pub fn spawn(
    listener: TcpListener,
    source: Arc<dyn Source>,
    telemetry: Arc<Telemetry>,
    control: Option<SocketAddr>,
) -> io::Result<HttpServer> {
    let app = App::new(source, telemetry, control);
    spawn_bounded("pgleash-admin", listener, router(app), Bounds::DEFAULT)
}

#[derive(Clone)]
struct App {
    source: Arc<dyn Source>,
    telemetry: Arc<Telemetry>,
    streams: Arc<Streams>,
    page: Arc<Page>,
}

impl App {
    fn new(source: Arc<dyn Source>, telemetry: Arc<Telemetry>, control: Option<SocketAddr>) -> Self {
        let streams = Arc::new(Streams::new(Arc::clone(&source), Arc::clone(&telemetry)));
        Self { source, telemetry, streams, page: Arc::new(Page::new(control)) }
    }
}

fn router(app: App) -> Router {
    // A browser shows these to whoever owns the name that it asks by.
    let private = Router::new()
        .route("/", get(page))
        .route("/api/v1/snapshot", get(snapshot))
        .route("/api/v1/events", get(events))
        .route("/api/v1/stream", get(stream))
        .route_layer(from_fn_with_state(Arc::clone(&app.source), only_by_known_names));
    private
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
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

async fn stream(State(app): State<App>, Extension(lease): Extension<Lease>, headers: HeaderMap) -> Response {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    app.streams.open(last, lease)
}

async fn page(State(app): State<App>) -> Response {
    app.page.answer()
}

async fn not_found(uri: Uri) -> Response {
    let known = "/, /metrics, /healthz, /readyz, /api/v1/snapshot, /api/v1/events, /api/v1/stream";
    failure(StatusCode::NOT_FOUND, &format!("there is no {}; there are {known}", uri.path()))
}

async fn method_not_allowed() -> Response {
    failure(StatusCode::METHOD_NOT_ALLOWED, "this listener only reads: use GET")
}

#[cfg(test)]
mod tests;
