//! The configuration: one table of keys, three layers, one report of all that is wrong.
//!
//! A value comes from `pgleash.toml`, then from a `PGLEASH_*` environment variable, then from a flag;
//! the later one wins, key by key. [`keys::KEYS`] is the only list of keys: parsing, error reports, the
//! long help, `pgleash check --print` and `pgleash.example.toml` are all made from it.

pub mod admin_hosts;
pub mod client_access;
pub mod field;
pub mod keys;
pub mod layers;
pub mod print;
pub mod problem;
pub mod reloadable;
pub mod start_error;
pub mod target;
#[cfg(test)]
mod tests;
pub mod token;
pub mod units;
pub mod upstream_url;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pgleash_core::Policy;
use pgleash_telemetry::notify::Receivers;
use tokio_postgres::config::Host;

use crate::config::layers::Assignment;

pub use crate::config::admin_hosts::Hosts;
pub use crate::config::client_access::{Auth, AuthMethod, ListenerFiles, ListenerMode, ListenerTls};
pub use crate::config::layers::{FILE_VARIABLE, Flag, Sources};
pub use crate::config::problem::{Origin, Problem, Problems};
pub use crate::config::token::Token;
pub use crate::config::upstream_url::Upstream;
pub use crate::tls::upstream::{TlsMode, UpstreamTls};
pub use pgleash_core::InvalidValue;

/// What the sidecar runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// `listen`: where Postgres clients connect.
    pub listen: Listen,
    /// `admin`: where metrics, health, the page and the read-only API are served.
    pub admin: SocketAddr,
    /// `admin_hosts`: under which names `admin` and `control` answer a browser.
    pub admin_hosts: Hosts,
    /// `control`: where pause, resume, reload and reclaim are asked for; nowhere if there is none.
    pub control: Option<SocketAddr>,
    /// `control_token`: what who asks must show.
    pub control_token: Option<Token>,
    /// `handover`: the Unix socket through which the next process gets the listening sockets.
    pub handover: Option<PathBuf>,
    /// `upstream`: the Postgres server behind the sidecar.
    pub upstream: Upstream,
    /// `auth`: who is let in.
    pub auth: Auth,
    /// `tls`: what clients are shown, and who may go without.
    pub tls: ListenerTls,
    /// `pool` and `leaks`.
    pub policy: Policy,
    /// `pool.max_clients`: client sessions over all pools.
    pub max_clients: usize,
    /// `workers`: threads of the data path.
    pub workers: usize,
    /// `drain_timeout`: how long clients may take to leave after SIGTERM.
    pub drain_timeout: Duration,
    /// `events.log`: where event lines go.
    pub log: LogTarget,
    /// `events`: who is told, and in which words.
    pub receivers: Receivers,
}

impl Config {
    /// The defaults, in front of `upstream`.
    pub fn new(upstream: Upstream) -> Self {
        Self {
            listen: Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 6432))),
            admin: SocketAddr::from(([127, 0, 0, 1], 9632)),
            admin_hosts: Hosts::default(),
            control: None,
            control_token: None,
            handover: None,
            upstream,
            auth: client_access::NO_AUTH,
            tls: client_access::NO_TLS,
            policy: Policy::default(),
            max_clients: 1000,
            workers: 1,
            drain_timeout: Duration::from_secs(30),
            log: LogTarget::Stdout,
            receivers: Receivers::default(),
        }
    }
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An IP address and port; port 0 asks the system for a free one.
    Tcp(SocketAddr),
    /// A Unix socket. Clients look for `<directory>/.s.PGSQL.<port>`.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Where event lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogTarget::Stdout => f.write_str("stdout"),
            LogTarget::File(path) => path.display().fmt(f),
        }
    }
}

/// A configuration without fault, and where each value came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The effective values.
    pub config: Config,
    origins: BTreeMap<&'static str, Origin>,
}

impl Loaded {
    /// Where the effective value of `key` came from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }
}

/// Reads every layer and checks the whole.
///
/// # Errors
/// All problems of all layers at once. Each says its key, where it is, what is wrong, what is allowed and
/// what to do; none shows a value that may hold a secret.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let mut draft = Draft::gather(sources);
    draft.check_required();
    draft.check_together();
    if draft.problems.is_empty() {
        Ok(Loaded { config: draft.config, origins: draft.origins })
    } else {
        Err(Problems(draft.problems))
    }
}

/// Reads `admin` alone, for asking a running pgleash how it is.
///
/// # Errors
/// The problems of the key `admin` and of files that cannot be read; other keys are not looked at.
pub fn load_admin(sources: &Sources) -> Result<SocketAddr, Problems> {
    let mut draft = Draft::gather(sources);
    let unread = draft.incomplete;
    draft.problems.retain(|problem| problem.key == "admin" || (unread && problem.key.is_empty()));
    if draft.problems.is_empty() { Ok(draft.config.admin) } else { Err(Problems(draft.problems)) }
}

