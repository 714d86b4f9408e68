//! What can be seen without asking the server.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pgleash_sidecar::config::{Listen, Loaded, LogTarget, Origin};

use crate::check::Report;
use crate::check::next::quoted;

pub(super) fn look(loaded: &Loaded, report: &mut Report) {
    let admin = loaded.config.admin;
    match &loaded.config.listen {
        Listen::Tcp(address) => look_at_port("listen", *address, admin, report),
        Listen::Unix(path) => look_at_directory("listen", path, report),
    }
    look_at_port("admin", admin, admin, report);
    if !admin.ip().is_loopback() {
        report.warn(
            "admin",
            "is reachable from other machines, without a password, and shows who holds which connection",
            "let admin listen on 127.0.0.1, or let a firewall pass only your Prometheus",
        );
    }
    if let LogTarget::File(path) = &loaded.config.log {
        look_at_directory("events.log", path, report);
    }
    look_at_password(loaded, report);
}

/// `admin` is where a pgleash that has the port would answer.
fn look_at_port(about: &'static str, address: SocketAddr, admin: SocketAddr, report: &mut Report) {
    match TcpListener::bind(address) {
        Ok(_) => report.ok(about, format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => report
            .warn(
                about,
                format!("{address} is taken, by a running pgleash or by another program"),
                "see whether pgleash answers; if it does not, end the program or choose another port",
            )
            .by(format!("pgleash healthcheck --admin {admin}")),
        Err(error) => {
            let todo = "choose an address of this machine, and a port that you may use";
            report.fail(about, format!("{address} cannot be listened on: {error}"), todo);
        }
    }
}

fn look_at_directory(about: &'static str, path: &Path, report: &mut Report) {
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    if path.is_dir() {
        report.fail(about, format!("{} is a directory", path.display()), "name a file in it");
    } else if directory.is_dir() {
        report.ok(about, path.display().to_string());
    } else {
        report
            .fail(about, format!("the directory {} does not exist", directory.display()), "create it")
            .by(format!("mkdir -p {}", quoted(&directory.display().to_string())));
    }
}

/// A password is known to more people than it should be on a command line or in a readable file.
fn look_at_password(loaded: &Loaded, report: &mut Report) {
    if loaded.config.upstream.postgres.get_password().is_none() {
        return;
    }
    match loaded.origin("upstream.url") {
        Origin::Flag(flag) => {
            report.warn(
                "password",
                format!("{flag} shows the password to everybody who lists processes"),
                "set PGLEASH_UPSTREAM_URL instead",
            );
        }
        Origin::File { path, .. } if is_readable_by_others(path) => report
            .warn(
                "password",
                format!("others may read {}, which holds the password", path.display()),
                "chmod 600 it, or set PGLEASH_UPSTREAM_URL",
            )
            .by(chmod(path)),
        Origin::File { .. } | Origin::Env(_) | Origin::Default => {}
    }
}

/// Keeps a file from others.
pub(super) fn chmod(path: &Path) -> String {
    format!("chmod 600 {}", quoted(&path.display().to_string()))
}

pub(super) fn is_readable_by_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}
