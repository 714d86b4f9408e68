//! A SET or a RESET that need not pin: what it sets is known, and it stands alone, so it is set wherever the client
//! goes. Floor 4.

use crate::wire::assign::{Assigned, assigned};
use crate::wire::frame::Frame;
use crate::wire::vars::Reported;

/// Follows one of them from the moment it is sent to the end of its transaction, which has nothing else in it.
#[derive(Debug, Default)]
pub struct Follow {
    state: State,
    /// Whether the frame that passes needs no pin for what it sets.
    spares: bool,
    done: Vec<Assigned>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    No,
    /// The unnamed statement is one.
    Parsed(Assigned),
    /// The last portal is one.
    Bound(Assigned),
    /// It is executed: alone so far, or to the end of its batch.
    Runs(Assigned, Batch),
    /// The server has said that it is done; it counts with the end of the transaction.
    Set(Assigned, Batch),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Batch {
    Open,
    Ended,
}

/// Whether what was set has to be taken for unknown.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing has to be done.
    Known,
    /// The server has done a RESET that is followed.
    Reset,
    /// A SET cannot be followed any more: pin.
    Lost,
    /// Neither can the RESET of this parameter, which the server may do yet.
    LostReset(String),
    /// Neither can that of this one, which the server has done.
    LostDone(String),
}

impl Follow {
    /// The client sends this; before it, nothing was owed and no transaction open if `quiet`.
    pub fn sends(&mut self, frame: Frame<'_>, quiet: bool, reported: Reported) -> Outcome {
        self.spares = false;
        if matches!(self.state, State::No) && !matches!(frame.tag, b'Q' | b'P') {
            return Outcome::Known;
        }
        let state = std::mem::take(&mut self.state);
        self.state = match (frame.tag, state) {
            // What comes behind its batch is another transaction.
            (_, state @ (State::Runs(_, Batch::Ended) | State::Set(_, Batch::Ended))) => state,
            (b'Q', State::No | State::Parsed(_)) if quiet => match value_of(frame, 0, reported) {
                Some(value) => {
                    self.spares = true;
                    State::Runs(value, Batch::Ended)
                }
                None => State::No,
            },
            (b'P', State::No | State::Parsed(_)) if quiet && frame.body.first() == Some(&0) => {
                value_of(frame, 1, reported).map_or(State::No, State::Parsed)
            }
            (b'B', State::Parsed(value)) if binds_unnamed(frame) => {
                self.spares = true;
                State::Bound(value)
            }
            (b'E', State::Bound(value)) => State::Runs(value, Batch::Open),
            (b'S', State::Runs(value, _)) => State::Runs(value, Batch::Ended),
            (b'S', State::Set(value, _)) => State::Set(value, Batch::Ended),
            // Not executed: the portal goes with the transaction.
            (b'S', State::Parsed(_) | State::Bound(_)) => State::No,
            (b'D' | b'H', state) => state,
            (_, State::No | State::Parsed(_)) => State::No,
            (_, State::Bound(value) | State::Runs(value, _)) => return lost(value, Outcome::LostReset),
            (_, State::Set(value, _)) => return lost(value, Outcome::LostDone),
        };
        Outcome::Known
    }

    /// Whether the frame that passes needs no pin for what it sets.
    pub const fn spares(&self) -> bool {
        self.spares
    }

    /// The server has completed a command.
    pub fn completed(&mut self, tag: &[u8]) -> Outcome {
        if matches!(self.state, State::No) {
            return Outcome::Known;
        }
        match std::mem::take(&mut self.state) {
            State::Runs(value, batch) if matches!(tag, b"SET" | b"RESET") => {
                let is_reset = value.1.is_none();
                self.state = State::Set(value, batch);
                return if is_reset { Outcome::Reset } else { Outcome::Known };
            }
            State::Runs(value, _) => return lost(value, Outcome::LostReset),
            State::Set(value, _) => return lost(value, Outcome::LostDone),
            state => self.state = state,
        }
        Outcome::Known
    }

    /// The server has said an error. What was not done will not be.
    pub fn failed(&mut self) -> Outcome {
        match std::mem::take(&mut self.state) {
            State::Set(value, _) => lost(value, Outcome::LostDone),
            _ => Outcome::Known,
        }
    }

    /// The server is ready for the next; whether no transaction is open.
    pub fn ready(&mut self, idle: bool) -> Outcome {
        if matches!(self.state, State::No) {
            return Outcome::Known;
        }
        match std::mem::take(&mut self.state) {
            State::Set(value, Batch::Ended) if idle => self.done.push(value),
            State::Set(value, _) => return lost(value, Outcome::LostDone),
            state @ (State::Parsed(_) | State::Bound(_) | State::Runs(_, Batch::Open)) => self.state = state,
            State::No | State::Runs(_, Batch::Ended) => {}
        }
        Outcome::Known
    }

    /// What has been set for good, and is to be set elsewhere.
    pub fn take(&mut self) -> Vec<Assigned> {
        std::mem::take(&mut self.done)
    }
}

fn lost((name, value): Assigned, reset: impl Fn(String) -> Outcome) -> Outcome {
    if value.is_some() { Outcome::Lost } else { reset(name) }
}

/// What a text that begins at `at` in the body sets, if the server does not report that itself.
fn value_of(frame: Frame<'_>, at: usize, reported: Reported) -> Option<Assigned> {
    let text = frame.is_whole().then(|| frame.body.get(at..)).flatten()?;
    let text = &text[..memchr::memchr(0, text)?];
    assigned(text).filter(|(name, _)| !reported.has(name))
}

fn binds_unnamed(frame: Frame<'_>) -> bool {
    memchr::memchr(0, frame.body).and_then(|end| frame.body.get(end + 1)) == Some(&0)
}
