//! Which statements leave state behind on a server connection. Floor 0.
//!
//! In transaction mode a client's next transaction may run on another server connection. A
//! statement that leaves session state pins the client to the connection it ran on. The scan is
//! one pass over the statement's bytes, fed in pieces, and errs on the side of pinning: a needless
//! pin costs a connection, a missed one would show one client another one's state.

use crate::event::closed_set;
use crate::wire::vars::Reported;

closed_set! {
    /// Why a session keeps its server connection between transactions.
    Pin {
        /// `pool.mode` is `session`.
        SessionMode => "session_mode",
        /// A protocol-level prepared statement that is too long to be made on another connection.
        PreparedStatement => "prepared_statement",
        /// SQL PREPARE.
        SqlPrepare => "sql_prepare",
        /// LISTEN.
        Listen => "listen",
        /// A temporary table, view or sequence.
        TempTable => "temp_table",
        /// DECLARE ... WITH HOLD.
        HoldableCursor => "holdable_cursor",
        /// A session-level advisory lock.
        AdvisoryLock => "advisory_lock",
        /// SET of a parameter whose value the server does not report, or set_config.
        Setting => "setting",
        /// SET ROLE.
        Role => "role",
        /// SET SESSION AUTHORIZATION.
        SessionAuthorization => "session_authorization",
        /// LOAD of a shared library.
        Load => "load",
    }
}

impl Pin {
    /// Whether the client holds the connection for a purpose that being idle is part of: it is shown,
    /// and never a leak for being idle.
    pub const fn is_deliberate(self) -> bool {
        matches!(self, Pin::Listen | Pin::TempTable | Pin::HoldableCursor | Pin::AdvisoryLock)
    }
}

/// A set of pins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pins(u16);

impl Pins {
    /// Every pin.
    pub const ALL: Pins = Pins(u16::MAX);

    /// This one alone.
    pub const fn of(pin: Pin) -> Self {
        Pins(1 << pin as u16)
    }

    /// This one as well.
    pub const fn add(&mut self, pin: Pin) {
        self.0 |= Self::of(pin).0;
    }

    /// These as well.
    pub const fn and(self, others: Pins) -> Self {
        Pins(self.0 | others.0)
    }

    /// All but these.
    pub const fn without(self, others: Pins) -> Self {
        Pins(self.0 & !others.0)
    }

    /// Those that are in both.
    pub const fn within(self, others: Pins) -> Self {
        Pins(self.0 & others.0)
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The one to be shown: a deliberate one before others.
    pub fn told(self) -> Option<Pin> {
        let mut all = Pin::ALL.iter().copied().filter(|pin| !Pins::of(*pin).within(self).is_empty());
        let first = all.clone().find(|pin| pin.is_deliberate());
        first.or_else(|| all.next())
    }
}

/// What one statement text does to the session, if it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// State that it leaves behind.
    pub pins: Pins,
    /// State that it ends.
    pub releases: Pins,
    /// It sets every parameter back to the server's default: the client's own have to be set again.
    pub resets: Resets,
}

/// Whether parameters are set back to the server's defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resets {
    /// Not all.
    #[default]
    No,
    /// All of them.
    All,
}

/// Reads one statement text, in pieces, for words that leave session state behind.
#[derive(Debug, Default)]
pub struct Scanner {
    word: [u8; Self::LONGEST],
    /// Bytes of the current word; 0 between words.
    len: usize,
    /// Where in a SET statement we are.
    set: Set,
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
    /// SET TIME was read.
    Time,
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

/// What a byte is to the scanner.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Part of a word.
    Word,
    /// Ends a statement, or may begin or end a comment or a literal.
    Mark,
    /// Ends a word, and is nothing else.
    Gap,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Gap; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | 0x80.. => Class::Word,
            b';' | b'-' | b'/' | b'*' | b'\n' | b'\r' | b'\'' | b'"' | b'$' | b'\\' => Class::Mark,
            _ => Class::Gap,
        };
        byte += 1;
    }
    classes
};

