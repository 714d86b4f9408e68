//! Listens to a login for the process id that the server tells the client.
//!
//! tokio-postgres keeps the id to itself, and the drill needs it: pgleash tells each client its session
//! number there, which is how a planted leak is matched with what pgleash says of it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest login that is listened to. A server's parameters are a few hundred bytes.
const LOGIN_LIMIT: usize = 64 * 1024;

/// A byte stream from a server, and an ear on it until the login is over.
#[derive(Debug)]
pub struct Tap<S> {
    stream: S,
    heard: Option<Vec<u8>>,
    session: Arc<AtomicU32>,
}

impl<S> Tap<S> {
    /// Wraps a stream on which nothing was read yet. The id appears in the second value when the server
    /// has told it; until then it is 0.
    pub fn new(stream: S) -> (Self, Arc<AtomicU32>) {
        let session = Arc::new(AtomicU32::new(0));
        (Self { stream, heard: Some(Vec::new()), session: session.clone() }, session)
    }

    fn listen(&mut self, bytes: &[u8]) {
        let Some(heard) = &mut self.heard else { return };
        heard.extend_from_slice(bytes);
        match backend_process_id(heard) {
            Heard::Id(id) => self.session.store(id, Ordering::Release),
            Heard::Nothing if heard.len() < LOGIN_LIMIT => return,
            Heard::Nothing | Heard::End => {}
        }
        self.heard = None;
    }
}

enum Heard {
    Id(u32),
    Nothing,
    End,
}

/// Walks the messages of a login up to BackendKeyData, or to the ReadyForQuery that ends it.
fn backend_process_id(mut bytes: &[u8]) -> Heard {
    while let [tag, a, b, c, d, body @ ..] = bytes {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        match (tag, body) {
            (b'K', [a, b, c, d, ..]) => return Heard::Id(u32::from_be_bytes([*a, *b, *c, *d])),
            (b'Z', _) => return Heard::End,
            _ => {}
        }
        match bytes.get(1 + length.max(4)..) {
            Some(rest) => bytes = rest,
            None => break,
        }
    }
    Heard::Nothing
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_ready() && self.heard.is_some() {
            self.listen(&buf.filled()[before..]);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    const LOGIN: &[u8] =
        b"R\0\0\0\x08\0\0\0\0S\0\0\0\x11TimeZone\0UTC\0K\0\0\0\x0c\0\0\x30\x39\xde\xad\xbe\xefZ\0\0\0\x05I";

    async fn session_from(login: &[u8], chunk: usize) -> u32 {
        let mut mock = tokio_test(login, chunk);
        let (mut tap, session) = Tap::new(&mut mock);
        let mut through = Vec::new();
        tap.read_to_end(&mut through).await.unwrap();
        assert_eq!(through, login, "every byte passes");
        session.load(Ordering::Acquire)
    }

    /// A reader that gives `bytes` in chunks.
    fn tokio_test(bytes: &[u8], chunk: usize) -> impl AsyncRead + Unpin + use<> {
        let (mut near, far) = tokio::io::duplex(chunk);
        let bytes = bytes.to_vec();
        tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut near, &bytes).await });
        far
    }

    #[tokio::test]
    async fn the_id_is_heard_however_the_login_is_cut() {
        for chunk in 1..LOGIN.len() {
            assert_eq!(session_from(LOGIN, chunk).await, 12345, "chunks of {chunk}");
        }
    }

    #[tokio::test]
    async fn a_login_without_key_data_has_no_id() {
        assert_eq!(session_from(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I", 3).await, 0);
        assert_eq!(session_from(b"E\0\0\0\x06no\0K", 3).await, 0);
    }
}
