//! The report as headings, paragraphs and tables, whatever it is written in. Pure.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use pgleash_core::Suppression;

use crate::report::advice::{Advice, advise};
use crate::report::findings::{Done, Findings, Holder, Known};
use crate::report::history::Story;
use crate::report::timeline::{Weight, work};

/// A piece of a report. All text is plain: who writes it out escapes it.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// Begins a section.
    Heading(String),
    /// A paragraph.
    Text(String),
    /// One thing below the other.
    List(Vec<(Weight, String)>),
    /// With a header.
    Table {
        /// Names of the columns.
        header: Vec<String>,
        /// As many cells in each.
        rows: Vec<Vec<String>>,
    },
    /// To be copied as it stands.
    Code(String),
    /// Stale checkouts over time goes here.
    Chart,
}

/// Holders that are shown.
const HOLDERS: usize = 10;
/// Healthy checkouts that are listed one by one.
const TOUCHED: usize = 20;

/// The report.
pub fn blocks(story: &Story, findings: &Findings) -> Vec<Block> {
    let mut blocks = vec![Block::Heading("In short".to_owned()), Block::List(in_short(story, findings))];
    if story.cases.iter().any(crate::report::history::Case::is_idle) {
        blocks.push(Block::Heading("Stale checkouts".to_owned()));
        blocks.push(Block::Chart);
    }
    cause(&mut blocks, story, findings);
    timeline(&mut blocks, story);
    done(&mut blocks, story, findings);
    healthy(&mut blocks, findings);
    verdicts(&mut blocks, findings);
    trials(&mut blocks, findings);
    settings(&mut blocks, &advise(story, findings));
    reading(&mut blocks, story);
    blocks
}

fn in_short(story: &Story, findings: &Findings) -> Vec<(Weight, String)> {
    let mut said = Vec::new();
    let mut say = |weight, text: String| said.push((weight, text));
    let clock = |at| clock(at, story.span.unwrap_or_default());
    let leaked: usize = findings.holders.iter().map(|holder| holder.leaked).sum();
    match findings.holders.first().filter(|holder| holder.leaked > 0) {
        None => say(Weight::Plain, "No connection was leaked, as far as the log knows.".to_owned()),
        Some(first) => {
            let others = match leaked - first.leaked {
                0 => String::new(),
                rest => format!("; {rest} by others"),
            };
            say(
                Weight::Plain,
                format!(
                    "Cause: {} leaked {} of {}{others}. First evidence at {}.",
                    name(first),
                    counted(first.leaked, "connection"),
                    first.pool,
                    clock(Duration::from_secs_f64(first.first_seconds.max(0.0)))
                ),
            );
        }
    }
    for (pool, (at, seconds)) in &story.foreseen {
        let text = format!("Exhaustion of {pool} was foreseen at {}, {seconds:.0} s ahead.", clock(*at));
        say(Weight::Grave, text);
    }
    for (pool, away) in &story.turned_away {
        let text = format!(
            "{pool} was exhausted: {} turned away from {} to {}.",
            counted(away.clients, "client"),
            clock(away.first),
            clock(away.last)
        );
        say(Weight::Grave, text);
    }
    if story.turned_away.is_empty() {
        say(Weight::Plain, "No client was turned away for want of a connection.".to_owned());
    }
    say(Weight::Plain, what_was_done(findings));
    let taken = findings.touched.iter().filter(|touched| touched.done == Done::Taken).count();
    match taken {
        0 => say(Weight::Plain, "Healthy checkouts taken: none.".to_owned()),
        wrong => say(Weight::Grave, format!("Healthy checkouts taken: {wrong}. They are listed below.")),
    }
    said
}

fn what_was_done(findings: &Findings) -> String {
    let mut said = match (findings.taken, findings.median_idle_at_reclaim_seconds) {
        (0, _) => "Nothing was taken back".to_owned(),
        (taken, Some(median)) => {
            format!(
                "{} taken back, after {median:.1} s of idleness at the median",
                counted(taken, "connection")
            )
        }
        (taken, None) => format!("{} taken back", counted(taken, "connection")),
    };
    let observed = findings.observed();
    if observed > 0 {
        let wrong = findings.touched.iter().filter(|touched| touched.done == Done::WouldHaveBeen).count();
        let _ = write!(said, "; {observed} would have been with leaks.action = \"reclaim\", and ");
        said += &match wrong {
            0 => "no holder of these used its connection again".to_owned(),
            wrong => format!("{wrong} of these would have been wrong: the holder used its connection again"),
        };
    }
    said + "."
}

