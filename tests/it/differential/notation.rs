//! How a conversation is written.
//!
//! ```text
//! # why it is here, or where it was seen
//! == its name
//! @ alone: why no second client can play beside it
//! @ own words: why pgleash says this error in its own words (severity and SQLSTATE still agree)
//! @ refused: why the login is refused without AuthenticationOk, which is left out of its tags
//! @ differs: why, for now, with pgleash; the test fails when it no longer does
//! @ differs in transaction mode: the same
//! @ before 18: why only servers before PostgreSQL 18 have this conversation
//! @ since 18: why only those since
//! > Query "select 1" ; Sync
//! < TDCZ
//! ```
//!
//! `>` lines that follow one another are sent at once; `;` stands between messages, `N *` before a
//! line repeats it. A `<` line is what then comes back, by tag: `(12DC)*3 Z`, `end` for the end of the
//! connection, `...` if more is still to come. `b>` and `b<` are another client. Texts are in double
//! quotes with `\n \t \0 \" \\ \xHH`; a bare word is a text, `null` is null, `x*1000` is a thousand x.
//!
//! Messages: `Query text`, `Parse name text [type oid]...`, `Bind portal statement [value]... [-> format...]`
//! (a value `bin:HEX` is binary), `Describe S|P name`, `Execute portal [rows]`, `Close S|P name`, `Sync`,
//! `Flush`, `CopyData text`, `CopyDone`, `CopyFail text`, `Call oid [value]...`, `Terminate`, `Raw tag body`,
//! `Bytes text`, `Hangup`. A login happens by itself unless the first message is one of these: `Startup
//! version [key=value]...` (the value `$db` is the database), `First text`, `SSL`, whose answer is a byte.

use crate::support::{Mode, raw};

/// A conversation.
#[derive(Debug, Default)]
pub struct Talk {
    /// Its name.
    pub name: String,
    /// Why there can be no second client on the same connection, if there cannot.
    pub alone: Option<String>,
    /// Why an error that ends the connection is in pgleash's own words, if it is.
    pub own_words: Option<String>,
    /// Why AuthenticationOk is not heard before a refusal, if it need not be.
    pub refused: Option<String>,
    /// Why it is different, if it is.
    pub differs: Option<String>,
    /// Why it is different in transaction mode, if it is.
    pub differs_in_transaction_mode: Option<String>,
    /// Servers that have this conversation: since this major version, and before this.
    pub servers: std::ops::Range<u32>,
    /// What happens, in order.
    pub turns: Vec<Turn>,
}

/// One exchange: what is sent at once, and what comes back.
#[derive(Debug, Default)]
pub struct Turn {
    /// By the second speaker, `b`.
    pub other: bool,
    /// As written.
    pub messages: Vec<Message>,
    /// Tags that come back.
    pub tags: String,
    /// What follows them.
    pub then: Then,
}

/// What follows a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Then {
    /// Nothing: all that was asked is answered.
    #[default]
    Rest,
    /// More of it.
    More,
    /// The end of the connection.
    End,
}

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Bytes as they are.
    Bytes(Vec<u8>),
    /// A first packet.
    First(Vec<u8>),
    /// An SSLRequest, which is answered with a byte.
    Ssl,
    /// A startup packet: version, and parameters that may name the database.
    Startup(u32, Vec<(Vec<u8>, Vec<u8>)>),
    /// The socket is closed without a word.
    Hangup,
}

/// Reads a file of conversations.
pub fn read(text: &str) -> Vec<Talk> {
    let mut talks: Vec<Talk> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let (sign, rest) = line.split_once(' ').unwrap_or((line, ""));
        if sign.is_empty() || sign.starts_with('#') {
            continue;
        }
        if sign == "==" {
            talks.push(Talk { name: rest.trim().to_owned(), servers: 0..u32::MAX, ..Talk::default() });
            continue;
        }
        let talk = talks.last_mut().expect("a conversation begins with its name");
        let understood = match sign {
            "@" => talk.note(rest),
            ">" | "b>" => talk.say(sign == "b>", rest),
            "<" | "b<" => talk.hear(sign == "b<", rest),
            _ => Err("not a line of a conversation".to_owned()),
        };
        understood.unwrap_or_else(|why| panic!("line {}: {why}: {line}", at + 1));
    }
    talks
}

