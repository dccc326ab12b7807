//! The rules of the model for `forebay replay`.

use super::Findings;
use crate::types::replay::Replay;
use crate::yaml::problem::Path;

pub(super) fn check(replay: &Replay, path: &Path, found: &mut Findings) {
    let (replica, at) = (&replay.replica, path.key("replica"));
    for (name, value) in [
        ("gpus", replica.gpus.map_or(1, u64::from)),
        ("maxSequences", u64::from(replica.max_sequences)),
        ("maxBatchedTokens", u64::from(replica.max_batched_tokens)),
        ("kvCacheTokens", replica.kv_cache_tokens),
    ] {
        if value == 0 {
            found.error(at.key(name), "must be at least 1");
        }
    }
    if replica.max_batched_tokens <= replica.max_sequences {
        let message = format!(
            "{} leaves no room for prompts beside {} sequences; it must be more than maxSequences",
            replica.max_batched_tokens, replica.max_sequences
        );
        found.error(at.key("maxBatchedTokens"), message);
    }
    let cold = at.key("coldStart");
    for (path, value, most) in [
        (at.key("prefillTokensPerSecond"), replica.prefill_tokens_per_second, 1e9),
        (at.key("decodeStepMillisPerSequence"), replica.decode_step_millis_per_sequence, 1e6),
        (cold.key("spread"), replica.cold_start.spread, 2.0),
        (path.key("gpuHourPrice"), replay.gpu_hour_price.unwrap_or_default(), 1e9),
    ] {
        if !(0.0..=most).contains(&value) {
            found.error(path, format!("{value} must be between 0 and {most}"));
        }
    }
    let clients = path.key("clients");
    found.above_zero(&clients, "patience", replay.clients.patience);
    found.above_zero(&clients, "retryPause", replay.clients.retry_pause);
    found.above_zero(&clients, "maxRetryPause", replay.clients.max_retry_pause);
}
