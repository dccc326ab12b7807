//! Plots over time as SVG, and the style of the pages that show them.
//!
//! A page with plots stands alone: `STYLE` goes into its head, and each plot is inline. Pure: values in,
//! text out. [`growth`] has plots of a cost against a size, in files of their own.

use std::fmt::Write as _;

pub mod growth;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 46.0;
const BOTTOM: f64 = 22.0;
const COLOURS: [&str; 8] =
    ["#0a7d5a", "#8a8f98", "#d1495b", "#e08e1b", "#3b6fd4", "#8e5bd0", "#1b9bb5", "#b0a000"];

/// The first colour on dark paper, where it would be too dim.
const FIRST_ON_DARK: &str = "#2cb68a";

/// One line of a plot.
pub(crate) struct PlotLine<'a> {
    /// Its colour: an index into those of [`colours`], or 99 for the colour of the text.
    pub(crate) class: usize,
    pub(crate) name: &'a str,
    pub(crate) points: Vec<Option<f64>>,
    /// Whether each value holds until the next one.
    pub(crate) steps: bool,
    /// Not shown at first; the axis ignores it.
    pub(crate) hidden: bool,
}

/// Appends a plot over the times `at`, in seconds, with a dashed line at `mark`.
pub(crate) fn plot(
    page: &mut String,
    title: &str,
    unit: &str,
    at: &[f64],
    lines: &[PlotLine<'_>],
    mark: Option<f64>,
) {
    let end = at.last().copied().unwrap_or(1.0).max(1.0);
    let shown = lines.iter().filter(|line| !line.hidden);
    let values = shown.flat_map(|line| line.points.iter().flatten().copied());
    let top = nice(values.fold(mark.map_or(0.0, |mark| mark * 1.5), f64::max));
    let scale = Scale::new(top, mark);
    let x = |t: f64| LEFT + (WIDTH - LEFT - 4.0) * t / end;
    let y = |v: f64| 6.0 + (HEIGHT - BOTTOM - 6.0) * (1.0 - scale.share(v));
    let note = if matches!(scale, Scale::Logarithmic { .. }) { ", logarithmic" } else { "" };
    let _ = write!(
        page,
        "<h2>{title} <small>{unit}{note}</small></h2>\n<div class=plot><svg viewBox=\"0 0 {WIDTH} \
         {HEIGHT}\" role=img aria-label=\"{title}\" data-values=\"{}\">\n",
        escaped(&pointed(at, lines, end))
    );
    for value in scale.grid() {
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
        let x = x(seconds);
        // In the middle, the last label would leave the picture.
        let anchor = if x > WIDTH - 20.0 { "end" } else { "middle" };
        let _ = write!(
            page,
            "<text x={x:.1} y={:.0} text-anchor={anchor}>{label}</text>",
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
    page.push_str("</svg></div>\n");
}

/// The points for the script that shows them under the pointer, as JSON.
fn pointed(at: &[f64], lines: &[PlotLine<'_>], end: f64) -> String {
    // Three digits behind the point are more than the picture has.
    let rounded = |value: f64| (value * 1e3).round() / 1e3;
    let lines: Vec<_> = lines
        .iter()
        .map(|line| {
            let points: Vec<_> = line.points.iter().map(|value| value.map(rounded)).collect();
            serde_json::json!({"line": line.class, "name": line.name, "points": points})
        })
        .collect();
    let at: Vec<_> = at.iter().copied().map(rounded).collect();
    serde_json::json!({"left": LEFT, "right": WIDTH - 4.0, "end": end, "at": at, "lines": lines})
        .to_string()
}

/// The vertical axis.
enum Scale {
    Linear { top: f64 },
    Logarithmic { bottom: f64, top: f64 },
}

impl Scale {
    /// Logarithmic where a mark would lie at the very bottom of a linear axis.
    fn new(top: f64, mark: Option<f64>) -> Self {
        match mark {
            Some(mark) if mark > 0.0 && top > mark * 12.0 => {
                Self::Logarithmic { bottom: 10f64.powf((mark / 20.0).log10().floor()), top }
            }
            _ => Self::Linear { top },
        }
    }

    /// The height of a value, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let share = match self {
            Self::Linear { top } => value / top,
            Self::Logarithmic { bottom, top } => {
                (value.max(*bottom) / bottom).log10() / (top / bottom).log10()
            }
        };
        share.clamp(0.0, 1.0)
    }

    /// The values of the lines of the grid.
    fn grid(&self) -> Vec<f64> {
        match self {
            Self::Linear { top } => (0..=4).map(|part| top * f64::from(part) / 4.0).collect(),
            Self::Logarithmic { bottom, top } => {
                let powers = std::iter::successors(Some(*bottom), |value| Some(value * 10.0));
                powers.take_while(|value| value <= top).collect()
            }
        }
    }
}

fn path(line: &PlotLine<'_>, at: &[f64], x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) -> String {
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
            // A value that does not change is drawn by the next change.
            Some(before) if before == *value && line.steps => write!(d, "H{px:.1}"),
            Some(_) if line.steps => write!(d, "H{px:.1}V{py:.1}"),
            Some(_) => write!(d, "L{px:.1} {py:.1}"),
        };
        last = Some(*value);
    }
    d
}

