//! Prepared statements of clients that share server connections.
//!
//! A client's names are its own ([`Names`]); a server connection has its own set of statements, under
//! names of ours (`server_cache`). In between, frames are renamed; a statement that is not where it is used
//! is made there first; and the replies to what the client did not send are taken out. The order of
//! replies, and what an error skips, are kept in one queue (`due`), one entry for each reply.
//!
//! A new name always goes to the server as a Parse, so its errors and its freshness are the server's. It
//! is followed by a Describe of ours, which tells what the statement is: its parameters and its rows.
//!
//! What a message changes is applied when its reply comes, in order. Until then it waits in `changes`,
//! so what is skipped after an error has changed nothing.

pub(crate) mod client_names;
pub(crate) mod from_client;
pub(crate) mod from_server;
pub(crate) mod pending_replies;
pub(crate) mod rewrite;
pub(crate) mod server_cache;
pub(crate) mod statement;
#[cfg(test)]
mod tests;
pub(crate) mod unnamed;

use std::collections::VecDeque;
use std::sync::Arc;

use pgleash_core::{Pin, Pins};

use crate::conn_state::ProtocolState;
use crate::prepared::client_names::{Held, Parsed};
use crate::prepared::pending_replies::{Due, Queue, What};
use crate::prepared::server_cache::{Number, ServerCache};
use crate::prepared::statement::Scope;

pub use crate::prepared::client_names::Names;
pub use crate::prepared::from_client::Up;
pub use crate::prepared::from_server::Down;
pub use crate::prepared::statement::Library;

/// One server connection's prepared statements, and what is due on it.
#[derive(Debug, Default)]
pub struct Prepared {
    server_cache: ServerCache,
    due: Queue,
    changes: VecDeque<Change>,
    /// So many of them, from the front, are of batches that have ended: what follows is not skipped with
    /// them, and has to wait for what became of them.
    doubtful: usize,
    course: Course,
    copy: Copy,
    parsing: Parsing,
    /// The text and the types of the Parse that is passing.
    passing: Vec<u8>,
    /// Room for the next ones.
    spare: Vec<Vec<u8>>,
    /// A portal that was bound to a `DEALLOCATE` of this: it counts when it is executed.
    bound: Option<(Box<[u8]>, Target)>,
    /// What the frame that passed last leaves behind when it runs.
    pins: Pins,
    /// Bytes to be sent to the server before anything else.
    out: Vec<u8>,
    reading: from_server::Reading,
}

/// A statement by the client's name and ours.
type Target = (Arc<[u8]>, Number);

/// What a client's message does to its names once it is answered.
#[derive(Debug)]
enum Change {
    Make(Arc<[u8]>, Number, Pins),
    Forget(Arc<[u8]>),
    Unnamed(After),
}

/// What becomes of the unnamed statement.
#[derive(Debug)]
enum After {
    Same,
    Gone,
    Parsed(Parsed),
}

/// What the client's next message meets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Course {
    #[default]
    Clear,
    /// It has to wait until a statement of its own is made here. Goes to `Clear`, `Fails` or `Skipped`.
    Awaits,
    /// The statement made here gives other rows than the client knows: it has to fail.
    Fails,
    /// The server skips to the next Sync.
    Skipped,
}

/// Whether the server takes COPY data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Copy {
    #[default]
    No,
    Taking,
}

/// Whose Parse is passing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Parsing {
    #[default]
    No,
    Unnamed,
    /// A new name, and its number.
    New(Number),
    /// As `New`, and longer than is kept.
    Long,
}

/// What a name means to the client at this point of its conversation.
enum Found {
    Nothing,
    /// That is not known yet, but the server has been asked to say.
    Doubtful,
    Held(Arc<[u8]>, Held),
}

impl Prepared {
    /// Body bytes in which the names of a message are looked for; they must be there at once. A name of
    /// this length has no use: the server tells them apart by 63 bytes.
    pub const NAMES: usize = 4096;

    /// A client begins: nothing is due.
    pub fn begin(&mut self, names: &mut Names) {
        self.settle();
        self.out.clear();
        (self.course, self.copy, self.parsing) = Default::default();
        self.reading = from_server::Reading::default();
        self.bound = None;
        names.arrive();
    }

    /// A transaction is over, or perhaps only one before it, in which this was changed.
    pub fn transaction_over(&mut self, changed: Pins, names: &mut Names) {
        if !changed.within(Pins::NAMES_IN_TRANSACTION).is_empty() {
            names.meanings_change();
        }
        if !changed.is_empty() {
            let era = names.next_era();
            self.server_cache.discard_copies(era);
        }
    }

    /// Nothing is owed by the server any more.
    pub fn settle(&mut self) {
        if !self.due.is_empty() {
            self.due.clear();
            self.changes.clear();
            self.doubtful = 0;
        }
        self.copy = Copy::No;
    }

