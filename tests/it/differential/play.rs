//! Plays a conversation and writes down what was heard.

use std::time::Duration;

use tokio::time::timeout;

use crate::support::raw::{self, Frame, Raw};
use crate::support::{Endpoint, Leash};

use super::notation::{Message, Talk, Then, Turn};
use super::second::Second;

/// How long a reply may take. Shorter than the harness's patience: all failures are told together.
const SOON: Duration = Duration::from_secs(10);
/// How long it may take where it is known to differ, and so may never come.
const SOONER: Duration = Duration::from_secs(2);

/// Everything that was heard, turn by turn, and what came after the goodbye.
pub type Played = Vec<Vec<Heard>>;

/// What was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A message.
    Frame(Frame),
    /// The answer to an SSLRequest.
    Byte(char),
    /// The end of the connection.
    End,
}

/// Who else is there.
pub enum Manner<'a> {
    /// Nobody, and what is sent at once comes at once.
    Alone,
    /// A second client, on the same connection whenever the first is at rest; what is sent comes in
    /// pieces.
    Interleaved(&'a mut Second, &'a Leash),
}

/// Plays it.
///
/// # Errors
/// What was heard instead of the tags that the conversation names.
pub async fn play(talk: &Talk, endpoint: &Endpoint, mut manner: Manner<'_>) -> Result<Played, String> {
    let mut clients = [enter(talk, endpoint).await, None];
    if talk.turns.iter().any(|turn| turn.other) {
        clients[1] = Some(Raw::login(endpoint, "b").await);
    }
    let mut played = Vec::new();
    for (at, turn) in talk.turns.iter().enumerate() {
        let client = clients[usize::from(turn.other)].as_mut().ok_or("it has hung up")?;
        if speak(client, turn, endpoint, &manner).await == Spoken::HungUp {
            clients[usize::from(turn.other)].take().into_iter().for_each(Raw::kill);
            played.push(Vec::new());
            continue;
        }
        let heard = listen(client, turn, talk).await.map_err(|why| format!("turn {}: {why}", at + 1))?;
        let rests = is_at_rest(&heard);
        played.push(heard);
        if let Manner::Interleaved(second, leash) = &mut manner
            && rests
            && turn.then == Then::Rest
        {
            second.play(leash).await.map_err(|why| format!("after turn {}: {why}", at + 1))?;
        }
    }
    for client in clients.into_iter().flatten() {
        played.push(leave(client, talk).await?);
    }
    Ok(played)
}

/// The client who speaks first; its login is its own business if it begins with one.
async fn enter(talk: &Talk, endpoint: &Endpoint) -> Option<Raw> {
    Some(if talk.logs_in_itself() {
        Raw::connect(endpoint.port).await
    } else {
        Raw::login(endpoint, "a").await
    })
}

#[derive(PartialEq, Eq)]
enum Spoken {
    Said,
    HungUp,
}

async fn speak(client: &mut Raw, turn: &Turn, endpoint: &Endpoint, manner: &Manner<'_>) -> Spoken {
    let mut bytes = Vec::new();
    for message in &turn.messages {
        match message {
            Message::Bytes(said) => bytes.extend(said),
            Message::First(body) => bytes.extend(untagged(body)),
            Message::Ssl => bytes.extend(untagged(&raw::SSL_REQUEST.to_be_bytes())),
            Message::Startup(version, parameters) => bytes.extend(startup(*version, parameters, endpoint)),
            Message::Hangup => {
                client.try_send(&bytes).await;
                return Spoken::HungUp;
            }
        }
    }
    match manner {
        Manner::Alone => client.try_send(&bytes).await,
        Manner::Interleaved(..) => send_in_pieces(client, &bytes).await,
    }
    Spoken::Said
}

/// Small pieces, so that headers and names are torn; what is long goes on in one.
async fn send_in_pieces(client: &mut Raw, mut bytes: &[u8]) {
    for length in [1, 3, 2, 5, 1, 7, 4, 11].into_iter().cycle().take(64) {
        let (piece, rest) = bytes.split_at(bytes.len().min(length));
        client.try_send(piece).await;
        tokio::task::yield_now().await;
        bytes = rest;
    }
    client.try_send(bytes).await;
}

