//! What must hold for any bytes whatever. libFuzzer looks for bytes for which it does not; so does
//! `crates/wire/tests/corpus.rs`, for less long and with any toolchain, from the same corpus.

use pgleash_core::{Pins, fingerprint};
use pgleash_wire::frame::{Cut, Cutter, Direction, FrameError, HEADER, whole_frames};
use pgleash_wire::message::SqlState;
use pgleash_wire::startup::{FirstPacket, MAX_FIRST_PACKET};
use pgleash_wire::{Down, Names, Prepared, ProtocolState, Scanner, Tags, Up, Whose, message, startup};

/// Bytes from somebody at the door, as the gate reads them: lengths and bodies, one after the other.
pub fn first_packets(mut bytes: &[u8]) {
    for _ in 0..4 {
        let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return };
        let body_length = match startup::body_length(*length) {
            Ok(body_length) => body_length,
            Err(error) => return can_be_told(&error.to_string()),
        };
        assert!((4..=MAX_FIRST_PACKET - 4).contains(&body_length), "a length out of bounds");
        let Some((body, rest)) = rest.split_at_checked(body_length) else { return };
        bytes = rest;
        match startup::parse(body) {
            Err(error) => return can_be_told(&error.to_string()),
            Ok(FirstPacket::Ssl | FirstPacket::Gss) => {}
            Ok(FirstPacket::Cancel { secret, .. }) => assert!((4..=256).contains(&secret.len())),
            Ok(FirstPacket::Startup(startup)) => {
                assert!(!startup.user.is_empty() && !startup.database.is_empty(), "nobody, or nowhere");
                let texts = startup.settings.iter().flat_map(|(name, value)| [name, value]);
                let texts = texts.chain([&startup.user, &startup.database]).chain(&startup.unknown_options);
                for text in texts {
                    assert!(!text.contains('\0') && text.len() < body_length, "a text that was not sent");
                }
                let mut answer = Vec::new();
                message::negotiate_protocol_version(
                    &mut answer,
                    startup.spoken_minor(),
                    &startup.unknown_options,
                );
                is_one_frame(&answer);
            }
        }
    }
}

/// What is said of a bad packet is one message, short, and printable: nothing that was sent is in it.
fn can_be_told(why: &str) {
    assert!(why.len() < 200 && why.chars().all(|c| (' '..='~').contains(&c)), "not to be told: {why:?}");
    is_one_frame(&message::fatal(SqlState::ProtocolViolation, why, None));
}

fn is_one_frame(bytes: &[u8]) {
    let mut frames = 0;
    let end = whole_frames(Direction::Backend, bytes, |_| frames += 1);
    assert_eq!((end, frames), (Ok(bytes.len()), 1), "not one frame: {bytes:?}");
}

/// A conversation as a relay hears it. The bytes are a script: how much is buffered, then turns, each
/// a direction and a length in one byte, and what is said. However it is cut into reads, the frames
/// and the pulse are the same; whatever it holds, nothing grows beyond its bound.
pub fn frames(bytes: &[u8]) {
    let Some((&capacity, script)) = bytes.split_first() else { return };
    // Room for a header at least, as any buffer of a relay has.
    let capacity = usize::from(capacity).max(HEADER + 3);
    let at_once = listen(script, capacity, usize::MAX);
    for cut in [1, 2, 7] {
        assert_eq!(listen(script, capacity, cut), at_once, "cut into pieces of {cut}");
    }
}

/// What was heard, up to the first thing that cannot be.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    /// Direction, tag, length and body.
    frames: Vec<(Direction, u8, usize, Vec<u8>)>,
    error: Option<FrameError>,
    protocol: String,
}

fn listen(script: &[u8], capacity: usize, cut: usize) -> Heard {
    let mut ears = [Ear::new(Direction::Frontend, capacity), Ear::new(Direction::Backend, capacity)];
    let mut protocol = ProtocolState::new();
    let mut heard = Heard::default();
    let mut script = script;
    'turns: while let Some((&turn, rest)) = script.split_first() {
        let (said, rest) = rest.split_at(usize::from(turn & 0x7f).min(rest.len()));
        script = rest;
        let ear = &mut ears[usize::from(turn >> 7)];
        for piece in said.chunks(cut.min(capacity)) {
            if let Err(error) = ear.read(piece, &mut protocol, &mut heard) {
                heard.error = Some(error);
                break 'turns;
            }
        }
    }
    heard.protocol = format!("{protocol:?} {:?} {}", protocol.conn_activity(), protocol.is_full());
    heard
}

