//! The table of keys.

use std::time::Duration;

use pgleash_core::{Action, Channel, InvalidValue, Policy, PoolMode};
use pgleash_telemetry::notify::{Receiver, Template};

use crate::config::client_access::{AuthMethod, ListenerMode};
use crate::config::field::{Field, address, budget, listen, log_target, rules, show_budget, show_duration};
use crate::config::units::DAY;
use crate::config::{Config, Hosts, Token, Upstream, client_access};

/// Every key, in the order in which they are shown.
pub const KEYS: &[Key] = &[
    Key {
        name: "listen",
        default: Some("127.0.0.1:6432"),
        doc: "Where Postgres clients connect. An address that other machines reach needs auth.method and tls.cert. \
              A Unix socket is named as clients look for it: /run/pgleash/.s.PGSQL.6432",
        secret: false,
        flag: Some("--listen"),
        field: Field::Text {
            form: "an address and port, such as 127.0.0.1:6432 or [::1]:6432 (port 0: any free one), or the path \
                   of a Unix socket",
            set: |config, text| listen(text).map(|value| config.listen = value),
            show: |config| config.listen.to_string(),
        },
    },
    Key {
        name: "admin",
        default: Some("127.0.0.1:9632"),
        doc: "Where metrics, health, the page and the read-only API are served over HTTP, without a password. \
              It shows who holds which connection, and no SQL but the statements of suspects, without their values.",
        secret: false,
        flag: Some("--admin"),
        field: Field::Text {
            form: "an address and port, such as 127.0.0.1:9632 (port 0: any free one)",
            set: |config, text| address(text).map(|value| config.admin = value),
            show: |config| config.admin.to_string(),
        },
    },
    Key {
        name: "admin_hosts",
        default: Some("off"),
        doc: "Names by which a browser may ask for the page and the API of admin, and for control, besides addresses \
              and localhost. A request by another name is refused with 421. Metrics, health and readiness are \
              answered by any name.",
        secret: false,
        flag: None,
        field: Field::Text {
            form: "off, names with commas between, such as pgleash.internal, *.example.com, or * for any",
            set: |config, text| Hosts::parse(text).map(|value| config.admin_hosts = value),
            show: |config| config.admin_hosts.to_string(),
        },
    },
    Key {
        name: "control",
        default: Some("off"),
        doc: "Where pause, resume, reload and the reclaim of a checkout are asked for over HTTP, by whoever shows \
              the token.",
        secret: false,
        flag: None,
        field: Field::Text {
            form: "off, or a loopback address and port, such as 127.0.0.1:9633 (port 0: any free one)",
            set: |config, text| optional(text, address).map(|value| config.control = value),
            show: |config| config.control.map_or_else(|| OFF.to_owned(), |address| address.to_string()),
        },
    },
    Key {
        name: "control_token",
        default: Some("off"),
        doc: "What a request to control must show: Authorization: Bearer and this. Better kept out of this \
              file: set PGLEASH_CONTROL_TOKEN, or name a file.",
        secret: true,
        flag: None,
        field: Field::Text {
            form: "off, 16 to 1024 letters, digits and signs, or file: and the path of a file that holds them",
            set: |config, text| optional(text, Token::parse).map(|value| config.control_token = value),
            show: |config| config.control_token.as_ref().map_or(OFF, |_| "***").to_owned(),
        },
    },
    Key {
        name: "handover",
        default: Some("off"),
        doc: "The path of a Unix socket through which a second pgleash of the same user, started with the same \
              path, takes over the listening sockets, so that an upgrade drops no client.",
        secret: false,
        flag: None,
        field: Field::Text {
            form: "off, or a path, such as /run/pgleash/handover.sock",
            set: |config, text| optional(text, |path| Ok(path.into())).map(|value| config.handover = value),
            show: |config| {
                config.handover.as_ref().map_or_else(|| OFF.to_owned(), |path| path.display().to_string())
            },
        },
    },
    Key {
        name: "workers",
        default: Some("1"),
        doc: "Threads that relay traffic. One serves tens of thousands of transactions per second.",
        secret: false,
        flag: None,
        field: Field::Count { unit: "threads", min: 1, max: 256, at: |config| &mut config.workers },
    },
    Key {
        name: "drain_timeout",
        default: Some("30s"),
        doc: "After SIGTERM, how long clients may take to finish before they are cut off.",
        secret: false,
        flag: None,
        field: Field::Time { min: Duration::ZERO, max: HOUR, at: |config| &mut config.drain_timeout },
    },
    Key {
        name: "upstream.url",
        default: None,
        doc: "The Postgres server behind the sidecar. Several hosts, target_session_attrs, connect_timeout, \
              sslmode, sslrootcert, sslcert and sslkey as in libpq; connect_timeout is 5 s if not given. A password is better \
              kept out of this file: set PGLEASH_UPSTREAM_URL.",
        secret: true,
        flag: Some("--upstream"),
        field: Field::Text {
            form: "postgres://user:password@host:port/database?sslmode=verify-full; special characters in the \
                   password are percent-encoded",
            set: |config, text| Upstream::parse(text).map(|value| config.upstream = value),
            show: |config| config.upstream.redacted().to_owned(),
        },
    },
    Key {
        name: "auth.method",
        default: Some("trust"),
        doc: "What clients have to show: nothing, which is for clients of this machine only, or that they know \
              their password. Passwords in the clear and MD5 are not offered.",
        secret: false,
        flag: None,
        field: Field::Choice {
            of: &[
                ("trust", |config| config.auth.method = AuthMethod::Trust),
                ("scram-sha-256", |config| config.auth.method = AuthMethod::Scram),
            ],
            show: |config| match config.auth.method {
                AuthMethod::Trust => "trust",
                AuthMethod::Scram => "scram-sha-256",
            },
        },
    },
    Key {
        name: "auth.users",
        default: Some("off"),
        doc: "A TOML file of users, one a line: name = \"password\", or name = \"SCRAM-SHA-256$...\" as in \
              pg_authid, or name = { env = \"VARIABLE\" } for either. A password is also used to log in to the \
              server as that user; with a verifier alone the server has to let pgleash in without one. Read again \
              when it changes.",
        secret: false,
        flag: None,
        field: Field::Text {
            form: "off, or the path of a file",
            set: |config, text| client_access::path(text).map(|value| config.auth.users = value),
            show: |config| client_access::show_path(config.auth.users.as_ref()),
        },
    },
    Key {
        name: "auth.query",
        default: Some("off"),
        doc: "Asks the server for the SCRAM verifier of a user who is not in auth.users; the last column is it. Run \
              as the user of upstream.url in its database, with search_path = pg_catalog and nothing of the \
              client's but the name. Answers are kept for 30 s, at most 1000 of them.",
        secret: false,
        flag: None,
        field: Field::Text {
            form: "off, or SQL with $1 for the user's name, such as SELECT rolname, rolpassword FROM pg_authid WHERE \
                   rolname = $1, or SELECT * FROM pgleash.lookup($1) with a SECURITY DEFINER function",
            set: |config, text| client_access::query(text).map(|value| config.auth.query = value),
            show: |config| config.auth.query.clone().unwrap_or_else(|| "off".to_owned()),
        },
    },
    Key {
        name: "tls.mode",
        default: Some("auto"),
        doc: "Who may go unencrypted once there is a certificate: with auto clients of this machine, with require \
              only those of a Unix socket, with allow everybody.",
        secret: false,
        flag: None,
        field: Field::Choice {
            of: &[
                ("auto", |config| config.tls.mode = ListenerMode::Auto),
                ("require", |config| config.tls.mode = ListenerMode::Require),
                ("allow", |config| config.tls.mode = ListenerMode::Allow),
            ],
            show: |config| match config.tls.mode {
                ListenerMode::Auto => "auto",
                ListenerMode::Require => "require",
                ListenerMode::Allow => "allow",
            },
        },
    },
    Key {
        name: "tls.cert",
        default: Some("off"),
        doc: "The certificate that clients are shown, with those between it and its authority, PEM. Read again when \
              it changes.",
        secret: false,
        flag: None,
        field: Field::Text {
            form: "off, or the path of a file",
            set: |config, text| client_access::path(text).map(|value| config.tls.cert = value),
            show: |config| client_access::show_path(config.tls.cert.as_ref()),
        },
    },
    Key {
        name: "tls.key",
        default: Some("off"),
        doc: "The private key of tls.cert, PEM, without a passphrase.",
        secret: false,
        flag: None,
        field: Field::Text {
            form: "off, or the path of a file",
            set: |config, text| client_access::path(text).map(|value| config.tls.key = value),
            show: |config| client_access::show_path(config.tls.key.as_ref()),
        },
    },
    Key {
        name: "tls.client_ca",
        default: Some("off"),
        doc: "The authorities, PEM, that the certificate of a client must be signed by. With it every client that \
              comes encrypted has to show one, besides its password.",
        secret: false,
        flag: None,
        field: Field::Text {
            form: "off, or the path of a file",
            set: |config, text| client_access::path(text).map(|value| config.tls.client_ca = value),
            show: |config| client_access::show_path(config.tls.client_ca.as_ref()),
        },
    },
    Key {
        name: "pool.mode",
        default: Some("transaction"),
        doc: "When a server connection is given back: at the end of each transaction, or when the client \
              disconnects.",
        secret: false,
        flag: None,
        field: Field::Choice {
            of: &[
                ("transaction", |config| config.policy.mode = PoolMode::Transaction),
                ("session", |config| config.policy.mode = PoolMode::Session),
            ],
            show: |config| config.policy.mode.as_str(),
        },
    },
    Key {
        name: "pool.size",
        default: Some("20"),
        doc: "Server connections for each (database, user).",
        secret: false,
        flag: None,
        field: Field::Count {
            unit: "connections",
            min: 1,
            max: Policy::MAX_SIZE,
            at: |config| &mut config.policy.size,
        },
    },
    Key {
        name: "pool.wait_timeout",
        default: Some("5s"),
        doc: "How long a client waits for a server connection before it is told 53300 (too many connections).",
        secret: false,
        flag: None,
        field: Field::Time { min: MILLISECOND, max: HOUR, at: |config| &mut config.policy.wait_timeout },
    },
    Key {
        name: "pool.max_clients",
        default: Some("1000"),
        doc: "Client sessions at one time, over all pools.",
        secret: false,
        flag: None,
        field: Field::Count { unit: "clients", min: 1, max: 100_000, at: |config| &mut config.max_clients },
    },
    Key {
        name: "pool.max_lifetime",
        default: Some("30m"),
        doc: "Age at which a server connection is replaced, less up to 10 % so that they do not all go at once. \
              A connection that is held past it is reported as overdue.",
        secret: false,
        flag: None,
        field: Field::Time { min: TENTH, max: MONTH, at: |config| &mut config.policy.max_lifetime },
    },
    Key {
        name: "pool.idle_timeout",
        default: Some("10m"),
        doc: "An unused server connection is closed after this.",
        secret: false,
        flag: None,
        field: Field::Time { min: TENTH, max: MONTH, at: |config| &mut config.policy.idle_timeout },
    },
    Key {
        name: "leaks.action",
        default: Some("reclaim"),
        doc: "What is done about a leak: take the connection back, or only say so.",
        secret: false,
        flag: None,
        field: Field::Choice {
            of: &[
                ("reclaim", |config| config.policy.action = Action::Reclaim),
                ("observe", |config| config.policy.action = Action::Observe),
            ],
            show: |config| config.policy.action.as_str(),
        },
    },
    Key {
        name: "leaks.idle_in_transaction",
        default: Some("30s"),
        doc: "A connection that is held in an open transaction with nothing in flight is suspect at half of \
              this, and taken back at the whole of it.",
        secret: false,
        flag: None,
        field: Field::Time { min: HUNDREDTH, max: DAY, at: |config| &mut config.policy.idle_in_transaction },
    },
    Key {
        name: "leaks.idle_session",
        default: Some("10m"),
        doc: "The same for a connection that is held outside a transaction.",
        secret: false,
        flag: None,
        field: Field::Time { min: HUNDREDTH, max: MONTH, at: |config| &mut config.policy.idle_session },
    },
    Key {
        name: "leaks.floor",
        default: Some("5s"),
        doc: "The limits above are ceilings. Where pgleash knows what is usual, a checkout is suspect after three times \
              the longest healthy pause of its kind of work, but no sooner than this. As high as a ceiling, that \
              ceiling alone counts.",
        secret: false,
        flag: None,
        field: Field::Time { min: HUNDREDTH, max: MONTH, at: |config| &mut config.policy.floor },
    },
    Key {
        name: "leaks.rules",
        default: Some("off"),
        doc: "Whose pauses may be longer, or are never a leak: app, user, database and route, with * for anything, \
              and what they are granted. The first rule that applies counts.",
        secret: false,
        flag: None,
        field: Field::Text {
            form: "off, or rules such as app=nightly*, user=etl never; route=GET /export 10m",
            set: |config, text| rules(text).map(|value| config.policy.rules = value),
            show: |config| config.policy.rules.to_string(),
        },
    },
    Key {
        name: "leaks.longest_hold",
        default: Some("15m"),
        doc: "How long a pause an application may announce: SET LOCAL pgleash.hold = '10m' in its transaction, or \
              pgleash_hold='10m' in a comment of a statement. 0s: none.",
        secret: false,
        flag: None,
        field: Field::Time { min: Duration::ZERO, max: MONTH, at: |config| &mut config.policy.longest_hold },
    },
    Key {
        name: "leaks.budget",
        default: Some("25%/1m"),
        doc: "The most that may be taken from live holders: a share of the pool per time.",
        secret: false,
        flag: None,
        field: Field::Text {
            form: "a share of the pool per time, such as 25%/1m: 0% to 100%, 1s to 1day",
            set: |config, text| budget(text).map(|value| config.policy.budget = value),
            show: |config| show_budget(config.policy.budget),
        },
    },
    Key {
        name: "events.log",
        default: Some("stdout"),
        doc: "Where events are written, as JSON lines.",
        secret: false,
        flag: None,
        field: Field::Text {
            form: "stdout, or the path of a file, which is appended to",
            set: |config, text| log_target(text).map(|value| config.log = value),
            show: |config| config.log.to_string(),
        },
    },
    Key {
        name: "events.webhook",
        default: Some("off"),
        doc: "Where events, but not the coming and going of connections, are posted as a CloudEvents 1.0 message, signed with the secret as Standard Webhooks has it.",
        secret: true,
        flag: None,
        field: Field::Text {
            form: "off, https://:secret@host/path, or file: and the path of a file that holds it",
            set: |config, text| receiver(config, Channel::Webhook, text),
            show: |config| show_receiver(config, Channel::Webhook),
        },
    },
    Key {
        name: "events.slack",
        default: Some("off"),
        doc: "An incoming webhook of Slack, which is told when an incident begins and when it is over.",
        secret: true,
        flag: None,
        field: Field::Text {
            form: "off, https://hooks.slack.com/services/..., or file: and the path of a file that holds it",
            set: |config, text| receiver(config, Channel::Slack, text),
            show: |config| show_receiver(config, Channel::Slack),
        },
    },
    Key {
        name: "events.pagerduty",
        default: Some("off"),
        doc: "The integration key of an Events API v2 integration of PagerDuty: incidents are triggered and resolved. With a host it goes there.",
        secret: true,
        flag: None,
        field: Field::Text {
            form: "off, the key, https://key@events.eu.pagerduty.com, or file: and the path of a file that holds it",
            set: |config, text| receiver(config, Channel::PagerDuty, text),
            show: |config| show_receiver(config, Channel::PagerDuty),
        },
    },
    Key {
        name: "events.grafana",
        default: Some("off"),
        doc: "A Grafana whose boards get an annotation for each incident, by a service account that may create annotations.",
        secret: true,
        flag: None,
        field: Field::Text {
            form: "off, https://:token@host, or file: and the path of a file that holds it",
            set: |config, text| receiver(config, Channel::Grafana, text),
            show: |config| show_receiver(config, Channel::Grafana),
        },
    },
    Key {
        name: "events.template",
        default: Some(Template::DEFAULT),
        doc: "The words for Slack, PagerDuty and Grafana, in Jinja's syntax. At hand are instance, status, severity, \
              what, pool, app, count and summary.",
        secret: false,
        flag: None,
        field: Field::Text {
            form: "up to 4096 bytes",
            set: |config, text| Template::parse(text).map(|value| config.receivers.template = value),
            show: |config| config.receivers.template.to_string(),
        },
    },
];

