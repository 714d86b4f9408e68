//! The screen, drawn.

use std::time::UNIX_EPOCH;

use pgleash_core::Moment;
use pgleash_core::text::acts;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, TableState, Wrap};

use crate::admin_client::{HolderView, PoolView, TopView};
use crate::top::decisions::Decision;
use crate::top::keys::Screen;

/// Decisions that are shown where there is room.
pub const DECISIONS: u16 = 6;

/// Draws all of it. What cannot be relied on any more is dimmed.
pub fn draw(frame: &mut Frame, screen: &Screen, now: Moment) {
    let pools = u16::try_from(screen.view.pools.len().clamp(1, 8)).unwrap_or(8) + 2;
    let height = frame.area().height;
    let decided = match () {
        () if screen.decisions_wide => height / 2,
        () if height < 20 => 0,
        () => DECISIONS + 1,
    };
    let dry = screen.has_data() && screen.view.action == "observe";
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(u16::from(dry)),
        Constraint::Length(pools),
        Constraint::Min(4),
        Constraint::Length(decided),
        Constraint::Length(4),
        Constraint::Length(1),
    ]);
    let [banner, would, pools, holders, decided, detail, keys] = areas.areas(frame.area());
    frame.render_widget(banner_line(screen, now), banner);
    if dry {
        let said = format!(" {}", screen.decisions.would_have_done(&screen.out()));
        frame.render_widget(Line::from(said).yellow(), would);
    }
    let old = !screen.has_data() || screen.stale_for(now).is_some();
    let style = if old { Style::new().dim() } else { Style::new() };
    frame.render_widget(pool_table(&screen.view.pools).style(style), pools);
    draw_holders(frame, screen, style, holders, detail);
    draw_decisions(frame, screen, style, decided);
    frame.render_widget(key_line(screen), keys);
}

fn banner_line(screen: &Screen, now: Moment) -> Line<'static> {
    let view = &screen.view;
    let mut spans =
        vec![Span::from(" pgleash ").bold().reversed(), Span::from(format!(" {}  ", screen.source))];
    if let Some(why) = screen.failure.as_ref().filter(|_| !screen.has_data()) {
        spans.push(Span::from(format!("no data: {}", plain(why))).red().bold());
        return Line::from(spans);
    }
    if !screen.has_data() {
        spans.push(Span::from("asking..."));
        return Line::from(spans);
    }
    let enforcing = match (view.enforcing, view.draining) {
        (_, true) => Span::from("draining").yellow().bold(),
        (true, false) => Span::from("enforcing").green().bold(),
        (false, false) => Span::from("dry run: nothing is taken back").yellow().bold(),
    };
    spans.push(enforcing);
    if view.flow != "open" && !view.flow.is_empty() {
        spans.push(Span::from(format!("  {}", plain(&view.flow))).yellow().bold());
    }
    let uptime = seconds(view.uptime_seconds);
    let clients =
        format!("  {} of {} clients  up {uptime}  {}", view.clients, view.clients_max, plain(&view.version));
    spans.push(Span::from(clients));
    if let Some(age) = screen.stale_for(now) {
        let why = screen.failure.as_deref().unwrap_or("no answer");
        let said = format!("  DATA IS {} OLD: {}", seconds(age.as_secs_f64()), plain(why));
        spans.push(Span::from(said).red().bold());
    } else if view.observation_age_seconds > 10.0 {
        let said = format!("  the watchdog has not looked for {}", seconds(view.observation_age_seconds));
        spans.push(Span::from(said).red().bold());
    }
    Line::from(spans)
}

fn pool_table(pools: &[PoolView]) -> Table<'static> {
    let header = [
        "POOL",
        "USED",
        "PEAK 1m",
        "WAITING",
        "OLDEST",
        "STALE",
        "OVERDUE",
        "SLOPE",
        "FULL IN",
        "MOST IDLE BY",
    ];
    let rows = pools.iter().map(|pool| {
        let stale: usize =
            pool.stale.iter().filter(|(reason, _)| reason != "slow_statement").map(|(_, count)| count).sum();
        let alarming =
            |is: bool, text: String| Cell::from(if is { Span::from(text).red().bold() } else { text.into() });
        Row::new([
            Cell::from(plain(&pool.pool)),
            alarming(pool.utilization_ratio > 0.8, percent(pool.utilization_ratio, pool.size)),
            alarming(pool.utilization_peak_ratio >= 1.0, percent(pool.utilization_peak_ratio, pool.size)),
            alarming(pool.waiting > 0, pool.waiting.to_string()),
            Cell::from(seconds(pool.oldest_checkout_seconds)),
            alarming(stale > 0, stale.to_string()),
            alarming(pool.overdue > 0, pool.overdue.to_string()),
            match pool.stale_growth_per_second {
                Some(growth) => alarming(true, format!("+{:.1}/min", growth * 60.0)),
                None => Cell::from("steady"),
            },
            match pool.exhaustion_forecast_seconds {
                Some(eta) => alarming(true, seconds(eta)),
                None => Cell::from("-"),
            },
            Cell::from(pool.top_holders.first().map_or_else(String::new, most_idle)),
        ])
    });
    let widths = [
        Constraint::Min(16),
        Constraint::Length(16),
        Constraint::Length(16),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Min(20),
    ];
    let header = Row::new(header).style(Style::new().add_modifier(Modifier::BOLD));
    Table::new(rows, widths).header(header).block(Block::new().borders(Borders::BOTTOM))
}

