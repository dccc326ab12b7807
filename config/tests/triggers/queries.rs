//! Queries of `prometheus` triggers.

use super::{file, names, pasted, remarks, warned};

/// One prometheus trigger of a ScaledObject that may not go to zero.
fn query(query: &str, rest: &str) -> Vec<String> {
    remarks(&format!(
        "kind: ScaledObject\nspec:\n  scaleTargetRef: {{name: a}}\n  minReplicaCount: 1\n  triggers:\n    - type: prometheus\n{rest}      metadata:\n        serverAddress: http://p:9090\n        threshold: \"5\"\n        query: {}\n",
        serde_json::to_string(query).expect("text")
    ))
}

#[test]
fn queries_that_work_get_no_remark() {
    for good in [
        "sum(vllm:num_requests_waiting)",
        "sum(vllm:num_requests_waiting{namespace=\"a\"}) + sum(vllm:num_requests_running)",
        "sum(rate(vllm:generation_tokens_total[2m]))",
        "sum(increase(vllm:request_success_total[5m]))",
        "max_over_time(sum(vllm:num_requests_waiting)[2m:15s])",
        "sum(avg_over_time(vllm:num_requests_running[1m]))",
        "sum(rabbitmq_queue_messages_ready)",
        "sum by (namespace) (vllm:num_requests_waiting{namespace=\"a\"})",
        "rabbitmq_queue_messages_ready{queue=\"jobs\"}",
        "histogram_quantile(0.9, sum(rate(request_duration_seconds[5m]))) > bool 3",
        "sum(vllm:num_requests_running) < bool 1",
        "sum(vllm:num_requests_waiting) or vector(0)",
        "count(vllm:num_requests_waiting > 3)",
    ] {
        assert_eq!(query(good, ""), Vec::<String>::new(), "{good}");
    }
    for good in [
        "histogram_quantile(0.95, sum by (le) (rate(vllm:e2e_request_latency_seconds_bucket[5m])))",
        "avg(DCGM_FI_DEV_GPU_UTIL)",
        "sum(rate(vllm:time_to_first_token_seconds_sum[5m])) / sum(rate(vllm:time_to_first_token_seconds_count[5m]))",
    ] {
        assert_eq!(query(good, "      metricType: Value\n"), Vec::<String>::new(), "{good}");
    }
}

#[test]
fn each_fault_is_named() {
    for (bad, words) in [
        ("sum(rate(vllm:num_requests_waiting[5m]))", "is a gauge"),
        ("sum(vllm:generation_tokens_total)", "is a counter, which only grows"),
        ("vllm:num_requests_waiting", "one series for each replica"),
        ("rate(vllm:prompt_tokens_total[1m])", "one series for each replica"),
        ("sum(vllm:num_requests_waiting", "can't be read as PromQL"),
        ("avg(vllm:num_requests_waiting)", "averages over the pods already"),
        ("sum(vllm:num_requests_waiting) / scalar(count(up))", "divides by the pods already"),
        (
            "sum(vllm:num_requests_waiting) / sum(kube_deployment_status_replicas)",
            "divides by the pods already",
        ),
        (
            "histogram_quantile(0.9, sum(rate(vllm:time_to_first_token_seconds_bucket[5m])))",
            "needs sum by (le)",
        ),
        (
            "histogram_quantile(0.9, sum without (le) (rate(vllm:time_to_first_token_seconds_bucket[5m])))",
            "needs sum by (le)",
        ),
        ("max(vllm:kv_cache_usage_perc)", "5 is never reached"),
        ("sum(vllm:request_success_total) < 5", "never below"),
        ("sum(vllm_num_requests_waiting)", "write vllm:num_requests_waiting"),
        ("sum(vllm:num_request_waiting)", "did you mean vllm:num_requests_waiting?"),
    ] {
        let remarks = query(bad, "");
        assert!(remarks.iter().any(|line| line.contains(words)), "{bad}: {remarks:#?}");
    }
}

#[test]
fn a_comment_changes_nothing() {
    for name in names() {
        let text = file(&name);
        let bare: String = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .map(|line| format!("{line}\n"))
            .collect();
        let commented: String = text
            .lines()
            .map(|line| {
                let indent = " ".repeat(line.len() - line.trim_start().len());
                format!("{indent}# keep the p95 below 2 s; scale down when it drops\n{line}\n")
            })
            .collect();
        let without_lines = |text: &str| -> Vec<String> {
            let lines = remarks(text).into_iter();
            lines.map(|line| line.split_once(": ").expect("a field").1.to_owned()).collect()
        };
        assert_eq!(without_lines(&bare), without_lines(&text), "{name}");
        // Not within a query that spans lines, where `#` is PromQL's.
        if !text.contains("query: |") {
            assert_eq!(without_lines(&commented), without_lines(&text), "{name}");
        }
        assert_eq!(pasted(&bare, "").len(), pasted(&text, "").len(), "{name}");
    }
}

