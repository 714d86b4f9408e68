//! What should be set, and why. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::event::{Reason, Suppression};

use super::findings::{Findings, told_from};
use super::story::{Case, Fate, Story};

/// One suggestion.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Advice {
    /// `key = value`, as in the configuration; empty if none needs to change.
    pub setting: String,
    /// Why.
    pub because: String,
}

impl Advice {
    fn new(setting: String, because: String) -> Self {
        Self { setting, because }
    }
}

/// Healthy pauses may be longer than the longest that was seen: so many times.
const MARGIN: f64 = 1.5;
/// Groups that get a rule of their own. More are better served by a longer limit.
const MOST_RULES: usize = 3;
/// Verdicts from which on it is said that they can be relied upon.
const ENOUGH: usize = 10;

/// What follows for the configuration.
pub fn advise(story: &Story, findings: &Findings) -> Vec<Advice> {
    let to = story.span.map_or(Duration::ZERO, |(_, to)| to);
    let cases: Vec<&Case> = story.cases.iter().filter(|case| case.is_idle()).collect();
    let mut advice = Vec::new();
    for limit in [Reason::IdleInTransaction, Reason::IdleSession] {
        advice.extend(longer(limit, &cases, to));
        advice.extend(shorter(limit, &cases, to));
    }
    advice.extend(budget(story, &cases));
    advice.extend(action(story, findings));
    advice
}

/// Verdicts were wrong: whose pauses are longer than they may be.
fn longer(limit: Reason, cases: &[&Case], to: Duration) -> Vec<Advice> {
    let mut longest: BTreeMap<(&str, Option<&str>), f64> = BTreeMap::new();
    let wrong = |case: &&&Case| {
        case.reason == limit && case.was_due() && matches!(case.fate(), Fate::CameHome | Fate::Missed)
    };
    for case in cases.iter().filter(wrong) {
        let key = (case.who.app.as_str(), case.who.route.as_deref());
        let pause = longest.entry(key).or_default();
        *pause = pause.max(case.idle_seconds(to));
    }
    if longest.len() > MOST_RULES {
        let pause = longest.values().fold(0.0, |a: f64, b| a.max(*b));
        let because = format!(
            "{} kinds of work paused for longer than they may and went on, for {pause:.0} s at most",
            longest.len()
        );
        return vec![Advice::new(format!("leaks.{limit} = \"{}s\"", round_up(pause * MARGIN)), because)];
    }
    let rule = |((app, route), pause): ((&str, Option<&str>), f64)| {
        let who = match route {
            Some(route) => format!("route={}", pattern(route)),
            // Of every release.
            None => match app.split_once('@') {
                Some((service, _)) => format!("app={}@*", pattern(service)),
                None => format!("app={}", pattern(app)),
            },
        };
        let name = if app.is_empty() { "an application without a name" } else { app };
        let because = format!("{name} paused for {pause:.0} s and went on: it was no leak");
        Advice::new(format!("leaks.rules = \"{who} {}s\"", round_up(pause * MARGIN)), because)
    };
    longest.into_iter().map(rule).collect()
}

/// No verdict was wrong, and leaks were held for much longer than anything healthy.
fn shorter(limit: Reason, cases: &[&Case], to: Duration) -> Option<Advice> {
    let of_kind = || cases.iter().filter(|case| case.reason == limit);
    let healthy = |case: &&&Case| matches!(case.fate(), Fate::CameHome | Fate::Missed);
    let right = of_kind().filter(|case| case.was_due() && !healthy(case)).count();
    if right < ENOUGH || of_kind().any(|case| case.was_due() && healthy(&case)) {
        return None;
    }
    let ceiling = of_kind()
        .map(|case| case.who.grounds.map_or(case.who.limit_seconds, |grounds| grounds.ceiling_seconds))
        .fold(0.0, f64::max);
    let worst = of_kind()
        .filter(healthy)
        .map(|case| case.idle_seconds(to))
        .chain(of_kind().filter_map(|case| Some(case.who.grounds?.worst_pause_seconds)))
        .fold(0.0, f64::max);
    // Shorter pauses than these are not in the log: nothing is known of them.
    let least = told_from(limit, cases).max(worst * 2.0).max(5.0);
    let to = round_up(least);
    #[allow(clippy::cast_precision_loss, reason = "seconds")]
    let worth = (to as f64) <= ceiling * 0.67;
    worth.then(|| {
        let because = format!(
            "{right} verdicts were right and none wrong; no healthy pause was longer than {:.1} s, and leaks may be held \
             for {ceiling:.0} s",
            worst.max(0.1)
        );
        Advice::new(format!("leaks.{limit} = \"{to}s\""), because)
    })
}

/// More was due than the budget allows.
fn budget(story: &Story, cases: &[&Case]) -> Option<Advice> {
    let limits = story.limits?;
    let short = cases.iter().filter(|case| {
        matches!(case.spared, Some((_, Suppression::Budget))) && case.fate() != Fate::CameHome
    });
    let short = short.count();
    if short == 0 {
        return None;
    }
    // As much as was due within one of its times at most, in the largest pool.
    let mut due: Vec<Duration> =
        cases.iter().filter_map(|case| case.spared.map(|(at, _)| at).or(taken_at(case))).collect();
    due.sort();
    let within = Duration::from_secs_f64(limits.budget_seconds.clamp(1.0, 86_400.0));
    let most = due
        .iter()
        .enumerate()
        .map(|(place, at)| due[place..].partition_point(|later| *later <= *at + within))
        .max()?;
    let size = story.pools.values().copied().max()?.max(1);
    let percent = (most * 100).div_ceil(size).min(100);
    let because = format!(
        "{short} leaks were left alone because {:.0} % of a pool was all that might be taken within {:.0} s; {most} were due \
         within such a time",
        limits.budget_share * 100.0,
        limits.budget_seconds
    );
    Some(Advice::new(format!("leaks.budget = \"{percent}%/{:.0}s\"", limits.budget_seconds), because))
}

/// As a rule can say it: commas and semicolons have a meaning there, and a quote would end the value.
fn pattern(text: &str) -> String {
    text.replace([',', ';', '"', '\\'], "*")
}

fn taken_at(case: &Case) -> Option<Duration> {
    matches!(case.fate(), Fate::Taken | Fate::Missed).then(|| case.end.map(|end| end.at)).flatten()
}

fn action(story: &Story, findings: &Findings) -> Option<Advice> {
    let score = findings.score;
    let wrong = score.verdicts - score.right;
    match story.action.as_deref() {
        Some("observe") if wrong > 0 => Some(Advice::new(
            String::new(),
            format!(
                "stay in observe until the settings above are in force: {wrong} of {} verdicts would have been wrong",
                score.verdicts
            ),
        )),
        Some("observe") if score.verdicts > 0 => Some(Advice::new(
            "leaks.action = \"reclaim\"".to_owned(),
            format!("all {} verdicts of the dry run would have been right", score.verdicts),
        )),
        _ => None,
    }
}

/// To a number of seconds that a person would choose.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn round_up(seconds: f64) -> u64 {
    let step = match seconds {
        _ if seconds <= 20.0 => 1.0,
        _ if seconds <= 60.0 => 5.0,
        _ if seconds <= 600.0 => 30.0,
        _ => 300.0,
    };
    ((seconds / step).ceil() * step).clamp(1.0, 86_400.0) as u64
}