impl Talk {
    /// Whether the conversation begins at the door.
    pub fn logs_in_itself(&self) -> bool {
        let first = self.turns.first().and_then(|turn| turn.messages.first());
        matches!(first, Some(Message::First(_) | Message::Startup(..) | Message::Ssl))
    }

    /// Whether it is known to be different in any mode.
    pub fn is_known_to_differ(&self) -> bool {
        self.differs_in(Mode::Transaction)
    }

    /// Whether it is known to be different in this mode.
    pub fn differs_in(&self, mode: Mode) -> bool {
        self.differs.is_some() || (mode == Mode::Transaction && self.differs_in_transaction_mode.is_some())
    }

    fn note(&mut self, rest: &str) -> Result<(), String> {
        let (kind, why) = rest.split_once(": ").ok_or("a note without a reason")?;
        let version = |word: &str| word.parse().map_err(|_| format!("not a version: {word}"));
        let note = match kind {
            _ if kind.starts_with("since ") => {
                self.servers.start = version(&kind["since ".len()..])?;
                return Ok(());
            }
            _ if kind.starts_with("before ") => {
                self.servers.end = version(&kind["before ".len()..])?;
                return Ok(());
            }
            "alone" => &mut self.alone,
            "own words" => &mut self.own_words,
            "refused" => &mut self.refused,
            "differs" => &mut self.differs,
            "differs in transaction mode" => &mut self.differs_in_transaction_mode,
            _ => return Err(format!("no such note: {kind}")),
        };
        *note = Some(why.to_owned());
        Ok(())
    }

    fn say(&mut self, other: bool, rest: &str) -> Result<(), String> {
        if self.turns.last().is_none_or(|turn| turn.other != other || !turn.tags.is_empty()) {
            self.turns.push(Turn { other, ..Turn::default() });
        }
        let mut words = words(rest)?;
        let mut times = 1;
        if let [Word::Bare(count), Word::Bare(star), ..] = words.as_slice()
            && star == "*"
        {
            times = count.parse().map_err(|_| "how often?")?;
            words.drain(..2);
        }
        let messages: Vec<Message> = words
            .split(|word| matches!(word, Word::Bare(bare) if bare == ";"))
            .map(message)
            .collect::<Result<_, _>>()?;
        let turn = self.turns.last_mut().expect("one was begun");
        turn.messages.extend((0..times).flat_map(|_| messages.clone()));
        Ok(())
    }

    fn hear(&mut self, other: bool, rest: &str) -> Result<(), String> {
        if self.turns.last().is_none_or(|turn| turn.other != other || !turn.tags.is_empty()) {
            self.turns.push(Turn { other, ..Turn::default() });
        }
        let turn = self.turns.last_mut().expect("one was begun");
        for word in rest.split_whitespace() {
            match word {
                "end" => turn.then = Then::End,
                "..." => turn.then = Then::More,
                tags => turn.tags.push_str(&repeated(tags)?),
            }
        }
        // An end without a word is heard, too.
        if turn.tags.is_empty() && turn.then != Then::End {
            return Err("nothing is heard".to_owned());
        }
        Ok(())
    }
}

