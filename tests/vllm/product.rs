//! Each field that the gateway reads, with each value of the recorded verdicts, on each API of a
//! text model; and whole bodies of every kind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::common::Reply;
use crate::list::{ask, head, is_alike, ready, shapes};
use crate::support::Forebay;

/// Paths whose answers are generated, and so differ in length.
const GENERATING: [&str; 4] =
    ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"];
/// Paths whose answers are not generated.
const OTHERS: [&str; 3] = ["/v1/messages/count_tokens", "/tokenize", "/detokenize"];

/// Enough values for a field that an API does not have.
const ANY: [&str; 8] =
    ["null", "true", "\"yes\"", "2", "1.5", "[]", "{\"include_usage\":2}", "\"\\ud800\""];

const AT_ONCE: usize = 8;

/// A request, and the permitted difference of its two answers.
struct Case {
    path: &'static str,
    body: Vec<u8>,
    may: May,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    BeAlike,
    /// Both refuse; the gateway in its own words and its API's own shape.
    RefuseAlike,
    /// vLLM answers 200, the gateway refuses (docs/conformance.md says why).
    BeRefusedHere,
}

/// Sends every case both ways, and fails with all answers that differ.
pub(crate) async fn compare(address: SocketAddr) {
    let forebay = gateway(address);
    ready(&forebay).await;
    let (through, cases) = (forebay.address, Arc::new(cases()));
    let next = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (cases, next) = (Arc::clone(&cases), Arc::clone(&next));
            tokio::spawn(async move {
                let mut different = Vec::new();
                while let Some(case) = cases.get(next.fetch_add(1, Relaxed)) {
                    let request = request(case);
                    let direct = ask(address, &request).await;
                    let through = ask(through, &request).await;
                    if !is_allowed(case.may, &direct, &through) {
                        different.push(format!(
                            "{} {}\n  ({:?})\n  direct  {:?} {:?}\n  through {:?} {:?}",
                            case.path,
                            String::from_utf8_lossy(&case.body),
                            case.may,
                            head(&direct),
                            shapes(&direct),
                            head(&through),
                            shapes(&through)
                        ));
                    }
                }
                different
            })
        })
        .collect();
    let mut different = Vec::new();
    for task in tasks {
        different.extend(task.await.expect("no panic"));
    }
    assert!(cases.len() > 2_000, "{} cases", cases.len());
    let count = different.len();
    different.truncate(40);
    assert!(count == 0, "{count} of {} differ:\n{}", cases.len(), different.join("\n"));
}

/// A gateway that removes no field from what it passes on.
fn gateway(address: SocketAddr) -> Forebay {
    let file = std::env::temp_dir().join(format!("forebay-vllm-{}.yaml", std::process::id()));
    let config = format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n- name: p\n  \
         models: [tiny]\n  endpoints: [\"{address}\"]\n  allowPriority: true\n"
    );
    std::fs::write(&file, config).expect("written");
    Forebay::start(&["gateway", "--config", file.to_str().expect("text")], "info")
}

fn is_allowed(may: May, direct: &Reply, through: &Reply) -> bool {
    match may {
        May::BeAlike => {
            is_alike(direct, through)
                || direct.code() == through.code()
                    && error(direct).is_some()
                    && error(direct) == error(through)
        }
        May::RefuseAlike => direct.code() >= 400 && direct.code() == through.code(),
        May::BeRefusedHere => direct.code() == 200 && through.code() == 400,
    }
}

/// The names of an error's fields, and its code. Order and text may differ.
fn error(reply: &Reply) -> Option<(Vec<String>, Value)> {
    let json: Value = serde_json::from_str(&reply.body).ok()?;
    let error = json["error"].as_object()?;
    let mut names: Vec<String> = error.keys().cloned().collect();
    names.sort();
    Some((names, error.get("code").cloned().unwrap_or_default()))
}

fn request(case: &Case) -> Vec<u8> {
    let mut request = format!(
        "POST {} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        case.path,
        case.body.len()
    )
    .into_bytes();
    request.extend_from_slice(&case.body);
    request
}

