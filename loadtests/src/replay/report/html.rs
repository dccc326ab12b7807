//! The HTML page: the table, and plots over time with every contestant in its colour.
//!
//! The page stands alone: styles, plots and the script that shows and hides lines are in it.

use std::fmt::Write as _;

use super::{Results, cells, summary};
use crate::plot::{PlotLine, SCRIPT as HOVER, STYLE, colours, escaped, plot};
use crate::replay::measure::Report;

/// Most changes of the count that the page lists, and those that it shows at once.
const MOST_CHANGES: usize = 500;
const FEW_CHANGES: usize = 20;

pub(super) fn page(results: &Results) -> String {
    let title = format!("{} on {}", escaped(&results.load.pool), escaped(&results.load.trace));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}{}</style>\n\
         <main><h1>{title}</h1>\n<p>{}</p>\n",
        colours(("k", "background"), results.contestants.len()),
        escaped(&summary(results)),
    );
    table(&mut page, results);
    let at = &results.contestants[0].series.at_seconds;
    let of = |pick: &dyn Fn(&Report) -> Vec<Option<f64>>, steps| {
        let lines = results.contestants.iter().enumerate().map(|(class, report)| {
            let (points, hidden) = (pick(report), hopeless(report));
            PlotLine { class, name: &report.name, points, steps, hidden }
        });
        lines.collect::<Vec<_>>()
    };
    let count = |values: &[u32]| values.iter().map(|n| Some(f64::from(*n))).collect::<Vec<_>>();
    let demand = results.demand.iter().copied().map(Some).collect();
    let demand =
        [PlotLine { class: 99, name: "requests", points: demand, steps: false, hidden: false }];
    plot(&mut page, "Demand", "requests a second", at, &demand, None);
    let waiting = of(&|report| count(&report.series.waiting), false);
    plot(&mut page, "Queue", "requests without a first token", at, &waiting, None);
    let replicas = of(&|report| count(&report.series.replicas), true);
    plot(&mut page, "Replicas", "paid, from request to stop", at, &replicas, None);
    let ttft = of(&|report| report.series.ttft_seconds.clone(), false);
    let objective = Some(results.setting.objective_ttft_seconds);
    plot(&mut page, "TTFT", "seconds, the longest of each stretch", at, &ttft, objective);
    changes(&mut page, results);
    origin(&mut page, results);
    page.push_str("</main>\n<script>");
    page.push_str(HOVER);
    page.push_str(SCRIPT);
    page.push_str("</script>\n</html>\n");
    page
}

/// Forebay's decisions: why each replica was started or stopped.
fn changes(page: &mut String, results: &Results) {
    let all = &results.changes;
    if all.is_empty() {
        return;
    }
    let _ = write!(
        page,
        "<details{}><summary>Forebay's {} changes of the count, with their reasons</summary>\n\
         <div class=scroll><table class=reasons><tr><th>time</th><th>decision</th></tr>\n",
        if all.len() <= FEW_CHANGES { " open" } else { "" },
        all.len()
    );
    for change in all.iter().take(MOST_CHANGES) {
        let whole = change.at_seconds as u64;
        let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
        let sentence = escaped(&change.sentence);
        let _ = writeln!(
            page,
            "<tr><td>{hours}:{minutes:02}:{seconds:02}</td><td>{sentence}</td></tr>"
        );
    }
    page.push_str("</table></div>\n");
    if all.len() > MOST_CHANGES {
        let _ = writeln!(page, "<p>The first {MOST_CHANGES}; results.json has all.</p>");
    }
    page.push_str("</details>\n");
}

/// The program, the seed and the settings.
fn origin(page: &mut String, results: &Results) {
    let Some(origin) = &results.origin else { return };
    let settings = serde_json::to_string_pretty(origin).unwrap_or_default();
    let _ = write!(
        page,
        "<details><summary>Made by forebay {}, seed {}</summary>\n<pre>{}</pre></details>\n",
        escaped(&origin.version),
        origin.seed,
        escaped(&settings)
    );
}

/// Whether a contestant left more than a tenth unserved: its lines would flatten all others.
fn hopeless(report: &Report) -> bool {
    report.service.gave_up * 10 > report.service.requests
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

const SCRIPT: &str = "
for (const box of document.querySelectorAll('input[data-line]')) {
  const show = () => document.querySelectorAll('path[data-line=\"' + box.dataset.line + '\"]')
    .forEach(line => line.classList.toggle('off', !box.checked));
  box.addEventListener('change', show);
  show();
}
";
