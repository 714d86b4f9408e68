//! `pgleash check`: would it work here? Looks at this machine, then asks the upstream server.
//!
//! What can be tried is tried: it opens connections as the sidecar does, and cancels and terminates a
//! session of its own.

pub(crate) mod client_access;
pub(crate) mod machine;
pub(crate) mod upstream;

use std::fmt;

use pgleash_sidecar::config::Loaded;

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but may not do what you expect.
    Warn,
    /// It does not work.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// How good it is.
    pub verdict: Verdict,
    /// What was looked at.
    pub about: &'static str,
    /// What was found, and what to do if it is not good.
    pub what: String,
}

/// All that was looked at, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing failed.
    pub(crate) fn passed(&self) -> bool {
        self.count(Verdict::Fail) == 0
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    fn ok(&mut self, about: &'static str, what: impl Into<String>) {
        self.add(Verdict::Ok, about, what);
    }

    fn warn(&mut self, about: &'static str, what: impl Into<String>) {
        self.add(Verdict::Warn, about, what);
    }

    fn fail(&mut self, about: &'static str, what: impl Into<String>) {
        self.add(Verdict::Fail, about, what);
    }

    fn add(&mut self, verdict: Verdict, about: &'static str, what: impl Into<String>) {
        self.findings.push(Finding { verdict, about, what: what.into() });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { verdict, about, what } in &self.findings {
            writeln!(f, "{verdict:4}  {about:13}  {what}")?;
        }
        let (warnings, failures) = (self.count(Verdict::Warn), self.count(Verdict::Fail));
        write!(f, "\n{} looked at, {warnings} to mind, {failures} failed", self.findings.len())
    }
}

/// Looks at everything. Takes half a minute at most.
///
/// Dropping the future gives up; sessions it opened on the server end with it.
pub(crate) async fn check(loaded: &Loaded) -> Report {
    let mut report = Report::default();
    machine::look(loaded, &mut report);
    client_access::look(loaded, &mut report);
    upstream::look(&loaded.config, &mut report).await;
    report
}
