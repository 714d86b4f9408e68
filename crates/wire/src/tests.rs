//! However a conversation is cut into reads, and however far the client is ahead of the server, it is
//! the same conversation.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::conn_state::{ConnActivity, ProtocolState};
use crate::frame::{Cut, Cutter, Direction, whole_frames};
use crate::message::read_parameter_status;
use crate::scan::Scanner;
use crate::startup;
use crate::startup::FirstPacket;

/// What a relay buffers at most; small, so that frames are longer than it.
const CAPACITY: usize = 64;

fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend(body);
    out
}

type Message = (Direction, u8, Vec<u8>);

fn message() -> impl Strategy<Value = Message> {
    let frontend = prop::sample::select(b"QFBPdXCDEHScf".to_vec());
    let backend = prop::sample::select(b"RSKZTDCE1234sIGHWdcNAnvtV".to_vec());
    let body = || prop_oneof![4 => vec(any::<u8>(), 0..12), 1 => vec(any::<u8>(), 50..300)];
    prop_oneof![
        (frontend, body()).prop_map(|(tag, body)| {
            (Direction::Frontend, tag, if tag == b'H' { Vec::new() } else { body })
        }),
        (backend, body()).prop_map(|(tag, body)| (Direction::Backend, tag, body)),
        vec(prop::sample::select(b"ITE".to_vec()), 1).prop_map(|status| (Direction::Backend, b'Z', status)),
        ("[a-z]{1,8}", "[a-z]{0,8}").prop_map(|(name, value)| {
            (Direction::Backend, b'S', format!("{name}\0{value}\0").into_bytes())
        }),
    ]
}

/// The frames a relay announces, with their bodies put together again.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    frames: Vec<(u8, usize, Vec<u8>)>,
    parameters: Vec<(String, String)>,
}

/// One direction, read as the relay reads it: a buffer that grows to [`CAPACITY`] and is emptied of
/// what is cleared.
struct Pipe {
    buf: Vec<u8>,
    cutter: Cutter,
    heard: Heard,
}

impl Pipe {
    fn new(direction: Direction) -> Pipe {
        Pipe { buf: Vec::new(), cutter: Cutter::new(direction), heard: Heard::default() }
    }

    /// Reads `bytes`, as much at once as fits; `on_frame` gets the tag and what is at hand of the body.
    fn read(&mut self, mut bytes: &[u8], mut on_frame: impl FnMut(u8, &[u8])) {
        while !bytes.is_empty() {
            let room = CAPACITY - self.buf.len();
            assert!(room > 0, "the cutter waits for more than there can be");
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buf.extend(now);
            bytes = later;
            self.walk(&mut on_frame);
        }
    }

    fn walk(&mut self, on_frame: &mut impl FnMut(u8, &[u8])) {
        loop {
            let full = self.buf.len() >= CAPACITY;
            let taken = match self.cutter.next(&self.buf, full, wanted).unwrap() {
                Cut::More => return,
                Cut::Frame(frame, taken) => {
                    on_frame(frame.tag, frame.body);
                    self.heard.frames.push((frame.tag, frame.body_len, frame.body.to_vec()));
                    if frame.tag == b'S' && frame.is_whole() {
                        let parameter = read_parameter_status(frame.body);
                        self.heard
                            .parameters
                            .extend(parameter.map(|(name, value)| (name.to_owned(), value.to_owned())));
                    }
                    taken
                }
                Cut::Body(piece, taken) => {
                    assert_eq!(piece.len(), taken);
                    self.heard.frames.last_mut().unwrap().2.extend(piece);
                    taken
                }
            };
            self.buf.drain(..taken);
        }
    }
}

const fn wanted(tag: u8) -> usize {
    match tag {
        b'Z' => 1,
        b'S' => usize::MAX,
        _ => 0,
    }
}

