//! What the server sends.

use std::sync::Arc;

use pgleash_core::{Pin, Pins};

use crate::frame::Frame;
use crate::prepared::client_names::{Held, NameState, Names, Told};
use crate::prepared::pending_replies::{Draft, Due, What};
use crate::prepared::server_cache::NOBODY;
use crate::prepared::statement::Statement;
use crate::prepared::{After, Change, Copy, Course, Prepared, rewrite};

/// What becomes of a frame of the server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down {
    /// It goes on as it is.
    Pass,
    /// It is not for the client.
    Drop,
    /// These frames go on instead. The other is whole.
    Instead(Vec<u8>),
}

/// The frame that is passing, as far as it is read.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    tag: u8,
    fate: Fate,
    /// The body of a ParameterDescription, until the message behind it has come.
    parameters: Vec<u8>,
    /// The body of the message behind it.
    rows: Vec<u8>,
}

/// What becomes of the frame that is passing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Fate {
    #[default]
    Pass,
    PassRead,
    Drop,
    DropRead,
}

impl Fate {
    fn of(due: Option<&Due>) -> Self {
        match due.map(|due| (due.what.is_ours(), due.what.is_read())) {
            Some((true, true)) => Fate::DropRead,
            Some((true, false)) => Fate::Drop,
            Some((false, true)) => Fate::PassRead,
            Some((false, false)) | None => Fate::Pass,
        }
    }
}

impl Reading {
    /// The longest description that is read, in bytes: more than 1600 columns with the longest names
    /// take. What is beyond does not count.
    const LONGEST: usize = 256 * 1024;

    fn read(&mut self, piece: &[u8]) -> Down {
        if matches!(self.fate, Fate::DropRead | Fate::PassRead) {
            let into = if self.tag == b't' { &mut self.parameters } else { &mut self.rows };
            let room = Self::LONGEST.saturating_sub(into.len());
            into.extend_from_slice(&piece[..piece.len().min(room)]);
        }
        if matches!(self.fate, Fate::Drop | Fate::DropRead) { Down::Drop } else { Down::Pass }
    }

    fn take(&mut self) -> Told {
        let told = rewrite::told(&self.parameters, self.tag, &self.rows);
        self.parameters.clear();
        self.rows.clear();
        told
    }
}

impl Prepared {
    /// A frame of the server's begins.
    pub fn down(&mut self, frame: Frame<'_>, names: &mut Names) -> Down {
        self.reading.tag = frame.tag;
        self.reading.fate = Fate::Pass;
        match frame.tag {
            // The many.
            b'D' | b'd' | b'S' | b'A' => Down::Pass,
            b'E' => self.error(frame, names),
            b'N' => self.notice(frame),
            b'Z' => {
                self.ready(names);
                Down::Pass
            }
            b'G' => {
                // The end of the data may have been sent before anybody has heard that it is taken.
                if !self.due.copy_begins() {
                    self.copy = Copy::Taking;
                }
                Down::Pass
            }
            tag => {
                self.due.replied();
                self.reading.fate = Fate::of(self.due.head());
                if tag == b'C' {
                    self.due.copy_ends();
                    self.completed(frame.body, names);
                }
                self.reading.read(frame.body)
            }
        }
    }

    /// More of its body.
    pub fn down_body(&mut self, piece: &[u8]) -> Down {
        self.reading.read(piece)
    }

    /// The frame has ended.
    pub fn down_ends(&mut self, names: &mut Names) {
        if matches!(self.reading.tag, b'D' | b'd' | b'S' | b'A' | b'E' | b'N' | b'Z' | b'G' | b't') {
            return;
        }
        if let Some(due) = self.due.end(self.reading.tag) {
            self.done(due, names);
        }
    }

    /// The server has done it.
    fn done(&mut self, due: Due, names: &mut Names) {
        match due.what {
            // A name that we took for one that exists, so it should have failed: what is known of this
            // connection is wrong. The client keeps it, and the statement that it has made.
            What::Parse => {
                if let Some((name, number)) = due.name {
                    self.server_cache.clear();
                    names.put(name, Held::Here(number, Pins::default()));
                    self.pins.add(Pin::PreparedStatement);
                }
            }
            What::Make => {
                if let Some(Change::Make(name, number, pins)) = self.take_change() {
                    names.put(name, Held::Here(number, pins));
                }
            }
            What::Forget | What::Deallocate => {
                if let Some(Change::Forget(name)) = self.take_change() {
                    self.forgotten(&name, names);
                }
            }
            What::Learn(draft) => {
                let told = self.reading.take();
                if let Some((name, number)) = due.name {
                    match names.learn(&name, statement(*draft, told)) {
                        Some(statement) => self.server_cache.put(statement, number),
                        // Too many to be made elsewhere, so the client stays.
                        None => self.pins.add(Pin::PreparedStatement),
                    }
                }
            }
            What::Check(wanted, number) => {
                let told = self.reading.take();
                let same = told.shape == wanted.shape;
                let made = if same {
                    wanted
                } else {
                    names.shared(Statement { types: told.types, shape: told.shape, ..(*wanted).clone() })
                };
                self.server_cache.put(made, number);
                self.course = if same { Course::Clear } else { Course::Fails };
            }
            What::Copy if !matches!(self.due.head().map(|due| &due.what), Some(What::Check(..))) => {
                self.unnamed_made(names);
            }
            What::CheckUnnamed(told) => {
                let same = self.reading.take().shape == told.shape;
                self.course = if same { Course::Clear } else { Course::Fails };
            }
            What::DescribeUnnamed => names.unnamed.told = Some(self.reading.take()),
            What::ParseUnnamed => {
                if let Some(parsed) = self.take_parsed() {
                    let body = names.unnamed.replace(parsed);
                    self.keep_room(body);
                }
            }
            What::CloseUnnamed => {
                self.take_change();
                self.unnamed_gone(names);
            }
            _ => {}
        }
    }

