//! `/metrics`, line for line as the real server writes it.
//!
//! The page is a recorded one (`recorded.txt`), parsed once: its comments, names, labels and their
//! order stay, and the values come from the engine. A series for which the simulator has no figure
//! keeps its recorded value: mostly those of Python and of the process. Without a parser of tool calls,
//! its series are left out.

pub(crate) mod stats;

use stats::{Histogram, HttpStats, one_two_five};
use std::collections::BTreeMap;
use std::fmt::Write;

const RECORDED: &str = include_str!("recorded.txt");

/// The label with the recorded server's model name.
const RECORDED_LABEL: &str = r#"model_name="tiny""#;

/// Token counts, whose buckets follow the model's length.
const TOKEN_COUNTS: [&str; 5] = [
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_max_num_generation_tokens",
    "vllm:request_params_max_tokens",
    "vllm:request_prefill_kv_computed_tokens",
];

/// The page, without values.
#[derive(Debug)]
pub(crate) struct Page {
    lines: Vec<PageLine>,
    histograms: BTreeMap<String, Vec<f64>>,
}

#[derive(Debug)]
enum PageLine {
    Text(String),
    /// A value, looked up by name and labels.
    Sample {
        name: String,
        labels: String,
        recorded: String,
    },
    /// The time at which a series was created.
    Created {
        head: String,
    },
    /// All buckets of a histogram.
    Buckets {
        family: String,
        before: String,
        after: String,
    },
    /// Counts by handler, which appear with the first request.
    Http {
        family: String,
        help: String,
    },
    Lora,
}

/// The settings that fix the page at the start.
#[derive(Debug, Clone)]
pub(crate) struct PageSettings<'a> {
    pub(crate) model: &'a str,
    pub(crate) max_model_len: u32,
    pub(crate) blocks: usize,
    pub(crate) block_size: u32,
    /// Whether there is a parser of tool calls.
    pub(crate) tool_parser: bool,
}

/// The figures of one scrape.
pub(crate) struct Figures<'a> {
    /// A value by name and labels; `None` keeps the recorded one.
    pub(crate) value: &'a dyn Fn(&str, &str) -> Option<f64>,
    pub(crate) histograms: &'a BTreeMap<String, Histogram>,
    pub(crate) http: &'a HttpStats,
    /// Adapters with requests running, each with its last time.
    pub(crate) loras: &'a [(String, f64)],
    /// The start of the server, in seconds since the epoch.
    pub(crate) started: f64,
}