fn draw_holders(frame: &mut Frame, screen: &Screen, style: Style, area: Rect, detail: Rect) {
    let rows = screen.rows();
    let selected = screen.selected(&rows);
    let header = ["ID", "APPLICATION, ROUTE", "CLIENT", "STATE", "AGE", "IDLE", "WHY, AND WHAT HAPPENS NEXT"];
    let widths = [
        Constraint::Length(8),
        Constraint::Length(30),
        Constraint::Length(21),
        Constraint::Length(19),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Min(20),
    ];
    let table = Table::new(rows.iter().map(|(_, holder)| holder_row(holder)), widths)
        .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .style(style);
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(selected));
    let text = match selected.and_then(|at| rows.get(at)) {
        Some((pool, holder)) => details(pool, holder),
        None if rows.is_empty() => "no checkout to show".to_owned(),
        None => format!("{} checkouts; choose one with the arrows", rows.len()),
    };
    let block = Block::new().borders(Borders::TOP);
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }).style(style).block(block), detail);
}

/// What was decided, newest first, and what came of it.
fn draw_decisions(frame: &mut Frame, screen: &Screen, style: Style, area: Rect) {
    let out = screen.out();
    let room = usize::from(area.height.saturating_sub(1));
    let rows: Vec<_> = screen.decided().take(room).map(|one| decision_row(one, one.outcome(&out))).collect();
    let title = if rows.is_empty() {
        " nothing was decided yet "
    } else {
        " what was decided, and its outcome; UTC "
    };
    let widths = [Constraint::Length(8), Constraint::Min(20), Constraint::Length(30)];
    let block = Block::new().borders(Borders::TOP).title(title);
    frame.render_widget(Table::new(rows, widths).style(style).block(block), area);
}

fn decision_row(one: &Decision, outcome: &'static str) -> Row<'static> {
    let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + one.at).to_string();
    let row = Row::new([time[11..19].to_owned(), plain(&one.what), outcome.to_owned()]);
    match one.level.as_str() {
        "error" => row.fg(Color::Red),
        "warn" => row.fg(Color::Yellow),
        _ => row,
    }
}

fn holder_row(holder: &HolderView) -> Row<'static> {
    let row = Row::new([
        holder.id.to_string(),
        work(&holder.app, holder.route.as_deref()),
        plain(&holder.client),
        plain(&holder.phase),
        seconds(holder.age_seconds),
        seconds(holder.idle_seconds),
        plain(&format!("{}; {}", holder.why, holder.next)),
    ]);
    match holder.suspect.as_deref() {
        None => row,
        Some("slow_statement") => row.fg(Color::Yellow),
        Some(_) => row.fg(Color::Red),
    }
}

fn details(pool: &str, holder: &HolderView) -> String {
    let pinned = holder.pinned.as_ref().map_or_else(String::new, |pin| {
        let since = holder.pinned_seconds.map_or_else(String::new, |seconds| format!(" for {seconds:.1} s"));
        let by = holder.pinned_by.as_ref().map_or_else(String::new, |by| format!(" by {}", plain(by)));
        format!(", pinned: {}{since}{by}", plain(pin))
    });
    let said = holder.statement.as_ref().map_or_else(String::new, |said| format!(", after {}", plain(said)));
    format!(
        "checkout {} of {} by {} from {}, backend {}{pinned}{said}\n{}\nnext: {}",
        holder.id,
        plain(pool),
        work(&holder.app, holder.route.as_deref()),
        plain(&holder.client),
        holder.backend_pid,
        plain(&holder.why),
        plain(&holder.next)
    )
}

fn key_line(screen: &Screen) -> Line<'static> {
    if screen.typing {
        return Line::from(format!(" search: {}_   Enter keeps it, Esc drops it", plain(&screen.words)));
    }
    let mut said = " q quit  arrows choose  p pool  s suspects  d decisions  / search".to_owned();
    if let Some(pool) = &screen.pool {
        said += &format!("   pool: {}", plain(pool));
    }
    if screen.suspects_only {
        said += "   suspects only";
    }
    if !screen.words.is_empty() {
        said += &format!("   search: {}", plain(&screen.words));
    }
    Line::from(said).dim()
}

/// Who, and on which route if it says so.
fn work(app: &str, route: Option<&str>) -> String {
    route.map_or_else(|| named(app), |route| format!("{} {}", named(app), plain(route)))
}

fn most_idle(top: &TopView) -> String {
    let who = work(&top.app, top.route.as_deref());
    format!("{who} ({}, {} in all)", top.stale, seconds(top.stale_seconds))
}

fn named(app: &str) -> String {
    if app.is_empty() { "(no application_name)".to_owned() } else { plain(app) }
}

/// Text from elsewhere, without what would act on a terminal or turn the direction of a line.
fn plain(text: &str) -> String {
    text.chars().map(|c| if acts(c) { '\u{fffd}' } else { c }).collect()
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shown"
)]
fn percent(ratio: f64, size: usize) -> String {
    format!("{:.0} / {size} ({:.0} %)", ratio * size as f64, ratio * 100.0)
}

/// Seconds in few characters.
fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
