//! ScaledObjects of every kind that KEDA takes and refuses, each with one or two changes to one
//! that it takes.
//!
//! KEDA's verdicts are recorded in `verdicts.json` by the cluster suite `keda_verdicts`, with
//! `FOREBAY_RECORD_VERDICTS=1`. Whatever depends on more than the object and its target (what a
//! query gives, whether a server answers, which containers the target has) is not among them.

#![allow(unreachable_pub, reason = "the tests of two packages take it in")]

use serde_json::{Map, Value, json};

mod triggers;

use triggers::{composite_changes, trigger_changes};

/// The object's own name, and its target's, to be replaced by others of the same length.
pub const OBJECT: &str = "the-object";
pub const TARGET: &str = "the-target";
/// The Prometheus server's address, to be replaced by that of a real one.
pub const SERVER: &str = "http://prometheus.test:9090";

/// A change: its name, where, and to what; `None` takes it away.
type Change = (String, String, Option<Value>);

/// All objects, with their names.
pub fn corpus() -> Vec<(String, String)> {
    let singles = changes();
    let mut corpus = vec![("as it is".to_owned(), base().to_string())];
    for change in &singles {
        corpus.push((change.0.clone(), changed(&[change])));
    }
    // Two changes at once, of those that are not of the same field.
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut draw = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let mut pairs = 0;
    while pairs < 120 {
        let (a, b) = (&singles[draw(singles.len())], &singles[draw(singles.len())]);
        if a.1.starts_with(b.1.as_str()) || b.1.starts_with(a.1.as_str()) {
            continue;
        }
        let name = format!("{} / {}", a.0, b.0);
        if corpus.iter().all(|(known, _)| *known != name) {
            corpus.push((name, changed(&[a, b])));
            pairs += 1;
        }
    }
    corpus.extend(written());
    corpus
}

fn prometheus(query: &str) -> Value {
    json!({
        "type": "prometheus",
        "metadata": {"serverAddress": SERVER, "query": query, "threshold": "5"},
    })
}

fn cron() -> Value {
    json!({
        "type": "cron",
        "metadata": {
            "timezone": "Europe/Amsterdam", "start": "0 8 * * 1-5", "end": "0 18 * * 1-5",
            "desiredReplicas": "3",
        },
    })
}

fn base() -> Value {
    json!({
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
        "metadata": {"name": OBJECT, "annotations": {"example.org/note": "a note"}},
        "spec": {
            "scaleTargetRef": {"name": TARGET},
            "minReplicaCount": 1, "maxReplicaCount": 8,
            "triggers": [prometheus("sum(up)"), cron()],
        },
    })
}

fn changed(changes: &[&Change]) -> String {
    let mut object = base();
    for (_, path, value) in changes {
        set(&mut object, path, value.clone());
    }
    object.to_string()
}

/// Sets or removes what is at a JSON pointer, with the mappings on the way to it.
fn set(object: &mut Value, path: &str, value: Option<Value>) {
    let (above, key) = path.rsplit_once('/').expect("a pointer");
    if object.pointer(above).is_none() {
        set(object, above, Some(Value::Object(Map::new())));
    }
    let key = key.replace("~1", "/");
    match (object.pointer_mut(above), value) {
        (Some(Value::Object(map)), Some(value)) => drop(map.insert(key, value)),
        (Some(Value::Object(map)), None) => drop(map.remove(&key)),
        (Some(Value::Array(list)), Some(value)) => {
            let at: usize = key.parse().expect("an index");
            if at < list.len() { list[at] = value } else { list.push(value) }
        }
        (Some(Value::Array(list)), None) => drop(list.remove(key.parse().expect("an index"))),
        // The other change took it away.
        _ => {}
    }
}

