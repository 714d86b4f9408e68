//! What a client's statements leave behind on the server connection. Floor 4.

use crate::policy::PoolMode;
use crate::wire::frame::Frame;
use crate::wire::pin::{Pin, Scanner};

/// A client used an unnamed prepared statement that it has not made on this connection. Another
/// client's may be there, so it must not reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchStatement;

/// Watches the frames of one checkout for session state.
#[derive(Debug, Default)]
pub struct Words {
    scanner: Option<Scanner>,
    pinned: Option<Pin>,
    /// The connection is kept for the session's life, so prepared statements are safe on it.
    kept: bool,
    resets: bool,
    unnamed: Unnamed,
}

/// The unnamed prepared statement on this connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Unnamed {
    /// Not ours.
    #[default]
    Foreign,
    /// Ours, and not bound yet.
    Parsed,
    /// Ours, and bound in the batch that parsed it.
    Used,
}

impl Words {
    /// Body bytes in which the names of a Parse, Bind, Describe or Close are looked for.
    const NAMES: usize = 512;

    /// At the beginning of a checkout.
    pub fn new(mode: PoolMode) -> Self {
        let kept = mode == PoolMode::Session;
        Self { kept, pinned: kept.then_some(Pin::SessionMode), ..Self::default() }
    }

    /// How many body bytes of a frame with this tag [`Words::frame`] must see at once.
    pub fn wanted(&self, tag: u8) -> usize {
        match tag {
            b'P' | b'B' | b'D' if !self.kept => Self::NAMES,
            _ => 0,
        }
    }

    /// A frame begins.
    ///
    /// # Errors
    /// [`NoSuchStatement`]; the frame must not be forwarded.
    pub fn frame(&mut self, frame: Frame<'_>) -> Result<(), NoSuchStatement> {
        match frame.tag {
            b'Q' => self.scan(frame.body),
            b'P' => {
                self.scan(frame.body);
                if frame.body.first() == Some(&0) {
                    self.unnamed = Unnamed::Parsed;
                } else {
                    self.pin(Pin::PreparedStatement);
                }
            }
            _ if self.kept => {}
            // Portal name, then statement name.
            // A name that is too far off to be seen may be the empty one.
            b'B' if after_nul(frame.body).is_none_or(|name| is_unnamed(Some(name))) => {
                self.ours()?;
                self.unnamed = Unnamed::Used;
            }
            b'D' if frame.body.first() == Some(&b'S') && is_unnamed(frame.body.get(1..)) => self.ours()?,
            // A statement kept for a later transaction: it is only here.
            b'S' if self.unnamed == Unnamed::Parsed => self.pin(Pin::PreparedStatement),
            _ => {}
        }
        Ok(())
    }

    /// More of a frame's body.
    pub fn body(&mut self, piece: &[u8]) {
        if let Some(scanner) = &mut self.scanner {
            scanner.feed(piece);
        }
    }

    /// The frame is over.
    pub fn frame_ends(&mut self) {
        let Some(mut scanner) = self.scanner.take() else { return };
        self.resets |= scanner.resets();
        if let Some(pin) = scanner.finish() {
            self.pin(pin);
        }
    }

    /// Whether the client has set every parameter back to the server's default.
    pub fn reset(&self) -> bool {
        self.resets
    }

    /// The same, after the client's own parameters have been set again.
    pub fn restored(self) -> Self {
        Self { resets: false, ..self }
    }

    /// Why the connection has to be kept; `None` if it has not.
    pub fn pinned(&self) -> Option<Pin> {
        self.pinned
    }

    fn scan(&mut self, text: &[u8]) {
        let mut scanner = Scanner::new();
        scanner.feed(text);
        self.scanner = Some(scanner);
    }

    fn pin(&mut self, pin: Pin) {
        self.kept = true;
        if self.pinned.is_none_or(|known| pin.is_deliberate() && !known.is_deliberate()) {
            self.pinned = Some(pin);
        }
    }

    fn ours(&self) -> Result<(), NoSuchStatement> {
        if self.unnamed == Unnamed::Foreign { Err(NoSuchStatement) } else { Ok(()) }
    }
}

fn is_unnamed(name: Option<&[u8]>) -> bool {
    name.and_then(<[u8]>::first) == Some(&0)
}

