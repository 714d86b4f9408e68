//! Why a relay ends, who may tell it to, and what it tells until then. Floor 4.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::wire::frame::FrameError;
use crate::wire::pin::Pin;

use super::reader::Said;

/// What others may tell a session to do.
#[derive(Debug, Default)]
pub struct Orders(AtomicU8);

impl Orders {
    /// Leave at the next quiet moment.
    pub fn drain(&self) {
        self.0.fetch_max(1, Ordering::AcqRel);
    }

    /// Leave now.
    pub fn cut(&self) {
        self.0.fetch_max(2, Ordering::AcqRel);
    }

    /// Whether it was told to leave.
    pub fn is_draining(&self) -> bool {
        self.0.load(Ordering::Acquire) >= 1
    }

    /// Whether it was told to leave now.
    pub fn is_cut(&self) -> bool {
        self.0.load(Ordering::Acquire) >= 2
    }
}

/// What the ledger is told while a checkout is out.
#[derive(Debug)]
pub enum News {
    /// The connection stays with its client, for this reason.
    Pinned(Pin),
    /// The client has said this of its work.
    Said(Said),
}

/// Why a relay ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The transaction is over and nothing keeps the connection.
    Quiet,
    /// Nothing is in flight, and the server has to be asked what the client's statements have changed, or its own
    /// parameters have to be set again.
    Unsettled,
    /// The client is about to read values of sequences, and those of another session may be there.
    Sequences,
    /// The client said Terminate.
    Goodbye,
    /// The client's socket is gone.
    ClientGone,
    /// The server's socket is gone. True if its last word said so.
    ServerGone(bool),
    /// The keeper has taken the connection.
    Taken,
    /// The session was told to leave, and the moment is quiet.
    Drained,
    /// The session was told to leave at once.
    Cut,
    /// The client broke the protocol.
    Violation(FrameError),
    /// It cannot be told any more what the server answers.
    Lost,
}

/// How a relay left things.
#[derive(Debug)]
pub struct Ended {
    /// Why it ended.
    pub end: End,
    /// Whether the client may be told something: it has not been sent half a frame.
    pub client_at_boundary: bool,
    /// Whether the server may be sent something: it has not been sent half a frame.
    pub server_at_boundary: bool,
}