fn untagged(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len() + 4).unwrap().to_be_bytes(), body].concat()
}

fn startup(version: u32, parameters: &[(Vec<u8>, Vec<u8>)], endpoint: &Endpoint) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        let value = if value == b"$db" { endpoint.database.as_bytes() } else { value };
        body.extend([name, &b"\0"[..], value, b"\0"].concat());
    }
    body.push(0);
    untagged(&body)
}

async fn listen(client: &mut Raw, turn: &Turn, talk: &Talk) -> Result<Vec<Heard>, String> {
    let mut heard = Vec::new();
    for _ in turn.messages.iter().filter(|message| **message == Message::Ssl) {
        heard.push(Heard::Byte(client.byte().await));
    }
    let mut newer = 0;
    while heard.len() < turn.tags.len() + newer {
        let frame = soon(client, &heard, talk).await?;
        if talk.refused.is_some() && frame.as_ref().is_some_and(|frame| frame.tag == 'R') {
            continue;
        }
        let awaited = turn.tags.as_bytes()[heard.len() - newer];
        if awaited != b'S' && frame.as_ref().is_some_and(|frame| frame.tag == 'S') && is_login(&heard) {
            newer += 1;
        }
        let stops = frame.is_none();
        heard.push(frame.map_or(Heard::End, Heard::Frame));
        if stops {
            break;
        }
    }
    let known = "S".repeat(REPORTED);
    let tags = tags(&heard).replacen(&"S".repeat(REPORTED + newer), &known, 1);
    if tags != turn.tags {
        return Err(format!("heard {}, not {}", describe(&heard), turn.tags));
    }
    if turn.then == Then::End {
        match soon(client, &heard, talk).await? {
            None => heard.push(Heard::End),
            Some(frame) => {
                heard.push(Heard::Frame(frame));
                return Err(format!("heard {}, and not the end", describe(&heard)));
            }
        }
    }
    Ok(heard)
}

/// Parameters that PostgreSQL 15, whose conversations are written down, reports at a login. Later versions report more.
const REPORTED: usize = 13;

/// So many have just been heard.
fn is_login(heard: &[Heard]) -> bool {
    heard.len() > REPORTED && tags(&heard[heard.len() - REPORTED..]).bytes().all(|tag| tag == b'S')
}

async fn soon(client: &mut Raw, heard: &[Heard], talk: &Talk) -> Result<Option<Frame>, String> {
    let waiting = timeout(if talk.is_known_to_differ() { SOONER } else { SOON }, client.frame()).await;
    waiting.map_err(|_| format!("nothing more came after {}", describe(heard)))
}

/// Says goodbye; nothing should be left to hear.
async fn leave(mut client: Raw, talk: &Talk) -> Result<Vec<Heard>, String> {
    client.try_send(&raw::message(b'X', &[])).await;
    let mut heard = Vec::new();
    while let Some(frame) = soon(&mut client, &heard, talk).await? {
        heard.push(Heard::Frame(frame));
    }
    if heard.is_empty() { Ok(heard) } else { Err(format!("after the goodbye came {}", describe(&heard))) }
}

/// Everything is answered and no transaction is open.
fn is_at_rest(heard: &[Heard]) -> bool {
    matches!(heard.last(), Some(Heard::Frame(frame)) if frame.tag == 'Z' && frame.body[0] == b'I')
}

fn tags(heard: &[Heard]) -> String {
    let tag = |heard: &Heard| match heard {
        Heard::Frame(frame) => Some(frame.tag),
        Heard::Byte(byte) => Some(*byte),
        Heard::End => None,
    };
    heard.iter().filter_map(tag).collect()
}

/// For those who read why it failed.
pub fn describe(heard: &[Heard]) -> String {
    let one = |heard: &Heard| match heard {
        Heard::Frame(frame) => raw::describe(frame),
        Heard::Byte(byte) => format!("the byte {byte}"),
        Heard::End => "the end".to_owned(),
    };
    let all: Vec<String> = heard.iter().map(one).collect();
    let tags = tags(heard);
    if all.len() > 12 {
        format!("{tags}, at last {}", all[all.len() - 3..].join(", "))
    } else {
        format!("{tags} ({})", all.join(", "))
    }
}
