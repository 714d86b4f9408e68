//! The utilization curve: condensed from samples, and drawn for a terminal. Pure.

use std::fmt::Write;

use serde::Serialize;

use crate::drill::report::Sample;
use crate::drill::scenario::{MINUTES, Phase, Scenario};
use crate::drill::workload::Kind;
use crate::report::markdown;

/// Columns for each scenario minute.
const COLUMNS_PER_MINUTE: usize = 4;
/// Columns of the chart.
const COLUMNS: usize = 15 * COLUMNS_PER_MINUTE;
/// Lines of the chart.
const ROWS: usize = 8;

/// The pool in one stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Where the stretch begins, in scenario minutes.
    pub minute: f64,
    /// Mean share of the pool in use.
    pub mean: f64,
    /// Highest share in use at any look.
    pub max: f64,
    /// Most clients waiting at any look.
    pub waiting: usize,
}

/// One point for each stretch of a scenario minute in which there was a look.
pub fn condense(samples: &[Sample], scenario: &Scenario, points_per_minute: f64) -> Vec<Point> {
    let stretch = |sample: &Sample| (scenario.minute(sample.at) * points_per_minute).floor();
    samples
        .chunk_by(|a, b| stretch(a) == stretch(b))
        .map(|looks| Point {
            minute: stretch(&looks[0]) / points_per_minute,
            mean: crate::drill::report::mean(looks.iter().map(|look| look.utilization)).unwrap_or(0.0),
            max: looks.iter().map(|look| look.utilization).fold(0.0, f64::max),
            waiting: looks.iter().map(|look| look.waiting).max().unwrap_or(0),
        })
        .collect()
}

/// The curve in block characters, with the waiting clients and the phases under it.
pub fn terminal(points: &[Point], kind: Kind) -> String {
    let columns = columns(points);
    let mut chart = String::new();
    for row in (0..ROWS).rev() {
        let label = match row {
            7 => "100 %",
            3 => " 50 %",
            _ => "     ",
        };
        let cells: String =
            columns.iter().map(|column| cell(column.map_or(0.0, |point| point.mean), row)).collect();
        let _ = writeln!(chart, "{label} │{}", cells.trim_end());
    }
    let _ = writeln!(chart, "  0 % └{}", "─".repeat(COLUMNS));
    let most = columns.iter().flatten().map(|point| point.waiting).max().unwrap_or(0);
    if most > 0 {
        let cells: String =
            columns.iter().map(|column| spark(column.map_or(0, |point| point.waiting), most)).collect();
        let _ = writeln!(chart, "waiting{} (most {most})", cells.trim_end());
    }
    let _ = writeln!(chart, "minute {}", axis(kind));
    chart
}

/// The mean of the points of each column; `None` where there was no look.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn columns(points: &[Point]) -> Vec<Option<Point>> {
    let column_of = |point: &Point| (point.minute * COLUMNS_PER_MINUTE as f64) as usize;
    (0..COLUMNS)
        .map(|column| {
            let within: Vec<_> = points.iter().filter(|point| column_of(point) == column).collect();
            let first = within.first()?;
            Some(Point {
                minute: first.minute,
                mean: crate::drill::report::mean(within.iter().map(|point| point.mean))?,
                max: within.iter().map(|point| point.max).fold(0.0, f64::max),
                waiting: within.iter().map(|point| point.waiting).max()?,
            })
        })
        .collect()
}

/// How a column that is `ratio` high looks in one row.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn cell(ratio: f64, row: usize) -> char {
    let eighths = (ratio.clamp(0.0, 1.0) * (ROWS * 8) as f64).round() as usize;
    markdown::cell(eighths, row)
}

/// One cell for a count: at least a trace of anything above zero.
fn spark(count: usize, most: usize) -> char {
    markdown::cell((count * 8).div_ceil(most.max(1)), 0)
}

/// Minutes, and the names of the phases where they begin.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn axis(kind: Kind) -> String {
    let mut minutes = vec![' '; COLUMNS + 3];
    let mut names = vec![' '; COLUMNS + 20];
    let write = |line: &mut Vec<char>, minute: f64, text: &str| {
        let from = (minute * COLUMNS_PER_MINUTE as f64) as usize;
        for (place, letter) in text.chars().enumerate() {
            line[from + place] = letter;
        }
    };
    for minute in [0.0, 5.0, MINUTES] {
        write(&mut minutes, minute, &minute.to_string());
    }
    for phase in kind.marks() {
        write(&mut minutes, phase.begins(), &phase.begins().to_string());
        let name = if *phase == Phase::Spike { "" } else { phase.as_str() };
        write(&mut names, phase.begins(), &format!("↑{name}"));
    }
    // The campaign begins right before the index goes: its name stands to the left of its mark.
    let campaign = "campaign +40 % ";
    if kind.has_campaign() {
        write(
            &mut names,
            Phase::Spike.begins() - campaign.len() as f64 / COLUMNS_PER_MINUTE as f64,
            campaign,
        );
    }
    let line = |cells: Vec<char>| cells.into_iter().collect::<String>().trim_end().to_owned();
    let (minutes, names) = (line(minutes), line(names));
    if names.is_empty() { minutes } else { format!("{minutes}\n       {names}") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pgleash_core::PoolMode;

    use super::*;

    fn scenario() -> Scenario {
        Scenario { seed: 1, minutes: 1.0, rate: 40.0, mode: PoolMode::Session, kind: Kind::Incident }
    }

    fn samples(curve: impl Fn(f64) -> f64) -> Vec<Sample> {
        (0..600)
            .map(|tenth| {
                let at = Duration::from_millis(tenth * 100);
                let utilization = curve(scenario().minute(at));
                Sample { at, utilization, peak: utilization, waiting: usize::from(utilization >= 1.0) * 7 }
            })
            .collect()
    }

    #[test]
    fn looks_are_condensed_to_their_mean_and_their_worst() {
        let points = condense(&samples(|minute| if minute < 0.05 { 0.2 } else { 0.4 }), &scenario(), 10.0);
        assert_eq!(points.len(), 150);
        assert!(
            (points[0].mean - 0.3).abs() < 0.051 && (points[0].max - 0.4).abs() < 1e-9,
            "{:?}",
            points[0]
        );
        assert!((points[149].minute - 14.9).abs() < 1e-9);
    }

    #[test]
    fn a_curve_that_climbs_to_the_top_is_drawn_with_its_phases() {
        let points = condense(&samples(|minute| (minute / 12.0).min(1.0)), &scenario(), 20.0);
        insta::assert_snapshot!(terminal(&points, Kind::Incident));
    }

    #[test]
    fn a_run_that_was_cut_short_leaves_the_rest_blank() {
        let mut points = condense(&samples(|_| 1.0), &scenario(), 20.0);
        points.truncate(20);
        let chart = terminal(&points, Kind::Incident);
        assert!(chart.lines().next().unwrap().ends_with("│████"), "{chart}");
    }

    #[test]
    fn a_single_waiting_client_leaves_a_trace() {
        assert_eq!((spark(0, 100), spark(1, 100), spark(100, 100)), (' ', '▁', '█'));
    }
}
