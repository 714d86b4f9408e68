//! What should be set, and why. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use pgleash_core::{Reason, Suppression};

use crate::report::findings::{Findings, is_proved, told_from};
use crate::report::history::{Case, Fate, Story};
use crate::report::timeline::named;

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
    let mut advice = longer(&cases, to);
    for limit in [Reason::IdleInTransaction, Reason::IdleSession] {
        advice.extend(shorter(limit, &cases, to));
    }
    advice.extend(budget(story, &cases));
    advice.extend(action(story, findings));
    advice
}

/// Verdicts were wrong: whose pauses are longer than they may be.
fn longer(cases: &[&Case], to: Duration) -> Vec<Advice> {
    let wrong: Vec<_> = cases
        .iter()
        .filter(|case| case.was_due() && matches!(case.fate(), Fate::CameHome | Fate::Missed))
        .collect();
    let mut longest: BTreeMap<(&str, Option<&str>), f64> = BTreeMap::new();
    for case in &wrong {
        let pause = longest.entry((case.who.app.as_str(), case.who.route.as_deref())).or_default();
        *pause = pause.max(case.idle_seconds(to));
    }
    if longest.is_empty() {
        return Vec::new();
    }
    if longest.len() <= MOST_RULES {
        let rules: Vec<_> = longest.iter().map(|((app, route), pause)| rule(app, *route, *pause)).collect();
        let paused: Vec<_> = longest
            .iter()
            .map(|((app, _), pause)| format!("{} paused for {pause:.0} s", named(app)))
            .collect();
        let because = format!("{} and went on: no leak. Add it to the rules there are", paused.join(", "));
        return vec![Advice::new(format!("leaks.rules = \"{}\"", rules.join("; ")), because)];
    }
    let longer = |limit: Reason| {
        let pauses = wrong.iter().filter(|case| case.reason == limit).map(|case| case.idle_seconds(to));
        let pause = pauses.max_by(f64::total_cmp)?;
        let because = format!(
            "{} kinds of work paused for longer than they may and went on, for {pause:.0} s at most",
            longest.len()
        );
        Some(Advice::new(format!("leaks.{limit} = \"{}s\"", round_up(pause * MARGIN)), because))
    };
    [Reason::IdleInTransaction, Reason::IdleSession].into_iter().filter_map(longer).collect()
}

/// Of every release of an application.
fn rule(app: &str, route: Option<&str>, pause: f64) -> String {
    let app = match app.split_once('@') {
        Some((service, _)) => format!("{}@*", pattern(service)),
        None => pattern(app),
    };
    let route = route.map_or_else(String::new, |route| format!(", route={}", pattern(route)));
    format!("app={app}{route} {}s", round_up(pause * MARGIN))
}

/// No verdict was wrong, and leaks were held for much longer than anything healthy.
fn shorter(limit: Reason, cases: &[&Case], to: Duration) -> Option<Advice> {
    let of_kind = || cases.iter().filter(|case| case.reason == limit);
    let healthy = |case: &&&Case| matches!(case.fate(), Fate::CameHome | Fate::Missed);
    let right = of_kind().filter(|case| is_proved(case, to)).count();
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
    // As many leaks as were due within one of its times at most, in the largest pool.
    let mut due: Vec<Duration> = cases
        .iter()
        .filter(|case| !matches!(case.fate(), Fate::CameHome | Fate::Missed))
        .filter_map(|case| case.spared.map(|(at, _)| at).or(taken_at(case)))
        .collect();
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
        Some("observe") if score.verdicts >= ENOUGH => Some(Advice::new(
            "leaks.action = \"reclaim\"".to_owned(),
            format!("all {} verdicts of the dry run would have been right", score.verdicts),
        )),
        Some("observe") if score.verdicts > 0 => Some(Advice::new(
            String::new(),
            format!(
                "stay in observe for longer: all verdicts were right, but {ENOUGH} say more than {}",
                score.verdicts
            ),
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