const MILLISECOND: Duration = Duration::from_millis(1);
const HUNDREDTH: Duration = Duration::from_millis(10);
const TENTH: Duration = Duration::from_millis(100);
const HOUR: Duration = Duration::from_secs(3600);
const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// What stands for none.
const OFF: &str = "off";

fn receiver(config: &mut Config, channel: Channel, text: &str) -> Result<(), InvalidValue> {
    optional(text, |text| Receiver::parse(channel, text)).map(|target| config.receivers.set(channel, target))
}

fn show_receiver(config: &Config, channel: Channel) -> String {
    config.receivers.of(channel).map_or_else(|| OFF.to_owned(), Receiver::shown)
}

fn optional<T>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, InvalidValue>,
) -> Result<Option<T>, InvalidValue> {
    if text == OFF { Ok(None) } else { parse(text).map(Some) }
}

/// Finds a key by its dotted name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// One key.
pub struct Key {
    /// Dotted, as sections and keys are in the file.
    pub name: &'static str,
    /// As it would be written; `None` where a value is required.
    pub default: Option<&'static str>,
    /// What it is for.
    pub doc: &'static str,
    /// Whether a value may hold a secret, and so must not be echoed.
    pub secret: bool,
    /// Its own flag, beside `--set`.
    pub flag: Option<&'static str>,
    /// Its type, its range, and its place in `Config`.
    pub field: Field,
}

impl Key {
    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("PGLEASH_{}", self.name.replace('.', "_").to_uppercase())
    }

    /// What it accepts, in words.
    pub fn allowed(&self) -> String {
        match &self.field {
            Field::Count { unit, min, max, .. } => format!("{min} to {max} {unit}"),
            Field::Time { min, max, .. } => format!(
                "{} to {}, written with a unit: 1500ms, 30s, 5m, 1h",
                show_duration(*min),
                show_duration(*max)
            ),
            Field::Choice { of, .. } => of.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or "),
            Field::Text { form, .. } => (*form).to_owned(),
        }
    }
}
