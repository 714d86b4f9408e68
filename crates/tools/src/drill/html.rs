//! The report as one HTML file: no script, no request to anywhere, light and dark. Pure.

use std::fmt::Write;

use crate::drill::chart::Point;
use crate::drill::report::{Report, RunReport};
use crate::drill::scenario::{MINUTES, Phase};
use crate::drill::workload::Kind;
use crate::report::html::escape;

/// The plot, in SVG units; its margins hold the labels.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 28.0;
/// Height of the plot of waiting clients.
const WAITING_HEIGHT: f64 = 110.0;

const STYLE: &str = include_str!("report.css");

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>pgleash drill, seed {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        report.setting.seed
    );
    head(&mut page, report);
    cards(&mut page, report);
    utilization(&mut page, report);
    waiting(&mut page, report);
    table(&mut page, report);
    page.push_str("<section class=\"notes\">\n<h2>How to read this</h2>\n<ul>\n");
    for note in report.notes() {
        let _ = writeln!(page, "<li>{}</li>", escape(&note));
    }
    page.push_str("</ul>\n</section>\n</main>\n</body>\n</html>\n");
    page
}

fn head(page: &mut String, report: &Report) {
    let setting = &report.setting;
    let (class, verdict) = if report.verdict.passed() { ("passed", "Passed") } else { ("failed", "Failed") };
    let text = report.verdict.to_string();
    let text = text.split_once(": ").map_or(text.as_str(), |(_, text)| text);
    let _ = write!(
        page,
        "<header>\n<h1>pgleash drill: {}</h1>\n<p class=\"setting\">The same twice, from seed {}: {}. A payments \
         service on {}, {} payments a second, a pool of {} server connections. Fifteen minutes in {} seconds.</p>\n\
         <p class=\"verdict {class}\"><strong>{verdict}</strong> {}</p>\n",
        setting.scenario,
        setting.seed,
        setting.scenario.said(),
        escape(&setting.server),
        setting.rate,
        setting.pool_size,
        setting.minutes * 60.0,
        escape(text),
    );
    let complaints = report.complaints();
    if !complaints.is_empty() {
        page.push_str("<ul class=\"complaints\">\n");
        for complaint in complaints {
            let _ = writeln!(page, "<li>{}</li>", escape(&complaint));
        }
        page.push_str("</ul>\n");
    }
    page.push_str("</header>\n");
}

/// The figures that matter most, large.
fn cards(page: &mut String, report: &Report) {
    let [without, with] = &report.runs;
    let p99 = |run: &RunReport| {
        run.payments
            .latency_under_campaign
            .map_or("-".to_owned(), |spread| format!("{:.0} ms", spread.p99_seconds * 1000.0))
    };
    let exhausted = |run: &RunReport| {
        run.utilization.exhausted_at_minute.map_or("never".to_owned(), |minute| format!("minute {minute:.1}"))
    };
    let pairs = [
        ("Payments failed", without.payments.failed.to_string(), with.payments.failed.to_string()),
        ("Pool exhausted", exhausted(without), exhausted(with)),
        ("p99 under the campaign", p99(without), p99(with)),
    ];
    page.push_str("<section class=\"cards\">\n");
    for (what, without, with) in pairs {
        let _ = writeln!(
            page,
            "<div class=\"card\"><h2>{what}</h2><p><span class=\"figure with\">{with}</span><small>with watchdog\
             </small></p><p><span class=\"figure without\">{without}</span><small>without</small></p></div>"
        );
    }
    let _ = writeln!(
        page,
        "<div class=\"card\"><h2>Leaks taken back</h2><p><span class=\"figure with\">{} of {}</span></p><p><span class=\"figure plain\">{}</span><small>healthy checkouts killed</small></p></div>",
        with.leaks.reclaimed,
        with.leaks.planted,
        with.leaks.healthy_killed.len() + without.leaks.healthy_killed.len()
    );
    page.push_str("</section>\n");
}

