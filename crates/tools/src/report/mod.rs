//! `pgleash report`: what an event log tells of an incident or of a dry run.
//!
//! Each line is read back ([`parse`]) into one [`history`], whose suspicions have an end and whose other events are
//! folded ([`timeline`]); what follows from it ([`findings`], [`advice`]) is laid out once ([`layout`]) and written as
//! [`markdown`] or [`html`].

pub mod advice;
pub mod curve;
pub mod findings;
pub mod history;
pub mod html;
pub mod layout;
pub mod markdown;
pub mod parse;
#[cfg(test)]
mod tests;
pub mod timeline;

use std::fs::File;
use std::io;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use crate::admin_client::{agent, get};
use crate::report::advice::{Advice, advise};
use crate::report::curve::Curve;
use crate::report::findings::Findings;
use crate::report::history::{Story, Window};
use crate::report::parse::Line;

/// Tell what happened from the event log: who leaked, what was done, whether it was right, what to set
///
/// Prints Markdown. The log is what pgleash writes to `events.log`; what a collector of logs puts before each line
/// does no harm. A log is that of one pgleash, restarts included; of several give one file for each.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Event logs, or http://host:9632 for the latest events of a running pgleash; by default standard input
    #[arg(value_name = "LOG")]
    pub logs: Vec<String>,
    /// Also write it as a self-contained HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Also write the findings as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Nothing earlier than this, such as 2026-11-25T22:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<Duration>,
    /// Nothing later than this
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub until: Option<Duration>,
    /// Only this pool, such as app@payments
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
}

/// Reads the logs, and gives the report as Markdown; writes what else was asked for.
///
/// # Errors
/// A log cannot be read or has no event of pgleash's, or a file cannot be written; in one sentence.
pub fn run(args: &Args) -> Result<String, String> {
    let window = Window { since: args.since, until: args.until, pool: args.pool.clone() };
    let mut story = Story::new(window);
    if args.logs.is_empty() {
        if io::stdin().is_terminal() {
            return Err("name an event log, or give one on standard input".to_owned());
        }
        hear(&mut story, io::stdin().lock())
            .map_err(|error| format!("cannot read standard input: {error}"))?;
    }
    for (place, log) in args.logs.iter().enumerate() {
        if place > 0 {
            story.next_log();
        }
        read(&mut story, log)?;
    }
    let Some((from, to)) = story.span else { return Err(nothing(&story)) };
    let findings = Findings::of(&story);
    let (blocks, curve) = (layout::blocks(&story, &findings), Curve::of(&story));
    let title = format!("pgleash report, {}", layout::span(from, to));
    if let Some(path) = &args.html {
        write(path, &html::page(&title, &blocks, &curve, &story))?;
    }
    if let Some(path) = &args.json {
        write(path, &json(&story, &findings))?;
    }
    Ok(markdown::page(&title, &blocks, &curve))
}

fn nothing(story: &Story) -> String {
    match story.foreign {
        0 => "there is no event in it, or none in that time".to_owned(),
        lines => format!("there is no event of pgleash's in it: {lines} lines are something else"),
    }
}

fn json(story: &Story, findings: &Findings) -> String {
    #[derive(Serialize)]
    struct Told<'a> {
        #[serde(flatten)]
        findings: &'a Findings,
        precision: Option<f64>,
        recall: Option<f64>,
        advice: Vec<Advice>,
    }
    let (precision, recall) = (findings.score.precision(), findings.score.recall());
    let told = Told { findings, precision, recall, advice: advise(story, findings) };
    // Plain values with string keys: this cannot fail.
    serde_json::to_string_pretty(&told).unwrap_or_default() + "\n"
}

fn read(story: &mut Story, log: &str) -> Result<(), String> {
    if log.contains("://") {
        return ask(story, log);
    }
    if log == "-" {
        return hear(story, io::stdin().lock())
            .map_err(|error| format!("cannot read standard input: {error}"));
    }
    let file = File::open(log).map_err(|error| format!("cannot open {log}: {error}"))?;
    hear(story, BufReader::new(file)).map_err(|error| format!("cannot read {log}: {error}"))
}

/// The longest line that may be an event.
const LONGEST_LINE: u64 = 1 << 20;

/// Reads line by line; one that is too long is no event.
fn hear(story: &mut Story, mut log: impl BufRead) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = log.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        if line.ends_with(b"\n") || (read as u64) < LONGEST_LINE {
            story.hear(Line::of(&String::from_utf8_lossy(&line)));
        } else {
            story.hear(Line::Foreign);
            log.skip_until(b'\n')?;
        }
    }
}

/// How long a running pgleash may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// More than its latest events.
const LARGEST: u64 = 64 << 20;

fn ask(story: &mut Story, base: &str) -> Result<(), String> {
    let url = format!("{}/api/v1/events", base.trim_end_matches('/'));
    let body = get(&agent(DEADLINE), &url, LARGEST).map_err(|error| format!("cannot ask {url}: {error}"))?;
    let events: Vec<serde_json::Value> =
        serde_json::from_slice(&body).map_err(|_| format!("what {url} answers is no list of events"))?;
    for event in events {
        story.hear(Line::of(&event.to_string()));
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_rfc3339_weak(text).ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    time.ok_or_else(|| "must be a time in UTC such as 2026-11-25T22:00:00Z".to_owned())
}
