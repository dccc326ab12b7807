//! One list of requests, sent to the simulated server directly and through the gateway, and the
//! recorded answers of a real vLLM sent through it: a client cannot tell the gateway from the
//! server behind it. `tests/vllm` does the same with a real vLLM.

#[path = "../loadtests/tests/common/mod.rs"]
mod common;
#[path = "support/conformance.rs"]
mod list;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use common::recorded;
use list::{REQUESTS, ask, compare, gateway, head, ready};

/// Answers that are replayed and not requested live: tools, reasoning, adapters.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_tell_the_gateway_from_the_server_behind_it() {
    for requests in REQUESTS {
        let model = ["--served-model-name", requests.model];
        let flags = common::TINY.iter().filter(|flag| !flag.starts_with("--served"));
        let sim = common::start(flags.chain(&model).chain(requests.flags).copied()).await;
        compare(sim.addr(), requests, false).await;
    }
}

/// A server that answers every request with the current recording, in pieces of a given size, and
/// that answers probes.
struct Player {
    address: SocketAddr,
    /// The recording, and the size of its pieces.
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

/// The client gets the bytes of every recorded answer, however they were cut.
#[tokio::test(flavor = "multi_thread")]
async fn recorded_answers_go_through_byte_for_byte() {
    let player = Player::start();
    let forebay = gateway(&[player.address], &["tiny", "tiny-embed", "ad1"]);
    ready(&forebay).await;
    let requests = REQUESTS.iter().map(|requests| (requests.folder, requests.names));
    for (folder, names) in requests.chain(REPLAYED.iter().copied()) {
        for name in names {
            let request = recorded(folder, &format!("{name}.req"));
            let response = recorded(folder, &format!("{name}.resp"));
            // One recording has only the 100.
            let Some((want, _)) =
                common::parse(&response, false).filter(|(reply, _)| reply.code() != 100)
            else {
                continue;
            };
            for piece in [usize::MAX, 7] {
                *player.next.lock().expect("no panic") = (response.clone(), piece);
                let got = ask(forebay.address, &request).await;
                assert_eq!(head(&got), head(&want), "{folder}/{name}");
                assert_eq!(got.body, want.body, "{folder}/{name}");
            }
        }
    }
}