fn cause(blocks: &mut Vec<Block>, story: &Story, findings: &Findings) {
    let leaking: Vec<_> = findings.holders.iter().filter(|holder| holder.leaked > 0).collect();
    if leaking.is_empty() {
        return;
    }
    blocks.push(Block::Heading("Who leaked".to_owned()));
    let clock = |at| clock(at, story.span.unwrap_or_default());
    let row = |holder: &&Holder| {
        let reasons: Vec<_> = holder.reasons.iter().map(|reason| reason.as_str()).collect();
        vec![
            name(holder),
            holder.pool.clone(),
            holder.leaked.to_string(),
            format!("{:.0} s", holder.stale_seconds),
            holder.came_home.to_string(),
            clock(Duration::from_secs_f64(holder.first_seconds.max(0.0))),
            reasons.join(", "),
            holder.statement.clone(),
        ]
    };
    let columns = ["Who", "Pool", "Leaked", "Idle altogether", "Came home", "Since", "Reason", "Idle after"];
    blocks.push(table(&columns, leaking.iter().take(HOLDERS).map(row).collect()));
    let more = leaking.len().saturating_sub(HOLDERS);
    if more > 0 {
        blocks.push(Block::Text(format!("{more} more kinds of work leaked less.")));
    }
}

fn timeline(blocks: &mut Vec<Block>, story: &Story) {
    let entries = story.timeline.entries();
    if entries.is_empty() {
        return;
    }
    blocks.push(Block::Heading("Timeline".to_owned()));
    let clock = |at| clock(at, story.span.unwrap_or_default());
    let line = |entry: &&crate::report::timeline::Entry| {
        let more = match entry.times {
            1 => String::new(),
            times => format!(" ({times} times until {})", clock(entry.last)),
        };
        (entry.weight, format!("{}  {}{more}", clock(entry.first), entry.what))
    };
    blocks.push(Block::List(entries.iter().map(line).collect()));
    if story.timeline.untold > 0 {
        blocks.push(Block::Text(format!("{} more events are not shown.", story.timeline.untold)));
    }
}

fn done(blocks: &mut Vec<Block>, story: &Story, findings: &Findings) {
    if story.recycled.is_empty() && findings.spared.is_empty() {
        return;
    }
    blocks.push(Block::Heading("What was done".to_owned()));
    let recycled = story.recycled.iter().map(|((action, outcome), times)| {
        vec![format!("server connection cleaned by {action}"), outcome.to_string(), times.to_string()]
    });
    let spared = findings.spared.iter().map(|(because, times)| {
        vec!["due, and left alone".to_owned(), (*because).to_owned(), times.to_string()]
    });
    blocks.push(table(&["What", "Outcome or why", "Times"], recycled.chain(spared).collect()));
}

fn healthy(blocks: &mut Vec<Block>, findings: &Findings) {
    blocks.push(Block::Heading("Healthy checkouts touched".to_owned()));
    if findings.touched.is_empty() {
        return blocks.push(Block::Text("None.".to_owned()));
    }
    let rows = findings.touched.iter().take(TOUCHED).map(|touched| {
        vec![
            touched.who.clone(),
            touched.pool.clone(),
            touched.session.to_string(),
            touched.reason.to_string(),
            format!("{:.1} s", touched.idle_seconds),
            format!("{:.1} s", touched.limit_seconds),
            match touched.done {
                Done::Taken => "taken".to_owned(),
                Done::WouldHaveBeen => "would have been".to_owned(),
            },
        ]
    });
    blocks.push(table(&["Who", "Pool", "Session", "Reason", "Paused for", "Limit", "Taken"], rows.collect()));
    let more = findings.touched.len().saturating_sub(TOUCHED);
    if more > 0 {
        blocks.push(Block::Text(format!("And {more} more.")));
    }
}

