//! Lends the raw wire under a tokio-postgres connection, and takes it back.
//!
//! tokio-postgres does login, TLS and reset; the relay needs raw bytes; both use one connection.
//! The [`HomeEnd`] is the stream that tokio-postgres was given. While the wire is at home it reads
//! and writes it; while the wire is lent it answers Pending. It hands over whole frames only, so that
//! no half frame is ever in tokio-postgres's buffer when the wire is lent.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use pgleash_wire::frame::{Cut, Cutter, Direction};
use pgleash_wire::message::read_parameter_status;
use pgleash_wire::parameters::Vars;
use pgleash_wire::{Prepared, ProtocolState, frame, message};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use crate::net::stream::Io;

/// The raw wire of one server connection, with what is known about its state.
pub(crate) struct Wire {
    /// The transport.
    pub io: Io,
    /// Bytes from the server that nobody has taken yet.
    pub inbox: BytesMut,
    /// Who owes whom a reply.
    pub protocol: ProtocolState,
    /// What clients have prepared on it.
    pub prepared: Prepared,
    /// Where in the server's stream the relay stopped.
    pub received: Cutter,
    /// The parameters as the server reported them last, by the names that it has for them.
    pub current: Arc<Vars>,
    /// Notifications that came while pgleash itself asked the server something on behalf of the client who listens.
    pub kept: Vec<u8>,
    /// Whether they are kept.
    pub keeps: bool,
    /// Whole frames at the beginning of the inbox, in bytes; their tags have been told to the pulse.
    whole: usize,
    /// Frames that tokio-postgres sends.
    sent: Cutter,
    half_header: Vec<u8>,
    login: Option<Login>,
}

/// What the server said at login.
#[derive(Debug, Default, Clone)]
pub(crate) struct Login {
    /// Process id of the backend.
    pub backend_pid: i32,
    /// Its cancel key, as it was sent.
    pub cancel_key: Vec<u8>,
    /// The parameters it reported.
    pub parameters: BTreeMap<String, String>,
    done: bool,
}

impl Wire {
    fn new(io: Io) -> Self {
        Self {
            io,
            inbox: BytesMut::new(),
            protocol: ProtocolState::new(),
            prepared: Prepared::default(),
            received: Cutter::new(Direction::Backend),
            current: Arc::default(),
            kept: Vec::new(),
            keeps: false,
            whole: 0,
            sent: Cutter::new(Direction::Frontend),
            half_header: Vec::new(),
            login: Some(Login::default()),
        }
    }

    /// Nothing owed, no transaction, no half frame, nothing that tokio-postgres has yet to see.
    fn is_quiet(&self) -> bool {
        self.protocol.is_quiet() && self.may_query()
    }

    /// The same, but that a transaction may be open.
    fn may_query(&self) -> bool {
        self.login.is_none()
            && self.protocol.may_query()
            && self.whole == 0
            && self.sent.at_boundary()
            && self.half_header.is_empty()
    }

    /// Tells the pulse of the frames that have become whole in the inbox.
    fn take_stock(&mut self) -> io::Result<()> {
        let Self { inbox, protocol, login, current, kept, keeps, .. } = self;
        self.whole = frame::whole_frames(Direction::Backend, inbox, |frame| {
            protocol.received(frame.tag, frame.body.first().copied());
            match frame.tag {
                b'S' => note_parameter(current, frame.body),
                b'A' if *keeps => message::passed_on(kept, frame.tag, frame.body),
                _ => {}
            }
            if let Some(login) = login {
                login.learn(frame.tag, frame.body);
            }
        })
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(())
    }

    fn poll_read_home(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.whole == 0 {
                self.take_stock()?;
            }
            if self.whole > 0 {
                let taken = self.whole.min(buf.remaining());
                buf.put_slice(&self.inbox[..taken]);
                self.inbox.advance(taken);
                self.whole -= taken;
                return Poll::Ready(Ok(()));
            }
            self.inbox.reserve(8192);
            let read = tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.inbox);
            if std::task::ready!(read)? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_write_home(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = std::task::ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        if self.login.is_none() {
            self.note_sent(&buf[..written])?;
        }
        Poll::Ready(Ok(written))
    }

