//! Under which names the HTTP listeners answer a browser.
//!
//! A page of somebody else's can make its own name stand for this machine's address once it is loaded (DNS rebinding),
//! and would then read what is here as if it were its own. Its requests still carry that name. An address in digits and
//! `localhost` cannot be made to stand for anything else; other names are known from the configuration.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::Response;

use crate::admin::http_server::failure;
use crate::admin::source::Source;

/// Refuses a request whose name for this listener is not known. One without a name goes on: no browser sends such.
pub(crate) async fn only_by_known_names(
    State(source): State<Arc<dyn Source>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(name) = unknown(&request, &*source) else { return next.run(request).await };
    let said = format!(
        "this listener does not answer to the name {name}: ask for it by its address or as localhost, or add the \
         name to admin_hosts in its configuration"
    );
    failure(StatusCode::MISDIRECTED_REQUEST, &said)
}

/// The name that is not known, of all that the request has.
fn unknown(request: &Request, source: &dyn Source) -> Option<String> {
    let line = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let said = request.headers().get_all(HOST).iter().map(|host| host.as_bytes());
    line.into_iter().chain(said).find_map(|host| {
        let host = String::from_utf8_lossy(host);
        let name = name_of(&host);
        let known = name.is_empty() || is_this_machine(&name) || source.admits(&name);
        (!known).then(|| name.chars().take(253).collect())
    })
}

/// Without the port; as it stands if it has no such form.
fn name_of(host: &str) -> String {
    if host.contains('@') {
        return host.to_owned();
    }
    host.parse::<Authority>().map_or_else(|_| host.to_owned(), |authority| authority.host().to_owned())
}

fn is_this_machine(name: &str) -> bool {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    bare.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_localhost_are_this_machine_and_no_name_is() {
        for own in [
            "127.0.0.1:9632",
            "10.0.0.5",
            "[::1]:9632",
            "[fe80::1]",
            "localhost:80",
            "LocalHost.",
            "a.localhost",
        ] {
            assert!(is_this_machine(&name_of(own)), "{own}");
        }
        for foreign in [
            "evil.test:9632",
            "127.0.0.1.evil.test",
            "localhost.evil.test",
            "evillocalhost",
            "127.0.0.1@evil.test",
            "evil.test:1@127.0.0.1",
            "127.0.0.1, evil.test",
            "127.1",
            "0x7f000001",
            "[::1",
            "\u{fffd}",
        ] {
            assert!(!is_this_machine(&name_of(foreign)), "{foreign}");
        }
    }
}
