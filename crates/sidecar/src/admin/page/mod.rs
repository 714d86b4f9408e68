//! The page: one answer, made of the files in `page/`.
//!
//! The script is read from top to bottom; its parts share one scope and are in the order in which they need each other.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::response::{Html, IntoResponse, Response};

const HTML: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = concat!(
    include_str!("dom.js"),
    include_str!("words.js"),
    include_str!("state.js"),
    include_str!("pools.js"),
    include_str!("holders.js"),
    include_str!("timeline.js"),
    include_str!("observe.js"),
    include_str!("control.js"),
    include_str!("keys.js"),
    include_str!("feed.js"),
);

/// The page of one admin server.
pub(crate) struct Page {
    html: String,
    /// Whom its script may talk to.
    connect: String,
}

impl Page {
    /// A page that offers to take connections back through the control listener, if there is one.
    pub(crate) fn new(control: Option<SocketAddr>) -> Self {
        let control = control.map(origin).unwrap_or_default();
        let html =
            HTML.replace("{{style}}", STYLE).replace("{{script}}", SCRIPT).replace("{{control}}", &control);
        let connect = if control.is_empty() { "'self'".to_owned() } else { format!("'self' {control}") };
        Self { html, connect }
    }

    /// Its script and style carry a nonce that the policy names; nothing else may run.
    pub(crate) fn answer(&self) -> Response {
        let nonce = format!("{:032x}", rand::random::<u128>());
        let policy = format!(
            "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src {}; \
             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            self.connect
        );
        ([(CONTENT_SECURITY_POLICY, policy)], Html(self.html.replace("{{nonce}}", &nonce))).into_response()
    }
}

/// Where a browser reaches the control listener, which is on loopback. A policy has no way to name an IPv6 address.
fn origin(control: SocketAddr) -> String {
    match control.ip() {
        IpAddr::V6(Ipv6Addr::LOCALHOST) => format!("http://localhost:{}", control.port()),
        _ => format!("http://{control}"),
    }
}
