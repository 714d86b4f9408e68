//! Errors of the way to the server: which of them pass by themselves, and those that are ours.

use std::error::Error;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};

/// Whether this says that the server cannot be reached: not a server that refused, and not a login that
/// cannot be tried, as one without a password.
pub(crate) fn is_unreachable(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => is_between_lives(code),
        None => !is_credentials(&error.to_string()),
    }
}

/// Whether the server may be reached soon, though nobody does anything here: nobody answers, it hangs up, or
/// it says itself that it starts, stops or has crashed. Not one whose certificate is not trusted.
pub(crate) fn may_pass(error: &tokio_postgres::Error) -> bool {
    is_unreachable(error) && !is_distrust(error)
}

/// An error of tokio-postgres with its cause, in one line.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), error.source()) {
        (Some(db), _) => format!("{}: {}", db.severity(), db.message()),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    }
}

fn is_between_lives(code: &SqlState) -> bool {
    [&SqlState::CANNOT_CONNECT_NOW, &SqlState::ADMIN_SHUTDOWN, &SqlState::CRASH_SHUTDOWN].contains(&code)
}

/// tokio-postgres shows the kind of an error in its text only.
fn is_credentials(text: &str) -> bool {
    text.starts_with("invalid configuration") || text.starts_with("authentication error")
}

/// A handshake that failed for another reason than the end of the connection, or a server without TLS.
fn is_distrust(error: &tokio_postgres::Error) -> bool {
    if !error.to_string().contains("TLS") {
        return false;
    }
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    !cause.is_some_and(|cause| {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
        [BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof].contains(&cause.kind())
    })
}

/// The pool for which a connection was to be opened is gone.
pub(crate) async fn pool_gone() -> tokio_postgres::Error {
    io_error(io::ErrorKind::NotConnected, "the pool is closed").await
}

/// tokio-postgres makes its I/O errors itself; this gets one out of it with our words in it.
pub(crate) async fn io_error(kind: io::ErrorKind, what: &str) -> tokio_postgres::Error {
    let broken = Broken(kind, what.to_owned());
    let mut config = Config::new();
    config.user("nobody").ssl_mode(SslMode::Disable);
    match config.connect_raw(broken, NoTls).await {
        Err(error) => error,
        Ok(_) => unreachable!("a stream that always fails cannot log in"),
    }
}

/// A stream that fails with the given words.
struct Broken(io::ErrorKind, String);

impl Broken {
    fn error(&self) -> io::Error {
        io::Error::new(self.0, self.1.clone())
    }
}

impl AsyncRead for Broken {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Err(self.error()))
    }
}

impl AsyncWrite for Broken {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::task::Poll::Ready(Err(self.error()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Err(self.error()))
    }

    fn poll_shutdown(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}
