//! Plots of a cost against a size, each an SVG file that stands alone.
//!
//! The sizes are far apart, so their axis is logarithmic. The cost begins at zero, so that a line
//! twice as high costs twice as much. The colours follow the reader's light or dark mode.

use std::fmt::Write as _;

use serde::Deserialize;

use super::{colours, escaped, grouped, nice, short};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 46.0;
const LEGEND_STEP: f64 = 110.0;

/// A cost against a size.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrowthPlot {
    /// The file's name, without its ending.
    pub name: String,
    /// The heading.
    pub title: String,
    /// The cost and its unit, over its axis.
    pub cost: String,
    /// The size and its unit, under its axis.
    pub size: String,
    /// The sizes, ascending, each above zero.
    pub at: Vec<f64>,
    /// The programs that are compared.
    pub lines: Vec<GrowthLine>,
}

/// The costs of one program.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrowthLine {
    /// The program.
    pub name: String,
    /// One for each size; none where it was not measured.
    pub points: Vec<Option<f64>>,
}

impl GrowthPlot {
    /// The SVG file's text.
    #[must_use]
    pub fn svg(&self) -> String {
        let points = self.lines.iter().flat_map(|line| line.points.iter().flatten().copied());
        let top = nice(points.fold(0.0, f64::max));
        let (first, last) = (
            self.at.first().copied().unwrap_or(1.0).ln(),
            self.at.last().copied().unwrap_or(1.0).ln(),
        );
        // A single size stands in the middle.
        let share =
            |size: f64| if last > first { (size.ln() - first) / (last - first) } else { 0.5 };
        let x = |size: f64| LEFT + 10.0 + (WIDTH - LEFT - RIGHT - 20.0) * share(size);
        let y = |cost: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - cost / top);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" aria-label=\"{title}\">\n\
             <style>{STYLE}{colours}</style>\n<rect class=\"paper\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" rx=\"6\"/>\n<text class=\"title\" x=\"14\" y=\"24\">{title}</text>\n\
             <text x=\"14\" y=\"{cost_y:.0}\">{cost}</text>\n\
             <text x=\"{middle:.0}\" y=\"{size_y:.0}\" text-anchor=\"middle\">{size}</text>\n",
            title = escaped(&self.title),
            colours = colours(("d", "fill"), self.lines.len()),
            cost = escaped(&self.cost),
            cost_y = TOP - 12.0,
            size = escaped(&self.size),
            middle = f64::midpoint(LEFT, WIDTH - RIGHT),
            size_y = HEIGHT - 10.0,
        );
        for part in 0..=4 {
            let cost = top * f64::from(part) / 4.0;
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{end}\"/><text x=\"{label:.0}\" \
                 y=\"{text:.1}\" text-anchor=\"end\">{}</text>",
                short(cost),
                at = y(cost),
                end = WIDTH - RIGHT,
                label = LEFT - 8.0,
                text = y(cost) + 4.0,
            );
        }
        for size in &self.at {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
                x(*size),
                HEIGHT - BOTTOM + 18.0,
                grouped(*size),
            );
        }
        // The first is drawn last, on top.
        for (number, line) in self.lines.iter().enumerate().rev() {
            self.line(&mut svg, number, line, &x, &y);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn line(
        &self,
        svg: &mut String,
        number: usize,
        line: &GrowthLine,
        x: &dyn Fn(f64) -> f64,
        y: &dyn Fn(f64) -> f64,
    ) {
        let (mut path, mut dots, mut joined) = (String::new(), String::new(), false);
        for (size, cost) in self.at.iter().zip(&line.points) {
            let Some(cost) = cost else {
                joined = false;
                continue;
            };
            let (px, py) = (x(*size), y(*cost));
            let _ = write!(path, "{}{px:.1} {py:.1}", if joined { 'L' } else { 'M' });
            let _ = write!(
                dots,
                "<circle class=\"d{number}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3.5\"><title>{}: \
                 {}</title></circle>",
                grouped(*size),
                short(*cost),
            );
            joined = true;
        }
        let _ = writeln!(svg, "<path class=\"line l{number}\" d=\"{path}\"/>{dots}");
        let from_right = (self.lines.len() - number) as f64;
        let legend = WIDTH - RIGHT - LEGEND_STEP * from_right;
        let _ = writeln!(
            svg,
            "<path class=\"line l{number}\" d=\"M{legend:.0} 46h18\"/><text class=\"name\" \
             x=\"{:.0}\" y=\"50\">{}</text>",
            legend + 25.0,
            escaped(&line.name),
        );
    }
}

const STYLE: &str = "
.paper{fill:#fff}text{fill:#57606a;font:12.5px system-ui,sans-serif}.name{fill:#1d2228}
.title{fill:#1d2228;font-size:16px;font-weight:600}.grid{stroke:#e3e6ea;fill:none}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
@media(prefers-color-scheme:dark){.paper{fill:#15181c}text{fill:#98a1ad}
.title,.name{fill:#e4e7eb}.grid{stroke:#2b3037}}
";

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(at: Vec<f64>, points: Vec<Option<f64>>) -> GrowthPlot {
        GrowthPlot {
            name: "endpoints".into(),
            title: "A request & <its> endpoints".into(),
            cost: "CPU µs".into(),
            size: "endpoints".into(),
            at,
            lines: vec![GrowthLine { name: "Forebay".into(), points }],
        }
    }

    #[test]
    fn tenfold_sizes_are_equally_far_apart() {
        let svg = plot(vec![10.0, 100.0, 1000.0], vec![Some(1.0), Some(2.0), Some(4.0)]).svg();
        let places: Vec<f64> = svg
            .split("<circle")
            .skip(1)
            .filter_map(|dot| dot.split("cx=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(places.len(), 3, "{svg}");
        assert!((places[1] - places[0] - (places[2] - places[1])).abs() < 0.2, "{places:?}");
        assert!(svg.contains(">1,000</text>") && svg.contains("&amp; &lt;its&gt;"), "{svg}");
    }

    #[test]
    fn a_size_that_was_not_measured_is_a_gap() {
        let costs = vec![Some(1.0), None, Some(4.0), Some(5.0)];
        let svg = plot(vec![1.0, 2.0, 3.0, 4.0], costs).svg();
        let path = svg.split("class=\"line l0\" d=\"").nth(1).expect("a line");
        let path = path.split('"').next().expect("its end");
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 1), "{path}");
    }

    #[test]
    fn a_single_size_has_its_place() {
        assert!(!plot(vec![5.0], vec![Some(1.0)]).svg().contains("NaN"));
    }
}
