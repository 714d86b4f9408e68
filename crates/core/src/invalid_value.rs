//! Why a value of the configuration is refused.

use std::fmt;

/// Why a key refuses a value. Says nothing of the value itself, which may be secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidValue {
    /// What is wrong with it, to follow its name.
    pub what: String,
    /// What to write instead.
    pub remedy: String,
}

impl InvalidValue {
    /// Says what is wrong, and what to do.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for InvalidValue {
    /// Follows the name of what it is said of.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.remedy)
    }
}
