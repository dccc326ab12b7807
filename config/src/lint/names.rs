//! Metrics that vLLM (0.32) and the DCGM exporter export, and vLLM's former names.

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetricKind {
    Gauge,
    Counter,
    Histogram,
}

use MetricKind::{Counter, Gauge, Histogram};

/// Names after `vllm:`, histograms without their suffix.
const EXPORTED: [(&str, MetricKind); 43] = [
    ("admission_rejections_total", Counter),
    ("cache_config_info", Gauge),
    ("e2e_request_latency_seconds", Histogram),
    ("engine_sleep_state", Gauge),
    ("estimated_flops_per_gpu_total", Counter),
    ("estimated_read_bytes_per_gpu_total", Counter),
    ("estimated_write_bytes_per_gpu_total", Counter),
    ("external_prefix_cache_hits_total", Counter),
    ("external_prefix_cache_queries_total", Counter),
    ("generation_tokens_total", Counter),
    ("inter_token_latency_seconds", Histogram),
    ("iteration_tokens_total", Histogram),
    ("kv_cache_usage_perc", Gauge),
    ("lora_requests_info", Gauge),
    ("mm_cache_hits_total", Counter),
    ("mm_cache_queries_total", Counter),
    ("num_preemptions_total", Counter),
    ("num_requests_running", Gauge),
    ("num_requests_waiting", Gauge),
    ("num_requests_waiting_by_reason", Gauge),
    ("prefix_cache_hits_total", Counter),
    ("prefix_cache_queries_total", Counter),
    ("prompt_tokens_by_source_total", Counter),
    ("prompt_tokens_cached_by_source_total", Counter),
    ("prompt_tokens_cached_total", Counter),
    ("prompt_tokens_total", Counter),
    ("request_decode_time_seconds", Histogram),
    ("request_generation_tokens", Histogram),
    ("request_inference_time_seconds", Histogram),
    ("request_max_num_generation_tokens", Histogram),
    ("request_num_preemptions", Histogram),
    ("request_params_max_tokens", Histogram),
    ("request_params_n", Histogram),
    ("request_prefill_kv_computed_tokens", Histogram),
    ("request_prefill_time_seconds", Histogram),
    ("request_prompt_tokens", Histogram),
    ("request_queue_time_seconds", Histogram),
    ("request_success_total", Counter),
    ("request_time_per_output_token_seconds", Histogram),
    ("sleep_mode_operation_duration_seconds", Histogram),
    ("sleep_mode_operations_in_flight", Gauge),
    ("time_to_first_token_seconds", Histogram),
    ("tool_call_parser_invocations_total", Counter),
];

/// Names that are exported with some options only.
const OPTIONAL: [&str; 5] =
    ["spec_decode_", "kv_block_", "nixl_", "kv_offload_", "corrupted_requests"];

/// Series after `vllm:` that routers in front of replicas export, such as production-stack's.
const ROUTERS: [&str; 11] = [
    "avg_decoding_length",
    "avg_itl",
    "avg_latency",
    "avg_ttft",
    "current_qps",
    "healthy_pods_total",
    "num_decoding_requests",
    "num_incoming_requests_total",
    "num_prefill_requests",
    "num_requests_uncompleted",
    "router_queueing_delay_seconds",
];

/// Former and mistaken names, and the names in their place.
const REPLACED: [(&str, &str, &str); 14] = [
    ("gpu_cache_usage_perc", "kv_cache_usage_perc", "vLLM renamed it"),
    ("cpu_cache_usage_perc", "kv_cache_usage_perc", "vLLM no longer has a cache on the CPU's side"),
    ("num_requests_swapped", "num_preemptions_total", "vLLM no longer swaps requests"),
    ("gpu_prefix_cache_queries", "prefix_cache_queries_total", "vLLM renamed it"),
    ("gpu_prefix_cache_queries_total", "prefix_cache_queries_total", "vLLM renamed it"),
    ("gpu_prefix_cache_hits", "prefix_cache_hits_total", "vLLM renamed it"),
    ("gpu_prefix_cache_hits_total", "prefix_cache_hits_total", "vLLM renamed it"),
    (
        "gpu_prefix_cache_hit_rate",
        "prefix_cache_hits_total",
        "vLLM counts hits and queries instead",
    ),
    ("time_per_output_token_seconds", "inter_token_latency_seconds", "vLLM renamed it"),
    ("request_latency", "e2e_request_latency_seconds", "there is none of this name"),
    ("request_latency_seconds", "e2e_request_latency_seconds", "there is none of this name"),
    ("e2e_request_latency", "e2e_request_latency_seconds", "there is none of this name"),
    (
        "avg_generation_throughput_toks_per_s",
        "generation_tokens_total",
        "vLLM exports a counter instead, to be read by rate()",
    ),
    (
        "avg_prompt_throughput_toks_per_s",
        "prompt_tokens_total",
        "vLLM exports a counter instead, to be read by rate()",
    ),
];

