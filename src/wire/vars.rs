//! Run-time parameters that follow a client from server connection to server connection. Floor 0.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;

/// The parameter that says in which encoding a client speaks. A connection is opened with UTF-8.
pub const ENCODING: &str = "client_encoding";

/// Parameters by lower-case name.
pub type Vars = BTreeMap<String, String>;

/// Parameters that some version of the server reports whenever they change, that a client may set, and
/// whose value may be set elsewhere as it was reported: a SET of one of them needs no pin if this server
/// reports it. (PostgreSQL documentation, "Asynchronous Operations": the first six always,
/// `default_transaction_read_only` since 14, `scram_iterations` since 16, `search_path` since 18.)
const FOLLOWED: [&str; 9] = [
    "application_name",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "standard_conforming_strings",
    "timezone",
    "default_transaction_read_only",
    "scram_iterations",
    "search_path",
];

/// What the parameters have to do with the meaning of a statement's text: two clients with the same mean the
/// same by the same text. Only a name that has no meaning is left out.
pub fn meaning(vars: &Vars) -> String {
    let mut all = String::new();
    for (name, value) in vars.iter().filter(|(name, _)| *name != "application_name") {
        // A value may hold anything: its length tells where it ends.
        let _ = write!(all, "{name}={}:{value};", value.len());
    }
    all
}

/// What the parameters say of a text's letters, before it means anything: the same bytes under others are another text.
/// Where one is not set it is as pgleash and every server that is not told otherwise have it.
pub fn reading(vars: &Vars) -> String {
    let is = |name: &str, default: &str| vars.get(name).map_or(default, String::as_str).to_ascii_lowercase();
    format!("{} {}", is(ENCODING, "UTF8"), is("standard_conforming_strings", "on"))
}

/// Sets of parameters that a server has taken; so many of those that came last are remembered.
#[derive(Debug, Default)]
pub struct Taken(VecDeque<Vars>);

impl Taken {
    /// How many.
    const MOST: usize = 64;

    /// Whether these were taken. They come last.
    pub fn has(&mut self, vars: &Vars) -> bool {
        let Some(known) = self.0.iter().position(|known| known == vars).and_then(|at| self.0.remove(at))
        else {
            return false;
        };
        self.0.push_front(known);
        true
    }

    /// These were taken.
    pub fn add(&mut self, vars: Vars) {
        if !self.has(&vars) {
            self.0.push_front(vars);
            self.0.truncate(Self::MOST);
        }
    }
}

/// Which of the parameters that can be followed a server reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported(u16);

impl Default for Reported {
    /// What every version reports.
    fn default() -> Self {
        Reported(0b11_1111)
    }
}

impl Reported {
    /// From the names that it reported at login.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let bits = names.into_iter().filter_map(bit).fold(0, |all, bit| all | bit);
        Reported(bits | Self::default().0)
    }

    /// Whether changes of this parameter are seen and replayed.
    pub fn has(self, name: &str) -> bool {
        bit(name).is_some_and(|bit| self.0 & bit != 0)
    }
}

fn bit(name: &str) -> Option<u16> {
    FOLLOWED.iter().position(|followed| followed.eq_ignore_ascii_case(name)).map(|at| 1 << at)
}

/// Whether a change that is reported of this parameter (lower case) is replayed.
pub fn is_followed(name: &str) -> bool {
    FOLLOWED.contains(&name)
}

/// Parameters that statements set back to the server's default, by the first word of their lower-case names,
/// which may be cut after [`Resets::CUT`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resets {
    /// These.
    Of(Vec<String>),
    /// All but these, which were set since.
    AllBut(Vec<String>),
}

impl Default for Resets {
    fn default() -> Self {
        Resets::Of(Vec::new())
    }
}

impl Resets {
    /// Names are told apart by this many bytes.
    pub const CUT: usize = 32;
    /// More names than this are all of them.
    const MOST: usize = 16;

    /// All of them.
    pub const fn all() -> Self {
        Resets::AllBut(Vec::new())
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        matches!(self, Resets::Of(names) if names.is_empty())
    }

    /// This one as well.
    pub fn add(&mut self, name: &str) {
        match self {
            Resets::Of(names) if names.len() < Self::MOST => push(names, name),
            Resets::Of(_) => *self = Resets::all(),
            Resets::AllBut(names) => names.retain(|known| known != name),
        }
    }

