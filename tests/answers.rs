//! What clients get of what replicas say, against an upstream that says it byte by byte.

mod support;

use std::io::{Read, Write};
use std::path::Path;

use support::reply::{Reply, ask, parse};
use support::upstream::{Received, Step, Upstream, chunk, plain, stream_head};
use support::{Forebay, connect, eventually, post};

const CHAT: &str = "/v1/chat/completions";
const TOKEN: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// A gateway in front of these, with more fields of the pool.
fn gateway(name: &str, upstreams: &[&Upstream], pool: &str) -> Forebay {
    let endpoints: Vec<_> = upstreams.iter().map(|it| format!("'{}'", it.address)).collect();
    let config = format!(
        "gateway: {{listen: '127.0.0.1:0', threads: 1}}
admin: {{listen: '127.0.0.1:0'}}
pools:
- name: p
  endpoints: [{}]
{pool}",
        endpoints.join(", ")
    );
    let file = std::env::temp_dir().join(format!("forebay-{}-{name}.yaml", std::process::id()));
    std::fs::write(&file, config).expect("a temporary file");
    let forebay = Forebay::start(
        &["gateway", "--config", &file.display().to_string()],
        "info,forebay_gateway=debug",
    );
    eventually("all endpoints are ready", || {
        let signals = forebay.signals();
        let endpoints = signals["endpoints"].as_object().expect("a map");
        endpoints.len() == upstreams.len()
            && endpoints.values().all(|endpoint| endpoint["health"] == "ready")
    });
    forebay
}

fn streamed(pieces: &[&str]) -> Vec<Step> {
    let mut bytes = stream_head();
    pieces.iter().for_each(|piece| bytes.extend(chunk(piece)));
    vec![Step::Send(bytes)]
}

/// A stream with its end, as its framing has it.
fn ended(pieces: &[&str]) -> Vec<Step> {
    let mut steps = streamed(pieces);
    steps.push(Step::Send(chunk("")));
    steps
}