impl Scanner {
    /// Words are told apart by this many first bytes; longer ones are cut.
    const LONGEST: usize = 32;

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
        if !self.at_start && self.set == Set::No && !b"lptsdhcirgu".contains(&first) {
            (self.creates, self.unlisten, self.deallocates) = (false, false, false);
            return;
        }
        self.word[..len].make_ascii_lowercase();
        let word = self.word;
        let word = &word[..len];
        let creates = self.creates;
        self.unlisten = false;
        if !matches!(self.comment, Comment::Line | Comment::Block | Comment::BlockStar) {
            self.statement_word(word);
            self.creates = matches!(word, b"create" | b"replace" | b"into" | b"local" | b"global");
        }
        self.any_word(word, creates).into_iter().for_each(|pin| self.found.pins.add(pin));
    }

    /// SET and its like count only at the beginning of a statement: `UPDATE t SET ...` is innocent.
    fn statement_word(&mut self, word: &[u8]) {
        let at_start = std::mem::take(&mut self.at_start);
        let pin = match (std::mem::take(&mut self.set), word) {
            (Set::No, b"do") if at_start => {
                (self.block, self.wary) = (true, true);
                return;
            }
            (Set::No, b"discard") if at_start => return self.found.resets = Resets::All,
            (Set::No, b"unlisten") if at_start => return self.unlisten = true,
            (Set::No, b"set") if at_start || self.block => return self.set = Set::Name(Verb::Set),
            (Set::No, b"reset") if at_start || self.block => return self.set = Set::Name(Verb::Reset),
            (Set::No, b"load") if at_start => Pin::Load,
            (Set::Name(Verb::Reset), b"all") => {
                self.found.releases.add(Pin::Setting);
                return self.found.resets = Resets::All;
            }
            (Set::Name(Verb::Reset), b"role") => return self.found.releases.add(Pin::Role),
            (Set::Session(Verb::Reset), b"authorization") => {
                return self.found.releases.add(Pin::SessionAuthorization);
            }
            (Set::Name(_) | Set::Session(_), b"role") => Pin::Role,
            (Set::Session(_), b"authorization") => Pin::SessionAuthorization,
            (Set::Name(verb), b"session") => return self.set = Set::Session(verb),
            (Set::Name(_) | Set::Session(_), b"time") => return self.set = Set::Time,
            (Set::Name(_), b"local" | b"transaction" | b"constraints" | b"names") | (Set::Time, _) => return,
            (Set::Session(_), b"names") => return,
            (Set::Name(_) | Set::Session(_), name)
                if std::str::from_utf8(name).is_ok_and(|name| self.reported.has(name)) =>
            {
                return;
            }
            (Set::Name(_) | Set::Session(_), _) => Pin::Setting,
            _ => return,
        };
        self.found.pins.add(pin);
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
            b"set_config" => Some(Pin::Setting),
            b"declare" => {
                self.declare = true;
                None
            }
            b"hold" if self.declare => Some(Pin::HoldableCursor),
            b"update" => {
                self.updates = true;
                None
            }
            b"pg_settings" if self.updates => Some(Pin::Setting),
            _ if word.starts_with(b"pg_temp") => Some(Pin::TempTable),
            _ if word.starts_with(b"pg_advisory_lock") || word.starts_with(b"pg_try_advisory_lock") => {
                Some(Pin::AdvisoryLock)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(sql: &str) -> Option<Pin> {
        found(sql).pins.told()
    }

    fn found(sql: &str) -> Findings {
        let whole = {
            let mut scanner = Scanner::new(Reported::default());
            scanner.feed(sql.as_bytes());
            scanner.finish()
        };
        let mut scanner = Scanner::new(Reported::default());
        sql.as_bytes().chunks(1).for_each(|byte| scanner.feed(byte));
        assert_eq!(scanner.finish(), whole, "in pieces: {sql}");
        whole
    }

    #[test]
    fn what_leaves_state_behind_pins() {
        assert_eq!(pin("LISTEN jobs"), Some(Pin::Listen));
        assert_eq!(pin("select 1; prepare p as select 2"), Some(Pin::SqlPrepare));
        assert_eq!(pin("CREATE TEMP TABLE t(x int)"), Some(Pin::TempTable));
        assert_eq!(pin("create table pg_temp.t(x int)"), Some(Pin::TempTable));
        assert_eq!(pin("declare c cursor with hold for select 1"), Some(Pin::HoldableCursor));
        assert_eq!(pin("update pg_catalog.pg_settings set setting = 1 where name = 'x'"), Some(Pin::Setting));
        assert_eq!(pin(r#"select U&"set\005fconfig"('work_mem', '9MB', false)"#), Some(Pin::Setting));
        assert_eq!(pin("select pg_catalog.pg_advisory_lock(1)"), Some(Pin::AdvisoryLock));
        assert_eq!(pin("select pg_try_advisory_lock_shared(1)"), Some(Pin::AdvisoryLock));
        assert_eq!(pin("set search_path to a"), Some(Pin::Setting));
        assert_eq!(pin("begin; SET SESSION statement_timeout = 0"), Some(Pin::Setting));
        assert_eq!(pin("/* route=pay */ set role r"), Some(Pin::Role));
        assert_eq!(pin("-- hi\nset role r"), Some(Pin::Role));
        assert_eq!(pin("select set_config('a.b','c',false)"), Some(Pin::Setting));
        assert_eq!(pin("load 'auto_explain'"), Some(Pin::Load));
        assert_eq!(pin("create or replace temp view v as select 1"), Some(Pin::TempTable));
        assert_eq!(pin("create /* a */ local temporary table t(x int)"), Some(Pin::TempTable));
        assert_eq!(pin("select 1 into temp t"), Some(Pin::TempTable));
        assert_eq!(pin("--x\rset role r"), Some(Pin::Role));
    }

    #[test]
    fn what_a_block_does_pins() {
        assert_eq!(pin("DO $$ BEGIN SET work_mem = '1MB'; END $$"), Some(Pin::Setting));
        assert_eq!(pin("DO $$ BEGIN EXECUTE 'SET work_mem = 1'; END $$"), Some(Pin::Setting));
        assert_eq!(pin("do 'begin listen x; end'"), Some(Pin::Listen));
        assert_eq!(pin("DO $$ BEGIN SET LOCAL work_mem = 1; END $$"), None);
    }

    #[test]
    fn what_people_write_to_each_other_does_not() {
        assert_eq!(pin("insert into notes values ('please listen; set up a temporary job')"), None);
        assert_eq!(pin("insert into notes values ($1, 'it''s set; set it')"), None);
        assert_eq!(pin("select temp, temporary from weather where temp > 3"), None);
    }

    #[test]
    fn nothing_hides_behind_a_quote_that_is_none() {
        for text in [
            "/* it's */ listen x",
            "-- it's\nlisten x",
            "select \"it's\"; listen x",
            "select $$it's$$; listen x",
            "select $a$it's$a$; listen x",
            "select $ab_1$it's$ab_1$; listen x",
            "select E'it\\'s'; listen x",
            "select '\\'; listen x; select '",
            "/* /* */ it's */ listen x",
            "select '' ; listen x",
            "select 'a''b'; listen x",
            "select '/*'; listen x",
            "select '--'; listen x",
            "select $1'a'; listen x",
            "select 1 - '-'; listen x",
        ] {
            assert_eq!(pin(text), Some(Pin::Listen), "{text}");
        }
    }

    #[test]
    fn what_ends_state_is_told() {
        let ends = |sql: &str| {
            let found = found(sql);
            (found.resets, found.releases, found.pins)
        };
        let none = Pins::default();
        assert_eq!(ends("DISCARD ALL"), (Resets::All, none, none));
        let both = Pins::of(Pin::Listen).and(Pins::of(Pin::Setting));
        assert_eq!(ends("unlisten *; reset all"), (Resets::All, both, none));
        assert_eq!(ends("UNLISTEN *"), (Resets::No, Pins::of(Pin::Listen), none));
        assert_eq!(ends("unlisten jobs"), (Resets::No, none, none));
        assert_eq!(ends("unlisten \"jobs\""), (Resets::No, none, none));
        assert_eq!(ends("reset role"), (Resets::No, Pins::of(Pin::Role), none));
        let authorization = Pins::of(Pin::SessionAuthorization);
        assert_eq!(ends("RESET SESSION AUTHORIZATION"), (Resets::No, authorization, none));
        assert_eq!(ends("set session authorization joe"), (Resets::No, none, authorization));
        assert_eq!(ends("set session role joe"), (Resets::No, none, Pins::of(Pin::Role)));
        assert_eq!(ends("reset work_mem"), (Resets::No, none, Pins::of(Pin::Setting)));
        assert_eq!(ends("select pg_advisory_unlock_all()"), (Resets::No, Pins::of(Pin::AdvisoryLock), none));
        assert_eq!(ends("select 'reset all'"), (Resets::No, none, none));
    }

    #[test]
    fn what_the_server_reports_needs_no_pin() {
        let pins = |reported: &[&str], sql: &str| {
            let reported = Reported::of(reported.iter().copied());
            let mut scanner = Scanner::new(reported);
            scanner.feed(sql.as_bytes());
            scanner.finish().pins.told()
        };
        assert_eq!(pins(&["TimeZone"], "set search_path to a"), Some(Pin::Setting));
        assert_eq!(pins(&["TimeZone", "search_path"], "set search_path to a"), None);
        assert_eq!(
            pins(&["is_superuser", "session_authorization"], "set is_superuser = off"),
            Some(Pin::Setting)
        );
    }

    #[test]
    fn ordinary_statements_do_not() {
        assert_eq!(pin("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 5"), None);
        assert_eq!(pin("select pg_advisory_xact_lock(1)"), None);
        assert_eq!(pin("set local work_mem = '1MB'"), None);
        assert_eq!(pin("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"), None);
        assert_eq!(pin("set application_name = 'x'; set time zone 'UTC'; set timezone to 'UTC'"), None);
        assert_eq!(pin("set names 'utf8'"), None);
        assert_eq!(pin("select hold, load from template"), None);
        assert_eq!(pin("declare c cursor for select 1"), None);
        assert_eq!(pin("select setting from pg_settings where name = 'work_mem'"), None);
        assert_eq!(pin("deallocate prepare p"), None);
        assert_eq!(pin("deallocate p; prepare p as select 1"), Some(Pin::SqlPrepare));
        assert_eq!(pin(""), None);
    }

    #[test]
    fn a_literal_that_looks_like_a_comment_hides_nothing() {
        assert_eq!(pin("select '--', pg_advisory_lock(1)"), Some(Pin::AdvisoryLock));
        assert_eq!(pin("select '/*'; listen x"), Some(Pin::Listen));
    }
}
