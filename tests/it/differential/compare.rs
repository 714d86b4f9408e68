//! What may differ between a server and pgleash in front of it, and why. Everything else must not.
//!
//! | message | what is not compared | why |
//! | --- | --- | --- |
//! | BackendKeyData | process id and key | they name a session of pgleash, not a backend |
//! | NotificationResponse | process id | it is the backend that served the sender |
//! | RowDescription | object id of the table | the same table has another id in another database |
//! | ParameterStatus in a greeting | the order | it has no meaning, and pgleash keeps them sorted |
//! | AuthenticationOk before a login that is `refused` | that it is there | see there |
//! | ErrorResponse of a login that is `refused` | file, line, routine | pgleash knows the server's words, not its source |
//! | ErrorResponse marked `own words` | all but severity and SQLSTATE | the server never saw what is told |

use crate::support::raw::Frame;

use super::notation::Talk;
use super::play::{Heard, Played, describe};

/// How what was heard differs from what was expected.
///
/// # Errors
/// The first difference.
pub fn difference(talk: &Talk, expected: &Played, heard: &Played) -> Result<(), String> {
    for (at, (expected, heard)) in expected.iter().zip(heard).enumerate() {
        let (expected, heard) = (comparable(talk, expected), comparable(talk, heard));
        if expected != heard {
            let first = expected.iter().zip(&heard).position(|(a, b)| a != b);
            let of = |heard: &[Heard]| match first {
                Some(first) => format!("{} {:?}", describe(&heard[first..=first]), heard[first]),
                None => describe(heard),
            };
            return Err(format!("turn {}: heard {}, the server says {}", at + 1, of(&heard), of(&expected)));
        }
    }
    if expected.len() == heard.len() { Ok(()) } else { Err("another number of turns".to_owned()) }
}

fn comparable(talk: &Talk, heard: &[Heard]) -> Vec<Heard> {
    let mut out: Vec<Heard> = heard
        .iter()
        .map(|heard| match heard {
            Heard::Frame(frame) => Heard::Frame(without_what_may_differ(talk, frame)),
            other => other.clone(),
        })
        .collect();
    if talk.logs_in_itself() && out.iter().any(|heard| tag(heard) == Some('K')) {
        for run in out.chunk_by_mut(|a, b| tag(a) == Some('S') && tag(b) == Some('S')) {
            run.sort_by_key(|heard| match heard {
                Heard::Frame(frame) => frame.body.clone(),
                _ => Default::default(),
            });
        }
    }
    out
}

fn tag(heard: &Heard) -> Option<char> {
    match heard {
        Heard::Frame(frame) => Some(frame.tag),
        _ => None,
    }
}

fn without_what_may_differ(talk: &Talk, frame: &Frame) -> Frame {
    let mut body = frame.body.to_vec();
    match frame.tag {
        'K' => body.fill(0),
        'A' => body[..4].fill(0),
        'T' => forget_tables(&mut body),
        'E' if talk.own_words.is_some() => body = only(frame, "SVC"),
        'E' if talk.refused.is_some() => body = only(frame, "SVCMDH"),
        _ => {}
    }
    Frame { tag: frame.tag, body: body.into() }
}

fn only(frame: &Frame, fields: &str) -> Vec<u8> {
    fields.chars().flat_map(|field| format!("{field}{}\0", frame.field(field)).into_bytes()).collect()
}

/// A field of a RowDescription is a name with its end, the table's id, and 14 bytes more.
fn forget_tables(body: &mut [u8]) {
    let mut at = 2;
    while let Some(end) = body[at..].iter().position(|byte| *byte == 0) {
        let id = at + end + 1;
        body[id..id + 4].fill(0);
        at = id + 18;
    }
}

#[test]
fn what_may_not_differ_is_seen() {
    let talk = Talk::default();
    let frame = |tag: char, body: &'static [u8]| vec![vec![Heard::Frame(Frame { tag, body: body.into() })]];
    assert!(difference(&talk, &frame('C', b"SELECT 1\0"), &frame('C', b"SELECT 2\0")).is_err());
    assert!(difference(&talk, &frame('C', b"x\0"), &frame('D', b"x\0")).is_err());
    assert!(difference(&talk, &frame('C', b"x\0"), &vec![vec![]]).is_err());
    assert!(difference(&talk, &frame('K', b"12345678"), &frame('K', b"87654321")).is_ok());
    assert!(difference(&talk, &frame('K', b"12345678"), &frame('K', b"1234")).is_err());
    let column = |id: u8| [&b"\0\x01n\0\0\0\0"[..], &[id], &[0; 14]].concat();
    let rows = |id| vec![vec![Heard::Frame(Frame { tag: 'T', body: column(id).into() })]];
    assert!(difference(&talk, &rows(1), &rows(2)).is_ok());
    assert!(difference(&talk, &frame('E', b"SERROR\0C1\0\0"), &frame('E', b"SERROR\0C2\0\0")).is_err());
}
