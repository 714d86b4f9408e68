//! `upstream.url`: a libpq URL, read for tokio-postgres and rustls.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use pgleash_core::InvalidValue;
use tokio_postgres::config::{Host, SslMode, SslNegotiation, TargetSessionAttrs};

use crate::tls::upstream::{TlsMode, UpstreamTls};
use crate::upstream::connector::SessionAttrs;

/// How long one attempt to connect may take, unless the URL says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Options that are passed on as they are.
const OPTIONS: &[&str] = &[
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// The Postgres server behind the sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Hosts, ports, user, password, database, `target_session_attrs`, timeouts. Its `ssl_mode` agrees with
    /// `tls.mode`.
    pub postgres: tokio_postgres::Config,
    /// Whether to encrypt and whom to trust. The mode is `disable` where every host is a Unix socket, as
    /// TLS is not spoken there.
    pub tls: UpstreamTls,
    /// Which of the hosts will do.
    pub attrs: SessionAttrs,
    shown: String,
}

impl Upstream {
    /// Reads a `postgres://` URL.
    ///
    /// # Errors
    /// What is wrong with it. No part of the URL is repeated, except the name of a known option.
    pub fn parse(url: &str) -> Result<Self, InvalidValue> {
        let parts = Parts::split(url)?;
        let mut passed_on = Vec::new();
        let (mut mode, mut root_cert, mut own_cert, mut own_key) = (None, None, None, None);
        let mut attrs = SessionAttrs::Any;
        for (name, value) in parts.options()? {
            match name {
                "sslmode" => mode = Some(tls_mode(value)?),
                "sslrootcert" => root_cert = Some(decoded(value)?),
                "sslcert" => own_cert = Some(PathBuf::from(decoded(value)?)),
                "sslkey" => own_key = Some(PathBuf::from(decoded(value)?)),
                "target_session_attrs" => attrs = session_attrs(value)?,
                name => passed_on.push(format!("{name}={}", value.replace('@', "%40"))),
            }
        }
        let mut tls = tls(mode, root_cert)?;
        tls.own_cert = pair(own_cert, own_key)?;
        let mut postgres: tokio_postgres::Config =
            format!("postgres://{}?{}", parts.place, passed_on.join("&")).parse().map_err(not_understood)?;
        check_hosts(&postgres)?;
        let only_sockets = postgres.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        if only_sockets {
            tls.mode = TlsMode::Disable;
        }
        postgres.ssl_mode(ssl_mode(tls.mode));
        match attrs {
            SessionAttrs::ReadWrite => postgres.target_session_attrs(TargetSessionAttrs::ReadWrite),
            SessionAttrs::ReadOnly => postgres.target_session_attrs(TargetSessionAttrs::ReadOnly),
            _ => &mut postgres,
        };
        if postgres.get_ssl_negotiation() == SslNegotiation::Direct && tls.mode < TlsMode::Require {
            return Err(InvalidValue::new(
                "has sslnegotiation=direct with an sslmode that may go unencrypted",
                "write sslmode=verify-full, or require at the least",
            ));
        }
        if postgres.get_connect_timeout().is_none() {
            postgres.connect_timeout(CONNECT_TIMEOUT);
        }
        Ok(Self { postgres, tls, attrs, shown: parts.redacted() })
    }

    /// The URL with the password replaced by `***`.
    pub fn redacted(&self) -> &str {
        &self.shown
    }

    /// Each host with its port.
    pub fn addresses(&self) -> impl Iterator<Item = (&Host, u16)> {
        let ports = self.postgres.get_ports();
        let hosts = self.postgres.get_hosts().iter().enumerate();
        hosts.map(|(at, host)| (host, *ports.get(at).or(ports.first()).unwrap_or(&5432)))
    }

    /// Before `upstream.url` is read.
    pub(super) fn nowhere() -> Self {
        Self {
            postgres: tokio_postgres::Config::new(),
            tls: UpstreamTls { mode: TlsMode::Prefer, root_cert: None, own_cert: None },
            attrs: SessionAttrs::Any,
            shown: String::new(),
        }
    }
}

/// A URL cut at its `?`.
struct Parts<'a> {
    /// Credentials, hosts and database.
    place: &'a str,
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn split(url: &'a str) -> Result<Self, InvalidValue> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let rest = rest.ok_or_else(|| {
            InvalidValue::new(
                "does not begin with postgres://",
                "write it as a URL: postgres://user@host:5432/database",
            )
        })?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let authority = place.split('/').next().unwrap_or_default();
        if place.matches('@').count() > 1 || place.matches('@').count() > authority.matches('@').count() {
            return Err(InvalidValue::new(
                "has an @ or a / that belongs to the user name or the password, but is not encoded",
                "percent-encode them: @ is %40, / is %2F, ? is %3F, % is %25",
            ));
        }
        Ok(Self { place, query })
    }

    fn options(&self) -> Result<Vec<(&'a str, &'a str)>, InvalidValue> {
        self.query.split('&').filter(|pair| !pair.is_empty()).map(option).collect()
    }

    fn redacted(&self) -> String {
        let place = match self.place.split_once('@') {
            Some((credentials, hosts)) => match credentials.split_once(':') {
                Some((user, _)) => format!("{user}:***@{hosts}"),
                None => self.place.to_owned(),
            },
            None => self.place.to_owned(),
        };
        let hide = |pair: &str| match pair.split_once('=') {
            Some(("password", _)) => "password=***".to_owned(),
            _ => pair.to_owned(),
        };
        let query = self.query.split('&').map(hide).collect::<Vec<_>>().join("&");
        let mark = if query.is_empty() { "" } else { "?" };
        format!("postgres://{place}{mark}{query}")
    }
}