impl Page {
    pub(crate) fn new(setup: &PageSettings<'_>) -> Self {
        let label = format!("model_name={}", crate::sim::text::quoted(setup.model));
        let mut page = Self { lines: Vec::new(), histograms: BTreeMap::new() };
        let mut help = String::new();
        let kept = |line: &&str| setup.tool_parser || !line.contains("vllm:tool_call_parser");
        for line in RECORDED.lines().filter(kept) {
            if line.starts_with("# HELP vllm:cache_config_info") {
                page.lines.push(PageLine::Lora);
            }
            let line = line.replace(RECORDED_LABEL, &label);
            if let Some(text) = line.strip_prefix("# HELP ") {
                help = text.split_once(' ').map(|(_, help)| help.to_owned()).unwrap_or_default();
            }
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                page.family(kind, &help);
                page.lines.push(PageLine::Text(line.clone()));
                let family = kind.split(' ').next().unwrap_or_default();
                if family.starts_with("http_") && !family.contains("_highr_") {
                    page.lines.push(PageLine::Http { family: family.into(), help: help.clone() });
                }
            } else if line.starts_with('#') {
                page.lines.push(PageLine::Text(line));
            } else {
                page.sample(&line, setup);
            }
        }
        for name in TOKEN_COUNTS {
            page.histograms.insert(name.into(), one_two_five(setup.max_model_len));
        }
        page
    }

    /// Empty histograms, by name.
    pub(crate) fn histograms(&self) -> BTreeMap<String, Histogram> {
        let new =
            |(name, bounds): (&String, &Vec<f64>)| (name.clone(), Histogram::new(bounds.clone()));
        self.histograms.iter().map(new).collect()
    }

    pub(crate) fn render(&self, figures: &Figures<'_>) -> String {
        let mut out = String::with_capacity(64 * 1024);
        for line in &self.lines {
            match line {
                PageLine::Text(text) => out.push_str(text),
                PageLine::Created { head } => {
                    let _ = write!(out, "{head} {}", number(figures.started));
                }
                PageLine::Sample { name, labels, recorded } => {
                    let value = figures.of(name, labels);
                    let value = value.map_or_else(|| recorded.clone(), number);
                    let _ = write!(out, "{name}{labels} {value}");
                }
                PageLine::Buckets { family, before, after } => {
                    figures.buckets(&mut out, family, before, after);
                    continue;
                }
                PageLine::Http { family, help } => {
                    figures.http(&mut out, family, help);
                    continue;
                }
                PageLine::Lora => {
                    figures.loras(&mut out);
                    continue;
                }
            }
            out.push('\n');
        }
        out
    }

    fn family(&mut self, kind: &str, _help: &str) {
        if let Some(family) = kind.strip_suffix(" histogram") {
            self.histograms.insert(family.into(), Vec::new());
        }
    }

    fn sample(&mut self, line: &str, setup: &PageSettings<'_>) {
        let Some((head, recorded)) = line.rsplit_once(' ') else { return };
        let brace = head.find('{').unwrap_or(head.len());
        let (name, labels) = head.split_at(brace);
        if let Some(bounds) =
            name.strip_suffix("_bucket").and_then(|family| self.histograms.get_mut(family))
        {
            let Some((before, le)) = labels.split_once("le=\"") else { return };
            let Some((bound, after)) = le.split_once('"') else { return };
            if bounds.is_empty() {
                self.lines.push(PageLine::Buckets {
                    family: name.trim_end_matches("_bucket").into(),
                    before: before.into(),
                    after: after.into(),
                });
            }
            if bound != "+Inf" {
                bounds.push(bound.parse().unwrap_or(f64::INFINITY));
            }
        } else if name.ends_with("_created") {
            self.lines.push(PageLine::Created { head: head.into() });
        } else {
            let mut labels = labels.to_owned();
            if name == "vllm:cache_config_info" {
                labels = cache_config(&labels, setup);
            }
            let name = name.to_owned();
            self.lines.push(PageLine::Sample { name, labels, recorded: recorded.into() });
        }
    }
}

impl Figures<'_> {
    fn of(&self, name: &str, labels: &str) -> Option<f64> {
        if name == "process_start_time_seconds" {
            return Some(self.started);
        }
        if let Some(histogram) =
            name.strip_suffix("_count").and_then(|name| self.histograms.get(name))
        {
            return Some(histogram.count as f64);
        }
        if let Some(histogram) =
            name.strip_suffix("_sum").and_then(|name| self.histograms.get(name))
        {
            return Some(histogram.sum);
        }
        (self.value)(name, labels)
    }

    fn buckets(&self, out: &mut String, family: &str, before: &str, after: &str) {
        let Some(histogram) = self.histograms.get(family) else { return };
        for (bound, count) in histogram.cumulative() {
            let _ = writeln!(
                out,
                "{family}_bucket{before}le=\"{}\"{after} {}",
                number(bound),
                number(count as f64)
            );
        }
        let count = number(histogram.count as f64);
        let _ = writeln!(out, "{family}_bucket{before}le=\"+Inf\"{after} {count}");
    }

    fn http(&self, out: &mut String, family: &str, help: &str) {
        let handlers = &self.http.handlers;
        if handlers.is_empty() {
            return;
        }
        let mut samples = String::new();
        let mut created = String::new();
        let started = number(self.started);
        let base = family.trim_end_matches("_total");
        for handler in handlers {
            let name = handler.name;
            let method = &handler.method;
            let both = format!("handler=\"{name}\",method=\"{method}\"");
            match family {
                "http_requests_total" => {
                    for (status, count) in &handler.statuses {
                        let labels = format!("{{{both},status=\"{status}\"}}");
                        let _ = writeln!(samples, "{family}{labels} {}", number(*count as f64));
                        let _ = writeln!(created, "{base}_created{labels} {started}");
                    }
                }
                "http_request_duration_seconds" => {
                    let seconds = &handler.seconds;
                    let open = format!("{family}_bucket{{handler=\"{name}\",le=");
                    for (bound, count) in seconds.cumulative() {
                        let (bound, count) = (number(bound), number(count as f64));
                        let _ =
                            writeln!(samples, "{open}\"{bound}\",method=\"{method}\"}} {count}");
                    }
                    let count = number(seconds.count as f64);
                    let _ = writeln!(samples, "{open}\"+Inf\",method=\"{method}\"}} {count}");
                    let _ = writeln!(samples, "{family}_count{{{both}}} {count}");
                    let _ = writeln!(samples, "{family}_sum{{{both}}} {}", number(seconds.sum));
                    let _ = writeln!(created, "{base}_created{{{both}}} {started}");
                }
                _ => {
                    // By handler alone: the line of the first method is the sum of all methods.
                    let of = || handlers.iter().filter(|other| other.name == name);
                    if of().next().is_some_and(|first| first.method != *method) {
                        continue;
                    }
                    let count: u64 = of().map(|h| h.count).sum();
                    let bytes: u64 = if family == "http_request_size_bytes" {
                        of().map(|h| h.request_bytes).sum()
                    } else {
                        of().map(|h| h.response_bytes).sum()
                    };
                    let label = format!("{{handler=\"{name}\"}}");
                    let _ = writeln!(samples, "{family}_count{label} {}", number(count as f64));
                    let _ = writeln!(samples, "{family}_sum{label} {}", number(bytes as f64));
                    let _ = writeln!(created, "{base}_created{label} {started}");
                }
            }
        }
        out.push_str(&samples);
        let _ = writeln!(out, "# HELP {base}_created {help}\n# TYPE {base}_created gauge");
        out.push_str(&created);
    }

    fn loras(&self, out: &mut String) {
        if self.loras.is_empty() {
            return;
        }
        out.push_str("# HELP vllm:lora_requests_info Running stats on lora requests.\n");
        out.push_str("# TYPE vllm:lora_requests_info gauge\n");
        for (names, when) in self.loras {
            let _ = writeln!(
                out,
                "vllm:lora_requests_info{{max_lora=\"2\",running_lora_adapters=\"{names}\",\
                 waiting_lora_adapters=\"{names}\"}} {}",
                number(*when)
            );
        }
    }
}

