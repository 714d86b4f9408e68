//! What only the upstream server can tell.

use std::error::Error as _;
use std::fmt::Write;
use std::io;
use std::time::Duration;

use pgleash_core::Policy;
use pgleash_sidecar::config::{Config, Upstream};
use pgleash_sidecar::tls::upstream;
use pgleash_sidecar::tls::upstream::TlsMode;
use tokio::time::timeout;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::check::Report;

/// How long any one question to the server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a cancelled or terminated session may take to end.
const DEADLINE: Duration = Duration::from_secs(5);

/// The oldest major version that PostgreSQL's own project still mends.
const OLDEST: i32 = 14;

pub(super) async fn look(config: &Config, report: &mut Report) {
    let tls = match upstream::connector(&config.upstream.tls) {
        Ok(tls) => tls,
        Err(error) => return report.fail("tls", error.to_string()),
    };
    let client = match connect(&config.upstream, &tls).await {
        Ok(client) => client,
        Err(error) => {
            return report.fail("upstream", format!("{}: {error}", config.upstream.redacted()));
        }
    };
    let asked = timeout(PATIENCE, ask(&client, config, report)).await;
    match asked {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return report.fail("upstream", explain(&error)),
        Err(_) => return report.fail("upstream", format!("gave no answer within {} s", PATIENCE.as_secs())),
    }
    match timeout(PATIENCE, try_cancel(&config.upstream, &tls)).await {
        Ok(Ok(())) => report.ok("cancel", "a running statement can be cancelled"),
        Ok(Err(why)) => report.fail("cancel", why),
        Err(_) => report.fail(
            "cancel",
            "a cancelled statement went on: is there a proxy in front of the server that drops CancelRequest?",
        ),
    }
    match timeout(PATIENCE, try_terminate(&client, &config.upstream, &tls)).await {
        Ok(Ok(())) => report.ok("terminate", "the role may terminate its own backends"),
        Ok(Err(why)) => report.fail("terminate", why),
        Err(_) => report.fail("terminate", "a terminated backend did not go away"),
    }
}

async fn connect(upstream: &Upstream, tls: &MakeRustlsConnect) -> Result<Client, String> {
    let mut postgres = upstream.postgres.clone();
    postgres.application_name("pgleash check");
    match timeout(PATIENCE, postgres.connect(tls.clone())).await {
        Ok(Ok((client, connection))) => {
            tokio::spawn(connection);
            Ok(client)
        }
        Ok(Err(error)) => Err(explain(&error)),
        Err(_) => Err(format!(
            "no login within {} s: the server is overloaded or is not Postgres",
            PATIENCE.as_secs()
        )),
    }
}

async fn ask(client: &Client, config: &Config, report: &mut Report) -> Result<(), Error> {
    ask_version(client, &config.upstream, report).await?;
    ask_encryption(client, &config.upstream, report).await?;
    ask_capacity(client, config.policy.size, report).await?;
    ask_privileges(client, report).await?;
    ask_timeouts(client, &config.policy, report).await
}

async fn ask_version(client: &Client, upstream: &Upstream, report: &mut Report) -> Result<(), Error> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version'), current_setting('server_version_num')::int4 / 10000,
                    pg_is_in_recovery(), current_user::text",
            &[],
        )
        .await?;
    let (version, major): (String, i32) = (row.get(0), row.get(1));
    let kind = if row.get(2) { "standby, read-only" } else { "primary" };
    let user: String = row.get(3);
    report.ok("upstream", format!("{} answers; logged in as {user}", upstream.redacted()));
    if major < OLDEST {
        report.warn("version", format!("PostgreSQL {version} ({kind}) no longer gets security fixes"));
    } else {
        report.ok("version", format!("PostgreSQL {version} ({kind})"));
    }
    Ok(())
}

