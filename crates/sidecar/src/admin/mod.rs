//! The admin server: metrics, health, the page, and the read-only API.
//!
//! It runs beside the data path: see [`crate::admin::http_server`].

pub(crate) mod connection_limit;
pub(crate) mod control;
pub(crate) mod cors;
pub(crate) mod event_stream;
pub(crate) mod host_check;
pub(crate) mod http_server;
pub(crate) mod page;
pub(crate) mod source;
#[cfg(test)]
mod tests;

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
use pgleash_core::Snapshot;
use pgleash_telemetry::Telemetry;
use serde::Deserialize;

use crate::admin::event_stream::Streams;
use crate::admin::host_check::only_by_known_names;
use crate::admin::http_server::{Bounds, HttpServer, Lease, failure, harden, spawn_bounded};
use crate::admin::page::Page;
use crate::admin::source::Source;

/// Serves on `listener`, which is already bound, until the returned value is stopped or dropped. The page offers to
/// take connections back if there is a `control` listener.
///
/// # Errors
/// The listener cannot be used without blocking, or the operating system refused a thread.
pub(crate) fn spawn(
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
