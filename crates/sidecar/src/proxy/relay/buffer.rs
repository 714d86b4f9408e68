//! One direction of a relay: a buffer of fixed size between two sockets.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, BytesMut};
use pgleash_wire::frame::{Cut, Cutter, Direction, FrameError};
use tokio::io::AsyncWrite;

use crate::net::stream::Io;

thread_local! {
    /// What idle pipes have let go of, for those that are about to be used: at most [`Pipe::SPARES`].
    static SPARES: RefCell<Vec<(BytesMut, Vec<u8>)>> = const { RefCell::new(Vec::new()) };
}

/// One direction's bytes: what was put in, what is cleared to go on, then what has not been looked at.
///
/// Usually nothing is put in, and bytes go out from where they came in.
#[derive(Debug)]
pub(crate) struct Pipe {
    /// Goes out before what is cleared.
    out: Vec<u8>,
    buf: BytesMut,
    cleared: usize,
    /// Whether the other side's socket has been given bytes that it may still keep to itself.
    unflushed: bool,
    /// Whether the last read found less than there was room for.
    dry: bool,
    cutter: Cutter,
}

impl Pipe {
    /// Bytes that one direction buffers at most.
    const CAPACITY: usize = 16 * 1024;
    /// Room for a usual statement; more is taken when more comes.
    const FIRST: usize = 1024;
    /// Room for what is put in, with what goes out behind it.
    const OUT: usize = 256;
    /// Buffers that a thread keeps for the next who need some. Larger ones are not kept.
    const SPARES: usize = 16;

    /// An empty pipe at a frame boundary.
    pub(crate) fn new(direction: Direction) -> Self {
        Self {
            out: Vec::new(),
            buf: BytesMut::new(),
            cleared: 0,
            unflushed: false,
            dry: false,
            cutter: Cutter::new(direction),
        }
    }

    /// A pipe at a frame boundary with bytes in it that nobody has looked at.
    pub(crate) fn holding(direction: Direction, bytes: BytesMut) -> Self {
        Self { buf: bytes, ..Self::new(direction) }
    }

    /// What has not been cleared, and where in the stream that is. What was cleared is dropped.
    pub(crate) fn into_rest(mut self) -> (BytesMut, Cutter) {
        self.buf.advance(self.cleared);
        (self.buf, self.cutter)
    }

    /// Bytes that wait, cleared or not.
    pub(crate) fn is_empty(&self) -> bool {
        self.buf.is_empty() && self.out.is_empty()
    }

    /// Whether all that was cleared has gone and ended a frame.
    pub(crate) fn at_boundary(&self) -> bool {
        !self.is_draining() && self.cutter.at_boundary()
    }

    /// Whether the last byte that was cleared ended a frame.
    pub(crate) fn ends_frame(&self) -> bool {
        self.cutter.at_boundary()
    }

    /// Bytes that are cleared and not written.
    pub(crate) fn cleared(&self) -> usize {
        self.out.len() + self.cleared
    }

    /// These many more bytes may go on.
    pub(crate) fn clear(&mut self, bytes: usize) {
        self.cleared += bytes;
    }

    /// These go on, behind what is cleared; none are left behind.
    pub(crate) fn put(&mut self, bytes: &mut Vec<u8>) {
        if !bytes.is_empty() {
            self.out.reserve(Self::OUT.max(self.cleared + bytes.len()));
            self.set_aside();
            self.out.append(bytes);
        }
    }

    /// So many bytes of what comes next do not go on.
    pub(crate) fn drop_next(&mut self, bytes: usize) {
        self.set_aside();
        self.buf.advance(bytes);
    }

    /// Makes what is cleared go out before what is put in next.
    fn set_aside(&mut self) {
        self.out.extend_from_slice(&self.buf[..self.cleared]);
        self.buf.advance(std::mem::take(&mut self.cleared));
    }

    /// Where in its stream the next frame is.
    pub(crate) fn place(&self) -> Cutter {
        self.cutter.clone()
    }

    /// Back to where the next frame was: it has not been taken.
    pub(crate) fn back_to(&mut self, place: Cutter) {
        self.cutter = place;
    }

    /// Whether something that was cleared is still to be written or flushed: TLS keeps bytes of its own.
    pub(crate) fn is_draining(&self) -> bool {
        self.cleared() > 0 || self.unflushed
    }

    /// Whether more may be read.
    pub(crate) fn has_room(&self) -> bool {
        self.buf.len() < Self::CAPACITY && self.out.len() < Self::CAPACITY
    }

    /// The bytes that have not been looked at.
    pub(crate) fn unseen(&self) -> &[u8] {
        &self.buf[self.cleared..]
    }

    /// Whether what waits is enough for a relay to act on: a whole header with as much of the body as
    /// is wanted, or an error. Half a header is not worth a server connection.
    pub(crate) fn can_cut(&self, want: impl FnOnce(u8) -> usize) -> bool {
        let full = self.buf.len() >= Self::CAPACITY;
        !matches!(self.cutter.clone().next(self.unseen(), full, want), Ok(Cut::More))
    }

    /// Drops what has not been looked at.
    pub(crate) fn forget_unseen(&mut self) {
        self.buf.truncate(self.cleared);
    }

    /// Whether the last read found less than there was room for: there is probably nothing more.
    pub(crate) fn ran_dry(&self) -> bool {
        self.dry
    }

