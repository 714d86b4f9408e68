//! Which parameter a SET, a RESET or a `set_config` is about.
//!
//! Only names are read here. To what a parameter is set is for the server to say.

use pgleash_core::Pins;

/// What stands behind these words is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// SET at the beginning of a statement.
    Set,
    /// RESET likewise.
    Reset,
    /// DISCARD likewise.
    Discard,
    /// The function, anywhere.
    SetConfig,
}

/// What a clause may change: names of parameters in lower case, and what else there is to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touch {
    /// Parameters.
    pub names: Vec<String>,
    /// Of the kind that has to do with parameters.
    pub kind: Pins,
}

/// Bytes of a clause that are looked at. What ends a name comes before, or the name counts as unknown.
pub(crate) const LONGEST: usize = 512;

/// The longest name that is kept; a longer one counts as unknown.
const LONGEST_NAME: usize = 128;

/// Reads the text behind `verb`, up to the end of its statement or as far as it is kept.
pub(crate) fn touch(verb: Verb, text: &[u8]) -> Touch {
    let Ok(text) = std::str::from_utf8(text) else { return unknown() };
    let mut words = Words { rest: text };
    let read = match verb {
        Verb::Set => set(&mut words),
        Verb::Reset => reset(&mut words),
        Verb::Discard => discard(&mut words),
        Verb::SetConfig => set_config(&mut words),
    };
    read.unwrap_or_else(unknown)
}

/// A clause that is not understood.
fn unknown() -> Touch {
    let kind = Pins::TOUCHES_ALL.and(Pins::HIDES).and(Pins::MOVES_PATH).and(Pins::RESETS);
    Touch { names: Vec::new(), kind }
}

fn nothing() -> Option<Touch> {
    Some(Touch::default())
}

/// These names, for good.
fn names(names: &[&str]) -> Option<Touch> {
    let mut kind = Pins::TOUCHES;
    if names.contains(&"search_path") {
        kind = kind.and(Pins::MOVES_PATH);
    }
    Some(Touch { names: names.iter().map(|name| (*name).to_owned()).collect(), kind })
}

fn back(touch: Option<Touch>) -> Option<Touch> {
    touch.map(|touch| Touch { kind: touch.kind.and(Pins::RESETS), ..touch })
}

/// Only until the transaction is over.
fn local(touch: Option<Touch>) -> Option<Touch> {
    touch.map(|touch| {
        let path = touch.kind.within(Pins::MOVES_PATH);
        if touch.kind.has(Pins::RESETS) && touch.kind.has(Pins::TOUCHES) {
            Touch { kind: path.and(Pins::RESETS_LOCALLY), ..touch }
        } else {
            Touch { names: Vec::new(), kind: path }
        }
    })
}

const CHARACTERISTICS: [&str; 3] =
    ["default_transaction_deferrable", "default_transaction_isolation", "default_transaction_read_only"];

fn set(words: &mut Words<'_>) -> Option<Touch> {
    if words.take("local") {
        return local(set_rest(words)).or_else(|| Some(Touch { kind: Pins::MOVES_PATH, ..Touch::default() }));
    }
    let is_session = words.take("session");
    if is_session && words.take("characteristics") {
        return names(&CHARACTERISTICS);
    }
    if is_session && words.take("authorization") {
        return back(names(&["session_authorization", "role"]));
    }
    set_rest(words)
}

fn set_rest(words: &mut Words<'_>) -> Option<Touch> {
    let before = words.rest;
    let name = words.name()?;
    // A name in quotes is a parameter, whatever it is called.
    let is_word = !before.get(..before.len() - words.rest.len())?.contains('"');
    match name.as_str() {
        "session" if is_word && words.take("authorization") => {
            return back(names(&["session_authorization", "role"]));
        }
        "session" if is_word && words.take("characteristics") => return names(&CHARACTERISTICS),
        "time" if is_word && words.take("zone") => return words.maybe_default(names(&["timezone"])),
        "transaction" | "constraints" if is_word => return nothing(),
        "schema" if is_word => return words.maybe_default(names(&["search_path"])),
        "names" if is_word => return words.maybe_default(names(&["client_encoding"])),
        "xml" if is_word && words.take("option") => return names(&["xmloption"]),
        "role" if is_word && !words.at_value() => return back(names(&["role"])),
        "catalog" if is_word && !words.at_value() => return nothing(),
        _ => {}
    }
    if !words.value() {
        return None;
    }
    words.maybe_default(parameter(&name))
}

