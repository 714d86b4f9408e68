//! What applications say of themselves in a comment of their statements.
//!
//! The [sqlcommenter](https://google.github.io/sqlcommenter/spec/) format, `/*key='value',key='value'*/` with values
//! percent-encoded, and marginalia's `/*key:value,key:value*/`, at the end of a statement or at its beginning.

use std::borrow::Cow;

use percent_encoding::percent_decode;
use pgleash_core::Trace;

/// The tags of one statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tags<'a>(&'a [u8]);

/// No more bytes of a route count.
const LONGEST: usize = 128;

impl<'a> Tags<'a> {
    /// The comment at the end of a statement, or else the one at its beginning; of a statement in two pieces,
    /// `head` and `tail` are its ends.
    pub fn of(head: &'a [u8], tail: &'a [u8]) -> Option<Self> {
        let end = tail.trim_ascii_end();
        let end = end.strip_suffix(b";").map_or(end, <[u8]>::trim_ascii_end);
        if let Some(inside) = end.strip_suffix(b"*/") {
            let begin = memchr::memmem::rfind(inside, b"/*")?;
            return Some(Self(&inside[begin + 2..]));
        }
        let inside = head.trim_ascii_start().strip_prefix(b"/*")?;
        Some(Self(&inside[..memchr::memmem::find(inside, b"*/")?]))
    }

    /// The value of a key, decoded; `None` if there is none, or it is malformed.
    pub fn get(&self, key: &str) -> Option<Cow<'a, str>> {
        self.0.split(|byte| *byte == b',').find_map(|tag| {
            let tag = tag.trim_ascii();
            let rest = tag.strip_prefix(key.as_bytes())?;
            let value = match rest.trim_ascii_start().split_first()? {
                (b'=', quoted) => quoted.trim_ascii().strip_prefix(b"'")?.strip_suffix(b"'")?,
                (b':', plain) => plain,
                _ => return None,
            };
            percent_decode(value.trim_ascii()).decode_utf8().ok().filter(|value| !value.is_empty())
        })
    }

    /// What the work is called: `route`, or `controller` and `action`, or `job`, or one of these alone; at most 128
    /// bytes, without control characters. False, and nothing is written, if there is none.
    pub fn route_into(&self, text: &mut String) -> bool {
        text.clear();
        let whole = self.get("route").or_else(|| self.get("job"));
        match (whole, self.get("controller"), self.get("action")) {
            (Some(route), ..) => text.push_str(&route),
            (None, Some(controller), Some(action)) => text.extend([&*controller, "#", &*action]),
            (None, Some(one), None) | (None, None, Some(one)) => text.push_str(&one),
            (None, None, None) => return false,
        }
        text.retain(|sign| !sign.is_control());
        pgleash_core::text::truncate(text, LONGEST);
        !text.is_empty()
    }

    /// The trace that the statement belongs to.
    pub fn trace(&self) -> Option<Trace> {
        let text = self.get("traceparent")?;
        let mut parts = text.split('-').skip(1);
        let (id, span) = (parts.next()?, parts.next()?);
        let exact = id.len() == 32 && span.len() == 16 && !id.starts_with('+') && !span.starts_with('+');
        let trace =
            Trace { id: u128::from_str_radix(id, 16).ok()?, span: u64::from_str_radix(span, 16).ok()? };
        (exact && trace.id != 0).then_some(trace)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route(statement: &str) -> Option<String> {
        let mut text = String::new();
        Tags::of(statement.as_bytes(), statement.as_bytes())?.route_into(&mut text).then_some(text)
    }

    #[test]
    fn a_route_is_read_from_either_end_and_in_either_format() {
        for (statement, name) in [
            ("select 1 /*action='pay',route='POST%20%2Fpay',traceparent='x'*/", "POST /pay"),
            ("/* route='GET /cart' */ select 1", "GET /cart"),
            ("select 1 /*controller:orders,action:show*/ ; ", "orders#show"),
            ("select 1 /*job='Nightly%C3%A9'*/", "Nightlyé"),
            ("select '/*' /*controller='a'*/", "a"),
        ] {
            assert_eq!(route(statement).as_deref(), Some(name), "{statement}");
        }
    }

    #[test]
    fn what_is_malformed_says_nothing() {
        for statement in [
            "select 1",
            "select 1 /* a comment, with words */",
            "select 1 /*route=POST*/",
            "select 1 /*route='*/",
            "select 1 /*route='%FF%FE'*/",
            "select 1 /*route=''*/",
            "select 1 */",
            "/* route='a'",
            "/*",
            "*/",
        ] {
            assert_eq!(route(statement), None, "{statement}");
        }
    }

    #[test]
    fn a_trace_is_read_as_it_is_written() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let tags = format!("select 1 /*traceparent='{text}'*/");
        let trace = Tags::of(b"", tags.as_bytes()).unwrap().trace().unwrap();
        assert_eq!(trace.text(), text);
        for wrong in ["00-00000000000000000000000000000000-00f067aa0ba902b7-01", "00-4b-00-01", "x", "00--"] {
            let tags = format!("select 1 /*traceparent='{wrong}'*/");
            assert_eq!(Tags::of(b"", tags.as_bytes()).unwrap().trace(), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_will_do_and_a_route_is_short(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut text = String::new();
            let whole = [b"/*route='".as_slice(), &bytes, b"'*/"].concat();
            for statement in [&bytes, &whole] {
                if let Some(tags) = Tags::of(statement, statement) {
                    tags.route_into(&mut text);
                    tags.trace();
                    prop_assert!(text.len() <= LONGEST && !text.contains(char::is_control));
                }
            }
        }
    }
}