/// One direction, with a buffer that is emptied of what was heard.
struct Ear {
    direction: Direction,
    capacity: usize,
    buffer: Vec<u8>,
    cutter: Cutter,
}

impl Ear {
    fn new(direction: Direction, capacity: usize) -> Ear {
        Ear { direction, capacity, buffer: Vec::new(), cutter: Cutter::new(direction) }
    }

    fn read(
        &mut self,
        mut piece: &[u8],
        protocol: &mut ProtocolState,
        heard: &mut Heard,
    ) -> Result<(), FrameError> {
        while !piece.is_empty() {
            let room = self.capacity - self.buffer.len();
            assert!(room > 0, "the cutter waits for more than there can be");
            let (now, later) = piece.split_at(room.min(piece.len()));
            self.buffer.extend(now);
            piece = later;
            self.walk(protocol, heard)?;
        }
        Ok(())
    }

    fn walk(&mut self, protocol: &mut ProtocolState, heard: &mut Heard) -> Result<(), FrameError> {
        loop {
            let full = self.buffer.len() >= self.capacity;
            let taken = match self.cutter.next(&self.buffer, full, wanted)? {
                Cut::More => return Ok(()),
                Cut::Body(piece, taken) => {
                    assert_eq!(piece.len(), taken);
                    heard.frames.last_mut().into_iter().for_each(|frame| frame.3.extend(piece));
                    taken
                }
                Cut::Frame(frame, taken) => {
                    assert_eq!(taken, HEADER + frame.body.len());
                    assert!(frame.body.len() <= frame.body_len);
                    match self.direction {
                        Direction::Frontend => protocol.sent(frame.tag),
                        Direction::Backend => protocol.received(frame.tag, frame.body.first().copied()),
                    }
                    heard.frames.push((self.direction, frame.tag, frame.body_len, frame.body.to_vec()));
                    taken
                }
            };
            assert!((1..=self.buffer.len()).contains(&taken), "{taken} of {}", self.buffer.len());
            self.buffer.drain(..taken);
        }
    }
}

/// Prepared statements of one client on one server connection, as a relay passes them: the script is as that
/// of [`frames`]. Whatever both sides say, what goes on is whole frames both ways, and no queue grows beyond
/// its bound.
pub fn prepared(script: &[u8]) {
    let mut relay = Renaming::default();
    let mut script = script;
    while let Some((&turn, rest)) = script.split_first() {
        let (said, rest) = rest.split_at(usize::from(turn & 0x7f).min(rest.len()));
        script = rest;
        let side = usize::from(turn >> 7);
        relay.heard[side].extend_from_slice(said);
        if relay.pass(side).is_none() {
            return;
        }
        for (direction, at) in [(Direction::Frontend, 0), (Direction::Backend, 1)] {
            if relay.cutters[at].at_boundary() {
                let told = &relay.told[at];
                assert_eq!(whole_frames(direction, told, |_| {}), Ok(told.len()), "half a frame goes on");
            }
        }
    }
    relay.prepared.settle();
    relay.prepared.begin(&mut relay.names);
}

/// Both directions of a relay that renames statements: from the client, and from the server.
struct Renaming {
    names: Names,
    prepared: Prepared,
    protocol: ProtocolState,
    cutters: [Cutter; 2],
    heard: [Vec<u8>; 2],
    told: [Vec<u8>; 2],
    sending: u8,
}

impl Default for Renaming {
    fn default() -> Self {
        let (mut names, mut prepared) = (Names::new(Default::default()), Prepared::default());
        prepared.begin(&mut names);
        Self {
            names,
            prepared,
            protocol: ProtocolState::new(),
            cutters: [Cutter::new(Direction::Frontend), Cutter::new(Direction::Backend)],
            heard: Default::default(),
            told: Default::default(),
            sending: 0,
        }
    }
}

