//! What only the upstream server can tell.

use std::error::Error as _;
use std::fmt::Write;
use std::io;
use std::time::Duration;

use pgleash_sidecar::config::{Config, Upstream};
use pgleash_sidecar::tls::upstream;
use tokio::time::timeout;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::check::next::quoted;
use crate::check::report::Trouble;
use crate::check::{Report, server_limits, server_tls};

/// How long any one question to the server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a cancelled or terminated session may take to end.
const DEADLINE: Duration = Duration::from_secs(5);

/// What to do where nobody listens.
const NOT_THERE: &str =
    "see that Postgres runs, and that host and port, or the socket's directory, are right";

/// The oldest major version that PostgreSQL's own project still mends.
const OLDEST: i32 = 14;

pub(super) async fn look(config: &Config, report: &mut Report) {
    let tls = match upstream::connector(&config.upstream.tls) {
        Ok(tls) => tls,
        Err(error) => return report.fail_plainly("tls", error.to_string()),
    };
    let client = match connect(&config.upstream, &tls).await {
        Ok(client) => client,
        Err(Trouble { what, todo }) => {
            let what = format!("{}: {what}", config.upstream.redacted());
            report.fail_plainly("upstream", Trouble { what, todo });
            if todo == Some(NOT_THERE) {
                report.by(is_ready(&config.upstream));
            }
            return;
        }
    };
    let asked = timeout(PATIENCE, ask(&client, config, report)).await;
    match asked {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return report.fail_plainly("upstream", explain(&error)),
        Err(_) => {
            let what = format!("gave no answer within {} s", PATIENCE.as_secs());
            return report.fail_plainly("upstream", what);
        }
    }
    try_backends(&client, config, &tls, report).await;
}

/// What pgleash does to backends when it must: is it possible, and allowed?
async fn try_backends(client: &Client, config: &Config, tls: &MakeRustlsConnect, report: &mut Report) {
    let cancelled = timeout(PATIENCE, try_cancel(&config.upstream, tls)).await;
    let terminated = timeout(PATIENCE, try_terminate(client, &config.upstream, tls)).await;
    if matches!((&cancelled, &terminated), (Ok(Ok(())), Ok(Ok(())))) {
        return report.ok("backends", "a running statement can be cancelled, and a backend terminated");
    }
    match cancelled {
        Ok(Ok(())) => {}
        Ok(Err(why)) => report.fail_plainly("cancel", why),
        Err(_) => {
            let todo = "see whether a proxy in front of the server drops CancelRequest";
            report.fail("cancel", "a cancelled statement went on", todo);
        }
    }
    match terminated {
        Ok(Ok(())) => {}
        Ok(Err(why)) => report.fail_plainly("terminate", why),
        Err(_) => report.fail_plainly("terminate", "a terminated backend did not go away".to_owned()),
    }
}

/// Asks the first host whether a server is there at all.
fn is_ready(upstream: &Upstream) -> String {
    let host = match upstream.postgres.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        Some(Host::Unix(directory)) => directory.display().to_string(),
        None => "localhost".to_owned(),
    };
    let port = upstream.postgres.get_ports().first().copied().unwrap_or(5432);
    format!("pg_isready -h {} -p {port}", quoted(&host))
}

async fn connect(upstream: &Upstream, tls: &MakeRustlsConnect) -> Result<Client, Trouble> {
    let mut postgres = upstream.postgres.clone();
    postgres.application_name("pgleash check");
    match timeout(PATIENCE, postgres.connect(tls.clone())).await {
        Ok(Ok((client, connection))) => {
            tokio::spawn(connection);
            Ok(client)
        }
        Ok(Err(error)) => Err(explain(&error)),
        Err(_) => Err(Trouble {
            what: format!("no login within {} s", PATIENCE.as_secs()),
            todo: Some("see that the server is not overloaded, and that it is Postgres"),
        }),
    }
}

async fn ask(client: &Client, config: &Config, report: &mut Report) -> Result<(), Error> {
    ask_version(client, &config.upstream, report).await?;
    server_tls::ask(client, &config.upstream, report).await?;
    server_limits::ask_capacity(client, config.policy.size, report).await?;
    ask_privileges(client, report).await?;
    server_limits::ask_timeouts(client, &config.policy, report).await
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
    report.ok(
        "upstream",
        format!("{} answers as PostgreSQL {version} ({kind}); logged in as {user}", upstream.redacted()),
    );
    if major < OLDEST {
        let what = format!("PostgreSQL {version} no longer gets security fixes");
        report.warn("version", what, format!("plan an upgrade to {OLDEST} or later"));
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
            "the role sees only its own sessions in pg_stat_activity",
            format!("to see all, let a superuser run GRANT pg_monitor TO {user}"),
        );
    }
    Ok(())
}

/// Runs a statement that would take long, and cancels it as the sidecar cancels one whose client has died.
async fn try_cancel(upstream: &Upstream, tls: &MakeRustlsConnect) -> Result<(), Trouble> {
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
                Ok(_) => Err("the statement ended by itself".to_owned().into()),
            },
            // The first may come before the statement has begun, so it is sent until it is heard.
            _ = again.tick() => token.cancel_query(tls.clone()).await.map_err(|error| explain(&error))?,
        }
    }
}

/// Ends a session of our own as the sidecar does when one must go, and sees that it is gone.
async fn try_terminate(client: &Client, upstream: &Upstream, tls: &MakeRustlsConnect) -> Result<(), Trouble> {
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
            let after = DEADLINE.as_secs();
            Err(format!("backend {pid} was still there {after} s after it was terminated").into())
        }
    }
}

/// An error with its causes, and what to do about the usual ones.
fn explain(error: &Error) -> Trouble {
    let mut what = match error.as_db_error() {
        Some(refusal) => format!("{} ({})", refusal.message(), refusal.code().code()),
        None => error.to_string(),
    };
    let mut cause = if error.as_db_error().is_some() { None } else { error.source() };
    let mut hint = error.code().and_then(hint_for_state);
    while let Some(inner) = cause {
        let _ = write!(what, ": {inner}");
        if let Some(inner) = inner.downcast_ref::<io::Error>() {
            hint = hint.or_else(|| hint_for_io(inner));
        }
        cause = inner.source();
    }
    if what.contains("does not support TLS") {
        hint = Some("turn ssl on at the server, or set sslmode=prefer");
    }
    Trouble { what, todo: hint }
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
    if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) {
        return Some(NOT_THERE);
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
