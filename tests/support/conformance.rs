//! One list of requests, sent to a server directly and through the gateway: a client cannot tell
//! the two apart, except where docs/conformance.md gives a reason.

#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;

use crate::common::{Client, Reply, recorded, shape};
use crate::support::{Forebay, eventually, gateway_with};

/// A server as it was recorded, and the requests that it and the gateway in front of it get.
pub(crate) struct Requests {
    pub(crate) folder: &'static str,
    /// The simulator's flags.
    pub(crate) flags: &'static [&'static str],
    pub(crate) model: &'static str,
    pub(crate) names: &'static [&'static str],
}

/// Not among them: HTTP/1.0, which vLLM answers as HTTP/1.1 and in chunks, and the gateway
/// correctly; requests that the gateway answers on its own (models, unknown names and paths); and
/// paths that it does not expose (metrics, development, `/invocations`).
pub(crate) const REQUESTS: &[Requests] = &[
    Requests {
        folder: "a-default",
        flags: &[],
        model: "tiny",
        names: &[
            "chat",
            "chat_stream",
            "chat_stream_usage",
            "chat_stream_usage_continuous",
            "chat_stream_n2",
            "chat_n2",
            "chat_stream_logprobs",
            "chat_logprobs",
            "chat_stop_string",
            "chat_stream_stop_string",
            "chat_stream_eos_bias",
            "chat_max_completion_tokens",
            "chat_return_token_ids_stream",
            "chat_stream_long",
            "chat_unknown_param",
            "chat_user_request_id_body",
            "chat_x_request_id",
            "completion",
            "completion_stream",
            "completion_stream_usage",
            "completion_stream_usage_continuous",
            "completion_stream_n2",
            "completion_stream_logprobs",
            "completion_batch_prompts",
            "completion_batch_prompts_stream",
            "completion_token_ids",
            "completion_echo",
            "completion_max_tokens_0",
            "chat_tool_named_stream",
            "chat_tool_named",
            "chat_tool_required_stream",
            "err_tool_auto_disabled",
            "chat_json_schema",
            "responses",
            "responses_stream",
            "messages",
            "messages_stream",
            "messages_count_tokens",
            "tokenize",
            "tokenize_chat",
            "detokenize",
            "chat_no_model",
            "err_missing_messages",
            "err_messages_wrong_type",
            "err_empty_messages",
            "err_bad_role",
            "err_context_too_long",
            "err_context_too_long_stream",
            "err_max_tokens_too_big",
            "err_max_tokens_0",
            "err_temperature",
            "err_n_0",
            "err_top_logprobs",
            "err_stream_options_no_stream",
            "err_image",
            "frame_connection_close_stream",
            "frame_chunked_request",
            "frame_expect_100",
            "accept_encoding_gzip",
        ],
    },
    Requests {
        folder: "c-options",
        flags: &["--enable-prompt-tokens-details", "--enable-request-id-headers"],
        model: "tiny",
        names: &[
            "cached_tokens_1",
            "cached_tokens_2",
            "cached_tokens_2_stream",
            "bystander_during_compile",
            "keepalive_comments_logprobs_stream",
        ],
    },
    Requests {
        folder: "h-embeddings",
        flags: &["--runner=pooling", "--served-model-name=tiny-embed"],
        model: "tiny-embed",
        names: &[
            "embeddings",
            "embeddings_bad_type",
            "embeddings_base64",
            "embeddings_batch",
            "embeddings_dimensions",
            "embeddings_empty",
            "embeddings_tokens",
            "embeddings_too_long",
            "pooling",
            "rerank",
            "score",
        ],
    },
];

/// Headers that a client may act on.
const COMPARED: [&str; 3] = ["content-type", "retry-after", "www-authenticate"];

/// The status and the compared headers.
pub(crate) fn head(reply: &Reply) -> Vec<String> {
    let header = |name: &&str| reply.header(name).map(|value| format!("{name}: {value}"));
    let mut head = vec![reply.status.clone()];
    head.extend(COMPARED.iter().filter_map(header));
    head
}

/// The shape of each event, or of the body. A repeated shape occurs once.
pub(crate) fn shapes(reply: &Reply) -> Vec<String> {
    if !reply.header("content-type").is_some_and(|kind| kind.starts_with("text/event")) {
        let json = reply.body.starts_with('{');
        return vec![if json { shape(&reply.body) } else { reply.body.clone() }];
    }
    let mut shapes: Vec<String> = reply
        .body
        .split_terminator("\n\n")
        .map(|event| match event.split_once("data: {") {
            Some((before, data)) => format!("{before}data: {}", shape(&format!("{{{data}"))),
            None => event.to_owned(),
        })
        .collect();
    shapes.dedup();
    shapes
}

/// A gateway in front of these, for the hosts that the recorded requests name.
pub(crate) fn gateway(endpoints: &[SocketAddr], models: &[&str]) -> Forebay {
    gateway_with(", allowedHosts: ['*']", endpoints, models, "")
}

/// Whether two answers differ only in their generated text, which is sampled: its length differs,
/// and so do its chunks.
pub(crate) fn is_alike(direct: &Reply, through: &Reply) -> bool {
    let [want, got] = [direct, through].map(|reply| (head(reply), shapes(reply)));
    if direct.code() != 200 {
        return want == got;
    }
    let within = |a: &[String], b: &[String]| a.iter().all(|shape| b.contains(shape));
    let usage = |reply: &Reply| reply.body.contains("\"usage\":{");
    want.0 == got.0
        && want.1.last() == got.1.last()
        && (within(&want.1, &got.1) || within(&got.1, &want.1))
        && usage(direct) == usage(through)
}

pub(crate) async fn ask(address: SocketAddr, request: &[u8]) -> Reply {
    let mut client = Client::connect(address).await;
    client.send(request).await;
    let mut reply = client.reply(request.starts_with(b"HEAD")).await.expect("a whole response");
    // A server that had the whole request already may leave out the answer to `Expect`.
    if reply.code() == 100 {
        reply = client.reply(false).await.expect("a whole response");
    }
    reply
}

pub(crate) async fn ready(forebay: &Forebay) {
    eventually("the endpoint is ready", || {
        let signals = forebay.signals();
        let endpoints = signals["endpoints"].as_object().expect("endpoints");
        endpoints.values().any(|endpoint| endpoint["health"] == "ready")
    });
}

/// How often a sampled answer is compared before it counts as different: one of the two may end by
/// itself and the other by its length.
const SAMPLES: usize = 6;

/// Sends each request both ways, and fails with all answers that differ.
pub(crate) async fn compare(address: SocketAddr, requests: &Requests, sampled: bool) {
    let forebay = gateway(&[address], &[requests.model]);
    ready(&forebay).await;
    let mut different = Vec::new();
    for name in requests.names {
        let request = recorded(requests.folder, &format!("{name}.req"));
        let mut found = None;
        for _ in 0..if sampled { SAMPLES } else { 1 } {
            let direct = ask(address, &request).await;
            let through = ask(forebay.address, &request).await;
            assert!(through.header("x-request-id").is_some(), "{name}");
            assert!(through.header("server-timing").is_some(), "{name}");
            let [want, got] = [&direct, &through].map(|reply| (head(reply), shapes(reply)));
            let same = if sampled { is_alike(&direct, &through) } else { want == got };
            found = (!same).then(|| format!("{name}:\n  direct  {want:?}\n  through {got:?}"));
            if same {
                break;
            }
        }
        different.extend(found);
    }
    assert!(different.is_empty(), "{}:\n{}", requests.folder, different.join("\n"));
}