fn reset(words: &mut Words<'_>) -> Option<Touch> {
    let name = words.name()?;
    match name.as_str() {
        "all" => Some(Touch { names: Vec::new(), kind: all_back() }),
        "session" if words.take("authorization") => back(names(&["session_authorization", "role"])),
        "time" if words.take("zone") => back(names(&["timezone"])),
        "transaction" => nothing(),
        _ => back(parameter(&name)),
    }
}

fn all_back() -> Pins {
    Pins::TOUCHES_ALL.and(Pins::RESETS).and(Pins::MOVES_PATH)
}

fn discard(words: &mut Words<'_>) -> Option<Touch> {
    let kind = match words.name()?.as_str() {
        "all" => all_back().and(Pins::ENDS).and(Pins::DISCARDS),
        "temp" | "temporary" => Pins::ENDS,
        _ => Pins::default(),
    };
    Some(Touch { names: Vec::new(), kind })
}

/// `('name', value, is_local)`, if the name is a literal.
fn set_config(words: &mut Words<'_>) -> Option<Touch> {
    words.rest = words.rest.strip_prefix('"').unwrap_or(words.rest);
    words.symbol('(').then_some(())?;
    let name = words.literal()?;
    let is_name = name.chars().all(|letter| is_word(letter) || letter == '.');
    (is_name && words.symbol(',')).then_some(())?;
    let touch = parameter(&name.to_ascii_lowercase());
    if is_local_call(words.rest) { local(touch) } else { touch }
}

/// Whether the arguments that are left end in a plain `, true)`.
fn is_local_call(rest: &str) -> bool {
    let mut words = Words { rest };
    let value = match words.literal() {
        Some(_) => true,
        None => words.parameter() || words.plain(),
    };
    value && words.symbol(',') && words.take("true") && words.symbol(')')
}

/// A parameter by the name that a SET has.
fn parameter(name: &str) -> Option<Touch> {
    match name {
        // Their values are of the transaction.
        "transaction_isolation" | "transaction_read_only" | "transaction_deferrable" => nothing(),
        "seed" => Some(Touch { names: Vec::new(), kind: Pins::SEEDS }),
        "role" => back(names(&["role"])),
        "session_authorization" => back(names(&["session_authorization", "role"])),
        // Old names of others.
        "sort_mem" => names(&["work_mem"]),
        "vacuum_mem" => names(&["maintenance_work_mem"]),
        _ if name.len() > LONGEST_NAME => None,
        _ => names(&[name]),
    }
}

