//! What is wrong with a configuration, said all at once.

use std::fmt;
use std::path::PathBuf;

use pgleash_core::InvalidValue;

use crate::config::field::Given;
use crate::config::keys::Key;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of a configuration file; line 0 is the file as a whole.
    File {
        /// As it was named.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// An environment variable, by name.
    Env(String),
    /// A flag as it is typed, without its value.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line: 0 } => path.display().fmt(f),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Env(name) => f.write_str(name),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub origin: Origin,
    /// The key, dotted; empty when no key is at fault.
    pub key: String,
    /// The value, where it can be shown.
    pub value: Option<String>,
    /// What is wrong with it.
    pub what: String,
    /// What would be right.
    pub allowed: Option<String>,
    /// What to do.
    pub remedy: String,
}

impl Problem {
    /// Something that no key is to blame for.
    pub(super) fn at(origin: Origin, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            origin,
            key: String::new(),
            value: None,
            what: what.into(),
            allowed: None,
            remedy: remedy.into(),
        }
    }

    /// A value that its key refuses.
    pub(super) fn of_value(key: &Key, given: &Given, origin: Origin, fault: InvalidValue) -> Self {
        let remedy = match key.default {
            Some(default) => format!("{}, or remove it for the default, {default}", fault.remedy),
            None => fault.remedy,
        };
        Self {
            origin,
            key: key.name.into(),
            value: (!key.secret).then(|| given.shown()),
            what: fault.what,
            allowed: Some(key.allowed()),
            remedy,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = Vec::new();
        if self.origin != Origin::Default {
            said.push(format!("{}:", self.origin));
        }
        if !self.key.is_empty() {
            said.push(self.key.clone());
        }
        if let Some(value) = &self.value {
            said.push(format!("= {value}:"));
        }
        writeln!(f, "{} {}", said.join(" "), self.what)?;
        if let Some(allowed) = &self.allowed {
            writeln!(f, "    allowed: {allowed}")?;
        }
        write!(f, "    to do:   {}", self.remedy)
    }
}

/// Everything that is wrong; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub(super) Vec<Problem>);

impl Problems {
    /// Each problem, by layer.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "the configuration has an error:")?,
            count => writeln!(f, "the configuration has {count} errors:")?,
        }
        for problem in &self.0 {
            writeln!(f, "\n{problem}")?;
        }
        write!(f, "\n`pgleash run --help` lists every key.")
    }
}

impl std::error::Error for Problems {}
