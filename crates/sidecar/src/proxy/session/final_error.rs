//! What a client is told when its session ends.

use std::mem::MaybeUninit;

use pgleash_core::Reason;
use pgleash_wire::message;
use pgleash_wire::message::SqlState;

use crate::net::stream::Io;
use crate::pool::describe;
use crate::pool::state::CheckoutError;
use crate::upstream::connector::is_unreachable;

/// What a client is told that gets no connection: the server's own words if it had any.
pub(crate) fn refusal(error: &CheckoutError) -> Vec<u8> {
    let said = error.to_string();
    match error {
        CheckoutError::Exhausted(_) => message::fatal(
            SqlState::TooManyConnections,
            &said,
            Some("The holders are listed on the admin page and at /api/v1/snapshot."),
        ),
        CheckoutError::Upstream(error) => refused_by_server(error),
        CheckoutError::Unreachable(_) => unreachable(&said),
        CheckoutError::Paused(_) => {
            message::fatal(SqlState::CannotConnectNow, &said, Some("Whoever paused it has to resume it."))
        }
        CheckoutError::Stalled => message::fatal(SqlState::ConnectionFailure, &said, None),
        CheckoutError::Refused(state, message) => message::fatal(*state, message, None),
        CheckoutError::Closed => draining(),
    }
}

fn refused_by_server(error: &tokio_postgres::Error) -> Vec<u8> {
    match error.as_db_error() {
        Some(db) => message::fatal_from_server(db.code().code(), db.message(), db.detail(), db.hint()),
        None if !is_unreachable(error) => message::fatal(
            SqlState::InvalidPassword,
            &format!("upstream server did not let pgleash in: {}", describe(error)),
            Some("pgleash has a password for the user of upstream.url only."),
        ),
        None => unreachable(&format!("upstream server is unreachable: {}", describe(error))),
    }
}

fn unreachable(said: &str) -> Vec<u8> {
    let hint = "Check upstream.url and the server; pgleash check tells more.";
    message::fatal(SqlState::ConnectionFailure, said, Some(hint))
}

/// What every client is told while pgleash drains.
pub(crate) fn draining() -> Vec<u8> {
    message::fatal(SqlState::AdminShutdown, "terminating connection: pgleash is draining", None)
}

/// What a client is told whose server connection is gone.
pub(crate) fn lost() -> Vec<u8> {
    message::fatal(
        SqlState::ConnectionFailure,
        "the upstream server closed the connection unexpectedly",
        None,
    )
}

/// Who asked for a reclaim.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The watchdog.
    ByLimit,
    /// An administrator.
    ByHand,
}

/// What a client is told whose connection was taken.
pub(crate) fn reclaimed(reason: Reason, asked: Asked) -> Vec<u8> {
    let (state, message) = match reason {
        Reason::IdleSession => {
            (SqlState::IdleSessionTimeout, "idle session held for longer than leaks.idle_session")
        }
        Reason::ProtocolWedge => {
            (SqlState::ProtocolViolation, "the server waited in mid-protocol for the client")
        }
        _ => (
            SqlState::IdleInTransactionTimeout,
            "idle in transaction for longer than leaks.idle_in_transaction",
        ),
    };
    let message = if asked == Asked::ByHand { "an administrator asked for it" } else { message };
    let message = format!("terminating connection: taken back by pgleash, {message}");
    let hint = "The transaction, if any, was rolled back. Look for a code path that does not return its \
                connection.";
    message::fatal(state, &message, Some(hint))
}

/// Takes what has come from a client that has been told its last word. A socket that is closed with unread bytes in
/// it is answered for with a reset, and that may overtake the word (RFC 1122, 4.2.2.13).
pub(crate) fn drop_unread(io: &Io) {
    /// Nobody is heard for longer.
    const MOST: usize = 64;
    let mut bytes = [MaybeUninit::uninit(); 4096];
    let Some(socket) = io.socket() else { return };
    for _ in 0..MOST {
        if !matches!(socket.recv(&mut bytes), Ok(1..)) {
            return;
        }
    }
}