fn request(path: &str, stream: bool) -> Vec<u8> {
    post(path, &format!(r#"{{"model":"sim","stream":{stream},"max_tokens":4,"messages":[]}}"#))
}

fn fixture(name: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("loadtests/fixtures/vllm");
    std::fs::read(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The access log's last line with `text`, as JSON.
fn logged(forebay: &mut Forebay, text: &str) -> serde_json::Value {
    let line = forebay.wait_for(text);
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn usage_is_asked_for_and_taken_out_again_to_the_byte() {
    let recorded = fixture("a-default/chat_stream_usage.resp");
    let answer = recorded.clone();
    let upstream = Upstream::start(move |_| vec![Step::Send(answer.clone())]);
    let mut forebay = gateway("usage", &[&upstream], "");
    let whole = parse(&recorded);
    let silent = ask(forebay.address, &request(CHAT, true));
    let sent = upstream.received().pop().expect("one").text();
    assert_eq!(
        sent,
        r#"{"stream_options":{"include_usage":true},"model":"sim","stream":true,"max_tokens":4,"messages":[]}"#
    );
    let usage_chunk = |event: &&str| event.contains(r#""choices":[],"usage":{"#);
    let text = whole.text();
    let without: String =
        text.split_inclusive("\n\n").filter(|event| !usage_chunk(event)).collect();
    assert!(without.len() < text.len());
    // Who does not ask has the fingerprint in the chunk before.
    let stamp = r#"}],"system_fingerprint":"vllm-0.32.0-bb9e77f2"}"#;
    let unasked = without.replace("}]}\n\ndata: [DONE]", &format!("{stamp}\n\ndata: [DONE]"));
    assert_eq!(silent.text(), unasked);
    let line = logged(&mut forebay, "forebay::access");
    assert_eq!((&line["prompt_tokens"], &line["generated_tokens"]), (&21.into(), &8.into()));
    assert_eq!((&line["finish"], &line["outcome"]), (&"length".into(), &"completed".into()));
    assert!(line["ttft_ms"].is_u64() && line["upstream_ttft_ms"].is_u64(), "{line}");

    let figure = |series: &str| forebay.metric(series);
    let address = upstream.address;
    for (series, want) in [
        (r#"forebay_requests_total{pool="p",outcome="completed"}"#.to_owned(), 1.0),
        (r#"forebay_finishes_total{pool="p",reason="length"}"#.to_owned(), 1.0),
        (r#"forebay_tenant_generated_tokens_total{tenant="anonymous"}"#.to_owned(), 8.0),
        (r#"forebay_tenant_ttft_seconds_count{tenant="anonymous"}"#.to_owned(), 1.0),
        (format!(r#"forebay_endpoint_prompt_tokens_total{{pool="p",endpoint="{address}"}}"#), 21.0),
        (format!(r#"forebay_endpoint_ttft_seconds_count{{pool="p",endpoint="{address}"}}"#), 1.0),
        (format!(r#"forebay_endpoint_itl_seconds_count{{pool="p",endpoint="{address}"}}"#), 7.0),
    ] {
        eventually(&series, || figure(&series) == Some(want));
    }
    let body = r#"{"stream_options": {"include_usage": true}, "model":"sim", "stream" : true}"#;
    let asking = ask(forebay.address, &post(CHAT, body));
    assert_eq!(upstream.received().pop().expect("two").text(), body, "not a byte is changed");
    assert_eq!(asking.text(), text);
}

#[test]
fn every_recorded_answer_goes_through_as_it_was() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("loadtests/fixtures/vllm");
    let mut names = Vec::new();
    for folder in ["a-default", "c-options", "e-auth-lora-dev", "h-embeddings"] {
        for entry in std::fs::read_dir(root.join(folder)).expect("fixtures") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|ext| ext == "req") {
                let name = path.with_extension("");
                names.push(format!("{folder}/{}", name.file_name().expect("a name").display()));
            }
        }
    }
    names.sort();
    let answer = |request: &Received| {
        let name = request.header("x-fixture").expect("named");
        vec![Step::Send(fixture(&format!("{name}.resp"))), Step::Close]
    };
    // It tells no names, so any is taken.
    let upstream = Upstream::serving("{}", answer);
    let forebay = gateway("recorded", &[&upstream], "");
    let mut seen = 0;
    for name in names {
        let sent = fixture(&format!("{name}.req"));
        let head = String::from_utf8_lossy(&sent).into_owned();
        let Some((line, _)) = head.split_once("\r\n") else { continue };
        let path = line.split(' ').nth(1).unwrap_or_default();
        let inference =
            line.starts_with("POST /v1/") && !path.contains("lora") && !path.ends_with('/')
                || ["POST /tokenize ", "POST /score ", "POST /rerank "]
                    .iter()
                    .any(|it| line.starts_with(it));
        let want = parse(&fixture(&format!("{name}.resp")));
        // What the gateway itself refuses, retries or does not serve is tested elsewhere; and a
        // request must arrive whole.
        // Framing is the server's and has no bearing on what is relayed.
        let odd = ["/frame_", "/queue_full", "/inflight_"].iter().any(|it| name.contains(it));
        if odd
            || !inference
            || !want.whole
            || !(200..500).contains(&want.status)
            || want.text().contains("\"abort\"")
        {
            continue;
        }
        let request = parse_request(&sent, &name);
        let got = ask(forebay.address, &request);
        if upstream.received().iter().all(|it| it.header("x-fixture") != Some(&name)) {
            // Refused here: broken JSON, or a path that is not exposed.
            assert!((400..500).contains(&got.status), "{name}: {}", got.text());
            continue;
        }
        seen += 1;
        assert_eq!(got.status, want.status, "{name}: {}", got.text());
        assert_eq!(got.header("content-type"), want.header("content-type"), "{name}");
        assert!(
            got.header("server-timing").is_some_and(|it| it.contains("upstream;dur=")),
            "{name}"
        );
        let usage = |event: &&str| !event.contains(r#""choices":[],"usage":{"#);
        let (got, want) = (got.text(), want.text());
        if got != want {
            // A server set to report usage always does so: asked by us or not.
            let without: String = want.split_inclusive("\n\n").filter(usage).collect();
            assert_eq!(got, without, "{name}");
        }
    }
    assert!(seen > 80, "only {seen}");
}

/// A recorded request for our connection, naming its fixture.
fn parse_request(recorded: &[u8], name: &str) -> Vec<u8> {
    let end = recorded.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&recorded[..end]);
    let (line, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
    let line = line.replace("HTTP/1.0", "HTTP/1.1");
    let kept = headers.lines().filter(|line| {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        !["connection", "host", "content-length", "transfer-encoding", "expect"]
            .contains(&name.as_str())
    });
    let headers: String = kept.map(|line| format!("{line}\r\n")).collect();
    let body = &recorded[end + 4..];
    let mut request = format!(
        "{line}\r\nhost: localhost\r\nconnection: close\r\nx-fixture: {name}\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

#[test]
fn every_path_of_the_api_is_passed_on_and_nothing_else() {
    let upstream = Upstream::start(|_| vec![Step::Send(plain(200, r#"{"ok":true}"#))]);
    let forebay = gateway("paths", &[&upstream], "");
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages/count_tokens",
        "/v1/rerank",
        "/v2/rerank",
        "/rerank",
        "/v1/score",
        "/score",
        "/pooling",
        "/classify",
        "/tokenize",
        "/detokenize",
    ] {
        let got = ask(forebay.address, &post(path, r#"{"model":"sim"}"#));
        assert_eq!((got.status, got.text().as_str()), (200, r#"{"ok":true}"#), "{path}");
        assert_eq!(upstream.received().pop().expect("one").path(), path);
    }
    let form = "--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\0\r\n\
                --X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nsim\r\n--X--\r\n";
    for path in ["/v1/audio/transcriptions", "/v1/audio/translations"] {
        let request = String::from_utf8(post(path, form)).expect("text");
        let request = request.replace("application/json", "multipart/form-data; boundary=X");
        assert_eq!(ask(forebay.address, request.as_bytes()).status, 200, "{path}");
        let sent = upstream.received().pop().expect("one");
        assert_eq!((sent.path(), sent.text().as_str()), (path, form));
    }
    let before = upstream.received().len();
    for path in [
        "/invocations",
        "/metrics",
        "/load",
        "/v1/load_lora_adapter",
        "/sleep",
        "/v1/chat//completions",
        "//v1/chat/completions",
        "/v1/chat/completions/x/",
    ] {
        let got = ask(forebay.address, &post(path, "{}"));
        assert_eq!(got.status, 404, "{path}");
        assert!(got.header("server-timing").is_some(), "{path}: also an error has its times");
    }
    assert_eq!(upstream.received().len(), before);
}

#[test]
fn slashes_behind_a_path_are_answered_as_vllm_answers_them() {
    let upstream = Upstream::start(|_| vec![Step::Hang]);
    let forebay = gateway("slashes", &[&upstream], "");
    let recorded = |kind: &str| fixture(&format!("a-default/chat_trailing_slash.{kind}"));
    let want = parse(&recorded("resp"));
    let asked = String::from_utf8(recorded("req")).expect("text");
    let asked = asked.replace("Accept: */*", "Connection: close");
    let got = ask(forebay.address, asked.as_bytes());
    assert_eq!(got.status, want.status);
    assert_eq!(got.header("location"), want.header("location"));
    assert_eq!(got.header("content-length"), Some("0"));
    for (request, headers, want) in [
        (
            "GET /v1/chat/completions//?a=b&c HTTP/1.1",
            "host: localhost:81",
            "http://localhost:81/v1/chat/completions?a=b&c",
        ),
        ("POST /rerank/ HTTP/1.1", "host: [::1]:8080", "http://[::1]:8080/rerank"),
        (
            "DELETE /v1/models/?q={|} HTTP/1.1",
            "host: localhost",
            "http://localhost/v1/models?q=%7B%7C%7D",
        ),
        (
            "POST /tokenize%2F HTTP/1.1",
            "host: localhost\r\nx-forwarded-host: evil.example\r\nx-forwarded-proto: https",
            "http://localhost/tokenize",
        ),
        ("GET /health/? HTTP/1.0", "x: y", "/health"),
    ] {
        let request = format!("{request}\r\n{headers}\r\nconnection: close\r\n\r\n");
        let got = ask(forebay.address, request.as_bytes());
        assert_eq!((got.status, got.header("location")), (307, Some(want)), "{request}");
    }
    assert!(upstream.received().is_empty());
}

#[test]
fn a_stream_of_fields_that_are_not_known_goes_out_as_it_comes() {
    // What it sends is all of it: held back, the rest would never be asked for.
    for (case, delta) in [
        ("audio", r#"{"audio":{"data":"UklGRg=="}}"#),
        ("list", r#"{"content":[{"type":"text","text":"a"}]}"#),
    ] {
        let event = format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{delta}}}]}}\n\n");
        let script = [streamed(&[&event]), vec![Step::Hang]].concat();
        let upstream = Upstream::start(move |_| script.clone());
        let forebay = gateway(&format!("unknown-{case}"), &[&upstream], "");
        let mut client = connect(forebay.address);
        client.write_all(&request(CHAT, true)).expect("sent");
        let mut read = Vec::new();
        while !String::from_utf8_lossy(&read).contains(&event) {
            let mut buffer = [0; 4096];
            let count = client.read(&mut buffer).expect("it goes on");
            assert!(count > 0, "{case}: {}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&buffer[..count]);
        }
    }
}

#[test]
fn an_end_mark_with_a_space_behind_it_is_one() {
    let done = "data: [DONE] \n\n";
    let upstream = Upstream::start(move |_| {
        let mut steps = streamed(&[TOKEN, done]);
        steps.push(Step::Close);
        steps
    });
    let forebay = gateway("done", &[&upstream], "");
    let got = ask(forebay.address, &request(CHAT, true));
    assert_eq!(got.text(), format!("{TOKEN}{done}"));
    eventually("it is complete", || forebay.signals()["totals"]["completed"] == 1);
}

#[test]
fn what_fails_before_anything_went_out_is_answered_by_another_replica() {
    let opening = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{}}\n\n";
    let created = "event: response.created\ndata: {\"type\":\"response.created\"}\n\n";
    let busy = r#"{"error":{"message":"The server is currently busy and cannot accept new requests","type":"Service Unavailable","code":503}}"#;
    let busy_event = format!("data: {busy}\n\n");
    let role = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    let cut = |mut steps: Vec<Step>| {
        steps.push(Step::Close);
        steps
    };
    let aborted = r#"{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"abort"}]}"#;
    let no_reason = r#"{"type":"message","content":[],"stop_reason":null}"#;
    let answer = Step::Send;
    for (case, cause, path, stream, bad) in [
        ("plain-abort", "aborted", CHAT, false, vec![answer(plain(200, aborted))]),
        ("plain-null", "aborted", "/v1/messages", false, vec![answer(plain(200, no_reason))]),
        (
            "plain-500",
            "engine_dead",
            CHAT,
            false,
            vec![answer(plain(500, "{\"error\":{\"message\":\"EngineCore\"}}"))],
        ),
        ("plain-503", "queue_full", CHAT, false, vec![answer(plain(503, busy))]),
        ("no-answer", "connection", CHAT, false, vec![Step::Close]),
        (
            "half",
            "connection",
            CHAT,
            false,
            vec![answer(plain(200, aborted)[..90].to_vec()), Step::Close],
        ),
        ("503-in-200", "queue_full", CHAT, true, ended(&[&busy_event, DONE])),
        ("comment", "connection", CHAT, true, cut(streamed(&[": keep-alive\n\n"]))),
        ("role", "connection", CHAT, true, cut(streamed(&[role]))),
        (
            "messages",
            "connection",
            "/v1/messages",
            true,
            cut(streamed(&[opening, "event: ping\ndata: {}\n\n"])),
        ),
        ("responses", "connection", "/v1/responses", true, cut(streamed(&[created]))),
        ("silent", "stalled", CHAT, true, vec![Step::Hang]),
        ("head-only", "stalled", CHAT, true, vec![Step::Send(stream_head()), Step::Hang]),
    ] {
        let failing = Upstream::start(move |_| bad.clone());
        let sound = Upstream::start(move |_| match stream {
            true => ended(&[
                "data: {\"sound\":1}\n\n",
                "event: message_stop\ndata: {}\n\n",
                "event: response.completed\ndata: {}\n\n",
                DONE,
            ]),
            false => vec![Step::Send(plain(
                200,
                r#"{"sound":1,"stop_reason":"end_turn","status":"completed"}"#,
            ))],
        });
        let forebay = gateway(case, &[&failing, &sound], "  upstream: {stallTimeout: 300ms}\n");
        // Whichever is picked first: of two requests, one meets the failing replica.
        for _ in 0..2 {
            let got = ask(forebay.address, &request(path, stream));
            assert_eq!(got.status, 200, "{case}: {}", got.text());
            assert!(got.text().contains("sound") && got.whole, "{case}: {}", got.text());
            let nothing_else = ["abort", "message_start", "created", "keep-alive", "busy", "role"];
            assert!(!nothing_else.iter().any(|word| got.text().contains(word)), "{case}");
        }
        let bodies: Vec<_> = failing.received().iter().map(Received::text).collect();
        assert!(!bodies.is_empty(), "{case}: the failing one was tried");
        assert_eq!(bodies[0], sound.received()[0].text(), "{case}: the body is the same again");
        eventually(&format!("{case}: the failure is counted"), || {
            let series = format!(r#"forebay_failures_total{{pool="p",cause="{cause}"}}"#);
            // One abort does not take it out, so that the second request may meet it too.
            let retries = forebay.signals()["totals"]["retries"].as_u64();
            forebay.metric(&series).is_some_and(|count| (1.0..=2.0).contains(&count))
                && retries.is_some_and(|count| (1..=2).contains(&count))
        });
    }
}

#[test]
fn a_stream_that_breaks_off_ends_with_an_error_event_in_its_apis_form() {
    let abort = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"abort\"}]}\n\n";
    let error = "data: {\"error\":{\"message\":\"EngineCore encountered an issue\",\"type\":\"InternalServerError\",\"code\":500}}\n\n";
    let text = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"a\"}}\n\n";
    let null = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":null}}\n\n";
    let delta = "event: response.output_text.delta\ndata: {\"delta\":\"a\"}\n\n";
    let openai_end = "\n\ndata: [DONE]\n\n";
    let with = |mut steps: Vec<Step>, last: Step| {
        steps.push(last);
        steps
    };
    for (case, path, first, script, told, cause) in [
        (
            "abort",
            CHAT,
            TOKEN,
            ended(&[TOKEN, abort, DONE]),
            "data: {\"error\":{\"code\":500",
            "aborted",
        ),
        (
            "error",
            CHAT,
            TOKEN,
            ended(&[TOKEN, error, DONE]),
            "EngineCore encountered an issue",
            "engine_dead",
        ),
        ("eof", CHAT, TOKEN, ended(&[TOKEN]), "data: {\"error\":{\"code\":502", "truncated"),
        (
            "reset",
            CHAT,
            TOKEN,
            with(streamed(&[TOKEN, "data: {\"cho"]), Step::Close),
            "data: {\"error\":{\"code\":502",
            "connection",
        ),
        (
            "stall",
            CHAT,
            TOKEN,
            with(streamed(&[TOKEN]), Step::Hang),
            "data: {\"error\":{\"code\":504",
            "stalled",
        ),
        (
            "null",
            "/v1/messages",
            text,
            ended(&[text, null, "event: message_stop\ndata: {}\n\n"]),
            "event: error\ndata: {\"error\":{\"message\"",
            "aborted",
        ),
        (
            "no-stop",
            "/v1/messages",
            text,
            ended(&[text]),
            "event: error\ndata: {\"error\":{\"message\"",
            "truncated",
        ),
        (
            "no-completed",
            "/v1/responses",
            delta,
            ended(&[delta]),
            "event: error\ndata: {\"code\":\"BadGatewayError\"",
            "truncated",
        ),
    ] {
        let upstream = Upstream::start(move |_| script.clone());
        let mut forebay =
            gateway(&format!("broken-{case}"), &[&upstream], "  upstream: {stallTimeout: 300ms}\n");
        let got = ask(forebay.address, &request(path, true));
        let text = got.text();
        assert!(got.whole, "{case}: the stream ends properly: {text}");
        let rest = text.strip_prefix(first).unwrap_or_else(|| panic!("{case}: {text}"));
        assert!(rest.contains(told), "{case}: {rest}");
        if path == CHAT {
            assert!(
                rest.ends_with(openai_end) && rest.matches("[DONE]").count() == 1,
                "{case}: {rest}"
            );
        }
        let line = logged(&mut forebay, "forebay::access");
        assert_eq!(
            (&line["outcome"], &line["reason"]),
            (&"failed".into(), &cause.into()),
            "{case}"
        );
        eventually(&format!("{case}: the failure is counted"), || {
            let signals = forebay.signals();
            signals["endpoints"][upstream.address.to_string()]["failed"] == 1
                && signals["totals"]["failed"] == 1
        });
    }
}

#[test]
fn a_clients_own_error_passes_unchanged_and_is_nobodys_failure() {
    let body = r#"{"error": {"message":"max_tokens is too large", "type":"BadRequestError","param":"max_tokens","code":400}}"#;
    let upstream = Upstream::start(move |_| vec![Step::Send(plain(400, body))]);
    let mut forebay = gateway("client-error", &[&upstream], "");
    let got = ask(forebay.address, &request(CHAT, true));
    assert_eq!((got.status, got.text().as_str()), (400, body));
    let line = logged(&mut forebay, "forebay::access");
    assert_eq!((&line["outcome"], &line["status"]), (&"client_error".into(), &400.into()));
    eventually("it is counted as answered", || forebay.signals()["totals"]["completed"] == 1);
    let signals = forebay.signals();
    let endpoint = &signals["endpoints"][upstream.address.to_string()];
    assert_eq!((&endpoint["failed"], &endpoint["health"]), (&0.into(), &"ready".into()));
}

#[test]
fn priority_goes_through_only_where_the_pool_allows_it() {
    for (allowed, body) in
        [(false, r#"{"model":"sim"}"#), (true, r#"{"model":"sim","priority":-1}"#)]
    {
        let upstream = Upstream::start(|_| vec![Step::Send(plain(200, "{}"))]);
        let pool = format!("  allowPriority: {allowed}\n");
        let forebay = gateway(&format!("priority-{allowed}"), &[&upstream], &pool);
        let request =
            String::from_utf8(post(CHAT, r#"{"model":"sim","priority":-1}"#)).expect("text");
        let headers = "x-vllm-priority: -1\r\nX-Data-Parallel-Rank: 1\r\nconnection:";
        ask(forebay.address, request.replace("connection:", headers).as_bytes());
        let sent = upstream.received().pop().expect("one");
        assert_eq!(sent.text(), body);
        for header in ["x-vllm-priority", "x-data-parallel-rank"] {
            assert_eq!(sent.header(header).is_some(), allowed, "{header}");
        }
    }
}

#[test]
fn replicas_get_the_pools_key_and_the_new_one_when_its_file_changes() {
    let file = std::env::temp_dir().join(format!("forebay-{}-key", std::process::id()));
    std::fs::write(&file, "first\n").expect("a temporary file");
    let upstream = Upstream::start(|_| vec![Step::Send(plain(200, "{}"))]);
    let pool = format!("  apiKeyFile: {}\n", file.display());
    let mut forebay = gateway("key", &[&upstream], &pool);
    let request = String::from_utf8(post(CHAT, r#"{"model":"sim"}"#)).expect("text");
    let request = request.replace("connection:", "authorization: Bearer theirs\r\nconnection:");
    ask(forebay.address, request.as_bytes());
    let key = || upstream.received().pop().expect("one").header("authorization").map(str::to_owned);
    assert_eq!(key().as_deref(), Some("Bearer first"));
    std::fs::write(&file, "second\n").expect("a temporary file");
    forebay.wait_for("the replicas' key has changed");
    ask(forebay.address, request.as_bytes());
    assert_eq!(key().as_deref(), Some("Bearer second"));
    assert!(
        !forebay.logged().iter().any(|line| line.contains("second") || line.contains("theirs"))
    );
}

#[test]
fn a_waiting_stream_is_kept_alive_and_then_answered() {
    let wait = |case: &str, path: &str, script: Vec<Step>| -> Reply {
        // Silent at first, so that the try fails and heartbeats go on over the next one.
        let silent = std::sync::atomic::AtomicBool::new(true);
        let upstream = Upstream::start(move |_| {
            match silent.swap(false, std::sync::atomic::Ordering::SeqCst) {
                true => vec![Step::Hang],
                false => script.clone(),
            }
        });
        let pool = "  hold: {heartbeat: 100ms}\n  upstream: {stallTimeout: 500ms}\n";
        let forebay = gateway(&format!("beat-{case}"), &[&upstream], pool);
        let got = ask(forebay.address, &request(path, true));
        assert_eq!(got.status, 200, "{case}");
        assert_eq!(got.header("content-type"), Some("text/event-stream; charset=utf-8"), "{case}");
        assert!(got.whole, "{case}: {}", got.text());
        assert!(got.header("server-timing").is_some(), "{case}");
        got
    };
    let got = wait("chat", CHAT, ended(&[TOKEN, DONE])).text();
    assert!(got.starts_with(": waiting\n\n: waiting\n\n"), "{got}");
    assert!(got.ends_with(&format!("\n\n{TOKEN}{DONE}")), "{got}");

    let stop = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    let got = wait("messages", "/v1/messages", ended(&[stop])).text();
    assert!(got.starts_with("event: ping\ndata: {\"type\":\"ping\"}\n\nevent: ping"), "{got}");
    assert!(got.ends_with(stop), "{got}");

    let error = r#"{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}"#;
    let got = wait("error", CHAT, vec![Step::Send(plain(400, error))]).text();
    assert!(got.ends_with(&format!(": waiting\n\ndata: {error}\n\n{DONE}")), "{got}");
}

#[test]
fn a_hold_that_expires_after_a_heartbeat_is_told_as_an_event() {
    let upstream = Upstream::start(|_| vec![Step::Hang]);
    let pool = "  maxInFlight: 1\n  hold: {heartbeat: 50ms, timeout: 300ms}\n";
    let forebay = gateway("expired", &[&upstream], pool);
    let mut first = connect(forebay.address);
    first.write_all(&request(CHAT, true)).expect("sent");
    eventually("the only place is taken", || forebay.signals()["inFlight"] == 1);
    let got = ask(forebay.address, &request(CHAT, true));
    let text = got.text();
    assert!(got.status == 200 && text.starts_with(": waiting\n\n"), "{text}");
    assert!(text.contains("data: {\"error\":{\"code\":503") && text.ends_with(DONE), "{text}");
    drop(first);
    eventually("the client's leaving is seen while it is kept alive", || upstream.left() == 1);
    eventually("and counted", || forebay.signals()["totals"]["clientLeft"] == 1);
}

#[test]
fn a_client_that_leaves_closes_the_connection_to_the_replica() {
    for (case, stream, script) in [
        ("streaming", true, [streamed(&[TOKEN]), vec![Step::Hang]].concat()),
        ("waiting", false, vec![Step::Hang]),
    ] {
        let upstream = Upstream::start(move |_| script.clone());
        let forebay = gateway(&format!("leave-{case}"), &[&upstream], "");
        let mut client = connect(forebay.address);
        client.write_all(&request(CHAT, stream)).expect("sent");
        if stream {
            assert!(client.read(&mut [0; 64]).expect("the stream has begun") > 0);
        } else {
            eventually("it is there", || upstream.received().len() == 1);
        }
        drop(client);
        eventually(case, || upstream.left() == 1);
        eventually("it is counted", || forebay.signals()["totals"]["clientLeft"] == 1);
    }
}
