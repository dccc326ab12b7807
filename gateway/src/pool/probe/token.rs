//! Probes that ask whether an engine works. They are rare, so each has a connection of its own.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;

use super::connection::ProbeRequest;
use super::{HEALTH_TIMEOUT, Target, judge};
use crate::pool::endpoint::Probed;

/// Longer than for `/health`, because a one-token request queues behind others in the engine.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Probes the engine with a request for one token, or for another small output of its kind. That
/// request may have to wait behind many others. If it does, counters of the engine that advance
/// meanwhile show that it works too.
pub(super) async fn token(target: &Target, model: Option<&String>) -> Probed {
    let (before, answer) = tokio::join!(progress(target), one_token(target, model));
    match (before, answer) {
        (Some(before), Probed::Silent(reason)) => match progress(target).await {
            Some(after) if after != before => Probed::Answered,
            _ => Probed::Silent(reason),
        },
        (_, answer) => answer,
    }
}

/// Metrics of vLLM that change only while its engine works. Its server shows the last values while
/// the engine hangs.
const PROGRESS: [&[u8]; 4] = [
    b"vllm:generation_tokens_total",
    b"vllm:prompt_tokens_total",
    b"vllm:kv_cache_usage_perc",
    b"vllm:num_requests_running",
];

/// The engine's progress by its server's own metrics; `None` where it shows none.
async fn progress(target: &Target) -> Option<Vec<Bytes>> {
    let (_, page) = target.ask(&ProbeRequest::get("/metrics"), HEALTH_TIMEOUT).await.ok()?;
    let lines = page.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| PROGRESS.iter().any(|series| line.starts_with(series)));
    let progress: Vec<_> = lines.map(|line| page.slice_ref(line)).collect();
    (!progress.is_empty()).then_some(progress)
}

/// Asks for text, an embedding, a score or a class, whichever the server has. If it has none of
/// these, or requires more than we can send, its health decides.
async fn one_token(target: &Target, model: Option<&String>) -> Probed {
    let requests = [
        ("/v1/completions", json!({"model": model, "prompt": "a", "max_tokens": 1})),
        ("/v1/embeddings", json!({"model": model, "input": "a"})),
        ("/v1/score", json!({"model": model, "text_1": "a", "text_2": "a"})),
        ("/classify", json!({"model": model, "input": "a"})),
        ("/pooling", json!({"model": model, "input": "a"})),
    ];
    for (path, body) in requests {
        let answer = target.ask(&ProbeRequest::post(path, &body), TOKEN_TIMEOUT).await;
        match answer {
            // With a wrong key it does no work for the gateway.
            Ok((StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _)) if target.key.is_some() => {
                return judge(path, answer, |_| false);
            }
            Ok((status, _))
                if status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED => {}
            answer => return judge(path, answer, |status| status.is_success()),
        }
    }
    let health = ProbeRequest::get("/health");
    judge(health.path, target.ask(&health, HEALTH_TIMEOUT).await, |status| status.is_success())
}
