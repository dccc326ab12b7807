//! `inspect_scaled_object` against a real KEDA's verdicts on the same objects: it refuses what KEDA
//! refuses, and nothing else.

#[path = "keda/corpus.rs"]
mod corpus;

use std::path::Path;

use forebay_config::inspect_scaled_object;
use serde_json::Value;

fn recorded() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keda/verdicts.json");
    let text = std::fs::read_to_string(path).expect("the verdicts");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn what_keda_refuses_is_refused_and_nothing_else() {
    let recorded = recorded();
    let mut wrong = Vec::new();
    for verdict in &recorded {
        let text = |key: &str| verdict[key].as_str().expect("text");
        let errors = inspect_scaled_object(text("object"), "f").errors;
        if errors.is_empty() != (text("verdict") == "taken") {
            let (name, verdict, why) = (text("name"), text("verdict"), text("why"));
            wrong.push(format!("{name}\n  KEDA: {verdict} {why}\n  here: {errors}\n"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} differ:\n{}",
        wrong.len(),
        recorded.len(),
        wrong.join("\n")
    );
    let count = |verdict: &str| recorded.iter().filter(|case| case["verdict"] == verdict).count();
    for verdict in ["taken", "denied", "not ready", "no metrics"] {
        assert!(count(verdict) >= 10, "only {} are {verdict}", count(verdict));
    }
}

#[test]
fn the_verdicts_are_those_of_the_corpus() {
    let corpus = corpus::corpus();
    let recorded = recorded();
    let same = corpus.len() == recorded.len()
        && corpus.iter().zip(&recorded).all(|((name, object), verdict)| {
            verdict["name"] == name.as_str() && verdict["object"] == object.as_str()
        });
    assert!(
        same,
        "the corpus has changed: record it with \
         FOREBAY_RECORD_VERDICTS=1 cargo test --test cluster -- keda_verdicts"
    );
}
