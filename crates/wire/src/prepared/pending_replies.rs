//! The replies that a server connection owes, one for each message that is answered.

use std::collections::VecDeque;
use std::sync::Arc;

use pgleash_core::Pins;

use crate::prepared::client_names::Told;
use crate::prepared::server_cache::Number;
use crate::prepared::statement::{Scope, Statement};

/// One reply that is due, and what becomes of it.
#[derive(Debug)]
pub(crate) struct Due {
    /// For what.
    pub what: What,
    /// The client's name for the statement, and ours: errors speak of it.
    pub name: Option<(Arc<[u8]>, Number)>,
}

/// What a reply is due for. Those marked *ours* are not passed to the client.
#[derive(Debug)]
pub(crate) enum What {
    /// Parse whose outcome changes nothing: of a name that exists, which fails.
    Parse,
    /// Parse of the unnamed statement: the first of the pending changes.
    ParseUnnamed,
    /// Parse of a new name: the first of the pending changes.
    Make,
    /// Ours: Describe of the statement that Make made.
    Learn(Box<Draft>),
    /// Ours: Parse that makes a known statement here.
    Copy,
    /// Ours: Parse that makes something of which only the name is needed.
    Stub,
    /// Ours: Describe of what Copy made.
    Check(Arc<Statement>, Number),
    /// Ours: Describe of the unnamed statement that Copy made, of which the client was told this.
    CheckUnnamed(Box<Told>),
    /// Bind.
    Bind,
    /// Bind or Describe that has to fail, with what, and with the parameters that Describe tells before.
    Fails(Failure, Option<Box<[u8]>>),
    /// Describe.
    Describe,
    /// Describe of the client's unnamed statement.
    DescribeUnnamed,
    /// Close that changes nothing.
    Close,
    /// Close of a name: the first of the pending changes.
    Forget,
    /// Close of the unnamed statement: the same.
    CloseUnnamed,
    /// Ours: Close of a statement that nobody will use.
    Discard(Number),
    /// Execute.
    Execute,
    /// Execute of a DEALLOCATE of a name: the first of the pending changes.
    Deallocate,
    /// No reply is due: the client has ended a COPY, if there was one, so many times.
    CopyEnd(u32),
    /// Query or FunctionCall; everything up to ReadyForQuery. The first of the pending changes.
    Query,
    /// Sync.
    Sync,
}

/// What a client is told that cannot be told so by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The statement would give other rows than the client was told.
    Stale,
    /// It has no unnamed statement, though the connection may have another client's.
    NoUnnamed,
}

/// A statement that is not fully known.
#[derive(Debug)]
pub(crate) struct Draft {
    /// Text, with its NUL, and types as the client gave them.
    pub body: Vec<u8>,
    /// What it leaves behind.
    pub pins: Pins,
    /// Who may use it.
    pub scope: Scope,
    /// How its letters are read.
    pub reading: Option<Arc<str>>,
}

impl Due {
    /// Bytes that are kept for it.
    fn bytes(&self) -> usize {
        let body = match &self.what {
            What::Learn(draft) => draft.body.len(),
            What::Fails(_, parameters) => parameters.as_ref().map_or(0, |parameters| parameters.len()),
            _ => 0,
        };
        body + self.name.as_ref().map_or(0, |(name, _)| name.len())
    }
}

impl What {
    /// Whether this reply is for us.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(
            self,
            What::Learn(_)
                | What::Copy
                | What::Stub
                | What::Check(..)
                | What::CheckUnnamed(_)
                | What::Discard(_)
        )
    }

    /// Whether what Describe says is needed.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self, What::Learn(_) | What::Check(..) | What::CheckUnnamed(_) | What::DescribeUnnamed)
    }

    /// Whether a frame with this tag is the last of its reply.
    fn is_ended_by(&self, tag: u8) -> bool {
        match self {
            What::Parse | What::ParseUnnamed | What::Make | What::Copy | What::Stub => tag == b'1',
            What::Bind => tag == b'2',
            What::Close | What::Forget | What::CloseUnnamed | What::Discard(_) => tag == b'3',
            What::Learn(_)
            | What::Check(..)
            | What::CheckUnnamed(_)
            | What::Describe
            | What::DescribeUnnamed => {
                matches!(tag, b'T' | b'n')
            }
            What::Execute | What::Deallocate => matches!(tag, b'C' | b'I' | b's'),
            What::CopyEnd(_) | What::Fails(..) | What::Query | What::Sync => false,
        }
    }

    /// Whether its end is a ReadyForQuery.
    pub(crate) fn is_point(&self) -> bool {
        matches!(self, What::Query | What::Sync)
    }
}

/// What is due, in order.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    all: VecDeque<Due>,
    /// How many of them are for a Query.
    queries: usize,
    /// Bytes that are kept for them.
    bytes: usize,
    /// Syncs in the COPY that runs: the server ignores them.
    ignored: u32,
    /// Such Syncs of a COPY that has failed: perhaps the server had not read them before. Each may be
    /// answered with a ReadyForQuery that no other message has asked for.
    maybe: u32,
    last: Last,
}

