//! Who owes whom a reply on one server connection. Floor 1.
//!
//! Fed with the tag of every frame, either way, it answers the questions that decide about a
//! connection's life without a word of SQL: is a statement in flight, is a transaction open, may
//! the connection change hands?

use std::collections::VecDeque;

/// Transaction status as ReadyForQuery reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Tx {
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
pub enum Beat {
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

/// A ReadyForQuery that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    /// For a Query or a FunctionCall, once these many extended-protocol messages before it have been
    /// answered that no Sync ends. If one of them fails, the server skips the query as well.
    Query { before: u32, command: u64 },
    /// For a Sync, behind this command.
    Sync { command: u64 },
    /// For nothing: the client ended COPY data before it heard that the COPY of this command has begun. If
    /// it does, the Syncs behind this count.
    CopyEnd { command: u64 },
}

impl Owed {
    const fn command(self) -> u64 {
        match self {
            Owed::Query { command, .. } | Owed::Sync { command } | Owed::CopyEnd { command } => command,
        }
    }

    const fn is_owed(self) -> bool {
        !matches!(self, Owed::CopyEnd { .. })
    }
}

/// The state of one server connection, as its frames tell it.
#[derive(Debug, Clone, Default)]
pub struct Pulse {
    owed: VecDeque<Owed>,
    tx: Tx,
    /// The server takes COPY data from the client.
    copy_in: bool,
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
}

impl Pulse {
    /// How many ReadyForQuery may be due before the relay stops reading from the client.
    pub const MAX_OWED: usize = 10_000;