    /// Lets go of the memory while nothing waits.
    pub(crate) fn shrink(&mut self) {
        if !self.is_empty() {
            return;
        }
        let (mut buf, out) = (std::mem::take(&mut self.buf), std::mem::take(&mut self.out));
        if buf.capacity() == 0 && out.capacity() == 0 {
            return;
        }
        // As a whole, and not only what is behind the bytes that have gone.
        let is_large = buf.try_reclaim(2 * Self::FIRST + 1);
        buf.reserve(Self::FIRST);
        if !is_large && out.capacity() <= 2 * Self::OUT {
            SPARES.with_borrow_mut(|spares| {
                if spares.len() < Self::SPARES {
                    spares.push((buf, out));
                }
            });
        }
    }

    /// Reads what is there, into the room there is. 0 is the end. Cancel safe.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, io: &mut Io) -> Poll<io::Result<usize>> {
        let room = Self::CAPACITY - self.buf.len();
        if self.buf.capacity() == 0
            && let Some((buf, out)) = SPARES.with_borrow_mut(Vec::pop)
        {
            self.buf = buf;
            if self.out.capacity() == 0 {
                self.out = out;
            }
        }
        if self.buf.capacity() == self.buf.len() {
            self.buf.reserve(if self.buf.is_empty() { Self::FIRST } else { room });
        }
        let mut space = (&mut self.buf).limit(room);
        let read = tokio_util::io::poll_read_buf(Pin::new(io), cx, &mut space);
        self.dry = self.buf.len() < self.buf.capacity();
        read
    }

    /// Writes what is cleared. Ready when all of it is gone.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, io: &mut Io) -> Poll<io::Result<()>> {
        if !self.out.is_empty() {
            // In one piece, as one packet.
            self.set_aside();
            while !self.out.is_empty() {
                let written = std::task::ready!(Pin::new(&mut *io).poll_write(cx, &self.out))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                if written == self.out.len() {
                    self.out.clear();
                } else {
                    self.out.drain(..written);
                }
                self.unflushed = true;
            }
        }
        while self.cleared > 0 {
            let written = std::task::ready!(Pin::new(&mut *io).poll_write(cx, &self.buf[..self.cleared]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buf.advance(written);
            self.cleared -= written;
            self.unflushed = true;
        }
        std::task::ready!(Pin::new(io).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// The next piece of what has not been looked at; [`Pipe::clear`] lets it go on.
    ///
    /// # Errors
    /// As [`Cutter::next`].
    pub(crate) fn next(&mut self, want: impl FnOnce(u8) -> usize) -> Result<Cut<'_>, FrameError> {
        let full = self.cleared == 0 && self.buf.len() >= Self::CAPACITY;
        self.cutter.next(&self.buf[self.cleared..], full, want)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncRead, ReadBuf};

    use super::*;

    /// Takes every byte at once, as TLS does, and lets go of them when it is asked to for the second time.
    #[derive(Default)]
    struct Keeps {
        asked: usize,
    }

    impl AsyncRead for Keeps {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Keeps {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.asked += 1;
            if self.asked > 1 { Poll::Ready(Ok(())) } else { Poll::Pending }
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn bytes_that_tls_keeps_are_not_forgotten() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut io = Io::Tls(Box::new(Keeps::default()));
        let mut pipe = Pipe::new(Direction::Frontend);
        pipe.buf.extend_from_slice(b"Q\0\0\0\x05\0");
        assert!(matches!(pipe.next(|_| 0), Ok(Cut::Frame(_, 6))));
        pipe.cleared = 6;
        assert!(pipe.poll_drain(&mut cx, &mut io).is_pending());
        assert!(pipe.buf.is_empty() && pipe.is_draining() && !pipe.at_boundary());
        assert!(pipe.poll_drain(&mut cx, &mut io).is_ready());
        assert!(!pipe.is_draining() && pipe.at_boundary());
    }

    /// What it says, and then the end.
    struct Says(&'static [u8]);

    impl AsyncRead for Says {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            buf.put_slice(std::mem::take(&mut self.0));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Says {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[test]
    fn an_idle_pipe_has_no_memory_and_the_next_gets_what_it_had() {
        let (mut first, mut second) = (Pipe::new(Direction::Frontend), Pipe::new(Direction::Frontend));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let says = |text: &'static [u8]| Io::Tls(Box::new(Says(text)));
        assert!(first.poll_fill(&mut cx, &mut says(b"Q\0\0\0\x05\0")).is_ready());
        let memory = first.buf.as_ptr();
        first.shrink();
        assert_eq!(first.unseen(), b"Q\0\0\0\x05\0", "it waits to be looked at");
        first.forget_unseen();
        first.shrink();
        assert_eq!(first.buf.capacity(), 0);
        assert!(second.poll_fill(&mut cx, &mut says(b"S\0\0\0\x04")).is_ready());
        assert_eq!((second.buf.as_ptr(), second.unseen()), (memory, &b"S\0\0\0\x04"[..]));
    }

    #[test]
    fn half_a_header_is_no_statement() {
        let mut pipe = Pipe::new(Direction::Frontend);
        pipe.buf.extend_from_slice(b"P\0\0");
        assert!(!pipe.can_cut(|_| 0));
        pipe.buf.extend_from_slice(b"\0\x20\0se");
        assert!(!pipe.can_cut(|_| 512), "the words are wanted");
        assert!(pipe.can_cut(|_| 0));
        let mut wrong = Pipe::new(Direction::Frontend);
        wrong.buf.extend_from_slice(b"G");
        assert!(wrong.can_cut(|_| 0), "an error is told at once");
    }
}
