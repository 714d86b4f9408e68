//! Questions to the server about a session's state, and what its answers say.
//!
//! Values come in hexadecimal digits, so that they are read alike under each `client_encoding`. Names are qualified,
//! as are operators, until `search_path` has been read; nothing stays set behind a question.

use std::collections::{BTreeMap, BTreeSet};

use pgleash_core::{Pin, Pins};

use crate::parameters::{Vars, literal};

/// The role that the client has taken.
pub const ROLE: &str = "role";
/// Whom the session is authorized as.
pub const AUTHORIZATION: &str = "session_authorization";

/// What the server says of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Values by name in lower case; without a value a parameter is not known to the server.
    pub values: BTreeMap<String, Option<String>>,
    /// Parameters that are set by the session, of those that the server lists; `None` if it was not asked.
    pub set: Option<BTreeSet<String>>,
    /// What the connection has to be kept for.
    pub there: Pins,
    /// A value could not be read.
    pub unreadable: bool,
}

/// Asks for the values of `names`; with `sources` also for everything that the session has set, of what the server
/// lists; with `pins` for what the connection has to be kept for. `seed` is what `random()` goes on with, if it was seeded.
pub fn question(names: &BTreeSet<String>, sources: bool, pins: bool, seed: Option<f64>) -> String {
    let mut sql = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE;".to_owned();
    let value = |name: &str| {
        format!(
            "pg_catalog.encode(pg_catalog.convert_to(pg_catalog.current_setting({name},true),'UTF8'),'hex')"
        )
    };
    if !names.is_empty() {
        let list: Vec<_> = names.iter().map(|name| format!("({}::pg_catalog.text)", literal(name))).collect();
        sql.push_str(&format!("SELECT 'value',n,{} FROM (VALUES {}) v(n);", value("n"), list.join(",")));
    }
    if sources {
        sql.push_str(&format!(
            "SELECT 'set',s.name,{} FROM pg_catalog.pg_settings s \
             WHERE s.source OPERATOR(pg_catalog.=) 'session'::pg_catalog.text;",
            value("s.name")
        ));
    }
    if pins {
        sql.push_str(&pins_question());
    }
    if let Some(seed) = seed {
        sql.push_str(&format!("SELECT 'seed',pg_catalog.setseed({seed});"));
    }
    sql.push_str("COMMIT");
    sql
}

/// In the order of [`ASKED`].
fn pins_question() -> String {
    "SET LOCAL statement_timeout=0;SET LOCAL search_path=pg_catalog;\
     SELECT 'there',\
     EXISTS(SELECT FROM pg_depend WHERE refclassid=2615 AND refobjid=pg_my_temp_schema() AND pg_my_temp_schema()<>0),\
     EXISTS(SELECT FROM pg_locks WHERE locktype='advisory' AND pid=pg_backend_pid()),\
     EXISTS(SELECT FROM pg_listening_channels()),\
     EXISTS(SELECT FROM pg_cursors WHERE is_holdable),\
     EXISTS(SELECT FROM pg_prepared_statements WHERE from_sql);"
        .to_owned()
}

/// What the columns behind `there` are about.
const ASKED: [Pin; 5] =
    [Pin::TempTable, Pin::AdvisoryLock, Pin::Listen, Pin::HoldableCursor, Pin::SqlPrepare];

/// The question's own transaction has these.
const OF_TRANSACTION: [&str; 3] =
    ["transaction_deferrable", "transaction_isolation", "transaction_read_only"];

