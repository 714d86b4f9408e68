//! TLS: to the upstream server by libpq's rules, and to clients in `tls::listener`.

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The protocol name that direct TLS negotiation demands, and that PostgreSQL 17 knows.
pub const ALPN: &[u8] = b"postgresql";

/// Whether to encrypt the way to the server, and whom to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// libpq's `sslmode`.
    pub mode: TlsMode,
    /// libpq's `sslrootcert`, a PEM file. Without it the modes that verify trust the system's authorities;
    /// with it every mode that encrypts verifies the chain, as in libpq.
    pub root_cert: Option<PathBuf>,
    /// libpq's `sslcert` and `sslkey`, PEM files: who we are, for a server that asks.
    pub own_cert: Option<(PathBuf, PathBuf)>,
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    /// In the clear.
    Disable,
    /// Encrypted if the server can.
    Prefer,
    /// Encrypted.
    Require,
    /// Encrypted, to a server whose certificate is signed by a trusted authority.
    VerifyCa,
    /// Encrypted, to a server whose certificate is signed by a trusted authority and bears its name.
    VerifyFull,
}

impl TlsMode {
    /// Every mode, the laxest first.
    pub const ALL: [TlsMode; 5] =
        [TlsMode::Disable, TlsMode::Prefer, TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull];

    /// As it is written in a URL.
    pub const fn as_str(self) -> &'static str {
        match self {
            TlsMode::Disable => "disable",
            TlsMode::Prefer => "prefer",
            TlsMode::Require => "require",
            TlsMode::VerifyCa => "verify-ca",
            TlsMode::VerifyFull => "verify-full",
        }
    }
}

impl fmt::Display for TlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Makes the connector for `tls`.
///
/// `verify-full` checks the chain and the name, `verify-ca` the chain. `prefer` and `require` check the
/// chain if a root certificate is given, and otherwise encrypt without knowing to whom.
///
/// # Errors
/// When the authorities to trust cannot be read, or there are none.
pub fn connector(tls: &UpstreamTls) -> Result<MakeRustlsConnect, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Rustls)?;
    let builder = match roots(tls)? {
        Some(roots) if tls.mode == TlsMode::VerifyFull => builder.with_root_certificates(roots),
        roots => {
            let verifier = Arc::new(AnyName { roots, provider });
            builder.dangerous().with_custom_certificate_verifier(verifier)
        }
    };
    let mut config = match &tls.own_cert {
        Some((certificate, key)) => {
            let (chain, key) = own_certificate(certificate, key)?;
            builder.with_client_auth_cert(chain, key).map_err(TlsError::Rustls)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(MakeRustlsConnect::new(config))
}

/// Why there is no connector.
#[derive(Debug)]
pub enum TlsError {
    /// `sslrootcert` cannot be read.
    RootCert(PathBuf, String),
    /// `sslcert` or `sslkey` cannot be read.
    OwnCert(&'static str, PathBuf, String),
    /// The system has no certificate authorities, or they cannot be read.
    System(String),
    /// rustls refuses to begin.
    Rustls(rustls::Error),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::RootCert(path, why) => write!(
                f,
                "sslrootcert {}: {why}; name a PEM file with the certificate of the authority",
                path.display()
            ),
            TlsError::OwnCert(option, path, why) => {
                write!(f, "{option} {}: {why}; name a PEM file, the key without a passphrase", path.display())
            }
            TlsError::System(why) => write!(
                f,
                "the system's certificate authorities cannot be used: {why}; install them (Debian: \
                 ca-certificates) or name a PEM file with sslrootcert"
            ),
            TlsError::Rustls(error) => write!(f, "TLS: {error}"),
        }
    }
}

impl std::error::Error for TlsError {}

/// The authorities to trust; `None` where nothing is verified.
fn roots(tls: &UpstreamTls) -> Result<Option<RootCertStore>, TlsError> {
    match (&tls.root_cert, tls.mode) {
        (_, TlsMode::Disable) | (None, TlsMode::Prefer | TlsMode::Require) => Ok(None),
        (Some(path), _) => roots_of_file(path).map(Some),
        (None, TlsMode::VerifyCa | TlsMode::VerifyFull) => roots_of_system().map(Some),
    }
}

fn own_certificate(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let refuse = |why: String| TlsError::OwnCert("sslcert", certificate.to_owned(), why);
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain: Vec<_> = chain.map_err(|error| refuse(error.to_string()))?;
    if chain.is_empty() {
        return Err(refuse("it holds no certificate".into()));
    }
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|_| TlsError::OwnCert("sslkey", key.to_owned(), "it holds no private key".into()))?;
    Ok((chain, key))
}

fn roots_of_file(path: &Path) -> Result<RootCertStore, TlsError> {
    let refuse = |why: String| TlsError::RootCert(path.to_owned(), why);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| refuse(error.to_string()))? {
        let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
        roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
    }
    if roots.is_empty() { Err(refuse("it holds no certificate".into())) } else { Ok(roots) }
}

fn roots_of_system() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(|| "there are none".into(), ToString::to_string);
        return Err(TlsError::System(why));
    }
    Ok(roots)
}

/// Accepts a certificate whatever name it bears: from one of `roots`, or from anybody if there are none.
/// In either case the server must hold the certificate's key.
#[derive(Debug)]
struct AnyName {
    roots: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
