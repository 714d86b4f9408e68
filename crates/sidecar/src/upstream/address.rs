//! One address of one host: opened for a login, and for a cancel request.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pgleash_wire::startup::{CANCEL_REQUEST, SSL_REQUEST};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::SslNegotiation;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::net::stream::Io;

/// One address of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A TCP address, with the name TLS is to check.
    Tcp(SocketAddr, Option<String>),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// How a connection is encrypted.
#[derive(Clone)]
pub(crate) struct Security {
    /// Whom to trust.
    pub make: MakeRustlsConnect,
    /// Whether TLS is asked for first.
    pub negotiation: SslNegotiation,
}

impl Address {
    /// Opens the transport, in the clear. `user_timeout` is how long sent bytes may go unacknowledged
    /// until the system gives the connection up.
    pub(crate) async fn open(&self, user_timeout: Option<Duration>) -> io::Result<Io> {
        match self {
            Address::Tcp(address, _) => {
                let stream = TcpStream::connect(address).await?;
                prepare_socket(&stream)?;
                #[cfg(target_os = "linux")]
                socket2::SockRef::from(&stream).set_tcp_user_timeout(user_timeout)?;
                #[cfg(not(target_os = "linux"))]
                let _ = user_timeout;
                Ok(Io::Tcp(stream))
            }
            Address::Unix(path) => UnixStream::connect(path).await.map(Io::Unix),
        }
    }

    pub(crate) fn tls_name(&self) -> String {
        match self {
            Address::Tcp(_, Some(name)) => name.clone(),
            Address::Tcp(address, None) => address.ip().to_string(),
            Address::Unix(_) => "localhost".to_owned(),
        }
    }

    /// Sends a cancel request and waits until the server has closed the connection: the signal has
    /// been sent by then ("Canceling Requests in Progress"). The key goes as safely as it came: where the
    /// connection was encrypted the request is, to a server that proves itself again, or it is not sent.
    ///
    /// Cancel safe, but for whether the request was sent.
    ///
    /// # Errors
    /// The server cannot be reached, or not as safely.
    pub(crate) async fn cancel(
        &self,
        backend_pid: i32,
        key: &[u8],
        security: Option<&Security>,
    ) -> io::Result<()> {
        let mut packet = ((12 + key.len()) as u32).to_be_bytes().to_vec();
        packet.extend(CANCEL_REQUEST.to_be_bytes());
        packet.extend(backend_pid.to_be_bytes());
        packet.extend(key);
        let mut io = self.open(None).await?;
        if let Some(security) = security {
            io = self.encrypt(io, security).await?;
        }
        io.write_all(&packet).await?;
        io.flush().await?;
        let mut rest = [0; 64];
        while !matches!(io.read(&mut rest).await, Ok(0) | Err(_)) {}
        Ok(())
    }

    async fn encrypt(&self, mut io: Io, security: &Security) -> io::Result<Io> {
        if security.negotiation == SslNegotiation::Postgres {
            io.write_all(&[8_u32.to_be_bytes(), SSL_REQUEST.to_be_bytes()].concat()).await?;
            io.flush().await?;
            if io.read_u8().await? != b'S' {
                return Err(io::Error::other("the server does not speak TLS any more"));
            }
        }
        let name = self.tls_name();
        let connector = match MakeTlsConnect::<Io>::make_tls_connect(&mut security.make.clone(), &name) {
            Ok(connector) => connector,
            Err(never) => match never {},
        };
        let stream = connector.connect(io).await.map_err(io::Error::other)?;
        Ok(Io::Tls(Box::new(stream)))
    }
}

/// No delay, and keepalives that find a half-open peer within about a minute.
///
/// # Errors
/// The system refuses an option.
pub(crate) fn prepare_socket(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}
