//! Every field that is read, against the verdicts of vLLM's own request classes on each of its APIs
//! (`tests/vllm/verdicts.py` records them): values that vLLM accepts are accepted and read alike.

use std::sync::LazyLock;

use serde_json::Value;

use crate::read::edit::{Edits, edit};
use crate::read::multipart::scan_form;
use crate::read::scan::{Scan, StreamOptions, scan};

static RECORDED: LazyLock<Value> = LazyLock::new(|| {
    let text = include_str!("../../../../../tests/vllm/verdicts.json");
    serde_json::from_str(text).expect("JSON")
});

/// Each field on each API whose values are recorded as `list`: path, field, value, verdict.
fn each(list: &str, mut check: impl FnMut(&str, &str, &str, &Value)) {
    let values = RECORDED[list].as_array().expect("a list");
    for (path, fields) in RECORDED["verdicts"].as_object().expect("paths") {
        if path.contains("/audio/") != (list == "words") {
            continue;
        }
        for (field, verdicts) in fields.as_object().expect("fields") {
            for (i, value) in values.iter().enumerate() {
                let value = value.as_str().expect("text");
                check(path, field, value, if *verdicts == "any" { verdicts } else { &verdicts[i] });
            }
        }
    }
}

/// The value that the scan has of a field; `None` if it does not keep the value.
fn read(scan: &Scan, field: &str) -> Option<Value> {
    let flag = |included: bool| match &scan.stream_options {
        StreamOptions::Object { include_usage, continuous, .. } => {
            let flag = if included { include_usage } else { continuous };
            flag.as_ref().is_some_and(super::Flag::is_true)
        }
        _ => false,
    };
    Some(match field {
        "model" => scan.model.as_ref().map(|model| model.name.clone()).into(),
        "stream" => scan.stream.into(),
        "stream_options" => matches!(scan.stream_options, StreamOptions::Object { .. }).into(),
        "stream_options.include_usage" => flag(true).into(),
        "stream_options.continuous_usage_stats" => flag(false).into(),
        "max_tokens" | "max_completion_tokens" | "max_output_tokens" => scan.max_tokens.into(),
        "n" => scan.n.into(),
        _ => return None,
    })
}

/// vLLM's value in the gateway's terms: a flag that is `null` is off, a negative count is absent,
/// and a count that is too large is the largest.
fn expected(field: &str, vllms: &Value) -> Value {
    match (field, vllms) {
        (
            "stream" | "stream_options.include_usage" | "stream_options.continuous_usage_stats",
            _,
        ) => (*vllms == Value::Bool(true)).into(),
        (_, Value::Number(number)) => match number.as_f64() {
            Some(count) if count < 0.0 => Value::Null,
            _ => number.as_u64().unwrap_or(u64::MAX).into(),
        },
        _ => vllms.clone(),
    }
}

fn compare(case: &str, field: &str, value: &str, scan: &Scan, verdict: &Value) {
    // Absent and `null` stand for the server's default, which the gateway does not read.
    if value == "null" || *verdict == "any" {
        return;
    }
    if let (Some(read), Some([vllms])) = (read(scan, field), verdict.as_array().map(Vec::as_slice))
    {
        assert_eq!(read, expected(field, vllms), "{case}");
    }
}

fn body(path: &str, field: &str, value: &str) -> String {
    let mut base = RECORDED["bodies"][path].as_object().expect("a body").clone();
    let (name, inner) = field.split_once('.').unwrap_or((field, ""));
    base.remove(name);
    if name == "stream_options" {
        base.insert("stream".into(), true.into());
    }
    let base = Value::Object(base).to_string();
    let value = if inner.is_empty() { value.into() } else { format!("{{\"{inner}\":{value}}}") };
    format!("{},\"{name}\":{value}}}", base.strip_suffix('}').expect("an object"))
}

#[test]
fn values_that_vllm_accepts_are_accepted_and_read_alike() {
    let mut count = 0;
    each("values", |path, field, value, verdict| {
        let body = body(path, field, value);
        let case = format!("{path}: {body}");
        let refused = verdict.is_null();
        match scan(body.as_bytes()) {
            Ok(scan) => compare(&case, field, value, &scan, verdict),
            // A name that is not valid text: vLLM looks it up, and fails to write its answer.
            Err(_) if field == "model" && value == r#""\ud800""# => {}
            Err(error) => assert!(refused && field == "model", "{case}: {error}"),
        }
        count += 1;
    });
    assert!(count > 10_000, "{count} cases");
}

#[test]
fn values_that_vllm_refuses_are_left_for_it_to_refuse() {
    each("values", |path, field, value, verdict| {
        if !verdict.is_null() || !field.starts_with("stream") {
            return;
        }
        let text = body(path, field, value);
        let bytes = bytes::Bytes::from(text.clone());
        let scan = scan(&bytes).expect("not ours to refuse");
        let edits = Edits { ask_usage: true, ..Edits::default() };
        let edited: Vec<u8> = edit(&bytes, &scan, &edits).body.flatten().collect();
        let edited = String::from_utf8(edited).expect("text");
        let name = field.rsplit('.').next().expect("a name");
        let kept = format!("\"{name}\":{value}");
        assert!(edited.contains(&kept), "{path}: {text} became {edited}");
    });
}

#[test]
fn forms_are_read_as_vllm_reads_them() {
    let mut count = 0;
    each("words", |path, field, value, verdict| {
        let body = format!(
            "--X\r\ncontent-disposition: form-data; name=\"{field}\"\r\n\r\n{value}\r\n--X--\r\n"
        );
        let case = format!("{path}: {field}={value:?}");
        let scan = scan_form(body.as_bytes(), "multipart/form-data; boundary=X");
        let scan = scan.unwrap_or_else(|error| panic!("{case}: {error}"));
        if field == "model" || !verdict.is_null() {
            compare(&case, field, value, &scan, verdict);
        }
        count += 1;
    });
    assert!(count > 300, "{count} cases");
}