/// Each field with what may and may not stand there.
fn changes() -> Vec<Change> {
    let mut all = Vec::new();
    let mut to = |path: &str, values: &[Value]| {
        for value in values {
            let name = path.trim_start_matches("/spec/");
            all.push((format!("{name} = {value}"), path.to_owned(), Some(value.clone())));
        }
    };
    for field in ["minReplicaCount", "maxReplicaCount", "idleReplicaCount"] {
        let values =
            [json!(0), json!(1), json!(2), json!(8), json!(9), json!(-1), json!("2"), json!(1.5)];
        to(&format!("/spec/{field}"), &values);
    }
    to("/spec/maxReplicaCount", &[json!(101), json!(null), json!(2_147_483_648_u64)]);
    to("/spec/pollingInterval", &[json!(0), json!(1), json!("30")]);
    to("/spec/cooldownPeriod", &[json!(0), json!(-1)]);
    to("/spec/initialCooldownPeriod", &[json!(0), json!(-1), json!(true)]);
    to("/spec/maxReplicas", &[json!(3)]);
    to("/spec/scaleTargetRef/name", &[json!(""), json!(5)]);
    to("/spec/scaleTargetRef/kind", &[json!("Deployment")]);
    to("/spec/scaleTargetRef/apiVersion", &[json!("apps/v1")]);
    to("/spec/scaleTargetRef/nmae", &[json!("x")]);
    to(
        "/spec/fallback",
        &[
            json!({"failureThreshold": 3, "replicas": 2}),
            json!({"failureThreshold": 3}),
            json!({"failureThreshold": -1, "replicas": 2}),
            json!({"failureThreshold": 3, "replicas": 2, "behavior": "currentReplicas"}),
            json!({"failureThreshold": 3, "replicas": 2, "behavior": "never"}),
            json!({"failureThreshold": 3, "replicas": 2, "behavior": "scalingModifiers"}),
        ],
    );
    to(
        "/metadata/annotations/autoscaling.keda.sh~1paused",
        &[json!("true"), json!("false"), json!(true)],
    );
    to(
        "/metadata/annotations/autoscaling.keda.sh~1paused-replicas",
        &[json!("2"), json!("two"), json!("-1")],
    );
    to("/metadata/annotations/autoscaling.keda.sh~1paused-scale-in", &[json!("true")]);
    to(
        "/metadata/name",
        &[
            json!(format!("{OBJECT}{}", "a".repeat(44))),
            json!(format!("{OBJECT}{}", "a".repeat(45))),
            json!(format!("{OBJECT}{}", "a".repeat(54))),
            json!(format!("{OBJECT}_")),
            json!(format!("{OBJECT}.a")),
        ],
    );
    let hpa = "/spec/advanced/horizontalPodAutoscalerConfig";
    to(
        &format!("{hpa}/name"),
        &[
            json!(format!("{OBJECT}-hpa")),
            json!(format!("{OBJECT}{}", "b".repeat(53))),
            json!(format!("{OBJECT}{}", "b".repeat(54))),
            json!(format!("{OBJECT}_b")),
            json!(""),
        ],
    );
    to(
        &format!("{hpa}/behavior/scaleDown"),
        &[
            json!({}),
            json!({"stabilizationWindowSeconds": 3600}),
            json!({"stabilizationWindowSeconds": 3601}),
            json!({"stabilizationWindowSeconds": -1}),
            json!({"policies": []}),
            json!({"policies": [{"type": "Pods", "value": 1, "periodSeconds": 1800}]}),
            json!({"policies": [{"type": "Pods", "value": 0, "periodSeconds": 60}]}),
            json!({"policies": [{"type": "Percent", "value": 10, "periodSeconds": 1801}]}),
            json!({"policies": [{"type": "Percent", "value": 10, "periodSeconds": 0}]}),
            json!({"policies": [{"type": "Nodes", "value": 1, "periodSeconds": 60}]}),
            json!({"policies": [{"type": "Pods", "periodSeconds": 60}]}),
            json!({"selectPolicy": "Disabled"}),
            json!({"selectPolicy": "Most"}),
            json!({"tolerance": "0.05"}),
            json!({"tolerance": "50m"}),
            json!({"tolerance": "-0.1"}),
            json!({"tolerance": 0}),
            json!({"tolerance": "little"}),
            json!({"stabilizationWindow": 60}),
        ],
    );
    to("/spec/advanced/restoreToOriginalReplicaCount", &[json!(true), json!("true")]);
    to(
        "/spec/triggers",
        &[
            json!([]),
            json!(null),
            json!({}),
            json!([prometheus("sum(up)")]),
            json!([cron()]),
            json!([resource("cpu", "Utilization", "60")]),
            json!([resource("cpu", "Utilization", "60"), cron()]),
            json!([{"type": "prometheus"}]),
            json!([{"metadata": {}}]),
            json!(["prometheus"]),
        ],
    );
    // Each with 0 as the least, where cpu alone can't wake.
    to(
        "/spec",
        &[
            spec(0, json!([resource("cpu", "Utilization", "60")])),
            spec(
                0,
                json!([
                    resource("memory", "AverageValue", "2Gi"),
                    resource("cpu", "Utilization", "60")
                ]),
            ),
            spec(0, json!([resource("cpu", "Utilization", "60"), cron()])),
            spec(1, json!([resource("memory", "AverageValue", "2Gi")])),
            json!({"scaleTargetRef": {"name": TARGET}, "triggers": [resource("cpu", "Utilization", "60")]}),
            json!({"scaleTargetRef": {"name": TARGET}, "triggers": [cron()], "minReplicaCount": 101}),
            json!({"scaleTargetRef": {"name": TARGET}, "triggers": [cron()], "idleReplicaCount": 0}),
            json!({
                "scaleTargetRef": {"name": TARGET}, "minReplicaCount": 1,
                "triggers": [resource("cpu", "Utilization", "60")],
                "fallback": {"failureThreshold": 3, "replicas": 2},
            }),
            json!({"triggers": [cron()]}),
            json!({"scaleTargetRef": {"name": TARGET}}),
        ],
    );
    for (kind, value) in [
        ("Utilization", "60"),
        ("Utilization", "0"),
        ("Utilization", "60%"),
        ("Utilization", "60.5"),
        ("AverageValue", "500m"),
        ("AverageValue", "0"),
        ("AverageValue", "much"),
        ("Value", "60"),
        ("", "60"),
    ] {
        to("/spec/triggers/2", &[resource("cpu", kind, value)]);
    }
    to(
        "/spec/triggers/2",
        &[
            json!({"type": "cpu", "metadata": {"type": "Utilization", "value": "60"}}),
            json!({"type": "cpu", "metricType": "Utilization", "metadata": {}}),
            json!({"type": "cpu", "metricType": "Utilization", "useCachedMetrics": true, "metadata": {"value": "60"}}),
            json!({"type": "", "metadata": {}}),
            json!({"type": "promethues", "metadata": {}}),
            json!({"type": "queueDepth", "metadata": {"threshold": "5"}}),
            json!({"type": "external", "metadata": {}}),
            json!({"type": "external-push", "metadata": {"scalerAddress": " "}}),
        ],
    );
    trigger_changes(&mut to);
    composite_changes(&mut to);
    let mut gone = |path: &str| {
        all.push((format!("no {}", path.trim_start_matches("/spec/")), path.to_owned(), None));
    };
    for key in ["serverAddress", "query", "threshold"] {
        gone(&format!("/spec/triggers/0/metadata/{key}"));
    }
    for key in ["timezone", "start", "end", "desiredReplicas"] {
        gone(&format!("/spec/triggers/1/metadata/{key}"));
    }
    gone("/spec/maxReplicaCount");
    gone("/spec/minReplicaCount");
    gone("/spec/triggers/0/metadata");
    gone("/spec");
    all
}

