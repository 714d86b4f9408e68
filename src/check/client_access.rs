//! Who would be let in, and what they would be shown.

use std::path::Path;
use std::time::Duration;

use pgleash_sidecar::Users;
use pgleash_sidecar::config::{AuthMethod, Listen, ListenerMode, Loaded};
use pgleash_sidecar::tls::listener::Certificates;

use crate::check::Report;
use crate::check::machine::{chmod, is_readable_by_others};

/// A certificate that ends sooner should have been renewed by now.
const SOON: Duration = Duration::from_secs(14 * 86_400);

pub(super) fn look(loaded: &Loaded, report: &mut Report) {
    look_at_auth(loaded, report);
    look_at_certificate(loaded, report);
}

fn look_at_auth(loaded: &Loaded, report: &mut Report) {
    let auth = &loaded.config.auth;
    match auth.method {
        AuthMethod::Trust => {
            report
                .ok("auth", "clients of this machine are believed without a password (auth.method is trust)");
        }
        AuthMethod::Scram => report.ok("auth", "clients prove their password with SCRAM-SHA-256"),
    }
    let Some(path) = &auth.users else { return };
    match Users::load(path, b"nothing is made of these salts") {
        Ok(users) => {
            let passwords = users.passwords().len();
            let verifiers = users.len() - passwords;
            let what =
                format!("{}: {passwords} with a password, {verifiers} with a verifier", path.display());
            report.ok("auth.users", what);
        }
        Err(error) => return report.fail_plainly("auth.users", error.to_string()),
    }
    warn_of_readers("auth.users", path, report);
}

fn look_at_certificate(loaded: &Loaded, report: &mut Report) {
    let tls = &loaded.config.tls;
    let Some(files) = tls.files() else {
        if matches!(&loaded.config.listen, Listen::Tcp(listen) if !listen.ip().to_canonical().is_loopback()) {
            report.warn(
                "certificate",
                "what clients of other machines send is not encrypted",
                "set tls.cert and tls.key",
            );
        }
        return;
    };
    warn_of_readers("tls.key", &files.key, report);
    if tls.mode == ListenerMode::Allow {
        report.warn(
            "tls.mode",
            "clients of other machines may send their data unencrypted",
            "set tls.mode to auto or require once every client encrypts",
        );
    }
    let shown = match Certificates::load(files) {
        Ok(certificates) => certificates.shown(),
        Err(error) => return report.fail_plainly("certificate", error.to_string()),
    };
    if shown.binding.is_none() {
        let why = "the signature of the certificate has no hash to bind a password's proof to: no SCRAM-SHA-256-PLUS";
        report.warn("tls.cert", why, "use a certificate that is signed with ECDSA or RSA and SHA-256");
    }
    let until = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + shown.expires);
    match shown.expires.checked_sub(pgleash_clock::wall()) {
        None => {
            report.fail("certificate", format!("the certificate has expired at {until}"), "renew it");
        }
        Some(left) if left < SOON => {
            report.warn("certificate", format!("the certificate expires at {until}"), "renew it");
        }
        Some(_) => {
            report.ok("certificate", format!("the key fits the certificate, which expires at {until}"))
        }
    }
}

fn warn_of_readers(about: &'static str, path: &Path, report: &mut Report) {
    if is_readable_by_others(path) {
        report.warn(about, format!("others may read {}", path.display()), "chmod 600 it").by(chmod(path));
    }
}
