//! The file of users.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use pgleash_wire::scram::Verifier;
use toml::de::{DeTable, DeValue};

/// The longest file that is read: tens of thousands of users.
const MAX_FILE: u64 = 1 << 20;

/// What is known of each user.
#[derive(Default)]
pub struct Users(HashMap<String, User>);

/// A user of the file.
pub struct User {
    /// What a proof is checked against.
    pub verifier: Verifier,
    /// What to log in to the server with, if the file has it.
    pub password: Option<String>,
}

/// Why a file of users is of no use. Shows no value.
#[derive(Debug)]
pub struct UsersError {
    path: PathBuf,
    /// Line, where there is one, and what is wrong there.
    faults: Vec<(usize, String)>,
}

impl fmt::Display for UsersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "auth.users = {}", self.path.display())?;
        for (line, fault) in &self.faults {
            match line {
                0 => write!(f, ": {fault}")?,
                line => write!(f, "; line {line}: {fault}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for UsersError {}

impl Users {
    /// Reads the file. Each password in it costs thousands of hashes, a millisecond or so: not for the data path.
    /// `secret` is what the salts are made of.
    ///
    /// # Errors
    /// All that is wrong with it, by line.
    pub fn load(path: &Path, secret: &[u8]) -> Result<Self, UsersError> {
        let refuse = |faults| UsersError { path: path.to_owned(), faults };
        let text = bounded(path).map_err(|why| refuse(vec![(0, why)]))?;
        let line = |offset: usize| 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        let (table, errors) = DeTable::parse_recoverable(&text);
        // The library's own words may quote the line.
        let mut faults: Vec<_> = errors
            .iter()
            .map(|error| {
                let at = line(error.span().map_or(0, |span| span.start));
                (
                    at,
                    "not TOML: write name = \"password\", with the name in quotes if it has other signs"
                        .to_owned(),
                )
            })
            .collect();
        let mut users = HashMap::new();
        if faults.is_empty() {
            for (name, value) in table.get_ref() {
                match user(name.get_ref(), value.get_ref(), secret) {
                    Ok(user) => drop(users.insert(name.get_ref().to_string(), user)),
                    Err(fault) => {
                        faults.push((line(name.span().start), format!("{}: {fault}", name.get_ref())))
                    }
                }
            }
        }
        faults.sort();
        if faults.is_empty() { Ok(Self(users)) } else { Err(refuse(faults)) }
    }

    /// The user of this name.
    pub fn get(&self, name: &str) -> Option<&User> {
        self.0.get(name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The passwords that are known, by user.
    pub fn passwords(&self) -> HashMap<String, String> {
        let known = self.0.iter().filter_map(|(name, user)| Some((name.clone(), user.password.clone()?)));
        known.collect()
    }
}

fn bounded(path: &Path) -> Result<String, String> {
    let unread = |error: std::io::Error| format!("it cannot be read: {error}");
    if std::fs::metadata(path).map_err(unread)?.len() > MAX_FILE {
        return Err("it is longer than 1 MiB: use auth.query for so many users".into());
    }
    std::fs::read_to_string(path).map_err(unread)
}

fn user(name: &str, value: &DeValue<'_>, secret: &[u8]) -> Result<User, String> {
    let from_environment;
    let text = match value {
        DeValue::String(text) => text.as_ref(),
        DeValue::Table(table) if table.len() == 1 => {
            let variable = table.get("env").and_then(|value| value.get_ref().as_str());
            let variable = variable.ok_or("write { env = \"VARIABLE\" }")?;
            from_environment = std::env::var(variable)
                .map_err(|_| format!("the variable {variable} is not set, or not UTF-8"))?;
            from_environment.as_str()
        }
        _ => return Err("write a password, a verifier, or { env = \"VARIABLE\" }".into()),
    };
    if Verifier::is_meant(text) {
        let verifier = Verifier::parse(text).ok_or(
            "the verifier is broken: copy rolpassword of pg_authid whole, \
             SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey",
        )?;
        return Ok(User { verifier, password: None });
    }
    if is_md5(text) {
        return Err(
            "MD5 is not offered: set the password anew with password_encryption = 'scram-sha-256'".into()
        );
    }
    if text.is_empty() || text.contains('\0') {
        return Err("the password is empty, or has a zero byte".into());
    }
    Ok(User { verifier: Verifier::of_password(text, secret, name), password: Some(text.to_owned()) })
}

/// As Postgres tells a hash from a password.
fn is_md5(text: &str) -> bool {
    text.strip_prefix("md5")
        .is_some_and(|hash| hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Users, UsersError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.toml");
        std::fs::write(&path, text).unwrap();
        Users::load(&path, b"secret")
    }

    #[test]
    fn a_password_is_kept_for_the_server_and_a_verifier_is_not_one() {
        let verifier = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        let users = load(&format!("app = 'hunter2'\n\"odd name\" = \"{verifier}\"\n")).unwrap();
        assert_eq!(users.get("app").unwrap().verifier, Verifier::of_password("hunter2", b"secret", "app"));
        assert_eq!(users.get("odd name").unwrap().verifier, Verifier::parse(verifier).unwrap());
        assert_eq!(users.passwords(), HashMap::from([("app".to_owned(), "hunter2".to_owned())]));
        assert!(users.get("nobody").is_none());
    }

    #[test]
    fn all_that_is_wrong_is_said_by_line_and_no_password_with_it() {
        let text = "a = \"md5hunter2\"\nb = \"md5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"\n\nc = 17\nd = \"\"\n\
                    e = \"SCRAM-SHA-256$hunter2\"\nf = { env = \"PGLEASH_TEST_NO_SUCH_VARIABLE\" }\ng = { file = \"x\" }\n";
        let said = load(text).err().unwrap().to_string();
        for fault in [
            "line 2: b: MD5",
            "line 4: c:",
            "line 5: d:",
            "line 6: e: the verifier",
            "line 7: f:",
            "line 8: g:",
        ] {
            assert!(said.contains(fault), "{fault}: {said}");
        }
        assert!(!said.contains("line 1") && !said.contains("hunter2"), "{said}");
        for broken in
            ["app = hunter2", "app = \"hunter2", "app hunter2", "= \"hunter2\"", "app = \"\\hunter2\""]
        {
            let said = load(&format!("# users\n{broken}\n")).err().expect(broken).to_string();
            assert!(
                said.contains("line ") && said.contains("not TOML") && !said.contains("hunter2"),
                "{said}"
            );
        }
        assert!(
            Users::load(Path::new("/nowhere/users.toml"), b"")
                .err()
                .unwrap()
                .to_string()
                .contains("cannot be read")
        );
    }
}