/// The next figure at or above `value` whose quarters are round, and whole from 4 on: there are no
/// half requests.
fn nice(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 6.0, 8.0, 10.0, 12.0];
    let whole = |round: f64| round < 4.0 || (round / 4.0).fract() == 0.0;
    let rounds = steps.into_iter().map(|step| (step * power * 1e9).round() / 1e9);
    rounds.into_iter().find(|round| *round >= value && whole(*round)).unwrap_or(value)
}

/// A figure at an axis, its thousands apart.
fn short(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 {
        grouped(value)
    } else if value >= 1.0 {
        format!("{value:.1}")
    } else {
        let decimals = 1.0 - value.log10().floor();
        let text = format!("{value:.*}", decimals as usize);
        text.trim_end_matches('0').to_owned()
    }
}

/// A whole number with its thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Times on the axis: about ten, at round figures.
fn ticks(end: f64) -> Vec<(f64, String)> {
    let steps = [
        1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 10_800.0, 21_600.0,
        86_400.0, 604_800.0,
    ];
    let step = steps.into_iter().find(|step| end / step <= 12.0).unwrap_or(end / 8.0);
    let label = |t: f64| match t {
        t if step >= 86_400.0 => format!("day {:.0}", t / 86_400.0 + 1.0),
        t if step >= 3600.0 => format!("{:.0} h", t / 3600.0),
        t if step < 60.0 => format!("{t:.0} s"),
        t => format!("{:.0} min", t / 60.0),
    };
    let count = (end / step) as u32;
    (0..=count).map(|at| f64::from(at) * step).map(|t| (t, label(t))).collect()
}

/// Text for HTML.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The style rules of this many lines, and of their keys by the `property` of the class `key`.
pub(crate) fn colours((key, property): (&str, &str), count: usize) -> String {
    let mut css = (0..count).fold(String::new(), |mut css, at| {
        let colour = COLOURS[at % COLOURS.len()];
        let _ = write!(css, ".l{at}{{stroke:{colour}}}.{key}{at}{{{property}:{colour}}}");
        css
    });
    let _ = write!(
        css,
        "@media(prefers-color-scheme:dark){{.l0{{stroke:{FIRST_ON_DARK}}}\
         .{key}0{{{property}:{FIRST_ON_DARK}}}}}"
    );
    css
}

/// The style sheet of the text, the tables and the plots.
pub(crate) const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1d2228;--dim:#69717c;--paper:#fff;--rule:#e3e6ea}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7eb;--dim:#98a1ad;--paper:#15181c;--rule:#2b3037}}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:24px;margin:0}h2{font-size:16px;margin:28px 0 4px}
small,p{color:var(--dim);font-weight:400}p{margin:2px 0 18px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13.5px;width:100%}
th{color:var(--dim);font-weight:500}th,td{text-align:right;padding:5px 8px;white-space:nowrap}
td{border-top:1px solid var(--rule)}td:first-child,th:first-child{text-align:left;padding-left:0}
label{cursor:pointer}label input{margin:0 6px 0 0;vertical-align:-1px}
label i{display:inline-block;width:14px;height:4px;border-radius:2px;margin-right:6px;vertical-align:3px}
.plot{position:relative;overflow-x:auto}
svg{width:100%;min-width:620px;display:block}
.tip{position:absolute;top:0;pointer-events:none;background:var(--paper);border:1px solid var(--rule);
border-radius:4px;padding:3px 8px;font-size:12.5px;white-space:pre;font-variant-numeric:tabular-nums}
.tip[hidden]{display:none}.cross{stroke:var(--dim);stroke-width:.8}
details{margin-top:24px}summary{cursor:pointer}pre{font-size:12.5px;overflow-x:auto}
.reasons td,.reasons th{text-align:left;white-space:normal}.reasons td:first-child{white-space:nowrap}
@media(max-width:640px){main{padding:16px 12px 40px}td,th{padding:5px 6px}}
svg text{fill:var(--dim);font-size:11px}
.grid{stroke:var(--rule);fill:none}
.line{fill:none;stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}
.l0{stroke-width:2.4}.l99{stroke:var(--ink)}
.mark{stroke:var(--dim);stroke-dasharray:5 4;fill:none}
.off{display:none}
";

