//! What a client's statements may have done to its session.
//!
//! Texts say what may have changed; what has changed is for the server to say, which is asked when the connection
//! is quiet and before anybody else can have it (`session/settle.rs`).

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use pgleash_core::{Pin, Pins, PoolMode};

use crate::frame::Frame;
use crate::scan::{Back, Scanner, Touched};

/// Watches the frames of one checkout for session state.
#[derive(Debug)]
pub struct SessionState {
    mode: PoolMode,
    scanner: Option<(u8, Scanner)>,
    /// The statement's name, in front of the text of a Parse, has not ended yet.
    naming: bool,
    /// What the connection is kept for, by the server's word.
    pinned: Pins,
    /// What has run since the server was asked last, and may have left something behind.
    ran: Pins,
    /// Parameters that may have changed since then, and whether they were set back to their defaults last.
    touched: BTreeMap<String, bool>,
    /// All others were set back.
    all_back: bool,
    /// These were set back until the transaction is over, and are not the client's own yet.
    back_locally: Vec<String>,
    /// Parameters that the client's prepared statements may change, or set back.
    prepared: Vec<Touched>,
    /// How often something was changed that may end with its transaction.
    changes: u64,
    /// Whether something was undone since the server was asked last.
    undone: bool,
    /// Whether what was set back last may have been undone: nothing has been set or set back since.
    back_undone: bool,
    /// Whether what is created may come to be in the temporary schema, by `search_path`.
    makes_temporary: bool,
    /// The server has closed all prepared statements since it was asked last.
    deallocated: bool,
    /// The client reads values of sequences that are its session's own.
    reads_sequences: bool,
    /// A prepared statement has run that sets something back, in a batch that has not ended.
    resets_soon: bool,
    /// The client goes on when what it has set back is its own again.
    holds: bool,
}

/// More names than this are not kept: any parameter may have changed then.
const MOST_NAMES: usize = 32;

impl SessionState {
    /// At the beginning of a checkout. `prepared` is what [`SessionState::into_prepared`] said at the end of the one before;
    /// `temporary` says whether `search_path` has the temporary schema in it.
    pub fn new(mode: PoolMode, prepared: Vec<Touched>, temporary: bool) -> Self {
        let pinned = match mode {
            PoolMode::Session => Pins::of(Pin::SessionMode),
            PoolMode::Transaction => Pins::default(),
        };
        Self {
            mode,
            scanner: None,
            naming: false,
            pinned,
            ran: Pins::default(),
            touched: BTreeMap::new(),
            all_back: false,
            back_locally: Vec::new(),
            prepared,
            changes: 0,
            undone: false,
            back_undone: false,
            makes_temporary: temporary,
            deallocated: false,
            resets_soon: false,
            reads_sequences: false,
            holds: false,
        }
    }

    /// Names that the client's prepared statements may change, for its next checkout.
    pub fn into_prepared(self) -> Vec<Touched> {
        self.prepared
    }

    /// How connections are shared.
    pub const fn mode(&self) -> PoolMode {
        self.mode
    }

