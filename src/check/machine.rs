//! What can be seen without asking the server.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pgleash_sidecar::config::{Listen, Loaded, LogTarget, Origin};

use crate::check::Report;

pub(super) fn look(loaded: &Loaded, report: &mut Report) {
    match &loaded.config.listen {
        Listen::Tcp(address) => look_at_port("listen", *address, report),
        Listen::Unix(path) => look_at_directory("listen", path, report),
    }
    look_at_port("admin", loaded.config.admin, report);
    if !loaded.config.admin.ip().is_loopback() {
        report.warn(
            "admin",
            "is reachable from other machines, without a password: it shows who holds which connection",
        );
    }
    if let LogTarget::File(path) = &loaded.config.log {
        look_at_directory("events.log", path, report);
    }
    look_at_password(loaded, report);
}

fn look_at_port(about: &'static str, address: SocketAddr, report: &mut Report) {
    match TcpListener::bind(address) {
        Ok(_) => report.ok(about, format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => report.warn(
            about,
            format!(
                "{address} is taken: by a running pgleash, or by something that will keep it from starting"
            ),
        ),
        Err(error) => report.fail(about, format!("{address} cannot be listened on: {error}")),
    }
}

fn look_at_directory(about: &'static str, path: &Path, report: &mut Report) {
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    if path.is_dir() {
        report.fail(about, format!("{} is a directory: name a file in it", path.display()));
    } else if directory.is_dir() {
        report.ok(about, path.display().to_string());
    } else {
        report.fail(about, format!("the directory {} does not exist: create it", directory.display()));
    }
}

/// A password is known to more people than it should be on a command line or in a readable file.
fn look_at_password(loaded: &Loaded, report: &mut Report) {
    if loaded.config.upstream.postgres.get_password().is_none() {
        return;
    }
    match loaded.origin("upstream.url") {
        Origin::Flag(flag) => report.warn(
            "password",
            format!("{flag} shows the password to everybody who lists processes: set PGLEASH_UPSTREAM_URL"),
        ),
        Origin::File { path, .. } if is_readable_by_others(path) => report.warn(
            "password",
            format!(
                "others may read {}, which holds the password: chmod 600 it, or set PGLEASH_UPSTREAM_URL",
                path.display()
            ),
        ),
        Origin::File { .. } | Origin::Env(_) | Origin::Default => {}
    }
}

pub(super) fn is_readable_by_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}
