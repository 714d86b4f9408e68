//! Where Postgres clients come in. Floor 4.

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};

use crate::config::Listen;
use crate::pool::borrower;

use super::handover::Sockets;
use super::{Hub, RunError, gate};

/// A listening socket.
pub enum Door {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket, and the file that names it.
    Unix(UnixListener, SocketFile),
}

impl Door {
    /// How long who was in the queue may take to say who it is, and hear that we are draining.
    const LAST_CALL: Duration = Duration::from_millis(200);

    /// Listens where the configuration says, on the socket of a predecessor if it is that one.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn open(listen: &Listen, inherited: &mut Sockets) -> Result<Self, RunError> {
        let opened = match listen {
            Listen::Tcp(address) => match inherited.tcp(*address) {
                Some(socket) => inherit_tcp(socket).map(Door::Tcp),
                None => TcpListener::bind(address).await.map(Door::Tcp),
            },
            Listen::Unix(path) => match inherited.unix(path) {
                Some(socket) => inherit_unix(socket),
                None => bind_unix(path),
            }
            .map(|socket| Door::Unix(socket, SocketFile::new(path))),
        };
        opened.map_err(|error| RunError::Bind { key: "listen", address: listen.to_string(), error })
    }

    /// Where it is.
    pub fn address(&self) -> String {
        match self {
            Door::Tcp(listener) => listener.local_addr().map_or_else(|_| "?".to_owned(), |at| at.to_string()),
            Door::Unix(_, file) => file.path.display().to_string(),
        }
    }

    /// Lets clients in, for ever. An accept that fails (no descriptors left) is tried again a little later.
    pub async fn serve(&self, hub: &Arc<Hub>) {
        loop {
            let accepted = match self {
                Door::Tcp(listener) => {
                    listener.accept().await.map(|(stream, from)| gate::Caller::tcp(stream, from))
                }
                Door::Unix(listener, _) => {
                    listener.accept().await.map(|(stream, _)| gate::Caller::unix(stream))
                }
            };
            match accepted {
                Ok(caller) => drop(tokio::spawn(borrower(gate::admit(Arc::clone(hub), caller)))),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Closes it. Whoever is in the queue already is let in first: it hears that we are draining, not that
    /// its connection was reset.
    pub async fn close(self, hub: &Arc<Hub>) {
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
    pub fn leave(mut self) {
        if let Door::Unix(_, file) = &mut self {
            file.leave();
        }
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Door::Tcp(listener) => listener.as_fd(),
            Door::Unix(listener, _) => listener.as_fd(),
        }
    }
}

/// The path of a Unix socket; removed when it is dropped, unless it was left to somebody else.
pub struct SocketFile {
    path: PathBuf,
    owner: Owner,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    We,
    Others,
}

impl SocketFile {
    /// Of a socket that is bound there.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), owner: Owner::We }
    }

    /// It is somebody else's from now on.
    pub fn leave(&mut self) {
        self.owner = Owner::Others;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.owner == Owner::We {
            // Somebody else may have removed it: then there is nothing to do.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens at a path. A socket file that nobody listens on is left over from a process that died: it is
/// replaced.
///
/// # Errors
/// The path cannot be listened on.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

fn inherit_tcp(socket: StdTcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

fn inherit_unix(socket: StdUnixListener) -> io::Result<UnixListener> {
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket)
}
