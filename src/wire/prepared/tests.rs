//! Conversations with a small server that knows prepared statements, cut in any way.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::frame::{Cut, Cutter, Direction};

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
    /// The client is on another connection from here on, if it may be.
    Move,
}

fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    text::framed(tag, body)
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
            Say::Move => Vec::new(),
        }
    }
}

/// A server that has prepared statements, skips after errors, and remembers what was run.
#[derive(Debug, Default)]
struct Server {
    statements: BTreeMap<Vec<u8>, Vec<u8>>,
    bound: Option<Vec<u8>>,
    skips: bool,
}

impl Server {
    fn reply(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) {
        if tag == b'S' {
            // The transaction ends, and its portal with it.
            (self.skips, self.bound) = (false, None);
            return out.extend(framed(b'Z', b"I"));
        }
        if self.skips {
            return;
        }
        let answer = match tag {
            b'P' => self.parse(body),
            b'B' => {
                let name = text::cstr(text::cstr(body).unwrap().1).unwrap().0;
                self.get(name).map(|sql| {
                    self.bound = Some(sql);
                    framed(b'2', &[])
                })
            }
            b'D' => self.get(text::cstr(&body[1..]).unwrap().0).map(|sql| {
                [framed(b't', &[0, 0]), framed(b'T', &[&[0, 1][..], &sql, &[0; 19]].concat())].concat()
            }),
            b'C' => {
                self.statements.remove(text::cstr(&body[1..]).unwrap().0);
                Ok(framed(b'3', &[]))
            }
            b'E' => match self.bound.take() {
                Some(sql) => Ok([framed(b'D', &sql), framed(b'C', b"SELECT 1\0")].concat()),
                None => Err("portal does not exist".to_owned()),
            },
            b'Q' => return self.query(body, out),
            _ => return,
        };
        match answer {
            Ok(reply) => out.extend(reply),
            Err(message) => {
                out.extend(error(&message));
                self.skips = true;
            }
        }
    }

    fn parse(&mut self, body: &[u8]) -> Result<Vec<u8>, String> {
        let (name, rest) = text::cstr(body).unwrap();
        let sql = text::cstr(rest).unwrap().0;
        if name.is_empty() {
            self.statements.remove(name);
        }
        if sql == b"bad" {
            return Err("syntax error".to_owned());
        }
        if self.statements.contains_key(name) {
            return Err(format!("\"{}\" already exists", String::from_utf8_lossy(name)));
        }
        self.statements.insert(name.to_vec(), sql.to_vec());
        Ok(framed(b'1', &[]))
    }

    fn get(&self, name: &[u8]) -> Result<Vec<u8>, String> {
        let name_of = String::from_utf8_lossy(name);
        self.statements.get(name).cloned().ok_or_else(|| match name {
            b"" => "unnamed prepared statement does not exist".to_owned(),
            _ => format!("\"{name_of}\" does not exist"),
        })
    }

    fn query(&mut self, body: &[u8], out: &mut Vec<u8>) {
        self.statements.remove(&b""[..]);
        self.bound = None;
        let sql = text::cstr(body).unwrap().0;
        let done = if sql == b"DISCARD ALL" {
            self.statements.clear();
            Ok(framed(b'C', b"DISCARD ALL\0"))
        } else if let Some(name) = sql.strip_prefix(b"DEALLOCATE ") {
            let known = self.get(name);
            self.statements.remove(name);
            known.map(|_| framed(b'C', b"DEALLOCATE\0"))
        } else {
            Ok(framed(b'C', b"SELECT 1\0"))
        };
        out.extend(done.unwrap_or_else(|message| error(&message)));
        out.extend(framed(b'Z', b"I"));
    }
}

fn error(message: &str) -> Vec<u8> {
    framed(b'E', format!("SERROR\0C26000\0M{message}\0\0").as_bytes())
}