    /// A quiet connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// The client sent a frame with this tag.
    pub fn sent(&mut self, tag: u8) {
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
            b'S' | b'H' if self.copy_in => {}
            b'H' => self.flushed = true,
            b'S' => {
                self.owed.push_back(Owed::Sync { command: self.commands });
                self.unsynced = false;
                self.skipping = false;
                self.replies_due = 0;
            }
            b'P' | b'B' | b'C' | b'D' | b'E' => {
                self.unsynced = true;
                self.flushed = false;
                self.commands += u64::from(tag == b'E');
                if !self.skipping {
                    self.replies_due = self.replies_due.saturating_add(1);
                }
            }
            b'c' | b'f' if self.copy_in => self.copy_in = false,
            b'c' | b'f' if self.done < self.commands => {
                self.owed.push_back(Owed::CopyEnd { command: self.commands });
            }
            _ => {}
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
        match tag {
            b'Z' => self.ready(first),
            b'G' => self.copy_in_begins(),
            b'E' => {
                self.copy_in = false;
                self.skip_queries();
                if !self.owes() && self.unsynced {
                    self.owed.clear();
                    self.skipping = true;
                    self.replies_due = 0;
                }
            }
            // Replies that end one extended-protocol message, if no earlier Sync or Query is due.
            b'1' | b'2' | b'3' | b'C' | b'I' | b's' | b'T' | b'n' => {
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
        let next = self.owed.iter().position(|owed| owed.is_owed());
        let answered = self.owed.drain(..next.map_or(self.owed.len(), |next| next + 1)).next_back();
        if let (Some(_), Some(answered)) = (next, answered) {
            self.done = self.done.max(answered.command());
        } else {
            self.done = self.commands;
            // The answer to a Sync that we took for one in COPY-in: it crossed with the server's
            // error, and counted after all.
            self.unsynced = false;
            self.skipping = false;
            self.replies_due = 0;
        }
        self.forget_copy_ends();
        self.copy_in = false;
        self.tx = match status {
            Some(b'T') => Tx::InBlock,
            Some(b'E') => Tx::Failed,
            _ => Tx::Idle,
        };
    }

    /// Syncs that were sent between the command that began the COPY and the end of its data are ignored
    /// by the server.
    fn copy_in_begins(&mut self) {
        self.forget_copy_ends();
        let began_by_query = matches!(self.next_owed(), Some(Owed::Query { before: 0, .. }));
        let command = self.done + 1;
        let end = self.owed.iter().position(|owed| *owed == Owed::CopyEnd { command });
        self.copy_in = end.is_none();
        let behind = self.owed.split_off(end.unwrap_or(self.owed.len()));
        let before = self.owed.len();
        self.owed.retain(|owed| !matches!(owed, Owed::Sync { .. }));
        let ignored = self.owed.len() < before;
        self.owed.extend(behind.into_iter().skip(1));
        let synced = self.owed.iter().any(|owed| matches!(owed, Owed::Sync { .. }));
        if ignored && !began_by_query && !synced {
            self.unsynced = true;
            self.replies_due = self.replies_due.max(1);
        }
    }

    /// Ends of data that were sent behind commands which are over: no COPY began, or it had failed.
    fn forget_copy_ends(&mut self) {
        let done = self.done;
        self.owed.retain(|owed| owed.is_owed() || owed.command() > done);
    }

    /// The connection's state in one word.
    pub fn beat(&self) -> Beat {
        if self.copy_in {
            Beat::AwaitsClient
        } else if self.owes() || (self.replies_due > 0 && self.flushed) {
            Beat::InFlight
        } else if self.unsynced {
            Beat::AwaitsClient
        } else if self.tx == Tx::Idle {
            Beat::Quiet
        } else {
            Beat::InTransaction
        }
    }

    /// Whether the connection may change hands (half frames are the cutters' business).
    pub fn is_quiet(&self) -> bool {
        self.beat() == Beat::Quiet
    }

    /// Whether a rollback is needed before the connection may be used by someone else.
    pub fn in_transaction(&self) -> bool {
        self.tx != Tx::Idle
    }

    /// Whether everything up to a ReadyForQuery has been answered, so that a new Query may be sent.
    pub fn may_query(&self) -> bool {
        matches!(self.beat(), Beat::Quiet | Beat::InTransaction)
    }

    /// Whether so much is owed that the client has to wait with more.
    pub fn is_full(&self) -> bool {
        self.owed.len() >= Self::MAX_OWED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a conversation: `>x` is a frame from the client, `<x` from the server, `<ZT` a
    /// ReadyForQuery in a transaction block.
    fn play(script: &str) -> Pulse {
        let mut pulse = Pulse::new();
        for step in script.split_whitespace() {
            let bytes = step.as_bytes();
            match bytes[0] {
                b'>' => pulse.sent(bytes[1]),
                _ => pulse.received(bytes[1], bytes.get(2).copied()),
            }
        }
        pulse
    }

    fn beat(script: &str) -> Beat {
        play(script).beat()
    }

    #[test]
    fn simple_queries_are_in_flight_until_ready() {
        assert_eq!(beat(""), Beat::Quiet);
        assert_eq!(beat(">Q"), Beat::InFlight);
        assert_eq!(beat(">Q <T <D <C"), Beat::InFlight);
        assert_eq!(beat(">Q <T <D <C <ZI"), Beat::Quiet);
        assert_eq!(beat(">Q <C <ZT"), Beat::InTransaction);
        assert_eq!(beat(">Q <C <ZT >Q <E <ZE"), Beat::InTransaction);
        assert_eq!(beat(">Q >Q <C <ZI"), Beat::InFlight);
    }

    #[test]
    fn a_missing_sync_is_seen_once_all_replies_are_in() {
        assert_eq!(beat(">P >B >D >E >H <1 <2 <T <D"), Beat::InFlight);
        assert_eq!(beat(">P >B >D >E >H <1 <2 <T <D <C"), Beat::AwaitsClient);
        assert_eq!(beat(">P >B >D >E >H <1 <2 <T <D <C >S"), Beat::InFlight);
        assert_eq!(beat(">P >B >D >E >H <1 <2 <T <D <C >S <ZI"), Beat::Quiet);
    }

    #[test]
    fn a_batch_with_neither_flush_nor_sync_may_be_done_and_silent() {
        assert_eq!(beat(">P >B >E"), Beat::AwaitsClient);
        assert_eq!(beat(">P >B >E >H"), Beat::InFlight);
        assert_eq!(beat(">P >B >E >S"), Beat::InFlight);
        assert_eq!(beat(">Q >P >B >E"), Beat::InFlight);
    }

    #[test]
    fn an_error_in_mid_pipeline_skips_to_sync() {
        assert_eq!(beat(">P >B >E >H <E"), Beat::AwaitsClient);
        assert_eq!(beat(">P >B >E >H <E >P >B >E"), Beat::AwaitsClient);
        assert_eq!(beat(">P >B >E >H <E >P >B >E >S"), Beat::InFlight);
        assert_eq!(beat(">P >B >E >S >P >B >E >S <E <ZI <1 <2 <C"), Beat::InFlight);
        assert_eq!(beat(">P >B >E >S >P >B >E >S <E <ZI <1 <2 <C <ZI"), Beat::Quiet);
    }

    #[test]
    fn a_simple_query_ends_a_batch_without_a_sync() {
        assert_eq!(beat(">P >B >E >Q <1 <2 <C <T"), Beat::InFlight);
        assert_eq!(beat(">P >B >E >Q <1 <2 <C <T <C <ZI"), Beat::Quiet);
        assert_eq!(beat(">P >B >E >H <E >Q"), Beat::AwaitsClient);
        assert_eq!(beat(">P >B >E >H <E >Q >S <ZI"), Beat::Quiet);
    }

    #[test]
    fn queries_behind_a_failed_batch_are_skipped_to_the_sync() {
        assert_eq!(beat(">P >Q >Q >S <E"), Beat::InFlight);
        assert_eq!(beat(">P >Q >Q >S <E <ZI"), Beat::Quiet);
        assert_eq!(beat(">P >F >S >Q <E <ZI <C"), Beat::InFlight);
        assert_eq!(beat(">P >F >S >Q <E <ZI <C <ZI"), Beat::Quiet);
        // Without a Sync nothing more is said.
        assert_eq!(beat(">P >B >Q <1 <E"), Beat::AwaitsClient);
        assert_eq!(beat(">P >B >Q <1 <E >Q >S <ZI"), Beat::Quiet);
        // The query's own error is not that of the batch before it.
        assert_eq!(beat(">P >B >Q >Q <1 <2 <E <ZI"), Beat::InFlight);
        assert_eq!(beat(">P >B >Q >Q <1 <2 <E <ZI <C <ZI"), Beat::Quiet);
    }

    #[test]
    fn copy_in_waits_for_the_client() {
        assert_eq!(beat(">Q <G"), Beat::AwaitsClient);
        assert_eq!(beat(">Q <G >d >d >S >H"), Beat::AwaitsClient);
        assert_eq!(beat(">Q <G >d >c"), Beat::InFlight);
        assert_eq!(beat(">Q <G >d >c <C <ZI"), Beat::Quiet);
        assert_eq!(beat(">Q <G >d <E"), Beat::InFlight);
        assert_eq!(beat(">Q <G >d <E <ZI"), Beat::Quiet);
    }

    #[test]
    fn what_is_sent_behind_the_end_of_a_copy_counts_although_the_copy_has_not_begun() {
        let batch = ">P >B >E >d >c >S >P >B >E >S <1 <2 <G <C";
        assert_eq!(beat(&format!("{batch} <ZI")), Beat::InFlight);
        assert_eq!(beat(&format!("{batch} <ZI <1 <2 <C")), Beat::InFlight);
        assert_eq!(beat(&format!("{batch} <ZI <1 <2 <C <ZI")), Beat::Quiet);
        let failing = ">P >B >E >d >c >S >P >B >E >S <1 <2 <G <E <ZI";
        assert_eq!(beat(failing), Beat::InFlight);
        assert_eq!(beat(&format!("{failing} <1 <2 <C <ZI")), Beat::Quiet);
        // A Flush behind it asks for replies that are still to come.
        assert_eq!(beat(">B >E >d >c >S >P >D >H <2 <G <E <ZI"), Beat::InFlight);
        assert_eq!(beat(">B >E >d >c >S >P >D >H <2 <G <E <ZI <1 <T"), Beat::AwaitsClient);
        // Two in a row, and two in a text.
        let twice = ">B >E >d >c >S >B >E >d >c >S <2 <G <C <ZI <2 <G";
        assert_eq!(beat(twice), Beat::InFlight);
        assert_eq!(beat(&format!("{twice} <C <ZI")), Beat::Quiet);
        assert_eq!(beat(">Q >d >c >Q <G <C <ZI"), Beat::InFlight);
        assert_eq!(beat(">Q >d >c >Q <G <C <ZI <C <ZI"), Beat::Quiet);
        // One that fails before it begins, and an end that comes behind the error.
        assert_eq!(beat(">B >E >d >c >S <2 <E <ZI"), Beat::Quiet);
        assert_eq!(beat(">Q <G >d <E >c <ZI"), Beat::Quiet);
        assert_eq!(beat(">Q <G >d <E >c <ZI >B >E >S <2 <G"), Beat::AwaitsClient);
    }

    #[test]
    fn a_sync_sent_before_copy_in_began_does_not_count() {
        assert_eq!(beat(">P >B >E >S <1 <2 <G"), Beat::AwaitsClient);
        // Its Sync was ignored, so the server may be done and hold its reply back.
        assert_eq!(beat(">P >B >E >S <1 <2 <G >d >c"), Beat::AwaitsClient);
        assert_eq!(beat(">P >B >E >S <1 <2 <G >d >c <C"), Beat::AwaitsClient);
        assert_eq!(beat(">P >B >E >S <1 <2 <G >d >c <C >S <ZI"), Beat::Quiet);
    }

    #[test]
    fn a_sync_that_crosses_with_a_copy_error_is_settled_by_ready() {
        assert_eq!(beat(">P >B >E >H <1 <2 <G >d >S <E <ZI"), Beat::Quiet);
    }

    #[test]
    fn portals_may_be_suspended_and_notices_change_nothing() {
        assert_eq!(beat(">P >B >E >H <1 <2 <D <s <N <A"), Beat::AwaitsClient);
        assert_eq!(beat(">Q <C <ZI <N <S <A"), Beat::Quiet);
    }
}
