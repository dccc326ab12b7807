//! The page: the table, and plots over time with every contestant in its colour.
//!
//! It needs nothing but itself: styles, plots and the little script that shows and hides lines are
//! in it.

use std::fmt::Write as _;

use super::{Results, cells, summary};
use crate::replay::measure::Report;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 46.0;
const BOTTOM: f64 = 22.0;
const COLOURS: [&str; 8] =
    ["#0a7d5a", "#8a8f98", "#d1495b", "#e08e1b", "#3b6fd4", "#8e5bd0", "#1b9bb5", "#b0a000"];

/// One line of a plot.
struct Line<'a> {
    class: usize,
    name: &'a str,
    points: Vec<Option<f64>>,
    steps: bool,
    /// Not shown at first, nor what the axis is made for.
    hidden: bool,
}

pub(super) fn page(results: &Results) -> String {
    let title = format!("{} on {}", escaped(&results.pool), escaped(&results.trace));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}{}</style>\n\
         <main><h1>{title}</h1>\n<p>{}</p>\n",
        colours(results.contestants.len()),
        escaped(&summary(results)),
    );
    table(&mut page, results);
    let at = &results.contestants[0].series.at_seconds;
    let of = |pick: &dyn Fn(&Report) -> Vec<Option<f64>>, steps| {
        let lines = results.contestants.iter().enumerate().map(|(class, report)| {
            let (points, hidden) = (pick(report), hopeless(report));
            Line { class, name: &report.name, points, steps, hidden }
        });
        lines.collect::<Vec<_>>()
    };
    let count = |values: &[u32]| values.iter().map(|n| Some(f64::from(*n))).collect::<Vec<_>>();
    let demand = results.demand.iter().copied().map(Some).collect();
    let demand =
        [Line { class: 99, name: "requests", points: demand, steps: false, hidden: false }];
    plot(&mut page, "Demand", "requests a second", at, &demand, None);
    let waiting = of(&|report| count(&report.series.waiting), false);
    plot(&mut page, "Queue", "requests without a first token", at, &waiting, None);
    let replicas = of(&|report| count(&report.series.replicas), true);
    plot(&mut page, "Replicas", "paid, from asked for to stopped", at, &replicas, None);
    let ttft = of(&|report| report.series.ttft_seconds.clone(), false);
    let objective = Some(results.objective_ttft_seconds);
    plot(&mut page, "TTFT", "seconds, the longest of each stretch", at, &ttft, objective);
    page.push_str("</main>\n<script>");
    page.push_str(SCRIPT);
    page.push_str("</script>\n</html>\n");
    page
}

