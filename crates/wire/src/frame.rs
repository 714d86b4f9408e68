//! Cuts a byte stream into frames by their headers and leaves the bodies alone.
//!
//! A frame is a tag byte, a big-endian length that counts itself but not the tag, and a body
//! (PostgreSQL documentation, "Message Formats").

use std::fmt;

/// Tag and length field.
pub const HEADER: usize = 5;

/// Longest body of a frame that carries data. The server's `PQ_LARGE_MESSAGE_LIMIT`, 1 GB less two
/// bytes, is for the length field, which counts itself.
const LARGE: usize = 0x3fff_fffe - 4;
/// Longest body of the other frames a client may send (`PQ_SMALL_MESSAGE_LIMIT`, counted likewise).
const SMALL: usize = 10_000 - 4;

/// Which way a stream flows; it decides which frames are lawful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client: unknown tags and over-long frames are refused, as Postgres refuses them.
    Frontend,
    /// From the server: any tag, any length.
    Backend,
}

/// A frame that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A tag no client may send at this point.
    UnknownTag(u8),
    /// A length field below 4, or above what this frame may have.
    BadLength {
        /// The frame's tag.
        tag: u8,
        /// The length field as sent.
        length: u32,
        /// The longest body that is accepted.
        limit: usize,
    },
    /// A name that is longer than this many bytes.
    LongName {
        /// The frame's tag.
        tag: u8,
        /// The longest name that is accepted.
        limit: usize,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::UnknownTag(tag) => write!(f, "invalid frontend message type {tag}"),
            FrameError::BadLength { tag, length, limit } => write!(
                f,
                "invalid length {length} of message type {tag}: expected 4 to {}",
                limit.saturating_add(4)
            ),
            FrameError::LongName { tag, limit } => {
                write!(f, "invalid name in message type {tag}: expected at most {limit} bytes")
            }
        }
    }
}

impl std::error::Error for FrameError {}

/// The header of a frame and as much of its body as is at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The tag byte.
    pub tag: u8,
    /// Length of the whole body, in bytes.
    pub body_len: usize,
    /// The body's beginning: whole if [`Frame::is_whole`].
    pub body: &'a [u8],
}

impl Frame<'_> {
    /// Whether the whole body is at hand.
    pub fn is_whole(&self) -> bool {
        self.body.len() == self.body_len
    }
}

/// What [`Cutter::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Cut<'a> {
    /// A new frame begins; the number is how many bytes of the input it and its body at hand take.
    Frame(Frame<'a>, usize),
    /// More of the body of the frame that began earlier; the number is its length in the input.
    Body(&'a [u8], usize),
    /// More bytes are needed before anything can be said.
    More,
}

/// Where in a stream of frames we are. Holds no bytes.
#[derive(Debug, Clone)]
pub struct Cutter {
    direction: Direction,
    /// Body bytes of the current frame that have not passed.
    missing: usize,
}

impl Cutter {
    /// A cutter at a frame boundary.
    pub const fn new(direction: Direction) -> Self {
        Self { direction, missing: 0 }
    }

    /// Whether the last byte taken ended a frame.
    pub const fn at_boundary(&self) -> bool {
        self.missing == 0
    }

    /// Body bytes of the current frame still to come.
    pub const fn missing(&self) -> usize {
        self.missing
    }

    /// Takes the next piece of `input`: a frame's header with the body at hand, or more body.
    ///
    /// `want(tag)` is how many body bytes the caller must see at once; the cutter asks for
    /// [`Cut::More`] until they are there, the body ends, or `input` is `full` (can grow no more).
    ///
    /// # Errors
    /// A frame that Postgres would refuse as well; the stream cannot go on after it.
    pub fn next<'a>(
        &mut self,
        input: &'a [u8],
        full: bool,
        want: impl FnOnce(u8) -> usize,
    ) -> Result<Cut<'a>, FrameError> {
        if self.missing > 0 {
            let taken = self.missing.min(input.len());
            if taken == 0 {
                return Ok(Cut::More);
            }
            self.missing -= taken;
            return Ok(Cut::Body(&input[..taken], taken));
        }
        let Some((&[tag, a, b, c, d], rest)) = input.split_first_chunk::<HEADER>() else {
            // A wrong tag is told at once: its sender may never send the rest of a header.
            return match (self.direction, input.first()) {
                (Direction::Frontend, Some(&tag)) if frontend_limit(tag).is_none() => {
                    Err(FrameError::UnknownTag(tag))
                }
                _ => Ok(Cut::More),
            };
        };
        let body_len = body_length(self.direction, tag, u32::from_be_bytes([a, b, c, d]))?;
        let at_hand = body_len.min(rest.len());
        if at_hand < want(tag).min(body_len) && !full {
            return Ok(Cut::More);
        }
        self.missing = body_len - at_hand;
        Ok(Cut::Frame(Frame { tag, body_len, body: &rest[..at_hand] }, HEADER + at_hand))
    }
}