async fn ask_encryption(client: &Client, upstream: &Upstream, report: &mut Report) -> Result<(), Error> {
    let row = client
        .query_opt(
            "SELECT ssl, coalesce(version, ''), coalesce(cipher, '') FROM pg_stat_ssl
             WHERE pid = pg_backend_pid()",
            &[],
        )
        .await?;
    let encrypted = row
        .filter(|row| row.get(0))
        .map(|row| format!("{} {}", row.get::<_, &str>(1), row.get::<_, &str>(2)));
    let verified = match (upstream.tls.mode, &upstream.tls.root_cert) {
        (TlsMode::VerifyFull, _) => Some("the certificate's chain and name are verified"),
        (TlsMode::VerifyCa, _) | (TlsMode::Prefer | TlsMode::Require, Some(_)) => {
            Some("the certificate's chain is verified, its name is not")
        }
        (TlsMode::Disable | TlsMode::Prefer | TlsMode::Require, _) => None,
    };
    match (encrypted, verified) {
        (Some(how), Some(verified)) => report.ok("tls", format!("{how}; {verified}")),
        (Some(how), None) if is_near(upstream) => report.ok("tls", format!("{how}; on this machine")),
        (Some(how), None) => report.warn(
            "tls",
            format!("{how}, but anybody could have answered: set sslmode=verify-full and sslrootcert"),
        ),
        (None, _) if is_near(upstream) => report.ok("tls", "in the clear, on this machine"),
        (None, _) => report.warn("tls", "in the clear over the network: set sslmode=verify-full"),
    }
    Ok(())
}

/// Whether every host is this machine.
fn is_near(upstream: &Upstream) -> bool {
    upstream.postgres.get_hosts().iter().all(|host| match host {
        Host::Tcp(host) => {
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        Host::Unix(_) => true,
    })
}

async fn ask_capacity(client: &Client, size: usize, report: &mut Report) -> Result<(), Error> {
    let row = client
        .query_one(
            "SELECT current_setting('max_connections')::int8,
                    current_setting('superuser_reserved_connections')::int8
                      + coalesce(current_setting('reserved_connections', true)::int8, 0),
                    (SELECT sum(numbackends)::int8 - 1 FROM pg_stat_database),
                    (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user)::int8,
                    (SELECT datconnlimit FROM pg_database WHERE datname = current_database())::int8",
            &[],
        )
        .await?;
    let (max, reserved, used): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    let limits: [(&str, Option<i64>); 2] = [("the role", row.get(3)), ("the database", row.get(4))];
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let open = max - reserved;
    let sum =
        format!("pool.size {size}, max_connections {max} less {reserved} reserved, {used} in use by others");
    if size > open {
        report.fail(
            "connections",
            format!("{sum}: the pool can never be filled; lower pool.size to {open} or less"),
        );
    } else if size + used > open {
        report.warn("connections", format!("{sum}: there is no room now for the whole pool"));
    } else {
        report.ok("connections", sum);
    }
    for (whose, limit) in limits {
        if let Some(limit) = limit.filter(|limit| (0..size).contains(limit)) {
            report.fail(
                "connections",
                format!("pool.size {size} is over the connection limit of {whose}, {limit}"),
            );
        }
    }
    Ok(())
}

async fn ask_privileges(client: &Client, report: &mut Report) -> Result<(), Error> {
    let row = client
        .query_one(
            "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), quote_ident(current_user)",
            &[],
        )
        .await?;
    let user: String = row.get(1);
    if row.get(0) {
        report.ok("visibility", "the role sees every session in pg_stat_activity");
    } else {
        report.warn(
            "visibility",
            format!("the role sees only its own sessions in pg_stat_activity; to see all: GRANT pg_monitor TO {user}"),
        );
    }
    Ok(())
}

/// A timeout of the server that is shorter than ours acts first, and we do not see why.
async fn ask_timeouts(client: &Client, policy: &Policy, report: &mut Report) -> Result<(), Error> {
    let rows = client
        .query(
            "SELECT name, setting::int8 FROM pg_settings
             WHERE name IN ('idle_in_transaction_session_timeout', 'idle_session_timeout') AND setting <> '0'
             ORDER BY name",
            &[],
        )
        .await?;
    for row in rows {
        let (name, millis): (&str, i64) = (row.get(0), row.get(1));
        let theirs = Duration::from_millis(u64::try_from(millis).unwrap_or_default());
        let shown = humantime::format_duration(theirs);
        let (ours, key) = match name {
            "idle_in_transaction_session_timeout" => {
                (policy.idle_in_transaction, "leaks.idle_in_transaction")
            }
            _ => (policy.idle_timeout.max(policy.idle_session), "pool.idle_timeout and leaks.idle_session"),
        };
        if theirs <= ours {
            report.warn(
                "timeouts",
                format!(
                    "the server's {name} ({shown}) acts before pgleash does: set {key} below it, or raise it"
                ),
            );
        }
    }
    Ok(())
}

/// Runs a statement that would take long, and cancels it as the sidecar cancels one whose client has died.
async fn try_cancel(upstream: &Upstream, tls: &MakeRustlsConnect) -> Result<(), String> {
    let client = connect(upstream, tls).await?;
    let token = client.cancel_token();
    let statement = client.simple_query("SELECT pg_sleep(60)");
    tokio::pin!(statement);
    let mut again = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            ended = &mut statement => return match ended {
                Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => Ok(()),
                Err(error) => Err(explain(&error)),
                Ok(_) => Err("the statement ended by itself".into()),
            },
            // The first may come before the statement has begun, so it is sent until it is heard.
            _ = again.tick() => token.cancel_query(tls.clone()).await.map_err(|error| explain(&error))?,
        }
    }
}