    /// A frame begins; of its body this much is at hand.
    pub fn frame(&mut self, frame: Frame<'_>) {
        match frame.tag {
            b'Q' | b'P' => {
                self.scanner = Some((frame.tag, Scanner::new()));
                self.naming = frame.tag == b'P';
                self.body(frame.body);
            }
            b'F' => {
                let oid = frame.body.first_chunk().map_or(0, |oid| u32::from_be_bytes(*oid));
                self.run(Pins::of_function(oid));
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
    pub fn frame_ends(&mut self, tag: u8) -> Pins {
        // With the end of its batch, or of its Query, a RESET is done.
        if self.resets_soon && matches!(tag, b'Q' | b'S') {
            (self.holds, self.resets_soon) = (true, false);
        }
        // Most frames have no text, and taking nothing would cost as much as taking something.
        if self.scanner.is_none() {
            return Pins::default();
        }
        let Some((tag, scanner)) = self.scanner.take() else { return Pins::default() };
        let found = scanner.finish();
        self.reads_sequences |= found.pins.has(Pins::READS_SEQUENCES);
        if tag == b'Q' {
            found.touches.into_iter().for_each(|touched| self.touch(touched));
            self.leave(found.pins);
            let resets = found.pins.has(Pins::RESETS.and(Pins::RESETS_LOCALLY));
            (self.holds, self.resets_soon) = (self.holds || resets, false);
            return Pins::default();
        }
        let mut pins = found.pins;
        for touched in found.touches {
            if self.prepared.contains(&touched) {
                continue;
            }
            if self.prepared.len() < MOST_NAMES {
                self.prepared.push(touched);
            } else {
                pins = pins.and(Pins::TOUCHES_ALL).and(Pins::HIDES);
            }
        }
        if self.mode == PoolMode::Session {
            // Statements do not move, and when they run is not followed.
            self.run(pins);
            self.resets_soon = false;
        }
        pins
    }

    /// A statement runs that was prepared, or a function: it leaves this behind.
    pub fn run(&mut self, pins: Pins) {
        if pins.is_empty() {
            return;
        }
        // One of those parameters that the client's prepared statements may change, or several.
        if pins.has(Pins::TOUCHES.and(Pins::RESETS).and(Pins::RESETS_LOCALLY)) {
            for touched in self.prepared.clone() {
                let is_meant = match touched.back {
                    Back::No => pins.has(Pins::TOUCHES),
                    Back::Yes => pins.has(Pins::RESETS),
                    Back::Locally => pins.has(Pins::RESETS_LOCALLY),
                };
                if is_meant {
                    self.touch(touched);
                }
            }
        }
        self.leave(pins);
    }

    /// What runs from now on leaves this behind.
    fn leave(&mut self, pins: Pins) {
        self.ran = self.ran.and(pins.without(Pins::TOUCHES));
        // These are certain.
        self.pinned = self.pinned.and(pins.within(Pins::of(Pin::PreparedStatement).and(Pins::of(Pin::Load))));
        self.changes += u64::from(pins.has(Pins::IN_TRANSACTION));
        self.resets_soon |= pins.has(Pins::RESETS.and(Pins::RESETS_LOCALLY));
        self.makes_temporary |= pins.has(Pins::MOVES_PATH);
        if self.makes_temporary && pins.has(Pins::NAMES_IN_TRANSACTION) {
            self.ran.add(Pin::TempTable);
        }
    }

    /// A parameter may be another from now on.
    fn touch(&mut self, Touched { name, back }: Touched) {
        match name {
            Some(name) if back == Back::Locally => self.back_locally.push(name),
            None => {
                self.touched.values_mut().for_each(|is_back| *is_back = true);
                self.all_back = true;
            }
            Some(name) if self.touched.len() < MOST_NAMES || self.touched.contains_key(&name) => {
                self.touched.insert(name, back == Back::Yes);
            }
            Some(_) => self.ran = self.ran.and(Pins::TOUCHES_ALL).and(Pins::HIDES),
        }
    }

    /// The server has reported a parameter: if no text has touched it, something else has.
    pub fn reported(&mut self, name: &str) {
        if !self.touches(name) {
            self.touched.insert(name.to_owned(), false);
            self.undone = true;
        }
    }

    /// Whether a text may have changed this parameter (lower case).
    pub fn touches(&self, name: &str) -> bool {
        self.ran.has(Pins::TOUCHES_ALL) || self.touched.contains_key(name)
    }

    /// Whether a text may have set this parameter back to its default.
    pub fn resets(&self, name: &str) -> bool {
        self.touched.get(name).copied().unwrap_or(self.all_back)
    }

    /// The server has completed a command.
    pub fn completed(&mut self, tag: &[u8]) {
        if tag.starts_with(b"ROLLBACK") {
            (self.undone, self.back_undone) = (true, true);
        } else if self.back_undone && matches!(tag, b"RESET\0" | b"SET\0" | b"DISCARD ALL\0") {
            self.back_undone = false;
        }
        self.deallocated |= matches!(tag, b"DEALLOCATE ALL\0" | b"DISCARD ALL\0");
    }

    /// The server has said an error: what was done in its transaction may be undone.
    pub fn failed(&mut self) {
        (self.undone, self.back_undone) = (true, true);
    }

    /// Nothing is owed and no transaction is open.
    pub fn settle(&mut self) {
        let prepared = Pins::of(Pin::PreparedStatement);
        if std::mem::take(&mut self.deallocated) && !self.ran.has(prepared) {
            self.pinned = self.pinned.without(prepared);
        }
        if !self.ran.is_empty() {
            self.ran = self.ran.without(Pins::IN_TRANSACTION.and(prepared));
            self.back_locally.clear();
            self.holds &= self.is_unsettled();
        }
    }

    /// Whether this parameter is at its default until the transaction is over, and not the client's own yet.
    pub fn resets_locally(&self, name: &str) -> bool {
        self.back_locally.iter().any(|back| back == name)
    }

    /// Whether the client has to wait with what it sends next until what it has set back is its own again.
    pub const fn holds(&self) -> bool {
        self.holds
    }

    /// Whether the server has to be asked what has changed.
    pub fn is_unsettled(&self) -> bool {
        let asks = Pins::PARAMETERS.and(Pins::VERIFIABLE).and(Pins::SEEDS).and(Pins::of(Pin::Load));
        !self.touched.is_empty()
            || self.ran.has(asks)
            || (self.ran.has(Pins::ENDS) && self.pinned.has(Pins::VERIFIABLE))
    }

    /// What has run since the server was asked last.
    pub const fn ran(&self) -> Pins {
        self.ran
    }

    /// Parameters that may have changed since then, by name.
    pub fn touched(&self) -> impl Iterator<Item = &String> {
        self.touched.keys()
    }

    /// Whether something was undone since then, so that what was set may be what was set before.
    pub const fn is_undone(&self) -> bool {
        self.undone
    }

    /// Whether what the client has set back last may have been undone since.
    pub const fn is_back_undone(&self) -> bool {
        self.back_undone
    }

    /// What the connection is kept for that the server can be asked about.
    pub const fn verifiable(&self) -> Pins {
        self.ran.and(self.pinned).within(Pins::VERIFIABLE)
    }

    /// The server has been asked: this is what the connection is kept for, of what can be asked about.
    pub fn settled(&mut self, there: Pins) {
        let kept = self.pinned.without(Pins::VERIFIABLE).and(there);
        // DISCARD ALL sets everything back that has a name.
        let discards = self.ran.has(Pins::DISCARDS) && !self.undone && !there.has(Pins::of(Pin::Setting));
        self.pinned = if discards { kept.without(Pins::of(Pin::Setting)) } else { kept };
        self.ran = Pins::default();
        self.touched.clear();
        self.all_back = false;
        (self.undone, self.back_undone) = (false, false);
        self.holds = false;
    }

    /// The client's own parameters are set again, within its transaction.
    pub fn restored(&mut self) {
        self.back_locally.clear();
        self.holds = false;
    }

    /// Whether what a text means to the server is told by the session's parameters alone; and how often something was
    /// changed that may end with its transaction.
    pub fn standing(&self) -> (bool, u64) {
        let beside = Pins::ENDS.and(Pins::RESETS_LOCALLY).and(Pins::READS_SEQUENCES).and(Pins::SEEDS);
        (
            self.pinned.is_empty() && self.ran.without(beside).is_empty() && self.touched.is_empty(),
            self.changes,
        )
    }

    /// What has been changed that counts for the client alone until its transaction is over.
    pub fn in_transaction(&self) -> Pins {
        self.ran.within(Pins::IN_TRANSACTION)
    }

    /// Whether names mean something else to the client, and perhaps soon to others.
    pub fn changes_names(&self) -> bool {
        self.ran.has(Pins::NAMES_IN_TRANSACTION)
    }

    /// Why the connection has to be kept; `None` if it has not.
    pub fn pinned(&self) -> Option<Pin> {
        self.pinned.told()
    }

    /// Everything that it has to be kept for.
    pub const fn pins(&self) -> Pins {
        self.pinned
    }

    /// Whether the client reads values of sequences that are its session's own.
    pub const fn reads_sequences(&self) -> bool {
        self.reads_sequences
    }
}
