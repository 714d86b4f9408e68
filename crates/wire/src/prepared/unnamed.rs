//! The unnamed statement, and what is said in it: `DEALLOCATE name`.
//!
//! A DEALLOCATE gets a number of its own, under which something is made for it: what the client means may
//! have other names, or not be here.
//!
//! Several may be on their way at once. Which of them is the client's is told by the replies, in order; a
//! Bind in the batch of the last one is skipped with it.

use std::sync::Arc;

use pgleash_core::Pins;

use crate::conn_state::ProtocolState;
use crate::frame::{Frame, HEADER};
use crate::prepared::client_names::{NameState, Names, Parsed};
use crate::prepared::from_client::Up;
use crate::prepared::pending_replies::{Failure, What};
use crate::prepared::server_cache::{NOBODY, Number};
use crate::prepared::{After, Change, Course, Found, Parsing, Prepared, client_names, rewrite};

/// The unnamed statement that a Bind finds.
enum Last<'a> {
    /// It is here, or nothing is; or it will be when the Bind is read.
    Here(&'a Parsed),
    /// It has been closed when the Bind is read.
    Gone,
    /// That is not known yet, but the server has been asked to say.
    Doubtful,
    Elsewhere,
}

impl Prepared {
    /// Buffers that are kept for the next statements.
    const SPARES: usize = 16;
    /// Bytes of each.
    const SPARE: usize = 512;

    pub(super) fn parse_unnamed(&mut self, frame: Frame<'_>, rest: &[u8], names: &mut Names) -> Up {
        let dropped = if frame.is_whole() && frame.body_len <= rewrite::LONGEST_DEALLOCATE {
            rewrite::cstr(rest).and_then(|(sql, types)| Some((rewrite::deallocated(sql)?, types)))
        } else {
            None
        };
        if let Some((name, types)) = dropped {
            match self.find(names, &name) {
                Found::Held(name, _) => return self.parse_deallocate(frame, name, types),
                Found::Doubtful => return Up::Wait,
                // It may be there when this is executed. Of a long name the server says that it is cut.
                Found::Nothing if client_names::key(&name) == name => {
                    return self.parse_deallocate(frame, name.into(), types);
                }
                Found::Nothing => {}
            }
        }
        self.due.push(What::ParseUnnamed, None);
        self.changes.push_back(Change::Unnamed(After::Parsed(Parsed::default())));
        self.passing.clear();
        self.parsing = Parsing::Unnamed;
        self.up_body(rest);
        Up::Pass
    }

    fn parse_deallocate(&mut self, frame: Frame<'_>, name: Arc<[u8]>, types: &[u8]) -> Up {
        let number = self.server_cache.new_number();
        let sql = deallocate(number);
        self.put_header(b'P', 1 + sql.len() + types.len());
        self.out.push(0);
        self.out.extend_from_slice(&sql);
        self.out.extend_from_slice(types);
        let body = frame.body[1..].to_vec();
        self.due.keep(body.len());
        let deallocates = Some((Arc::clone(&name), number));
        let parsed = Parsed { body, pins: Pins::default(), deallocates };
        self.changes.push_back(Change::Unnamed(After::Parsed(parsed)));
        self.due.push(What::ParseUnnamed, Some((name, number)));
        Up::Renamed(HEADER + frame.body_len)
    }

    /// The Parse has passed; its text leaves this behind.
    pub(super) fn unnamed_parsed(&mut self, found: Pins) {
        let body = std::mem::replace(&mut self.passing, self.spare.pop().unwrap_or_default());
        self.due.keep(body.len());
        if let Some(Change::Unnamed(After::Parsed(parsed))) = self.changes.back_mut() {
            (parsed.body, parsed.pins) = (body, found);
        }
    }

    /// The first of the pending changes, which is a Parse: it is answered, or skipped.
    pub(super) fn take_parsed(&mut self) -> Option<Parsed> {
        let Some(Change::Unnamed(After::Parsed(parsed))) = self.take_change() else { return None };
        self.due.let_go(parsed.body.len());
        Some(parsed)
    }

    /// Neither the client nor the server has an unnamed statement any more.
    pub(super) fn unnamed_gone(&mut self, names: &mut Names) {
        let body = names.unnamed.forget();
        self.keep_room(body);
    }

    /// Keeps a buffer for the next statement.
    pub(super) fn keep_room(&mut self, mut body: Vec<u8>) {
        if body.capacity() > 0 && self.spare.len() < Self::SPARES {
            body.clear();
            body.shrink_to(Self::SPARE);
            self.spare.push(body);
        }
    }

    pub(super) fn close_unnamed(&mut self) -> Up {
        self.due.push(What::CloseUnnamed, None);
        self.changes.push_back(Change::Unnamed(After::Gone));
        Up::Pass
    }

    /// What a Bind or Describe that is sent now finds.
    fn last<'a>(&'a self, names: &'a Names) -> Last<'a> {
        for (at, change) in self.changes.iter().enumerate().rev() {
            match change {
                Change::Unnamed(After::Parsed(_) | After::Gone) if at < self.doubtful => {
                    return Last::Doubtful;
                }
                Change::Unnamed(After::Parsed(parsed)) => return Last::Here(parsed),
                Change::Unnamed(After::Gone) => return Last::Gone,
                Change::Unnamed(After::Same) | Change::Make(..) | Change::Forget(_) => {}
            }
        }
        match names.unnamed.place {
            NameState::Here => Last::Here(&names.unnamed.parsed),
            NameState::Elsewhere => Last::Elsewhere,
        }
    }

