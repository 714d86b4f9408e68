//! Where Postgres clients come in.

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};

use crate::config::Listen;
use crate::config::start_error::RunError;
use crate::net::inherited_sockets::Sockets;
use crate::net::unix_socket::{SocketFile, bind_unix};
use crate::pool::borrower;
use crate::process::Hub;
use crate::proxy::login;
use crate::proxy::login::caller::Caller;

/// A listening socket.
pub(crate) enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket, and the file that names it.
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// How long who was in the queue may take to say who it is, and hear that we are draining.
    const LAST_CALL: Duration = Duration::from_millis(200);

    /// Listens where the configuration says, on the socket of a predecessor if it is that one.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub(crate) async fn open(listen: &Listen, inherited: &mut Sockets) -> Result<Self, RunError> {
        let opened = match listen {
            Listen::Tcp(address) => match inherited.tcp(*address) {
                Some(socket) => inherit_tcp(socket).map(Listener::Tcp),
                None => TcpListener::bind(address).await.map(Listener::Tcp),
            },
            Listen::Unix(path) => match inherited.unix(path) {
                Some(socket) => inherit_unix(socket),
                None => bind_unix(path),
            }
            .map(|socket| Listener::Unix(socket, SocketFile::new(path))),
        };
        opened.map_err(|error| RunError::Bind { key: "listen", address: listen.to_string(), error })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> String {
        match self {
            Listener::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| "?".to_owned(), |at| at.to_string())
            }
            Listener::Unix(_, file) => file.path.display().to_string(),
        }
    }

    /// Lets clients in, for ever. An accept that fails (no descriptors left) is tried again a little later.
    pub(crate) async fn serve(&self, hub: &Arc<Hub>) {
        loop {
            let accepted = match self {
                Listener::Tcp(listener) => {
                    listener.accept().await.map(|(stream, from)| Caller::tcp(stream, from))
                }
                Listener::Unix(listener, _) => {
                    listener.accept().await.map(|(stream, _)| Caller::unix(stream))
                }
            };
            match accepted {
                Ok(caller) => drop(tokio::spawn(borrower(login::admit(Arc::clone(hub), caller)))),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Closes it. Whoever is in the queue already is let in first: it hears that we are draining, not that
    /// its connection was reset.
    pub(crate) async fn close(self, hub: &Arc<Hub>) {
        let heard = async {
            while !hub.is_doorstep_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let last_call = async {
            // Between two turns as many are accepted as the runtime lets us: more than the queue can hold.
            for _ in 0..64 {
                tokio::task::yield_now().await;
            }
            let _ = tokio::time::timeout(Self::LAST_CALL, heard).await;
        };
        tokio::select! {
            biased;
            () = self.serve(hub) => {}
            () = last_call => {}
        }
    }

    /// Closes it here; whoever else has the socket goes on with it.
    pub(crate) fn leave(mut self) {
        if let Listener::Unix(_, file) = &mut self {
            file.leave();
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener, _) => listener.as_fd(),
        }
    }
}

fn inherit_tcp(socket: StdTcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

fn inherit_unix(socket: StdUnixListener) -> io::Result<UnixListener> {
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket)
}