impl Seen {
    /// Reads a row of the answer; `column` gives a column's text.
    pub fn row<'a>(&mut self, column: impl Fn(usize) -> Option<&'a str>) {
        match column(0) {
            Some("value") => {
                let value = self.read(column(2));
                self.values.insert(column(1).unwrap_or_default().to_ascii_lowercase(), value);
            }
            Some("set") => {
                let name = column(1).unwrap_or_default().to_ascii_lowercase();
                if OF_TRANSACTION.contains(&name.as_str()) {
                    return;
                }
                let value = self.read(column(2));
                self.values.insert(name.clone(), value);
                self.set.get_or_insert_default().insert(name);
            }
            Some("there") => {
                let there = ASKED.iter().enumerate().filter(|(at, _)| column(at + 1) == Some("t"));
                there.for_each(|(_, pin)| self.there.add(*pin));
            }
            _ => {}
        }
    }

    fn read(&mut self, hex: Option<&str>) -> Option<String> {
        let text = hex.map(|hex| unhex(hex).and_then(|bytes| String::from_utf8(bytes).ok()));
        self.unreadable |= text == Some(None);
        text.flatten()
    }

    /// What a parameter is set to by the session that logged in as `user`; `None` if it is not set.
    pub fn set_to(&self, name: &str, user: &str) -> Option<&str> {
        let value = self.values.get(name)?.as_deref()?;
        let is_set = match name {
            ROLE => value != "none",
            AUTHORIZATION => value != user,
            _ if name.contains('.') => true,
            _ => self.set.as_ref().is_none_or(|set| set.contains(name)),
        };
        is_set.then_some(value)
    }
}

fn unhex(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        hex.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    Some(digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

/// What connections of a pool find set when they are opened, as the server keeps it for role and database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Changes when the settings of the role or of the database change.
    pub key: String,
    /// All that a client may set, by name in lower case.
    pub values: Vars,
    /// Those of them that the role or the database sets.
    pub by_role: BTreeSet<String>,
    /// Whether `search_path` has the temporary schema in it.
    pub makes_temporary: bool,
}

/// Whether a role may log in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// It may, as far as is known.
    #[default]
    Open,
    /// `rolcanlogin` is off.
    NoLogin,
    /// Its password has expired: it may if it needs none.
    Expired,
    /// It may not connect to the database.
    NoConnect,
    /// There is no such role.
    Unknown,
}

/// Asks for [`Defaults::key`] and for the admission of this role.
pub fn defaults_question(user: &str) -> String {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE;\
         SET LOCAL statement_timeout=0;SET LOCAL search_path=pg_catalog;\
         SELECT 'defaults',md5(coalesce((SELECT string_agg(concat_ws('/',s.setdatabase,s.setrole,s.setconfig),',' \
         ORDER BY s.setdatabase,s.setrole) FROM pg_db_role_setting s \
         WHERE s.setdatabase IN (0,d.oid) AND s.setrole IN (0,r.oid)),'')),\
         r.rolcanlogin,coalesce(r.rolvaliduntil<now(),false),\
         d.datallowconn AND has_database_privilege(r.oid,d.oid,'CONNECT') \
         FROM pg_database d LEFT JOIN pg_roles r ON r.rolname={} WHERE d.datname=current_database();COMMIT",
        literal(user)
    )
}

/// The key and the admission in a row of the answer to that.
pub fn defaults_row<'a>(column: impl Fn(usize) -> Option<&'a str>) -> (String, Admission) {
    let admission = match (column(2), column(3), column(4)) {
        (None, ..) => Admission::Unknown,
        (Some("f"), ..) => Admission::NoLogin,
        (_, _, Some("f")) => Admission::NoConnect,
        (_, Some("t"), _) => Admission::Expired,
        _ => Admission::Open,
    };
    (column(1).unwrap_or_default().to_owned(), admission)
}

/// Asks a connection on which nothing is set for [`Defaults::values`].
pub const VALUES_QUESTION: &str = "SELECT name,\
     pg_catalog.encode(pg_catalog.convert_to(pg_catalog.current_setting(name),'UTF8'),'hex'),\
     source IN ('database','user','database user') FROM pg_catalog.pg_settings \
     WHERE context='user' OR context='superuser' AND pg_catalog.current_setting('is_superuser')='on'";

