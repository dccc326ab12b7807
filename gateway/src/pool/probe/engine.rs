//! A replica's engine, as its own metrics describe it: its KV cache, and the requests that wait there.

use forebay_scheduling::pick::CacheReport;

use crate::pool::endpoint::EngineReport;

/// Reads vLLM's metrics. An engine of several ranks has a line for each; a request has the cache of
/// one of them, so the sizes add up as the counters do.
pub(super) fn parse(page: &[u8]) -> Option<EngineReport> {
    let page = std::str::from_utf8(page).ok()?;
    let (mut tokens, mut hits, mut queries) = (None::<u64>, None::<u64>, None::<u64>);
    let (mut kv_tokens, mut waiting, mut asleep) = (None::<u64>, None::<u64>, false);
    for line in page.lines() {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let value = || Some(line.rsplit_once(' ')?.1.parse::<f64>().ok()? as u64);
        match name {
            "vllm:cache_config_info" => {
                let size = size(rest)?;
                kv_tokens = Some(kv_tokens.unwrap_or(0) + size);
                let kept = if keeps_prefixes(rest) { size } else { 0 };
                tokens = Some(tokens.unwrap_or(0) + kept);
            }
            "vllm:prefix_cache_hits_total" => hits = Some(hits.unwrap_or(0) + value()?),
            "vllm:prefix_cache_queries_total" => queries = Some(queries.unwrap_or(0) + value()?),
            "vllm:num_requests_waiting" => waiting = Some(waiting.unwrap_or(0) + value()?),
            "vllm:engine_sleep_state" if rest.contains("sleep_state=\"awake\"") => {
                asleep |= value() == Some(0);
            }
            _ => {}
        }
    }
    let counters = hits.zip(queries);
    let cache = (tokens.is_some() || counters.is_some()).then_some(CacheReport {
        tokens,
        counters,
        asleep,
    });
    let waiting = waiting.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    (cache.is_some() || waiting.is_some()).then_some(EngineReport { cache, kv_tokens, waiting })
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let start = labels.find(&format!("{name}=\""))? + name.len() + 2;
    labels[start..].split_once('"').map(|(value, _)| value)
}

fn keeps_prefixes(labels: &str) -> bool {
    label(labels, "enable_prefix_caching") != Some("False")
}

/// The tokens that a cache takes, by the labels that describe it.
fn size(labels: &str) -> Option<u64> {
    let number = |name| label(labels, name).and_then(|value| value.parse::<u64>().ok());
    // Newer versions say it; older ones say how many blocks there are, and how long each is.
    number("kv_cache_size_tokens")
        .or_else(|| Some(number(",num_gpu_blocks")?.saturating_mul(number("block_size")?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As vLLM 0.32 writes them, with some labels and lines left out.
    const PAGE: &str = r#"# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{_block_size_resolved="True",block_size="128",enable_prefix_caching="True",engine="0",kv_cache_size_tokens="2097152",num_gpu_blocks="16384",num_gpu_blocks_override="None"} 1.0
# TYPE vllm:engine_sleep_state gauge
vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="weights_offloaded"} 0.0
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 463.0
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 128.0
vllm:external_prefix_cache_hits_total{engine="0",model_name="tiny"} 7.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 3.0
"#;

    #[test]
    fn size_counters_and_waiting_requests_are_read() {
        let want =
            CacheReport { tokens: Some(2_097_152), counters: Some((128, 463)), asleep: false };
        let want = EngineReport { cache: Some(want), kv_tokens: Some(2_097_152), waiting: Some(3) };
        assert_eq!(parse(PAGE.as_bytes()), Some(want));
    }

    #[test]
    fn older_versions_give_blocks_and_their_length() {
        let page = PAGE.replace(r#"kv_cache_size_tokens="2097152","#, "");
        assert_eq!(parse(page.as_bytes()).and_then(|report| report.kv_tokens), Some(128 * 16_384));
    }

    #[test]
    fn a_cache_that_keeps_no_prefixes_takes_nothing() {
        let page = PAGE.replace(r#"caching="True""#, r#"caching="False""#);
        let report = parse(page.as_bytes()).expect("a report");
        assert_eq!(report.cache.and_then(|cache| cache.tokens), Some(0));
        assert_eq!(report.kv_tokens, Some(2_097_152));
    }

    #[test]
    fn an_engine_that_sleeps_is_noticed() {
        let page = PAGE.replace(r#""awake"} 1.0"#, r#""awake"} 0.0"#);
        assert!(parse(page.as_bytes()).and_then(|report| report.cache).expect("a report").asleep);
    }

    #[test]
    fn each_rank_has_its_own() {
        let two = format!("{PAGE}{}", PAGE.replace(r#"engine="0""#, r#"engine="1""#));
        let report = parse(two.as_bytes()).expect("a report");
        assert_eq!((report.kv_tokens, report.waiting), (Some(2 * 2_097_152), Some(6)));
        assert_eq!(report.cache.and_then(|cache| cache.counters), Some((256, 926)));
    }

    #[test]
    fn other_servers_say_nothing() {
        for page in
            ["", "up{} 1\n", "vllm:cache_config_info{} 1.0", "vllm:prefix_cache_hits_total{} x"]
        {
            assert_eq!(parse(page.as_bytes()), None, "{page}");
        }
        assert_eq!(parse(b"\xff{"), None);
    }
}
