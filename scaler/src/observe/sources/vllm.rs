//! The `/metrics` of every ready vLLM replica.

use std::collections::BTreeMap;

use forebay_config::Range;
use futures_util::StreamExt;
use futures_util::stream;

use super::exposition::{declares, samples, whole};
use super::{Client, SourceResult, TIMEOUT, bounded};

/// The current name, and the one of vLLM before 0.11.
const KV_CACHE: [&str; 2] = ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"];

/// Replicas read at a time.
const AT_ONCE: usize = 16;

/// The mean use of the KV cache, 0 to 1, over the replicas. Unreadable replicas count as empty, so
/// the figure is then a lower bound and marked so.
pub(super) async fn kv_cache(client: &Client, endpoints: &[String], now_ms: u64) -> SourceResult {
    if endpoints.is_empty() {
        return Ok((None, None));
    }
    let read = |endpoint: String| async move {
        let url = format!("http://{endpoint}/metrics");
        let text = bounded(TIMEOUT, client.text(&url)).await;
        text.and_then(|text| usage(&text, now_ms)).map_err(|error| format!("{endpoint}: {error}"))
    };
    let reads = stream::iter(endpoints.iter().cloned().map(read));
    let found: Vec<_> = reads.buffer_unordered(AT_ONCE).collect().await;
    let failed: Vec<_> = found.iter().filter_map(|found| found.as_ref().err()).collect();
    if failed.len() == endpoints.len() {
        return Err(failed[0].clone());
    }
    let mean = found.iter().flatten().sum::<f64>() / endpoints.len() as f64;
    let partial = failed.first().map(|error| {
        format!("{} of {} replicas can't be read ({error})", failed.len(), endpoints.len())
    });
    Ok((Some(mean), partial))
}

/// The mean over a server's engines. An unreadable engine makes all of it unknown.
fn usage(text: &str, now_ms: u64) -> Result<f64, String> {
    let text = whole(text)?;
    for name in KV_CACHE {
        let mut engines = BTreeMap::new();
        for sample in samples(text, name, now_ms) {
            let value = sample.value.clone().and_then(|value| Range::SHARE.check(value));
            let value = value.map_err(|why| format!("its {name} {why}"))?;
            // A series that occurs twice is still one engine's.
            engines.insert(sample.labels().map(<[_]>::to_vec), value);
        }
        if !engines.is_empty() {
            return Ok(engines.values().sum::<f64>() / engines.len() as f64);
        }
    }
    // A server of several processes has no sample before its first request.
    if KV_CACHE.iter().any(|name| declares(text, name)) {
        return Ok(0.0);
    }
    Err(format!("it exports no {}", KV_CACHE[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_the_mean_over_engines_by_the_current_or_the_old_name() {
        let old = "# TYPE vllm:gpu_cache_usage_perc gauge\nvllm:gpu_cache_usage_perc{model_name=\"a\"} 0.5\n";
        let two = "vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.75\n";
        let twice = format!("{two}vllm:kv_cache_usage_perc{{engine=\"1\"}} 0.75\n");
        let none = "# TYPE vllm:kv_cache_usage_perc gauge\n";
        for (case, text, want) in [
            ("old", old, Ok(0.5)),
            ("two engines", two, Ok(0.5)),
            ("one of them twice", &twice, Ok(0.5)),
            ("no request yet", none, Ok(0.0)),
            ("another server", "up 1\n", Err("it exports no vllm:kv_cache_usage_perc")),
            (
                "cut off within a number",
                "vllm:kv_cache_usage_perc 0.2",
                Err("its answer is cut off"),
            ),
        ] {
            assert_eq!(usage(text, 0), want.map_err(str::to_owned), "{case}");
        }
    }

    #[test]
    fn an_engine_with_an_impossible_figure_makes_the_replica_unknown() {
        for (value, why) in [
            ("37", "is 37, and can only be 0 to 1"),
            ("-0.5", "is -0.5, and can only be 0 to 1"),
            ("NaN", "is NaN"),
            ("+Inf", "is inf, and can only be 0 to 1"),
            ("half", "can't be read"),
            ("0.5 1600000000000", "is 100000000 s old, by its own time"),
        ] {
            let text = format!(
                "vllm:kv_cache_usage_perc{{engine=\"0\"}} 0.5\nvllm:kv_cache_usage_perc{{engine=\"1\"}} {value}\n"
            );
            let want = Err(format!("its vllm:kv_cache_usage_perc {why}"));
            assert_eq!(usage(&text, 1_700_000_000_000), want, "{value}");
        }
    }

    #[test]
    fn the_exports_of_real_servers_are_read() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../loadtests/fixtures/vllm/");
        for (file, least, most) in [
            ("c-options/metrics_kv_pressure.resp", 0.01, 1.0),
            ("a-default/metrics_idle_after.resp", 0.0, 0.0),
            ("i-dp2/metrics_under_load_0.resp", 0.0, 1.0),
            ("i-dp2/metrics_idle.resp", 0.0, 0.0),
        ] {
            let text = std::fs::read_to_string(format!("{folder}{file}")).expect("a fixture");
            let usage = usage(&text, 0).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!((least..=most).contains(&usage), "{file}: {usage}");
        }
    }
}
