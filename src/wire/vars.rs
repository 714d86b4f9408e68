//! Run-time parameters that follow a client from server connection to server connection. Floor 0.

use std::collections::BTreeMap;

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

/// A client's parameters after RESET ALL: those it logged in with, and what it has set since then. The
/// server went back to its own `defaults` (as it spells their names), where the client expects its own.
pub fn after_reset(own: &Vars, reported: &Vars, defaults: &BTreeMap<String, String>) -> Vars {
    let is_default = |name: &str, value: &str| {
        defaults.iter().any(|(known, default)| known.eq_ignore_ascii_case(name) && default == value)
    };
    let set_since = reported.iter().filter(|(name, value)| is_followed(name) && !is_default(name, value));
    own.iter().chain(set_since).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The SQL that takes a connection on which `have` was set to one on which `want` is set; `None`
/// if nothing differs. Values go through `set_config`, so that lists such as `search_path` are read
/// as the server reads them, and no value can end its literal.
pub fn change(have: &Vars, want: &Vars) -> Option<String> {
    let mut sql = String::new();
    for name in have.keys().filter(|name| !want.contains_key(*name)) {
        sql.push_str("RESET ");
        sql.push_str(&identifier(name));
        sql.push(';');
    }
    let mut lead = "SELECT ";
    for (name, value) in want.iter().filter(|(name, value)| have.get(*name) != Some(value)) {
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
    fn a_reset_goes_back_to_what_the_client_logged_in_with() {
        let own = vars(&[("search_path", "a"), ("timezone", "UTC")]);
        let reported = vars(&[("datestyle", "German, DMY"), ("search_path", "a"), ("timezone", "Etc/UTC")]);
        let defaults = vars(&[("DateStyle", "ISO, MDY"), ("TimeZone", "Etc/UTC")]);
        assert_eq!(
            after_reset(&own, &reported, &defaults),
            vars(&[("datestyle", "German, DMY"), ("search_path", "a"), ("timezone", "UTC")])
        );
    }

    #[test]
    fn no_value_ends_its_literal() {
        let sql = change(&Vars::new(), &vars(&[("my.\"x", r"\'; drop table t; --")])).unwrap();
        assert_eq!(sql, r#"SELECT pg_catalog.set_config('my."x',E'\\''; drop table t; --',false)"#);
    }
}
