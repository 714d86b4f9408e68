//! A client's or a server's stream: TCP, a Unix socket, TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream as ServedTls;

macro_rules! each_io {
    ($self:expr, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Io::Tcp($io) => $call,
            Io::Unix($io) => $call,
            Io::Tls($io) => $call,
            Io::Served($io) => $call,
        }
    };
}

/// The transport under a connection.
pub(crate) enum Io {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// TLS over either, to a server.
    Tls(Box<dyn Stream>),
    /// TLS over TCP, of a client.
    Served(Box<ServedTls<TcpStream>>),
}

impl Io {
    /// Whether the system holds nothing to read, the end included. Asks the system, not the runtime,
    /// whose knowledge is as old as its last turn. A client's TLS is looked through: it is silent if
    /// it keeps nothing that was decrypted and would read, and there is nothing to read for it. TLS to a
    /// server cannot be looked through: it is never silent.
    pub(crate) fn is_silent(&self) -> bool {
        self.peek().is_some_and(|peeked| peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock))
    }

    /// Whether the system holds bytes that nobody has read. False for TLS that cannot be looked through.
    pub(crate) fn has_unread(&self) -> bool {
        self.peek().is_some_and(|peeked| peeked.is_ok_and(|bytes| bytes > 0))
    }

    /// The system's socket below it; `None` for TLS that cannot be looked through.
    pub(crate) fn socket(&self) -> Option<SockRef<'_>> {
        match self {
            Io::Tcp(stream) => Some(SockRef::from(stream)),
            Io::Unix(stream) => Some(SockRef::from(stream)),
            Io::Served(stream) => Some(SockRef::from(stream.get_ref().0)),
            Io::Tls(_) => None,
        }
    }

    fn peek(&self) -> Option<io::Result<usize>> {
        match self {
            Io::Served(stream) if !stream.get_ref().1.wants_read() => None,
            _ => self.socket().map(|socket| socket.peek(&mut [std::mem::MaybeUninit::uninit()])),
        }
    }

    /// Whether the peer has closed its side or is gone, even if it sent bytes before that nobody has
    /// read. TLS to a server cannot be looked through.
    pub(crate) fn has_hung_up(&self) -> bool {
        let events = PollFlags::RDHUP;
        let mut asked = [match self {
            Io::Tcp(stream) => PollFd::new(stream, events),
            Io::Unix(stream) => PollFd::new(stream, events),
            Io::Served(stream) => PollFd::new(stream.get_ref().0, events),
            Io::Tls(_) => return false,
        }];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut asked, Some(&now)).is_ok_and(|changed| changed > 0)
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each_io!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each_io!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_io!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_io!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

/// A byte stream that may be boxed.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