fn verdicts(blocks: &mut Vec<Block>, findings: &Findings) {
    let score = findings.score;
    if score.verdicts + score.leaks + score.suspected_early == 0 {
        return;
    }
    blocks.push(Block::Heading("How right the verdicts were".to_owned()));
    let percent =
        |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0));
    let row = |what: &str, share, of: String| vec![what.to_owned(), percent(share), of];
    let rows = vec![
        row(
            "Precision",
            score.precision(),
            format!("{} of {}", score.right, counted(score.verdicts, "verdict")),
        ),
        row(
            "Recall, of known leaks",
            score.recall(),
            format!("{} of {}", score.found, counted(score.leaks, "leak")),
        ),
    ];
    blocks.push(table(&["", "Share", "Count"], rows));
    let mut notes =
        "A verdict is right if the holder never came back to it; one that was told, and took another connection, counts as such. A leak that was never suspected is in no log. Verdicts that have not stood for as long as they took are left out, and so are those whose holder left."
            .to_owned();
    if score.suspected_early > 0 {
        let _ =
            write!(notes, " {} came home before a verdict fell.", counted(score.suspected_early, "suspect"));
    }
    blocks.push(Block::Text(notes));
}

fn trials(blocks: &mut Vec<Block>, findings: &Findings) {
    if findings.trials.is_empty() {
        return;
    }
    blocks.push(Block::Heading("What other limits would have done".to_owned()));
    let row = |trial: &crate::report::findings::Trial| {
        let least = if trial.known == Known::Some { "at least " } else { "" };
        vec![
            trial.limit.to_string(),
            format!("{} s", (trial.seconds * 10.0).round() / 10.0),
            format!("{least}{}", trial.leaks),
            format!("{least}{}", trial.healthy),
        ]
    };
    let rows = findings.trials.iter().map(row).collect();
    blocks.push(table(&["Limit", "At", "Leaks taken", "Healthy taken"], rows));
    if findings.trials.iter().any(|trial| trial.known == Known::Some) {
        blocks.push(Block::Text(
            "At least: pauses that were never suspected are not in the log, so a limit that short would have met more of \
             them."
                .to_owned(),
        ));
    }
}

fn settings(blocks: &mut Vec<Block>, advice: &[Advice]) {
    blocks.push(Block::Heading("Suggested settings".to_owned()));
    if advice.is_empty() {
        return blocks.push(Block::Text("None: nothing in this log speaks for a change.".to_owned()));
    }
    let line =
        |advice: &Advice| format!("# {}\n{}", advice.because.replace(char::is_control, " "), advice.setting);
    let lines: Vec<_> = advice.iter().map(|advice| line(advice).trim_end().to_owned()).collect();
    blocks.push(Block::Code(lines.join("\n")));
}

fn reading(blocks: &mut Vec<Block>, story: &Story) {
    let mut said = format!("Made from {}.", counted(story.events, "event"));
    if story.foreign > 0 {
        let _ = write!(said, " {} not events of this version of pgleash.", counted(story.foreign, "line"));
    }
    if story.untold > 0 {
        let _ = write!(
            said,
            " {} beyond {} were not looked at.",
            counted(story.untold, "suspicion"),
            Story::MOST_CASES
        );
    }
    let draining = story.cases.iter().any(|case| matches!(case.spared, Some((_, Suppression::Draining))));
    if draining {
        said.push_str(" Nothing is taken while pgleash stops.");
    }
    blocks.push(Block::Text(said));
}

fn name(holder: &Holder) -> String {
    work(&holder.app, &holder.route)
}

fn table(header: &[&str], rows: Vec<Vec<String>>) -> Block {
    Block::Table { header: header.iter().map(|name| (*name).to_owned()).collect(), rows }
}

/// `1 leak`, `2 leaks`.
pub fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Time of day, UTC; with the day if the span is of more than one.
pub fn clock(at: Duration, span: (Duration, Duration)) -> String {
    let (at, from, to) = (stamp(at), stamp(span.0), stamp(span.1));
    let time = &at[11..19];
    if from[..10] == to[..10] { time.to_owned() } else { format!("{} {time}", &at[5..10]) }
}

/// From when to when.
pub fn span(from: Duration, to: Duration) -> String {
    let (first, last) = (stamp(from), stamp(to));
    let last = if first[..10] == last[..10] {
        last[11..19].to_owned()
    } else {
        format!("{} {}", &last[..10], &last[11..19])
    };
    format!("{} {} to {last} UTC", &first[..10], &first[11..19])
}

/// Day and time, UTC.
fn stamp(at: Duration) -> String {
    // Beyond the year 9999 there is no such form.
    let at = at.min(Duration::from_secs(253_402_300_799));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + at).to_string()
}
