//! What the client sends.

use std::sync::Arc;

use pgleash_core::{Pin, Pins};

use crate::conn_state::ProtocolState;
use crate::frame::{Frame, HEADER};
use crate::prepared::client_names::{Held, Names};
use crate::prepared::pending_replies::{Draft, Failure, What};
use crate::prepared::server_cache::{NOBODY, Number};
use crate::prepared::statement::Statement;
use crate::prepared::{After, Change, Copy, Course, Found, Parsing, Prepared, rewrite};

/// What becomes of a frame of the client's. Whatever is in [`Prepared::out`] is sent before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Up {
    /// It goes on as it is.
    Pass,
    /// So many of its bytes, from its header on, are dropped; `out` has others in their place.
    Renamed(usize),
    /// It has to wait for an answer of the server's, and be shown again.
    Wait,
    /// Its names are longer than any may be.
    TooLong,
}

/// Where a statement is, seen from here.
enum Way {
    Here(Number, Pins),
    /// It is asked for, and the client's frame waits.
    Coming,
    /// Its text would be read as another here.
    Nowhere,
}

impl Prepared {
    /// A frame of the client's begins.
    pub fn up(&mut self, frame: Frame<'_>, names: &mut Names, protocol: &mut ProtocolState) -> Up {
        if self.course == Course::Awaits {
            return Up::Wait;
        }
        if self.course == Course::Skipped {
            if frame.tag == b'S' {
                self.course = Course::Clear;
                self.due.push(What::Sync, None);
            }
            return Up::Pass;
        }
        if self.copy == Copy::Taking {
            return self.copying(frame.tag);
        }
        match frame.tag {
            b'P' => self.parse(frame, names, protocol),
            b'B' => self.bind(frame, names, protocol),
            b'D' if frame.body.first() == Some(&b'S') => self.describe(frame, names, protocol),
            b'C' if frame.body.first() == Some(&b'S') => self.close(frame, names),
            b'Q' => self.query(frame, names, protocol),
            b'E' => self.execute(frame, names, protocol),
            tag => self.plain(tag),
        }
    }

    /// A message that speaks of no statement.
    fn plain(&mut self, tag: u8) -> Up {
        match tag {
            b'D' => self.due.push(What::Describe, None),
            b'C' => self.due.push(What::Close, None),
            b'F' => {
                self.due.push(What::Query, None);
                self.changes.push_back(Change::Unnamed(After::Same));
            }
            b'c' | b'f' => self.due.copy_end(),
            b'S' => {
                self.due.push(What::Sync, None);
                self.doubtful = self.changes.len();
            }
            _ => {}
        }
        Up::Pass
    }

    /// In COPY anything but its data and its end is an error, or is ignored.
    fn copying(&mut self, tag: u8) -> Up {
        match tag {
            b'c' | b'f' => {
                self.copy = Copy::No;
            }
            b'S' => self.due.sync_ignored(),
            _ => {}
        }
        Up::Pass
    }

    fn parse(&mut self, frame: Frame<'_>, names: &mut Names, protocol: &mut ProtocolState) -> Up {
        let Some((name, rest)) = rewrite::cstr(frame.body) else { return self.too_long(frame) };
        if name.is_empty() {
            return self.parse_unnamed(frame, rest, names);
        }
        match self.find(names, name) {
            Found::Nothing => {}
            Found::Doubtful => return Up::Wait,
            Found::Held(named, held) => {
                // It fails, and how is for the server to say.
                let here = match &held {
                    Held::Here(number, _) => Some(*number),
                    Held::Anywhere(statement) => self.server_cache.find(statement),
                };
                let number = here.unwrap_or_else(|| {
                    let number = self.server_cache.new_number();
                    self.make_stub(number, protocol);
                    number
                });
                self.due.push(What::Parse, Some((named, number)));
                return self.rename(frame, 0, name, number);
            }
        }
        self.say_discards(protocol);
        let number = self.server_cache.new_number();
        let named: Arc<[u8]> = crate::prepared::client_names::key(name).into();
        self.due.push(What::Make, Some((Arc::clone(&named), number)));
        self.changes.push_back(Change::Make(named, number, Pins::default()));
        self.passing.clear();
        self.parsing = Parsing::New(number);
        self.up_body(rest);
        self.rename(frame, 0, name, number)
    }

