//! What pgleash said of a run, held against what the drill did. Pure.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use pgleash_core::{Action, Reason};
use serde::Serialize;

use crate::drill::app::{Cut, Planted};
use crate::drill::scenario::{Leak, Limits, Route};
use crate::drill::schema::Books;
use crate::drill::stats::Spread;
use crate::drill::subprocess::EventLine;
use crate::drill::workload::Kind;
use crate::report::layout::counted;

/// An event of the run, at a time since its beginning.
pub type TimedEvent = (Duration, EventLine);

/// What became of the leaks, and of everybody else.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Leaks {
    /// Connections that the bug forgot.
    pub planted: usize,
    /// Of these, how many pgleash named as leaks.
    pub found: usize,
    /// Of these, how many it took back.
    pub reclaimed: usize,
    /// Of the found ones, how many it first named with another reason than the true one.
    pub wrong_reason: usize,
    /// Sessions of leaks that it did not find, or, when it reclaims, did not take back.
    pub missed: Vec<Missed>,
    /// Sessions that were taken from a healthy holder.
    pub healthy_killed: Vec<Killed>,
    /// Statements that ran for longer than a limit, which is no leak, and were told.
    pub slow_statements: usize,
    /// Healthy sessions that were suspected, and came home unharmed.
    pub suspects_came_home: usize,
    /// Holders that came back after their connection was taken.
    pub regrets: usize,
    /// Reclaims that were put off, by why.
    pub suppressed: BTreeMap<String, usize>,
    /// Whom pgleash names first as the cause; `None` if nobody leaked, as far as it knows.
    pub named_first: Option<Named>,
    /// From the moment at which a connection was forgotten.
    pub delays: Vec<Delay>,
}

/// Who is named as a cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    /// `application_name`.
    pub app: String,
    /// What it says that it is doing.
    pub route: String,
}

/// A leak that the watchdog missed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Missed {
    /// pgleash's session number.
    pub session: u32,
    /// How it was leaked.
    pub leak: Leak,
    /// When, in seconds of the run.
    pub planted_seconds: f64,
    /// It was found, but not taken back.
    pub found: bool,
}

/// A healthy checkout that the watchdog took back.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Killed {
    /// pgleash's session number.
    pub session: u32,
    /// What pgleash gave as the reason; empty if only the client noticed.
    pub reason: String,
    /// How long pgleash saw it idle, and the limit it applied, seconds.
    pub idle_and_limit_seconds: Option<(f64, f64)>,
}

/// How fast leaks of one kind were met.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delay {
    /// The kind.
    pub leak: Leak,
    /// The idle limit that pgleash was given for it.
    pub limit_seconds: f64,
    /// Until pgleash named it; due at half the limit.
    pub to_detection: Option<Spread>,
    /// Until the service was told; due at the limit.
    pub to_reclaim: Option<Spread>,
}

/// Holds the events, and what the service's connections were told, against the leaks that were planted.
pub fn judge(
    action: Action,
    limits: &Limits,
    planted: &[Planted],
    cuts: &[Cut],
    events: &[TimedEvent],
) -> Leaks {
    let truth: HashMap<u32, &Planted> = planted.iter().map(|leak| (leak.session, leak)).collect();
    let told = Told::from(events);
    let mut taken = told.reclaimed.clone();
    for cut in cuts {
        taken.entry(cut.session).or_insert(cut.at);
    }
    let found = planted.iter().filter(|leak| told.detected.contains_key(&leak.session));
    let reclaimed = planted.iter().filter(|leak| told.reclaimed.contains_key(&leak.session));
    let wrong = found.clone().filter(|leak| told.detected[&leak.session].1 != leak.leak.reason().as_str());
    let missed = planted.iter().filter(|leak| match action {
        Action::Observe => !told.detected.contains_key(&leak.session),
        Action::Reclaim => !told.reclaimed.contains_key(&leak.session),
    });
    let healthy = |session: &u32| !truth.contains_key(session);
    Leaks {
        planted: planted.len(),
        found: found.count(),
        reclaimed: reclaimed.count(),
        wrong_reason: wrong.count(),
        missed: missed.map(|leak| told.missed(leak)).collect(),
        healthy_killed: taken
            .keys()
            .filter(|session| healthy(session))
            .map(|session| told.killed(*session))
            .collect(),
        slow_statements: events.iter().filter(|(_, line)| is_slow(line)).count(),
        suspects_came_home: told.came_home.iter().filter(|session| healthy(session)).count(),
        regrets: events.iter().filter(|(_, line)| line.event == "reclaim_regretted").count(),
        suppressed: told.suppressed.clone(),
        named_first: None,
        delays: [Leak::MidTransaction, Leak::AfterCommit]
            .into_iter()
            .filter(|kind| planted.iter().any(|leak| leak.leak == *kind))
            .map(|kind| delay(kind, limits, planted, &told.detected, &taken))
            .collect(),
    }
}

