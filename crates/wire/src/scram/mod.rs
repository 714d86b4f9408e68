//! The server's side of SCRAM-SHA-256, as Postgres speaks it.
//!
//! RFC 5802 (the messages), RFC 7677 (SHA-256), RFC 5929 (`tls-server-end-point`), PostgreSQL documentation,
//! "SASL Authentication" and "pg_authid" (the form of a verifier). A client's proof is checked against a
//! verifier with two keyed hashes; only to make a verifier of a password takes thousands.

#[cfg(test)]
mod tests;

use std::fmt;
use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};
use subtle::ConstantTimeEq;

/// A proof over any channel.
pub const PLAIN: &str = "SCRAM-SHA-256";
/// A proof that is bound to a TLS channel.
pub const PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The longest message that is read, as in Postgres (`PG_MAX_SASL_MESSAGE_LENGTH`).
pub const MAX_MESSAGE: usize = 1024;

/// As `scram_iterations` is by default.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("it is not 0");
/// As Postgres salts.
const SALT_LENGTH: usize = 16;
const BINDING: &str = "tls-server-end-point";
const KEY_LENGTH: usize = digest::SHA256_OUTPUT_LEN;

/// What is stored of a password: enough to check a proof, not enough to give one.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    stored_key: [u8; KEY_LENGTH],
    server_key: [u8; KEY_LENGTH],
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}

impl Verifier {
    /// Whether this text means to be a verifier, right or wrong, and so is no password.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with("SCRAM-SHA-256$")
    }

    /// Reads `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`; `None` if it is not of that form.
    pub fn parse(text: &str) -> Option<Self> {
        let (cost, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let ((iterations, salt), (stored, server)) = (cost.split_once(':')?, keys.split_once(':')?);
        let salt = STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty())?;
        let iterations = iterations.parse().ok()?;
        Some(Self { iterations, salt, stored_key: key(stored)?, server_key: key(server)? })
    }

    /// Makes one of a password, which takes thousands of hashes. The salt is the one that [`Verifier::nobody`]
    /// of the same secret shows for this user, so that a user who is there looks like one who is not.
    pub fn of_password(password: &str, secret: &[u8], user: &str) -> Self {
        let salt = mock(secret, "salt", user)[..SALT_LENGTH].to_vec();
        // As Postgres: what SASLprep forbids is taken as it is.
        let prepared = stringprep::saslprep(password).unwrap_or(password.into());
        let mut salted = [0; KEY_LENGTH];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, &salt, prepared.as_bytes(), &mut salted);
        let client_key = keyed(&salted, b"Client Key");
        let server_key = keyed(&salted, b"Server Key");
        Self { iterations: ITERATIONS, salt, stored_key: hashed(&client_key), server_key }
    }

    /// One that no password fits. The same for the same user as long as the secret is the same.
    pub fn nobody(secret: &[u8], user: &str) -> Self {
        Self {
            iterations: ITERATIONS,
            salt: mock(secret, "salt", user)[..SALT_LENGTH].to_vec(),
            stored_key: mock(secret, "stored", user),
            server_key: mock(secret, "server", user),
        }
    }
}

/// Why a client is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScramError {
    /// It does not speak SCRAM.
    Malformed(&'static str),
    /// Somebody is between us and the client, or the client says that we cannot bind where we can.
    NotBound,
    /// It does not know the password.
    Wrong,
}

impl fmt::Display for ScramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScramError::Malformed(what) => write!(f, "malformed SCRAM message: {what}"),
            ScramError::NotBound => f.write_str("SCRAM channel binding check failed"),
            ScramError::Wrong => f.write_str("the password is wrong"),
        }
    }
}

impl std::error::Error for ScramError {}

/// A client's first message, which says how it binds its proof. The user name in it is not looked at: as in
/// Postgres, the one in the startup packet counts.
#[derive(Debug)]
pub struct ClientFirst {
    /// The GS2 header with the channel's binding after it: the client has to prove that it saw the same.
    bound: Vec<u8>,
    bare: String,
    nonce: String,
}