/// The words of a clause.
struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    /// White space and comments.
    fn gap(&mut self) {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
            if self.rest.starts_with("--") {
                let end = self.rest.find(['\n', '\r']).unwrap_or(self.rest.len());
                self.rest = &self.rest[end..];
            } else if self.rest.starts_with("/*") {
                self.comment();
            } else {
                return;
            }
        }
    }

    /// Comments nest.
    fn comment(&mut self) {
        let (mut depth, mut at) = (0, 0);
        let bytes = self.rest.as_bytes();
        while at < bytes.len() {
            match bytes.get(at..at + 2) {
                Some(b"/*") => (depth, at) = (depth + 1, at + 2),
                Some(b"*/") => (depth, at) = (depth - 1, at + 2),
                _ => at += 1,
            }
            if depth == 0 {
                break;
            }
        }
        // Both marks are ASCII, and so is where they end; without an end the rest is comment.
        self.rest = if depth == 0 { &self.rest[at..] } else { "" };
    }

    /// Takes this word if it comes next.
    fn take(&mut self, word: &str) -> bool {
        let before = self.rest;
        if self.part().is_some_and(|part| part.eq_ignore_ascii_case(word))
            && !before.trim_start().starts_with('"')
        {
            return true;
        }
        self.rest = before;
        false
    }

    /// A word or a quoted identifier.
    fn part(&mut self) -> Option<String> {
        self.gap();
        if let Some(quoted) = self.rest.strip_prefix('"') {
            let (name, rest) = quoted.split_once('"')?;
            // Doubled quotes are in no parameter's name.
            (!rest.starts_with('"') && !name.is_empty()).then_some(())?;
            self.rest = rest;
            return Some(name.to_owned());
        }
        let end = self.rest.find(|letter: char| !is_word(letter)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        (!word.is_empty()).then_some(())?;
        // `U&"..."`: any name can be hidden in it.
        (!(word.eq_ignore_ascii_case("u") && rest.starts_with('&'))).then_some(())?;
        self.rest = rest;
        Some(word.to_ascii_lowercase())
    }

    /// A name, perhaps with dots in it, in lower case and ASCII.
    fn name(&mut self) -> Option<String> {
        let mut name = self.part()?;
        while self.symbol('.') {
            name.push('.');
            name.push_str(&self.part()?);
        }
        // A quote or a sign in a name has no use but to hide something.
        let is_plain = name.chars().all(|letter| is_word(letter) || letter == '.');
        (name.is_ascii() && is_plain).then(|| name.to_ascii_lowercase())
    }

    fn symbol(&mut self, symbol: char) -> bool {
        self.gap();
        match self.rest.strip_prefix(symbol) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// `=` or TO comes next.
    fn value(&mut self) -> bool {
        self.symbol('=') || self.take("to") || self.take("from")
    }

    fn at_value(&self) -> bool {
        Words { rest: self.rest }.value()
    }

    /// DEFAULT or LOCAL sets a parameter back.
    fn maybe_default(&self, touch: Option<Touch>) -> Option<Touch> {
        let mut next = Words { rest: self.rest };
        if next.take("default") || next.take("local") || next.rest.is_empty() { back(touch) } else { touch }
    }

    /// A literal without a quote or a backslash in it.
    fn literal(&mut self) -> Option<String> {
        self.gap();
        let (text, rest) = self.rest.strip_prefix('\'')?.split_once('\'')?;
        (!rest.starts_with('\'') && !text.contains('\\')).then_some(())?;
        self.rest = rest;
        // A cast changes nothing.
        let before = self.rest;
        if !(self.symbol(':') && self.symbol(':') && self.part().is_some()) {
            self.rest = before;
        }
        Some(text.to_owned())
    }

    /// `$1` and the like.
    fn parameter(&mut self) -> bool {
        let before = self.rest;
        if self.symbol('$') {
            let end = self.rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(self.rest.len());
            self.rest = &self.rest[end..];
            let cast = self.rest;
            if !(self.symbol(':') && self.symbol(':') && self.part().is_some()) {
                self.rest = cast;
            }
            return end > 0;
        }
        self.rest = before;
        false
    }

    /// A word or a number.
    fn plain(&mut self) -> bool {
        self.part().is_some()
    }
}

const fn is_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_' || letter == '$' || !letter.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Touch {
        let rest = |verb: &str| {
            text.get(..verb.len()).filter(|head| head.eq_ignore_ascii_case(verb)).map(|_| &text[verb.len()..])
        };
        let verbs = [
            ("set_config", Verb::SetConfig),
            ("set", Verb::Set),
            ("reset", Verb::Reset),
            ("discard", Verb::Discard),
        ];
        let (rest, verb) = verbs.iter().find_map(|(word, verb)| Some((rest(word)?, *verb))).unwrap();
        touch(verb, rest.as_bytes())
    }

    #[test]
    fn the_name_is_read_as_the_server_reads_it() {
        for (text, name) in [
            ("SET work_mem = '1MB'", "work_mem"),
            ("set session Work_Mem to 4", "work_mem"),
            ("SET \"work_mem\" = 1", "work_mem"),
            ("SET /* a /* b */ */ work_mem -- c\n = 1", "work_mem"),
            ("SET app.tenant = '42'", "app.tenant"),
            ("SET app . \"Tenant\" TO '42'", "app.tenant"),
            ("SET \"app.tenant\" = '42'", "app.tenant"),
            ("SET search_path TO a, \"B\"", "search_path"),
            ("SET SCHEMA 'a'", "search_path"),
            ("SET NAMES 'utf8'", "client_encoding"),
            ("SET XML OPTION DOCUMENT", "xmloption"),
            ("SET TIME ZONE INTERVAL '+00:00' HOUR TO MINUTE", "timezone"),
            ("SET SESSION TIME ZONE 'UTC'", "timezone"),
            ("set_config('TimeZone', 'UTC', false)", "timezone"),
            ("set_config ( 'jit'::text , $1, is_local)", "jit"),
            ("set_config('app.tenant', $1, false)", "app.tenant"),
            ("set_config('work_mem', upper('1mb'), true)", "work_mem"),
        ] {
            let touch = read(text);
            assert_eq!(touch.names, [name], "{text}");
            assert!(
                touch.kind.has(Pins::TOUCHES) && !touch.kind.has(Pins::HIDES.and(Pins::RESETS)),
                "{text}"
            );
        }
        assert_eq!(read("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY").names, CHARACTERISTICS);
    }

    #[test]
    fn what_goes_back_to_its_default_is_known() {
        for (text, first) in [
            ("RESET work_mem", "work_mem"),
            ("RESET TIME ZONE", "timezone"),
            ("RESET app.tenant", "app.tenant"),
            ("SET work_mem TO DEFAULT", "work_mem"),
            ("SET TIME ZONE LOCAL", "timezone"),
            ("SET ROLE NONE", "role"),
            ("SET \"role\" TO joe", "role"),
            ("RESET SESSION AUTHORIZATION", "session_authorization"),
            ("SET SESSION AUTHORIZATION joe", "session_authorization"),
            ("SET session_authorization = joe", "session_authorization"),
            ("set_config('role', 'joe', false)", "role"),
        ] {
            let touch = read(text);
            assert_eq!(touch.names.first().map(String::as_str), Some(first), "{text}");
            assert!(touch.kind.has(Pins::RESETS), "{text}");
        }
        for text in ["RESET ALL", "reset /* so */ all", "DISCARD ALL"] {
            assert!(read(text).kind.has(Pins::TOUCHES_ALL) && !read(text).kind.has(Pins::HIDES), "{text}");
        }
    }

    #[test]
    fn what_lasts_for_the_transaction_touches_nothing() {
        for text in [
            "SET LOCAL work_mem = 1",
            "SET TRANSACTION READ ONLY",
            "SET CONSTRAINTS ALL DEFERRED",
            "SET LOCAL app.tenant = '42'",
            "SET transaction_read_only = on",
            "RESET TRANSACTION ISOLATION LEVEL",
            "set_config('work_mem', '1MB', true)",
            "set_config('work_mem', $1, true)",
            "DISCARD PLANS",
            "DISCARD SEQUENCES",
        ] {
            assert_eq!(read(text), Touch::default(), "{text}");
        }
        assert_eq!(read("SET LOCAL search_path = pg_temp").kind, Pins::MOVES_PATH);
        let back = read("SET LOCAL work_mem TO DEFAULT");
        assert_eq!((back.names, back.kind), (vec!["work_mem".to_owned()], Pins::RESETS_LOCALLY));
    }

    #[test]
    fn what_is_not_understood_may_be_anything() {
        for text in [
            "SET U&\"r\\006fle\" TO joe",
            "SET",
            "SET work_mem",
            "SET \"a\"\"b\" = 1",
            "SET größe = 1",
            "SET /* without an end",
            "set_config($1, $2, false)",
            "set_config('work' || '_mem', '1MB', false)",
            "set_config(E'work\\_mem', '1MB', false)",
            "set_config('wo''rk', '1MB', false)",
            "set_config",
        ] {
            assert!(read(text).kind.has(Pins::HIDES), "{text}: {:?}", read(text));
        }
        assert!(touch(Verb::Set, b" \xff = 1").kind.has(Pins::HIDES));
    }
}
