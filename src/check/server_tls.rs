//! How the way to the server is encrypted.

use pgleash_sidecar::config::Upstream;
use pgleash_sidecar::tls::upstream::TlsMode;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Error};

use crate::check::Report;

/// Whether the session is encrypted, to whom, and whether that lasts.
pub(super) async fn ask(client: &Client, upstream: &Upstream, report: &mut Report) -> Result<(), Error> {
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
    let offered: bool = client.query_one("SELECT current_setting('ssl') = 'on'", &[]).await?.get(0);
    let is_near = is_near(upstream);
    match (encrypted, verified) {
        (Some(how), _) if is_near => report.ok("tls", format!("{how}; on this machine")),
        (Some(how), _) if upstream.tls.mode == TlsMode::Prefer => {
            let what =
                format!("{how}, but sslmode=prefer goes on in the clear if the server ever refuses TLS");
            report.warn("tls", what, "set sslmode=verify-full and sslrootcert");
        }
        (Some(how), Some(verified)) => report.ok("tls", format!("{how}; {verified}")),
        (Some(how), None) => {
            let what = format!("{how}, but anybody could have answered");
            report.warn("tls", what, "set sslmode=verify-full and sslrootcert");
        }
        (None, _) if is_near => report.ok("tls", "in the clear, on this machine"),
        (None, _) if offered => {
            let what = "in the clear over the network, although the server offers TLS: a hostssl line in its \
                        pg_hba.conf would end that";
            report.warn("tls", what, "set sslmode=verify-full and sslrootcert");
        }
        (None, _) => {
            let todo = "turn ssl on at the server, and set sslmode=verify-full";
            report.warn("tls", "in the clear over the network", todo);
        }
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