/// A configuration in the making.
struct Draft {
    config: Config,
    origins: BTreeMap<&'static str, Origin>,
    /// Keys with a value that was refused: nothing more is said about them.
    refused: BTreeSet<&'static str>,
    /// A layer could not be read whole, so a missing key may not be missing.
    incomplete: bool,
    problems: Vec<Problem>,
}

impl Draft {
    fn gather(sources: &Sources) -> Self {
        let layers = layers::read(sources);
        let mut draft = Draft {
            config: Config::new(Upstream::nowhere()),
            origins: BTreeMap::new(),
            refused: BTreeSet::new(),
            incomplete: layers.incomplete,
            problems: Vec::new(),
        };
        for entry in layers.entries {
            let Assignment { key, given, origin } = match entry {
                Ok(assignment) => assignment,
                Err(problem) => {
                    draft.problems.push(problem);
                    continue;
                }
            };
            match key.field.set(&mut draft.config, &given) {
                Ok(()) => {
                    draft.origins.insert(key.name, origin);
                }
                Err(fault) => {
                    draft.refused.insert(key.name);
                    draft.problems.push(Problem::of_value(key, &given, origin, fault));
                }
            }
        }
        draft
    }

    fn check_required(&mut self) {
        if self.is_set("upstream.url") || self.refused.contains("upstream.url") || self.incomplete {
            return;
        }
        self.problems.push(Problem {
            origin: Origin::Default,
            key: "upstream.url".into(),
            value: None,
            what: "is required, and is set nowhere".into(),
            allowed: None,
            remedy: "set url in section [upstream] of pgleash.toml, or PGLEASH_UPSTREAM_URL, or --upstream"
                .into(),
        });
    }

    /// What no key can be blamed for alone.
    fn check_together(&mut self) {
        if let Listen::Tcp(listen) = self.config.listen.clone()
            && !self.refused.contains("listen")
        {
            self.check_ports(listen);
        }
        client_access::check(self);
        self.check_not_itself();
        self.check_control();
    }

    fn check_ports(&mut self, listen: SocketAddr) {
        let admin = self.config.admin;
        let same_host =
            listen.ip() == admin.ip() || listen.ip().is_unspecified() || admin.ip().is_unspecified();
        if same_host && listen.port() == admin.port() && listen.port() != 0 {
            let key = if self.is_set("admin") { "admin" } else { "listen" };
            self.refuse_together(
                key,
                "listen and admin have the same port",
                "give each its own port, or port 0 for any free one",
            );
        }
    }

    fn check_not_itself(&mut self) {
        let listen = self.config.listen.clone();
        if self.config.upstream.addresses().any(|(host, port)| is_listener(&listen, host, port)) {
            self.refuse_together(
                "upstream.url",
                "is the address that pgleash itself listens on",
                "name the address of Postgres, or change listen",
            );
        }
    }

    fn check_control(&mut self) {
        let Some(control) = self.config.control else { return };
        if !control.ip().to_canonical().is_loopback() {
            self.refuse_together(
                "control",
                "is reachable from other machines, and whoever reaches it may do things",
                "listen on 127.0.0.1 or [::1]",
            );
        }
        let taken = self.config.admin == control || self.config.listen == Listen::Tcp(control);
        if taken && control.port() != 0 {
            self.refuse_together(
                "control",
                "is the address of listen or admin",
                "give each its own port, or port 0 for any free one",
            );
        }
        if self.config.control_token.is_none() && !self.refused.contains("control_token") {
            self.refuse_together(
                "control",
                "has no token: whoever reaches it could do things",
                "set PGLEASH_CONTROL_TOKEN, or control_token to file: and the path of a file that holds it",
            );
        }
    }

    fn is_set(&self, key: &str) -> bool {
        self.origins.contains_key(key)
    }

    fn refuse_together(&mut self, name: &'static str, what: &str, remedy: &str) {
        let shown = keys::find(name).map(|key| key.field.show(&self.config));
        self.problems.push(Problem {
            origin: self.origins.get(name).cloned().unwrap_or(Origin::Default),
            key: name.into(),
            value: shown,
            what: what.into(),
            allowed: None,
            remedy: remedy.into(),
        });
    }
}

fn is_listener(listen: &Listen, host: &Host, port: u16) -> bool {
    match (listen, host) {
        (Listen::Tcp(listen), Host::Tcp(host)) => {
            let this_machine = host == "localhost" || host.parse() == Ok(listen.ip());
            this_machine && listen.port() == port
        }
        (Listen::Unix(path), Host::Unix(directory)) => *path == directory.join(format!(".s.PGSQL.{port}")),
        _ => false,
    }
}