fn cases() -> Vec<Case> {
    let recorded: Value = serde_json::from_str(include_str!("verdicts.json")).expect("JSON");
    let values: Vec<&str> =
        recorded["values"].as_array().expect("values").iter().filter_map(Value::as_str).collect();
    let mut cases = whole_bodies();
    for path in GENERATING.into_iter().chain(OTHERS) {
        for (field, verdicts) in recorded["verdicts"][path].as_object().expect("fields") {
            let values = if *verdicts == "any" { &ANY[..] } else { &values[..] };
            for value in values {
                let body = with(path, &recorded["bodies"][path], field, value);
                // The gateway refuses a model that is not text.
                let refused = field == "model" && !value.starts_with('"') && *value != "null";
                let own_shape = path.starts_with("/v1/messages") && field == "model";
                let may = match refused || *value == "\"\\ud800\"" && field == "model" {
                    true if own_shape => May::RefuseAlike,
                    _ => May::BeAlike,
                };
                cases.push(Case { path, body: body.into_bytes(), may });
            }
        }
    }
    cases
}

/// A body with this field, and with bounds on the answer's length unless the field is one.
fn with(path: &str, base: &Value, field: &str, value: &str) -> String {
    let mut base = base.as_object().expect("a body").clone();
    let (name, inner) = field.split_once('.').unwrap_or((field, ""));
    if GENERATING.contains(&path) {
        base.insert("temperature".into(), 0.into());
        for bound in ["max_completion_tokens", "max_tokens", "max_output_tokens"] {
            base.insert(bound.into(), 2.into());
        }
    }
    base.remove(name);
    if name == "stream_options" {
        base.insert("stream".into(), true.into());
    }
    let base = Value::Object(base).to_string();
    let value = if inner.is_empty() { value.into() } else { format!("{{\"{inner}\":{value}}}") };
    format!("{},\"{name}\":{value}}}", base.strip_suffix('}').expect("an object"))
}

/// Bodies that differ in encoding, nesting, beginning and end, and bodies with a field twice.
fn whole_bodies() -> Vec<Case> {
    let base =
        json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).to_string();
    let open = base.strip_suffix('}').expect("an object");
    let more = |more: &str| format!("{open},{more}}}");
    let nested = |depth: usize| more(&format!("\"x\":{}{}", "[".repeat(depth), "]".repeat(depth)));
    let utf16: Vec<u8> = base.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut bodies: Vec<(Vec<u8>, May)> = Vec::new();
    for (body, may) in [
        (base.clone(), May::BeAlike),
        (format!("\u{feff}{base}"), May::BeAlike),
        (format!(" \n{base}\t\r\n"), May::BeAlike),
        (more("\"x\":NaN,\"y\":-Infinity"), May::BeAlike),
        (more("\"\\u0073tream\":true"), May::BeAlike),
        (more("\"\u{73}tr\u{e9}am\":true,\"x\":\"\u{1f600}\\ud83d\\ude00\""), May::BeAlike),
        (more("\"x\":\"\\ud800\""), May::BeAlike),
        (more("\"x\":{\"stream\":true,\"model\":5}"), May::BeAlike),
        (more("\"x\":1,\"x\":2"), May::BeAlike),
        (nested(500), May::BeAlike),
        (nested(513), May::BeAlike),
        (nested(900), May::BeAlike),
        (more("\"model\":\"nope\""), May::BeAlike),
        (more("\"model\":\"tiny\""), May::BeAlike),
        (more("\"model\":\"TINY\""), May::BeAlike),
        (more("\"stream\":\"false\",\"stream_options\":{\"include_usage\":true}"), May::BeAlike),
        (more("\"stream\":false,\"stream_options\":{\"include_usage\":true}"), May::BeAlike),
        (more("\"stream\":\"no\",\"stream_options\":{}"), May::BeAlike),
        (String::new(), May::BeAlike),
        ("7".into(), May::BeAlike),
        ("[1]".into(), May::BeAlike),
        ("null".into(), May::BeAlike),
        ("  ".into(), May::BeAlike),
        ("{".into(), May::BeAlike),
        (format!("{base}x"), May::BeAlike),
        (more("\"x\":\"a\nb\""), May::BeAlike),
        (nested(1_100), May::RefuseAlike),
        (nested(100_000), May::RefuseAlike),
        (more("\"stream\":true,\"stream\":false"), May::BeRefusedHere),
        (more("\"model\":\"tiny\",\"mod\\u0065l\":\"tiny\""), May::BeRefusedHere),
        (more("\"max_tokens\":2"), May::BeRefusedHere),
    ] {
        bodies.push((body.into_bytes(), may));
    }
    bodies.push((utf16, May::BeRefusedHere));
    bodies.push(([open.as_bytes(), b",\"x\":\"\xed\xa0\x80\"}"].concat(), May::BeRefusedHere));
    bodies.push(([open.as_bytes(), b",\"x\":\"\xe9\"}"].concat(), May::RefuseAlike));
    let path = GENERATING[0];
    bodies.into_iter().map(|(body, may)| Case { path, body, may }).collect()
}
