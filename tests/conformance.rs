//! One list of requests, to vLLM directly and through the gateway: a client cannot tell the two
//! apart, but for what is listed here with its reason.
//!
//! Against the simulated server, and by replaying the recordings. Against a real one that serves a
//! model as `tiny`:
//! `FOREBAY_CONFORMANCE=127.0.0.1:8000 cargo test --test conformance`

#[path = "../loadtests/tests/common/mod.rs"]
mod common;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use common::{Client, Reply, recorded, shape};
use support::{Forebay, eventually, gateway};

/// A server as it was recorded, and what is asked of it and of the gateway before it.
struct Asked {
    folder: &'static str,
    /// The simulator's flags.
    flags: &'static [&'static str],
    model: &'static str,
    names: &'static [&'static str],
}

/// Left out: HTTP/1.0, which vLLM answers as HTTP/1.1 and in chunks, and the gateway as it should;
/// what the gateway answers by itself (models, unknown names and paths); and what is not to be
/// reached through it (metrics, development, `/invocations`).
const ASKED: &[Asked] = &[
    Asked {
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
    Asked {
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
    Asked {
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

/// Answers that are replayed and not asked for live: tools, reasoning, adapters.
const REPLAYED: &[(&str, &[&str])] = &[
    (
        "c-options",
        &[
            "chat_tool_auto_regex_stream",
            "chat_tool_auto_stream",
            "chat_tool_named",
            "chat_tool_named_stream",
            "chat_tool_none",
            "chat_tool_required",
            "chat_tool_required_stream",
            "messages_tool_stream",
            "responses_tool_stream",
            "err_prompt_bigger_than_kv",
        ],
    ),
    (
        "e-auth-lora-dev",
        &[
            "chat_forced_usage_metrics",
            "chat_lora_ad1",
            "chat_lora_ad1_stream",
            "chat_reasoning",
            "chat_reasoning_stream",
            "chat_reasoning_then_content",
            "chat_reasoning_then_content_stream",
            "messages_thinking_stream",
        ],
    ),
];

/// Headers that a client may act on.
const TELLING: [&str; 3] = ["content-type", "retry-after", "www-authenticate"];

fn told(reply: &Reply) -> Vec<String> {
    let header = |name: &&str| reply.header(name).map(|value| format!("{name}: {value}"));
    let mut told = vec![reply.status.clone()];
    told.extend(TELLING.iter().filter_map(header));
    told
}

/// The shape of each event or of the body; repeated ones made one.
fn shapes(reply: &Reply) -> Vec<String> {
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

async fn ask(address: SocketAddr, request: &[u8]) -> Reply {
    let mut client = Client::connect(address).await;
    client.send(request).await;
    let mut reply = client.reply(request.starts_with(b"HEAD")).await.expect("a whole response");
    // `Expect` was answered on the way, or the server had it all and saw no need.
    if reply.code() == 100 {
        reply = client.reply(false).await.expect("a whole response");
    }
    reply
}

async fn ready(forebay: &Forebay) {
    eventually("the endpoint is ready", || {
        let signals = forebay.signals();
        let endpoints = signals["endpoints"].as_object().expect("endpoints");
        endpoints.values().any(|endpoint| endpoint["health"] == "ready")
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_tell_the_gateway_from_the_server_behind_it() {
    let real = std::env::var("FOREBAY_CONFORMANCE").ok();
    if let Some(address) = real {
        let address = address.parse().expect("FOREBAY_CONFORMANCE is IP:PORT");
        compare(address, &ASKED[0], true).await;
        return;
    }
    for asked in ASKED {
        let model = ["--served-model-name", asked.model];
        let flags = common::TINY.iter().filter(|flag| !flag.starts_with("--served"));
        let sim = common::start(flags.chain(&model).chain(asked.flags).copied()).await;
        compare(sim.addr(), asked, false).await;
    }
}

async fn compare(address: SocketAddr, asked: &Asked, sampled: bool) {
    let forebay = gateway(&[address], &[asked.model], "");
    ready(&forebay).await;
    let mut different = Vec::new();
    for name in asked.names {
        let request = recorded(asked.folder, &format!("{name}.req"));
        let direct = ask(address, &request).await;
        let through = ask(forebay.address, &request).await;
        let [want, got] = [&direct, &through].map(|reply| (told(reply), shapes(reply)));
        // Sampled text has its own length, and is cut into chunks by the server's mood.
        let same = if sampled && direct.code() == 200 {
            let within = |a: &[String], b: &[String]| a.iter().all(|shape| b.contains(shape));
            want.0 == got.0
                && want.1.last() == got.1.last()
                && (within(&want.1, &got.1) || within(&got.1, &want.1))
        } else {
            want == got
        };
        if !same {
            different.push(format!("{name}:\n  direct  {want:?}\n  through {got:?}"));
        }
        assert!(through.header("x-request-id").is_some(), "{name}");
        assert!(through.header("server-timing").is_some(), "{name}");
    }
    assert!(different.is_empty(), "{}:\n{}", asked.folder, different.join("\n"));
}

/// Plays one recording after the other, in pieces of so many bytes, whatever is asked; probes are
/// answered.
struct Player {
    address: SocketAddr,
    next: Arc<Mutex<(Vec<u8>, usize)>>,
}

impl Player {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let next: Arc<Mutex<(Vec<u8>, usize)>> = Arc::default();
        let playing = Arc::clone(&next);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let playing = Arc::clone(&playing);
                std::thread::spawn(move || Self::play(stream, &playing));
            }
        });
        Self { address, next }
    }

    fn play(mut stream: TcpStream, playing: &Mutex<(Vec<u8>, usize)>) {
        let _ = stream.set_nodelay(true);
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            text.extend_from_slice(&buffer[..n]);
            let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&text[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if text.len() < end + 4 + length.and_then(|n| n.parse().ok()).unwrap_or(0) {
                continue;
            }
            if head.starts_with("get") {
                let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
                let _ = stream.write_all(ok);
                return;
            }
            let (bytes, piece) = playing.lock().expect("no panic").clone();
            for piece in bytes.chunks(piece) {
                if stream.write_all(piece).is_err() {
                    return;
                }
            }
            return;
        }
    }
}

/// Every recording of an answer that is one: the client gets its bytes, however they were cut.
#[tokio::test(flavor = "multi_thread")]
async fn recorded_answers_go_through_byte_for_byte() {
    let player = Player::start();
    let forebay = gateway(&[player.address], &["tiny", "tiny-embed", "ad1"], "");
    ready(&forebay).await;
    let asked = ASKED.iter().map(|asked| (asked.folder, asked.names));
    for (folder, names) in asked.chain(REPLAYED.iter().copied()) {
        for name in names {
            let request = recorded(folder, &format!("{name}.req"));
            let response = recorded(folder, &format!("{name}.resp"));
            // Of this one, only the 100 was recorded.
            let Some((want, _)) =
                common::parse(&response, false).filter(|(it, _)| it.code() != 100)
            else {
                continue;
            };
            for piece in [usize::MAX, 7] {
                *player.next.lock().expect("no panic") = (response.clone(), piece);
                let got = ask(forebay.address, &request).await;
                assert_eq!(told(&got), told(&want), "{folder}/{name}");
                assert_eq!(got.body, want.body, "{folder}/{name}");
            }
        }
    }
}