fn cache_config(labels: &str, setup: &PageSettings<'_>) -> String {
    let tokens = setup.blocks as u64 * u64::from(setup.block_size);
    let concurrency = tokens as f64 / f64::from(setup.max_model_len);
    labels
        .replace("block_size=\"128\"", &format!("block_size=\"{}\"", setup.block_size))
        .replace("blocks=\"33\"", &format!("blocks=\"{}\"", setup.blocks))
        .replace("override=\"33\"", &format!("override=\"{}\"", setup.blocks))
        .replace("tokens=\"4224\"", &format!("tokens=\"{tokens}\""))
        .replace("concurrency=\"2.0625\"", &format!("concurrency=\"{concurrency:?}\""))
}

/// A number as Prometheus' Python client writes it: `0.0`, `12.0`, `1.79545401674e+09`.
fn number(value: f64) -> String {
    let plain = format!("{value:?}");
    match plain.find('.') {
        Some(dot) if value > 0.0 && dot > 6 => {
            let digits = format!("{}.{}{}", &plain[..1], &plain[1..dot], &plain[dot + 1..]);
            let mantissa = digits.trim_end_matches('0').trim_end_matches('.');
            format!("{mantissa}e+{:02}", dot - 1)
        }
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_the_python_client_does() {
        for (value, want) in [
            (0.0, "0.0"),
            (634.0, "634.0"),
            (999_999.0, "999999.0"),
            (1_000_000.0, "1e+06"),
            (1_795_454_016.74, "1.79545401674e+09"),
        ] {
            assert_eq!(number(value), want);
        }
    }

    #[test]
    fn a_page_without_requests_has_the_recorded_lines() {
        let page = Page::new(&PageSettings {
            model: "tiny",
            max_model_len: 2048,
            blocks: 33,
            block_size: 128,
            tool_parser: true,
        });
        let figures = Figures {
            value: &|_, _| None,
            histograms: &page.histograms(),
            http: &HttpStats::default(),
            loras: &[],
            started: 1.0,
        };
        let head = |line: &str| {
            if line.starts_with('#') {
                line.to_owned()
            } else {
                line.rsplit_once(' ').expect("a value").0.to_owned()
            }
        };
        let got: Vec<String> = page.render(&figures).lines().map(head).collect();
        let want: Vec<String> = RECORDED.lines().map(head).collect();
        assert_eq!(got, want);
    }
}
