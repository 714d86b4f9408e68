//! What a client's statements say of the work that they are for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pgleash_core::Activity;

use crate::sqlcommenter::Tags;

/// What is to be told of a checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The work has a name.
    Route(Arc<str>),
    /// The client says that it will pause for so long.
    Hold(Duration),
}

/// Where in a frame its text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// In no text.
    Nowhere,
    /// In the name of a prepared statement, which comes before the text.
    Name,
    Text,
    /// In the name of a portal that is bound, and in that of its statement, which comes next.
    Portal,
    Bound,
}

/// Reads along with one client: the ends of its statements' texts, within fixed bounds.
#[derive(Debug)]
pub struct Reader {
    place: Position,
    head: Vec<u8>,
    tail: Vec<u8>,
    /// The name of the statement that is prepared or bound.
    name: Vec<u8>,
    /// What prepared statements say, by their names: they are bound long after they are sent.
    named: HashMap<Box<[u8]>, Tagged>,
    /// The last name, so that a name that is said again costs no memory.
    route: Option<Arc<str>>,
    scratch: String,
}

/// What a statement says of the work that it is for.
type Tagged = (Option<Arc<str>>, Option<Duration>);

impl Reader {
    /// Prepared statements of one client of which it is kept what they say.
    const MOST_NAMED: usize = 1000;
    /// No longer name is kept.
    const LONGEST_NAME: usize = 256;
    /// How much of a statement's beginning is kept, and of its end.
    const KEPT: usize = 512;

    /// At a client's login.
    pub fn new() -> Self {
        Self {
            place: Position::Nowhere,
            head: Vec::new(),
            tail: Vec::new(),
            name: Vec::new(),
            named: HashMap::new(),
            route: None,
            scratch: String::new(),
        }
    }

    /// A frame begins; of its body this much is at hand.
    pub fn frame(&mut self, tag: u8, body: &[u8]) {
        self.place = match tag {
            b'Q' => Position::Text,
            b'P' => Position::Name,
            b'B' if !self.named.is_empty() => Position::Portal,
            _ => Position::Nowhere,
        };
        if self.place != Position::Nowhere {
            self.head.clear();
            self.tail.clear();
            self.name.clear();
            self.body(body);
        }
    }

    /// More of its body.
    pub fn body(&mut self, mut piece: &[u8]) {
        while let Position::Name | Position::Portal | Position::Bound = self.place {
            let end = memchr::memchr(0, piece);
            if self.place != Position::Portal {
                let room = (Self::LONGEST_NAME + 1).saturating_sub(self.name.len());
                let said = &piece[..end.unwrap_or(piece.len())];
                self.name.extend_from_slice(&said[..said.len().min(room)]);
            }
            let Some(end) = end else { return };
            piece = &piece[end + 1..];
            self.place = match self.place {
                Position::Name => Position::Text,
                Position::Portal => Position::Bound,
                _ => Position::Nowhere,
            };
        }
        if self.place == Position::Text {
            let end = memchr::memchr(0, piece);
            self.keep(&piece[..end.unwrap_or(piece.len())]);
            if end.is_some() {
                self.place = Position::Nowhere;
            }
        }
    }

    fn keep(&mut self, text: &[u8]) {
        let begins = text.len().min(Self::KEPT - self.head.len());
        let (begin, rest) = text.split_at(begins);
        self.head.extend_from_slice(begin);
        let rest = &rest[rest.len().saturating_sub(Self::KEPT)..];
        if !rest.is_empty() {
            let surplus = (self.tail.len() + rest.len()).saturating_sub(Self::KEPT);
            self.tail.drain(..surplus.min(self.tail.len()));
            self.tail.extend_from_slice(rest);
        }
    }

    /// The frame is over. The statement is noted as the holder's last; what is new in it is `said`, at most one
    /// name and one hold.
    pub fn frame_ends(&mut self, tag: u8, activity: &Activity, said: &mut Vec<Said>) {
        if tag == b'B' {
            if let Some((route, hold)) = self.named.get(self.name.as_slice()) {
                said.extend(route.clone().map(Said::Route));
                said.extend(hold.map(Said::Hold));
            }
            return;
        }
        if !matches!(tag, b'Q' | b'P') || self.head.is_empty() {
            return;
        }
        let ends = if self.tail.is_empty() { &self.head } else { &self.tail };
        let tags = Tags::of(&self.head, ends);
        let hold = tags.and_then(|tags| tags.get("pgleash_hold").as_deref().and_then(duration));
        let hold = hold.or_else(|| declared(&self.head));
        let route = tags.and_then(|tags| {
            let named = tags.route_into(&mut self.scratch);
            named.then(|| match &self.route {
                Some(known) if **known == *self.scratch => Arc::clone(known),
                _ => Arc::clone(self.route.insert(self.scratch.as_str().into())),
            })
        });
        let trace = tags.and_then(|tags| tags.trace()).unwrap_or_default();
        activity.says(&mut self.head, trace);
        self.head.clear();
        if tag == b'P' {
            self.remember(&route, hold);
        }
        said.extend(route.map(Said::Route));
        said.extend(hold.map(Said::Hold));
    }
}

