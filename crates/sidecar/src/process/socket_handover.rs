//! Hands the listening sockets to the next process, so that an upgrade drops no client.
//!
//! Both processes then have the very same socket with one queue of connections: a connection that was
//! established while nobody accepted is served by whoever accepts next. (With SO_REUSEPORT each process has
//! a queue of its own, and what waits in the old one's is reset when it closes.) The sockets go through the
//! Unix socket that `handover` names, to a process of the same user only.

use std::io;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::net::UnixListener;

use crate::net::inherited_sockets::Sockets;
use crate::net::unix_socket::{SocketFile, bind_unix};

/// What the old process says along with the sockets.
const GREETING: &[u8; 10] = b"pgleash\0\x01\0";
/// What the new process says when it serves.
const SERVING: u8 = b'S';
/// How many sockets there can be: for clients, administrators, control.
const MOST: usize = 3;

/// A running process that has handed its sockets over, and waits to hear that they are served.
pub(crate) struct Predecessor {
    /// Its sockets.
    pub sockets: Sockets,
    line: StdUnixStream,
}

impl Predecessor {
    /// How long the old process may take to answer.
    const PATIENCE: Duration = Duration::from_secs(5);

    /// Asks the process behind `path` for its sockets; `None` if there is none. Blocks for a few seconds
    /// at most.
    ///
    /// # Errors
    /// There is one, and it does not hand them over.
    pub(crate) fn ask(path: &Path) -> io::Result<Option<Self>> {
        let Ok(line) = StdUnixStream::connect(path) else { return Ok(None) };
        line.set_read_timeout(Some(Self::PATIENCE))?;
        line.set_write_timeout(Some(Self::PATIENCE))?;
        let sockets = receive(line.as_fd())?;
        Ok(Some(Self { sockets, line }))
    }

    /// The sockets are served here: the old process stops accepting.
    ///
    /// # Errors
    /// It has gone.
    pub(crate) fn served(mut self) -> io::Result<()> {
        self.line.write_all(&[SERVING])
    }
}

/// The sockets, on offer to the next process.
pub(crate) struct Offer {
    listener: UnixListener,
    sockets: Sockets,
    file: SocketFile,
}

impl Offer {
    /// How long the new process may take from the sockets to serving them.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Waits at `path` for the next process. What a predecessor left there is replaced.
    ///
    /// # Errors
    /// The path cannot be listened on.
    pub(crate) fn new(path: &Path, sockets: Sockets, predecessor: Option<&Predecessor>) -> io::Result<Self> {
        if predecessor.is_some() {
            std::fs::remove_file(path)?;
        }
        let listener = bind_unix(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, sockets, file: SocketFile::new(path) })
    }

    /// Resolves when another process serves the sockets. Cancel safe: the sockets stay.
    pub(crate) async fn taken(&mut self) {
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let same_user = |uid| uid == rustix::process::geteuid().as_raw();
            if !stream.peer_cred().is_ok_and(|peer| same_user(peer.uid())) {
                continue;
            }
            let Ok(stream) = stream.into_std() else { continue };
            if self.hand_over(stream).await.is_ok() {
                return self.file.leave();
            }
        }
    }

    async fn hand_over(&self, mut line: StdUnixStream) -> io::Result<()> {
        line.set_nonblocking(false)?;
        line.set_read_timeout(Some(Self::PATIENCE))?;
        line.set_write_timeout(Some(Self::PATIENCE))?;
        send(line.as_fd(), &self.sockets)?;
        let serving = tokio::task::spawn_blocking(move || {
            let mut said = [0];
            line.read_exact(&mut said).map(|()| said == [SERVING])
        });
        if serving.await?? { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

fn send(line: BorrowedFd<'_>, sockets: &Sockets) -> io::Result<()> {
    let sockets: Vec<_> = sockets.0.iter().take(MOST).map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut along = SendAncillaryBuffer::new(&mut space);
    along.push(SendAncillaryMessage::ScmRights(&sockets));
    let sent = rustix::net::sendmsg(line, &[io::IoSlice::new(GREETING)], &mut along, SendFlags::empty())?;
    if sent == GREETING.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn receive(line: BorrowedFd<'_>) -> io::Result<Sockets> {
    let mut said = [0; GREETING.len()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut along = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        line,
        &mut [io::IoSliceMut::new(&mut said)],
        &mut along,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if &said != GREETING || received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no pgleash that understands this one"));
    }
    let mut sockets = Sockets::default();
    for message in along.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            sockets.0.extend(received);
        }
    }
    Ok(sockets)
}