#[test]
fn a_trigger_that_wakes_makes_up_for_one_that_cannot() {
    let object = |other: &str| {
        remarks(&format!(
            "spec:\n  minReplicaCount: 0\n  triggers:\n    - type: prometheus\n      metadata: {{serverAddress: 'http://p:1', query: 'sum(vllm:num_requests_waiting)', threshold: \"5\"}}\n{other}"
        ))
    };
    let wakes = |remarks: Vec<String>| !remarks.iter().any(|line| line.contains("never wakes"));
    assert!(!wakes(object("")));
    assert!(!wakes(object(
        "    - {type: cpu, metricType: Utilization, metadata: {value: \"60\"}}\n"
    )));
    assert!(wakes(object("    - {type: kafka, metadata: {lagThreshold: \"5\"}}\n")));
    assert!(wakes(object(
        "    - {type: external-push, metadata: {scalerAddress: 'forebay:9910'}}\n"
    )));
}

#[test]
fn a_router_s_series_wake_from_zero_and_are_not_vllm_s() {
    let object = |query: &str| {
        warned(&format!(
            "spec:\n  minReplicaCount: 0\n  triggers:\n    - type: prometheus\n      metadata:\n        serverAddress: http://p:1\n        threshold: \"1\"\n        query: {query}\n"
        ))
    };
    for wakes in [
        "sum(rate(vllm:num_incoming_requests_total[1m]) > bool 0)",
        "sum(vllm:current_qps)",
        "max(vllm:healthy_pods_total) + sum(vllm:num_incoming_requests_total) * 0",
        "sum(vllm:num_requests_waiting:sum)",
        "sum(vllm:num_requests_waiting) or sum(rate(vllm:num_incoming_requests_total[1m]))",
        "absent(vllm:num_requests_running)",
    ] {
        let remarks = object(wakes);
        let silent = |line: &String| line.contains("never wakes") || line.contains("exports no");
        assert!(!remarks.iter().any(silent), "{wakes}: {remarks:#?}");
    }
    for sleeps in [
        "sum(vllm:num_requests_waiting)",
        "sum(vllm:num_requests_waiting) + sum(vllm:current_qps)",
        "sum(vllm:num_requests_waiting) or vector(0)",
        "sum(vllm:gpu_cache_usage_perc)",
    ] {
        let remarks = object(sleeps);
        assert!(remarks.iter().any(|line| line.contains("never wakes")), "{sleeps}: {remarks:#?}");
    }
}

#[test]
fn the_number_of_series_is_remarked_on_once() {
    for (several, words) in [
        ("sum by (pod) (a)", "one series for each pod"),
        ("max by (gpu) (DCGM_FI_DEV_GPU_UTIL)", "one series for each gpu"),
        ("sum by (namespace) (vllm:num_requests_waiting)", "one series for each namespace"),
        ("rabbitmq_queue_messages_ready", "may give several series"),
        ("rabbitmq_queue_messages_ready{queue=\"a\"} or vector(0)", "gives two series"),
        ("sum without (pod) (a)", "may give several series"),
    ] {
        let remarks = query(several, "      metricType: Value\n");
        let count = remarks.iter().filter(|line| line.contains("takes a single one")).count();
        assert!(
            count == 1 && remarks.iter().any(|line| line.contains(words)),
            "{several}: {remarks:#?}"
        );
    }
}

#[test]
fn with_a_formula_only_the_formula_is_compared() {
    let object = |modifiers: &str| {
        remarks(&format!(
            "kind: ScaledObject\nspec:\n  scaleTargetRef: {{name: a}}\n  advanced: {{scalingModifiers: {modifiers}}}\n  triggers:\n    - type: prometheus\n      name: cache\n      metadata: {{serverAddress: 'http://p:1', query: avg(vllm:kv_cache_usage_perc), threshold: \"85\", activationThreshold: \"2\"}}\n    - type: cron\n      name: day\n      metadata: {{timezone: UTC, start: 0 8 * * *, end: 0 9 * * *, desiredReplicas: \"500\"}}\n"
        ))
    };
    let remarks = object("{formula: cache + day, target: '1'}");
    assert!(
        remarks.len() == 1 && remarks[0].contains("activationThreshold: has no effect"),
        "{remarks:#?}"
    );
    for (wrong, words) in [
        (
            "{formula: cache + nights, target: '1'}",
            "`nights`, which is not a trigger's name; there are: cache, day",
        ),
        ("{formula: cache}", "scalingModifiers.target: missing"),
        ("{formula: cache, target: '0'}", "0 is too little"),
        ("{formula: cache, target: '-1'}", "-1 is too little"),
        ("{formula: cache +, target: '1'}", "`cache +`"),
        ("{target: '1'}", "scalingModifiers.formula: missing"),
        ("{formula: '5', target: '1'}", "names no trigger"),
    ] {
        let remarks = object(wrong);
        assert!(remarks.iter().any(|line| line.contains(words)), "{wrong}: {remarks:#?}");
    }
}