impl Reader {
    /// What the statement says counts each time that it is bound.
    fn remember(&mut self, route: &Option<Arc<str>>, hold: Option<Duration>) {
        if route.is_none() && hold.is_none() {
            self.named.remove(self.name.as_slice());
        } else if self.name.len() <= Self::LONGEST_NAME
            && (self.named.len() < Self::MOST_NAMED || self.named.contains_key(self.name.as_slice()))
        {
            self.named.insert(self.name.as_slice().into(), (route.clone(), hold));
        }
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

/// `SET [LOCAL | SESSION] pgleash.hold = '10m'`.
fn declared(statement: &[u8]) -> Option<Duration> {
    let text = statement.trim_ascii_start();
    if !text.get(..4)?.eq_ignore_ascii_case(b"set ") {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    let (name, value) = text[4..]
        .split_once('=')
        .or_else(|| text[4..].split_once(" to ").or_else(|| text[4..].split_once(" TO ")))?;
    let name = name.trim().to_ascii_lowercase();
    let name = name.strip_prefix("local ").or_else(|| name.strip_prefix("session ")).unwrap_or(&name).trim();
    if name != "pgleash.hold" {
        return None;
    }
    let value = value.split(';').next()?.trim();
    duration(value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')).unwrap_or(value))
}

fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said by a frame that comes in pieces of this size.
    fn said(tag: u8, body: &[u8], piece: usize) -> (Vec<Said>, String) {
        let (mut reader, activity) = (Reader::new(), Activity::new());
        let mut pieces = body.chunks(piece);
        reader.frame(tag, pieces.next().unwrap_or_default());
        pieces.for_each(|piece| reader.body(piece));
        let mut said = Vec::new();
        reader.frame_ends(tag, &activity, &mut said);
        (said, activity.statement())
    }

    #[test]
    fn the_name_of_the_work_is_found_however_the_bytes_come() {
        let long = format!("select '{}' /*route='GET%20/x'*/\0", "x".repeat(5000));
        let parse = b"stmt\0select $1 /*route='GET%20/x'*/\0\0\x01\0\0\0\x17";
        for piece in [1, 7, 512, 10_000] {
            for (tag, body, shown) in
                [(b'Q', long.as_bytes(), "select…"), (b'P', parse.as_slice(), "select $1")]
            {
                let (said, statement) = said(tag, body, piece);
                assert_eq!(said, [Said::Route("GET /x".into())], "in pieces of {piece}");
                assert_eq!(statement, shown);
            }
        }
    }

    #[test]
    fn what_a_prepared_statement_says_counts_whenever_it_is_bound() {
        let activity = Activity::new();
        for piece in [1, 3, 1000] {
            let mut reader = Reader::new();
            let mut say = |tag: u8, body: &[u8]| {
                let mut pieces = body.chunks(piece);
                reader.frame(tag, pieces.next().unwrap_or_default());
                pieces.for_each(|piece| reader.body(piece));
                let mut said = Vec::new();
                reader.frame_ends(tag, &activity, &mut said);
                said
            };
            let export = [Said::Route("export".into()), Said::Hold(Duration::from_secs(600))];
            assert_eq!(say(b'B', b"\0s\0\0\0"), []);
            assert_eq!(say(b'P', b"s\0select 1 /*route='export',pgleash_hold='10m'*/\0\0\0"), export);
            assert_eq!(say(b'P', b"t\0select 2\0\0\0"), []);
            assert_eq!(say(b'B', b"portal\0t\0\0\0"), []);
            assert_eq!(say(b'B', b"portal\0s\0\0\0"), export, "in pieces of {piece}");
            assert_eq!(say(b'P', b"s\0select 3\0\0\0"), [], "the name is of another now");
            assert_eq!(say(b'B', b"\0s\0\0\0"), []);
        }
    }

    #[test]
    fn a_name_that_is_said_again_is_the_same_memory() {
        let (mut reader, activity) = (Reader::new(), Activity::new());
        let mut say = |text: &[u8]| {
            reader.frame(b'Q', text);
            let mut said = Vec::new();
            reader.frame_ends(b'Q', &activity, &mut said);
            match said.as_slice() {
                [Said::Route(route)] => Arc::clone(route),
                other => panic!("{other:?}"),
            }
        };
        let first = say(b"select 1 /*route='a',traceparent='00-1'*/\0");
        assert!(Arc::ptr_eq(&first, &say(b"select 2 /*route='a'*/\0")));
        assert_eq!(&*say(b"select 2 /*route='b'*/\0"), "b");
    }

    #[test]
    fn a_long_hold_can_be_declared() {
        let minutes = |n: u64| [Said::Hold(Duration::from_secs(60 * n))];
        for text in [
            "set local pgleash.hold = '10m'\0",
            "SET pgleash.hold TO '10m'; select 1\0",
            "begin /*pgleash_hold='10m'*/\0",
        ] {
            assert_eq!(said(b'Q', text.as_bytes(), 100).0, minutes(10), "{text}");
        }
        for text in [
            "set pgleash.holding = '10m'\0",
            "set pgleash.hold = 'soon'\0",
            "select 'pgleash.hold = 10m'\0",
            "set\0",
        ] {
            assert_eq!(said(b'Q', text.as_bytes(), 100).0, [], "{text}");
        }
    }
}