    /// The client's unnamed statement is here; it goes on at once if nothing more is asked about it.
    fn unnamed_made(&mut self, names: &mut Names) {
        names.unnamed.place = NameState::Here;
        if !matches!(self.due.head().map(|due| &due.what), Some(What::CheckUnnamed(_))) {
            self.course = Course::Clear;
        }
    }

    /// CommandComplete: some commands close statements.
    fn completed(&mut self, tag: &[u8], names: &mut Names) {
        match tag {
            b"DISCARD ALL\0" | b"DEALLOCATE ALL\0" => {
                names.clear();
                self.server_cache.clear();
            }
            b"DEALLOCATE\0" => {
                if let Some(Due { what: What::Query, name: Some((name, _)) }) = self.due.head() {
                    let name = Arc::clone(name);
                    self.forgotten(&name, names);
                }
            }
            _ => {}
        }
    }

    fn notice(&mut self, frame: Frame<'_>) -> Down {
        let name = self.due.head().and_then(|due| due.name.clone());
        match name {
            Some((name, number)) if frame.is_whole() => {
                let told = rewrite::renamed(frame.body, number, &name);
                told.map_or(Down::Pass, |body| Down::Instead(rewrite::framed(frame.tag, &body)))
            }
            _ => Down::Pass,
        }
    }

    fn error(&mut self, frame: Frame<'_>, names: &mut Names) -> Down {
        self.reading.parameters.clear();
        self.copy = Copy::No;
        self.due.replied();
        let Some(due) = self.due.fail() else {
            let target = self.due.head().and_then(|due| due.name.clone());
            self.unused(target.as_ref());
            return self.notice(frame);
        };
        let told = match (&due.what, &due.name) {
            (What::Fails(failure, parameters), _) if frame.is_whole() => {
                let error = rewrite::framed(b'E', &rewrite::instead(frame.body, *failure));
                let before = parameters.as_ref().map(|parameters| rewrite::framed(b't', parameters));
                Some([before.unwrap_or_default(), error].concat())
            }
            (_, Some((name, number))) if frame.is_whole() => {
                rewrite::renamed(frame.body, *number, name).map(|body| rewrite::framed(b'E', &body))
            }
            _ => None,
        };
        if let Some((_, number)) = due.name
            && matches!(due.what, What::Bind | What::Describe)
            && number != NOBODY
        {
            match rewrite::sqlstate(frame.body) {
                // Its tables have changed under it: the client has to make it anew.
                b"0A000" => self.server_cache.discard(number),
                b"26000" => self.server_cache.lost(number),
                _ => {}
            }
        }
        self.undo(&due, names);
        if matches!(due.what, What::ParseUnnamed) {
            // The server drops the one before first.
            self.unnamed_gone(names);
        }
        self.skip(names);
        told.map_or(Down::Pass, Down::Instead)
    }

    /// After an error the server skips to the next Sync.
    fn skip(&mut self, names: &mut Names) {
        let mut skipped = Vec::new();
        if !self.due.skip(|due| skipped.push(due)) {
            self.course = Course::Skipped;
        }
        skipped.iter().for_each(|due| self.undo(due, names));
    }

    fn ready(&mut self, names: &mut Names) {
        let mut skipped = Vec::new();
        let ended = self.due.ready(|due| skipped.push(due));
        skipped.iter().for_each(|due| self.undo(due, names));
        if let Some(Due { what: What::Query, .. }) = ended
            && let Some(Change::Unnamed(After::Gone)) = self.take_change()
        {
            self.unnamed_gone(names);
        }
        self.copy = Copy::No;
        // It answers a Sync that was taken for one in COPY, and counted after all.
        if self.course == Course::Skipped {
            self.course = Course::Clear;
        }
    }
}

fn statement(draft: Draft, told: Told) -> Statement {
    let sql = rewrite::cstr(&draft.body).map_or(draft.body.len(), |(sql, _)| sql.len() + 1);
    let Draft { body, pins, scope, reading } = draft;
    Statement { scope, text: body[..sql].into(), reading, types: told.types, shape: told.shape, pins }
}