fn utilization(page: &mut String, report: &Report) {
    let plot = Plot { height: HEIGHT, top: TOP, most: 1.0 };
    let [without, with] = &report.runs;
    plot.open(
        page,
        "Pool utilization",
        "Share of the pool's server connections in use, mean, over scenario minutes",
    );
    for (ratio, label) in [(0.0, "0"), (0.25, "25"), (0.5, "50"), (0.75, "75"), (1.0, "100 %")] {
        plot.level(page, ratio, label);
    }
    plot.phases(page, report.setting.scenario, true);
    for (run, class) in [(without, "without"), (with, "with")] {
        plot.curve(page, class, &run.utilization.series, |point| point.mean);
    }
    for (run, class) in [(without, "without"), (with, "with")] {
        if let Some(minute) = run.utilization.exhausted_at_minute {
            let (x, y) = (plot.x(minute), plot.y(1.0));
            let _ = writeln!(page, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>");
            // Above the names of the phases, where no curve is.
            let (top, label) = (plot.top - 22.0, plot.top - 26.0);
            let _ = write!(
                page,
                "<line class=\"exhausted {class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{y:.1}\"/>\n<text \
                 class=\"mark {class}\" x=\"{x:.1}\" y=\"{label}\" text-anchor=\"middle\">exhausted at \
                 {minute:.1}</text>\n"
            );
        }
    }
    plot.close(page);
}

fn waiting(page: &mut String, report: &Report) {
    let [without, with] = &report.runs;
    let most = without.utilization.most_waiting.max(with.utilization.most_waiting);
    if most == 0 {
        return;
    }
    #[allow(clippy::cast_precision_loss, reason = "clients are few")]
    let count = |point: &Point| point.waiting as f64;
    #[allow(clippy::cast_precision_loss, reason = "clients are few")]
    let plot = Plot { height: WAITING_HEIGHT, top: 10.0, most: most as f64 };
    plot.open(
        page,
        "Clients waiting for a connection",
        "Most clients waiting at once, over scenario minutes",
    );
    plot.level(page, 0.0, "0");
    plot.level(page, plot.most, &most.to_string());
    plot.phases(page, report.setting.scenario, false);
    for (run, class) in [(without, "without"), (with, "with")] {
        plot.curve(page, class, &run.utilization.series, count);
    }
    plot.close(page);
}

fn table(page: &mut String, report: &Report) {
    page.push_str(
        "<section>\n<h2>Side by side</h2>\n<table>\n<thead><tr><th></th><th>without watchdog</th><th>with \
         watchdog</th></tr></thead>\n<tbody>\n",
    );
    for line in report.lines() {
        let class = match (line.what.starts_with(' '), line.values.iter().all(String::is_empty)) {
            (true, _) => " class=\"part\"",
            (_, true) => " class=\"group\"",
            _ => "",
        };
        let [without, with] = &line.values;
        let what = escape(line.what.trim());
        let (without, with) = (escape(without), escape(with));
        let _ =
            writeln!(page, "<tr{class}><th scope=\"row\">{what}</th><td>{without}</td><td>{with}</td></tr>");
    }
    page.push_str("</tbody>\n</table>\n</section>\n");
}

/// A plot over scenario minutes.
struct Plot {
    height: f64,
    top: f64,
    /// The value at the top.
    most: f64,
}

impl Plot {
    fn x(&self, minute: f64) -> f64 {
        LEFT + minute / MINUTES * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let full = self.height - self.top - BOTTOM;
        self.top + full * (1.0 - (value / self.most).clamp(0.0, 1.0))
    }

    fn open(&self, page: &mut String, title: &str, description: &str) {
        let _ = write!(
            page,
            "<section class=\"plot\">\n<h2>{title}</h2>\n<p class=\"legend\"><span class=\"key without\"></span>without \
             the watchdog <span class=\"key with\"></span>with it</p>\n<div class=\"scroll\"><svg viewBox=\"0 0 {WIDTH} \
             {}\" role=\"img\" aria-label=\"{description}\">\n",
            self.height
        );
    }

    fn close(&self, page: &mut String) {
        let y = self.height - 8.0;
        for minute in [0, 5, 10, 15] {
            let x = self.x(f64::from(minute));
            let anchor = if minute == 15 { "end" } else { "middle" };
            let unit = if minute == 15 { " min" } else { "" };
            let x = if minute == 15 { x + RIGHT - 2.0 } else { x };
            let _ = writeln!(
                page,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{minute}{unit}</text>"
            );
        }
        page.push_str("</svg></div>\n</section>\n");
    }

    fn level(&self, page: &mut String, value: f64, label: &str) {
        let (y, right) = (self.y(value), WIDTH - RIGHT);
        let _ = writeln!(
            page,
            "<line class=\"level\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
        );
        let (x, y) = (LEFT - 8.0, y + 4.0);
        let _ = writeln!(page, "<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{label}</text>");
    }

    /// Where each phase begins. The last two are close together, so their names stand at two heights.
    fn phases(&self, page: &mut String, kind: Kind, named: bool) {
        for phase in kind.marks() {
            let x = self.x(phase.begins());
            let (top, bottom) = (self.top, self.height - BOTTOM);
            let (label, anchor, label_y) = match phase {
                Phase::Spike => ("campaign, +40 % payments", "end", top - 26.0),
                Phase::Index => ("index dropped", "start", top - 8.0),
                Phase::Baseline | Phase::Deploy => ("deploy with the bug", "start", top - 8.0),
            };
            let from = if named { label_y + 4.0 } else { top };
            let _ = writeln!(
                page,
                "<line class=\"phase\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{from}\" y2=\"{bottom}\"/>"
            );
            if named {
                let _ = writeln!(
                    page,
                    "<text class=\"mark\" x=\"{x:.1}\" y=\"{label_y}\" text-anchor=\"{anchor}\">{label}</text>"
                );
            }
        }
    }

    fn curve(&self, page: &mut String, class: &str, points: &[Point], value: impl Fn(&Point) -> f64) {
        let mut path = String::new();
        for (place, point) in points.iter().enumerate() {
            let verb = if place == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{verb}{:.1} {:.1}", self.x(point.minute), self.y(value(point)));
        }
        let _ = writeln!(page, "<path class=\"curve {class}\" d=\"{path}\"/>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::report::sample_report;

    #[test]
    fn the_page_stands_alone() {
        let page = page(&sample_report());
        for outside in ["http://", "https://", "<script", "<link", "url("] {
            assert!(!page.contains(outside), "{outside} in the page");
        }
        for tag in ["section", "svg", "table", "tr", "ul", "div", "p"] {
            let (opened, closed) =
                (page.matches(&format!("<{tag}>")).count(), page.matches(&format!("</{tag}>")).count());
            let opened = opened + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, closed, "<{tag}>");
        }
    }

    #[test]
    fn a_failed_drill_says_so_and_why() {
        let page = page(&sample_report());
        assert!(page.contains("class=\"verdict failed\""));
        assert!(page.contains("healthy session 77 was killed"));
    }

    #[test]
    fn text_from_a_server_is_escaped() {
        let mut report = sample_report();
        report.setting.server = "<b>&\"".to_owned();
        assert!(page(&report).contains("&lt;b&gt;&amp;&quot;"));
    }
}
