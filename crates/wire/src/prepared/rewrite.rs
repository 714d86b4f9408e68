//! The few texts about statements that are read or written.

use std::borrow::Cow;

use crate::prepared::client_names::Told;
use crate::prepared::pending_replies::Failure;
use crate::prepared::server_cache::Number;

/// The server's name for a statement of ours, with its NUL.
pub(crate) fn name_of(number: Number) -> Name {
    let (mut bytes, mut rest, mut at) = ([0; Name::LONGEST], number, Name::LONGEST - 1);
    loop {
        at -= 1;
        bytes[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    at -= Name::PREFIX.len();
    bytes[at..at + Name::PREFIX.len()].copy_from_slice(Name::PREFIX);
    Name { bytes, at }
}

/// A statement's name at the server.
pub(crate) struct Name {
    bytes: [u8; Name::LONGEST],
    at: usize,
}

impl Name {
    const PREFIX: &[u8] = b"pgleash_";
    /// With ten digits and a NUL.
    const LONGEST: usize = Self::PREFIX.len() + 11;
}

impl std::ops::Deref for Name {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.at..]
    }
}

/// Bytes of a Query or a Parse in which `DEALLOCATE name` is looked for.
pub(crate) const LONGEST_DEALLOCATE: usize = 256;

/// The name in `DEALLOCATE [PREPARE] name`, as the server reads it, if that is the whole text. `ALL` is
/// not a name.
pub(crate) fn deallocated(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.trim_ascii();
    let text = text.strip_suffix(b";").unwrap_or(text).trim_ascii_end();
    let rest = after_word(text, b"deallocate")?;
    let rest = after_word(rest, b"prepare").filter(|rest| !rest.is_empty()).unwrap_or(rest);
    if let Some(quoted) = rest.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) {
        return unquoted(quoted);
    }
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..);
    let name = rest.to_ascii_lowercase();
    let starts = name.first().is_some_and(|first| !first.is_ascii_digit() && *first != b'$');
    (starts && name.iter().all(is_plain) && name != b"all").then_some(name)
}

fn unquoted(quoted: &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(quoted.len());
    let mut bytes = quoted.iter();
    while let Some(&byte) = bytes.next() {
        if byte == b'"' && bytes.next() != Some(&b'"') {
            return None;
        }
        name.push(byte);
    }
    (!name.is_empty()).then_some(name)
}

fn after_word<'a>(text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = text.split_at_checked(word.len())?;
    let ends = rest.first().is_some_and(|byte| byte.is_ascii_whitespace() || *byte == b'"');
    (ends && head.eq_ignore_ascii_case(word)).then(|| rest.trim_ascii_start())
}

/// Whether a text may have a literal in it that the server reads as the moment at which it is parsed (`'now'`,
/// `'today'` and the like, "Date/Time Types"): a statement with it is as old as its Parse.
pub(crate) fn tells_the_time(text: &[u8]) -> bool {
    const WORDS: [&[u8]; 4] = [b"now", b"today", b"tomorrow", b"yesterday"];
    let is_quoted =
        |at: usize| text[at] == b'\'' || text.get(at + 1).is_none_or(|next| !next.is_ascii_digit());
    memchr::memchr2_iter(b'\'', b'$', text).any(is_quoted)
        && WORDS.iter().any(|word| text.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word)))
}

/// Up to the first NUL, and what follows it.
pub(crate) fn cstr(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, body)?;
    Some((&body[..end], &body[end + 1..]))
}

/// The same error or notice, speaking of the client's name instead of ours.
pub(crate) fn renamed(body: &[u8], number: Number, name: &[u8]) -> Option<Vec<u8>> {
    let ours = name_of(number);
    let ours = &ours[..ours.len() - 1];
    let mut out = Vec::with_capacity(body.len() + name.len());
    let mut rest = body;
    let mut found = false;
    while let Some(at) = memchr::memmem::find(rest, ours) {
        let (before, after) = (&rest[..at], &rest[at + ours.len()..]);
        out.extend_from_slice(before);
        // `pgleash_1` is not `pgleash_12`.
        let whole = !after.first().is_some_and(u8::is_ascii_digit);
        out.extend_from_slice(if whole { name } else { ours });
        found |= whole;
        rest = after;
    }
    out.extend_from_slice(rest);
    found.then_some(out)
}

