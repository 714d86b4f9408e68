//! Conversations with a small server that knows prepared statements, cut in any way.

pub(super) mod server;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::conn_state::Whose;
use crate::frame::{Cut, Cutter, Direction, Frame};
use crate::message;
use crate::prepared::rewrite;
use crate::prepared::tests::server::Server;

/// One message of a client.
#[derive(Clone, Debug)]
enum Say {
    Parse(&'static str, &'static str),
    Bind(&'static str),
    Describe(&'static str),
    Close(&'static str),
    Execute,
    Sync,
    Flush,
    Query(&'static str),
    Data(&'static str),
    CopyDone,
    CopyFail,
    /// The client is on another connection from here on, if it may be.
    Move,
}

fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    rewrite::framed(tag, body)
}

impl Say {
    fn bytes(&self) -> Vec<u8> {
        let text = |parts: &[&str]| {
            parts.iter().flat_map(|part| [part.as_bytes(), &[0]].concat()).collect::<Vec<u8>>()
        };
        match self {
            Say::Parse(name, sql) => framed(b'P', &[text(&[name, sql]), vec![0, 0]].concat()),
            Say::Bind(name) => framed(b'B', &[text(&["", name]), vec![0; 6]].concat()),
            Say::Describe(name) => framed(b'D', &[b"S", text(&[name]).as_slice()].concat()),
            Say::Close(name) => framed(b'C', &[b"S", text(&[name]).as_slice()].concat()),
            Say::Execute => framed(b'E', &[0; 5]),
            Say::Sync => framed(b'S', &[]),
            Say::Flush => framed(b'H', &[]),
            Say::Query(sql) => framed(b'Q', &text(&[sql])),
            Say::Data(data) => framed(b'd', data.as_bytes()),
            Say::CopyDone => framed(b'c', &[]),
            Say::CopyFail => framed(b'f', b"why\0"),
            Say::Move => Vec::new(),
        }
    }
}

fn wanted_down(tag: u8) -> usize {
    if tag == b'Z' { 1 } else { Prepared::wanted_down(tag) }
}

/// How much of what it should be told a client is told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    All,
    Lost,
}

/// A client between which and two servers statements are renamed.
struct Scene {
    names: Names,
    servers: [(Prepared, ProtocolState, Server); 2],
    at: usize,
    up: Vec<u8>,
    cutter: Cutter,
    /// What the server has said and the client has not been told.
    down: Vec<u8>,
    down_cutter: Cutter,
    told: Vec<u8>,
    /// Sizes of the pieces in which things come.
    cuts: std::iter::Cycle<std::vec::IntoIter<usize>>,
    sending: u8,
    /// Half a frame that the server has.
    half: Vec<u8>,
}

impl Scene {
    fn new(cuts: Vec<usize>) -> Self {
        let mut scene = Self {
            names: Names::new(Arc::default()),
            servers: Default::default(),
            at: 0,
            up: Vec::new(),
            cutter: Cutter::new(Direction::Frontend),
            down: Vec::new(),
            down_cutter: Cutter::new(Direction::Backend),
            told: Vec::new(),
            cuts: cuts.into_iter().cycle(),
            sending: 0,
            half: Vec::new(),
        };
        scene.servers[1].2.statements.insert(Vec::new(), b"a stranger's".to_vec());
        scene.servers[0].2.statements.insert(Vec::new(), b"a stranger's".to_vec());
        scene.names.follow(&Arc::default(), (true, 0));
        scene.servers[0].0.begin(&mut scene.names);
        scene
    }

    /// What the client is told; and whether to the end, or to where the answers cannot be told apart.
    fn play(mut self, says: &[Say]) -> (Vec<u8>, Told) {
        for say in says {
            if self.servers[self.at].1.is_lost() {
                return (self.told, Told::Lost);
            }
            if matches!(say, Say::Move) {
                self.hear(true);
                let (prepared, protocol, _) = &mut self.servers[self.at];
                if protocol.is_quiet() && self.up.is_empty() {
                    prepared.settle();
                    self.at = 1 - self.at;
                    self.servers[self.at].0.begin(&mut self.names);
                }
                continue;
            }
            for piece in say.bytes().chunks(self.cuts.next().unwrap()) {
                self.up.extend_from_slice(piece);
                self.walk_up();
            }
            self.hear(false);
        }
        self.hear(true);
        let lost = self.servers[self.at].1.is_lost();
        (self.told, if lost { Told::Lost } else { Told::All })
    }

    /// As the relay does.
    fn walk_up(&mut self) {
        let mut passed = Vec::new();
        loop {
            let (prepared, protocol, _) = &mut self.servers[self.at];
            if protocol.holds() {
                break;
            }
            let place = self.cutter.clone();
            let taken = match self.cutter.next(&self.up, false, Prepared::wanted_up).unwrap() {
                Cut::More => break,
                Cut::Frame(frame, taken) => {
                    self.sending = frame.tag;
                    let fate = prepared.up(frame, &mut self.names, protocol);
                    if fate != Up::Wait {
                        protocol.begun(frame.tag);
                    }
                    passed.append(prepared.out());
                    match fate {
                        Up::Pass => passed.extend_from_slice(&self.up[..taken]),
                        Up::Renamed(bytes) => passed.extend_from_slice(&self.up[bytes..taken]),
                        Up::Wait => {
                            self.cutter = place;
                            break;
                        }
                        Up::TooLong => panic!("no name is long"),
                    }
                    taken
                }
                Cut::Body(piece, taken) => {
                    prepared.up_body(piece);
                    passed.extend_from_slice(&self.up[..taken]);
                    taken
                }
            };
            self.up.drain(..taken);
            if self.cutter.at_boundary() {
                protocol.sent(self.sending);
                prepared.up_ends(Pins::default(), &self.names, protocol);
                passed.append(prepared.out());
            }
        }
        let protocol = &mut self.servers[self.at].1;
        if self.cutter.at_boundary()
            && let Some(closes) = protocol.asks()
        {
            passed.extend(message::whose_turn(closes));
        }
        self.arrive(&passed);
    }

    /// The server reads whole frames; what it is given is always whole once the client has said all.
    fn arrive(&mut self, bytes: &[u8]) {
        self.half.extend_from_slice(bytes);
        let server = &mut self.servers[self.at].2;
        let down = &mut self.down;
        let read = crate::frame::whole_frames(Direction::Frontend, &self.half, |frame| {
            server.reply(frame.tag, frame.body, down);
        });
        self.half.drain(..read.unwrap());
    }

    /// The client hears some of what the server has said, or all, until nothing moves.
    fn hear(&mut self, all: bool) {
        let mut end = 0;
        while end < self.down.len() {
            let piece = self.cuts.next().unwrap();
            if !all && piece.is_multiple_of(3) {
                return;
            }
            end = (end + piece).min(self.down.len());
            end -= self.walk_down(end);
            if self.servers[self.at].1.is_lost() {
                return;
            }
            self.walk_up();
        }
    }

    fn walk_down(&mut self, end: usize) -> usize {
        let mut seen = 0;
        loop {
            let (prepared, protocol, _) = &mut self.servers[self.at];
            if protocol.is_lost() {
                break;
            }
            let input = &self.down[seen..end];
            let (fate, taken) = match self.down_cutter.next(input, false, wanted_down).unwrap() {
                Cut::More => break,
                Cut::Frame(frame, taken) => match protocol.hears(frame.tag, frame.body.first().copied()) {
                    Whose::Ours => {
                        if frame.tag == b'Z' {
                            prepared.settle();
                        }
                        seen += taken;
                        continue;
                    }
                    Whose::Client(closes) => {
                        for _ in 0..closes {
                            protocol.received(b'3', None);
                            let close = Frame { tag: b'3', body_len: 0, body: &[] };
                            if prepared.down(close, &mut self.names) == Down::Pass {
                                self.told.extend(framed(b'3', &[]));
                            }
                            prepared.down_ends(&mut self.names);
                        }
                        protocol.received(frame.tag, frame.body.first().copied());
                        (prepared.down(frame, &mut self.names), taken)
                    }
                },
                Cut::Body(piece, taken) => (prepared.down_body(piece), taken),
            };
            match fate {
                Down::Pass => self.told.extend_from_slice(&self.down[seen..seen + taken]),
                Down::Drop => {}
                Down::Instead(frames) => self.told.extend(frames),
            }
            seen += taken;
            if self.down_cutter.at_boundary() {
                prepared.down_ends(&mut self.names);
            }
        }
        self.down.drain(..seen);
        seen
    }
}

/// What the client would be told by a server of its own.
fn direct(says: &[Say]) -> Vec<u8> {
    let (mut server, mut told) = (Server::default(), Vec::new());
    for say in says {
        let bytes = say.bytes();
        if let Some((tag, body)) = bytes.first().zip(bytes.get(5..)) {
            server.reply(*tag, body, &mut told);
        }
    }
    told
}

/// What a client may say: in COPY nothing but its data and its end, or what the server ignores.
fn lawful(says: Vec<Say>) -> Vec<Say> {
    let (mut server, mut lawful) = (Server::default(), Vec::new());
    let mut say_it = |server: &mut Server, say: Say| {
        let bytes = say.bytes();
        if let Some((tag, body)) = bytes.first().zip(bytes.get(5..)) {
            server.reply(*tag, body, &mut Vec::new());
        }
        lawful.push(say);
    };
    for say in says.into_iter().chain([Say::Sync]) {
        let copies =
            matches!(say, Say::Data(_) | Say::CopyDone | Say::CopyFail | Say::Sync | Say::Flush | Say::Move);
        if server.copies() && !copies {
            say_it(&mut server, Say::CopyDone);
        }
        say_it(&mut server, say);
    }
    if server.copies() {
        say_it(&mut server, Say::CopyDone);
    }
    say_it(&mut server, Say::Sync);
    lawful
}

fn says() -> impl Strategy<Value = Vec<Say>> {
    let name = || prop::sample::select(vec!["", "", "a", "b", "c"]);
    let sql = || {
        let texts = vec!["one", "two", "three", "bad", "copy", "copy view", "DEALLOCATE a", "DEALLOCATE b"];
        prop::sample::select(texts)
    };
    let query = prop::sample::select(vec!["select", "copy", "DISCARD ALL", "DEALLOCATE a", "DEALLOCATE b"]);
    let run = |name, sql| vec![Say::Parse(name, sql), Say::Bind(name), Say::Execute];
    let some = prop_oneof![
        4 => (name(), sql()).prop_map(|(name, sql)| {
            // What a statement with a name deallocates is not read.
            let named = !name.is_empty() && sql.starts_with("DEALLOCATE");
            vec![Say::Parse(if named { "" } else { name }, sql)]
        }),
        3 => sql().prop_map(move |sql| run("", sql)),
        4 => name().prop_map(|name| vec![Say::Bind(name)]),
        2 => name().prop_map(|name| vec![Say::Bind(name), Say::Execute]),
        2 => name().prop_map(|name| vec![Say::Describe(name)]),
        2 => name().prop_map(|name| vec![Say::Close(name)]),
        2 => Just(vec![Say::Execute]),
        5 => Just(vec![Say::Sync]),
        1 => Just(vec![Say::Flush]),
        1 => query.prop_map(|sql| vec![Say::Query(sql)]),
        1 => prop::sample::select(vec!["good", "bad"]).prop_map(|data| vec![Say::Data(data)]),
        1 => Just(vec![Say::CopyDone]),
        1 => Just(vec![Say::CopyFail]),
        3 => Just(vec![Say::Move]),
    ];
    vec(some, 0..30).prop_map(|says| lawful(says.concat()))
}

/// Whether a COPY may be among it.
fn has_copy(says: &[Say]) -> bool {
    says.iter().any(|say| matches!(say, Say::Parse(_, "copy" | "copy view") | Say::Query("copy")))
}

/// A COPY as drivers do it: a Sync before its data, or none, in the middle of them, or a few, and one at the end.
fn whole_copy() -> impl Strategy<Value = Vec<Say>> {
    let within = || prop::sample::select(vec![0, 0, 1, 2]).prop_map(|times| vec![Say::Sync; times]);
    let sql = prop::sample::select(vec!["copy", "copy", "copy view"]);
    let data = prop::sample::select(vec!["good", "good", "bad"]).prop_map(|data| vec![Say::Data(data)]);
    let end = prop_oneof![3 => Just(Say::CopyDone), 1 => Just(Say::CopyFail)];
    (sql, within(), vec(prop_oneof![data, within()], 0..3), end).prop_map(|(sql, before, data, end)| {
        let begin = vec![Say::Parse("", sql), Say::Bind(""), Say::Execute];
        [begin, before, data.concat(), vec![end, Say::Sync, Say::Parse("", "one"), Say::Sync]].concat()
    })
}

/// Conversations of a client whose every COPY is whole.
fn says_with_copies() -> impl Strategy<Value = Vec<Say>> {
    let other = says().prop_map(|mut says| {
        let is_of_copy = |say: &Say| matches!(say, Say::Data(_) | Say::CopyDone | Say::CopyFail);
        says.retain(|say| !is_of_copy(say) && !has_copy(std::slice::from_ref(say)));
        says.truncate(12);
        says
    });
    vec(prop_oneof![whole_copy(), other], 1..8).prop_map(|says| lawful(says.concat()))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]

    #[test]
    fn a_client_that_moves_is_told_what_a_server_of_its_own_would_tell(
        says in says(),
        cuts in vec(1_usize..40, 1..12),
    ) {
        let ((through, told), want) = (Scene::new(cuts).play(&says), direct(&says));
        if told == Told::Lost {
            prop_assert!(has_copy(&says) && want.starts_with(&through), "{}", text(&through));
        } else {
            prop_assert_eq!(text(&through), text(&want));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]

    #[test]
    fn and_so_is_a_client_whose_copies_fail_however_its_syncs_cross_with_the_errors(
        says in says_with_copies(),
        cuts in vec(1_usize..40, 1..12),
    ) {
        let ((through, told), want) = (Scene::new(cuts).play(&says), direct(&says));
        prop_assert_eq!(told, Told::All);
        prop_assert_eq!(text(&through), text(&want));
    }
}