    /// More of the body of a frame that passes.
    pub fn up_body(&mut self, piece: &[u8]) {
        match self.parsing {
            Parsing::No | Parsing::Long => {}
            Parsing::New(_) | Parsing::Unnamed if self.passing.len() + piece.len() > Names::LONGEST => {
                self.passing = Vec::new();
                self.parsing = if self.parsing == Parsing::Unnamed { Parsing::No } else { Parsing::Long };
            }
            Parsing::New(_) | Parsing::Unnamed => self.passing.extend_from_slice(piece),
        }
    }

    /// The frame has ended; `found` is what its text leaves behind.
    pub fn up_ends(&mut self, found: Pins, names: &Names, protocol: &mut ProtocolState) {
        self.learn(found, names, protocol);
        // Unasked, the server might keep its replies to itself until the client has sent what has to wait.
        if self.due.is_heavy() {
            self.say(protocol, b'H', &[]);
        }
    }

    fn learn(&mut self, found: Pins, names: &Names, protocol: &mut ProtocolState) {
        match std::mem::take(&mut self.parsing) {
            Parsing::No => {}
            Parsing::Unnamed => self.unnamed_parsed(found),
            Parsing::New(number) => {
                let body = std::mem::take(&mut self.passing);
                self.made_with(found);
                self.say(protocol, b'D', &[b"S", &rewrite::name_of(number)]);
                let name = match self.changes.back() {
                    Some(Change::Make(name, ..)) => Some((Arc::clone(name), number)),
                    _ => None,
                };
                let (scope, reading) = (names.scope(&body), names.reading(&body));
                self.due.push(What::Learn(Box::new(Draft { body, pins: found, scope, reading })), name);
            }
            Parsing::Long => {
                self.made_with(found);
                self.pins = Pins::of(Pin::PreparedStatement);
            }
        }
    }

    fn made_with(&mut self, found: Pins) {
        if let Some(Change::Make(_, _, pins)) = self.changes.back_mut() {
            *pins = found;
        }
    }

    fn bind(&mut self, frame: Frame<'_>, names: &mut Names, protocol: &mut ProtocolState) -> Up {
        let parts =
            rewrite::cstr(frame.body).and_then(|(portal, rest)| Some((portal, rewrite::cstr(rest)?.0)));
        let Some((portal, name)) = parts else { return self.too_long(frame) };
        self.portal_bound(portal, name, names);
        self.use_statement(frame, portal.len() + 1, name, What::Bind, names, protocol)
    }

    fn describe(&mut self, frame: Frame<'_>, names: &mut Names, protocol: &mut ProtocolState) -> Up {
        let Some((name, _)) = rewrite::cstr(&frame.body[1..]) else { return self.too_long(frame) };
        let what = if name.is_empty() { What::DescribeUnnamed } else { What::Describe };
        self.use_statement(frame, 1, name, what, names, protocol)
    }

    /// Bind or Describe, with the statement's name at `at` in the body.
    fn use_statement(
        &mut self,
        frame: Frame<'_>,
        at: usize,
        name: &[u8],
        what: What,
        names: &mut Names,
        protocol: &mut ProtocolState,
    ) -> Up {
        if std::mem::take(&mut self.course) == Course::Fails {
            return self.fail(frame, at, name, names);
        }
        if name.is_empty() {
            return self.use_unnamed(frame, at, what, names, protocol);
        }
        match self.find(names, name) {
            Found::Doubtful => Up::Wait,
            Found::Nothing => {
                self.due.push(what, Some((name.into(), NOBODY)));
                self.rename(frame, at, name, NOBODY)
            }
            Found::Held(known, held) => {
                let (number, pins) = match self.fetch(held, names, protocol) {
                    Way::Here(number, pins) => (number, pins),
                    Way::Coming => return Up::Wait,
                    Way::Nowhere => return self.fail(frame, at, name, names),
                };
                if matches!(what, What::Bind) {
                    self.pins = pins;
                }
                self.due.push(what, Some((known, number)));
                self.rename(frame, at, name, number)
            }
        }
    }

