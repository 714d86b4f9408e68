//! The report for people: the side-by-side table, the notes, and the text for a terminal. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write;

use crate::drill::chart;
use crate::drill::expected::Delay;
use crate::drill::report::{Report, RunReport};
use crate::drill::scenario::{Leak, Route};
use crate::drill::stats::Spread;

/// One line of the side-by-side table: what, without, with.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What is compared. Two leading spaces mark a part of the line above.
    pub what: String,
    /// For each run.
    pub values: [String; 2],
}

impl Report {
    /// The side-by-side table.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = self.payment_lines();
        lines.extend(self.pool_lines());
        lines.extend(self.leak_lines());
        for leak in [Leak::MidTransaction, Leak::AfterCommit] {
            lines.extend(self.delay_lines(leak));
        }
        lines
    }

    /// What the reader must know to judge the figures, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let setting = &self.setting;
        let bug = match setting.scenario.has_bug() {
            true => format!(
                "From minute 1 on, {} % of checkouts leak, all of them of {}.",
                trim(setting.leak_share * 100.0),
                Route::Refund
            ),
            false => "Nothing leaks.".to_owned(),
        };
        let mut notes = vec![
            format!(
                "Time is compressed {}x, and so are the limits, but none below 1.5 s: idle_in_transaction {} s (30 s in \
                 the scenario), idle_session {} s (1 min), budget 25 % in {} s (1 min). Rates, think times and \
                 wait_timeout ({} s) are not compressed.",
                trim(setting.compression),
                trim(setting.idle_in_transaction_seconds),
                trim(setting.idle_session_seconds),
                trim(setting.budget_window_seconds),
                trim(setting.wait_timeout_seconds),
            ),
            format!(
                "{} A healthy payment is silent in mid-transaction for at most \
                 {} s; a checkout is suspect at half its limit and taken back at the limit.",
                bug,
                trim(setting.longest_think_seconds),
            ),
        ];
        if setting.scenario.has_campaign() {
            notes.push(format!(
                "Without its index a payment's lookup reads {} rows. DROP INDEX CONCURRENTLY waits for every open \
                 transaction, so one leaked transaction makes it hang.",
                thousands(u64::try_from(setting.history_rows).unwrap_or(0)),
            ));
        }
        notes.push(
            "\"Without\" is pgleash in observe mode: the same pool, and nothing is taken back.".to_owned(),
        );
        let lag = self.runs.iter().map(|run| run.generator_lag_seconds).fold(0.0, f64::max);
        if lag > 0.25 {
            notes.push(format!(
                "This machine was busy: a payment began {} s late. Lower --rate for figures to rely on.",
                trim(lag)
            ));
        }
        notes
    }

    /// What went wrong, one line for each leak missed and each healthy checkout killed.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for run in &self.runs {
            for missed in &run.leaks.missed {
                complaints.push(format!(
                    "{}: session {} ({}), leaked at {:.1} s, was {}",
                    run.name,
                    missed.session,
                    missed.leak.reason(),
                    missed.planted_seconds,
                    if missed.found { "found but not taken back" } else { "not found" },
                ));
            }
            for killed in &run.leaks.healthy_killed {
                let evidence = killed.idle_and_limit_seconds.map_or_else(
                    || "pgleash said nothing of it".to_owned(),
                    |(idle, limit)| format!("{}: idle {idle:.2} s of {limit:.2} s", killed.reason),
                );
                complaints.push(format!(
                    "{}: healthy session {} was killed ({evidence})",
                    run.name, killed.session
                ));
            }
        }
        complaints
    }

    fn line(&self, what: &str, value: impl Fn(&RunReport) -> String) -> Line {
        Line { what: what.to_owned(), values: [value(&self.runs[0]), value(&self.runs[1])] }
    }

    fn payment_lines(&self) -> Vec<Line> {
        let mut lines = vec![
            self.line("payments tried", |run| thousands(run.payments.tried)),
            self.line("payments failed", |run| thousands(run.payments.failed)),
        ];
        let causes = self.runs.iter().flat_map(|run| run.payments.failures.keys());
        for cause in causes.collect::<BTreeSet<_>>() {
            let count = |run: &RunReport| run.payments.failures.get(cause).copied().unwrap_or(0);
            lines.push(self.line(&format!("  {cause}"), |run| thousands(count(run))));
        }
        lines.extend([
            self.line("payments lost by the bug itself", |run| thousands(run.payments.lost_to_bug)),
            self.line("latency p50", |run| ms(run.payments.latency, |spread| spread.median_seconds)),
            self.line("latency p99", |run| ms(run.payments.latency, |spread| spread.p99_seconds)),
        ]);
        if self.setting.scenario.has_campaign() {
            let under = |what, which: fn(&Spread) -> f64| {
                self.line(what, |run| ms(run.payments.latency_under_campaign, which))
            };
            lines.push(under("  p50 under the campaign", |spread| spread.median_seconds));
            lines.push(under("  p99 under the campaign", |spread| spread.p99_seconds));
        }
        lines
    }

    fn pool_lines(&self) -> Vec<Line> {
        let mut lines = vec![
            self.line("pool utilization at minute 12", |run| percent(run.utilization.minute_12_ratio)),
            self.line("pool utilization, peak", |run| percent(Some(run.utilization.peak_ratio))),
            self.line("pool exhausted at minute", |run| {
                run.utilization
                    .exhausted_at_minute
                    .map_or("never".to_owned(), |minute| format!("{minute:.1}"))
            }),
            self.line("most clients waiting", |run| run.utilization.most_waiting.to_string()),
        ];
        if self.setting.scenario.has_campaign() {
            lines.push(self.line("DROP INDEX CONCURRENTLY", |run| {
                run.index_drop_seconds.map_or("hung to the end".to_owned(), |took| format!("{took:.1} s"))
            }));
        }
        let others = self.runs.iter().flat_map(|run| run.others.keys());
        for other in others.collect::<BTreeSet<_>>() {
            let count = |run: &RunReport| run.others.get(other).copied().unwrap_or(0);
            lines.push(self.line(other, |run| thousands(count(run))));
        }
        lines
    }

    fn leak_lines(&self) -> Vec<Line> {
        let mut lines = vec![
            self.line("leaks planted", |run| run.leaks.planted.to_string()),
            self.line("leaks found", |run| run.leaks.found.to_string()),
            self.line("leaks taken back", |run| run.leaks.reclaimed.to_string()),
            self.line("healthy checkouts killed", |run| run.leaks.healthy_killed.len().to_string()),
            self.line("slow statements reported", |run| run.leaks.slow_statements.to_string()),
            self.line("suspects that came home", |run| run.leaks.suspects_came_home.to_string()),
            self.line("reclaims regretted", |run| run.leaks.regrets.to_string()),
            self.line("named first", |run| {
                run.leaks.named_first.as_ref().map_or("nobody".to_owned(), |named| named.route.clone())
            }),
        ];
        if self.runs.iter().any(|run| run.leaks.wrong_reason > 0) {
            lines
                .push(self.line("leaks named with a wrong reason", |run| run.leaks.wrong_reason.to_string()));
        }
        let because = self.runs.iter().flat_map(|run| run.leaks.suppressed.keys());
        for because in because.collect::<BTreeSet<_>>() {
            let count = |run: &RunReport| run.leaks.suppressed.get(because).copied().unwrap_or(0);
            lines.push(self.line(&format!("reclaims put off: {because}"), |run| count(run).to_string()));
        }
        lines.push(
            self.line("books", |run| if run.audit.balances() { "balance" } else { "DO NOT BALANCE" }.into()),
        );
        lines
    }

    fn delay_lines(&self, leak: Leak) -> Vec<Line> {
        let of = |run: &RunReport| run.leaks.delays.iter().find(|delay| delay.leak == leak).cloned();
        if self.runs.iter().all(|run| of(run).is_none()) {
            return Vec::new();
        }
        let spread = |run: &RunReport, which: fn(&Delay) -> Option<Spread>| {
            of(run).as_ref().and_then(which).map_or("-".to_owned(), |spread| {
                format!("{:.2} / {:.2} s", spread.median_seconds, spread.p99_seconds)
            })
        };
        let limit = self.runs.iter().find_map(&of).map_or(0.0, |delay| delay.limit_seconds);
        let heading = format!("{}, limit {} s: median / p99", leak.reason(), trim(limit));
        vec![
            Line { what: heading, values: [String::new(), String::new()] },
            self.line("  from leak to detection", |run| spread(run, |delay| delay.to_detection)),
            self.line("  from leak to reclaim", |run| spread(run, |delay| delay.to_reclaim)),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setting = &self.setting;
        writeln!(
            f,
            "pgleash drill, {}, seed {}, on {}: {} payments/s, a pool of {} in {} mode, 15 minutes in {} s\n",
            setting.scenario,
            setting.seed,
            setting.server,
            trim(setting.rate),
            setting.pool_size,
            setting.mode.as_str(),
            trim(setting.minutes * 60.0),
        )?;
        let lines = self.lines();
        let width = lines.iter().map(|line| line.what.chars().count()).max().unwrap_or(0);
        writeln!(f, "{:width$}  {:>16}  {:>16}", "", "without watchdog", "with watchdog")?;
        for line in &lines {
            let row = format!("{:width$}  {:>16}  {:>16}", line.what, line.values[0], line.values[1]);
            writeln!(f, "{}", row.trim_end())?;
        }
        for run in &self.runs {
            writeln!(f, "\nPool utilization, {}", run.name)?;
            f.write_str(&chart::terminal(&run.utilization.series, setting.scenario))?;
        }
        f.write_char('\n')?;
        for note in self.notes() {
            writeln!(f, "{}", wrap(&note, 100))?;
        }
        f.write_char('\n')?;
        for complaint in self.complaints() {
            writeln!(f, "  {complaint}")?;
        }
        writeln!(f, "{}", self.verdict)
    }
}

fn ms(spread: Option<Spread>, which: fn(&Spread) -> f64) -> String {
    spread.map_or("-".to_owned(), |spread| format!("{:.0} ms", which(&spread) * 1000.0))
}

fn percent(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{:.0} %", ratio * 100.0))
}

/// Two decimals at most.
fn trim(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Digits in groups of three.
fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// Breaks a sentence into lines.
fn wrap(text: &str, width: usize) -> String {
    let mut wrapped = String::new();
    let mut column = 0;
    for word in text.split(' ') {
        if column > 0 && column + 1 + word.len() > width {
            wrapped.push_str("\n  ");
            column = 2;
        } else if column > 0 {
            wrapped.push(' ');
            column += 1;
        }
        wrapped.push_str(word);
        column += word.len();
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::report::sample_report;

    #[test]
    fn the_report_is_laid_out_side_by_side() {
        insta::assert_snapshot!(sample_report().to_string());
    }

    #[test]
    fn numbers_are_grouped_and_trimmed() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1 000", "1 234 567"]);
        assert_eq!([2.0, 1.5, 0.126, 15.0].map(trim), ["2", "1.5", "0.13", "15"]);
    }
}