    /// Tells the pulse what tokio-postgres sends, however it is cut.
    fn note_sent(&mut self, bytes: &[u8]) -> io::Result<()> {
        let joined;
        let mut rest = if self.half_header.is_empty() {
            bytes
        } else {
            joined = [std::mem::take(&mut self.half_header).as_slice(), bytes].concat();
            &joined
        };
        while !rest.is_empty() {
            match self.sent.next(rest, true, |_| 0) {
                Ok(Cut::Frame(frame, taken)) => {
                    self.protocol.sent(frame.tag);
                    rest = &rest[taken..];
                }
                Ok(Cut::Body(_, taken)) => rest = &rest[taken..],
                Ok(Cut::More) => {
                    self.half_header = rest.to_vec();
                    break;
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        Ok(())
    }
}

/// Keeps parameters true to a ParameterStatus.
pub(crate) fn note_parameter(current: &mut Arc<Vars>, body: &[u8]) {
    if let Some((name, value)) = read_parameter_status(body) {
        set_parameter(current, name, value);
    }
}

/// Sets one of them; what is shared is copied only if it is another value.
pub(crate) fn set_parameter(current: &mut Arc<Vars>, name: &str, value: &str) {
    if current.get(name).map(String::as_str) != Some(value) {
        Arc::make_mut(current).insert(name.to_owned(), value.to_owned());
    }
}

impl Login {
    fn learn(&mut self, tag: u8, body: &[u8]) {
        match tag {
            b'S' => {
                if let Some((name, value)) = read_parameter_status(body) {
                    self.parameters.insert(name.to_owned(), value.to_owned());
                }
            }
            b'K' => {
                if let Some((pid, key)) = body.split_first_chunk::<4>() {
                    self.backend_pid = i32::from_be_bytes(*pid);
                    self.cancel_key = key.to_vec();
                }
            }
            b'Z' => self.done = true,
            _ => {}
        }
    }
}

/// Where the wire is.
enum WireAt {
    /// With tokio-postgres. Goes to `Lent`, or `Gone`.
    Home(Box<Wire>),
    /// With the relay. Goes to `Home`, or `Gone`.
    Lent,
    /// Nowhere any more.
    Gone,
}

impl WireAt {
    /// Reads what has come, without waiting; true if there was anything, the end included.
    fn poll_news(&mut self) -> bool {
        let WireAt::Home(wire) = self else { return true };
        let wire = &mut **wire;
        wire.inbox.reserve(1024);
        let read = match &mut wire.io {
            Io::Tcp(stream) => stream.try_read_buf(&mut wire.inbox),
            Io::Unix(stream) => stream.try_read_buf(&mut wire.inbox),
            io @ (Io::Tls(_) | Io::Served(_)) => {
                let mut cx = Context::from_waker(Waker::noop());
                return tokio_util::io::poll_read_buf(Pin::new(io), &mut cx, &mut wire.inbox).is_ready();
            }
        };
        !read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

struct LeaseState {
    place: WireAt,
    /// The connection task of tokio-postgres, while it waits.
    home: Option<Waker>,
}

/// The switch between the two ends. Clones are the same switch.
#[derive(Clone)]
pub(crate) struct WireLease(Arc<Mutex<LeaseState>>);

/// The wire cannot be lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotLent {
    /// Something is owed, or half a frame is in the air.
    NotQuiet,
    /// It is lent already, or gone.
    NotHome,
}

impl WireLease {
    /// A switch with nothing on it; [`WireLease::attach`] comes next.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(LeaseState { place: WireAt::Gone, home: None })))
    }

    /// Puts a fresh transport on the switch and gives the home end for tokio-postgres.
    /// `binding` is the TLS channel binding of the transport.
    pub(crate) fn attach(&self, io: Io, binding: ChannelBinding) -> HomeEnd {
        self.lock().place = WireAt::Home(Box::new(Wire::new(io)));
        HomeEnd { wire_lease: self.clone(), binding: Mutex::new(Some(binding)) }
    }

    /// What the server said at login; once, after login is done.
    pub(crate) fn take_login(&self) -> Option<Login> {
        match &mut self.lock().place {
            WireAt::Home(wire) if wire.login.as_ref().is_some_and(|login| login.done) => wire.login.take(),
            _ => None,
        }
    }

    /// Looks, without waiting, whether the wire could be lent: at home, quiet, and the server has not
    /// said anything, nor hung up, since it came home.
    ///
    /// # Errors
    /// Why it could not. If the server spoke, the connection task is woken to hear it.
    pub(crate) fn look(&self) -> Result<(), NotLent> {
        let mut shared = self.lock();
        match &mut shared.place {
            // What another look has read is for the connection task to hear first, which is awake.
            WireAt::Home(wire) if wire.is_quiet() && wire.inbox.is_empty() => {}
            WireAt::Home(_) => return Err(NotLent::NotQuiet),
            WireAt::Lent | WireAt::Gone => return Err(NotLent::NotHome),
        }
        if shared.place.poll_news() {
            drop(shared);
            self.wake_home();
            return Err(NotLent::NotQuiet);
        }
        Ok(())
    }

    /// Takes the wire for the relay.
    ///
    /// # Errors
    /// When it is not at home or not quiet; nothing has changed then.
    pub(crate) fn lend(&self) -> Result<Box<Wire>, NotLent> {
        self.lend_if(Wire::is_quiet)
    }

    /// As [`WireLease::lend`], also within a transaction, if nothing is in flight.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn lend_again(&self) -> Result<Box<Wire>, NotLent> {
        self.lend_if(Wire::may_query)
    }

    fn lend_if(&self, may: impl Fn(&Wire) -> bool) -> Result<Box<Wire>, NotLent> {
        let mut shared = self.lock();
        match std::mem::replace(&mut shared.place, WireAt::Gone) {
            WireAt::Home(wire) if may(&wire) => {
                shared.place = WireAt::Lent;
                Ok(wire)
            }
            other => {
                let error =
                    if matches!(other, WireAt::Home(_)) { NotLent::NotQuiet } else { NotLent::NotHome };
                shared.place = other;
                Err(error)
            }
        }
    }

    /// Brings the wire home. The connection task is not woken: it has nothing to do until it is asked
    /// something, and [`WireLease::wake_home`] makes it look whether the server is still there.
    pub(crate) fn give_back(&self, wire: Box<Wire>) {
        let mut shared = self.lock();
        if matches!(shared.place, WireAt::Lent) {
            shared.place = WireAt::Home(wire);
        }
    }

    /// Lets the connection task read: it then learns of a server that has gone.
    pub(crate) fn wake_home(&self) {
        let waker = self.lock().home.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The parameters as the server reported them last, if the wire is at home.
    pub(crate) fn current(&self) -> Option<Arc<Vars>> {
        match &self.lock().place {
            WireAt::Home(wire) => Some(Arc::clone(&wire.current)),
            WireAt::Lent | WireAt::Gone => None,
        }
    }

    /// Whether the wire is at home and quiet.
    pub(crate) fn is_quiet_at_home(&self) -> bool {
        matches!(&self.lock().place, WireAt::Home(wire) if wire.is_quiet())
    }

    /// Whether a transaction is open on the wire at home.
    #[cfg(test)]
    pub(crate) fn in_transaction_at_home(&self) -> bool {
        matches!(&self.lock().place, WireAt::Home(wire) if wire.protocol.in_transaction())
    }

    /// Drops the wire if it is at home, and ends the connection of tokio-postgres either way.
    #[cfg(test)]
    pub(crate) fn sever(&self) {
        self.lock().place = WireAt::Gone;
        self.wake_home();
    }

    fn lock(&self) -> MutexGuard<'_, LeaseState> {
        self.0.lock()
    }
}

impl Default for WireLease {
    fn default() -> Self {
        Self::new()
    }
}

/// The stream that tokio-postgres talks through.
pub(crate) struct HomeEnd {
    wire_lease: WireLease,
    /// Asked for once, at login.
    binding: Mutex<Option<ChannelBinding>>,
}

impl Drop for HomeEnd {
    fn drop(&mut self) {
        let place = std::mem::replace(&mut self.wire_lease.lock().place, WireAt::Gone);
        drop(place);
    }
}

impl AsyncRead for HomeEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.wire_lease.lock();
        shared.home = Some(cx.waker().clone());
        match &mut shared.place {
            WireAt::Home(wire) => wire.poll_read_home(cx, buf),
            WireAt::Lent => Poll::Pending,
            WireAt::Gone => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for HomeEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut shared = self.wire_lease.lock();
        shared.home = Some(cx.waker().clone());
        match &mut shared.place {
            WireAt::Home(wire) => wire.poll_write_home(cx, buf),
            WireAt::Lent => Poll::Pending,
            WireAt::Gone => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire_lease.lock().place {
            WireAt::Home(wire) => Pin::new(&mut wire.io).poll_flush(cx),
            WireAt::Lent | WireAt::Gone => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire_lease.lock().place {
            WireAt::Home(wire) => Pin::new(&mut wire.io).poll_shutdown(cx),
            WireAt::Lent | WireAt::Gone => Poll::Ready(Ok(())),
        }
    }
}

impl TlsStream for HomeEnd {
    fn channel_binding(&self) -> ChannelBinding {
        let binding = self.binding.lock().take();
        binding.unwrap_or_else(ChannelBinding::none)
    }
}