/// Plays the conversation, each message cut as `cuts` say.
fn play(conversation: &[Message], cuts: &[usize]) -> (Heard, Heard, String) {
    let (mut up, mut down) = (Pipe::new(Direction::Frontend), Pipe::new(Direction::Backend));
    let mut protocol = ProtocolState::new();
    let mut cuts = cuts.iter().copied().cycle();
    for (direction, tag, body) in conversation {
        let bytes = framed(*tag, body);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            rest = later;
            match direction {
                Direction::Frontend => up.read(piece, |tag, _| protocol.sent(tag)),
                Direction::Backend => {
                    down.read(piece, |tag, body| protocol.received(tag, body.first().copied()))
                }
            }
        }
    }
    assert!(up.cutter.at_boundary() && up.buf.is_empty(), "all of it has passed");
    assert!(down.cutter.at_boundary() && down.buf.is_empty(), "all of it has passed");
    (up.heard, down.heard, format!("{protocol:?}"))
}

/// One exchange of a valid conversation: what the client sends at once, and what the server says to it.
/// `Z` stands for ReadyForQuery in whatever state the transaction is by then.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    sent: &'static str,
    received: &'static str,
    /// The transaction's state after it, if it changes.
    state: Option<u8>,
    /// The client waits for this many frames before it sends the rest, which begins at the `|`.
    waits: usize,
}

const fn exchange(sent: &'static str, received: &'static str, state: Option<u8>) -> Exchange {
    Exchange { sent, received, state, waits: 0 }
}

/// Documentation, "Message Flow": simple and extended queries that succeed and fail, with and without
/// a Sync of their own, what is skipped, portals, COPY both ways, function calls, and noise.
const EXCHANGES: [Exchange; 27] = [
    exchange("Q", "TDDCZ", None),
    exchange("Q", "IZ", None),
    exchange("Q", "EZ", None),
    exchange("Q", "TDNCTDCSZ", None),
    exchange("Q", "AACZ", None),
    exchange("Q", "CZ", Some(b'T')),
    exchange("Q", "EZ", Some(b'E')),
    exchange("Q", "CZ", Some(b'I')),
    exchange("QQQ", "TDCZEZCZ", None),
    exchange("PBDES", "12TDDCZ", None),
    exchange("PBDES", "12nCZ", Some(b'T')),
    exchange("PDSBES", "1tTZ2DCZ", None),
    exchange("PDHBES", "1tn2IZ", None),
    exchange("PBEEECS", "12DsDsDC3Z", None),
    exchange("PBES", "1EZ", None),
    exchange("PBEPBEPBES", "12DC1EZ", None),
    exchange("PBESPBESPBES", "12CZEZ12CZ", None),
    exchange("PQQFS", "EZ", None),
    exchange("PBEQ", "12DCTDCZ", None),
    exchange("PBEQQ", "12DCEZCZ", None),
    exchange("PBEF", "12DCVZ", None),
    exchange("SHSS", "ZZZ", None),
    exchange("FF", "VZEZ", None),
    exchange("Q", "HddcCZ", None),
    exchange("PBES", "12HddcCZ", None),
    exchange("dcf", "", None),
    exchange("CCS", "33Z", None),
];

/// Those in which the client waits for CopyInResponse. In COPY-in the server ignores Sync and Flush.
const COPIES: [Exchange; 8] = [
    Exchange { sent: "Q|ddSHdc", received: "GCZ", state: None, waits: 1 },
    Exchange { sent: "Q|df", received: "GEZ", state: None, waits: 1 },
    Exchange { sent: "Q|", received: "GEZ", state: None, waits: 3 },
    Exchange { sent: "Q|dc", received: "CGCTDCZ", state: None, waits: 2 },
    Exchange { sent: "PBEH|ddcS", received: "12GCZ", state: None, waits: 3 },
    Exchange { sent: "PBES|dSHdcS", received: "12GCZ", state: None, waits: 3 },
    Exchange { sent: "PBEH|dfS", received: "12GEZ", state: None, waits: 3 },
    Exchange { sent: "PBEPBEH|dcPBES", received: "12C12GC12DCZ", state: None, waits: 6 },
];

/// A frame's body does not matter here, but for the state in a ReadyForQuery.
fn simple_frame(direction: Direction, tag: u8, state: u8) -> Message {
    (direction, tag, if (direction, tag) == (Direction::Backend, b'Z') { vec![state] } else { Vec::new() })
}

