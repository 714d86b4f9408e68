//! Listening sockets that another process hands over.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;

/// Sockets that another process listens on, too.
#[derive(Debug, Default)]
pub(crate) struct Sockets(pub(crate) Vec<OwnedFd>);

impl Sockets {
    /// Adds another name of this one.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn add(&mut self, socket: impl AsFd) -> io::Result<()> {
        self.0.push(socket.as_fd().try_clone_to_owned()?);
        Ok(())
    }

    /// Takes out the one that listens at this TCP address.
    pub(crate) fn tcp(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let fits = |socket: &OwnedFd| {
            let bound = rustix::net::getsockname(socket).ok();
            let bound = bound.and_then(|bound| SocketAddr::try_from(bound).ok());
            bound.is_some_and(|bound| {
                bound.ip() == address.ip() && (address.port() == 0 || bound.port() == address.port())
            })
        };
        let at = self.0.iter().position(fits)?;
        Some(TcpListener::from(self.0.remove(at)))
    }

    /// Takes out the one that listens at this path.
    pub(crate) fn unix(&mut self, path: &Path) -> Option<StdUnixListener> {
        let fits = |socket: &OwnedFd| {
            let bound = rustix::net::getsockname(socket).ok();
            let bound = bound.and_then(|bound| rustix::net::SocketAddrUnix::try_from(bound).ok());
            bound.is_some_and(|bound| bound.path_bytes() == Some(path.as_os_str().as_encoded_bytes()))
        };
        let at = self.0.iter().position(fits)?;
        Some(StdUnixListener::from(self.0.remove(at)))
    }
}