fn option(pair: &str) -> Result<(&str, &str), InvalidValue> {
    let known = || format!("known are {}", OPTIONS.join(", "));
    let Some((name, value)) = pair.split_once('=') else {
        return Err(InvalidValue::new("has an option without a value after its ?", "write it as name=value"));
    };
    if OPTIONS.contains(&name) {
        return Ok((name, value));
    }
    let nearest = OPTIONS.iter().find(|option| strsim::normalized_damerau_levenshtein(option, name) > 0.7);
    match nearest {
        Some(nearest) => Err(InvalidValue::new(
            "has an option that is not known",
            format!("did you mean {nearest}? {}", known()),
        )),
        None => Err(InvalidValue::new("has an option that is not known", known())),
    }
}

fn tls_mode(value: &str) -> Result<TlsMode, InvalidValue> {
    if value == "allow" {
        return Err(InvalidValue::new(
            "has sslmode=allow, which is not supported: it encrypts only if the server insists",
            "write prefer, which encrypts if the server can, or better verify-full",
        ));
    }
    TlsMode::ALL.into_iter().find(|mode| mode.as_str() == value).ok_or_else(|| {
        let known = TlsMode::ALL.map(TlsMode::as_str).join(", ");
        InvalidValue::new("has an sslmode that is not known", format!("choose one of {known}"))
    })
}

fn session_attrs(value: &str) -> Result<SessionAttrs, InvalidValue> {
    let found = SessionAttrs::ALL.iter().find(|(word, _)| *word == value);
    found.map(|(_, attrs)| *attrs).ok_or_else(|| {
        let known = SessionAttrs::ALL.map(|(word, _)| word).join(", ");
        InvalidValue::new("has a target_session_attrs that is not known", format!("choose one of {known}"))
    })
}

/// How tokio-postgres calls it: whom to trust is the connector's matter.
fn ssl_mode(mode: TlsMode) -> SslMode {
    match mode {
        TlsMode::Disable => SslMode::Disable,
        TlsMode::Prefer => SslMode::Prefer,
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
    }
}

/// libpq's rules: `prefer` is the default, and `sslrootcert=system` means the system's authorities with
/// full verification.
fn tls(mode: Option<TlsMode>, root_cert: Option<String>) -> Result<UpstreamTls, InvalidValue> {
    match root_cert.as_deref() {
        Some("system") if mode.is_some_and(|mode| mode != TlsMode::VerifyFull) => Err(InvalidValue::new(
            "has sslrootcert=system with an sslmode that does not verify the server's name",
            "write sslmode=verify-full, or leave sslmode out",
        )),
        Some("system") => Ok(UpstreamTls { mode: TlsMode::VerifyFull, root_cert: None, own_cert: None }),
        Some("") => {
            Err(InvalidValue::new("has an empty sslrootcert", "name a PEM file, or leave sslrootcert out"))
        }
        path => {
            let root_cert = path.map(PathBuf::from);
            Ok(UpstreamTls { mode: mode.unwrap_or(TlsMode::Prefer), root_cert, own_cert: None })
        }
    }
}

fn pair(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<(PathBuf, PathBuf)>, InvalidValue> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        _ => Err(InvalidValue::new("has one of sslcert and sslkey", "name both, or neither")),
    }
}

fn decoded(value: &str) -> Result<String, InvalidValue> {
    let decoded = percent_decode_str(value).decode_utf8();
    decoded
        .map(Into::into)
        .map_err(|_| InvalidValue::new("has an option that is not UTF-8", "correct its encoding"))
}

fn check_hosts(postgres: &tokio_postgres::Config) -> Result<(), InvalidValue> {
    let (hosts, ports) = (postgres.get_hosts().len(), postgres.get_ports().len());
    if hosts == 0 {
        return Err(InvalidValue::new("names no host", "write the host after //, or after the @"));
    }
    if ports > 1 && ports != hosts {
        return Err(InvalidValue::new(
            "has a different number of ports than of hosts",
            "give one port for all hosts, or one for each",
        ));
    }
    Ok(())
}

/// What tokio-postgres says; it names options, and repeats no value.
fn not_understood(error: tokio_postgres::Error) -> InvalidValue {
    let cause = error.into_source().map_or_else(String::new, |cause| format!(": {cause}"));
    InvalidValue::new(format!("is not understood{cause}"), "correct it")
}
