//! Measures the cost of reading a request's body and an answer's events.
//!
//! usage: cargo bench -p forebay-gateway --bench reading

use std::hint::black_box;

use bytes::Bytes;
use forebay_gateway::inspect;
use tokio::time::Instant;

/// The number of runs of each case. The best and the median are reported.
const ROUNDS: usize = 41;

fn main() {
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let rounds = if quick { 1 } else { ROUNDS };
    let line = "The quick brown fox said: \\\"jumps\\\" over the lazy dog.\\n";
    let message = format!(r#"{{"role":"user","content":"{}"}}"#, line.repeat(8));
    let many = |size: usize| vec![message.as_str(); size.div_ceil(message.len())].join(",");
    let chat = |messages: &str| {
        format!(
            r#"{{"model":"m","stream":true,"priority":1,"messages":[{messages}],"temperature":0.5}}"#
        )
    };
    let picture = |size: usize| {
        let data = "iVBORw0KGgoAAAANSUhEUgAA".repeat(size / 24);
        chat(&format!(
            r#"{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}}]}}"#
        ))
    };
    let tokens = format!(
        "[{}]",
        (0..180_000).map(|i| (i * 7 % 150_000).to_string() + ", ").collect::<String>() + "1"
    );
    let line = line.replace("\\\"", "'").replace("\\n", " ");
    let parts = |size: usize| {
        let part = format!(r#"{{"type":"text","text":"{}"}}"#, line.repeat(16));
        vec![format!(r#"{{"role":"user","content":[{part}]}}"#); size / 1000].join(",")
    };
    println!("request: read and edited, and the same with its prompt hashed");
    for (what, body) in [
        ("1 KiB of chat", chat(&many(1 << 10))),
        ("1 MiB of chat, messages of 500 bytes", chat(&many(1 << 20))),
        ("1 MiB of chat, parts without escapes", chat(&parts(1 << 20))),
        (
            "100,000 tokens of text in one prompt",
            format!(r#"{{"model":"m","prompt":"{}"}}"#, "word ".repeat(100_000)),
        ),
        ("180,000 token ids", format!(r#"{{"model":"m","prompt":{tokens}}}"#)),
        ("a picture of 1 MiB", picture(1 << 20)),
        ("a picture of 31 MiB", picture(31 << 20)),
    ] {
        let body = Bytes::from(body);
        let mebi = body.len() as f64 / f64::from(1 << 20);
        let (best, median) = time(rounds, || {
            assert!(black_box(inspect::request(black_box(&body))).is_some());
        });
        let (hashed, hashed_median) = time(rounds, || {
            assert!(black_box(inspect::hashed_request(black_box(&body))).is_some());
        });
        println!(
            "  {what:38} {:9.1} µs (median {:9.1}), {:6.1} µs a MiB; hashed {:9.1} µs (median \
             {:9.1}), {:6.1} µs a MiB",
            best * 1e6,
            median * 1e6,
            best * 1e6 / mebi,
            hashed * 1e6,
            hashed_median * 1e6,
            hashed * 1e6 / mebi,
        );
    }
    println!("answer: judged, metered and passed on, a chunk a read");
    let delta = r#"{"id":"chatcmpl-b69eb275ee051fb6","object":"chat.completion.chunk","created":1795452011,"model":"tiny","choices":[{"index":0,"delta":{"content":" respon"},"logprobs":null,"finish_reason":null,"token_ids":null}]}"#;
    for (what, path, event) in [
        ("chat chunk", "/v1/chat/completions", format!("data: {delta}\n\n")),
        ("messages delta", "/v1/messages", "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\" pla\"},\"index\":0}\n\n".to_owned()),
        ("responses delta", "/v1/responses", "event: response.output_text.delta\ndata: {\"content_index\":0,\"delta\":\" a\",\"item_id\":\"msg_1\",\"output_index\":0,\"sequence_number\":5,\"type\":\"response.output_text.delta\"}\n\n".to_owned()),
    ] {
        let event = Bytes::from(event);
        let chunks = if quick { 10 } else { 20_000 };
        let (best, median) = time(rounds, || {
            let pieces = (0..chunks).map(|_| event.clone());
            let (out, tokens) = inspect::stream(path, pieces).expect("a known path");
            assert_eq!((out, tokens), (event.len() * chunks, chunks as u64), "{what}");
        });
        let each = |seconds: f64| seconds * 1e9 / chunks as f64;
        println!("  {what:38} {:9.0} ns (median {:.0})", each(best), each(median));
    }
    long_answers(rounds, if quick { 1 } else { 100 });
}

/// Answers that are too long to be kept back. Their tokens are found as they pass.
fn long_answers(rounds: usize, scale: usize) {
    let usage = r#""usage":{"prompt_tokens":7,"completion_tokens":9}"#;
    let line = "The quick brown fox said: \\\"jumps\\\" over the lazy dog.\\n";
    let text = line.repeat(170 * scale);
    let numbers: Vec<_> = (0..500 * scale).map(|i| format!("-0.0{:016}", i * 7_919)).collect();
    let probabilities: Vec<_> = (0..100 * scale)
        .map(|i| format!(r#"{{"{i}":{{"logprob":-{i}.25,"rank":{i},"decoded_token":" w{i}"}}}}"#))
        .collect();
    println!("answer: a long plain one, passed on in pieces of 16 KiB");
    for (what, body) in [
        ("text", format!(r#"{{"choices":[{{"message":{{"content":"{text}"}}}}],{usage}}}"#)),
        ("embeddings", format!(r#"{{"data":[{{"embedding":[{}]}}],{usage}}}"#, numbers.join(","))),
        (
            "log probabilities of a prompt",
            format!(r#"{{{usage},"prompt_logprobs":[{}]}}"#, probabilities.join(",")),
        ),
    ] {
        let body = Bytes::from(body);
        let (best, median) = time(rounds, || {
            let starts = (0..body.len()).step_by(16 << 10);
            let pieces = starts.map(|at| body.slice(at..body.len().min(at + (16 << 10))));
            let tokens = inspect::plain("/v1/chat/completions", pieces);
            assert_eq!(tokens, Some((Some(7), 9)), "{what}");
        });
        let each = |seconds: f64| seconds * 1e9 / (body.len() as f64 / 1024.0);
        println!("  {what:38} {:9.0} ns a KiB (median {:.0})", each(best), each(median));
    }
}

/// Seconds: the least and the median.
fn time(rounds: usize, mut work: impl FnMut()) -> (f64, f64) {
    let mut took: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    took.sort_by(f64::total_cmp);
    (took[0], took[rounds / 2])
}
