//! Which statements leave state behind on a server connection. Floor 0.
//!
//! In transaction mode a client's next transaction may run on another server connection. A
//! statement that leaves session state pins the client to the connection it ran on. The scan is
//! one pass over the statement's bytes, fed in pieces, and errs on the side of pinning: a needless
//! pin costs a connection, a missed one would show one client another one's state.

mod word;

use crate::wire::pin::{Pin, Pins};
use crate::wire::vars::{Reported, Resets};

use word::{CLASSES, Class, is_beside_the_meaning, makes};

pub use word::Word;

/// What one statement text does to the session, if it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// State that it leaves behind.
    pub pins: Pins,
    /// State that it ends.
    pub releases: Pins,
    /// Parameters that it sets back to the server's default: the client's own have to be set again.
    pub resets: Resets,
    /// A parameter that it sets, the last one.
    pub sets: Option<Word>,
}

/// Reads one statement text, in pieces, for words that leave session state behind.
#[derive(Debug, Default)]
pub struct Scanner {
    word: [u8; Self::LONGEST],
    /// Bytes of the current word; 0 between words.
    len: usize,
    /// Where in a SET statement we are.
    set: Set,
    /// The parameter whose value is being set.
    named: Word,
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
    /// UNLISTEN was read; with a channel behind it others are still listened to.
    unlisten: bool,
    found: Findings,
    /// Which parameters the server reports.
    reported: Reported,
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
    /// As `Name`, and SESSION was read behind it.
    Session(Verb),
    /// SET LOCAL was read; the next word is the parameter.
    Local,
    /// SET TIME or RESET TIME was read; the next word is ZONE.
    Time(Verb),
    /// SET and the parameter were read; DEFAULT may follow.
    Value,
}

#[derive(Debug, PartialEq, Clone, Copy)]
enum Verb {
    Set,
    Reset,
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
    /// Words are told apart by this many first bytes; longer ones are cut.
    const LONGEST: usize = Word::LONGEST;

