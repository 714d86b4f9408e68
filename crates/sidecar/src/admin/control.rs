//! The control server: all that changes state over HTTP. Off unless `control` says where; loopback only,
//! and nobody is heard who does not show the token.
//!
//! The page of the admin listener may ask, with the token, from a browser; see [`crate::admin::cors`]. It has a thread and a runtime of its own, and the bounds of the admin server. Nothing of a request is
//! read but its method, its path and its token; a body is not looked at.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use axum::http::{StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use pgleash_core::{CheckoutId, Event, FlowState};
use pgleash_telemetry::{Record, Telemetry};
use serde::Deserialize;
use serde_json::json;

use crate::admin::cors::{Origins, admit};
use crate::admin::host_check::only_by_known_names;
use crate::admin::http_server::{Bounds, HttpServer, failure, harden, spawn_bounded};
use crate::admin::source::Source;
use crate::config::Token;
use crate::process::Hub;
use crate::reload::Reloader;
use crate::watchdog::reclaim_by_hand::{ByHand, reclaim_by_hand};

/// How long an answer waits for a connection that was taken back to be clean.
const CLEANING: Duration = Duration::from_secs(8);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);

/// What the control server works on.
#[derive(Clone)]
pub(crate) struct Control {
    /// The process.
    pub hub: Arc<Hub>,
    /// Its configuration.
    pub reloader: Arc<Reloader>,
    /// Where what came of a reclaim is told.
    pub telemetry: Arc<Telemetry>,
    /// What a request must show.
    pub token: Token,
    /// Which pages a browser may let ask.
    pub origins: Origins,
}

/// Serves on `listener`, which is already bound, until the returned value is stopped or dropped.
///
/// # Errors
/// The listener cannot be used without blocking, or the operating system refused a thread.
pub(crate) fn spawn(listener: TcpListener, control: Control) -> io::Result<HttpServer> {
    spawn_bounded("pgleash-control", listener, router(control), Bounds::DEFAULT)
}

fn router(control: Control) -> Router {
    let source = Arc::clone(&control.hub) as Arc<dyn Source>;
    Router::new()
        .route("/api/v1/pause", post(pause))
        .route("/api/v1/resume", post(resume))
        .route("/api/v1/reload", post(reload))
        .route("/api/v1/checkouts/{id}/reclaim", post(reclaim))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(control.clone(), only_who_shows_the_token))
        .layer(from_fn_with_state(control.origins.clone(), admit))
        .layer(from_fn_with_state(source, only_by_known_names))
        .layer(map_response(harden))
        .with_state(control)
}

async fn only_who_shows_the_token(State(control): State<Control>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let token = shown.and_then(|shown| {
        let (scheme, token) = shown.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
    });
    if token.is_some_and(|token| control.token.is(token)) {
        return next.run(request).await;
    }
    let said = "show the token of control_token: Authorization: Bearer ...";
    ([(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))], failure(StatusCode::UNAUTHORIZED, said))
        .into_response()
}

async fn pause(State(control): State<Control>) -> Response {
    let flow = control.hub.pause();
    state(&control, flow)
}

async fn resume(State(control): State<Control>) -> Response {
    let flow = control.hub.resume();
    state(&control, flow)
}

/// Whether new checkouts go on, and how many are out.
fn state(control: &Control, flow: FlowState) -> Response {
    Json(json!({ "flow": flow, "checkouts": control.hub.checkouts() })).into_response()
}

async fn reload(State(control): State<Control>) -> Response {
    let reloaded = tokio::task::spawn_blocking(move || control.reloader.reload()).await;
    match reloaded {
        Ok(Ok(change)) => {
            Json(json!({ "changed": change.changed, "needs_restart": change.needs_restart })).into_response()
        }
        Ok(Err(problems)) => {
            let said = "the configuration is wrong; nothing was changed";
            (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "error": said, "problems": problems })))
                .into_response()
        }
        Err(_) => failure(StatusCode::INTERNAL_SERVER_ERROR, "the configuration could not be read"),
    }
}

/// Which backend the checkout has, if the caller knows it.
#[derive(Deserialize)]
struct Of {
    backend_pid: Option<i32>,
}

async fn reclaim(
    State(control): State<Control>,
    id: Result<Path<u64>, PathRejection>,
    of: Result<Query<Of>, QueryRejection>,
) -> Response {
    let (Ok(Path(id)), Ok(Query(Of { backend_pid }))) = (id, of) else {
        let said = "a checkout is named by its number: see holders in /api/v1/snapshot of the admin listener";
        return failure(StatusCode::BAD_REQUEST, said);
    };
    let (id, before) = (CheckoutId(id), control.telemetry.newest_event());
    let mut done = ByHand::Unknown;
    for pool in control.hub.pools() {
        done = reclaim_by_hand(&pool, id, backend_pid).await;
        if done != ByHand::Unknown {
            break;
        }
    }
    let (status, recycled) = match done {
        ByHand::Taken => (StatusCode::OK, what_came_of(&control.telemetry, id, before).await),
        ByHand::Unknown => (StatusCode::NOT_FOUND, None),
        ByHand::InFlight | ByHand::Moved | ByHand::Unconfirmed => (StatusCode::CONFLICT, None),
    };
    let (action, outcome) = recycled.unzip();
    let answer =
        json!({ "checkout": id, "result": done, "said": done.said(), "action": action, "outcome": outcome });
    (status, Json(answer)).into_response()
}

/// How the connection was cleaned and what came of it; `None` if that takes too long to wait for.
async fn what_came_of(
    telemetry: &Telemetry,
    id: CheckoutId,
    before: u64,
) -> Option<(&'static str, &'static str)> {
    let found = |record: Arc<Record>| match record.event {
        Event::Recycled { checkout, action, outcome, .. } if checkout == id => {
            Some((action.as_str(), outcome.as_str()))
        }
        _ => None,
    };
    let looking = async {
        loop {
            if let Some(came) = telemetry.events_after(before).into_iter().find_map(found) {
                return came;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(CLEANING, looking).await.ok()
}

async fn not_found(uri: Uri) -> Response {
    let known =
        "/api/v1/pause, /api/v1/resume, /api/v1/reload, /api/v1/checkouts/{id}/reclaim; all with POST";
    failure(StatusCode::NOT_FOUND, &format!("there is no {}; there are {known}", uri.path()))
}

async fn method_not_allowed() -> Response {
    failure(StatusCode::METHOD_NOT_ALLOWED, "this listener only acts: use POST")
}
