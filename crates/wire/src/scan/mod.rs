//! Which statements leave state behind on a server connection.
//!
//! In transaction mode a client's next transaction may run on another server connection. A
//! statement that leaves session state pins the client to the connection it ran on. The scan is
//! one pass over the statement's bytes, fed in pieces, and errs on the side of pinning: a needless
//! pin costs a connection, a missed one would show one client another one's state.

pub(crate) mod clause;
#[cfg(test)]
mod tests;
pub(crate) mod word;

use pgleash_core::{Pin, Pins};

use crate::scan::clause::{Verb, touch};
use crate::scan::word::{CLASSES, Class, LONGEST, is_beside_the_meaning, makes};

/// What one statement text may do to the session, if it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// State that it may leave behind, and of which kind it is.
    pub pins: Pins,
    /// Parameters that it may change, in order.
    pub touches: Vec<Touched>,
}

/// A parameter that a text may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// In lower case; `None` stands for all.
    pub name: Option<String>,
    /// Whether it goes back to its default.
    pub back: Back,
}

/// Whether a parameter goes back to its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    /// It is set to something.
    No,
    /// It does.
    Yes,
    /// Until the transaction is over.
    Locally,
}

/// Reads one statement text, in pieces, for words that leave session state behind.
#[derive(Debug, Default)]
pub struct Scanner {
    word: [u8; LONGEST],
    /// Bytes of the current word; 0 between words.
    len: usize,
    /// Where in a SET statement we are.
    set: Set,
    /// What stands behind a SET, a RESET or a `set_config`, as far as it is kept.
    clause: Option<(Verb, Vec<u8>)>,
    /// The next word begins a statement.
    at_start: bool,
    comment: Comment,
    quote: Quote,
    /// Something was read that makes it uncertain where literals end: words in them count from here on.
    wary: bool,
    /// The text is a DO, whose statements begin anywhere.
    block: bool,
    /// The word before may be followed by TEMP.
    creates: bool,
    /// The word before was INSERT or MERGE: INTO makes nothing.
    inserts: bool,
    declare: bool,
    /// UPDATE was read: of `pg_settings` it is a SET.
    updates: bool,
    /// The word before was DEALLOCATE, and may be followed by PREPARE.
    deallocates: bool,
    found: Findings,
}

#[derive(Debug, Default, PartialEq, Clone, Copy)]
enum Quote {
    #[default]
    No,
    Literal,
    Identifier,
    /// A `$` was read; a digit makes it a parameter, anything else perhaps a dollar quote.
    Dollar,
}

#[derive(Debug, Default, PartialEq, Clone, Copy)]
enum Set {
    #[default]
    No,
    /// SET or RESET was read; the next word is the parameter or a modifier.
    Name(Verb),
    /// SET LOCAL was read; the next word is the parameter.
    Local,
}

#[derive(Debug, Default, PartialEq, Clone, Copy)]
enum Comment {
    #[default]
    No,
    Dash,
    Line,
    Slash,
    Block,
    BlockStar,
}

impl Scanner {
    /// A scanner at the beginning of a statement text.
    pub fn new() -> Self {
        Self { at_start: true, ..Self::default() }
    }

    /// Reads the next piece.
    pub fn feed(&mut self, piece: &[u8]) {
        let mut rest = piece;
        while let Some(&byte) = rest.first() {
            match CLASSES[byte as usize] {
                Class::Word => {
                    let end = rest.iter().position(|byte| CLASSES[*byte as usize] != Class::Word);
                    let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
                    self.take_word(word);
                    self.keep(word);
                    rest = after;
                    continue;
                }
                class => {
                    self.end_word();
                    self.keep(&rest[..1]);
                    if class == Class::Mark || self.comment != Comment::No || self.quote == Quote::Dollar {
                        self.mark(byte);
                    }
                }
            }
            rest = &rest[1..];
        }
    }

    fn take_word(&mut self, word: &[u8]) {
        if matches!(self.comment, Comment::Dash | Comment::Slash) {
            self.comment = Comment::No;
        }
        if self.quote == Quote::Dollar {
            self.wary |= !word[0].is_ascii_digit();
            self.quote = Quote::No;
        }
        let taken = word.len().min(LONGEST - self.len);
        self.word[self.len..self.len + taken].copy_from_slice(&word[..taken]);
        self.len += taken;
    }

    fn mark(&mut self, byte: u8) {
        if !self.follow_quote(byte) {
            self.follow_comment(byte);
        }
        if byte == b';' && (self.quote != Quote::Literal || self.wary) {
            self.at_start = true;
            self.set = Set::No;
            self.end_clause();
        }
    }

    /// What the text does, at its end.
    pub fn finish(mut self) -> Findings {
        self.end_word();
        self.end_clause();
        self.found
    }

