//! The token of the control listener.

use std::{fmt, fs};

use pgleash_core::InvalidValue;
use subtle::ConstantTimeEq;

/// A secret that a request must show. Never shown itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Fewer characters could be guessed.
    const SHORTEST: usize = 16;
    /// More do not fit into a request's headers.
    const LONGEST: usize = 1024;

    /// The token as it is written, or `file:` and the path of a file that holds it and a line end at most.
    pub(super) fn parse(text: &str) -> Result<Self, InvalidValue> {
        let token = match text.strip_prefix("file:") {
            Some(path) => fs::read_to_string(path)
                .map_err(|error| {
                    InvalidValue::new(
                        format!("names a file that cannot be read: {error}"),
                        "name one that may be read",
                    )
                })?
                .trim_end()
                .to_owned(),
            None => text.to_owned(),
        };
        if !(Self::SHORTEST..=Self::LONGEST).contains(&token.len()) {
            return Err(InvalidValue::new(
                "is shorter than 16 characters, or longer than 1024",
                "make one at random: openssl rand -hex 32",
            ));
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidValue::new(
                "has a character that a header cannot carry",
                "use letters and digits",
            ));
        }
        Ok(Self(token))
    }

    /// Whether this is it. Takes as long for a near miss as for a far one.
    pub fn is(&self, shown: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(shown).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}
