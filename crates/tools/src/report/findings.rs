//! What follows from a story: who leaked, whether the verdicts were right, what other limits would have done, and
//! what should be set. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgleash_core::{Reason, Suppression};
use serde::Serialize;

use crate::report::history::{Case, Fate, Story};

/// One kind of work, and what it did with its connections.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Holder {
    /// `user@database`.
    pub pool: String,
    /// `application_name`.
    pub app: String,
    /// What the application says that it is doing; empty if it does not say.
    pub route: String,
    /// Checkouts that never came home: taken without a word, left in a transaction by their client, still out.
    pub leaked: usize,
    /// Suspects that came home.
    pub came_home: usize,
    /// For how long those that never came home were idle altogether, in seconds.
    pub stale_seconds: f64,
    /// When the first of them became suspect, since the Unix epoch, in seconds.
    pub first_seconds: f64,
    /// Why, most frequent first.
    pub reasons: Vec<Reason>,
    /// A statement after which one fell idle, without its values; empty if none is known.
    pub statement: String,
}

/// How right the verdicts were: of those that were carried out, and of those that would have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Score {
    /// Verdicts that fell, and of which it is known what came of them.
    pub verdicts: usize,
    /// Of them those whose holder never came back.
    pub right: usize,
    /// Suspects that never came home, whether or not a verdict fell.
    pub leaks: usize,
    /// Of them those that a verdict fell on.
    pub found: usize,
    /// Suspects that came home before a verdict fell.
    pub suspected_early: usize,
}

impl Score {
    /// Share of verdicts that were right; `None` if there were none.
    pub fn precision(self) -> Option<f64> {
        share(self.right, self.verdicts)
    }

    /// Share of known leaks that a verdict fell on; `None` if there were none. A leak that was never suspected is
    /// in no log.
    pub fn recall(self) -> Option<f64> {
        share(self.found, self.leaks)
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts")]
fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// What one limit would have done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// Which: `idle_in_transaction` or `idle_session`.
    pub limit: Reason,
    /// Seconds.
    pub seconds: f64,
    /// Leaks that it would have taken.
    pub leaks: usize,
    /// Healthy checkouts that it would have taken.
    pub healthy: usize,
    /// Whether shorter healthy pauses than this were suspect, and are in the log: otherwise there may be more.
    pub known: Known,
}

/// How much a log knows of the pauses that a limit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// All of them.
    All,
    /// Some: shorter ones were not suspect, and so are not in the log.
    Some,
}

/// A checkout that nobody had leaked, and that was taken or would have been.
#[derive(Clone, Debug, Serialize)]
pub struct Touched {
    /// `user@database`.
    pub pool: String,
    /// Who, in words.
    pub who: String,
    /// Client session.
    pub session: u32,
    /// Of what it was suspected.
    pub reason: Reason,
    /// How long it was idle for altogether, in seconds.
    pub idle_seconds: f64,
    /// The limit that was applied, in seconds.
    pub limit_seconds: f64,
    /// Whether it was done.
    pub done: Done,
}

/// Whether a verdict was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// Its connection was taken.
    Taken,
    /// It would have been.
    WouldHaveBeen,
}

/// All that follows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    /// By how long their leaks were idle for altogether, longest first.
    pub holders: Vec<Holder>,
    /// How right the verdicts were.
    pub score: Score,
    /// Connections that were taken.
    pub taken: usize,
    /// Verdicts that were not carried out, by why.
    pub spared: BTreeMap<&'static str, usize>,
    /// Half of those that were taken had been idle for less, in seconds.
    pub median_idle_at_reclaim_seconds: Option<f64>,
    /// Clients that were turned away.
    pub turned_away: usize,
    /// Statements that were slow; never taken.
    pub slow_statements: usize,
    /// Healthy checkouts that were taken, or would have been.
    pub touched: Vec<Touched>,
    /// What limits would have done.
    pub trials: Vec<Trial>,
}

/// Limits that are tried, in seconds.
const TRIED: [f64; 12] = [5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0];

impl Findings {
    /// What follows from a story.
    pub fn of(story: &Story) -> Self {
        let to = story.span.map_or(Duration::ZERO, |(_, to)| to);
        let idle: Vec<&Case> = story.cases.iter().filter(|case| case.is_idle()).collect();
        let mut taken: Vec<f64> =
            idle.iter().filter(|case| is_taken(case)).map(|case| case.who.idle_seconds).collect();
        taken.sort_by(f64::total_cmp);
        let mut spared = BTreeMap::new();
        for (_, because) in idle.iter().filter(|case| !is_taken(case)).filter_map(|case| case.spared) {
            *spared.entry(Suppression::as_str(because)).or_default() += 1;
        }
        Self {
            holders: holders(&idle, to),
            score: score(&idle, to),
            taken: taken.len(),
            spared,
            median_idle_at_reclaim_seconds: taken.get(taken.len() / 2).copied(),
            turned_away: story.turned_away.values().map(|away| away.clients).sum(),
            slow_statements: story.cases.iter().filter(|case| case.reason == Reason::SlowStatement).count(),
            touched: idle.iter().filter_map(|case| touched(case, to)).collect(),
            trials: [Reason::IdleInTransaction, Reason::IdleSession]
                .into_iter()
                .flat_map(|limit| trials(limit, &idle, to))
                .collect(),
        }
    }

    /// Verdicts that were not carried out because the action is `observe`.
    pub fn observed(&self) -> usize {
        self.spared.get(Suppression::Observe.as_str()).copied().unwrap_or(0)
    }
}

fn is_taken(case: &Case) -> bool {
    matches!(case.fate(), Fate::Taken | Fate::Missed)
}

