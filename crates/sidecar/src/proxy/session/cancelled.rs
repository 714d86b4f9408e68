//! A statement is cancelled that still waits for a connection: its client is told as the server would tell it, and
//! nothing of it is sent.

use std::future::poll_fn;
use std::task::Poll;

use pgleash_wire::frame::Cut;
use pgleash_wire::message;
use pgleash_wire::message::SqlState;
use tokio::io::AsyncWriteExt;

use crate::proxy::session::Session;

impl Session {
    /// Answers the batch that waits, and drops it; whether the session goes on.
    ///
    /// Not cancel safe: a dropped call loses the place in the conversation.
    pub(super) async fn answer_cancelled(&mut self) -> bool {
        self.handle.client_phase.rests();
        let error = message::error(SqlState::QueryCanceled, "canceling statement due to user request");
        // A client may wait for it before it ends its batch.
        if !self.writes(&error).await || !self.drops_batch().await {
            return false;
        }
        let mut ready = Vec::new();
        message::ready_for_query(&mut ready);
        self.writes(&ready).await
    }

    async fn writes(&mut self, bytes: &[u8]) -> bool {
        let writing = async {
            self.client.write_all(bytes).await?;
            self.client.flush().await
        };
        // Whoever does not take so little in time has gone.
        matches!(tokio::time::timeout(Self::LAST_WORD, writing).await, Ok(Ok(())))
    }

    /// Drops one Query, or all up to a Sync; false if the client has left or is not understood.
    async fn drops_batch(&mut self) -> bool {
        let mut ends = None;
        poll_fn(|cx| {
            loop {
                while !self.up.unseen().is_empty() {
                    let taken = match self.up.next(|_| 0) {
                        Err(_) => return Poll::Ready(false),
                        Ok(Cut::More) => break,
                        Ok(Cut::Frame(frame, _)) if frame.tag == b'X' => return Poll::Ready(false),
                        Ok(Cut::Frame(frame, taken)) => {
                            ends = Some(matches!(frame.tag, b'Q' | b'F' | b'S'));
                            taken
                        }
                        Ok(Cut::Body(_, taken)) => taken,
                    };
                    self.up.drop_next(taken);
                    if self.up.ends_frame() && ends == Some(true) {
                        return Poll::Ready(true);
                    }
                }
                match std::task::ready!(self.up.poll_fill(cx, &mut self.client)) {
                    Ok(0) | Err(_) => return Poll::Ready(false),
                    Ok(_) => {}
                }
            }
        })
        .await
    }
}