fn after_nul(body: &[u8]) -> Option<&[u8]> {
    memchr::memchr(0, body).and_then(|end| body.get(end + 1..))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::frame::{Cut, Cutter, Direction};

    fn watch(frames: &[(u8, &[u8])]) -> Result<Option<Pin>, NoSuchStatement> {
        let mut words = Words::new(PoolMode::Transaction);
        for (tag, body) in frames {
            words.frame(Frame { tag: *tag, body_len: body.len(), body })?;
            words.frame_ends();
        }
        Ok(words.pinned())
    }

    #[test]
    fn an_unnamed_statement_used_at_once_leaves_nothing() {
        assert_eq!(
            watch(&[(b'P', b"\0select 1\0\0\0"), (b'B', b"\0\0\0\0"), (b'E', b"\0\0\0\0\0"), (b'S', b"")]),
            Ok(None)
        );
    }

    #[test]
    fn statements_kept_for_later_pin() {
        let kept = Ok(Some(Pin::PreparedStatement));
        assert_eq!(watch(&[(b'P', b"p1\0select 1\0\0\0"), (b'S', b"")]), kept);
        assert_eq!(watch(&[(b'P', b"\0select 1\0\0\0"), (b'D', b"S\0"), (b'S', b"")]), kept);
        assert_eq!(watch(&[(b'Q', b"listen x\0")]), Ok(Some(Pin::Listen)));
    }

    #[test]
    fn a_purpose_is_seen_behind_other_pins_and_in_session_mode() {
        let listen: (u8, &[u8]) = (b'Q', b"listen x\0");
        assert_eq!(watch(&[(b'P', b"p1\0select 1\0\0\0"), listen]), Ok(Some(Pin::Listen)));
        let mut words = Words::new(PoolMode::Session);
        assert_eq!(words.pinned(), Some(Pin::SessionMode));
        words.frame(Frame { tag: b'Q', body_len: 9, body: b"listen x\0" }).unwrap();
        words.frame_ends();
        assert_eq!(words.pinned(), Some(Pin::Listen));
    }

    #[test]
    fn a_strangers_unnamed_statement_is_out_of_reach() {
        assert_eq!(watch(&[(b'B', b"portal\0\0\0\0")]), Err(NoSuchStatement));
        assert_eq!(watch(&[(b'D', b"S\0")]), Err(NoSuchStatement));
        assert_eq!(watch(&[(b'D', b"P\0")]), Ok(None));
        let far = [&[b'p'; 600][..], b"\0\0\0\0"].concat();
        assert_eq!(watch(&[(b'B', &far[..512])]), Err(NoSuchStatement));
    }

    /// Frames that a client in transaction mode sends, with names that are seen at once.
    fn frames() -> impl Strategy<Value = (u8, Vec<u8>)> {
        let names = prop::sample::select(vec!["", "", "p1"]);
        let sql = || {
            prop::sample::select(vec![
                "select 1",
                "listen x",
                "set role r",
                "select pg_advisory_lock(1), 2",
                "",
            ])
        };
        // Longer than what is seen at once, so that words come in pieces.
        let padded = || (sql(), 0_usize..900).prop_map(|(sql, pad)| format!("{}{sql}", " ".repeat(pad)));
        prop_oneof![
            padded().prop_map(|sql| (b'Q', format!("{sql}\0").into_bytes())),
            (names.clone(), padded())
                .prop_map(|(name, sql)| (b'P', format!("{name}\0{sql}\0\0\0").into_bytes())),
            names.clone().prop_map(|name| (b'B', format!("portal\0{name}\0\0\0\0\0").into_bytes())),
            names.prop_map(|name| (b'D', format!("S{name}\0").into_bytes())),
            Just((b'E', b"\0\0\0\0\0".to_vec())),
            Just((b'S', Vec::new())),
        ]
    }

    /// Reads as the relay does: a buffer that grows by `cuts`, with `want` asked of the cutter.
    fn read(bytes: &[u8], cuts: &[usize]) -> Result<Option<Pin>, NoSuchStatement> {
        let mut words = Words::new(PoolMode::Transaction);
        let mut cutter = Cutter::new(Direction::Frontend);
        let (mut seen, mut end) = (0, 0);
        let mut cuts = cuts.iter().cycle();
        while end < bytes.len() {
            end = end.saturating_add(*cuts.next().unwrap()).min(bytes.len());
            loop {
                let want = |tag| words.wanted(tag);
                let taken = match cutter.next(&bytes[seen..end], false, want).unwrap() {
                    Cut::More => break,
                    Cut::Frame(frame, taken) => {
                        words.frame(frame)?;
                        taken
                    }
                    Cut::Body(piece, taken) => {
                        words.body(piece);
                        taken
                    }
                };
                seen += taken;
                if cutter.at_boundary() {
                    words.frame_ends();
                }
            }
        }
        assert_eq!(seen, bytes.len(), "all of it has passed");
        Ok(words.pinned())
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_pin(
            frames in vec(frames(), 0..8),
            cuts in vec(1_usize..400, 1..20),
        ) {
            let framed = |(tag, body): &(u8, Vec<u8>)| {
                [&[*tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
            };
            let bytes: Vec<u8> = frames.iter().flat_map(framed).collect();
            prop_assert_eq!(read(&bytes, &cuts), read(&bytes, &[usize::MAX]));
        }
    }
}