    fn leaves(&mut self, pins: Pins) {
        self.found.pins = self.found.pins.and(pins);
    }

    /// A clause begins behind this word.
    fn begin_clause(&mut self, verb: Verb) {
        self.end_clause();
        self.clause = Some((verb, Vec::new()));
    }

    /// Keeps what belongs to a clause. Its end, if it is not kept, is no part of a name.
    fn keep(&mut self, piece: &[u8]) {
        if let Some((_, text)) = &mut self.clause {
            let room = clause::LONGEST.saturating_sub(text.len());
            text.extend_from_slice(&piece[..piece.len().min(room)]);
        }
    }

    fn end_clause(&mut self) {
        let Some((verb, text)) = self.clause.take() else { return };
        let text = text.strip_suffix(b";").unwrap_or(&text);
        let touch = touch(verb, text);
        self.leaves(touch.kind);
        let back = match touch.kind {
            kind if kind.has(Pins::RESETS_LOCALLY) => Back::Locally,
            kind if kind.has(Pins::RESETS) => Back::Yes,
            _ => Back::No,
        };
        if back == Back::Yes && touch.kind.has(Pins::TOUCHES_ALL) && !touch.kind.has(Pins::HIDES) {
            self.found.touches.push(Touched { name: None, back });
        }
        for name in touch.names {
            let touched = Touched { name: Some(name), back };
            self.found.touches.retain(|before| *before != touched);
            self.found.touches.push(touched);
        }
    }

    /// Follows literals, so that what people write to each other pins nothing. Whatever makes it doubtful
    /// where a literal ends (a backslash, a dollar quote, a nested comment) ends that for the whole text.
    /// True if the byte is inside quotes.
    fn follow_quote(&mut self, byte: u8) -> bool {
        let commented = matches!(self.comment, Comment::Line | Comment::Block | Comment::BlockStar);
        if self.wary || commented {
            return false;
        }
        match (self.quote, byte) {
            (Quote::Literal, b'\\') => self.wary = true,
            // Perhaps `U&"..."`, in which any name can be hidden.
            (Quote::Identifier, b'\\') => {
                self.leaves(Pins::TOUCHES_ALL.and(Pins::HIDES));
                self.wary = true;
            }
            (Quote::Literal, b'\'') | (Quote::Identifier, b'"') => self.quote = Quote::No,
            (Quote::Literal | Quote::Identifier, _) => return true,
            (Quote::No, b'\'') => self.quote = Quote::Literal,
            (Quote::No, b'"') => self.quote = Quote::Identifier,
            (Quote::No, b'$') => self.quote = Quote::Dollar,
            (Quote::Dollar, _) => self.wary = true,
            (Quote::No, _) => {}
        }
        false
    }

    /// Follows comments, so that one before a SET does not hide that the SET begins a statement.
    /// A literal of a text that is read warily may look like a comment: every other word counts in
    /// comments too, so that nothing is hidden by that.
    fn follow_comment(&mut self, byte: u8) {
        // Comments nest.
        self.wary |= matches!(self.comment, Comment::Block) && byte == b'/';
        self.comment = match (self.comment, byte) {
            (Comment::No, b'-') => Comment::Dash,
            (Comment::Dash, b'-') => Comment::Line,
            (Comment::No, b'/') => Comment::Slash,
            (Comment::Slash, b'*') => Comment::Block,
            (Comment::Line, b'\n' | b'\r') => Comment::No,
            (Comment::Block | Comment::BlockStar, b'*') => Comment::BlockStar,
            (Comment::BlockStar, b'/') => Comment::No,
            (Comment::BlockStar, _) => Comment::Block,
            (Comment::Dash | Comment::Slash, _) => Comment::No,
            (state, _) => state,
        };
    }

    fn end_word(&mut self) {
        let len = std::mem::take(&mut self.len);
        if len == 0 || (self.quote == Quote::Literal && !self.wary) {
            return;
        }
        // Most words can be told to be innocent by their first letter.
        let first = self.word[0] | 0x20;
        let innocent = !b"lptsdhcirgum".contains(&first) && !self.block;
        if innocent && !self.at_start && self.set == Set::No {
            (self.creates, self.inserts, self.deallocates) = Default::default();
            return;
        }
        self.word[..len].make_ascii_lowercase();
        let word = self.word;
        let word = &word[..len];
        let (creates, inserts) = (self.creates, self.inserts);
        let commented = matches!(self.comment, Comment::Line | Comment::Block | Comment::BlockStar);
        // Tags say `action='create'`.
        if (makes(word) || (word == b"into" && !inserts)) && (!commented || self.wary) {
            self.leaves(Pins::NAMES_IN_TRANSACTION);
        }
        if commented && self.wary && matches!(word, b"set" | b"reset" | b"discard" | b"do" | b"load") {
            // What looks like a comment may be the end of a literal.
            self.at_start = true;
            self.statement_word(word);
        }
        if !commented {
            self.statement_word(word);
            self.creates = matches!(word, b"create" | b"replace" | b"into" | b"local" | b"global");
            self.inserts = matches!(word, b"insert" | b"merge");
        }
        self.any_word(word, creates).into_iter().for_each(|pin| self.found.pins.add(pin));
    }