    /// A scanner at the beginning of a statement text.
    pub fn new(reported: Reported) -> Self {
        Self { at_start: true, reported, ..Self::default() }
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
                    rest = after;
                    continue;
                }
                class => {
                    self.end_word();
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
        let taken = word.len().min(Self::LONGEST - self.len);
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
            self.end_unlisten();
        }
    }

    /// What the text does, at its end.
    pub fn finish(mut self) -> Findings {
        self.end_word();
        self.end_unlisten();
        self.found
    }

    fn leaves(&mut self, pins: Pins) {
        self.found.pins = self.found.pins.and(pins);
    }

    /// Without a channel behind it, all were meant.
    fn end_unlisten(&mut self) {
        if std::mem::take(&mut self.unlisten) {
            self.found.releases.add(Pin::Listen);
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
                self.found.pins.add(Pin::Setting);
                self.leaves(Pins::SETTING_UNKNOWN);
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
            (self.creates, self.inserts, self.unlisten, self.deallocates) = Default::default();
            return;
        }
        self.word[..len].make_ascii_lowercase();
        let word = self.word;
        let word = &word[..len];
        let (creates, inserts) = (self.creates, self.inserts);
        self.unlisten = false;
        let commented = matches!(self.comment, Comment::Line | Comment::Block | Comment::BlockStar);
        // Tags say `action='create'`.
        if (makes(word) || (word == b"into" && !inserts)) && (!commented || self.wary) {
            self.leaves(Pins::NAMES_IN_TRANSACTION);
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
        let pin = match (set, word) {
            (Set::Local, _) => return,
            (Set::No, b"do") if at_start => {
                (self.block, self.wary) = (true, true);
                return;
            }
            (Set::No, b"discard") if at_start => return self.resets_all(),
            (Set::No, b"unlisten") if at_start => return self.unlisten = true,
            (Set::No | Set::Value, b"set") if at_start || self.block => {
                return self.set = Set::Name(Verb::Set);
            }
            (Set::No | Set::Value, b"reset") if at_start || self.block => {
                return self.set = Set::Name(Verb::Reset);
            }
            (Set::No, b"load") if at_start => Pin::Load,
            (Set::Name(Verb::Reset), b"all") => {
                self.found.releases.add(Pin::Setting);
                return self.resets_all();
            }
            (Set::Name(Verb::Reset), b"role") => {
                self.resets(b"role");
                return self.found.releases.add(Pin::Role);
            }
            (Set::Session(Verb::Reset), b"authorization") => {
                self.resets(b"session_authorization");
                return self.found.releases.add(Pin::SessionAuthorization);
            }
            (Set::Name(_) | Set::Session(_), b"role") => Pin::Role,
            (Set::Session(_), b"authorization") => Pin::SessionAuthorization,
            (Set::Name(verb), b"session") => return self.set = Set::Session(verb),
            (Set::Name(verb) | Set::Session(verb), b"time") => return self.set = Set::Time(verb),
            (Set::Name(_), b"local") => return self.set = Set::Local,
            (Set::Name(_), b"transaction" | b"constraints") => return,
            (Set::Time(verb), _) => return self.sets(verb, b"timezone"),
            (Set::Name(verb) | Set::Session(verb), b"names") => return self.sets(verb, b"client_encoding"),
            (Set::Value, b"default" | b"local") => {
                let named = self.named;
                return self.resets(&named.bytes[..named.len]);
            }
            (Set::Value, _) => return self.set = Set::Value,
            (Set::Name(verb) | Set::Session(verb), name) => {
                self.sets(verb, name);
                if std::str::from_utf8(name).is_ok_and(|name| self.reported.has(name)) {
                    return;
                }
                Pin::Setting
            }
            _ => return,
        };
        self.found.pins.add(pin);
    }

    /// A parameter is set or reset: of one that is set, the value comes next.
    fn sets(&mut self, verb: Verb, name: &[u8]) {
        match verb {
            Verb::Reset => self.resets(name),
            Verb::Set => {
                self.named = Word::of(name);
                self.set = Set::Value;
                self.found.sets = Some(self.named);
                self.found.resets.remove(self.named.text());
            }
        }
    }

    fn resets(&mut self, name: &[u8]) {
        let name = Word::of(name);
        self.found.resets.add(name.text());
        self.found.sets.take_if(|set| *set == name);
    }

    fn resets_all(&mut self) {
        self.found.resets = Resets::all();
        self.found.sets = None;
    }

    fn any_word(&mut self, word: &[u8], creates: bool) -> Option<Pin> {
        let deallocates = std::mem::take(&mut self.deallocates);
        match word {
            b"pg_advisory_unlock_all" => {
                self.found.releases.add(Pin::AdvisoryLock);
                None
            }
            b"listen" => Some(Pin::Listen),
            b"deallocate" => {
                self.deallocates = true;
                None
            }
            b"prepare" if !deallocates => Some(Pin::SqlPrepare),
            b"temp" | b"temporary" if creates => Some(Pin::TempTable),
            // With `UESCAPE` any name can be hidden behind any sign.
            b"set_config" | b"uescape" => {
                self.leaves(Pins::SETTING_IN_TRANSACTION.and(Pins::SETTING_UNKNOWN));
                Some(Pin::Setting)
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
                self.leaves(Pins::SETTING_UNKNOWN);
                Some(Pin::Setting)
            }
            _ if word.starts_with(b"pg_temp") => Some(Pin::TempTable),
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
        (_, b"discard" | b"do" | b"call") if begins => Pins::SETTING_IN_TRANSACTION,
        (_, b"alter" | b"drop" | b"import") if begins => Pins::NAMES_IN_TRANSACTION,
        _ => Pins::default(),
    }
}

#[cfg(test)]
mod tests;