/// `(12DC)*3Z` is `12DC12DC12DCZ`.
fn repeated(tags: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = tags;
    while let Some((before, group)) = rest.split_once('(') {
        out.push_str(before);
        let (group, after) = group.split_once(")*").ok_or("a group without a count")?;
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        // A digit is a tag as well: the count ends at a space or a letter.
        let (count, after) = after.split_at(digits);
        out.push_str(&group.repeat(count.parse().map_err(|_| "a group without a count")?));
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Bare(String),
    Quoted(Vec<u8>),
}

impl Word {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Word::Quoted(bytes) => bytes.clone(),
            Word::Bare(bare) => match bare.split_once('*') {
                Some((unit, count)) if count.parse::<usize>().is_ok() => {
                    unit.repeat(count.parse().unwrap()).into_bytes()
                }
                _ => bare.clone().into_bytes(),
            },
        }
    }

    fn number(&self) -> Result<u32, String> {
        match self {
            Word::Bare(bare) => bare.parse().map_err(|_| format!("not a number: {bare}")),
            Word::Quoted(_) => Err("not a number".to_owned()),
        }
    }

    fn is(&self, bare: &str) -> bool {
        matches!(self, Word::Bare(word) if word == bare)
    }
}

fn words(mut rest: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok(words);
        }
        if let Some(quoted) = rest.strip_prefix('"') {
            let (bytes, after) = unquote(quoted)?;
            words.push(Word::Quoted(bytes));
            rest = after;
        } else {
            let end = rest.find(' ').unwrap_or(rest.len());
            words.push(Word::Bare(rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
}

fn unquote(quoted: &str) -> Result<(Vec<u8>, &str), String> {
    let mut bytes = Vec::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((bytes, &quoted[at + 1..])),
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('n') => bytes.push(b'\n'),
                Some('t') => bytes.push(b'\t'),
                Some('0') => bytes.push(0),
                Some('x') => {
                    let hex: String = chars.by_ref().take(2).map(|(_, c)| c).collect();
                    bytes.push(u8::from_str_radix(&hex, 16).map_err(|_| format!("not hex: {hex}"))?);
                }
                Some(c @ ('"' | '\\')) => bytes.push(c as u8),
                other => return Err(format!("no such escape: {other:?}")),
            },
            c => bytes.extend(c.to_string().bytes()),
        }
    }
    Err("a text without an end".to_owned())
}

fn message(words: &[Word]) -> Result<Message, String> {
    let (verb, rest) = words.split_first().ok_or("an empty message")?;
    let Word::Bare(verb) = verb else { return Err("a message has a name".to_owned()) };
    let text = |at: usize| rest.get(at).map(Word::bytes).unwrap_or_default();
    let string = |at: usize| [text(at), vec![0]].concat();
    let kind = || if rest.first().is_some_and(|word| word.is("S")) { b"S" } else { b"P" };
    let frame = |tag: u8, body: Vec<u8>| Ok(Message::Bytes(raw::message(tag, &body)));
    match verb.as_str() {
        "Query" => frame(b'Q', string(0)),
        "Parse" => frame(b'P', [string(0), string(1), oids(&rest[2..])?].concat()),
        "Bind" => frame(b'B', [string(0), string(1), values(&rest[2..])?].concat()),
        "Describe" => frame(b'D', [kind().to_vec(), string(1)].concat()),
        "Close" => frame(b'C', [kind().to_vec(), string(1)].concat()),
        "Execute" => {
            let rows = rest.get(1).map_or(Ok(0), Word::number)?;
            frame(b'E', [string(0), rows.to_be_bytes().to_vec()].concat())
        }
        "Sync" => frame(b'S', Vec::new()),
        "Flush" => frame(b'H', Vec::new()),
        "CopyData" => frame(b'd', text(0)),
        "CopyDone" => frame(b'c', Vec::new()),
        "CopyFail" => frame(b'f', string(0)),
        "Call" => frame(b'F', [rest[0].number()?.to_be_bytes().to_vec(), values(&rest[1..])?].concat()),
        "Terminate" => frame(b'X', Vec::new()),
        "Raw" => frame(text(0)[0], text(1)),
        "Bytes" => Ok(Message::Bytes(text(0))),
        "Hangup" => Ok(Message::Hangup),
        "First" => Ok(Message::First(text(0))),
        "SSL" => Ok(Message::Ssl),
        "Startup" => startup(rest),
        other => Err(format!("no such message: {other}")),
    }
}