/// A frame with this tag and body.
pub(crate) fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

/// The body of the error that a server says in this case, made from one that it said in another.
pub(crate) fn instead(body: &[u8], failure: Failure) -> Vec<u8> {
    let (code, message, file, routine) = match failure {
        Failure::Stale => {
            ("0A000", "cached plan must not change result type", "plancache.c", "RevalidateCachedQuery")
        }
        Failure::NoUnnamed => {
            ("26000", "unnamed prepared statement does not exist", "postgres.c", "exec_bind_message")
        }
    };
    let mut out = Vec::with_capacity(body.len() + message.len());
    for field in body.split(|byte| *byte == 0) {
        let Some((kind, text)) = field.split_first() else { continue };
        let text: Cow<'_, [u8]> = match kind {
            b'C' => code.as_bytes().into(),
            b'M' => message.as_bytes().into(),
            b'F' => file.as_bytes().into(),
            b'R' => routine.as_bytes().into(),
            _ => text.into(),
        };
        out.push(*kind);
        out.extend_from_slice(&text);
        out.push(0);
    }
    out.push(0);
    out
}

/// The SQLSTATE of an error.
pub(crate) fn sqlstate(body: &[u8]) -> &[u8] {
    let code = body.split(|byte| *byte == 0).find(|field| field.first() == Some(&b'C'));
    code.and_then(|code| code.get(1..)).unwrap_or_default()
}

/// What a ParameterDescription and the message behind it tell.
pub(crate) fn told(parameters: &[u8], tag: u8, rows: &[u8]) -> Told {
    Told { types: parameters.into(), shape: crate::prepared::statement::Shape::of(tag, rows) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_has_a_name_of_its_own() {
        for number in [0, 7, 10, 4_294_967_295] {
            assert_eq!(*name_of(number), *format!("pgleash_{number}\0").as_bytes());
        }
    }

    #[test]
    fn a_literal_may_be_of_the_moment() {
        for text in [
            "SELECT 'now'::timestamptz",
            "select date 'Today'",
            "select ' tomorrow '::date",
            "select 'now()'",
            "select $$now$$",
        ] {
            assert!(tells_the_time(text.as_bytes()), "{text}");
        }
        for text in ["select now()", "select $1 + now()", "select 'once'", "", "no"] {
            assert!(!tells_the_time(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn a_name_is_read_as_the_server_reads_it() {
        let name = |text: &str| deallocated(text.as_bytes()).map(|name| String::from_utf8(name).unwrap());
        assert_eq!(name("DEALLOCATE Plan"), Some("plan".to_owned()));
        assert_eq!(name(" deallocate\nprepare _pg3_0 ; "), Some("_pg3_0".to_owned()));
        assert_eq!(name("DEALLOCATE \"My \"\"plan\""), Some("My \"plan".to_owned()));
        assert_eq!(name("DEALLOCATE \"all\""), Some("all".to_owned()));
        assert_eq!(name("DEALLOCATE\"p\""), Some("p".to_owned()));
        assert_eq!(name("DEALLOCATE prepare"), Some("prepare".to_owned()));
        for other in [
            "DEALLOCATE ALL",
            "DEALLOCATE a b",
            "DEALLOCATE a; select 1",
            "deallocated a",
            "DEALLOCATE 1",
            "",
        ] {
            assert_eq!(name(other), None, "{other}");
        }
        assert_eq!(name("DEALLOCATE \"a\"b\""), None);
    }

    #[test]
    fn an_error_speaks_of_the_clients_name() {
        let error =
            b"SERROR\0C26000\0Mprepared statement \"pgleash_1\" does not exist, nor \"pgleash_12\"\0\0";
        let told = renamed(error, 1, b"mine").unwrap();
        let want = b"SERROR\0C26000\0Mprepared statement \"mine\" does not exist, nor \"pgleash_12\"\0\0";
        assert_eq!(told, want);
        assert_eq!(renamed(error, 2, b"mine"), None);
        assert_eq!(sqlstate(error), b"26000");
        let stale = instead(error, Failure::Stale);
        assert_eq!(stale, b"SERROR\0C0A000\0Mcached plan must not change result type\0\0");
    }
}