impl Renaming {
    /// Passes what has been heard; `None` when the session ends.
    fn pass(&mut self, side: usize) -> Option<()> {
        if side == 1 {
            self.pass_down()?;
        }
        self.pass_up()?;
        if self.cutters[0].at_boundary()
            && let Some(closes) = self.protocol.asks()
        {
            self.told[0].extend(message::whose_turn(closes));
        }
        (!self.protocol.is_lost()).then_some(())
    }

    fn pass_up(&mut self) -> Option<()> {
        let Self { names, prepared, protocol, sending, .. } = self;
        let (cutter, heard, told) = (&mut self.cutters[0], &mut self.heard[0], &mut self.told[0]);
        while !protocol.is_full() && !prepared.is_full() && !protocol.holds() {
            let place = cutter.clone();
            let (dropped, taken) = match cutter.next(heard, false, Prepared::wanted_up).ok()? {
                Cut::More => break,
                Cut::Body(piece, taken) => {
                    prepared.up_body(piece);
                    (0, taken)
                }
                Cut::Frame(frame, taken) => {
                    *sending = frame.tag;
                    let fate = prepared.up(frame, names, protocol);
                    told.append(prepared.out());
                    match fate {
                        Up::Wait => {
                            *cutter = place;
                            break;
                        }
                        Up::TooLong => return None,
                        Up::Pass | Up::Renamed(_) => protocol.begun(*sending),
                    }
                    (if let Up::Renamed(bytes) = fate { bytes } else { 0 }, taken)
                }
            };
            assert!(dropped <= taken, "more is replaced than there was");
            told.extend(heard.drain(..taken).skip(dropped));
            if cutter.at_boundary() {
                protocol.sent(*sending);
                prepared.up_ends(Pins::default(), names, protocol);
                told.append(prepared.out());
            }
        }
        Some(())
    }

    fn pass_down(&mut self) -> Option<()> {
        let Self { names, prepared, protocol, .. } = self;
        let (cutter, heard, told) = (&mut self.cutters[1], &mut self.heard[1], &mut self.told[1]);
        let want = |tag| if tag == b'Z' { 1 } else { Prepared::wanted_down(tag) };
        while !protocol.is_lost() {
            let (fate, taken) = match cutter.next(heard, false, want).ok()? {
                Cut::More => break,
                Cut::Body(piece, taken) => (prepared.down_body(piece), taken),
                Cut::Frame(frame, taken) => match protocol.hears(frame.tag, frame.body.first().copied()) {
                    // Neither of the two has a body that may come later.
                    Whose::Ours if !frame.is_whole() => return None,
                    Whose::Ours => (Down::Drop, taken),
                    Whose::Client(_) => {
                        protocol.received(frame.tag, frame.body.first().copied());
                        (prepared.down(frame, names), taken)
                    }
                },
            };
            let passed = heard.drain(..taken);
            match fate {
                Down::Pass => told.extend(passed),
                Down::Drop => {}
                Down::Instead(frames) => told.extend(frames),
            }
            if cutter.at_boundary() {
                prepared.down_ends(names);
            }
        }
        Some(())
    }
}

/// As the relay asks: a byte of ReadyForQuery, all of a ParameterStatus.
fn wanted(tag: u8) -> usize {
    match tag {
        b'Z' => 1,
        b'S' => usize::MAX,
        _ => 0,
    }
}

/// A statement's words, cut anywhere, pin or do not pin alike.
pub fn statements(bytes: &[u8]) {
    let mut whole = Scanner::new();
    whole.feed(bytes);
    let mut pieces = Scanner::new();
    bytes.chunks(3).for_each(|piece| pieces.feed(piece));
    assert_eq!(pieces.finish(), whole.finish());
    said(bytes);
}

/// What a statement says of itself, and what is shown of it, is short and has no control characters.
fn said(bytes: &[u8]) {
    let mut route = String::new();
    if let Some(tags) = Tags::of(bytes, bytes)
        && tags.route_into(&mut route)
    {
        assert!(!route.is_empty() && route.len() <= 128 && !route.contains(char::is_control));
        tags.trace();
    }
    assert!(fingerprint::of(bytes).len() <= fingerprint::LONGEST + '…'.len_utf8());
}