/// Ends a session of our own as the sidecar does when one must go, and sees that it is gone.
async fn try_terminate(client: &Client, upstream: &Upstream, tls: &MakeRustlsConnect) -> Result<(), String> {
    let victim = connect(upstream, tls).await?;
    let said = |error: Error| explain(&error);
    let pid: i32 = victim.query_one("SELECT pg_backend_pid()", &[]).await.map_err(said)?.get(0);
    client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).await.map_err(said)?;
    let is_gone = async {
        let mut again = tokio::time::interval(Duration::from_millis(50));
        loop {
            again.tick().await;
            let row = client.query_one("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", &[&pid]).await;
            if row.map_err(said)?.get::<_, i64>(0) == 0 {
                return Ok(());
            }
        }
    };
    match timeout(DEADLINE, is_gone).await {
        Ok(done) => done,
        Err(_) => {
            Err(format!("backend {pid} was still there {} s after it was terminated", DEADLINE.as_secs()))
        }
    }
}

/// An error with its causes, and what to do about the usual ones.
fn explain(error: &Error) -> String {
    let mut text = match error.as_db_error() {
        Some(refusal) => format!("{} ({})", refusal.message(), refusal.code().code()),
        None => error.to_string(),
    };
    let mut cause = if error.as_db_error().is_some() { None } else { error.source() };
    let mut hint = error.code().and_then(hint_for_state);
    while let Some(inner) = cause {
        let _ = write!(text, ": {inner}");
        if let Some(inner) = inner.downcast_ref::<io::Error>() {
            hint = hint.or_else(|| hint_for_io(inner));
        }
        cause = inner.source();
    }
    if text.contains("does not support TLS") {
        hint = Some("turn ssl on at the server, or set sslmode=prefer");
    }
    match hint {
        Some(hint) => format!("{text}. To do: {hint}"),
        None => text,
    }
}

fn hint_for_state(state: &SqlState) -> Option<&'static str> {
    match *state {
        SqlState::INVALID_PASSWORD => Some("put the right password into PGLEASH_UPSTREAM_URL"),
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            Some("check the user name, and the line of pg_hba.conf for this address")
        }
        SqlState::INVALID_CATALOG_NAME => Some("name a database that exists, after the host in upstream.url"),
        SqlState::TOO_MANY_CONNECTIONS => {
            Some("the server is full: lower pool.size, or raise max_connections")
        }
        SqlState::CANNOT_CONNECT_NOW => Some("the server is starting or stopping: try again"),
        _ => None,
    }
}

fn hint_for_io(error: &io::Error) -> Option<&'static str> {
    use rustls::CertificateError::{NotValidForName, NotValidForNameContext, Other, UnknownIssuer};
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            return Some("see that Postgres runs, and that host and port are right");
        }
        io::ErrorKind::NotFound => {
            return Some("see that Postgres runs, and that the socket's directory is right");
        }
        _ => {}
    }
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(UnknownIssuer) => {
            Some("name the authority's certificate with sslrootcert")
        }
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            Some("connect by a name that is in the certificate, or set sslmode=verify-ca")
        }
        rustls::Error::InvalidCertificate(Other(_)) => {
            Some("the server's certificate must be signed by the authority in sslrootcert, not be it")
        }
        _ => None,
    }
}