/// One that left more than a tenth unserved: its lines would flatten all others.
fn hopeless(report: &Report) -> bool {
    report.gave_up * 10 > report.requests
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn colours(count: usize) -> String {
    (0..count).fold(String::new(), |mut css, at| {
        let colour = COLOURS[at % COLOURS.len()];
        let _ = write!(css, ".l{at}{{stroke:{colour}}}.k{at}{{background:{colour}}}");
        css
    })
}

fn table(page: &mut String, results: &Results) {
    page.push_str("<div class=scroll><table>\n");
    for (at, row) in cells(results).iter().enumerate() {
        let cell = if at == 0 { "th" } else { "td" };
        page.push_str("<tr>");
        for (column, text) in row.iter().enumerate() {
            let text = escaped(text);
            let _ = if at > 0 && column == 0 {
                let line = at - 1;
                let checked = if hopeless(&results.contestants[line]) { "" } else { " checked" };
                write!(
                    page,
                    "<td><label><input type=checkbox data-line={line}{checked}><i class=k{line}>\
                     </i>{text}</label></td>"
                )
            } else {
                write!(page, "<{cell}>{text}</{cell}>")
            };
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}

fn plot(
    page: &mut String,
    title: &str,
    what: &str,
    at: &[f64],
    lines: &[Line<'_>],
    mark: Option<f64>,
) {
    let end = at.last().copied().unwrap_or(1.0).max(1.0);
    let shown = lines.iter().filter(|line| !line.hidden);
    let values = shown.flat_map(|line| line.points.iter().flatten().copied());
    let top = nice(values.fold(mark.map_or(0.0, |mark| mark * 1.5), f64::max));
    let x = |t: f64| LEFT + (WIDTH - LEFT - 4.0) * t / end;
    let y = |v: f64| 6.0 + (HEIGHT - BOTTOM - 6.0) * (1.0 - (v / top).min(1.0));
    let _ = write!(
        page,
        "<h2>{title} <small>{what}</small></h2>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=img \
         aria-label=\"{title}\">\n"
    );
    for part in 0..=4 {
        let value = top * f64::from(part) / 4.0;
        let (y, label) = (y(value), short(value));
        let _ = write!(
            page,
            "<path class=grid d=\"M{LEFT} {y:.1}H{WIDTH}\"/><text x={:.0} y={:.1} \
             text-anchor=end>{label}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    for (seconds, label) in ticks(end) {
        let _ = write!(
            page,
            "<text x={:.1} y={:.0} text-anchor=middle>{label}</text>",
            x(seconds),
            HEIGHT - 4.0
        );
    }
    if let Some(mark) = mark {
        let y = y(mark);
        let _ = write!(
            page,
            "<path class=mark d=\"M{LEFT} {y:.1}H{WIDTH}\"><title>the objective</title></path>"
        );
    }
    // The first is drawn last, on top.
    for line in lines.iter().rev() {
        let (class, name) = (line.class, escaped(line.name));
        let d = path(line, at, &x, &y);
        let _ = write!(
            page,
            "\n<path class=\"line l{class}\" data-line={class} d=\"{d}\"><title>{name}</title></path>"
        );
    }
    page.push_str("</svg>\n");
}

fn path(line: &Line<'_>, at: &[f64], x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) -> String {
    let mut d = String::new();
    let mut last: Option<f64> = None;
    for (t, value) in at.iter().zip(&line.points) {
        let Some(value) = value else {
            last = None;
            continue;
        };
        let (px, py) = (x(*t), y(*value));
        let _ = match last {
            None => write!(d, "M{px:.1} {py:.1}h.5"),
            // What goes on as it was is drawn by the next change.
            Some(before) if before == *value && line.steps => write!(d, "H{px:.1}"),
            Some(_) if line.steps => write!(d, "H{px:.1}V{py:.1}"),
            Some(_) => write!(d, "L{px:.1} {py:.1}"),
        };
        last = Some(*value);
    }
    d
}

/// The next round figure that is not below.
fn nice(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0];
    steps.into_iter().map(|step| step * power).find(|round| *round >= value).unwrap_or(value)
}

fn short(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// Times of the axis: about ten, at round figures.
fn ticks(end: f64) -> Vec<(f64, String)> {
    let steps = [60.0, 300.0, 600.0, 1800.0, 3600.0, 10_800.0, 21_600.0, 86_400.0, 604_800.0];
    let step = steps.into_iter().find(|step| end / step <= 12.0).unwrap_or(end / 8.0);
    let label = |t: f64| match t {
        t if step >= 86_400.0 => format!("day {:.0}", t / 86_400.0 + 1.0),
        t if step >= 3600.0 => format!("{:.0} h", t / 3600.0),
        t => format!("{:.0} min", t / 60.0),
    };
    let count = (end / step) as u32;
    (0..=count).map(|at| f64::from(at) * step).map(|t| (t, label(t))).collect()
}

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1d2228;--dim:#69717c;--paper:#fff;--rule:#e3e6ea}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7eb;--dim:#98a1ad;--paper:#15181c;--rule:#2b3037}}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:24px;margin:0}h2{font-size:16px;margin:28px 0 4px}
small,p{color:var(--dim);font-weight:400}p{margin:2px 0 18px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13.5px;width:100%}
th{color:var(--dim);font-weight:500}th,td{text-align:right;padding:5px 8px;white-space:nowrap}
td{border-top:1px solid var(--rule)}td:first-child,th:first-child{text-align:left;padding-left:0}
label{cursor:pointer}label input{margin:0 6px 0 0;vertical-align:-1px}
label i{display:inline-block;width:14px;height:4px;border-radius:2px;margin-right:6px;vertical-align:3px}
svg{width:100%;display:block;overflow:visible}
svg text{fill:var(--dim);font-size:11px}
.grid{stroke:var(--rule);fill:none}
.line{fill:none;stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}
.l0{stroke-width:2.4}.l99{stroke:var(--ink)}
.mark{stroke:var(--dim);stroke-dasharray:5 4;fill:none}
.off{display:none}
";

const SCRIPT: &str = "
for (const box of document.querySelectorAll('input[data-line]')) {
  const show = () => document.querySelectorAll('path[data-line=\"' + box.dataset.line + '\"]')
    .forEach(line => line.classList.toggle('off', !box.checked));
  box.addEventListener('change', show);
  show();
}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_figures() {
        for (value, want) in [(0.0, 1.0), (1.0, 1.0), (7.1, 8.0), (23.0, 30.0), (410.0, 600.0)] {
            assert!((nice(value) - want).abs() < 1e-9, "{value}: {}", nice(value));
        }
        assert_eq!(ticks(3600.0).len(), 13);
        assert_eq!(ticks(7.0 * 86_400.0).first().map(|(_, label)| label.as_str()), Some("day 1"));
    }

    #[test]
    fn names_cannot_break_the_page() {
        assert_eq!(escaped("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }
}
