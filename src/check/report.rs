//! What was found, for a person in lines and for a script in JSON.

use std::fmt;

use serde::Serialize;

use crate::check::next::Given;

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// It works, but may not do what you expect.
    Warning,
    /// It does not work.
    Failed,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Ok => "ok",
            Level::Warning => "warn",
            Level::Failed => "fail",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    level: Level,
    /// What was looked at.
    about: &'static str,
    /// What was found.
    what: String,
    /// What to do if it is not good.
    #[serde(rename = "do")]
    todo: Option<String>,
    /// What to type for that, if one command does it.
    #[serde(skip)]
    command: Option<String>,
}

impl Finding {
    /// Notes the command that mends it, or that shows more of it.
    pub(super) fn by(&mut self, command: impl Into<String>) {
        self.command = Some(command.into());
    }
}

/// All that was looked at, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    findings: Vec<Finding>,
    next: String,
}

impl Report {
    /// Whether nothing failed.
    pub(crate) fn passed(&self) -> bool {
        self.count(Level::Failed) == 0
    }

    /// One object: whether it passed, the findings, and the next command.
    pub(crate) fn json(&self) -> String {
        let shape = serde_json::json!({
            "passed": self.passed(),
            "findings": self.findings,
            "next": self.next,
        });
        shape.to_string()
    }

    /// Settles on the next command: the one that mends the first thing that failed, then that for the first
    /// warning, then the one that starts pgleash.
    pub(super) fn conclude(&mut self, given: &Given) {
        let command = |level| {
            let mut bad = self.findings.iter().filter(move |finding| finding.level == level);
            bad.find_map(|finding| finding.command.clone())
        };
        self.next = match (command(Level::Failed), self.passed()) {
            (Some(command), _) => command,
            (None, false) => given.again(),
            (None, true) => command(Level::Warning).unwrap_or_else(|| given.start()),
        };
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    pub(super) fn ok(&mut self, about: &'static str, what: impl Into<String>) {
        self.add(Level::Ok, about, what.into(), None);
    }

    pub(super) fn warn(
        &mut self,
        about: &'static str,
        what: impl Into<String>,
        todo: impl Into<String>,
    ) -> &mut Finding {
        self.add(Level::Warning, about, what.into(), Some(todo.into()))
    }

    pub(super) fn fail(
        &mut self,
        about: &'static str,
        what: impl Into<String>,
        todo: impl Into<String>,
    ) -> &mut Finding {
        self.add(Level::Failed, about, what.into(), Some(todo.into()))
    }

    /// Something failed that says itself what to do, or of which nobody knows it.
    pub(super) fn fail_plainly(&mut self, about: &'static str, trouble: impl Into<Trouble>) {
        let Trouble { what, todo } = trouble.into();
        self.add(Level::Failed, about, what, todo.map(str::to_owned));
    }

    /// Notes the command that shows more of the last finding.
    pub(super) fn by(&mut self, command: impl Into<String>) {
        if let Some(last) = self.findings.last_mut() {
            last.by(command);
        }
    }

    fn add(&mut self, level: Level, about: &'static str, what: String, todo: Option<String>) -> &mut Finding {
        self.findings.push(Finding { level, about, what, todo, command: None });
        let Some(added) = self.findings.last_mut() else { unreachable!("it was added") };
        added
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { level, about, what, todo, .. } in &self.findings {
            write!(f, "{level:4}  {about:11}  {what}")?;
            match todo {
                Some(todo) => writeln!(f, ". To do: {todo}")?,
                None => writeln!(f)?,
            }
        }
        let (warnings, failures) = (self.count(Level::Warning), self.count(Level::Failed));
        write!(f, "Warnings: {warnings}, failures: {failures}. Next: {}", self.next)
    }
}

/// Why something could not be done, and what to do about it if that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// What went wrong.
    pub what: String,
    /// What to do.
    pub todo: Option<&'static str>,
}

impl From<String> for Trouble {
    fn from(what: String) -> Self {
        Trouble { what, todo: None }
    }
}
