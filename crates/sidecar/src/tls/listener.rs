//! TLS to clients: the certificate that is shown, and who may come without one.
//!
//! The files are read again when they change, so a certificate is renewed without a restart. A file that does not
//! work leaves the old certificate in place.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use ring::digest;
use rustls::crypto::ring as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::rfc5912;

use crate::tls::upstream::ALPN;

/// The largest file that is read: a chain of certificates is a few kilobytes.
const MAX_FILE: u64 = 1 << 20;

/// The files of `[tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerFiles {
    /// `tls.cert`: the certificate and those between it and its authority, PEM.
    pub cert: PathBuf,
    /// `tls.key`: its private key, PEM.
    pub key: PathBuf,
    /// `tls.client_ca`: the authorities that clients' certificates must be signed by, PEM.
    pub client_ca: Option<PathBuf>,
}

impl ListenerFiles {
    /// Each file, in the order in which they are read.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }
}

/// What a client is shown.
#[derive(Clone)]
pub struct Shown {
    /// For the handshake.
    pub config: Arc<ServerConfig>,
    /// What a SCRAM proof is bound to (`tls-server-end-point`); `None` if the certificate's signature has no
    /// hash of its own, as with Ed25519.
    pub binding: Option<Arc<[u8]>>,
    /// When the certificate ends, since the Unix epoch.
    pub expires: Duration,
}

/// The certificate as it is now. Reading it takes no more than the clone of two references.
pub struct Certificates {
    files: ListenerFiles,
    shown: RwLock<Shown>,
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// Which file does not work, and why.
    pub fn load(files: ListenerFiles) -> Result<Self, DoorError> {
        let shown = RwLock::new(read(&files)?);
        Ok(Self { files, shown })
    }

    /// Reads the files again; handshakes from now on use what they say.
    ///
    /// # Errors
    /// As [`Certificates::load`]; what was shown before still is.
    pub fn reload(&self) -> Result<(), DoorError> {
        let shown = read(&self.files)?;
        *self.shown.write() = shown;
        Ok(())
    }

    /// What a client is shown.
    pub fn shown(&self) -> Shown {
        self.shown.read().clone()
    }

    /// Where it is read from.
    pub fn files(&self) -> &ListenerFiles {
        &self.files
    }
}

/// Why there is no TLS to clients.
#[derive(Debug)]
pub struct DoorError {
    /// The key whose file is at fault.
    pub key: &'static str,
    path: PathBuf,
    why: String,
}

impl fmt::Display for DoorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.key, self.path.display(), self.why)
    }
}

impl std::error::Error for DoorError {}

fn read(files: &ListenerFiles) -> Result<Shown, DoorError> {
    let chain = certificates("tls.cert", &files.cert)?;
    let refuse = |why: String| DoorError { key: "tls.cert", path: files.cert.clone(), why };
    let first = chain.first().ok_or_else(|| refuse("it holds no certificate: write it in PEM".into()))?;
    let certificate =
        Certificate::from_der(first).map_err(|error| refuse(format!("not a certificate: {error}")))?;
    let expires = certificate.tbs_certificate.validity.not_after.to_unix_duration();
    let binding = end_point_hash(certificate.signature_algorithm.oid)
        .map(|hash| Arc::from(digest::digest(hash, first).as_ref()));
    let builder = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| refuse(error.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(verifier(path)?),
    };
    let key = private_key(&files.key)?;
    let mut config = builder.with_single_cert(chain, key).map_err(|error| DoorError {
        key: "tls.key",
        path: files.key.clone(),
        why: match error {
            rustls::Error::InconsistentKeys(_) => "it is not the key of the certificate in tls.cert".into(),
            error => error.to_string(),
        },
    })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Shown { config: Arc::new(config), binding, expires })
}

fn verifier(path: &Path) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, DoorError> {
    let refuse = |why: String| DoorError { key: "tls.client_ca", path: path.to_owned(), why };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("tls.client_ca", path)? {
        roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
    }
    let provider = Arc::new(provider::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| refuse(format!("{error}; it needs the certificate of an authority, in PEM")))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, DoorError> {
    let text = bounded(key, path)?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    certificates.map_err(|error| DoorError { key, path: path.to_owned(), why: format!("not PEM: {error}") })
}

/// What is wrong with a key is said without a byte of it.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, DoorError> {
    let text = bounded("tls.key", path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| DoorError {
        key: "tls.key",
        path: path.to_owned(),
        why: "it holds no private key without a passphrase, in PEM (PKCS #8, PKCS #1 or SEC1)".into(),
    })
}

fn bounded(key: &'static str, path: &Path) -> Result<Vec<u8>, DoorError> {
    let refuse = |why: String| DoorError { key, path: path.to_owned(), why };
    let length =
        std::fs::metadata(path).map_err(|error| refuse(format!("it cannot be read: {error}")))?.len();
    if length > MAX_FILE {
        return Err(refuse("it is longer than 1 MiB".into()));
    }
    std::fs::read(path).map_err(|error| refuse(format!("it cannot be read: {error}")))
}

/// The hash of the certificate's signature, or SHA-256 where that is a weaker one (RFC 5929, section 4.1).
fn end_point_hash(signature: ObjectIdentifier) -> Option<&'static digest::Algorithm> {
    match signature {
        rfc5912::SHA_1_WITH_RSA_ENCRYPTION
        | rfc5912::SHA_256_WITH_RSA_ENCRYPTION
        | rfc5912::ECDSA_WITH_SHA_256 => Some(&digest::SHA256),
        rfc5912::SHA_384_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_384 => Some(&digest::SHA384),
        rfc5912::SHA_512_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_512 => Some(&digest::SHA512),
        _ => None,
    }
}
