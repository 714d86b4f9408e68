//! The report as one HTML file: no script, no request to anywhere, light and dark. Pure.

use std::fmt::Write;
use std::time::Duration;

use crate::report::curve::Curve;
use crate::report::history::Story;
use crate::report::layout::{Block, clock};
use crate::report::timeline::Weight;

/// The plot, in SVG units; its margins hold the labels.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 28.0;

/// The drill's, and what a report has beyond it.
const STYLE: &str = concat!(include_str!("../drill/report.css"), include_str!("page.css"));

/// Writes it out.
pub fn page(title: &str, blocks: &[Block], curve: &Curve, story: &Story) -> String {
    let title = escape(title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main class=\"report\">\n<header>\n<h1>{title}</h1>\n</header>\n"
    );
    let mut open = "";
    for block in blocks {
        match block {
            Block::Heading(text) => {
                let _ = writeln!(page, "{open}<section>\n<h2>{}</h2>", escape(text));
                open = "</section>\n";
            }
            Block::Text(text) => drop(writeln!(page, "<p>{}</p>", escape(text))),
            Block::List(items) => list(&mut page, items),
            Block::Table { header, rows } => table(&mut page, header, rows),
            Block::Code(text) => drop(writeln!(page, "<pre class=\"scroll\">{}</pre>", escape(text))),
            Block::Chart => chart(&mut page, curve, story),
        }
    }
    page.push_str(open);
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn list(page: &mut String, items: &[(Weight, String)]) {
    page.push_str("<ul>\n");
    for (weight, text) in items {
        let class = if *weight == Weight::Grave { " class=\"grave\"" } else { "" };
        let _ = writeln!(page, "<li{class}>{}</li>", escape(text));
    }
    page.push_str("</ul>\n");
}

fn table(page: &mut String, header: &[String], rows: &[Vec<String>]) {
    page.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
    for cell in header {
        let _ = write!(page, "<th scope=\"col\">{}</th>", escape(cell));
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        page.push_str("<tr>");
        for cell in row {
            let _ = write!(page, "<td>{}</td>", escape(cell));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody>\n</table></div>\n");
}

/// Where things are on the plot.
struct Plot<'a> {
    curve: &'a Curve,
}

impl Plot<'_> {
    fn x(&self, at: Duration) -> f64 {
        let (from, to) = self.curve.span;
        let length = to.saturating_sub(from).as_secs_f64().max(1e-3);
        let share = at.saturating_sub(from).as_secs_f64() / length;
        LEFT + share.min(1.0) * (WIDTH - LEFT - RIGHT)
    }

    #[allow(clippy::cast_precision_loss, reason = "connections are few")]
    fn y(&self, stale: usize) -> f64 {
        let full = HEIGHT - TOP - BOTTOM;
        TOP + full * (1.0 - stale as f64 / self.most() as f64)
    }

    /// The value at the top: the pools' size, unless the curve would lie on the ground.
    fn most(&self) -> usize {
        let Curve { most, size, .. } = *self.curve;
        if size <= most * 4 { size.max(most) } else { most }.max(1)
    }
}

fn chart(page: &mut String, curve: &Curve, story: &Story) {
    let plot = Plot { curve };
    let _ = writeln!(
        page,
        "<div class=\"scroll\"><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Stale checkouts over \
         time\">"
    );
    let most = plot.most();
    for level in [0, most / 2, most].into_iter().filter(|level| *level == 0 || *level * 2 >= most) {
        let y = plot.y(level);
        let label =
            if level == curve.size && level > 0 { format!("{level} = all") } else { level.to_string() };
        let _ = writeln!(
            page,
            "<line class=\"level\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">{label}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0
        );
    }
    marks(page, &plot, story);
    let mut path = format!("M{:.1} {:.1}", plot.x(curve.span.0), plot.y(0));
    for (at, stale) in &curve.steps {
        let _ = write!(path, "H{:.1}V{:.1}", plot.x(*at), plot.y(*stale));
    }
    let _ = writeln!(page, "<path class=\"curve without\" d=\"{path}H{:.1}\"/>", plot.x(curve.span.1));
    let y = HEIGHT - 8.0;
    for (at, anchor) in [(curve.span.0, "start"), (curve.span.1, "end")] {
        let _ = writeln!(
            page,
            "<text x=\"{:.1}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>",
            plot.x(at),
            clock(at, curve.span)
        );
    }
    page.push_str("</svg></div>\n");
}

/// When exhaustion was foreseen, and when clients were turned away.
fn marks(page: &mut String, plot: &Plot<'_>, story: &Story) {
    let foreseen = story.foreseen.values().map(|(at, _)| *at).min().map(|at| (at, "foreseen", TOP - 20.0));
    let away = story.turned_away.values().map(|away| away.first).min();
    let away = away.map(|at| (at, "clients turned away", TOP - 6.0));
    for (at, what, label) in foreseen.into_iter().chain(away) {
        let x = plot.x(at);
        let anchor = if x > WIDTH * 0.75 { "end" } else { "start" };
        let _ = writeln!(
            page,
            "<line class=\"phase\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/><text class=\"mark\" x=\"{x:.1}\" \
             y=\"{label:.1}\" text-anchor=\"{anchor}\">{what} {}</text>",
            label + 3.0,
            HEIGHT - BOTTOM,
            clock(at, plot.curve.span)
        );
    }
}

/// As text, or as the value of an attribute.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