fn is_slow(line: &EventLine) -> bool {
    line.event == "leak_detected" && line.reason.as_deref() == Some(Reason::SlowStatement.as_str())
}

fn delay(
    kind: Leak,
    limits: &Limits,
    planted: &[Planted],
    detected: &BTreeMap<u32, (Duration, String)>,
    taken: &BTreeMap<u32, Duration>,
) -> Delay {
    let leaks = || planted.iter().filter(move |leak| leak.leak == kind);
    let since = |leak: &Planted, at: Duration| at.saturating_sub(leak.at);
    Delay {
        leak: kind,
        limit_seconds: limits.of(kind).as_secs_f64(),
        to_detection: Spread::of(
            leaks().filter_map(|leak| detected.get(&leak.session).map(|(at, _)| since(leak, *at))),
        ),
        to_reclaim: Spread::of(
            leaks().filter_map(|leak| taken.get(&leak.session).map(|at| since(leak, *at))),
        ),
    }
}

/// What pgleash told, by session.
#[derive(Default)]
struct Told<'a> {
    detected: BTreeMap<u32, (Duration, String)>,
    reclaimed: BTreeMap<u32, Duration>,
    came_home: BTreeSet<u32>,
    suppressed: BTreeMap<String, usize>,
    acts: HashMap<u32, &'a EventLine>,
}

impl<'a> Told<'a> {
    fn from(events: &'a [TimedEvent]) -> Self {
        let mut told = Told::default();
        for (at, line) in events {
            let Some(session) = line.session else { continue };
            match (line.event.as_str(), line.resolution.as_deref()) {
                ("leak_detected", _) => {
                    let reason = line.reason.clone().unwrap_or_default();
                    told.detected.entry(session).or_insert((*at, reason));
                }
                ("leak_resolved", Some("reclaimed")) => {
                    told.reclaimed.entry(session).or_insert(*at);
                    told.acts.insert(session, line);
                }
                // A holder that carried on, or said goodbye, was none that had forgotten.
                ("leak_resolved", Some("returned" | "disconnected")) => {
                    told.came_home.insert(session);
                }
                ("reclaim_suppressed", _) => {
                    *told.suppressed.entry(line.because.clone().unwrap_or_default()).or_default() += 1;
                }
                _ => {}
            }
        }
        told
    }

    fn missed(&self, leak: &Planted) -> Missed {
        Missed {
            session: leak.session,
            leak: leak.leak,
            planted_seconds: leak.at.as_secs_f64(),
            found: self.detected.contains_key(&leak.session),
        }
    }

    fn killed(&self, session: u32) -> Killed {
        let act = self.acts.get(&session);
        Killed {
            session,
            reason: act.and_then(|act| act.reason.clone()).unwrap_or_default(),
            idle_and_limit_seconds: act.and_then(|act| Some((act.idle_seconds?, act.limit_seconds?))),
        }
    }
}

/// The books against what the service was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// What the database has.
    #[serde(flatten)]
    pub books: Books,
    /// Payments that the service was told are committed.
    pub acknowledged: u64,
    /// Commits that were sent and not answered: they may be booked or not.
    pub in_doubt: u64,
}