impl ClientFirst {
    /// Reads it, for the mechanism that the client chose. `binding` is what the channel can be bound to, `None` if
    /// it cannot.
    ///
    /// # Errors
    /// A mechanism that was not offered, or a message that is not of this mechanism.
    pub fn read(mechanism: &str, binding: Option<&[u8]>, message: &[u8]) -> Result<Self, ScramError> {
        let plus = match mechanism {
            PLUS if binding.is_some() => true,
            PLAIN => false,
            _ => return Err(ScramError::Malformed("a mechanism that was not offered")),
        };
        let text = text(message)?;
        let (flag, rest) = text.split_once(',').ok_or(ScramError::Malformed("no channel binding flag"))?;
        match (flag, plus) {
            ("n", false) => {}
            // It could have bound the channel, and was told that we could not. We had offered it.
            ("y", false) if binding.is_some() => return Err(ScramError::NotBound),
            ("y", false) => {}
            (flag, true) if flag.strip_prefix("p=") == Some(BINDING) => {}
            _ => return Err(ScramError::Malformed("a channel binding that does not fit the mechanism")),
        }
        let bare = rest
            .strip_prefix(',')
            .ok_or(ScramError::Malformed("an authorization identity, which is not supported"))?;
        let mut attributes = bare.split(',');
        let user = attributes.next().unwrap_or_default();
        if !user.starts_with("n=") {
            return Err(ScramError::Malformed("no user name, or a mandatory extension"));
        }
        let nonce = attributes.next().and_then(|attribute| attribute.strip_prefix("r=")).unwrap_or_default();
        if nonce.is_empty() || !nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ScramError::Malformed("no nonce, or one that is not printable"));
        }
        let mut bound = format!("{flag},,").into_bytes();
        bound.extend(binding.filter(|_| plus).into_iter().flatten());
        Ok(Self { bound, bare: bare.to_owned(), nonce: nonce.to_owned() })
    }

    /// Asks for a proof. `random` must not be known to anybody before.
    pub fn challenge(self, verifier: Verifier, random: [u8; 18]) -> Challenge {
        let nonce = format!("{}{}", self.nonce, STANDARD.encode(random));
        let Verifier { iterations, salt, .. } = &verifier;
        let message = format!("r={nonce},s={},i={iterations}", STANDARD.encode(salt));
        Challenge { verifier, nonce, message, bare: self.bare, bound: self.bound }
    }
}

/// What the client has to answer.
#[derive(Debug)]
pub struct Challenge {
    verifier: Verifier,
    nonce: String,
    message: String,
    bare: String,
    bound: Vec<u8>,
}

impl Challenge {
    /// The message for the client.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Checks the client's proof, and proves to it in turn that we know of the password: the last message.
    ///
    /// # Errors
    /// When it does not know the password, is bound to another channel, or does not speak SCRAM.
    pub fn answer(self, message: &[u8]) -> Result<String, ScramError> {
        let text = text(message)?;
        let (unproved, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed("no proof"))?;
        let proof = key(proof).ok_or(ScramError::Malformed("a proof that is not 32 bytes in base64"))?;
        let mut attributes = unproved.split(',');
        let bound = attributes.next().and_then(|attribute| attribute.strip_prefix("c="));
        let bound = bound.and_then(|bound| STANDARD.decode(bound).ok());
        let bound = bound.ok_or(ScramError::Malformed("no channel binding in base64"))?;
        let nonce = attributes.next().and_then(|attribute| attribute.strip_prefix("r="));
        if nonce != Some(&self.nonce) {
            return Err(ScramError::Malformed("another nonce than the one that was given"));
        }
        if bound != self.bound {
            return Err(ScramError::NotBound);
        }
        let Verifier { stored_key, server_key, .. } = &self.verifier;
        let said = format!("{},{},{unproved}", self.bare, self.message);
        let signature = keyed(stored_key, said.as_bytes());
        let mut client_key = proof;
        client_key.iter_mut().zip(signature).for_each(|(byte, signed)| *byte ^= signed);
        if !bool::from(hashed(&client_key).ct_eq(stored_key)) {
            return Err(ScramError::Wrong);
        }
        Ok(format!("v={}", STANDARD.encode(keyed(server_key, said.as_bytes()))))
    }
}

fn text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MAX_MESSAGE {
        return Err(ScramError::Malformed("it is too long"));
    }
    let text = std::str::from_utf8(message).map_err(|_| ScramError::Malformed("it is not UTF-8"))?;
    if text.contains('\0') { Err(ScramError::Malformed("it has a zero byte")) } else { Ok(text) }
}

fn key(text: &str) -> Option<[u8; KEY_LENGTH]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

fn keyed(key: &[u8], message: &[u8]) -> [u8; KEY_LENGTH] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    let mut bytes = [0; KEY_LENGTH];
    bytes.copy_from_slice(tag.as_ref());
    bytes
}

fn hashed(message: &[u8]) -> [u8; KEY_LENGTH] {
    let mut bytes = [0; KEY_LENGTH];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, message).as_ref());
    bytes
}

fn mock(secret: &[u8], what: &str, user: &str) -> [u8; KEY_LENGTH] {
    keyed(secret, format!("{what} of {user}").as_bytes())
}