    /// SET and its like count only at the beginning of a statement: `UPDATE t SET ...` is innocent.
    fn statement_word(&mut self, word: &[u8]) {
        let at_start = std::mem::take(&mut self.at_start);
        let set = std::mem::take(&mut self.set);
        self.leaves(in_transaction(at_start || self.block, set, word));
        if set == Set::Name(Verb::Set) && word == b"local" {
            self.set = Set::Local;
            return;
        }
        if at_start || self.block {
            self.first_word(word, at_start);
        }
    }

    fn first_word(&mut self, word: &[u8], at_start: bool) {
        match word {
            b"set" | b"reset" => {
                let verb = if word == b"set" { Verb::Set } else { Verb::Reset };
                self.set = Set::Name(verb);
                self.begin_clause(verb);
            }
            b"discard" => self.begin_clause(Verb::Discard),
            b"do" if at_start => {
                (self.block, self.wary) = (true, true);
                self.leaves(Pins::TOUCHES_ALL.and(Pins::MOVES_PATH));
            }
            b"call" => self.leaves(Pins::TOUCHES_ALL.and(Pins::MOVES_PATH)),
            // What a block puts together may be anything.
            b"execute" if self.block => {
                self.leaves(Pins::TOUCHES_ALL.and(Pins::HIDES).and(Pins::MOVES_PATH).and(Pins::VERIFIABLE));
            }
            b"load" => self.found.pins.add(Pin::Load),
            b"unlisten" | b"close" | b"deallocate" | b"drop" => self.leaves(Pins::ENDS),
            b"commit" | b"end" | b"rollback" | b"abort" => self.leaves(Pins::ENDS),
            _ => {}
        }
    }

    fn any_word(&mut self, word: &[u8], creates: bool) -> Option<Pin> {
        let deallocates = std::mem::take(&mut self.deallocates);
        match word {
            b"listen" => Some(Pin::Listen),
            b"deallocate" => {
                self.deallocates = true;
                None
            }
            b"prepare" if !deallocates => Some(Pin::SqlPrepare),
            b"temp" | b"temporary" if creates => Some(Pin::TempTable),
            b"set_config" => {
                self.leaves(Pins::SETTING_IN_TRANSACTION);
                self.begin_clause(Verb::SetConfig);
                None
            }
            // With `UESCAPE` any name can be hidden behind any sign.
            b"uescape" => {
                self.leaves(Pins::SETTING_IN_TRANSACTION.and(Pins::TOUCHES_ALL).and(Pins::HIDES));
                None
            }
            b"declare" => {
                self.declare = true;
                None
            }
            b"hold" if self.declare => Some(Pin::HoldableCursor),
            b"update" => {
                self.updates = true;
                None
            }
            b"pg_settings" if self.updates => {
                self.leaves(Pins::SETTING_IN_TRANSACTION.and(Pins::TOUCHES_ALL));
                None
            }
            b"setseed" => {
                self.leaves(Pins::SEEDS);
                None
            }
            b"currval" | b"lastval" => {
                self.leaves(Pins::READS_SEQUENCES);
                None
            }
            _ if word.starts_with(b"pg_temp") => Some(Pin::TempTable),
            _ if word.starts_with(b"pg_advisory_unlock") => {
                self.leaves(Pins::ENDS);
                None
            }
            _ if word.starts_with(b"pg_advisory_lock") || word.starts_with(b"pg_try_advisory_lock") => {
                Some(Pin::AdvisoryLock)
            }
            _ => None,
        }
    }
}

/// What a word changes until the transaction is over, and perhaps no longer, where it begins a statement or stands
/// behind a SET.
fn in_transaction(begins: bool, set: Set, word: &[u8]) -> Pins {
    match (set, word) {
        (Set::Name(Verb::Set), b"local" | b"transaction" | b"constraints") => Pins::default(),
        (Set::Local, name) if is_beside_the_meaning(name) => Pins::default(),
        (Set::Name(_) | Set::Local, _) => Pins::SETTING_IN_TRANSACTION,
        (_, b"set" | b"reset") if begins => Pins::default(),
        (_, b"discard" | b"do" | b"call") if begins => Pins::SETTING_IN_TRANSACTION,
        (_, b"alter" | b"drop" | b"import") if begins => Pins::NAMES_IN_TRANSACTION,
        _ => Pins::default(),
    }
}