    /// Bind or Describe, with the empty name at `at` in the body.
    pub(super) fn use_unnamed(
        &mut self,
        frame: Frame<'_>,
        at: usize,
        what: What,
        names: &mut Names,
        protocol: &mut ProtocolState,
    ) -> Up {
        match self.last(names) {
            Last::Here(parsed) => {
                let pins = parsed.pins;
                if matches!(what, What::Bind) {
                    self.pins = pins;
                }
                self.due.push(what, None);
                Up::Pass
            }
            // The server says so.
            Last::Gone => {
                self.due.push(what, None);
                Up::Pass
            }
            // The Sync has been sent, so the answer comes.
            Last::Doubtful => Up::Wait,
            Last::Elsewhere if names.unnamed.parsed.body.is_empty() => {
                self.due.push(What::Fails(Failure::NoUnnamed, None), None);
                self.rename(frame, at, b"", NOBODY)
            }
            Last::Elsewhere => {
                self.make_unnamed_here(names, protocol);
                Up::Wait
            }
        }
    }

    fn make_unnamed_here(&mut self, names: &mut Names, protocol: &mut ProtocolState) {
        let mut deallocates = names.unnamed.parsed.deallocates.take();
        if let Some((_, number)) = &mut deallocates {
            *number = self.server_cache.new_number();
            self.say(protocol, b'P', &[b"\0", &deallocate(*number), &[0, 0]]);
            names.unnamed.parsed.deallocates = deallocates;
            self.due.push(What::Copy, None);
            self.say(protocol, b'H', &[]);
            self.course = Course::Awaits;
            return;
        }
        let told = names.unnamed.told.clone();
        let body = &names.unnamed.parsed.body;
        let sql = rewrite::cstr(body).map_or(body.len(), |(sql, _)| sql.len() + 1);
        let types = told.as_ref().map_or(&body[sql..], |told| &told.types);
        self.say(protocol, b'P', &[b"\0", &body[..sql], types]);
        self.due.push(What::Copy, None);
        if let Some(told) = told {
            self.say(protocol, b'D', &[b"S\0"]);
            self.due.push(What::CheckUnnamed(Box::new(told)), None);
        }
        self.say(protocol, b'H', &[]);
        self.course = Course::Awaits;
    }

    /// A portal is bound to a statement: if it is a DEALLOCATE, that counts when it is executed.
    pub(super) fn portal_bound(&mut self, portal: &[u8], name: &[u8], names: &Names) {
        self.bound.take_if(|(bound, _)| **bound == *portal);
        if name.is_empty()
            && let Last::Here(Parsed { deallocates: Some(target), .. }) = self.last(names)
        {
            self.bound = Some((portal.into(), target.clone()));
        }
    }

    pub(super) fn execute(&mut self, frame: Frame<'_>, names: &Names, protocol: &mut ProtocolState) -> Up {
        let portal = rewrite::cstr(frame.body).map(|(portal, _)| portal);
        let bound = self.bound.as_ref().filter(|(bound, _)| Some(&**bound) == portal);
        let Some((name, number)) = bound.map(|(_, target)| target.clone()) else {
            self.due.push(What::Execute, None);
            return Up::Pass;
        };
        match self.find(names, &name) {
            Found::Doubtful => return Up::Wait,
            Found::Held(..) => {
                // It may be left from an execution that failed.
                self.say(protocol, b'C', &[b"S", &rewrite::name_of(number)]);
                self.due.push(What::Discard(number), None);
                self.make_stub(number, protocol);
            }
            // Nor does the server know the number, and says so.
            Found::Nothing => {}
        }
        self.bound = None;
        self.changes.push_back(Change::Forget(Arc::clone(&name)));
        self.due.push(What::Deallocate, Some((name, number)));
        Up::Pass
    }

    pub(super) fn query(&mut self, frame: Frame<'_>, names: &Names, protocol: &mut ProtocolState) -> Up {
        if frame.is_whole()
            && frame.body_len <= rewrite::LONGEST_DEALLOCATE
            && let Some((sql, _)) = rewrite::cstr(frame.body)
            && let Some(name) = rewrite::deallocated(sql)
        {
            match self.find(names, &name) {
                Found::Doubtful => return Up::Wait,
                Found::Nothing => {}
                Found::Held(name, _) => {
                    let number = self.server_cache.new_number();
                    self.make_stub(number, protocol);
                    let sql = deallocate(number);
                    self.put_header(b'Q', sql.len());
                    self.out.extend_from_slice(&sql);
                    self.query_sent(Some((name, number)));
                    return Up::Renamed(HEADER + frame.body_len);
                }
            }
        }
        self.query_sent(None);
        Up::Pass
    }

    /// The server drops its unnamed statement and portal for a Query.
    fn query_sent(&mut self, deallocates: Option<(Arc<[u8]>, Number)>) {
        self.bound = None;
        self.due.push(What::Query, deallocates);
        self.changes.push_back(Change::Unnamed(After::Gone));
    }
}

fn deallocate(number: Number) -> Vec<u8> {
    [b"DEALLOCATE ".as_slice(), &rewrite::name_of(number)].concat()
}
