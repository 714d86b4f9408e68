//! Run-time parameters that follow a client from server connection to server connection.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;

use crate::session_query;

/// The parameter that says in which encoding a client speaks. A connection is opened with UTF-8.
pub const ENCODING: &str = "client_encoding";

/// Parameters by lower-case name.
pub type Vars = BTreeMap<String, String>;

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
pub struct Accepted(VecDeque<Vars>);

impl Accepted {
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

/// It runs while parameters are set, and stops when it is set to 0.
const TIMEOUT: &str = "statement_timeout";

/// These say who the client is to the server; what else is set is set as the role of the login.
const IDENTITY: [&str; 2] = [session_query::AUTHORIZATION, session_query::ROLE];

/// The SQL that takes a connection on which `have` was set to one on which `want` is set; `None`
/// if nothing differs. Values go through `set_config`, so that lists such as `search_path` are read
/// as the server reads them, and no value can end its literal.
pub fn change(have: &Vars, want: &Vars) -> Option<String> {
    if have == want {
        return None;
    }
    let mut sql = String::new();
    // What a statement may do by default counts for these as well.
    let wraps = have.keys().any(|name| name.starts_with("default_transaction_"));
    if wraps {
        sql.push_str("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE;");
    }
    // The limit of whoever had the connection is none for what is set for the next one.
    if have.contains_key(TIMEOUT) && have.get(TIMEOUT) != want.get(TIMEOUT) {
        sql.push_str("SET statement_timeout = 0;");
    }
    for name in IDENTITY.iter().filter(|name| have.contains_key(**name)) {
        sql.push_str(&format!("RESET {};", identifier_of(name)));
    }
    for name in have.keys().filter(|name| !want.contains_key(*name) && !IDENTITY.contains(&name.as_str())) {
        sql.push_str("RESET ");
        sql.push_str(&identifier(name));
        sql.push(';');
    }
    let (who, what): (Vec<_>, Vec<_>) = want.iter().partition(|(name, _)| IDENTITY.contains(&name.as_str()));
    // The encoding comes last: an error about another is told in the one before.
    let (last, first): (Vec<_>, Vec<_>) = what.into_iter().partition(|(name, _)| *name == ENCODING);
    let differ = first.into_iter().chain(last).filter(|(name, value)| have.get(*name) != Some(value));
    let who = IDENTITY.iter().filter_map(|name| who.iter().find(|(known, _)| known == name));
    let mut lead = "SELECT ";
    for (name, value) in differ.chain(who.copied()) {
        sql.push_str(lead);
        sql.push_str(&format!("pg_catalog.set_config({},{},false)", literal(name), literal(value)));
        lead = ",";
    }
    if wraps {
        sql.push_str(if lead == "," { ";COMMIT" } else { "COMMIT" });
    }
    Some(sql)
}

fn identifier_of(name: &str) -> &str {
    if name == session_query::AUTHORIZATION { "SESSION AUTHORIZATION" } else { "ROLE" }
}

/// The SQL that sets a parameter to `value` if it is at its default; until the transaction is over, if `is_local`.
pub fn set_back(name: &str, value: &str, default: &str, is_local: bool) -> String {
    let (name, value, default) = (literal(name), literal(value), literal(default));
    format!(
        "SELECT pg_catalog.set_config({name},{value},{is_local}) \
         WHERE pg_catalog.current_setting({name},true) OPERATOR(pg_catalog.=) {default}::pg_catalog.text;"
    )
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
pub fn literal(value: &str) -> String {
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
        let mut taken = Accepted::default();
        let set = |n: usize| vars(&[("work_mem", &format!("{n}MB"))]);
        (0..=Accepted::MOST).for_each(|n| taken.add(set(n)));
        assert!(!taken.has(&set(0)) && taken.has(&set(1)));
        taken.add(set(0));
        assert!(taken.has(&set(1)) && !taken.has(&set(2)), "what is asked for stays");
        assert_eq!(taken.0.len(), Accepted::MOST);
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
    fn who_the_client_is_is_said_last_and_taken_back_first() {
        let joe = vars(&[("app.tenant", "4"), ("role", "joe"), ("session_authorization", "ann")]);
        let set = "SELECT pg_catalog.set_config('app.tenant','4',false),\
                   pg_catalog.set_config('session_authorization','ann',false),\
                   pg_catalog.set_config('role','joe',false)";
        assert_eq!(change(&Vars::new(), &joe).as_deref(), Some(set));
        let reset = "RESET SESSION AUTHORIZATION;RESET ROLE;";
        assert_eq!(change(&joe, &Vars::new()), Some(format!("{reset}RESET \"app\".\"tenant\";")));
        // What is set beside a role is set without it.
        let more = vars(&[("role", "joe"), ("work_mem", "9MB")]);
        let again = "RESET ROLE;SELECT pg_catalog.set_config('work_mem','9MB',false),\
                     pg_catalog.set_config('role','joe',false)";
        assert_eq!(change(&vars(&[("role", "joe")]), &more).as_deref(), Some(again));
    }

    #[test]
    fn what_is_set_does_not_wait_for_a_safe_snapshot() {
        let slow = vars(&[("default_transaction_deferrable", "on"), ("work_mem", "9MB")]);
        let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE;";
        let reset = "RESET \"default_transaction_deferrable\";RESET \"work_mem\";";
        assert_eq!(change(&slow, &Vars::new()), Some(format!("{begin}{reset}COMMIT")));
        let other = vars(&[("work_mem", "9MB"), ("lc_time", "C")]);
        let sql = change(&slow, &other).unwrap();
        assert!(sql.starts_with(begin) && sql.ends_with(",false);COMMIT"), "{sql}");
    }

    #[test]
    fn no_value_ends_its_literal() {
        let sql = change(&Vars::new(), &vars(&[("my.\"x", r"\'; drop table t; --")])).unwrap();
        assert_eq!(sql, r#"SELECT pg_catalog.set_config('my."x',E'\\''; drop table t; --',false)"#);
    }
}
