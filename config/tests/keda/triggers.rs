//! Changes of triggers, and of formulas over them.

use serde_json::{Value, json};

use super::*;

/// Changes of a trigger's own fields.
pub(super) fn trigger_changes(to: &mut dyn FnMut(&str, &[Value])) {
    for at in [0, 1] {
        let path = |key: &str| format!("/spec/triggers/{at}/{key}");
        to(
            &path("metricType"),
            &["AverageValue", "Value", "Utilization", "Average", ""].map(Value::from),
        );
        to(&path("useCachedMetrics"), &[json!(true), json!(false), json!("true")]);
        to(&path("name"), &[json!("one"), json!(""), json!(5)]);
        to(
            &path("authenticationRef"),
            &[
                json!({"name": "missing"}),
                json!({"name": ""}),
                json!({}),
                json!({"name": "missing", "kind": "ClusterTriggerAuthentication"}),
                json!({"name": "missing", "kind": "Secret"}),
            ],
        );
        to(
            &path("metadata/unknown"),
            &[json!("text"), json!(5), json!(true), json!(null), json!(["a"])],
        );
        to(&path("unknown"), &[json!("text")]);
    }
    to(
        "/spec/triggers/2",
        &[json!({"type": "cron", "name": "one", "metadata": cron()["metadata"]})],
    );
    to(
        "/spec/triggers",
        &[json!([
            {"type": "cron", "name": "one", "metadata": cron()["metadata"]},
            {"type": "cron", "name": "one", "metadata": cron()["metadata"]},
        ])],
    );
    let of = |key: &str| format!("/spec/triggers/0/metadata/{key}");
    to(
        &of("threshold"),
        &[
            "5", "0.5", "1e3", "0", "-1", "0.0004", "0.0006", "five", "NaN", "Inf", ".5", "5.",
            "+5", "05", "1e400", " 5 ", "", "5,0", "null",
        ]
        .map(Value::from),
    );
    to(&of("threshold"), &[json!(5), json!(0.5), json!(true)]);
    to(&of("activationThreshold"), &["0", "-5", "0.5", "x", ""].map(Value::from));
    to(&of("ignoreNullValues"), &["true", "T", "1", "yes", "maybe"].map(Value::from));
    to(&of("unsafeSsl"), &["false", "0", "no"].map(Value::from));
    to(&of("timeout"), &["5s", "500", "1m30s", "-5s", "5", "5 s", "0", "soon"].map(Value::from));
    to(&of("customHeaders"), &["a=b", "a=b,c=d", "a", "a=b,", "a=b=c", ""].map(Value::from));
    to(&of("queryParameters"), &["a=b", "a=b, c=d", "a"].map(Value::from));
    to(
        &of("authModes"),
        &["basic", "bearer", "tls", "basic,bearer", "digest", ""].map(Value::from),
    );
    to(
        &of("serverAddress"),
        &[
            "prometheus:9090",
            "ftp://prometheus:9090",
            "http://",
            "http://prometheus:99999",
            "http://a b",
            "",
        ]
        .map(Value::from),
    );
    to(&of("query"), &[
        "up", "sum(up) or vector(0)", "vector(1)", "-sum(up)", "sum(up) > bool 0", "sum(up == 1)",
        "sum(vllm:num_requests_waiting)", "sum by (pod) (vllm:num_requests_waiting)", "sum(up) # sum",
        "{__name__=\"up\",job=\"self\"}", "up offset 5m", "sum(up @ end())", "absent(up)",
        "sum(rate(up[5m]))", "max_over_time(up[5m])", "sum(up) / count(up)", "topk(1, up)",
        "histogram_quantile(0.9, sum by (le) (rate(prometheus_http_request_duration_seconds_bucket[5m])))",
        "quantile(0.5, up)", "sum(up)\n+ sum(up)", "up[5m]", "sum(up)[5m:1m]", "1e3 * sum(up)", "sum(up) ^ 2",
        "1", "1 + 1", "scalar(sum(up))", "time()", "\"text\"", "-1",
        "sum(up", "sum(up))", "rate(up)", "foo(up)", "sum(up) +", "up{", "up{job=self}", "sum(up[5m])",
        "up up", "sum by pod (up)", "rate(sum(up)[5m])", "up > 'a'", "histogram_quantile(up)", "1 and 2",
        "up == bool", "1 > 2", "up[5]m", "{}", "{job=~\".*\"}", "sum(up,1)", "topk(up)",
    ].map(Value::from));
    let of = |key: &str| format!("/spec/triggers/1/metadata/{key}");
    to(
        &of("desiredReplicas"),
        &[
            "1",
            "0",
            "-1",
            "3.0",
            "1e1",
            "03",
            "+3",
            "three",
            " 3 ",
            "",
            "99999999999",
            "9223372036854775808",
            "-0",
            "null",
        ]
        .map(Value::from),
    );
    to(
        &of("timezone"),
        &[
            "UTC",
            "Local",
            "utc",
            "europe/berlin",
            "Europe/Berlin",
            "CET",
            "EST5EDT",
            "GMT+1",
            "Etc/GMT+1",
            "Mars/Olympus",
            "../UTC",
            "/UTC",
            "",
        ]
        .map(Value::from),
    );
    to(
        &of("start"),
        &[
            "0/30 * * * *",
            "0/15 * * * *",
            "CRON_TZ=UTC 0 8 * * *",
            "TZ=Europe/Berlin 0 8 * * *",
            "TZ=UTC",
            "TZ=mars 0 8 * * *",
            "0 18 * * 7",
            "0 18 * * 0",
            "@daily",
            "0 0 L * *",
            "0 0 15W * *",
            "0 0 * * 1#2",
            "0 8 ? * *",
            "0 8 * * mon-FRI",
            "0 8 * JAN *",
            "0 0 8 * * *",
            "0 8 * *",
            "8am",
            "60 8 * * *",
            "0 24 * * *",
            "0 8 0 * *",
            "0 8 32 * *",
            "0 8 * 13 *",
            "*/0 8 * * *",
            "5-1 8 * * *",
            "0  8 * * 1-5",
            "0 18 * * 1-5",
            " 0 18 * * 1-5",
            "",
            ", 8 * * *",
            "0 8 30 2 *",
        ]
        .map(Value::from),
    );
}

