//! Who is calling, and why it is turned away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use pgleash_wire::scram::ScramError;
use pgleash_wire::startup::StartupError;
use tokio::net::{TcpStream, UnixStream};

use crate::net::stream::Io;
use crate::pool::describe;
use crate::pool::state::CheckoutError;
use crate::proxy::auth::Origin;
use crate::upstream::connector::prepare_socket;

/// Somebody at the door.
pub(crate) struct Caller {
    pub(crate) io: Io,
    pub(crate) origin: Origin,
    /// What a proof over its TLS is bound to.
    pub(crate) binding: Option<Arc<[u8]>>,
    pub(crate) from: String,
}

impl Caller {
    /// Over TCP.
    pub(crate) fn tcp(stream: TcpStream, from: SocketAddr) -> Self {
        // A socket whose options cannot be set has just died; its next read tells.
        let _ = prepare_socket(&stream);
        let origin = if from.ip().to_canonical().is_loopback() { Origin::Near } else { Origin::Far };
        Self { io: Io::Tcp(stream), origin, binding: None, from: from.to_string() }
    }

    /// Over a Unix socket.
    pub(crate) fn unix(stream: UnixStream) -> Self {
        Self { io: Io::Unix(stream), origin: Origin::Socket, binding: None, from: "unix".to_owned() }
    }

    /// Whether what it says cannot be read on the way.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.io, Io::Served(_))
    }
}

/// Why a caller is turned away.
pub(crate) enum Rejection {
    /// It hung up, or the system did.
    Gone,
    /// It did not say who it is in time.
    Late,
    Packet(StartupError),
    /// The TLS handshake failed.
    Handshake(String),
    /// It has to speak TLS, and does not.
    Unencrypted,
    /// Its proof cannot be read, or is bound to another channel.
    Scram(ScramError),
    /// Its proof is wrong. Why is not for the client.
    Password {
        user: String,
        why: &'static str,
    },
    /// The server could not be asked for its verifier.
    Unanswered,
    TooManyClients(usize),
    TooManyCallers,
    TooManyPools,
    TooManyCancels,
    Draining,
    /// The server refuses a parameter, which it names if it can.
    Parameters {
        name: String,
        error: CheckoutError,
    },
    Checkout(CheckoutError),
}

impl From<io::Error> for Rejection {
    fn from(_: io::Error) -> Self {
        Rejection::Gone
    }
}

impl From<StartupError> for Rejection {
    fn from(error: StartupError) -> Self {
        Rejection::Packet(error)
    }
}

impl From<ScramError> for Rejection {
    fn from(error: ScramError) -> Self {
        Rejection::Scram(error)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejection::Gone => f.write_str("the client hung up"),
            Rejection::Late => write!(f, "not logged in within {} s", LOGIN_TIMEOUT.as_secs()),
            Rejection::Packet(error) => error.fmt(f),
            Rejection::Handshake(why) => write!(f, "TLS handshake failed: {why}"),
            Rejection::Unencrypted => f.write_str("pgleash lets in encrypted connections only (tls.mode)"),
            Rejection::Scram(error) => error.fmt(f),
            Rejection::Password { user, why } => {
                write!(f, "password authentication failed for user {user:?}: {why}")
            }
            Rejection::Unanswered => f.write_str("the server cannot be asked for the password"),
            Rejection::TooManyClients(limit) => {
                write!(f, "too many clients: pool.max_clients = {limit} are connected")
            }
            Rejection::TooManyCallers => f.write_str("too many connections that have not said who they are"),
            Rejection::TooManyPools => {
                f.write_str("too many different databases and users through one pgleash")
            }
            Rejection::TooManyCancels => f.write_str("too many cancel requests at one time"),
            Rejection::Draining => f.write_str("pgleash is draining"),
            // Not in the server's words, which hold the value.
            Rejection::Parameters { name, error } => {
                let code = match error {
                    CheckoutError::Upstream(error) => error.code().map_or("", |code| code.code()),
                    _ => "",
                };
                write!(f, "the server refuses a parameter of the login: {name:?} ({code})")
            }
            Rejection::Checkout(CheckoutError::Upstream(error)) => f.write_str(&describe(error)),
            Rejection::Checkout(error) => error.fmt(f),
        }
    }
}

/// How long a client may take to say who it is, and to prove it.
pub(crate) const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
