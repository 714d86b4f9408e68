//! Where the clients connect: the PG* variables; over TLS if there is an authority to trust.

use std::fmt::Debug;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::config::{ChannelBinding, SslMode};
use tokio_postgres::{Client, Config, Connection, Error, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

fn authority() -> Option<String> {
    std::env::var("PGSSLROOTCERT").ok()
}

/// A URL of the place.
pub fn url(application_name: &str) -> String {
    let (user, host, port, database) = (var("PGUSER"), var("PGHOST"), var("PGPORT"), var("PGDATABASE"));
    format!("postgres://{user}@{host}:{port}/{database}?application_name={application_name}")
}

/// The TLS of tokio-postgres and diesel-async: who shows no certificate of the authority's is not talked to.
pub fn tls() -> MakeRustlsConnect {
    let mut roots = RootCertStore::empty();
    if let Some(path) = authority() {
        roots.add(CertificateDer::from_pem_file(path).expect("a certificate")).expect("an authority");
    }
    let provider = rustls::crypto::ring::default_provider().into();
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    MakeRustlsConnect::new(config.with_root_certificates(roots).with_no_client_auth())
}

/// The connection of tokio-postgres and diesel-async; `options` are the server's.
pub async fn connect(
    application_name: &str,
    options: &str,
) -> Result<(Client, Connection<Socket, <MakeRustlsConnect as tokio_postgres::tls::MakeTlsConnect<Socket>>::Stream>), Error> {
    let mut config: Config = url(application_name).parse()?;
    config.options(options).ssl_mode(SslMode::Disable);
    if authority().is_some() {
        config.password(var("PGPASSWORD")).ssl_mode(SslMode::Require).channel_binding(ChannelBinding::Require);
    }
    config.connect(tls()).await
}

/// Prints what was got.
pub fn say(what: &str, value: impl Debug) {
    println!("{what}: {value:?}");
}
