//! What comes before a client is believed: first packets, TLS, the proof of its password.
//!
//! Every read has a bound; the deadline is the caller's.

use pgleash_wire::scram::{ClientFirst, ScramError};
use pgleash_wire::startup::{FirstPacket, StartupError};
use pgleash_wire::{message, scram, startup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::net::stream::Io;
use crate::process::Hub;
use crate::proxy::login::caller::{Caller, Rejection};
use crate::tls::listener::Shown;
use crate::tls::upstream::ALPN;

const HURRIED: &str = "bytes were sent before the request for encryption was answered";
/// The first byte of a TLS handshake (RFC 8446, section 5.1, ContentType).
const HANDSHAKE: u8 = 0x16;

/// Reads first packets until one is not about encryption. What is let in over TLS is encrypted by then, and so is
/// who began with it ("SSL Session Encryption", direct negotiation).
pub(crate) async fn first_packet(hub: &Hub, caller: &mut Caller) -> Result<FirstPacket, Rejection> {
    if let Some(shown) = hub.credentials.shown_to(caller.origin)
        && begins_with_tls(&mut caller.io).await?
    {
        encrypt(caller, shown).await?;
        if !has_agreed(&caller.io) {
            return Err(Rejection::Handshake(
                "direct TLS without the protocol name postgresql (ALPN)".to_owned(),
            ));
        }
    }
    // SSLRequest and GSSENCRequest are each answered once, as Postgres does; more is a loop.
    let mut declined = Vec::new();
    loop {
        let mut length = [0; 4];
        caller.io.read_exact(&mut length).await?;
        let mut body = vec![0; startup::body_length(length)?];
        caller.io.read_exact(&mut body).await?;
        let asked = match startup::parse(&body)? {
            asked @ (FirstPacket::Ssl | FirstPacket::Gss) => asked,
            other => return Ok(other),
        };
        if caller.is_encrypted() || declined.contains(&asked) {
            return Err(StartupError::Unsupported("encryption was asked for again").into());
        }
        match hub.credentials.shown_to(caller.origin).filter(|_| asked == FirstPacket::Ssl) {
            Some(shown) => {
                accept(&mut caller.io).await?;
                encrypt(caller, shown).await?;
            }
            None => {
                decline(&mut caller.io).await?;
                declined.push(asked);
            }
        }
    }
}

/// Says yes to TLS. What was sent in the clear before the answer would be taken for the client's own words over
/// TLS (CVE-2021-3935, CVE-2021-23222), and is refused. What comes in the clear later is no handshake.
async fn accept(io: &mut Io) -> Result<(), Rejection> {
    if io.has_unread() {
        return Err(StartupError::Malformed(HURRIED).into());
    }
    Ok(io.write_all(b"S").await?)
}

/// Says no to encryption. What was sent before the answer may be anybody's, and is refused.
async fn decline(io: &mut Io) -> Result<(), Rejection> {
    let hurried = io.has_unread();
    io.write_all(b"N").await?;
    if hurried { Err(StartupError::Malformed(HURRIED).into()) } else { Ok(()) }
}

/// Lets the client prove that it knows the password of `user`; over TLS bound to the channel, if it can.
pub(crate) async fn prove(hub: &Hub, caller: &mut Caller, user: &str) -> Result<(), Rejection> {
    let binding = caller.binding.clone();
    let offer: &[&str] = if binding.is_some() { &[scram::PLUS, scram::PLAIN] } else { &[scram::PLAIN] };
    say(&mut caller.io, &message::authentication_sasl(offer)).await?;

    let initial = response(&mut caller.io).await?;
    let (mechanism, message) = initial_response(&initial)?;
    let first = ClientFirst::read(mechanism, binding.as_deref(), message)?;
    let known = hub.credentials.verifier(user, &hub.sink).await;
    let (verifier, why) = known.map_err(|_| Rejection::Unanswered)?;
    let challenge = first.challenge(verifier, rand::random());
    say(&mut caller.io, &message::authentication_sasl_continue(challenge.message())).await?;

    let last = response(&mut caller.io).await?;
    match challenge.answer(&last) {
        Ok(proof) => say(&mut caller.io, &message::authentication_sasl_final(&proof)).await,
        Err(ScramError::Wrong) => {
            hub.credentials.doubt(user);
            Err(Rejection::Password { user: user.to_owned(), why })
        }
        Err(error) => Err(error.into()),
    }
}

/// Only over TCP is TLS spoken directly.
async fn begins_with_tls(io: &mut Io) -> Result<bool, Rejection> {
    let mut first = [0];
    match io {
        Io::Tcp(stream) => Ok(stream.peek(&mut first).await? > 0 && first[0] == HANDSHAKE),
        Io::Unix(_) | Io::Tls(_) | Io::Served(_) => Ok(false),
    }
}

/// The handshake. If it fails, there is nobody left to talk to.
async fn encrypt(caller: &mut Caller, shown: Shown) -> Result<(), Rejection> {
    let nobody = Io::Tls(Box::new(tokio::io::empty()));
    match std::mem::replace(&mut caller.io, nobody) {
        Io::Tcp(stream) => {
            let accepting = TlsAcceptor::from(shown.config).accept(stream).await;
            let stream = accepting.map_err(|error| Rejection::Handshake(error.to_string()))?;
            caller.io = Io::Served(Box::new(stream));
            caller.binding = shown.binding;
            Ok(())
        }
        other => {
            caller.io = other;
            Err(StartupError::Malformed("TLS is spoken over TCP only").into())
        }
    }
}

fn has_agreed(io: &Io) -> bool {
    matches!(io, Io::Served(stream) if stream.get_ref().1.alpn_protocol() == Some(ALPN))
}

async fn say(io: &mut Io, message: &[u8]) -> Result<(), Rejection> {
    io.write_all(message).await?;
    io.flush().await?;
    Ok(())
}

/// The body of a SASLInitialResponse or SASLResponse.
async fn response(io: &mut Io) -> Result<Vec<u8>, Rejection> {
    /// A mechanism's name and a length come before the first message.
    const MOST: usize = scram::MAX_MESSAGE + 64;
    let mut header = [0; 5];
    io.read_exact(&mut header).await?;
    let [tag, length @ ..] = header;
    let length = u32::from_be_bytes(length) as usize;
    match (tag, length) {
        (b'X', _) => Err(Rejection::Gone),
        (b'p', 4..=MOST) => {
            let mut body = vec![0; length - 4];
            io.read_exact(&mut body).await?;
            Ok(body)
        }
        (b'p', _) => Err(ScramError::Malformed("its length cannot be").into()),
        _ => Err(ScramError::Malformed("another message than a SASL response").into()),
    }
}

/// Mechanism and first message of a SASLInitialResponse.
fn initial_response(body: &[u8]) -> Result<(&str, &[u8]), ScramError> {
    let broken = ScramError::Malformed("the initial response names no mechanism, or has no message");
    let end = body.iter().position(|byte| *byte == 0).ok_or(broken)?;
    let mechanism = std::str::from_utf8(&body[..end]).map_err(|_| broken)?;
    let (length, message) = body[end + 1..].split_first_chunk::<4>().ok_or(broken)?;
    if u32::from_be_bytes(*length) as usize == message.len() { Ok((mechanism, message)) } else { Err(broken) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mechanism_and_a_message_are_read() {
        assert_eq!(initial_response(b"SCRAM-SHA-256\0\0\0\0\x02ab"), Ok(("SCRAM-SHA-256", &b"ab"[..])));
        for broken in
            [&b""[..], b"SCRAM", b"SCRAM\0", b"S\0\0\0\0\x03ab", b"S\0\xff\xff\xff\xff", b"\xff\0\0\0\0\0"]
        {
            assert!(initial_response(broken).is_err(), "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn no_initial_response_breaks_it(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok((mechanism, message)) = initial_response(&body) {
                prop_assert_eq!(mechanism.len() + 5 + message.len(), body.len());
            }
        }
    }
}