/// `advanced.scalingModifiers`, with triggers that have names.
pub(super) fn composite_changes(to: &mut dyn FnMut(&str, &[Value])) {
    let object = |modifiers: Value, threshold: &str| {
        let mut first = prometheus("sum(up)");
        first["name"] = "a".into();
        first["metadata"]["threshold"] = threshold.into();
        let mut second = cron();
        second["name"] = "b_2".into();
        json!({
            "scaleTargetRef": {"name": TARGET}, "minReplicaCount": 1,
            "triggers": [first, second, {"type": "cpu", "name": "c", "metricType": "Utilization", "metadata": {"value": "60"}}],
            "advanced": {"scalingModifiers": modifiers},
        })
    };
    for formula in [
        "a",
        "a + b_2",
        "1",
        "max(a, b_2)",
        "a > 1 ? a : b_2",
        "(a + b_2) / 2",
        "a ?? b_2",
        "float(a)",
        "sum([a, b_2])",
        "a > 0 and b_2 > 0 ? 1 : 2",
        "abs(-a)",
        "a ** 2",
        "int(a) % 2",
        "mean([a, b_2])",
        "c",
        "d",
        "a + d",
        "a +",
        "(a",
        "a)",
        "a b_2",
        "a % 2",
        "a > 1",
        "true",
        "max()",
        "foo(a)",
        "not a",
        "b-2",
        "a = 1",
        "round(a, 2)",
        "A",
        "a and b_2 ? 1 : 2",
        "",
    ] {
        to("/spec", &[object(json!({"formula": formula, "target": "2"}), "5")]);
    }
    for target in ["1", "0.5", "1e3", "0", "-1", "0.0004", "0.001", "two", "Inf", "1e17", ""] {
        to("/spec", &[object(json!({"formula": "a", "target": target}), "5")]);
    }
    for modifiers in [
        json!({"formula": "a"}),
        json!({"target": "2"}),
        json!({"activationTarget": "2"}),
        json!({}),
        json!({"metricType": "Value"}),
        json!({"formula": "a", "target": 2}),
        json!({"formula": "a", "target": "2", "metricType": "Value"}),
        json!({"formula": "a", "target": "2", "metricType": "Utilization"}),
        json!({"formula": "a", "target": "2", "activationTarget": "1"}),
        json!({"formula": "a", "target": "2", "activationTarget": "one"}),
        json!({"formula": "a", "target": "2", "activation": "1"}),
    ] {
        to("/spec", &[object(modifiers, "5")]);
    }
    // The HPA sees no threshold but the formula's.
    to(
        "/spec",
        &[
            object(json!({"formula": "a", "target": "2"}), "0"),
            object(json!({"formula": "a", "target": "2"}), "five"),
        ],
    );
    let mut fallback = object(json!({"formula": "a ?? b_2", "target": "2"}), "5");
    fallback["fallback"] =
        json!({"failureThreshold": 3, "replicas": 2, "behavior": "scalingModifiers"});
    to("/spec", &[fallback]);
}