fn is_leak(case: &Case) -> bool {
    match case.fate() {
        Fate::Taken | Fate::StillOut => true,
        // Who leaves outside of a transaction gives the connection back, whatever it was for.
        Fate::Gone => case.reason != Reason::IdleSession,
        Fate::CameHome | Fate::Missed | Fate::Unknown => false,
    }
}

fn is_healthy(case: &Case) -> bool {
    matches!(case.fate(), Fate::CameHome | Fate::Missed)
}

fn holders(cases: &[&Case], to: Duration) -> Vec<Holder> {
    let mut holders: BTreeMap<_, (Holder, BTreeMap<Reason, usize>)> = BTreeMap::new();
    for case in cases {
        let route = case.who.route.clone().unwrap_or_default();
        let key = (case.pool.clone(), case.who.app.clone(), route);
        let (holder, reasons) = holders.entry(key).or_default();
        holder.came_home += usize::from(is_healthy(case));
        if !is_leak(case) {
            continue;
        }
        if holder.leaked == 0 {
            holder.first_seconds = case.detected.as_secs_f64();
        }
        holder.leaked += 1;
        holder.stale_seconds += case.idle_seconds(to);
        *reasons.entry(case.reason).or_default() += 1;
        if let Some(statement) = &case.who.statement {
            holder.statement.clone_from(statement);
        }
    }
    let mut holders: Vec<Holder> = holders
        .into_iter()
        .map(|((pool, app, route), (holder, reasons))| {
            let mut reasons: Vec<_> = reasons.into_iter().collect();
            reasons.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
            let reasons = reasons.into_iter().map(|(reason, _)| reason).collect();
            Holder { pool, app, route, reasons, ..holder }
        })
        .collect();
    holders.sort_by(|a, b| b.stale_seconds.total_cmp(&a.stale_seconds));
    holders
}

/// A verdict that was right, and has stood for long enough to say so.
pub fn is_proved(case: &Case, to: Duration) -> bool {
    case.was_due() && is_leak(case) && !is_fresh(case, to)
}

/// Its verdict has not stood for as long as it took: the holder may still come back.
fn is_fresh(case: &Case, to: Duration) -> bool {
    let stood = case.spared.map_or(Duration::MAX, |(at, _)| to.saturating_sub(at));
    case.fate() == Fate::StillOut && stood.as_secs_f64() < case.who.limit_seconds
}

fn score(cases: &[&Case], to: Duration) -> Score {
    let mut score = Score::default();
    for case in cases {
        if case.was_due() {
            // Of the others it is not known, or not yet.
            if !is_healthy(case) && (!is_leak(case) || is_fresh(case, to)) {
                continue;
            }
            score.verdicts += 1;
            score.right += usize::from(is_leak(case));
        } else if case.fate() == Fate::CameHome {
            score.suspected_early += 1;
        }
        // One that has just become suspect may come home.
        if is_leak(case) && (case.fate() != Fate::StillOut || case.idle_seconds(to) >= case.who.limit_seconds)
        {
            score.leaks += 1;
            score.found += usize::from(case.was_due());
        }
    }
    score
}

fn touched(case: &Case, to: Duration) -> Option<Touched> {
    (is_healthy(case) && case.was_due()).then(|| Touched {
        pool: case.pool.clone(),
        who: crate::report::timeline::of(&case.who),
        session: case.who.session,
        reason: case.reason,
        idle_seconds: case.idle_seconds(to),
        limit_seconds: case.who.limit_seconds,
        done: if is_taken(case) { Done::Taken } else { Done::WouldHaveBeen },
    })
}

/// From how many seconds on all pauses are in the log: whoever does not know what is usual for an application suspects
/// it after a share of the ceiling, and nobody later but for a learned limit.
pub fn told_from(limit: Reason, cases: &[&Case]) -> f64 {
    let suspected_at = |case: &&Case| match case.who.grounds {
        Some(grounds) => {
            case.who.limit_seconds.max(grounds.ceiling_seconds * pgleash_core::Policy::SUSPECT_SHARE)
        }
        None => case.who.limit_seconds * pgleash_core::Policy::SUSPECT_SHARE,
    };
    cases.iter().filter(|case| case.reason == limit).map(suspected_at).fold(0.0, f64::max)
}

fn trials(limit: Reason, cases: &[&Case], to: Duration) -> Vec<Trial> {
    let of_kind: Vec<_> = cases.iter().filter(|case| case.reason == limit).collect();
    let Some(longest) = of_kind.iter().map(|case| case.idle_seconds(to)).max_by(f64::total_cmp) else {
        return Vec::new();
    };
    let from = told_from(limit, cases);
    let trial = |seconds: f64| Trial {
        limit,
        seconds,
        // One that was taken is one that would not have come back, however long the limit.
        leaks: of_kind
            .iter()
            .filter(|case| case.fate() == Fate::Taken || is_leak(case) && case.idle_seconds(to) > seconds)
            .count(),
        healthy: of_kind.iter().filter(|case| is_healthy(case) && case.idle_seconds(to) > seconds).count(),
        known: if seconds >= from { Known::All } else { Known::Some },
    };
    let in_use: BTreeSet<u64> = of_kind.iter().map(|case| case.who.limit_seconds.to_bits()).collect();
    // The first that is longer than anything that happened is the last of interest.
    let longest = longest.max(from);
    let last = TRIED.into_iter().find(|seconds| *seconds >= longest).unwrap_or(f64::INFINITY);
    let mut tried: Vec<f64> = TRIED.into_iter().filter(|seconds| *seconds <= last).collect();
    if let [one] = in_use.into_iter().collect::<Vec<_>>()[..] {
        tried.push(f64::from_bits(one));
    }
    tried.sort_by(f64::total_cmp);
    tried.dedup();
    tried.into_iter().map(trial).collect()
}
