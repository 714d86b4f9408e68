//! The file of a Unix socket.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// The path of a Unix socket; removed when it is dropped, unless it was left to somebody else.
pub(crate) struct SocketFile {
    pub(crate) path: PathBuf,
    owner: Owner,
}

impl SocketFile {
    /// Of a socket that is bound there.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), owner: Owner::We }
    }

    /// It is somebody else's from now on.
    pub(crate) fn leave(&mut self) {
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
pub(crate) fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    We,
    Others,
}