fn startup(rest: &[Word]) -> Result<Message, String> {
    let version = String::from_utf8(rest[0].bytes()).map_err(|_| "a version")?;
    let (major, minor) = version.split_once('.').ok_or("a version")?;
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("not a version: {version}"));
    let parameters = rest[1..].iter().map(|word| {
        let bytes = word.bytes();
        let equals = bytes.iter().position(|byte| *byte == b'=').ok_or("a parameter without =")?;
        Ok((bytes[..equals].to_vec(), bytes[equals + 1..].to_vec()))
    });
    Ok(Message::Startup((number(major)? << 16) | number(minor)?, parameters.collect::<Result<_, String>>()?))
}

fn oids(words: &[Word]) -> Result<Vec<u8>, String> {
    let mut out = u16::try_from(words.len()).unwrap().to_be_bytes().to_vec();
    for word in words {
        out.extend(word.number()?.to_be_bytes());
    }
    Ok(out)
}

/// Formats, values, and the formats of the results. A function's result has one format and no count,
/// so a Call has no `->`: its two zero bytes are read as text.
fn values(words: &[Word]) -> Result<Vec<u8>, String> {
    let arrow = words.iter().position(|word| word.is("->")).unwrap_or(words.len());
    let (values, results) = (&words[..arrow], words.get(arrow + 1..).unwrap_or_default());
    let binary = |word: &Word| matches!(word, Word::Bare(bare) if bare.starts_with("bin:"));
    let count = u16::try_from(values.len()).unwrap().to_be_bytes();
    let mut out = Vec::new();
    if values.iter().any(binary) {
        out.extend(count);
        values.iter().for_each(|word| out.extend(u16::from(binary(word)).to_be_bytes()));
    } else {
        out.extend([0, 0]);
    }
    out.extend(count);
    for word in values {
        if word.is("null") {
            out.extend((-1_i32).to_be_bytes());
            continue;
        }
        let bytes = if binary(word) { unhex(&word.bytes()[4..])? } else { word.bytes() };
        out.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        out.extend(bytes);
    }
    out.extend(u16::try_from(results.len()).unwrap().to_be_bytes());
    for word in results {
        out.extend(u16::try_from(word.number()?).unwrap().to_be_bytes());
    }
    Ok(out)
}

fn unhex(digits: &[u8]) -> Result<Vec<u8>, String> {
    let pairs = digits.chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).map_err(|_| "not hex")?;
        u8::from_str_radix(pair, 16).map_err(|_| "not hex")
    });
    pairs.collect::<Result<_, _>>().map_err(str::to_owned)
}

#[test]
fn a_conversation_is_read_as_it_is_written() {
    let talks = read(
        "# seen in the field\n== two\n> Query \"select 'a\\x00'\" ; Sync\n> 2 * Flush\n< (TD)*2CZ ...\n< Z end\n",
    );
    let turns = &talks[0].turns;
    assert_eq!((talks[0].name.as_str(), turns.len()), ("two", 2));
    assert_eq!(turns[0].messages.len(), 4);
    assert_eq!(turns[0].messages[0], Message::Bytes(raw::message(b'Q', b"select 'a\0'\0")));
    assert_eq!((turns[0].tags.as_str(), turns[0].then), ("TDTDCZ", Then::More));
    assert_eq!((turns[1].tags.as_str(), turns[1].then), ("Z", Then::End));
}

#[test]
fn values_are_text_binary_or_null() {
    let talk = read("== v\n> Bind p s 41 null bin:00ff -> 1\n< 2\n");
    let body = b"p\0s\0\0\x03\0\0\0\0\0\x01\0\x03\0\0\0\x0241\xff\xff\xff\xff\0\0\0\x02\0\xff\0\x01\0\x01";
    assert_eq!(talk[0].turns[0].messages, [Message::Bytes(raw::message(b'B', body))]);
}
