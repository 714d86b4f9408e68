//! Why a relay ends, who may tell it to, and what it tells until then.

use pgleash_core::Pin;
use pgleash_wire::Said;
use pgleash_wire::frame::FrameError;

/// What the ledger is told while a checkout is out.
#[derive(Debug)]
pub(crate) enum News {
    /// The connection stays with its client, for this reason.
    Pinned(Pin),
    /// The client has said this of its work.
    Said(Said),
}

/// Why a relay ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
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
    /// The watchdog has taken the connection.
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
pub(crate) struct Ended {
    /// Why it ended.
    pub end: End,
    /// Whether the client may be told something: it has not been sent half a frame.
    pub client_at_boundary: bool,
    /// Whether the server may be sent something: it has not been sent half a frame.
    pub server_at_boundary: bool,
}
