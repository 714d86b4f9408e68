//! `SET name = value`, or `RESET name`, as a whole statement that can be repeated elsewhere. Floor 0.

/// Parameters whose value in a SET is not what `set_config` takes for the same: lists of names (`GUC_LIST_QUOTE`),
/// and words that look like parameters ("SET", "SET ROLE", "SET TRANSACTION"). With them those that a connection may
/// refuse for what it has done before (`temp_buffers`), that end one which nobody has (`idle_session_timeout`), and old
/// names of others, of which the last that was set counts (`sort_mem`, `vacuum_mem`).
const OTHERS: [&str; 16] = [
    "all",
    "constraints",
    "idle_session_timeout",
    "local",
    "local_preload_libraries",
    "role",
    "search_path",
    "seed",
    "session",
    "session_authorization",
    "session_preload_libraries",
    "shared_preload_libraries",
    "sort_mem",
    "temp_buffers",
    "temp_tablespaces",
    "vacuum_mem",
];

/// No longer text is looked at, in bytes.
pub const LONGEST: usize = 256;

/// The server cuts longer words (`NAMEDATALEN`), in bytes.
const LONGEST_WORD: usize = 63;

/// A parameter, in lower case, and its new value; `None` if it is set back to the default.
pub type Assigned = (String, Option<String>);

/// What a text does that is nothing but `SET [SESSION] name {= | TO} value` with one plain value (a number, a word,
/// `DEFAULT`, or a literal without a quote or a backslash in it), or `RESET name`. All of it in ASCII: what other
/// bytes mean hangs on the encoding of the moment.
///
/// A name with a dot is left out: what an extension, or a policy on rows, makes of it is not known.
pub fn assigned(sql: &[u8]) -> Option<Assigned> {
    let begins = |word: &[u8]| {
        sql.trim_ascii_start().get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word))
    };
    // Nearly all texts are something else.
    if !begins(b"set") && !begins(b"reset") {
        return None;
    }
    let is_read = |sql: &&str| sql.len() <= LONGEST && sql.is_ascii();
    let sql = std::str::from_utf8(sql).ok().filter(is_read)?.trim();
    let sql = sql.strip_suffix(';').unwrap_or(sql).trim_end();
    if let Some(name) = after(sql, "reset") {
        return name.chars().all(is_word).then(|| name_of(name)).flatten().map(|name| (name, None));
    }
    let rest = after(sql, "set")?;
    let rest = after(rest, "session").unwrap_or(rest);
    let end = rest.find(|letter: char| !is_word(letter))?;
    let (name, rest) = (name_of(&rest[..end])?, rest[end..].trim_start());
    let value = rest.strip_prefix('=').map(str::trim_start).or_else(|| after(rest, "to"))?;
    let value = if value.eq_ignore_ascii_case("default") { None } else { Some(plain(value)?) };
    Some((name, value))
}

/// The parameter of this name, if it is like others.
fn name_of(word: &str) -> Option<String> {
    let name = word.to_ascii_lowercase();
    let starts = name.starts_with(|letter: char| !letter.is_ascii_digit());
    let is_like_others = !name.starts_with("transaction") && !OTHERS.contains(&name.as_str());
    (starts && is_like_others).then_some(name)
}

/// What follows this word and white space.
fn after<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(word.len())?;
    let rest = head.eq_ignore_ascii_case(word).then_some(rest)?;
    rest.starts_with(|letter: char| letter.is_ascii_whitespace() || letter == '\'').then(|| rest.trim_start())
}

fn plain(value: &str) -> Option<String> {
    if let Some(literal) = value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        return (!literal.contains(['\'', '\\', '\0'])).then(|| literal.to_owned());
    }
    let number = value.strip_prefix('-').unwrap_or(value);
    if number.starts_with(|first: char| first.is_ascii_digit()) {
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        // `010` is ten in SQL, and eight in a parameter; `-0` is 0 in SQL.
        let is_spelled_so = !number.starts_with('0') || value == "0" || number.starts_with("0.");
        let is_one = number.matches('.').count() < 2;
        return (is_number && is_one && is_spelled_so).then(|| value.to_owned());
    }
    let word = value.to_ascii_lowercase();
    (!word.is_empty()
        && word.len() <= LONGEST_WORD
        && word.chars().all(is_word)
        && !matches!(word.as_str(), "default" | "local"))
    .then_some(word)
}

const fn is_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_value_is_read_as_the_server_reads_it() {
        let read = |sql: &str| assigned(sql.as_bytes());
        let is = |name: &str, value: &str| Some((name.to_owned(), Some(value.to_owned())));
        assert_eq!(read("SET extra_float_digits = 3"), is("extra_float_digits", "3"));
        assert_eq!(read(" set session Statement_Timeout to '5s' ;"), is("statement_timeout", "5s"));
        assert_eq!(read("SET work_mem='64MB'"), is("work_mem", "64MB"));
        assert_eq!(read("SET enable_seqscan TO OFF"), is("enable_seqscan", "off"));
        assert_eq!(read("SET seq_page_cost = -1.5"), is("seq_page_cost", "-1.5"));
        assert_eq!(read("SET lock_timeout TO'1s'"), is("lock_timeout", "1s"));
        assert_eq!(read("SET lock_timeout = 0"), is("lock_timeout", "0"));
        assert_eq!(read("SET vacuum_cost_delay = 0.5"), is("vacuum_cost_delay", "0.5"));
        let default = Some(("work_mem".to_owned(), None));
        for sql in [
            "RESET work_mem",
            " reset\nWork_Mem ; ",
            "SET work_mem = DEFAULT",
            "set session work_mem to default",
        ] {
            assert_eq!(read(sql), default, "{sql}");
        }
    }

    #[test]
    fn whatever_else_it_may_be_is_left_alone() {
        for sql in [
            "SET search_path = a",
            "SET app.tenant = '42'",
            "SET \"work_mem\" = 1",
            "SET LOCAL work_mem = 1",
            "SET work_mem = LOCAL",
            "RESET",
            "RESET ALL",
            "RESET ROLE",
            "RESET TIME ZONE",
            "RESET SESSION AUTHORIZATION",
            "RESET search_path",
            "RESET app.tenant",
            "RESET \"work_mem\"",
            "RESET work_mem; RESET lock_timeout",
            "RESET work_mem -- all of it",
            "RESETwork_mem",
            "SET work_mem = 'größe'",
            "SET work_mem = '1' || '2'",
            "SET work_mem = 1, 2",
            "SET work_mem = 'it''s'",
            "SET work_mem = E'1'",
            "SET work_mem = 1; SELECT 1",
            "SET TIME ZONE 'UTC'",
            "SET ROLE joe",
            "SET role = joe",
            "SET SESSION AUTHORIZATION joe",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET transaction_read_only = on",
            "SET SEED TO 0.5",
            "SET work_mem = 1 -- much",
            "SET work_mem",
            "SET work_mem =",
            "SET",
            "SETTING = 1",
            "",
            "SELECT 1",
            "SET work_mem = 1.2.3",
            "SET statement_timeout = 0100",
            "SET statement_timeout = -010",
            "SET enable_seqscan = -0",
            "SET temp_buffers = '2MB'",
            "SET idle_session_timeout = '1h'",
            "SET sort_mem = '6MB'",
            "SET lc_time = 'é'",
            "SET lc_time = c\u{a0}",
            &format!("SET default_tablespace = {}", "a".repeat(64)),
        ] {
            assert_eq!(assigned(sql.as_bytes()), None, "{sql}");
        }
        assert_eq!(assigned(b"SET work_mem = \xff"), None);
    }
}
