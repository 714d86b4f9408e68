//! The admin server: metrics, health, the page, and the read-only API.
//!
//! It runs beside the data path: see [`super::http`].

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{StatusCode, Uri};
use axum::middleware::map_response;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

use crate::snapshot::Snapshot;
use crate::telemetry::Telemetry;

use super::http::{Bounds, HttpServer, failure, harden, spawn_bounded};

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

/// Serves on `listener`, which is already bound, until the returned value is stopped or dropped.
///
/// # Errors
/// The listener cannot be used without blocking, or the operating system refused a thread.
pub fn spawn(
    listener: TcpListener,
    source: Arc<dyn Source>,
    telemetry: Arc<Telemetry>,
) -> io::Result<HttpServer> {
    spawn_bounded("pgleash-admin", listener, router(App { source, telemetry }), Bounds::DEFAULT)
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

#[cfg(test)]
mod tests;
