//! Why a sidecar does not start.

use std::{fmt, io};

/// Why the sidecar did not start, or could not go on.
#[derive(Debug)]
pub enum RunError {
    /// An address cannot be listened on.
    Bind {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// The TLS configuration does not work.
    Tls(String),
    /// Certificates or users cannot be used.
    Credentials(String),
    /// The system refused a thread or a signal handler.
    System(io::Error),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Bind { key, address, error } => {
                write!(f, "{key} = {address}: cannot listen there: {error}")?;
                if error.kind() == io::ErrorKind::AddrInUse {
                    write!(f, "; another process has the port, choose another one or end that process")?;
                }
                Ok(())
            }
            RunError::Tls(why) => write!(f, "upstream.url: {why}"),
            RunError::Credentials(why) => f.write_str(why),
            RunError::System(error) => write!(f, "the system refused: {error}"),
        }
    }
}

impl std::error::Error for RunError {}
