//! The page: the table, and plots of load, latency and tokens over time.

use std::fmt::Write as _;

use super::{COLUMNS, NO_LATENCIES, Summary, latencies, lines, warning};
use crate::plot::{PlotLine, SCRIPT, STYLE, colours, escaped, plot};

pub(crate) fn page(summary: &Summary) -> String {
    let title = escaped(&summary.load);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}{}{LEGEND}</style>\n\
         <main><h1>{title}</h1>\n<p>{} ({})</p>\n",
        colours(("k", "background"), 3),
        escaped(&summary.endpoint),
        escaped(&summary.model),
    );
    tables(&mut page, summary);
    let over_time = &summary.over_time;
    let all = |values: &[f64]| values.iter().copied().map(Some).collect::<Vec<_>>();
    let mut draw = |title: &str, unit: &str, curves: Vec<(&str, Vec<Option<f64>>)>| {
        let mut curves: Vec<_> = curves.into_iter().enumerate().map(curve).collect();
        let legend = legend(unit, &curves);
        // Where all requests fail, their line must not be under that of the sent ones.
        curves.sort_by_key(|curve| curve.name != "failed");
        plot(&mut page, title, &legend, &over_time.at, &curves, None);
    };
    let mut requests = vec![
        ("complete", all(&over_time.complete_per_second)),
        ("sent", all(&over_time.sent_per_second)),
    ];
    // A line along the axis would say no more than the table.
    if over_time.failed_per_second.iter().any(|failed| *failed > 0.0) {
        requests.push(("failed", all(&over_time.failed_per_second)));
    }
    draw("Requests", "a second", requests);
    let in_flight = over_time.most_in_flight.iter().map(|count| Some(*count as f64)).collect();
    draw("In flight", "requests, the most of each interval", vec![("in flight", in_flight)]);
    if summary.latency.ttft.is_some() {
        draw(
            "TTFT",
            "seconds, by intended time",
            vec![("p50", over_time.ttft_p50.clone()), ("p99", over_time.ttft_p99.clone())],
        );
    }
    if summary.latency.whole.is_some() {
        draw(
            "Whole answer",
            "seconds, by intended time",
            vec![("p50", over_time.latency_p50.clone()), ("p99", over_time.latency_p99.clone())],
        );
    }
    if summary.requests.tokens > 0 {
        draw("Tokens", "streamed a second", vec![("tokens", all(&over_time.tokens_per_second))]);
    }
    let _ = write!(page, "</main>\n<script>{SCRIPT}</script>\n</html>\n");
    page
}

fn curve((class, (name, points)): (usize, (&str, Vec<Option<f64>>))) -> PlotLine<'_> {
    PlotLine { class, name, points, steps: false, hidden: false }
}

/// The unit, and each curve's colour and name where there are several.
fn legend(unit: &str, curves: &[PlotLine<'_>]) -> String {
    let mut text = unit.to_owned();
    if curves.len() > 1 {
        for curve in curves {
            let _ = write!(text, " <i class=k{}></i>{}", curve.class, curve.name);
        }
    }
    text
}

fn tables(page: &mut String, summary: &Summary) {
    page.push_str("<table class=words>\n");
    for (name, figures) in lines(summary) {
        let _ = writeln!(page, "<tr><td>{name}</td><td>{}</td></tr>", escaped(&figures));
    }
    page.push_str("</table>\n");
    let rows = latencies(summary);
    if rows.is_empty() {
        let _ = writeln!(page, "<p class=warning>{NO_LATENCIES}</p>");
    } else {
        page.push_str("<div class=scroll><table>\n<tr><th></th>");
        for column in COLUMNS {
            let _ = write!(page, "<th>{column}</th>");
        }
        page.push_str("</tr>\n");
        for (name, cells) in rows {
            let _ = write!(page, "<tr><td>{name}</td>");
            for cell in cells {
                let _ = write!(page, "<td>{cell}</td>");
            }
            page.push_str("</tr>\n");
        }
        page.push_str("</table></div>\n");
    }
    if let Some(warning) = warning(summary) {
        let _ = writeln!(page, "<p class=warning>{}</p>", escaped(&warning));
    }
}

const LEGEND: &str = "
small i{display:inline-block;width:14px;height:4px;border-radius:2px;margin:0 5px 0 10px;vertical-align:3px}
.warning{color:var(--ink);border-left:3px solid #e08e1b;padding:2px 0 2px 12px;margin:16px 0}
.words{width:auto;margin-bottom:18px}.words td{text-align:left;white-space:normal}
";