/// The conversation as a relay may hear it: the client as far ahead of the server as `leads` say.
fn heard_with(exchanges: &[Exchange], leads: &[usize]) -> Vec<Message> {
    let (mut out, mut behind) = (Vec::new(), Vec::new());
    let (mut state, mut leads) = (b'I', leads.iter().cycle());
    for exchange in exchanges {
        let before = state;
        state = exchange.state.unwrap_or(state);
        let frames = |tags: &str| tags.bytes().collect::<Vec<_>>();
        let replies = frames(exchange.received);
        // Within one exchange the state is what it was until its last ReadyForQuery.
        let last = replies.iter().rposition(|tag| *tag == b'Z');
        let mut replies = replies.iter().enumerate().map(|(at, tag)| {
            simple_frame(Direction::Backend, *tag, if Some(at) == last { state } else { before })
        });
        let (first, rest) = exchange.sent.split_once('|').unwrap_or((exchange.sent, ""));
        if exchange.waits > 0 {
            // It has read all that was owed, and what it waits for.
            out.append(&mut behind);
        }
        out.extend(frames(first).into_iter().map(|tag| simple_frame(Direction::Frontend, tag, 0)));
        out.extend(replies.by_ref().take(exchange.waits));
        out.extend(frames(rest).into_iter().map(|tag| simple_frame(Direction::Frontend, tag, 0)));
        behind.extend(replies);
        let lead = *leads.next().unwrap();
        let now = behind.len().saturating_sub(lead);
        out.extend(behind.drain(..now));
    }
    out.append(&mut behind);
    out
}