/// The name after `vllm:`.
pub(super) fn vllm(metric: &str) -> Option<&str> {
    metric.strip_prefix("vllm:")
}

fn suffix(name: &str) -> (&str, &str) {
    for suffix in ["_bucket", "_sum", "_count", "_created"] {
        if let Some(base) = name.strip_suffix(suffix) {
            return (base, suffix);
        }
    }
    (name, "")
}

/// The kind of a metric of vLLM's or the DCGM exporter's; `None` for any other.
pub(super) fn kind(metric: &str) -> Option<MetricKind> {
    if metric.starts_with("DCGM_FI_DEV_") {
        let counter = metric.ends_with("_TOTAL") || metric.ends_with("_ENERGY_CONSUMPTION");
        return Some(if counter { Counter } else { Gauge });
    }
    let name = vllm(metric)?;
    let of =
        |name: &str| EXPORTED.iter().find(|(exported, _)| *exported == name).map(|(_, kind)| *kind);
    let (base, suffix) = suffix(name);
    match (of(name), of(base)) {
        (Some(kind), _) => Some(kind),
        // Each of its series is a counter.
        (None, Some(Histogram)) if suffix != "_created" => Some(Counter),
        // A former name has the kind of the present one.
        _ => {
            let (_, now, _) = REPLACED.iter().find(|(old, ..)| *old == base || *old == name)?;
            of(now).map(|kind| if suffix.is_empty() { kind } else { Counter })
        }
    }
}

/// The fault of a vLLM metric's name, with the right name if there is one.
pub(super) fn fault(metric: &str) -> Option<String> {
    if let Some(name) = metric.strip_prefix("vllm_") {
        let with_colon = format!("vllm:{name}");
        let known = kind(&with_colon).is_some();
        return known.then(|| {
            format!("vLLM exports no {metric}: its names have a colon; write {with_colon}")
        });
    }
    let name = vllm(metric)?;
    // Of others: recording rules have a second colon, and routers series of their own.
    if name.contains(':') || ROUTERS.contains(&name) {
        return None;
    }
    let exported = |name: &str| EXPORTED.iter().any(|(known, _)| *known == name);
    let (base, suffix) = suffix(name);
    let histogram = |name: &str| EXPORTED.contains(&(name, Histogram));
    if exported(name) && !histogram(name) {
        return None;
    }
    if histogram(name) {
        return Some(format!(
            "vLLM exports no {metric} as such: it is a histogram; write {metric}_bucket, _sum or _count"
        ));
    }
    if histogram(base) || is_created(name) {
        return None;
    }
    if OPTIONAL.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let found = |name: &str| REPLACED.iter().find(|(old, ..)| *old == name);
    if let Some((_, now, why)) = found(name).or_else(|| found(base)) {
        let suffix =
            if histogram(now) { if suffix.is_empty() { "_bucket" } else { suffix } } else { "" };
        return Some(format!("vLLM exports no {metric}: {why}; write vllm:{now}{suffix}"));
    }
    if exported(&format!("{name}_total")) {
        return Some(format!("vLLM exports no {metric}; write {metric}_total"));
    }
    // A name that resembles none of vLLM's belongs to another exporter.
    let slips = |(name, _): &(&str, MetricKind)| strsim::damerau_levenshtein(base, name);
    let (near, _) =
        EXPORTED.iter().min_by_key(|known| slips(known)).filter(|known| slips(known) <= 2)?;
    let suffix = match (histogram(near), suffix) {
        (true, "") => "_bucket",
        (true, suffix) => suffix,
        (false, _) => "",
    };
    Some(format!("vLLM exports no {metric}; did you mean vllm:{near}{suffix}?"))
}