/// A client between which and two servers statements are renamed.
struct Scene {
    names: Names,
    servers: [(Prepared, Pulse, Server); 2],
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
            names: Names::default(),
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
        scene.servers[0].0.begin(&mut scene.names);
        scene
    }

    fn play(mut self, says: &[Say]) -> Vec<u8> {
        for say in says {
            if matches!(say, Say::Move) {
                self.hear(true);
                let (prepared, pulse, _) = &mut self.servers[self.at];
                if pulse.is_quiet() {
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
        self.told
    }

    /// As the relay does.
    fn walk_up(&mut self) {
        let mut passed = Vec::new();
        loop {
            let (prepared, pulse, _) = &mut self.servers[self.at];
            let place = self.cutter.clone();
            let taken = match self.cutter.next(&self.up, false, Prepared::wanted_up).unwrap() {
                Cut::More => break,
                Cut::Frame(frame, taken) => {
                    self.sending = frame.tag;
                    let fate = prepared.up(frame, &mut self.names, pulse);
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
                pulse.sent(self.sending);
                prepared.up_ends(Pins::default(), &mut self.names, pulse);
                passed.append(prepared.out());
            }
        }
        self.arrive(&passed);
    }

    /// The server reads whole frames; what it is given is always whole once the client has said all.
    fn arrive(&mut self, bytes: &[u8]) {
        self.half.extend_from_slice(bytes);
        let server = &mut self.servers[self.at].2;
        let down = &mut self.down;
        let read = crate::wire::frame::whole_frames(Direction::Frontend, &self.half, |frame| {
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
            self.walk_up();
        }
    }

    fn walk_down(&mut self, end: usize) -> usize {
        let mut seen = 0;
        loop {
            let (prepared, pulse, _) = &mut self.servers[self.at];
            let input = &self.down[seen..end];
            let (fate, taken) = match self.down_cutter.next(input, false, Prepared::wanted_down).unwrap() {
                Cut::More => break,
                Cut::Frame(frame, taken) => {
                    pulse.received(frame.tag, frame.body.first().copied());
                    (prepared.down(frame, &mut self.names), taken)
                }
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

fn says() -> impl Strategy<Value = Vec<Say>> {
    let name = || prop::sample::select(vec!["", "a", "b", "c"]);
    let sql = prop::sample::select(vec!["one", "two", "three", "bad"]);
    let say = prop_oneof![
        4 => (name(), sql).prop_map(|(name, sql)| Say::Parse(name, sql)),
        4 => name().prop_map(Say::Bind),
        2 => name().prop_map(Say::Describe),
        2 => prop::sample::select(vec!["a", "b", "c"]).prop_map(Say::Close),
        3 => Just(Say::Execute),
        5 => Just(Say::Sync),
        1 => Just(Say::Flush),
        1 => prop::sample::select(vec!["select", "DISCARD ALL", "DEALLOCATE a", "DEALLOCATE b"]).prop_map(Say::Query),
        3 => Just(Say::Move),
    ];
    vec(say, 0..40).prop_map(|mut says| {
        // A simple query in mid-batch is for the stories; here each begins one.
        let mut whole = Vec::new();
        for say in says.drain(..) {
            if matches!(say, Say::Query(_)) {
                whole.push(Say::Sync);
            }
            // Nor is an unnamed statement parsed behind something that may fail.
            if matches!(say, Say::Parse("", _)) {
                whole.extend([Say::Sync, Say::Move]);
            }
            whole.push(say);
        }
        whole.push(Say::Sync);
        whole
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_client_that_moves_is_told_what_a_server_of_its_own_would_tell(
        says in says(),
        cuts in vec(1_usize..40, 1..12),
    ) {
        let (through, want) = (Scene::new(cuts).play(&says), direct(&says));
        prop_assert_eq!(
            String::from_utf8_lossy(&through).into_owned(),
            String::from_utf8_lossy(&want).into_owned()
        );
    }
}
