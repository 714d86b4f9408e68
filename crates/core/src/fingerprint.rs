//! A statement without its values: what may be shown of it.
//!
//! sqlparser's tokenizer reads it as PostgreSQL would ("Lexical Structure"); whatever is not a word, a sign or a
//! parameter becomes `?`. Comments are left out. Where the text cannot be read any further, as when it was cut
//! off in a literal, the rest is left out as well.

use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Whitespace, Word};

/// No more characters of it are shown.
pub const LONGEST: usize = 200;

/// The fingerprint of a statement, or of its beginning; empty if there is nothing to show.
pub fn of(statement: &[u8]) -> String {
    let text = String::from_utf8_lossy(statement);
    // Where backslashes escape, a literal goes on behind such a quote; whether they do depends on a setting and on the
    // kind of literal, so nothing from there on is read.
    let text = text.split_once("\\'").map_or(&*text, |(before, _)| before);
    let mut tokens: Vec<TokenWithSpan> = Vec::new();
    // An error says where the readable part ends, and that is in the buffer.
    let whole =
        Tokenizer::new(&PostgreSqlDialect {}, text).tokenize_with_location_into_buf(&mut tokens).is_ok();
    let mut shown = String::new();
    let mut place = Position::Begin;
    for token in &tokens {
        let next = match (place, &token.token) {
            (Position::Value, Token::Word(_)) => "?".to_owned(),
            (_, token) => shown_as(token),
        };
        place = place.behind(&token.token);
        // `in (?, ?, ?)` is one statement, however many values there are.
        if next == "?" && (shown.ends_with("?, ") || shown.ends_with("?,")) {
            shown.truncate(shown.rfind('?').map_or(0, |place| place + 1));
            continue;
        }
        if next == " " && (shown.is_empty() || shown.ends_with(' ')) {
            continue;
        }
        shown.push_str(&next);
        if shown.len() > LONGEST {
            break;
        }
    }
    let cut = shown.len() > LONGEST || !whole;
    crate::text::truncate(&mut shown, LONGEST);
    let mut shown = shown.trim_end_matches([' ', ';']).to_owned();
    if cut && !shown.is_empty() {
        shown.push('…');
    }
    shown
}

/// Where in a statement a token is. The value of a SET may be a word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    Begin,
    Set,
    Value,
    Other,
}

impl Position {
    fn behind(self, token: &Token) -> Self {
        let is = |text: &str| matches!(token, Token::Word(word) if word.value.eq_ignore_ascii_case(text));
        match (self, token) {
            (_, Token::SemiColon) => Position::Begin,
            (place, Token::Whitespace(_)) => place,
            (Position::Begin, _) if is("set") => Position::Set,
            (Position::Begin, _) => Position::Other,
            (Position::Set, Token::Eq) => Position::Value,
            (Position::Set, _) if is("to") => Position::Value,
            (place, _) => place,
        }
    }
}

fn shown_as(token: &Token) -> String {
    match token {
        Token::Word(Word { value, quote_style, .. }) => match quote_style {
            Some(_) => format!("\"{}\"", value.replace('"', "\"\"")),
            None => value.to_lowercase(),
        },
        Token::Placeholder(name) => name.clone(),
        Token::Whitespace(Whitespace::Space | Whitespace::Newline | Whitespace::Tab) => " ".to_owned(),
        Token::Whitespace(_) => String::new(),
        sign if is_sign(sign) => sign.to_string(),
        _ => "?".to_owned(),
    }
}

/// Signs that are shown. A kind of literal that is not thought of here is none.
fn is_sign(token: &Token) -> bool {
    let text = token.to_string();
    text.len() <= 3
        && !text.is_empty()
        && text.chars().all(|sign| ",=<>!()[]{}+-*/%|&^~#@:;.?".contains(sign))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_become_question_marks() {
        for (statement, shown) in [
            ("SELECT * FROM cards WHERE pan = '4111 1111'", "select * from cards where pan = ?"),
            ("update a set b = 1.5e3, c = d where d = $1;", "update a set b = ?, c = d where d = $1"),
            ("update a set c = E'x\\'y' where d = 'z'", "update a set c =…"),
            ("select 'C:\\' from t where secret = 'x'", "select…"),
            (
                "SET app.token TO s3cr3t; set role = admin, 5; select a",
                "set app.token to ?; set role = ?; select a",
            ),
            ("select 1 where x in (1, 2,3)", "select ? where x in (?)"),
            ("select $$body 'x'$$, $t$y$t$, U&'d\\0061t', B'10', X'FF', N'n'", "select ?"),
            ("select 1 /* pin 1234 */ -- 5678\nfrom t", "select ? from t"),
            ("alter role x password 'secret'", "alter role x password ?"),
            ("select \"Odd \"\"Name\"\"\" from \"T\"", "select \"Odd \"\"Name\"\"\" from \"T\""),
            ("select a->>'k', b::int, c[1] from t", "select a->>?, b::int, c[?] from t"),
            ("", ""),
        ] {
            assert_eq!(of(statement.as_bytes()), shown, "{statement}");
        }
    }

    #[test]
    fn a_statement_that_is_cut_off_in_a_literal_shows_nothing_of_it() {
        assert_eq!(of(b"insert into t values ('geheim"), "insert into t values (…");
        assert_eq!(of(b"select $x$geheim"), "select…");
        assert_eq!(of(b"select 'a\xff\xfeb'"), "select ?");
    }

    proptest! {
        #[test]
        fn no_literal_is_ever_shown(secret in "[a-m]{6}", cut in 0_usize..80, noise in "[ '$/*a-z\\-\"]{0,12}") {
            let text = format!("select x from t where k = '{secret}' and {noise} l = '{secret}'");
            let shown = of(&text.as_bytes()[..cut.min(text.len())]);
            // What noise turns inside out may make a name of it: then it is one for the server as well.
            if !noise.contains(['\'', '$', '"']) {
                prop_assert!(!shown.contains(&secret), "{shown}");
            }
            prop_assert!(shown.len() <= LONGEST + '…'.len_utf8());
        }

        #[test]
        fn any_bytes_will_do(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            of(&bytes);
        }
    }
}