/// The upper bound of a metric that is a share of a whole.
pub(super) fn whole(metric: &str) -> Option<f64> {
    match metric {
        "vllm:kv_cache_usage_perc" | "vllm:gpu_cache_usage_perc" | "vllm:cpu_cache_usage_perc" => {
            Some(1.0)
        }
        "DCGM_FI_DEV_GPU_UTIL" | "DCGM_FI_DEV_MEM_COPY_UTIL" => Some(100.0),
        _ => None,
    }
}

/// Whether the replicas export it, so that at zero replicas there is no series: vLLM's own series
/// by their present and former names, and the figures of GPUs, which are idle then.
pub(super) fn of_replicas(metric: &str) -> bool {
    if metric.starts_with("DCGM_FI_") {
        return true;
    }
    let with_colon = metric.strip_prefix("vllm_").map(|name| format!("vllm:{name}"));
    let metric = with_colon.as_deref().unwrap_or(metric);
    let optional = |name: &str| OPTIONAL.iter().any(|prefix| name.starts_with(prefix));
    kind(metric).is_some() || vllm(metric).is_some_and(|name| is_created(name) || optional(name))
}

/// `_created` of a counter or a histogram.
fn is_created(name: &str) -> bool {
    name.strip_suffix("_created").is_some_and(|base| {
        let total = format!("{base}_total");
        EXPORTED.iter().any(|(known, _)| *known == base || *known == total)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_is_reported_with_the_right_one() {
        for (metric, want) in [
            ("vllm:num_requests_waiting", None),
            ("vllm:e2e_request_latency_seconds_bucket", None),
            ("vllm:generation_tokens_total", None),
            ("vllm:spec_decode_num_accepted_tokens_total", None),
            ("up", None),
            ("vllm:gpu_cache_usage_perc", Some("renamed it; write vllm:kv_cache_usage_perc")),
            ("vllm:request_latency_bucket", Some("write vllm:e2e_request_latency_seconds_bucket")),
            (
                "vllm:time_per_output_token_seconds_bucket",
                Some("write vllm:inter_token_latency_seconds_bucket"),
            ),
            ("vllm:generation_tokens", Some("write vllm:generation_tokens_total")),
            ("vllm:num_request_waiting", Some("did you mean vllm:num_requests_waiting?")),
            ("vllm_num_requests_waiting", Some("write vllm:num_requests_waiting")),
            ("vllm:time_to_first_token_seconds", Some("_bucket, _sum or _count")),
        ] {
            let fault = fault(metric);
            match want {
                None => assert_eq!(fault, None, "{metric}"),
                Some(want) => assert!(
                    fault.as_ref().is_some_and(|message| message.contains(want)),
                    "{metric}: {fault:?}"
                ),
            }
        }
    }

    #[test]
    fn only_what_replicas_export_is_theirs() {
        for theirs in [
            "vllm:num_requests_waiting",
            "vllm:gpu_cache_usage_perc",
            "vllm_num_requests_waiting",
            "vllm:request_success_created",
            "vllm:e2e_request_latency_seconds_bucket",
            "vllm:spec_decode_num_drafts_total",
            "DCGM_FI_DEV_GPU_UTIL",
        ] {
            assert!(of_replicas(theirs), "{theirs}");
        }
        for other in [
            "vllm:num_incoming_requests_total",
            "vllm:current_qps",
            "vllm:healthy_pods_total",
            "vllm:num_requests_waiting:sum",
            "vllm:anything_else",
            "vllm_router_requests",
            "up",
        ] {
            assert!(!of_replicas(other), "{other}");
            assert_eq!(fault(other), None, "{other}");
        }
    }

    #[test]
    fn what_real_servers_export_is_all_known() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../loadtests/fixtures/vllm/");
        for file in [
            "a-default/metrics_under_load.resp",
            "i-dp2/metrics_after.resp",
            "e-auth-lora-dev/metrics_while_sleeping.resp",
        ] {
            let text = std::fs::read_to_string(format!("{folder}{file}")).expect("a fixture");
            let names = text.lines().filter(|line| line.starts_with("vllm:"));
            let names = names.filter_map(|line| line.split(['{', ' ']).next());
            let mut count = 0;
            for name in names {
                assert_eq!(fault(name), None, "{file}");
                count += 1;
            }
            assert!(count > 50, "{file}: {count}");
        }
    }
}