impl Audit {
    /// Whether no acknowledged payment is missing, no unacknowledged one is booked, and the sums agree: a
    /// transaction that was taken back left nothing behind.
    pub fn balances(&self) -> bool {
        let booked = self.acknowledged..=self.acknowledged + self.in_doubt;
        self.books.sums_agree && booked.contains(&self.books.payments)
    }
}

/// One way in which the watchdog failed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failing {
    /// Leaks were not found, or not taken back.
    Missed {
        /// The run.
        run: &'static str,
        /// How many.
        leaks: usize,
    },
    /// Healthy checkouts were taken back.
    HealthyKilled {
        /// The run.
        run: &'static str,
        /// How many.
        checkouts: usize,
    },
    /// Holders came back after their connection was taken.
    Regretted {
        /// The run.
        run: &'static str,
        /// How many.
        reclaims: usize,
    },
    /// Somebody else than the planted route was named first.
    Misnamed {
        /// The run.
        run: &'static str,
        /// Who; `None` if nobody was.
        named: Option<Named>,
    },
    /// The bug forgot nothing, so nothing was proved.
    NothingPlanted {
        /// The run.
        run: &'static str,
    },
    /// Money appeared or disappeared.
    BooksDoNotBalance {
        /// The run.
        run: &'static str,
    },
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missed { run, leaks } => {
                write!(f, "the watchdog missed {} ({run})", counted(*leaks, "leak"))
            }
            Self::HealthyKilled { run, checkouts } => {
                write!(f, "the watchdog killed {} ({run})", counted(*checkouts, "healthy checkout"))
            }
            Self::Regretted { run, reclaims } => {
                write!(f, "{} regretted ({run})", counted(*reclaims, "reclaim"))
            }
            Self::Misnamed { run, named: Some(Named { app, route }) } => {
                write!(f, "the watchdog named {app}, route \"{route}\", and not {} ({run})", Route::Refund)
            }
            Self::Misnamed { run, named: None } => write!(f, "the watchdog named nobody ({run})"),
            Self::NothingPlanted { run } => {
                write!(f, "no leak was planted ({run}): play it longer, or at a higher rate")
            }
            Self::BooksDoNotBalance { run } => write!(f, "the books do not balance ({run})"),
        }
    }
}

/// Whether the watchdog did its work: it missed no leak, killed no healthy checkout, and no money was lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Verdict {
    /// What it did wrong; empty if it passed.
    pub failings: Vec<Failing>,
    /// Leaks of all runs.
    pub planted: usize,
}

impl Verdict {
    /// Nothing was wrong.
    pub fn passed(&self) -> bool {
        self.failings.is_empty()
    }

    /// Adds what was wrong in one run.
    pub fn weigh(&mut self, run: &'static str, kind: Kind, leaks: &Leaks, audit: &Audit) {
        self.planted += leaks.planted;
        if !leaks.missed.is_empty() {
            self.failings.push(Failing::Missed { run, leaks: leaks.missed.len() });
        }
        if !leaks.healthy_killed.is_empty() {
            self.failings.push(Failing::HealthyKilled { run, checkouts: leaks.healthy_killed.len() });
        }
        if leaks.regrets > 0 {
            self.failings.push(Failing::Regretted { run, reclaims: leaks.regrets });
        }
        if leaks.planted == 0 && kind.has_bug() {
            self.failings.push(Failing::NothingPlanted { run });
        }
        let named = leaks.named_first.as_ref();
        if leaks.planted > 0 && named.is_none_or(|named| named.route != Route::Refund.as_str()) {
            self.failings.push(Failing::Misnamed { run, named: named.cloned() });
        }
        if !audit.balances() {
            self.failings.push(Failing::BooksDoNotBalance { run });
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.passed() {
            return f.write_str(match self.planted {
                0 => "PASSED: nothing leaked, and nothing was taken back",
                _ => {
                    "PASSED: every leak was found, taken back and named, and no healthy checkout was touched"
                }
            });
        }
        let failings: Vec<_> = self.failings.iter().map(Failing::to_string).collect();
        write!(f, "FAILED: {}", failings.join("; "))
    }
}
