//! Who owes whom a reply on one server connection.
//!
//! Fed with the tag of every frame, either way, it answers the questions that decide about a
//! connection's life without a word of SQL: is a statement in flight, is a transaction open, may
//! the connection change hands?

pub(crate) mod copy_sync;
pub(crate) mod pending;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use crate::conn_state::copy_sync::CopySync;
use crate::conn_state::pending::{Batch, Copier, Copy, Half, Last, Owed};

pub use crate::conn_state::copy_sync::Whose;

/// Transaction status as ReadyForQuery reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Tx {
    /// Not in a transaction block.
    #[default]
    Idle,
    /// In a transaction block.
    InBlock,
    /// In a failed transaction block.
    Failed,
}

/// What the connection is about, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnActivity {
    /// Nothing owed, no transaction: the connection may change hands.
    Quiet,
    /// The server has something to do or to say.
    InFlight,
    /// Nothing in flight, a transaction is open.
    InTransaction,
    /// The server has told all that it must tell unasked, and waits, in mid-protocol, for the client:
    /// for a Sync, or for COPY data. Without a Flush it may still be at work, so whoever acts on this
    /// asks the server first.
    AwaitsClient,
}

/// The state of one server connection, as its frames tell it.
#[derive(Debug, Clone, Default)]
pub struct ProtocolState {
    owed: VecDeque<Owed>,
    tx: Tx,
    copy: Copy,
    /// What began it.
    copier: Copier,
    /// Commands that may begin a COPY, sent so far: Execute, Query, FunctionCall.
    commands: u64,
    /// Those of them that have been answered, or skipped.
    done: u64,
    /// Extended-protocol messages have been sent since the last Sync that counted.
    unsynced: bool,
    /// Replies due to those messages.
    replies_due: u32,
    /// A Flush or Sync has asked for those replies; without one the server may hold them back.
    flushed: bool,
    /// One of them failed: the server skips to the next Sync and replies to nothing until then.
    skipping: bool,
    last: Last,
    frame: Half,
    copy_sync: CopySync,
}

impl ProtocolState {
    /// How many ReadyForQuery may be due before the relay stops reading from the client.
    pub const MAX_OWED: usize = 10_000;

    /// A quiet connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// A frame of the client's with this tag is on its way, and may take its time.
    pub fn begun(&mut self, tag: u8) {
        if matches!(tag, b'Q' | b'F' | b'P' | b'B' | b'C' | b'D' | b'E') {
            self.frame = Half::Sent;
            self.copy_sync.sent(self.skipping, self.done);
            if self.copy == Copy::Taking {
                self.copy_sync.strayed();
            }
        }
    }

    /// The client sent a frame with this tag.
    pub fn sent(&mut self, tag: u8) {
        self.frame = Half::No;
        match tag {
            // The server skips these as well.
            b'Q' | b'F' if self.skipping => {}
            b'Q' | b'F' => {
                self.commands += 1;
                self.owed.push_back(Owed::Query { before: self.replies_due, command: self.commands });
                // Its ReadyForQuery ends the batch before it as a Sync would.
                self.unsynced = false;
                self.replies_due = 0;
            }
            // In COPY-in the server ignores Flush and Sync ("COPY Operations").
            b'H' if self.copy == Copy::Taking => {}
            b'S' if self.copy == Copy::Taking => self.copy_sync.ignored(1),
            b'H' => self.flushed = true,
            b'S' => {
                self.copy_sync.synced();
                let ends = if self.unsynced { Batch::OfMessages } else { Batch::Empty };
                self.owed.push_back(Owed::Sync { command: self.commands, ends });
                self.unsynced = false;
                self.skipping = false;
                self.replies_due = 0;
            }
            b'P' | b'B' | b'C' | b'D' | b'E' => {
                self.unsynced = true;
                self.flushed = false;
                self.commands += u64::from(tag == b'E');
                if tag == b'C' {
                    self.copy_sync.close_sent();
                }
                if !self.skipping {
                    self.replies_due = self.replies_due.saturating_add(1);
                }
            }
            b'c' | b'f' if self.copy == Copy::Taking => {
                self.copy = Copy::Ended;
                self.copy_sync.ended(self.done + 1);
            }
            b'c' | b'f' if self.done < self.commands => self.copy_end_sent(),
            _ => {}
        }
    }

    /// The end of COPY data that nobody has heard to be taken. Many of them take no more room than one.
    fn copy_end_sent(&mut self) {
        self.copy_sync.ended(self.commands);
        let synced = |owed: &Owed| matches!(owed, Owed::Sync { command, .. } if *command == self.commands);
        if self.unsynced && self.owed.back().is_some_and(synced) {
            self.copy_sync.burdened(self.commands);
        }
        if let Some(Owed::CopyEnd { command, times }) = self.owed.back_mut()
            && *command == self.commands
        {
            *times = times.saturating_add(1);
        } else {
            self.owed.push_back(Owed::CopyEnd { command: self.commands, times: 1 });
        }
    }

