//! What happened, in order: what happens again and again is told once, with how often and until when. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use pgleash_core::{RecycleOutcome, Resolution, Suppression};

use crate::report::parse::{Fact, Who};

/// Whether clients were hurt, or are about to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// They were not.
    Plain,
    /// They were.
    Grave,
}

/// One thing that happened, once or more often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How bad it is.
    pub weight: Weight,
    /// The first time, since the Unix epoch.
    pub first: Duration,
    /// The last time.
    pub last: Duration,
    /// How often.
    pub times: usize,
    /// What, of the first time.
    pub what: String,
}

/// Everything that happened.
#[derive(Debug, Default)]
pub struct Timeline {
    entries: BTreeMap<String, Entry>,
    /// Kinds of things beyond [`Timeline::MOST`].
    pub untold: usize,
}

impl Timeline {
    /// Kinds of things that are told.
    pub const MOST: usize = 200;

    /// Takes one fact in.
    pub fn note(&mut self, at: Duration, fact: &Fact) {
        let Some((key, what)) = told(fact) else { return };
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.first = entry.first.min(at);
            entry.last = entry.last.max(at);
            entry.times += 1;
        } else {
            let weight = weight_of(fact);
            // What hurt somebody has as much room again.
            let most = if weight == Weight::Grave { Self::MOST * 2 } else { Self::MOST };
            if self.entries.len() >= most {
                self.untold += 1;
                return;
            }
            self.entries.insert(key, Entry { weight, first: at, last: at, times: 1, what });
        }
    }

    /// In order.
    pub fn entries(&self) -> Vec<&Entry> {
        let mut entries: Vec<_> = self.entries.values().collect();
        entries.sort_by(|a, b| (a.first, &a.what).cmp(&(b.first, &b.what)));
        entries
    }
}

fn weight_of(fact: &Fact) -> Weight {
    match fact {
        Fact::ReclaimRegretted { .. } | Fact::CheckoutTimeout { .. } | Fact::ExhaustionForeseen { .. } => {
            Weight::Grave
        }
        _ => Weight::Plain,
    }
}

/// A fact in words; `None` if it is not told.
pub fn said(fact: &Fact) -> Option<String> {
    told(fact).map(|(_, what)| what)
}

/// Under what it is told, and in which words; `None` if it is not.
fn told(fact: &Fact) -> Option<(String, String)> {
    let told = match fact {
        Fact::Started { version, action, .. } => {
            ("started".to_owned(), format!("pgleash {version} starts, leaks.action is {action}"))
        }
        Fact::Draining {} => ("draining".to_owned(), "it is told to stop: enforcement ends".to_owned()),
        Fact::Stopped {} => ("stopped".to_owned(), "it has stopped".to_owned()),
        Fact::Paused {} => ("paused".to_owned(), "paused by a person".to_owned()),
        Fact::Resumed {} => ("resumed".to_owned(), "resumed by a person".to_owned()),
        Fact::HandedOver {} => ("handed over".to_owned(), "another pgleash takes over".to_owned()),
        Fact::Reloaded { changed } => {
            let changed = changed.join(", ");
            (format!("reloaded {changed}"), format!("configuration changed: {changed}"))
        }
        Fact::LeakDetected { pool, reason, who } => (
            key("suspect", pool, who, reason.as_str()),
            format!("suspect in {pool}: {}", evidence(who, reason.as_str())),
        ),
        Fact::LeakResolved { pool, reason, resolution: Resolution::Reclaimed, who, .. } => {
            let what = format!("taken back in {pool}: {}", evidence(who, reason.as_str()));
            (key("taken", pool, who, reason.as_str()), what)
        }
        Fact::ReclaimSuppressed { pool, reason, because, who } => {
            let why = match because {
                Suppression::Observe => "would have been taken back",
                Suppression::Budget => "due, and left alone because the budget is spent",
                Suppression::Moved => "due, and moved just then",
                Suppression::Draining => "due, and left alone because pgleash stops",
                Suppression::Unconfirmed => "due, and left alone because the server does not confirm it",
            };
            let what = format!("{why} in {pool}: {}", evidence(who, reason.as_str()));
            (key(because.as_str(), pool, who, reason.as_str()), what)
        }
        Fact::ReclaimRegretted { pool, after_seconds, who } => {
            let what = format!(
                "a wrong reclaim in {pool}: the holder came back {after_seconds:.1} s later: {}",
                of(who)
            );
            (key("regretted", pool, who, ""), what)
        }
        _ => return of_pool(fact),
    };
    Some(told)
}

