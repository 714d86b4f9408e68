//! The report as Markdown, which also reads well as it is. Pure.

use std::fmt::Write;

use pgleash_core::text::acts;

use crate::report::curve::Curve;
use crate::report::layout::{Block, clock};
use crate::report::timeline::Weight;

/// Columns of the chart.
const COLUMNS: usize = 72;
/// Lines of the chart.
const ROWS: usize = 8;

/// Writes it out.
pub fn page(title: &str, blocks: &[Block], curve: &Curve) -> String {
    let mut page = format!("# {}\n", escape(title));
    for block in blocks {
        match block {
            Block::Heading(text) => drop(writeln!(page, "\n## {}", escape(text))),
            Block::Text(text) => drop(writeln!(page, "\n{}", escape(text))),
            Block::List(items) => {
                page.push('\n');
                for (weight, text) in items {
                    let mark = if *weight == Weight::Grave { "**" } else { "" };
                    let _ = writeln!(page, "- {mark}{}{mark}", escape(text));
                }
            }
            Block::Table { header, rows } => table(&mut page, header, rows),
            Block::Code(text) => {
                // No line of it can end the block.
                let _ = writeln!(page, "\n```toml\n{}\n```", text.replace('`', "'"));
            }
            Block::Chart => chart(&mut page, curve),
        }
    }
    page
}

fn table(page: &mut String, header: &[String], rows: &[Vec<String>]) {
    let header: Vec<_> = header.iter().map(|cell| escape(cell)).collect();
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|cell| escape(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).chain(header.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let rule: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
    page.push('\n');
    for cells in [&header, &rule].into_iter().chain(&rows) {
        let cells: Vec<_> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    }
}

fn chart(page: &mut String, curve: &Curve) {
    let most = curve.most.max(1);
    let columns = curve.columns(COLUMNS);
    page.push_str("\n```text\n");
    for row in (0..ROWS).rev() {
        let label = if row + 1 == ROWS { most.to_string() } else { String::new() };
        let cell = |stale: &usize| cell((*stale * ROWS * 8).div_ceil(most), row);
        let cells: String = columns.iter().map(cell).collect();
        let _ = writeln!(page, "{label:>5} │{}", cells.trim_end());
    }
    let _ = writeln!(page, "    0 └{}", "─".repeat(COLUMNS));
    let (from, to) = curve.span;
    let (from, to) = (clock(from, curve.span), clock(to, curve.span));
    let _ = writeln!(page, "       {from}{to:>width$}", width = COLUMNS - from.len());
    page.push_str("```\n");
    if curve.size > 0 {
        let _ = writeln!(page, "\nStale checkouts; the pools have {} connections.", curve.size);
    }
}

/// How a bar that is so many eighths of a row high looks in one row, counted from below.
pub fn cell(eighths: usize, row: usize) -> char {
    const FILLED: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    FILLED[eighths.saturating_sub(row * 8).min(8)]
}

/// What has a meaning in Markdown loses it.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\\' | '`' | '*' | '[' | ']' | '<' | '>' | '|' => safe.extend(['\\', letter]),
            _ if acts(letter) => safe.push(' '),
            _ => safe.push(letter),
        }
    }
    safe
}
