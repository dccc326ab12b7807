//! docs/metrics.md lists every metric with the description that the code gives it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};

/// A recorder that keeps the descriptions only.
#[derive(Default)]
struct Described(Mutex<BTreeMap<String, (&'static str, String)>>);

impl Described {
    fn keep(&self, key: &KeyName, kind: &'static str, text: &SharedString) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.insert(key.as_str().to_owned(), (kind, text.to_string()));
        assert!(before.is_none(), "{} is described twice", key.as_str());
    }
}

impl Recorder for Described {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, text: SharedString) {
        self.keep(&key, "counter", &text);
    }
    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, text: SharedString) {
        self.keep(&key, "gauge", &text);
    }
    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, text: SharedString) {
        self.keep(&key, "histogram", &text);
    }
    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }
    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

fn table(describe: fn()) -> String {
    let described = Described::default();
    with_local_recorder(&described, describe);
    let all = described.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut table = "| figure | kind | what it is |\n| --- | --- | --- |\n".to_owned();
    for (name, (kind, text)) in all {
        let unit = if kind == "counter" { "_total" } else { "" };
        assert!(
            name.starts_with("forebay_") && name.ends_with(unit),
            "{name}: prefix or suffix is wrong"
        );
        table += &format!("| `{name}` | {kind} | {text} |\n");
    }
    table
}

/// `UPDATE_DOCS=1` writes the tables anew.
#[test]
fn the_metrics_page_lists_every_metric_as_the_code_describes_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let mut page = std::fs::read_to_string(&path).expect("docs/metrics.md");
    let parts: [(&str, fn()); 4] = [
        ("gateway", forebay_gateway::describe),
        ("scaler", forebay_scaler::describe),
        ("process", forebay_base::describe),
        ("export", forebay_telemetry::describe),
    ];
    for (part, describe) in parts {
        let begin = format!(
            "<!-- {part}: written by `UPDATE_DOCS=1 cargo test --test metrics_reference` -->\n"
        );
        let start = page.find(&begin).unwrap_or_else(|| panic!("no mark of {part}")) + begin.len();
        let end = start + page[start..].find("<!-- end -->").expect("an end mark");
        page.replace_range(start..end, &table(describe));
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("written");
    }
    let now = std::fs::read_to_string(&path).expect("docs/metrics.md");
    assert!(now == page, "docs/metrics.md is not up to date: run with UPDATE_DOCS=1");
}