fn of_pool(fact: &Fact) -> Option<(String, String)> {
    let (what, pool, told) = match fact {
        Fact::Recycled { pool, backend_pid, outcome: RecycleOutcome::BackendLingers, .. } => {
            ("lingers", pool, format!("backend {backend_pid} of {pool} outlives its connection"))
        }
        Fact::LimitWidened { pool, app, route, limit, from_seconds, to_seconds } => {
            let route = route.as_deref().unwrap_or_default();
            let told = format!(
                "what is usual for {app} in {pool} is wider now: {limit} from {from_seconds:.1} s to {to_seconds:.1} s"
            );
            return Some((format!("widened {pool} {app} {route} {limit}"), told));
        }
        Fact::CheckoutTimeout { pool, diagnosis } => {
            ("timeout", pool, format!("clients are turned away in {pool}: {diagnosis}"))
        }
        Fact::ExhaustionForeseen { pool, in_seconds, stale } => {
            let told = format!(
                "exhaustion of {pool} is foreseen in {in_seconds:.0} s: {stale} stale checkouts, and growing"
            );
            ("foreseen", pool, told)
        }
        Fact::ExhaustionAverted { pool } => {
            ("averted", pool, format!("exhaustion of {pool} is not foreseen any more"))
        }
        Fact::MissingIndexSuspected { pool, table } => {
            let told =
                format!("statements are slow, and {table} is read from end to end: an index may be missing");
            return Some((format!("index {pool} {table}"), told));
        }
        Fact::UpstreamFailed { pool, sqlstate, detail } => {
            ("upstream", pool, format!("the server of {pool} does not answer: {sqlstate} {detail}"))
        }
        Fact::UpstreamRecovered { pool, down_seconds } => {
            ("recovered", pool, format!("the server of {pool} answers again after {down_seconds:.0} s"))
        }
        _ => return None,
    };
    Some((format!("{what} {pool}"), told))
}

fn key(what: &str, pool: &str, who: &Who, reason: &str) -> String {
    format!("{what} {pool} {} {} {reason}", who.app, who.route.as_deref().unwrap_or_default())
}

/// Who it is, as a person would say it.
pub fn of(who: &Who) -> String {
    work(&who.app, who.route.as_deref().unwrap_or_default())
}

/// The same of a kind of work; `route` is empty if it has none.
pub fn work(app: &str, route: &str) -> String {
    let app = named(app);
    if route.is_empty() { app.to_owned() } else { format!("{app}, route {route}") }
}

/// An application's name.
pub fn named(app: &str) -> &str {
    if app.is_empty() { "an application without a name" } else { app }
}

fn evidence(who: &Who, reason: &str) -> String {
    let mut told = format!("{}: {} {:.1} s", of(who), reason.replace('_', " "), who.idle_seconds);
    if let Some(grounds) = &who.grounds {
        let _ = write!(told, ", usual at most {:.1} s", grounds.worst_pause_seconds);
        let later = grounds.later_over + grounds.later_idle;
        if later > 0 {
            let _ = write!(told, ", {} of {later} later ones are over", grounds.later_over);
        }
    }
    if let Some(wait) = who.waits_for {
        let _ = write!(told, ", waits for {wait}");
    }
    if let Some(statement) = &who.statement {
        let _ = write!(told, ", after {statement}");
    }
    told
}
