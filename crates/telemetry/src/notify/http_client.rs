//! One request over HTTP, and what its answer means.

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::notify::payload::Payload;
use crate::notify::receiver::Receiver;
use crate::notify::retry_queue::Answer;

/// How long a receiver may take for one request, from the look-up of its name to its answer.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// An HTTP client that trusts the authorities of this system, follows no redirect and keeps its connections.
pub fn agent() -> Agent {
    let roots = rustls_native_certs::load_native_certs().certs;
    let roots = RootCerts::from(roots.iter().map(|cert| Certificate::from_der(cert).to_owned()));
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .root_certs(roots)
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(DEADLINE))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .user_agent(concat!("pgleash/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent()
}

/// Posts it. Waits for [`DEADLINE`] at most. What is said of a failure has neither URL nor secret in it.
pub fn post(agent: &Agent, target: &Receiver, payload: &Payload) -> Answer {
    let mut request = agent.post(target.url.as_str());
    let signature = payload.signature(target, pgleash_clock::wall());
    for (name, value) in payload.headers.iter().chain(&signature) {
        request = request.header(*name, value);
    }
    let response = match request.send(payload.body.as_str()) {
        Ok(response) => response,
        Err(error) => return Answer::Later(without_url(error), None),
    };
    let status = response.status().as_u16();
    let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    match status {
        200..=299 => Answer::Taken,
        408 | 425 | 429 | 500..=599 => {
            Answer::Later(format!("HTTP status {status}"), after.map(Duration::from_secs))
        }
        _ => Answer::Never(format!("HTTP status {status}")),
    }
}

fn without_url(error: ureq::Error) -> String {
    match error {
        ureq::Error::BadUri(_) => "the URL cannot be used".to_owned(),
        ureq::Error::Io(error) => format!("no connection: {}", error.kind()),
        ureq::Error::Timeout(_) => format!("no answer within {} s", DEADLINE.as_secs()),
        ureq::Error::HostNotFound => "the name of the host is not known".to_owned(),
        ureq::Error::Rustls(error) => format!("TLS: {error}"),
        _ => "no valid answer over HTTP".to_owned(),
    }
}
