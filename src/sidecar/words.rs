//! What a client's statements leave behind on the server connection. Floor 4.

mod follow;

use crate::policy::PoolMode;
use crate::wire::assign::Assigned;
use crate::wire::frame::Frame;
use crate::wire::pin::{Pin, Pins};
use crate::wire::scan::{Scanner, Word};
use crate::wire::vars::{Reported, Resets};

use follow::{Follow, Outcome};

/// Watches the frames of one checkout for session state.
#[derive(Debug)]
pub struct Words {
    mode: PoolMode,
    reported: Reported,
    scanner: Option<(u8, Scanner)>,
    /// The statement's name, in front of the text of a Parse, has not ended yet.
    naming: bool,
    pinned: Pins,
    /// How often something was changed that may end with its transaction.
    changes: u64,
    /// Pinned since the connection was quiet last: not to be released by what was sent before.
    fresh: Pins,
    /// What texts that were sent since then will end if they run.
    asked: Ends,
    /// The same of the unnamed statement, if it is bound next.
    unnamed: Ends,
    /// What has ended since then, unless it is rolled back.
    ended: Ends,
    /// Parameters that were set back for good.
    resets: Resets,
    applied: Applied,
    follow: Follow,
    /// Parameters that were set back and followed: the client's own value is due, if it has one.
    back: Vec<String>,
}

/// What statements end: pins, and values that parameters were set to.
#[derive(Clone, Debug, Default)]
struct Ends {
    pins: Pins,
    resets: Resets,
    /// A parameter that is set to something else.
    sets: Option<Word>,
}

impl Ends {
    fn is_empty(&self) -> bool {
        self.pins.is_empty() && self.resets.is_empty() && self.sets.is_none()
    }

    fn join(&mut self, later: &Ends) {
        self.pins = self.pins.and(later.pins);
        later.sets.iter().for_each(|set| self.resets.remove(set.text()));
        self.resets.join(&later.resets);
    }
}

/// Whether it is known what is set on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Applied {
    Known,
    /// A reset was rolled back, or perhaps only what came after it.
    Doubtful,
}

impl Words {
    /// At the beginning of a checkout of a connection to a server that reports these parameters.
    pub fn new(mode: PoolMode, reported: Reported) -> Self {
        let pinned = match mode {
            PoolMode::Session => Pins::of(Pin::SessionMode),
            PoolMode::Transaction => Pins::default(),
        };
        Self {
            mode,
            reported,
            scanner: None,
            naming: false,
            pinned,
            changes: 0,
            fresh: Pins::default(),
            asked: Ends::default(),
            unnamed: Ends::default(),
            ended: Ends::default(),
            resets: Resets::default(),
            applied: Applied::Known,
            follow: Follow::default(),
            back: Vec::new(),
        }
    }

    /// How connections are shared.
    pub const fn mode(&self) -> PoolMode {
        self.mode
    }

    /// A frame begins; of its body this much is at hand. Before it, nothing was owed and no transaction was open
    /// if `quiet`.
    pub fn frame(&mut self, frame: Frame<'_>, quiet: bool) {
        if self.mode == PoolMode::Transaction {
            let outcome = self.follow.sends(frame, quiet, self.reported);
            self.settle_setting(outcome);
        }
        match frame.tag {
            b'Q' | b'P' => {
                self.scanner = Some((frame.tag, Scanner::new(self.reported)));
                self.naming = frame.tag == b'P';
                self.body(frame.body);
            }
            b'F' => {
                let oid = frame.body.first_chunk().map_or(0, |oid| u32::from_be_bytes(*oid));
                self.pin(Pins::of_function(oid));
            }
            // Of the unnamed statement, as far as can be seen; or else nothing is released.
            b'B' if !self.unnamed.is_empty() => {
                let name = memchr::memchr(0, frame.body).and_then(|end| frame.body.get(end + 1));
                let unnamed = std::mem::take(&mut self.unnamed);
                if name == Some(&0) && !self.follow.spares() {
                    self.ask(&unnamed);
                }
            }
            _ => {}
        }
    }