    fn owes(&self) -> bool {
        self.owed.iter().any(|owed| owed.is_owed())
    }

    fn next_owed(&mut self) -> Option<&mut Owed> {
        self.owed.iter_mut().find(|owed| owed.is_owed())
    }

    /// The server sent a frame with this tag; `first` is the first byte of its body.
    pub fn received(&mut self, tag: u8, first: Option<u8>) {
        if !matches!(tag, b'Z' | b'N' | b'S' | b'A') {
            self.last = Last::Reply;
        }
        match tag {
            b'Z' => self.ready(first),
            b'G' => self.copy_in_begins(),
            b'E' => {
                if std::mem::take(&mut self.copy) != Copy::No {
                    self.copy_sync.copy_failed(self.done + 1, self.copier == Copier::Execute);
                }
                self.skip_queries();
                if !self.owes() && self.unsynced {
                    self.owed.clear();
                    self.skipping = true;
                    self.replies_due = 0;
                }
            }
            // Replies that end one extended-protocol message, if no earlier Sync or Query is due.
            b'1' | b'2' | b'3' | b'C' | b'I' | b's' | b'T' | b'n' => {
                if tag == b'C' && std::mem::take(&mut self.copy) != Copy::No {
                    self.copy_sync.copied(self.done + 1);
                }
                let executed = match self.next_owed() {
                    None => {
                        self.replies_due = self.replies_due.saturating_sub(1);
                        true
                    }
                    Some(Owed::Query { before: 0, .. }) => false,
                    Some(Owed::Query { before, .. }) => {
                        *before -= 1;
                        true
                    }
                    Some(Owed::Sync { .. } | Owed::CopyEnd { .. }) => true,
                };
                if executed && matches!(tag, b'C' | b'I' | b's') {
                    self.done = (self.done + 1).min(self.commands);
                    self.forget_first_copy_ends();
                }
            }
            _ => {}
        }
    }

    /// An error came. If it is that of an extended-protocol message with queries sent behind it, the
    /// server skips them, up to the next Sync.
    fn skip_queries(&mut self) {
        if matches!(self.next_owed(), Some(Owed::Query { before: 1.., .. })) {
            let sync = self.owed.iter().position(|owed| matches!(owed, Owed::Sync { .. }));
            self.owed.drain(..sync.unwrap_or(self.owed.len()));
            self.unsynced |= sync.is_none();
        }
    }

    fn ready(&mut self, status: Option<u8>) {
        self.copy_sync.ready();
        let after_nothing = std::mem::replace(&mut self.last, Last::Ready) == Last::Ready;
        if after_nothing && self.copy_sync.is_there() && self.owes_replies() {
            self.copy_sync.unowed();
            return self.tx = tx(status);
        }
        let next = self.owed.iter().position(|owed| owed.is_owed());
        let answered = self.owed.drain(..next.map_or(self.owed.len(), |next| next + 1)).next_back();
        if let (Some(_), Some(answered)) = (next, answered) {
            self.done = self.done.max(answered.command());
        } else {
            // The answer to a Sync that we took for one in COPY-in: it crossed with the server's
            // error, and counted after all. Of what came behind another Sync it says nothing.
            if self.copy_sync.unowed() == 0 || self.skipping {
                self.is_synced();
            }
        }
        self.forget_copy_ends();
        self.copy = Copy::No;
        self.tx = tx(status);
        if self.owed.is_empty() {
            self.copy_sync.rests();
        }
    }

    /// Whether other replies come before the next ReadyForQuery that is owed.
    fn owes_replies(&mut self) -> bool {
        let next = self.next_owed();
        matches!(next, Some(Owed::Query { .. } | Owed::Sync { ends: Batch::OfMessages, .. }))
    }

    /// The server has answered all that was sent, and waits for a new batch.
    fn is_synced(&mut self) {
        self.done = self.commands;
        self.unsynced = false;
        self.skipping = false;
        self.replies_due = 0;
    }