fn resource(kind: &str, metric_type: &str, value: &str) -> Value {
    json!({"type": kind, "metricType": metric_type, "metadata": {"value": value}})
}

fn spec(min: u32, triggers: Value) -> Value {
    json!({"scaleTargetRef": {"name": TARGET}, "minReplicaCount": min, "triggers": triggers})
}

/// Objects whose YAML matters.
fn written() -> Vec<(String, String)> {
    let object = |threshold: &str, rest: &str| {
        format!(
            "apiVersion: keda.sh/v1alpha1\nkind: ScaledObject\nmetadata:\n  name: {OBJECT}\nspec:\n  scaleTargetRef:\n    name: {TARGET}\n  minReplicaCount: 1\n  triggers:\n    - type: prometheus\n      metadata:\n        serverAddress: {SERVER}\n        query: sum(up)\n        threshold: {threshold}\n{rest}"
        )
    };
    let mut written = Vec::new();
    for value in [
        "5",
        "\"5\"",
        "'5'",
        "0x1F",
        "1_000",
        "yes",
        "'yes'",
        "~",
        "",
        "5 # five",
        "2026-11-26",
        "!!str 5",
        "07",
        "\"0x1F\"",
    ] {
        written.push((format!("written: threshold: {value}"), object(value, "")));
    }
    for (name, rest) in [
        ("a comment", "        # keep the p95 below 2 s\n"),
        ("a flag as on", "      useCachedMetrics: on\n"),
        ("a flag in quotes", "      useCachedMetrics: \"true\"\n"),
        ("a count in base 16", "  maxReplicaCount: 0x10\n"),
        ("a count with a fraction of none", "  maxReplicaCount: 5.0\n"),
        ("an empty field", "  fallback:\n"),
        ("an empty advanced", "  advanced: {}\n"),
        ("a status", "status: {}\n"),
        ("something beside", "extra: 1\n"),
    ] {
        written.push((format!("written: {name}"), object("\"5\"", rest)));
    }
    written
}