/// The script that shows the values under the pointer, or under a finger.
pub(crate) const SCRIPT: &str = "
for (const svg of document.querySelectorAll('svg[data-values]')) {
  const {left, right, end, at, lines} = JSON.parse(svg.dataset.values);
  const box = svg.parentElement, tip = document.createElement('div');
  const cross = document.createElementNS(svg.namespaceURI, 'path');
  tip.className = 'tip'; tip.hidden = true; cross.setAttribute('class', 'cross');
  box.append(tip); svg.append(cross);
  const time = s => { s = Math.round(s); const two = n => String(n).padStart(2, '0');
    return Math.floor(s / 3600) + ':' + two(Math.floor(s / 60) % 60) + ':' + two(s % 60); };
  const move = event => {
    const frame = svg.getBoundingClientRect();
    const x = (event.clientX - frame.left) / frame.width * svg.viewBox.baseVal.width;
    const t = Math.min(Math.max((x - left) / (right - left), 0), 1) * end;
    let low = 0, high = at.length - 1;
    while (low < high) { const mid = (low + high) >> 1; if (at[mid] < t) low = mid + 1; else high = mid; }
    const px = left + (right - left) * at[low] / end;
    cross.setAttribute('d', 'M' + px + ' 6V158');
    const shown = lines.filter(line => line.points[low] !== null &&
      !svg.querySelector('path.off[data-line=\"' + line.line + '\"]'));
    tip.textContent = [time(at[low]), ...shown.map(line => line.name + '  ' + line.points[low])].join('\\n');
    tip.hidden = false; cross.style.display = '';
    const place = px / svg.viewBox.baseVal.width * frame.width;
    tip.style.left = Math.max(0, place + (place > frame.width / 2 ? -tip.offsetWidth - 10 : 10)) + 'px';
  };
  svg.addEventListener('pointermove', move); svg.addEventListener('pointerdown', move);
  svg.addEventListener('pointerleave', () => { tip.hidden = true; cross.style.display = 'none'; });
}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_figures() {
        for (value, want) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (0.07, 0.08),
            (3.1, 3.2),
            (5.0, 8.0),
            (7.1, 8.0),
            (9.0, 12.0),
            (23.0, 24.0),
            (27.0, 32.0),
            (410.0, 600.0),
            (2_600.0, 3_200.0),
        ] {
            assert!((nice(value) - want).abs() < 1e-9, "{value}: {}", nice(value));
        }
        assert_eq!(ticks(3600.0).len(), 13);
        assert_eq!(ticks(20.0).last().map(|(_, label)| label.as_str()), Some("20 s"));
        assert_eq!(ticks(7.0 * 86_400.0).first().map(|(_, label)| label.as_str()), Some("day 1"));
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!([850.0, 1_000.0, 1_234_567.0].map(short), ["850", "1,000", "1,234,567"]);
        assert_eq!([1.5, 0.25].map(short), ["1.5", "0.25"]);
    }

    #[test]
    fn small_figures_keep_their_digits() {
        let axis = [0.0, 0.015, 0.03, 0.045, 0.06];
        assert_eq!(axis.map(short), ["0", "0.015", "0.03", "0.045", "0.06"]);
        assert_eq!([0.5, 0.002_4].map(short), ["0.5", "0.0024"]);
    }

    #[test]
    fn the_last_time_stays_within_the_picture() {
        let mut page = String::new();
        plot(&mut page, "Load", "requests", &[0.0, 11.0], &[], None);
        assert!(page.contains("text-anchor=end>11 s</text>"), "{page}");
        assert!(page.contains("text-anchor=middle>10 s</text>"), "{page}");
    }

    #[test]
    fn an_axis_is_logarithmic_where_the_objective_would_vanish() {
        let near = Scale::new(8.0, Some(2.0));
        assert_eq!(near.grid(), [0.0, 2.0, 4.0, 6.0, 8.0]);
        let far = Scale::new(160.0, Some(2.0));
        assert_eq!(far.grid().len(), 4, "0.1, 1, 10 and 100 s");
        assert!((0.3..0.6).contains(&far.share(2.0)), "{}", far.share(2.0));
        assert!(far.share(0.0) < 1e-9 && (far.share(160.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn names_cannot_break_the_page() {
        assert_eq!(escaped("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }
}