fn body_length(direction: Direction, tag: u8, length: u32) -> Result<usize, FrameError> {
    let limit = match direction {
        Direction::Frontend => frontend_limit(tag).ok_or(FrameError::UnknownTag(tag))?,
        Direction::Backend => u32::MAX as usize,
    };
    (length as usize).checked_sub(4).filter(|body| *body <= limit).ok_or(FrameError::BadLength {
        tag,
        length,
        limit,
    })
}

/// The longest body of a frame that a logged-in client may send; `None` for an unknown tag.
/// Tags and limits as the server's own (`SocketBackend` in PostgreSQL's tcop).
const fn frontend_limit(tag: u8) -> Option<usize> {
    match tag {
        b'Q' | b'F' | b'B' | b'P' | b'd' => Some(LARGE),
        // The server answers a Flush only if there is something in it; nobody would wait for that answer.
        b'H' => Some(0),
        b'X' | b'C' | b'D' | b'E' | b'S' | b'c' | b'f' => Some(SMALL),
        _ => None,
    }
}

/// How many whole frames' bytes stand at the beginning of `input`, and how many bytes in all the
/// frames that end within it take.
///
/// # Errors
/// As [`Cutter::next`].
pub fn whole_frames(
    direction: Direction,
    input: &[u8],
    mut visit: impl FnMut(Frame<'_>),
) -> Result<usize, FrameError> {
    let mut end = 0;
    while let Some((&[tag, a, b, c, d], rest)) = input[end..].split_first_chunk::<HEADER>() {
        let body_len = body_length(direction, tag, u32::from_be_bytes([a, b, c, d]))?;
        let Some(body) = rest.get(..body_len) else { break };
        visit(Frame { tag, body_len, body });
        end += HEADER + body_len;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend((body.len() as u32 + 4).to_be_bytes());
        out.extend(body);
        out
    }

    #[test]
    fn a_frame_in_pieces_is_announced_once_and_its_body_streams() {
        let bytes = frame(b'Q', b"select 1\0");
        let mut cutter = Cutter::new(Direction::Frontend);
        assert_eq!(cutter.next(&bytes[..4], false, |_| 0), Ok(Cut::More));
        let Ok(Cut::Frame(head, 7)) = cutter.next(&bytes[..7], false, |_| 0) else { panic!() };
        assert_eq!((head.tag, head.body_len, head.body), (b'Q', 9, &b"se"[..]));
        assert!(!cutter.at_boundary());
        assert_eq!(cutter.next(&bytes[7..], false, |_| 0), Ok(Cut::Body(b"lect 1\0", 7)));
        assert!(cutter.at_boundary());
    }

    #[test]
    fn a_body_that_is_wanted_is_waited_for_unless_the_buffer_is_full() {
        let bytes = frame(b'S', b"TimeZone\0UTC\0");
        let mut cutter = Cutter::new(Direction::Backend);
        assert_eq!(cutter.next(&bytes[..10], false, |_| usize::MAX), Ok(Cut::More));
        let Ok(Cut::Frame(head, 10)) = cutter.next(&bytes[..10], true, |_| usize::MAX) else { panic!() };
        assert!(!head.is_whole());
    }

    #[test]
    fn lying_lengths_and_unknown_tags_are_refused() {
        let refuse = |bytes: &[u8]| Cutter::new(Direction::Frontend).next(bytes, false, |_| 0).unwrap_err();
        assert_eq!(refuse(b"Q\0\0\0\x03"), FrameError::BadLength { tag: b'Q', length: 3, limit: LARGE });
        assert_eq!(
            refuse(b"Q\xff\xff\xff\xff"),
            FrameError::BadLength { tag: b'Q', length: u32::MAX, limit: LARGE }
        );
        assert_eq!(
            refuse(b"S\0\0\xff\xff"),
            FrameError::BadLength { tag: b'S', length: 65_535, limit: SMALL }
        );
        assert_eq!(
            refuse(b"S\0\0\x27\x11"),
            FrameError::BadLength { tag: b'S', length: 10_001, limit: SMALL }
        );
        assert!(Cutter::new(Direction::Frontend).next(b"S\0\0\x27\x10", false, |_| 0).is_ok());
        assert!(Cutter::new(Direction::Frontend).next(b"d\x3f\xff\xff\xfe", false, |_| 0).is_ok());
        refuse(b"d\x3f\xff\xff\xff");
        refuse(b"H\0\0\0\x05");
        assert_eq!(refuse(b"G"), FrameError::UnknownTag(b'G'));
    }
}