impl Defaults {
    /// Reads a row of the answer to [`VALUES_QUESTION`].
    pub fn row<'a>(&mut self, column: impl Fn(usize) -> Option<&'a str>) {
        let (Some(name), Some(hex)) = (column(0), column(1)) else { return };
        let Some(value) = unhex(hex).and_then(|bytes| String::from_utf8(bytes).ok()) else { return };
        let name = name.to_ascii_lowercase();
        if column(2) == Some("t") {
            self.by_role.insert(name.clone());
        }
        self.makes_temporary |= name == "search_path" && value.contains("pg_temp");
        self.values.insert(name, value);
    }

    /// What a client that found `self` when it logged in expects to be set where `other` are the defaults.
    pub fn missing_in(&self, other: &Defaults) -> Vars {
        let names = self.by_role.union(&other.by_role);
        let differs = |name: &&String| self.values.get(*name) != other.values.get(*name);
        let pairs = names.filter(differs).filter_map(|name| self.values.get_key_value(name));
        pairs.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<'a>(columns: &'a [&'a str]) -> impl Fn(usize) -> Option<&'a str> {
        move |at| columns.get(at).copied().filter(|text| *text != "-")
    }

    #[test]
    fn what_the_server_says_counts() {
        let mut seen = Seen::default();
        seen.row(row(&["value", "work_mem", "384d42"]));
        seen.row(row(&["value", "role", "6e6f6e65"]));
        seen.row(row(&["value", "session_authorization", "6d65"]));
        seen.row(row(&["value", "app.tenant", ""]));
        seen.row(row(&["value", "nothing", "-"]));
        assert_eq!(seen.set_to("work_mem", "me"), Some("8MB"), "without sources what is read is set");
        assert_eq!((seen.set_to("role", "me"), seen.set_to(AUTHORIZATION, "me")), (None, None));
        assert_eq!(seen.set_to(AUTHORIZATION, "you"), Some("me"));
        assert_eq!((seen.set_to("app.tenant", "me"), seen.set_to("nothing", "me")), (Some(""), None));
        seen.row(row(&["set", "DateStyle", "49534f"]));
        assert_eq!(seen.set_to("work_mem", "me"), None, "the session has not set it");
        assert_eq!(seen.set_to("datestyle", "me"), Some("ISO"));
        seen.row(row(&["set", "transaction_isolation", "61"]));
        assert_eq!(seen.set_to("transaction_isolation", "me"), None, "that is the question's own");
        seen.row(row(&["there", "t", "f", "f", "f", "t"]));
        assert_eq!(seen.there, Pins::of(Pin::TempTable).and(Pins::of(Pin::SqlPrepare)));
        assert!(!seen.unreadable);
        seen.row(row(&["value", "x", "ff"]));
        assert!(seen.unreadable);
    }

    #[test]
    fn what_is_missing_is_what_role_or_database_set_otherwise() {
        let of = |pairs: &[(&str, &str, &str)]| {
            let mut defaults = Defaults::default();
            for (name, hex, by_role) in pairs {
                defaults.row(row(&[name, hex, by_role]));
            }
            defaults
        };
        let before = of(&[("DateStyle", "61", "t"), ("work_mem", "31", "f"), ("TimeZone", "7a", "f")]);
        let after = of(&[("DateStyle", "62", "t"), ("work_mem", "32", "t"), ("TimeZone", "79", "f")]);
        let pairs = before.missing_in(&after);
        assert_eq!(pairs.keys().collect::<Vec<_>>(), ["datestyle", "work_mem"], "a reload counts for all");
        assert_eq!(pairs["work_mem"], "1");
        assert!(before.missing_in(&before).is_empty());
    }

    #[test]
    fn a_role_is_admitted_by_its_row() {
        assert_eq!(defaults_row(row(&["defaults", "k", "t", "f", "t"])), ("k".to_owned(), Admission::Open));
        assert_eq!(defaults_row(row(&["defaults", "k", "f", "t", "t"])).1, Admission::NoLogin);
        assert_eq!(defaults_row(row(&["defaults", "k", "t", "t", "t"])).1, Admission::Expired);
        assert_eq!(defaults_row(row(&["defaults", "k", "t", "f", "f"])).1, Admission::NoConnect);
        assert_eq!(defaults_row(row(&["defaults", "k", "-", "f", "-"])).1, Admission::Unknown);
    }
}