    /// The server has discarded everything.
    pub fn forget_all(&mut self) {
        self.server_cache.clear();
    }

    /// How many body bytes of a client's frame with this tag must be at hand at once.
    pub const fn wanted_up(tag: u8) -> usize {
        match tag {
            b'P' | b'B' | b'D' | b'C' | b'E' => Self::NAMES,
            b'Q' => rewrite::LONGEST_DEALLOCATE,
            // The function's oid.
            b'F' => 4,
            _ => 0,
        }
    }

    /// The same for a server's frame.
    pub const fn wanted_down(tag: u8) -> usize {
        match tag {
            b'E' | b'N' => usize::MAX,
            b'C' => 64,
            _ => 0,
        }
    }

    /// Whether so much is due that the client has to wait with more.
    pub fn is_full(&self) -> bool {
        self.due.is_full()
    }

    /// What has to be sent to the server now, before what is cleared next.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// What the statement that the last frame ran leaves behind.
    pub fn take_pins(&mut self) -> Pins {
        std::mem::take(&mut self.pins)
    }

    /// What the client means by a name, with what it has sent taken for done.
    fn find(&self, names: &Names, name: &[u8]) -> Found {
        if self.due.has_query() {
            return Found::Doubtful;
        }
        let name = client_names::key(name);
        for (at, change) in self.changes.iter().enumerate().rev() {
            let (Change::Make(of, ..) | Change::Forget(of)) = change else { continue };
            match change {
                _ if **of == *name && at < self.doubtful => return Found::Doubtful,
                Change::Make(made, number, pins) if **made == *name => {
                    return Found::Held(Arc::clone(made), Held::Here(*number, *pins));
                }
                Change::Forget(gone) if **gone == *name => return Found::Nothing,
                Change::Make(..) | Change::Forget(_) | Change::Unnamed(_) => {}
            }
        }
        match names.get(name) {
            Some((name, held)) => Found::Held(Arc::clone(name), held.clone()),
            None => Found::Nothing,
        }
    }

    /// The first of the changes that wait, whose reply has come or will not come.
    fn take_change(&mut self) -> Option<Change> {
        self.doubtful = self.doubtful.saturating_sub(1);
        self.changes.pop_front()
    }

    /// A message has failed, and what was made for it alone is there still.
    fn unused(&mut self, target: Option<&Target>) {
        if let Some((_, number)) = target {
            self.server_cache.discard(*number);
        }
    }

    /// A name of the client's is closed.
    fn forgotten(&mut self, name: &[u8], names: &mut Names) {
        // Nobody else knows of it.
        let number = match names.get(name) {
            Some((_, Held::Here(number, _))) => Some(*number),
            Some((_, Held::Anywhere(statement))) if matches!(statement.scope, Scope::Client(..)) => {
                self.server_cache.find(statement)
            }
            Some((_, Held::Anywhere(_))) | None => None,
        };
        number.into_iter().for_each(|number| self.server_cache.discard(number));
        names.remove(name);
    }

    /// Says something to the server that the client did not say.
    fn say(&mut self, protocol: &mut ProtocolState, tag: u8, body: &[&[u8]]) {
        let length: usize = body.iter().map(|part| part.len()).sum();
        self.out.push(tag);
        self.out.extend((length as u32 + 4).to_be_bytes());
        body.iter().for_each(|part| self.out.extend_from_slice(part));
        protocol.sent(tag);
    }

    /// Closes what nobody will use, ahead of what is said next.
    fn say_discards(&mut self, protocol: &mut ProtocolState) {
        for number in self.server_cache.take_discarded() {
            self.say(protocol, b'C', &[b"S", &rewrite::name_of(number)]);
            self.due.push(What::Discard(number), None);
        }
    }

    /// The server has not done this, as it skips to the next Sync.
    fn undo(&mut self, due: &Due, names: &mut Names) {
        match &due.what {
            // If the statement is there, what it is will not be told: the client keeps the connection.
            What::Learn(_) => {
                let made = due.name.as_ref().and_then(|(name, _)| names.get(name));
                if matches!(made, Some((_, Held::Here(..)))) {
                    self.pins.add(Pin::PreparedStatement);
                }
            }
            What::Make | What::Forget | What::CloseUnnamed => drop(self.take_change()),
            What::ParseUnnamed => drop(self.take_parsed()),
            What::Deallocate => {
                self.take_change();
                self.unused(due.name.as_ref());
            }
            What::Query => {
                self.take_change();
                self.unused(due.name.as_ref());
            }
            What::Parse => {
                if let Some((name, number)) = &due.name
                    && matches!(names.get(name), Some((_, Held::Anywhere(_))))
                {
                    self.server_cache.discard_stub(*number);
                }
            }
            What::Discard(number) => self.server_cache.discard(*number),
            What::Copy | What::Check(..) | What::CheckUnnamed(_) if self.course == Course::Awaits => {
                self.course = Course::Clear;
            }
            _ => {}
        }
    }
}
