use std::io::Write;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tempfile::NamedTempFile;
use tokio::io::DuplexStream;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_rustls::TlsAcceptor;

use crate::tls::upstream::*;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A file as `sslrootcert` names it.
fn pem_file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// A server with a certificate for `name`, signed by `authority`.
fn server(name: &str, authority: &Authority) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, authority).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Connects to `host`, where `server` answers; whether we trust it.
async fn trusts(mode: TlsMode, root: Option<&NamedTempFile>, host: &str, server: &TlsAcceptor) -> bool {
    let root_cert = root.map(|file| file.path().to_owned());
    let mut connector = connector(&UpstreamTls { mode, root_cert, own_cert: None }).unwrap();
    let connect = MakeTlsConnect::<DuplexStream>::make_tls_connect(&mut connector, host).unwrap();
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (ours, _) = tokio::join!(connect.connect(ours), server.accept(theirs));
    ours.is_ok()
}

#[tokio::test]
async fn each_mode_verifies_what_libpq_verifies() {
    let (known, stranger) = (authority(), authority());
    let root = pem_file(&known.pem());
    let right = server("db.internal", &known);
    let misnamed = server("elsewhere.internal", &known);
    let unknown = server("db.internal", &stranger);
    let by_mode = async |mode, root| {
        let host = "db.internal";
        [
            trusts(mode, root, host, &right).await,
            trusts(mode, root, host, &misnamed).await,
            trusts(mode, root, host, &unknown).await,
        ]
    };

    assert_eq!(by_mode(TlsMode::VerifyFull, Some(&root)).await, [true, false, false]);
    assert_eq!(by_mode(TlsMode::VerifyCa, Some(&root)).await, [true, true, false]);
    assert_eq!(by_mode(TlsMode::Require, Some(&root)).await, [true, true, false]);
    assert_eq!(by_mode(TlsMode::Prefer, Some(&root)).await, [true, true, false]);
    assert_eq!(by_mode(TlsMode::Require, None).await, [true, true, true]);
    assert_eq!(by_mode(TlsMode::Prefer, None).await, [true, true, true]);
}

#[test]
fn a_root_certificate_that_is_of_no_use_is_refused_by_name() {
    let refusal = |path: &Path| {
        let tls = UpstreamTls { mode: TlsMode::VerifyCa, root_cert: Some(path.to_owned()), own_cert: None };
        connector(&tls).err().map(|error| error.to_string()).unwrap()
    };
    let empty = pem_file("nothing here\n");
    assert!(refusal(empty.path()).contains("holds no certificate"));
    let garbage = pem_file("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    assert!(refusal(garbage.path()).contains(&garbage.path().display().to_string()));
    assert!(refusal(Path::new("/nowhere/ca.pem")).contains("/nowhere/ca.pem"));
}

#[test]
fn a_root_certificate_is_not_read_where_nothing_is_encrypted() {
    let tls =
        UpstreamTls { mode: TlsMode::Disable, root_cert: Some("/nowhere/ca.pem".into()), own_cert: None };
    assert!(connector(&tls).is_ok());
}