    /// It was set to something else since.
    pub fn remove(&mut self, name: &str) {
        match self {
            Resets::Of(names) => names.retain(|known| known != name),
            Resets::AllBut(names) if names.len() < Self::MOST => push(names, name),
            Resets::AllBut(_) => {}
        }
    }

    /// These as well, and later.
    pub fn join(&mut self, later: &Resets) {
        match later {
            Resets::Of(names) => names.iter().for_each(|name| self.add(name)),
            Resets::AllBut(_) => later.clone_into(self),
        }
    }

    /// Whether a parameter is among them.
    pub fn has(&self, name: &str) -> bool {
        let first = name.split('.').next().unwrap_or(name);
        let first = first.get(..Self::CUT).unwrap_or(first);
        let is_in = |names: &[String]| names.iter().any(|known| known.eq_ignore_ascii_case(first));
        match self {
            Resets::Of(names) => is_in(names),
            Resets::AllBut(names) => !is_in(names),
        }
    }
}

fn push(names: &mut Vec<String>, name: &str) {
    if names.iter().all(|known| known != name) {
        names.push(name.to_owned());
    }
}

/// What is set on a connection of a client whose parameters were `vars`, after `resets` have come true.
/// Of those that the server reports, `vars` knows already.
pub fn after_reset(resets: &Resets, vars: &Vars, reported: Reported) -> Vars {
    let stays = |name: &String| reported.has(name) || !resets.has(name);
    vars.iter().filter(|(name, _)| stays(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Whether something may still be set then: who the client is to the server is reset by DISCARD ALL, and not by
/// RESET ALL.
pub fn may_stay(resets: &Resets, vars: &Vars) -> bool {
    ["role", "session_authorization"].iter().any(|name| vars.contains_key(*name) && resets.has(name))
}

/// What a client expects to be set then: its `own`, with which it logged in, where the server went back to
/// its `defaults` (as it spells their names). `left` is what [`after_reset`] says.
pub fn expected(resets: &Resets, own: &Vars, left: &Vars, defaults: &BTreeMap<String, String>) -> Vars {
    let is_default = |name: &str, value: &str| {
        defaults.iter().any(|(known, default)| known.eq_ignore_ascii_case(name) && default == value)
    };
    let mut expected = left.clone();
    for (name, value) in own.iter().filter(|(name, _)| resets.has(name)) {
        // Another value was set after the reset.
        if left.get(name).is_none_or(|now| is_default(name, now)) {
            expected.insert(name.clone(), value.clone());
        }
    }
    expected
}

/// It runs while parameters are set, and stops when it is set to 0.
const TIMEOUT: &str = "statement_timeout";

/// The SQL that takes a connection on which `have` was set to one on which `want` is set; `None`
/// if nothing differs. Values go through `set_config`, so that lists such as `search_path` are read
/// as the server reads them, and no value can end its literal.
pub fn change(have: &Vars, want: &Vars) -> Option<String> {
    let mut sql = String::new();
    // The limit of whoever had the connection is none for what is set for the next one.
    if have.contains_key(TIMEOUT) && have.get(TIMEOUT) != want.get(TIMEOUT) {
        sql.push_str("SET statement_timeout = 0;");
    }
    for name in have.keys().filter(|name| !want.contains_key(*name)) {
        sql.push_str("RESET ");
        sql.push_str(&identifier(name));
        sql.push(';');
    }
    let mut lead = "SELECT ";
    // The encoding comes last: an error about another is told in the one before.
    let (last, first): (Vec<_>, Vec<_>) = want.iter().partition(|(name, _)| *name == ENCODING);
    let all = first.into_iter().chain(last);
    for (name, value) in all.filter(|(name, value)| have.get(*name) != Some(value)) {
        sql.push_str(lead);
        sql.push_str(&format!("pg_catalog.set_config({},{},false)", literal(name), literal(value)));
        lead = ",";
    }
    (!sql.is_empty()).then_some(sql)
}

/// The SQL that asks how the server spells this value, and leaves nothing behind.
pub fn spelling(name: &str, value: &str) -> String {
    format!("SELECT pg_catalog.set_config({},{},true)", literal(name), literal(value))
}

/// Extension settings have a dot in their name; each part is quoted.
fn identifier(name: &str) -> String {
    let parts: Vec<_> = name.split('.').map(|part| format!("\"{}\"", part.replace('"', "\"\""))).collect();
    parts.join(".")
}

/// Quoted so that it is the same whatever `standard_conforming_strings` says.
fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Vars {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn only_what_differs_is_said() {
        let a = vars(&[("application_name", "pay"), ("timezone", "UTC")]);
        assert_eq!(change(&a, &a), None);
        assert_eq!(
            change(&a, &vars(&[("application_name", "it's"), ("search_path", "a, b")])).as_deref(),
            Some(
                "RESET \"timezone\";SELECT pg_catalog.set_config('application_name','it''s',false),\
                 pg_catalog.set_config('search_path','a, b',false)"
            )
        );
    }

    #[test]
    fn what_was_taken_last_is_remembered() {
        let mut taken = Taken::default();
        let set = |n: usize| vars(&[("work_mem", &format!("{n}MB"))]);
        (0..=Taken::MOST).for_each(|n| taken.add(set(n)));
        assert!(!taken.has(&set(0)) && taken.has(&set(1)));
        taken.add(set(0));
        assert!(taken.has(&set(1)) && !taken.has(&set(2)), "what is asked for stays");
        assert_eq!(taken.0.len(), Taken::MOST);
    }

    #[test]
    fn the_limit_of_one_client_ends_before_the_next_ones_parameters_are_set() {
        let short = vars(&[("statement_timeout", "1")]);
        let other = vars(&[("lc_time", "C"), ("statement_timeout", "5s")]);
        let set = "SELECT pg_catalog.set_config('lc_time','C',false),\
                   pg_catalog.set_config('statement_timeout','5s',false)";
        assert_eq!(change(&short, &other), Some(format!("SET statement_timeout = 0;{set}")));
        assert_eq!(change(&Vars::new(), &other).as_deref(), Some(set));
        let reset = "SET statement_timeout = 0;RESET \"statement_timeout\";";
        assert_eq!(change(&short, &Vars::new()).as_deref(), Some(reset));
    }

    #[test]
    fn a_reset_goes_back_to_what_the_client_logged_in_with() {
        let own = vars(&[("search_path", "a"), ("timezone", "UTC"), ("work_mem", "6MB")]);
        let now = vars(&[
            ("datestyle", "German, DMY"),
            ("search_path", "a"),
            ("timezone", "Etc/UTC"),
            ("work_mem", "6MB"),
        ]);
        let defaults = vars(&[("DateStyle", "ISO, MDY"), ("TimeZone", "Etc/UTC")]);
        let after = |resets: &Resets| {
            let left = after_reset(resets, &now, Reported::default());
            let expected = expected(resets, &own, &left, &defaults);
            (left, expected)
        };
        let (left, all) = after(&Resets::all());
        assert_eq!(left, vars(&[("datestyle", "German, DMY"), ("timezone", "Etc/UTC")]));
        let back =
            [("datestyle", "German, DMY"), ("search_path", "a"), ("timezone", "UTC"), ("work_mem", "6MB")];
        assert_eq!(all, vars(&back));
        // Of one parameter: only that one has to be set again.
        let (left, one) = after(&Resets::Of(vec!["work_mem".to_owned()]));
        assert_eq!(change(&left, &one).unwrap(), "SELECT pg_catalog.set_config('work_mem','6MB',false)");
        // What was set after the reset stays, also if nobody reports it.
        let mut but_one = Resets::all();
        but_one.remove("work_mem");
        let (left, others) = after(&but_one);
        assert_eq!(
            (left.get("work_mem"), others.get("work_mem")),
            (now.get("work_mem"), now.get("work_mem"))
        );
        let (_, other) = after(&Resets::Of(vec!["datestyle".to_owned()]));
        assert_eq!(other, now);
    }

    #[test]
    fn a_long_name_and_one_with_a_dot_are_known_by_their_beginning() {
        let resets = Resets::Of(vec!["idle_in_transaction_session_time".to_owned(), "my".to_owned()]);
        assert!(resets.has("idle_in_transaction_session_timeout") && resets.has("my.own"));
        assert!(!resets.has("idle_session_timeout") && !resets.has("mine.own"));
    }

    #[test]
    fn no_value_ends_its_literal() {
        let sql = change(&Vars::new(), &vars(&[("my.\"x", r"\'; drop table t; --")])).unwrap();
        assert_eq!(sql, r#"SELECT pg_catalog.set_config('my."x',E'\\''; drop table t; --',false)"#);
    }
}