    /// More of a frame's body.
    pub fn body(&mut self, piece: &[u8]) {
        let Some((_, scanner)) = &mut self.scanner else { return };
        let name = if self.naming { memchr::memchr(0, piece).map_or(piece.len(), |end| end + 1) } else { 0 };
        self.naming &= name == 0 || piece[name - 1] != 0;
        scanner.feed(&piece[name..]);
    }

    /// The frame is over. What a Parse would leave behind is for when it runs.
    pub fn frame_ends(&mut self) -> Pins {
        // Most frames have no text, and taking nothing would cost as much as taking something.
        if self.scanner.is_none() {
            return Pins::default();
        }
        let Some((tag, scanner)) = self.scanner.take() else { return Pins::default() };
        let found = scanner.finish();
        let ends = Ends { pins: found.releases, resets: found.resets, sets: found.sets };
        if tag == b'Q' {
            if !self.follow.spares() {
                self.ask(&ends);
            }
            self.pin(found.pins);
            return Pins::default();
        }
        self.unnamed = ends;
        if self.mode == PoolMode::Session {
            // Every statement stays where it is, so when it runs makes no difference.
            self.pin(found.pins);
        }
        found.pins
    }

    /// A text was sent that ends this.
    fn ask(&mut self, ends: &Ends) {
        if ends.is_empty() {
            return;
        }
        self.asked.join(ends);
        if let Some(set) = &ends.sets {
            self.ended.resets.remove(set.text());
            self.back.retain(|name| name != set.text());
        }
    }

