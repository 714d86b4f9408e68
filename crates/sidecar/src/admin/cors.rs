//! Which pages may speak to the control listener: the page of this process's admin listener, opened through
//! loopback, and no other (the browsers' same-origin policy, relaxed by CORS for these).
//!
//! It decides who may ask, not who is heard: that is the token's matter, also for these.

use std::net::SocketAddr;

use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, VARY,
};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// The origins that the page of an admin listener can have.
#[derive(Clone)]
pub(crate) struct Origins(Vec<HeaderValue>);

impl Origins {
    /// Those of the admin listener at `admin`, as a browser on this machine reaches it, or one that has its port
    /// forwarded to the same port.
    pub(crate) fn of(admin: SocketAddr) -> Self {
        let port = admin.port();
        let mut names =
            ["127.0.0.1", "localhost", "[::1]"].map(|host| format!("http://{host}:{port}")).to_vec();
        if admin.ip().is_loopback() {
            names.push(format!("http://{admin}"));
        }
        Self(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn admits(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut shown = headers.get_all(ORIGIN).iter();
        let origin = shown.next().filter(|origin| self.0.contains(origin))?;
        shown.next().is_none().then(|| origin.clone())
    }
}

/// Answers what a browser asks before such a page's POST, and lets the page read the answer. Whatever else comes
/// goes on as it is.
pub(crate) async fn admit(State(origins): State<Origins>, request: Request, next: Next) -> Response {
    let Some(origin) = origins.admits(request.headers()) else { return next.run(request).await };
    let asks = request.method() == Method::OPTIONS
        && request.headers().get(ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|method| method == "POST");
    let mut response = if asks {
        let allowed =
            [(ACCESS_CONTROL_ALLOW_METHODS, "POST"), (ACCESS_CONTROL_ALLOW_HEADERS, "authorization")];
        (StatusCode::NO_CONTENT, allowed).into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(VARY, HeaderValue::from_static("origin"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(admin: &str, shown: &[&str]) -> bool {
        let headers = shown.iter().map(|origin| (ORIGIN, origin.parse().unwrap())).collect();
        Origins::of(admin.parse().unwrap()).admits(&headers).is_some()
    }

    #[test]
    fn the_admin_page_is_admitted_through_loopback_and_nobody_else() {
        for admin in ["127.0.0.1:9632", "0.0.0.0:9632", "[::]:9632"] {
            for own in ["http://127.0.0.1:9632", "http://localhost:9632", "http://[::1]:9632"] {
                assert!(admitted(admin, &[own]), "{admin}: {own}");
            }
            for foreign in [
                "http://localhost:9633",
                "http://localhost",
                "https://localhost:9632",
                "http://localhost:9632.evil.test",
                "http://evil.test:9632",
                "http://10.0.0.5:9632",
                "http://LOCALHOST:9632",
                "null",
                "*",
                "",
            ] {
                assert!(!admitted(admin, &[foreign]), "{admin}: {foreign}");
            }
        }
        assert!(admitted("127.0.0.9:1", &["http://127.0.0.9:1"]));
        assert!(!admitted("10.0.0.5:1", &["http://10.0.0.5:1"]), "control is on loopback");
        assert!(!admitted("127.0.0.1:1", &[]));
        assert!(!admitted("127.0.0.1:1", &["http://localhost:1", "http://localhost:1"]), "which one?");
    }
}