/// What the server has said last.
#[derive(Debug, Default, PartialEq, Eq)]
enum Last {
    #[default]
    Ready,
    Reply,
}

impl Queue {
    /// So much may be due before the client has to wait with more. The server sends what it has once that
    /// is 8 kB, or about 1600 of the shortest replies, so a client that never asks for them is answered.
    pub(crate) const MOST: usize = 10_000;
    /// So many bytes may be kept for it, and those of one statement more. Then it is asked for.
    pub(crate) const MOST_BYTES: usize = 4 * 1024 * 1024;

    /// One more is due.
    pub(crate) fn push(&mut self, what: What, name: Option<(Arc<[u8]>, Number)>) {
        self.queries += usize::from(matches!(what, What::Query));
        let due = Due { what, name };
        self.bytes += due.bytes();
        self.all.push_back(due);
    }

    fn pop(&mut self) -> Option<Due> {
        let due = self.all.pop_front()?;
        self.queries -= usize::from(matches!(due.what, What::Query));
        self.bytes -= due.bytes();
        Some(due)
    }

    /// Whether a Query is not answered yet: its text may have closed any statement.
    pub(crate) fn has_query(&self) -> bool {
        self.queries > 0
    }

    /// Whether the client has to wait with more.
    pub(crate) fn is_full(&self) -> bool {
        self.all.len() >= Self::MOST || self.is_heavy()
    }

    /// Whether it has to wait because of the bytes that are kept.
    pub(crate) fn is_heavy(&self) -> bool {
        self.bytes >= Self::MOST_BYTES
    }

    /// Something has been answered.
    pub(crate) fn replied(&mut self) {
        self.last = Last::Reply;
    }

    /// The client has ended COPY data, which it may have been asked for by what is due.
    pub(crate) fn copy_end(&mut self) {
        match self.all.back_mut() {
            None => {}
            Some(Due { what: What::CopyEnd(times), .. }) => *times = times.saturating_add(1),
            Some(_) => self.push(What::CopyEnd(1), None),
        }
    }

    /// The next that is due.
    pub(crate) fn head(&mut self) -> Option<&Due> {
        while matches!(self.all.front(), Some(Due { what: What::CopyEnd(_), .. })) {
            self.pop();
        }
        self.all.front()
    }

    /// Takes the next if a frame with this tag ends it.
    pub(crate) fn end(&mut self, tag: u8) -> Option<Due> {
        if self.head()?.what.is_ended_by(tag) { self.pop() } else { None }
    }

    /// Takes the next if an error ends it: one that is not ended by a ReadyForQuery.
    pub(crate) fn fail(&mut self) -> Option<Due> {
        self.maybe = self.maybe.saturating_add(std::mem::take(&mut self.ignored));
        if self.head()?.what.is_point() { None } else { self.pop() }
    }

    /// Takes what the server skips after an error, up to a Sync; whether there was one.
    pub(crate) fn skip(&mut self, mut skipped: impl FnMut(Due)) -> bool {
        while let Some(due) = self.all.front() {
            if matches!(due.what, What::Sync) {
                return true;
            }
            self.pop().into_iter().for_each(&mut skipped);
        }
        false
    }

    /// A ReadyForQuery has come: what it ends.
    pub(crate) fn ready(&mut self, mut skipped: impl FnMut(Due)) -> Option<Due> {
        let after_nothing = std::mem::replace(&mut self.last, Last::Ready) == Last::Ready;
        let is_its = |due: &Due| match due.what {
            What::Sync => true,
            What::Query => !after_nothing,
            _ => false,
        };
        if self.maybe > 0 && !self.head().is_some_and(is_its) {
            self.maybe -= 1;
            return None;
        }
        while let Some(due) = self.pop() {
            if due.what.is_point() {
                return Some(due);
            }
            skipped(due);
        }
        None
    }

    /// So many more bytes are kept for what is due.
    pub(crate) fn keep(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// So many fewer.
    pub(crate) fn let_go(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// The server takes COPY data: Syncs between the command that began it and the end of the data are
    /// ignored. Whether that end has been sent already.
    pub(crate) fn copy_begins(&mut self) -> bool {
        self.head();
        while matches!(self.all.get(1), Some(Due { what: What::Sync, .. })) {
            self.all.remove(1);
            self.sync_ignored();
        }
        match self.all.get_mut(1) {
            Some(Due { what: What::CopyEnd(1), .. }) => drop(self.all.remove(1)),
            Some(Due { what: What::CopyEnd(times), .. }) => *times -= 1,
            _ => return false,
        }
        true
    }

    /// The server ignores this Sync, unless its COPY has failed.
    pub(crate) fn sync_ignored(&mut self) {
        self.ignored = self.ignored.saturating_add(1);
    }

    /// A command is complete: if it took COPY data, the Syncs in them were ignored.
    pub(crate) fn copy_ends(&mut self) {
        self.ignored = 0;
    }

    /// Nothing is due; what was, is not.
    pub(crate) fn clear(&mut self) {
        self.all.clear();
        (self.queries, self.bytes, self.ignored, self.maybe) = (0, 0, 0, 0);
    }

    /// Whether nothing is due, nor may be.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.maybe == 0 && self.ignored == 0
    }
}