    /// What the client means by the name is not to be had: it is told to make it anew.
    fn fail(&mut self, frame: Frame<'_>, at: usize, name: &[u8], names: &Names) -> Up {
        let parameters = if frame.tag == b'D' { self.parameters(name, names) } else { None };
        self.due.push(What::Fails(Failure::Stale, parameters), None);
        self.rename(frame, at, name, NOBODY)
    }

    /// The parameters of a statement as the client knows them.
    fn parameters(&self, name: &[u8], names: &Names) -> Option<Box<[u8]>> {
        if name.is_empty() {
            return names.unnamed.told.as_ref().map(|told| told.types.clone());
        }
        match self.find(names, name) {
            Found::Held(_, Held::Anywhere(statement)) => Some(statement.types.clone()),
            Found::Held(..) | Found::Nothing | Found::Doubtful => None,
        }
    }

    fn close(&mut self, frame: Frame<'_>, names: &mut Names) -> Up {
        let Some((name, _)) = rewrite::cstr(&frame.body[1..]) else { return self.too_long(frame) };
        if name.is_empty() {
            return self.close_unnamed();
        }
        let known = match self.find(names, name) {
            Found::Held(known, _) => known,
            Found::Doubtful => return Up::Wait,
            Found::Nothing => {
                self.due.push(What::Close, None);
                return self.rename(frame, 1, name, NOBODY);
            }
        };
        // Others may use the copy here, so what the server closes is nothing.
        self.due.push(What::Forget, Some((Arc::clone(&known), NOBODY)));
        self.changes.push_back(Change::Forget(known));
        self.rename(frame, 1, name, NOBODY)
    }

    /// Where a statement is. If it is not here, it is asked for.
    fn fetch(&mut self, held: Held, names: &Names, protocol: &mut ProtocolState) -> Way {
        let statement = match held {
            Held::Here(number, pins) => return Way::Here(number, pins),
            Held::Anywhere(statement) => names.fitting(statement),
        };
        match self.server_cache.find(&statement) {
            Some(number) => Way::Here(number, statement.pins),
            None if !names.reads(&statement) => Way::Nowhere,
            None => {
                self.make_here(statement, protocol);
                Way::Coming
            }
        }
    }

    /// Makes something by this number, for a message that only wants the name to be there. The client's own
    /// statement could not be made if its tables are gone, and may have other names.
    pub(super) fn make_stub(&mut self, number: Number, protocol: &mut ProtocolState) {
        self.say(protocol, b'P', &[&rewrite::name_of(number), b"\0", &[0, 0]]);
        self.due.push(What::Stub, None);
    }

    fn make_here(&mut self, statement: Arc<Statement>, protocol: &mut ProtocolState) {
        self.say_discards(protocol);
        let number = self.server_cache.new_number();
        let name = rewrite::name_of(number);
        self.say(protocol, b'P', &[&name, &statement.text, &statement.types]);
        self.due.push(What::Copy, None);
        self.say(protocol, b'D', &[b"S", &name]);
        self.due.push(What::Check(statement, number), None);
        self.say(protocol, b'H', &[]);
        self.course = Course::Awaits;
    }

    /// Writes the frame's beginning up to the name at `at` in its body, with our name in its place.
    pub(super) fn rename(&mut self, frame: Frame<'_>, at: usize, name: &[u8], number: Number) -> Up {
        let ours = rewrite::name_of(number);
        self.put_header(frame.tag, frame.body_len - name.len() - 1 + ours.len());
        self.out.extend_from_slice(&frame.body[..at]);
        self.out.extend_from_slice(&ours);
        Up::Renamed(HEADER + at + name.len() + 1)
    }

    pub(super) fn put_header(&mut self, tag: u8, body_len: usize) {
        self.out.push(tag);
        self.out.extend((body_len as u32 + 4).to_be_bytes());
    }

    /// A frame without the end of a name in it. If it is whole, the server says what is wrong with it.
    fn too_long(&mut self, frame: Frame<'_>) -> Up {
        if !frame.is_whole() {
            return Up::TooLong;
        }
        self.due.push(What::Parse, None);
        Up::Pass
    }
}
