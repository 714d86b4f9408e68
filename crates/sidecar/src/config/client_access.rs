//! `auth` and `tls`: who is let in, and how.

use std::path::PathBuf;

use pgleash_core::InvalidValue;

use crate::config::{Draft, Listen};

pub use crate::tls::listener::ListenerFiles;

/// What a client has to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// Nothing: whoever reaches the listener is believed.
    Trust,
    /// That it knows its password.
    Scram,
}

/// Who may go unencrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerMode {
    /// Clients of this machine.
    Auto,
    /// Nobody who comes over TCP.
    Require,
    /// Everybody.
    Allow,
}

/// `auth`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// `auth.method`.
    pub method: AuthMethod,
    /// `auth.users`: a file of users.
    pub users: Option<PathBuf>,
    /// `auth.query`: SQL that the server is asked for a user's verifier with.
    pub query: Option<String>,
}

/// `tls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// `tls.mode`.
    pub mode: ListenerMode,
    /// `tls.cert`.
    pub cert: Option<PathBuf>,
    /// `tls.key`.
    pub key: Option<PathBuf>,
    /// `tls.client_ca`.
    pub client_ca: Option<PathBuf>,
}

impl ListenerTls {
    /// The files, if there is a certificate.
    pub fn files(&self) -> Option<ListenerFiles> {
        let (cert, key) = (self.cert.clone()?, self.key.clone()?);
        Some(ListenerFiles { cert, key, client_ca: self.client_ca.clone() })
    }
}

/// How a key that is not set is written.
const OFF: &str = "off";

pub(super) const NO_AUTH: Auth = Auth { method: AuthMethod::Trust, users: None, query: None };
pub(super) const NO_TLS: ListenerTls =
    ListenerTls { mode: ListenerMode::Auto, cert: None, key: None, client_ca: None };

pub(super) fn path(text: &str) -> Result<Option<PathBuf>, InvalidValue> {
    match text {
        "" => Err(InvalidValue::new("is empty", "write off or a path")),
        OFF => Ok(None),
        path => Ok(Some(PathBuf::from(path))),
    }
}

pub(super) fn show_path(path: Option<&PathBuf>) -> String {
    path.map_or_else(|| OFF.to_owned(), |path| path.display().to_string())
}

pub(super) fn query(text: &str) -> Result<Option<String>, InvalidValue> {
    match text {
        OFF => Ok(None),
        sql if sql.contains("$1") => Ok(Some(sql.to_owned())),
        _ => Err(InvalidValue::new(
            "does not ask for a user: it has no $1",
            "write SELECT rolname, rolpassword FROM pg_catalog.pg_authid WHERE rolname = $1, or call a function",
        )),
    }
}

/// What no key of `auth`, `tls` and `listen` can be blamed for alone.
pub(super) fn check(draft: &mut Draft) {
    if let Listen::Tcp(listen) = draft.config.listen.clone()
        && !draft.refused.contains("listen")
        && !listen.ip().to_canonical().is_loopback()
    {
        check_open(draft);
    }
    check_users(draft);
    check_certificate(draft);
}

/// Everybody may knock.
fn check_open(draft: &mut Draft) {
    if draft.config.auth.method == AuthMethod::Trust && !draft.refused.contains("auth.method") {
        draft.refuse_together(
            "listen",
            "is reachable from other machines, and clients are not asked for a password (auth.method is trust)",
            "set auth.method = \"scram-sha-256\", or listen on 127.0.0.1, [::1] or a Unix socket",
        );
    }
    let tls = &draft.config.tls;
    let said = ["tls.cert", "tls.mode"].iter().any(|key| draft.refused.contains(key));
    if tls.cert.is_none() && tls.mode != ListenerMode::Allow && !said {
        draft.refuse_together(
            "listen",
            "is reachable from other machines, and what they send would not be encrypted (tls.cert is off)",
            "set tls.cert and tls.key; or tls.mode = \"allow\" if everybody may read what passes",
        );
    }
}

fn check_users(draft: &mut Draft) {
    let crate::config::Auth { method, users, query } = draft.config.auth.clone();
    let said = ["auth.method", "auth.users", "auth.query"].iter().any(|key| draft.refused.contains(key));
    if said {
        return;
    }
    match method {
        AuthMethod::Scram if users.is_none() && query.is_none() => draft.refuse_together(
            "auth.method",
            "asks clients for a password, and nobody has one",
            "name a file of users with auth.users, or set auth.query",
        ),
        AuthMethod::Trust if query.is_some() => draft.refuse_together(
            "auth.query",
            "is never asked: auth.method is trust",
            "set auth.method = \"scram-sha-256\", or auth.query = \"off\"",
        ),
        _ => {}
    }
    let known = draft.is_set("upstream.url");
    if query.is_some() && known && draft.config.upstream.postgres.get_user().is_none() {
        draft.refuse_together(
            "auth.query",
            "is asked as the user of upstream.url, which names none",
            "write the user before the host: postgres://user@host/database",
        );
    }
}

fn check_certificate(draft: &mut Draft) {
    let ListenerTls { mode, cert, key, client_ca } = draft.config.tls.clone();
    if ["tls.cert", "tls.key"].iter().any(|key| draft.refused.contains(key)) {
        return;
    }
    match (&cert, &key) {
        (Some(_), None) => draft.refuse_together("tls.cert", "has no key", "set tls.key as well"),
        (None, Some(_)) => draft.refuse_together("tls.key", "has no certificate", "set tls.cert as well"),
        _ => {}
    }
    let needs = "cannot be without a certificate to show (tls.cert is off)";
    if cert.is_none() && client_ca.is_some() {
        draft.refuse_together("tls.client_ca", needs, "set tls.cert and tls.key");
    }
    if cert.is_none() && mode == ListenerMode::Require {
        draft.refuse_together("tls.mode", needs, "set tls.cert and tls.key, or tls.mode = \"auto\"");
    }
}