    /// Syncs that were sent between the command that began the COPY and the end of its data are ignored
    /// by the server, unless it has failed already.
    fn copy_in_begins(&mut self) {
        self.forget_copy_ends();
        let by_query = matches!(self.next_owed(), Some(Owed::Query { before: 0, .. }));
        self.copier = if by_query { Copier::Query } else { Copier::Execute };
        let running = self.done + 1;
        let is_its = |owed: &Owed| matches!(owed, Owed::CopyEnd { command, .. } if *command == running);
        let end = self.owed.iter().position(is_its);
        self.copy = if end.is_none() { Copy::Taking } else { Copy::Ended };
        let behind = self.owed.split_off(end.unwrap_or(self.owed.len()));
        let before = self.owed.len();
        let is_batch =
            |owed: &&Owed| matches!(owed, Owed::Query { .. } | Owed::Sync { ends: Batch::OfMessages, .. });
        let batches = self.owed.iter().filter(is_batch).count();
        self.owed.retain(|owed| !matches!(owed, Owed::Sync { .. }));
        let ignored = before - self.owed.len();
        self.copy_sync.ignored(u32::try_from(ignored).unwrap_or(u32::MAX));
        // Of these the first is that of the command itself.
        let more = (end.is_none() && self.unsynced) || self.frame == Half::Sent;
        if batches > 1 || (ignored > 0 && more) {
            self.copy_sync.burdened(running);
        }
        self.owed.extend(behind);
        if let Some(at) = end.map(|end| end - ignored)
            && let Some(Owed::CopyEnd { times, .. }) = self.owed.get_mut(at)
        {
            *times -= 1;
            if *times == 0 {
                self.owed.remove(at);
            }
        }
        let synced = self.owed.iter().any(|owed| matches!(owed, Owed::Sync { .. }));
        if ignored > 0 && !by_query && !synced {
            self.unsynced = true;
            self.replies_due = self.replies_due.max(1);
        }
    }

    /// Ends of data that were sent behind commands which are over: no COPY began, or it had failed.
    fn forget_copy_ends(&mut self) {
        let done = self.done;
        self.owed.retain(|owed| owed.is_owed() || owed.command() > done);
    }

    /// The same, as far as they come first.
    fn forget_first_copy_ends(&mut self) {
        while self.owed.front().is_some_and(|owed| !owed.is_owed() && owed.command() <= self.done) {
            self.owed.pop_front();
        }
    }

    /// The connection's state in one word.
    pub fn conn_activity(&self) -> ConnActivity {
        if self.copy == Copy::Taking {
            ConnActivity::AwaitsClient
        } else if self.owes()
            || self.copy_sync.is_asked()
            || self.is_lost()
            || (self.replies_due > 0 && self.flushed)
        {
            ConnActivity::InFlight
        } else if self.unsynced {
            ConnActivity::AwaitsClient
        } else if self.copy_sync.is_there() {
            ConnActivity::InFlight
        } else if self.tx == Tx::Idle {
            ConnActivity::Quiet
        } else {
            ConnActivity::InTransaction
        }
    }

    /// Whether the connection may change hands (half frames are the cutters' business).
    pub fn is_quiet(&self) -> bool {
        self.conn_activity() == ConnActivity::Quiet
    }

    /// Whether a rollback is needed before the connection may be used by someone else.
    pub fn in_transaction(&self) -> bool {
        self.tx != Tx::Idle
    }

    /// Whether everything up to a ReadyForQuery has been answered, so that a new Query may be sent.
    pub fn may_query(&self) -> bool {
        matches!(self.conn_activity(), ConnActivity::Quiet | ConnActivity::InTransaction)
    }

    /// Whether what is sent next begins a batch behind one that is not answered.
    pub fn begins_behind(&self) -> bool {
        !self.unsynced && self.owes()
    }

    /// Whether so much is owed that the client has to wait with more.
    pub fn is_full(&self) -> bool {
        self.owed.len() >= Self::MAX_OWED
    }
}

/// Questions that clear up which Syncs the server has answered (`copy_sync`). Who relays has to hold the client
/// back and to ask them.
impl ProtocolState {
    /// Whether nothing of the client's may be sent now.
    pub fn holds(&self) -> bool {
        self.copy_sync.is_there() && (self.copy_sync.is_asked() || (!self.unsynced && self.copy == Copy::No))
    }

    /// How many Closes of something that is not there have to be sent now, with a Sync behind them.
    pub fn asks(&mut self) -> Option<u32> {
        let now = self.holds() && !self.copy_sync.is_asked() && !self.owes();
        now.then(|| self.copy_sync.ask())
    }

    /// Whose the next frame of the server's is, with this tag; `first` as in [`ProtocolState::received`], which is
    /// for the client's alone.
    pub fn hears(&mut self, tag: u8, first: Option<u8>) -> Whose {
        if !self.copy_sync.is_asked() {
            return Whose::Client(0);
        }
        let whose = self.copy_sync.hears(tag);
        if whose == Whose::Ours && tag == b'Z' {
            self.is_synced();
            self.owed.clear();
            self.tx = tx(first);
        }
        whose
    }

    /// Whether it cannot be told any more what the server answers.
    pub fn is_lost(&self) -> bool {
        self.copy_sync.is_hopeless()
    }
}

fn tx(status: Option<u8>) -> Tx {
    match status {
        Some(b'T') => Tx::InBlock,
        Some(b'E') => Tx::Failed,
        _ => Tx::Idle,
    }
}
