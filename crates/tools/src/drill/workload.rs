//! Which workload is played: those of the trace bench, on a real server. Pure.

use pgleash_core::string_enum;

use crate::drill::scenario::Phase;

string_enum! {
    /// What the payments service, and others beside it, do.
    Kind {
        /// A release leaks, a campaign brings 40 % more payments, an index is dropped.
        Incident => "incident",
        /// A quiet day on which the release leaks a little.
        Steady => "steady",
        /// The campaign and the dropped index, statements that run for longer than any limit on idleness, and no bug.
        SlowQueries => "slow-queries",
        /// A quiet day with a bug, and a nightly batch in one transaction as long as the run.
        Batch => "batch",
        /// A quiet day with a bug, and a provider who thinks for long.
        ThinkTime => "think-time",
        /// An application whose own pool keeps connections and uses each now and then; no bug.
        InAppPool => "in-app-pool",
        /// Four crowds of clients who all connect at once; no bug.
        Storm => "storm",
        /// A quiet day with a bug, and jobs that all begin at the full minute.
        Cron => "cron",
        /// Now and then a long statement keeps a row locked, and everybody waits for it; no bug.
        LockConvoy => "lock-convoy",
    }
}

impl Kind {
    /// The share of the incident's leaks that the bug plants.
    pub const fn leaks(self) -> f64 {
        match self {
            Kind::Incident => 1.0,
            Kind::Steady | Kind::Batch | Kind::ThinkTime | Kind::Cron => 0.4,
            Kind::SlowQueries | Kind::InAppPool | Kind::Storm | Kind::LockConvoy => 0.0,
        }
    }

    /// The release has the bug.
    pub fn has_bug(self) -> bool {
        self.leaks() > 0.0
    }

    /// Whether there is a campaign, and an index goes.
    pub const fn has_campaign(self) -> bool {
        matches!(self, Kind::Incident | Kind::SlowQueries)
    }

    /// The phases that are marked, but for the first.
    pub fn marks(self) -> &'static [Phase] {
        match self {
            Kind::Incident => &[Phase::Deploy, Phase::Spike, Phase::Index],
            Kind::SlowQueries => &[Phase::Spike, Phase::Index],
            Kind::Steady | Kind::Batch | Kind::ThinkTime | Kind::Cron => &[Phase::Deploy],
            Kind::InAppPool | Kind::Storm | Kind::LockConvoy => &[],
        }
    }

    /// The phase of a scenario minute.
    pub fn phase(self, minute: f64) -> Phase {
        let begun = self.marks().iter().rev().find(|phase| minute >= phase.begins());
        begun.copied().unwrap_or(Phase::Baseline)
    }

    /// In a sentence.
    pub const fn said(self) -> &'static str {
        match self {
            Kind::Incident => "a release that leaks, a campaign with 40 % more payments, a dropped index",
            Kind::Steady => "a quiet day on which the release leaks a little",
            Kind::SlowQueries => "a campaign, a dropped index, statements that run for long, and no leak",
            Kind::Batch => "a release that leaks, and a batch in one transaction as long as the run",
            Kind::ThinkTime => "a release that leaks, and a provider who thinks for long",
            Kind::InAppPool => "an application's own pool that keeps connections idle, and no leak",
            Kind::Storm => "crowds of clients who connect at once, and no leak",
            Kind::Cron => "a release that leaks, and jobs that all begin at the full minute",
            Kind::LockConvoy => "long statements that keep a row locked while everybody waits, and no leak",
        }
    }

    /// By its name.
    ///
    /// # Errors
    /// There is none of that name: the names there are.
    pub fn named(text: &str) -> Result<Self, String> {
        let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        let kind = Kind::ALL.iter().find(|kind| kind.as_str() == text);
        kind.copied().ok_or_else(|| format!("must be one of {}", names.join(", ")))
    }
}