/// Statements with words that matter, words that do not, comments and literals.
fn statement() -> impl Strategy<Value = String> {
    let words = vec![
        "select",
        "SET",
        "set_config",
        "local",
        "time",
        "zone",
        "role",
        "session",
        "listen",
        "x",
        "prepare",
        "temp",
        "declare",
        "hold",
        "with",
        "pg_temp_3.t",
        "pg_advisory_lock(1)",
        "load",
        "reset",
        "timezone",
        "'it''s'",
        "--",
        "/*",
        "*/",
        "\n",
        ";",
        "/",
        "*",
        "-",
        "=",
        "é",
        "a_very_long_name_of_more_than_32_bytes",
    ];
    let gap = prop::sample::select(vec![" ", "", "\t"]);
    vec((prop::sample::select(words), gap), 0..20)
        .prop_map(|words| words.into_iter().flat_map(|(word, gap)| [word, gap]).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_chunking_gives_the_same_frames_and_the_same_pulse(
        conversation in vec(message(), 0..40),
        cuts in vec(1_usize..80, 1..20),
    ) {
        let whole = play(&conversation, &[usize::MAX]);
        let sent = |wanted: Direction| {
            let of = conversation.iter().filter(move |(direction, ..)| *direction == wanted);
            of.map(|(_, tag, body)| (*tag, body.len(), body.clone())).collect::<Vec<_>>()
        };
        prop_assert_eq!(&whole.0.frames, &sent(Direction::Frontend));
        prop_assert_eq!(&whole.1.frames, &sent(Direction::Backend));
        prop_assert_eq!(play(&conversation, &cuts), whole);
    }

    #[test]
    fn a_valid_conversation_comes_to_rest_however_far_the_client_is_ahead(
        exchanges in vec(prop_oneof![
            4 => prop::sample::select(EXCHANGES.to_vec()),
            1 => prop::sample::select(COPIES.to_vec()),
        ], 1..12),
        leads in vec(0_usize..40, 1..6),
        cuts in vec(1_usize..20, 1..10),
    ) {
        let state = exchanges.iter().filter_map(|exchange| exchange.state).next_back().unwrap_or(b'I');
        let spoken = exchanges.iter().any(|exchange| exchange.received.contains('Z'));
        let rest = if spoken && state != b'I' { ConnActivity::InTransaction } else { ConnActivity::Quiet };
        let mut protocol = ProtocolState::new();
        for (direction, tag, body) in heard_with(&exchanges, &leads) {
            match direction {
                Direction::Frontend => protocol.sent(tag),
                Direction::Backend => {
                    // Nobody may have the connection while a reply is on its way, noise apart.
                    prop_assert!(b"NSA".contains(&tag) || !protocol.may_query(), "{tag} comes unasked");
                    protocol.received(tag, body.first().copied());
                }
            }
        }
        prop_assert_eq!(protocol.conn_activity(), rest, "{:?}", protocol);
        // And so it does through a relay that reads it in pieces, both ways.
        let played = |leads: &[usize], cuts: &[usize]| play(&heard_with(&exchanges, leads), cuts);
        let (up, down, protocol) = played(&leads, &cuts);
        let at_once = played(&[0], &[usize::MAX]);
        prop_assert_eq!((up, down), (at_once.0, at_once.1));
        prop_assert_eq!(protocol, played(&leads, &[usize::MAX]).2);
    }

    #[test]
    fn whole_frames_are_those_the_cutter_finds(
        conversation in vec(message(), 0..20),
        lost in 0_usize..40,
    ) {
        let bytes: Vec<u8> =
            conversation.iter().flat_map(|(_, tag, body)| framed(*tag, body)).collect();
        let there = bytes.len().saturating_sub(lost);
        let mut found = 0;
        let end = whole_frames(Direction::Backend, &bytes[..there], |frame| {
            assert!(frame.is_whole());
            found += 1;
        });
        let expected: usize = conversation[..found].iter().map(|(_, _, body)| body.len() + 5).sum();
        prop_assert_eq!(end, Ok(expected));
        let next = conversation.get(found).map_or(usize::MAX, |(_, _, body)| body.len() + 5);
        prop_assert!(there - expected < next, "a whole frame was left behind");
    }

    #[test]
    fn any_chunking_of_a_statement_gives_the_same_pin(
        sql in statement(),
        cuts in vec(1_usize..9, 1..9),
    ) {
        let mut whole = Scanner::new();
        whole.feed(sql.as_bytes());
        let mut pieces = Scanner::new();
        let mut rest = sql.as_bytes();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, later) = rest.split_at((*cut).min(rest.len()));
            pieces.feed(piece);
            rest = later;
        }
        prop_assert_eq!(pieces.finish(), whole.finish());
    }

    #[test]
    fn garbage_never_panics(bytes in vec(any::<u8>(), 0..300), full in any::<bool>(), want in 0_usize..400) {
        let _ = startup::parse(&bytes);
        if let Some(length) = bytes.first_chunk::<4>() {
            let _ = startup::body_length(*length);
        }
        let _ = read_parameter_status(&bytes);
        let mut scanner = Scanner::new();
        scanner.feed(&bytes);
        let _ = scanner.finish();
        for direction in [Direction::Frontend, Direction::Backend] {
            let _ = whole_frames(direction, &bytes, |frame| assert!(frame.is_whole()));
            let (mut cutter, mut protocol, mut rest) = (Cutter::new(direction), ProtocolState::new(), &bytes[..]);
            while let Ok(cut) = cutter.next(rest, full, |_| want) {
                let taken = match cut {
                    Cut::More => break,
                    Cut::Body(_, taken) => taken,
                    Cut::Frame(frame, taken) => {
                        protocol.sent(frame.tag);
                        protocol.received(frame.tag, frame.body.first().copied());
                        taken
                    }
                };
                prop_assert!((1..=rest.len()).contains(&taken));
                rest = &rest[taken..];
            }
            let _ = protocol.conn_activity();
        }
    }

    /// Garbage behind a version that is known, which gets further than any other.
    #[test]
    fn a_startup_of_garbage_is_refused_or_has_a_user(
        rest in "[a-z_\\-\\\\ =]{0,20}(\0[a-z_\\-\\\\ =]{0,20}){0,12}\0{0,3}",
        options in any::<bool>(),
    ) {
        let lead: &[u8] = if options { b"options\0" } else { b"user\0" };
        let packet = [&[0, 3, 0, 0], lead, rest.as_bytes()].concat();
        if let Ok(FirstPacket::Startup(startup)) = startup::parse(&packet) {
            prop_assert!(!startup.user.is_empty() && !startup.database.is_empty());
        }
    }
}