    /// What was set may not be known.
    fn settle_setting(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Known | Outcome::Reset => return,
            Outcome::Lost => {}
            Outcome::LostReset(name) => self.asked.resets.add(&name),
            Outcome::LostDone(name) => self.ended.resets.add(&name),
        }
        self.pinned.add(Pin::Setting);
        self.fresh.add(Pin::Setting);
    }

    /// The server is ready for the next; whether no transaction is open.
    pub fn ready(&mut self, idle: bool) {
        let outcome = self.follow.ready(idle);
        self.settle_setting(outcome);
    }

    /// Parameters that the client has set, or set back, for good, which the server does not report.
    pub fn take_set(&mut self) -> Vec<Assigned> {
        let set = self.follow.take();
        for (name, value) in &set {
            self.back.retain(|known| known != name);
            if value.is_none() {
                self.back.push(name.clone());
                continue;
            }
            // What was reset before is not any more.
            self.resets.remove(name);
            if self.resets.has(name) {
                self.applied = Applied::Doubtful;
            }
        }
        set
    }

    /// What runs from now on leaves this behind.
    pub fn pin(&mut self, pins: Pins) {
        let pins = if self.follow.spares() { pins.without(Pins::of(Pin::Setting)) } else { pins };
        self.pinned = self.pinned.and(pins);
        self.fresh = self.fresh.and(pins);
        self.changes += u64::from(!pins.within(Pins::IN_TRANSACTION).is_empty());
    }

    /// The server has completed a command: only what it says has ended has ended.
    pub fn completed(&mut self, tag: &[u8]) {
        let these = |pins: &[Pin]| pins.iter().fold(Pins::default(), |all, pin| all.and(Pins::of(*pin)));
        let tag = tag.strip_suffix(&[0]).unwrap_or(tag);
        match self.follow.completed(tag) {
            Outcome::Reset => return,
            outcome => self.settle_setting(outcome),
        }
        let pins = match tag {
            b"DISCARD ALL" => Pins::ALL.without(Pins::of(Pin::SessionMode)),
            b"DISCARD TEMP" => Pins::of(Pin::TempTable),
            b"CLOSE CURSOR ALL" => Pins::of(Pin::HoldableCursor),
            b"DEALLOCATE ALL" => these(&[Pin::SqlPrepare, Pin::PreparedStatement]),
            b"UNLISTEN" => self.asked.pins.within(Pins::of(Pin::Listen)),
            // By a statement that was prepared by name: what it has reset is not known.
            b"RESET" if self.asked.is_empty() => {
                self.pin(Pins::of(Pin::Setting));
                return self.applied = Applied::Doubtful;
            }
            b"RESET" => {
                let pins =
                    self.asked.pins.within(these(&[Pin::Setting, Pin::Role, Pin::SessionAuthorization]));
                // RESET ALL leaves a role alone, by whatever name that was set.
                let hides = !self.pinned.within(Pins::SETTING_UNKNOWN).is_empty();
                if hides { pins.without(Pins::of(Pin::Setting)) } else { pins }
            }
            b"SELECT 1" => self.asked.pins.within(Pins::of(Pin::AdvisoryLock)),
            // Perhaps of the very transaction that ended something.
            b"ROLLBACK" => return self.doubt(),
            b"SET" | b"DO" => Pins::default(),
            _ => return,
        };
        let resets = match (tag, &self.asked.resets) {
            // What is set behind it may have been sent already.
            (b"DISCARD ALL", asked @ Resets::AllBut(_)) => asked.clone(),
            (b"DISCARD ALL", _) => Resets::all(),
            (b"RESET" | b"SET" | b"DO", asked) => asked.clone(),
            _ if pins.is_empty() => return,
            _ => Resets::default(),
        };
        self.ended.join(&Ends { pins, resets, sets: None });
    }

    /// The server has said an error: nothing has ended for certain.
    pub fn failed(&mut self) {
        let outcome = self.follow.failed();
        self.settle_setting(outcome);
        self.asked = Ends::default();
        self.doubt();
    }

    /// What has ended since the connection was quiet last may have been rolled back.
    fn doubt(&mut self) {
        if !std::mem::take(&mut self.ended).resets.is_empty() {
            self.applied = Applied::Doubtful;
        }
    }

    /// Nothing is owed and no transaction is open: what has ended has ended for good.
    pub fn settle(&mut self) {
        if !self.ended.is_empty() {
            let ended = std::mem::take(&mut self.ended);
            self.pinned = self.pinned.without(ended.pins.without(self.fresh));
            self.resets.join(&ended.resets);
        }
        self.pinned = self.pinned.without(Pins::IN_TRANSACTION);
        self.fresh = Pins::default();
        if !self.asked.is_empty() {
            self.asked = Ends::default();
        }
    }

    /// Which parameters the client has set back to the server's default.
    pub fn resets(&self) -> &Resets {
        &self.resets
    }

    /// Which parameters of those that are followed it has set back.
    pub fn set_back(&self) -> &[String] {
        &self.back
    }

    /// Whether values of the client's own are due, of what it has set back.
    pub fn owes_own(&self) -> bool {
        !self.resets.is_empty() || !self.back.is_empty()
    }

    /// Whether it is uncertain what is set on the connection.
    pub fn is_doubtful(&self) -> bool {
        self.applied == Applied::Doubtful
    }

    /// The client's own parameters have been set again.
    pub fn restored(&mut self) {
        (self.resets, self.applied) = (Resets::default(), Applied::Known);
        self.back.clear();
    }

    /// Whether what a text means to the server is told by the session's parameters alone; and how often something was
    /// changed that may end with its transaction.
    pub fn standing(&self) -> (bool, u64) {
        let plain = self.pinned.is_empty() && self.resets.is_empty() && self.applied == Applied::Known;
        (plain, self.changes)
    }

    /// What has been changed that counts for the client alone until its transaction is over.
    pub fn in_transaction(&self) -> Pins {
        self.pinned.within(Pins::IN_TRANSACTION)
    }

    /// Whether names mean something else to the client, and perhaps soon to others.
    pub fn changes_names(&self) -> bool {
        !self.pinned.within(Pins::NAMES_IN_TRANSACTION).is_empty()
    }

    /// Why the connection has to be kept; `None` if it has not.
    pub fn pinned(&self) -> Option<Pin> {
        self.pinned.told()
    }
}

#[cfg(test)]
mod tests;
