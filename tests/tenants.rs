//! Keys and limits, and the errors about them in each API, with the real binary.

mod support;

use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use support::sims::{Folder, Sim};
use support::upstream::{Received, Step, Upstream, plain};
use support::{Forebay, connect, eventually, exchange, json, status};

const CHAT: &str = "/v1/chat/completions";

/// A request with these headers, for a connection of its own.
fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if method == "POST" {
        head += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    }
    format!("{head}\r\n{body}").into_bytes()
}

fn chat(forebay: &Forebay, key: &str, model: &str, tokens: u32) -> String {
    exchange(forebay.address, &chat_request(key, model, tokens))
}

fn chat_request(key: &str, model: &str, tokens: u32) -> Vec<u8> {
    let body = format!(
        r#"{{"model":"{model}","max_tokens":{tokens},"ignore_eos":true,"messages":[{{"role":"user","content":"hello"}}]}}"#
    );
    let bearer = format!("Bearer {key}");
    request("POST", CHAT, &[("authorization", &bearer)], &body)
}

/// The value of an answer's header.
fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split_once("\r\n\r\n")?.0;
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn hash_key(arguments: &[&str], input: &str) -> (String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .arg("hash-key")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("taken");
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (text(output.stdout), text(output.stderr))
}

fn keys(of: &[(&str, &str)]) -> String {
    let entries = of.iter().map(|(tenant, key)| hash_key(&["--tenant", tenant], key).0);
    entries.collect()
}

fn config(folder: &Folder, sim: &Sim, gateway: &str) -> String {
    let upstream = folder.write("upstream-key", "sk-upstream\n");
    format!(
        "gateway:\n  listen: 127.0.0.1:0\n{gateway}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n  - name: p\n    \
         models: [m, other]\n    endpoints: ['{}']\n    apiKeyFile: {upstream}\n",
        sim.address
    )
}

fn ready(forebay: &Forebay) {
    eventually("the endpoint is ready", || {
        let signals = forebay.signals();
        let endpoints = signals["endpoints"].as_object().cloned().unwrap_or_default();
        endpoints.values().any(|endpoint| endpoint["health"] == "ready")
    });
}

#[test]
fn a_key_opens_its_tenants_models_and_never_reaches_a_replica() {
    let sim = Sim::start(&["m", "--served-model-name", "m", "other", "--api-key", "sk-upstream"]);
    let folder = Folder::new();
    let file = folder.write("keys.yaml", &keys(&[("a", "sk-a"), ("b", "sk-b\n")]));
    let tenants = "[{name: a}, {name: b, models: [oth*]}]";
    let forebay = folder.gateway(&config(
        &folder,
        &sim,
        &format!("  keys: {{file: {file}}}\n  tenants: {tenants}"),
    ));
    ready(&forebay);

    // The replica refuses every key but its own, so it did not get the client's.
    let answer = chat(&forebay, "sk-a", "m", 3);
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(json(&answer)["usage"]["completion_tokens"], 3);

    let body = r#"{"model":"m","max_tokens":3,"messages":[{"role":"user","content":"hello"}]}"#;
    let plain = |path: &str, headers: &[(&str, &str)]| {
        exchange(forebay.address, &request("POST", path, headers, body))
    };
    let answer =
        plain("/v1/messages", &[("x-api-key", "sk-a"), ("anthropic-version", "2023-06-01")]);
    assert_eq!(status(&answer), 200, "{answer}");

    for headers in [&[][..], &[("authorization", "Bearer sk-x")], &[("x-api-key", "sk-upstream")]] {
        let answer = plain(CHAT, headers);
        assert_eq!(status(&answer), 401, "{answer}");
        assert_eq!(header(&answer, "www-authenticate"), Some("Bearer"));
        let error = &json(&answer)["error"];
        assert_eq!((&error["type"], &error["code"]), (&"AuthenticationError".into(), &401.into()));
        assert!(!error["message"].as_str().expect("text").contains("sk-"), "{error}");

        let anthropic = json(&plain("/v1/messages", headers));
        assert_eq!(anthropic["type"], "error");
        assert_eq!(anthropic["error"]["type"], "authentication_error", "{anthropic}");
    }

    let answer = chat(&forebay, "sk-b", "m", 3);
    assert_eq!(status(&answer), 403, "{answer}");
    assert_eq!(json(&answer)["error"]["param"], "model");
    assert_eq!(status(&chat(&forebay, "sk-b", "other", 3)), 200);
    // Without a name the replica would use its own model, which `b` may not use.
    let body = r#"{"messages":[{"role":"user","content":"hello"}]}"#;
    let b = [("authorization", "Bearer sk-b")];
    assert_eq!(status(&exchange(forebay.address, &request("POST", CHAT, &b, body))), 403);

    let models = |key: &str| {
        let bearer = format!("Bearer {key}");
        let request = request("GET", "/v1/models", &[("authorization", &bearer)], "");
        let list = json(&exchange(forebay.address, &request));
        let ids = list["data"].as_array().cloned().unwrap_or_default();
        let id = |model: &serde_json::Value| model["id"].as_str().unwrap_or_default().to_owned();
        ids.iter().map(id).collect::<Vec<_>>()
    };
    assert_eq!(
        (models("sk-a"), models("sk-b")),
        (vec!["m".into(), "other".into()], vec!["other".into()])
    );
    assert_eq!(status(&support::get(forebay.address, "/v1/models")), 401);
    assert_eq!(status(&support::get(forebay.address, "/health")), 200);
    let counted = |outcome: &str| {
        forebay
            .metric(&format!(r#"forebay_tenant_requests_total{{tenant="b",outcome="{outcome}"}}"#))
    };
    assert_eq!((counted("completed"), counted("refused")), (Some(1.0), Some(2.0)));
}

#[test]
fn every_answer_shows_the_limits_and_refusals_have_the_apis_own_shape() {
    let sim = Sim::start(&["m", "--served-model-name", "m", "other", "--api-key", "sk-upstream"]);
    let folder = Folder::new();
    let file = folder.write(
        "keys.yaml",
        &keys(&[("few", "sk-few"), ("small", "sk-small"), ("tiny", "sk-tiny")]),
    );
    let tenants = "[{name: few, requestsPerMinute: 2}, {name: small, tokensPerMinute: 1000}, \
                   {name: tiny, tokensPerMinute: 60}]";
    let forebay = folder.gateway(&config(
        &folder,
        &sim,
        &format!("  keys: {{file: {file}}}\n  tenants: {tenants}"),
    ));
    ready(&forebay);

    let first = chat(&forebay, "sk-few", "m", 2);
    assert_eq!(status(&first), 200, "{first}");
    assert_eq!(header(&first, "x-ratelimit-limit-requests"), Some("2"));
    assert_eq!(header(&first, "x-ratelimit-remaining-requests"), Some("1"));
    let reset = header(&first, "x-ratelimit-reset-requests").expect("a header");
    assert!(reset.starts_with("30s") || reset.starts_with("29."), "{reset}");
    assert_eq!(header(&first, "x-ratelimit-limit-tokens"), None, "not limited");
    assert_eq!(status(&chat(&forebay, "sk-few", "m", 2)), 200);

    let over = chat(&forebay, "sk-few", "m", 2);
    assert_eq!(status(&over), 429, "{over}");
    let retry: u64 =
        header(&over, "retry-after").and_then(|text| text.parse().ok()).expect("seconds");
    assert!((1..=30).contains(&retry), "{retry}");
    assert_eq!(header(&over, "x-ratelimit-remaining-requests"), Some("0"));
    let error = &json(&over)["error"];
    assert_eq!((&error["type"], &error["code"]), (&"RateLimitError".into(), &429.into()));
    let message = error["message"].as_str().expect("text");
    assert!(message.contains("2 requests per minute"), "{message}");

    // The request may take many tokens and the answer has few: the unused ones come back.
    let body = r#"{"model":"m","max_tokens":900,"min_tokens":1,"messages":[{"role":"user","content":"hello"}]}"#;
    let small = [("x-api-key", "sk-small"), ("anthropic-version", "2023-06-01")];
    let ask = || exchange(forebay.address, &request("POST", "/v1/messages", &small, body));
    let first = ask();
    assert_eq!(status(&first), 200, "{first}");
    let remaining = |answer: &str| -> u64 {
        let value = header(answer, "x-ratelimit-remaining-tokens");
        value.and_then(|text| text.parse().ok()).expect("a number")
    };
    assert!(remaining(&first) < 110, "the estimate is charged: {first}");
    let used = json(&first)["usage"].clone();
    let used = used["input_tokens"].as_u64().expect("a count")
        + used["output_tokens"].as_u64().expect("a count");
    let body = r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hello"}]}"#;
    let second = exchange(forebay.address, &request("POST", "/v1/messages", &small, body));
    let left = remaining(&second);
    assert!(left > 1000 - used - 50, "{left} of 1000 are left after {used}");

    // An answer has 50 tokens or more, so a minute has enough for one.
    let tiny = [("x-api-key", "sk-tiny"), ("anthropic-version", "2023-06-01")];
    let body = r#"{"model":"m","max_tokens":900,"messages":[{"role":"user","content":"hello"}]}"#;
    let ask = || exchange(forebay.address, &request("POST", "/v1/messages", &tiny, body));
    assert_eq!(status(&ask()), 200);
    let over = ask();
    assert_eq!(status(&over), 429, "{over}");
    let error = json(&over);
    assert_eq!(
        (&error["type"], &error["error"]["type"]),
        (&"error".into(), &"rate_limit_error".into())
    );
    assert!(
        forebay.metric(r#"forebay_tenant_limited_total{tenant="few",limit="requests"}"#)
            == Some(1.0)
    );
}

/// A `forebay scaler`, stopped when this is dropped.
struct Scaler(Child);

impl Scaler {
    fn start(folder: &Folder, config: &str) -> Self {
        let file = folder.write("scaler.yaml", config);
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["scaler", "--config", &file]).stdin(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("the binary starts"))
    }
}

impl Drop for Scaler {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn gateways_share_a_limit_and_the_last_one_has_all_of_it() {
    let slow = ["--decode-step-ms", "200", "--api-key", "sk-upstream"];
    let sim = Sim::start(&[&["m", "--served-model-name", "m", "other"][..], &slow].concat());
    let folder = Folder::new();
    let file = folder.write("keys.yaml", &keys(&[("busy", "sk-busy"), ("few", "sk-few")]));
    // An address on which nothing else takes ports before the scaler binds it.
    let listener = TcpListener::bind("127.77.0.1:0").expect("a free port");
    let admin = listener.local_addr().expect("bound");
    drop(listener);
    let text = config(
        &folder,
        &sim,
        &format!(
            "  scaler: {admin}\n  keys: {{file: {file}}}\n  tenants: [{{name: busy, maxConcurrent: 2}}, \
             {{name: few, requestsPerMinute: 2}}]"
        ),
    );
    let (one, other) = (folder.gateway(&text), folder.gateway(&text));
    ready(&one);
    ready(&other);

    // The tenant may have two requests at once. Each gateway has one for as long as the test takes.
    let busy = |forebay: &Forebay| {
        let body = r#"{"model":"m","stream":true,"max_tokens":1500,"ignore_eos":true,"messages":[{"role":"user","content":"hello"}]}"#;
        let mut stream = connect(forebay.address);
        let key = [("authorization", "Bearer sk-busy")];
        stream.write_all(&request("POST", CHAT, &key, body)).expect("open");
        eventually("the request is in flight", || forebay.signals()["inFlight"] == 1);
        stream
    };
    let (first, _second) = (busy(&one), busy(&other));
    let second = |forebay: &Forebay| status(&chat(forebay, "sk-busy", "m", 1));
    for forebay in [&one, &other] {
        assert_eq!(second(forebay), 200, "neither gateway knows of the other");
    }
    let gateways = [one.admin, other.admin];
    let scaler = Scaler::start(
        &folder,
        &format!(
            "scaler: {{gateways: ['{}', '{}']}}\nadmin: {{listen: '{admin}'}}\npools:\n  - name: p\n    \
             models: [m, other]\n    endpoints: ['{}']\n",
            gateways[0], gateways[1], sim.address
        ),
    );
    for forebay in [&one, &other] {
        eventually("each gateway has a share of one", || second(forebay) == 429);
        let few = || status(&chat(forebay, "sk-few", "m", 1));
        assert_eq!([few(), few()], [200, 429], "each gateway's share is one request a minute");
    }

    drop(first);
    one.signal("TERM");
    eventually("the other gateway has the whole limit", || second(&other) == 200);
    drop(scaler);
    assert_eq!(second(&other), 200, "the last shares stay without a scaler");
}

#[test]
fn keys_follow_their_file_and_stay_when_it_is_wrong() {
    let sim = Sim::start(&["m", "--served-model-name", "m", "--api-key", "sk-upstream"]);
    let folder = Folder::new();
    let file = folder.write("keys.yaml", &keys(&[("a", "sk-old")]));
    let mut forebay = folder.gateway(&config(
        &folder,
        &sim,
        &format!("  keys: {{file: {file}}}\n  tenants: [{{name: a}}]"),
    ));
    ready(&forebay);
    assert_eq!(status(&chat(&forebay, "sk-old", "m", 1)), 200);

    folder.write("keys.yaml", &keys(&[("a", "sk-new"), ("nobody", "sk-nobody")]));
    forebay.wait_for("tenant `nobody` is not one of gateway.tenants");
    assert_eq!(status(&chat(&forebay, "sk-old", "m", 1)), 401);
    assert_eq!(status(&chat(&forebay, "sk-new", "m", 1)), 200);
    assert_eq!(status(&chat(&forebay, "sk-nobody", "m", 1)), 401);

    folder.write("keys.yaml", "- tenant: a\n  sha256: sk-secret\n");
    let line = forebay.wait_for("the keys stay as they were");
    assert!(line.contains("keys.yaml:2: [0].sha256: not a SHA-256 hash"), "{line}");
    assert_eq!(status(&chat(&forebay, "sk-new", "m", 1)), 200);
    assert!(forebay.logged().iter().all(|line| !line.contains("sk-")), "no key is logged");
}

#[test]
fn a_held_request_of_a_higher_class_is_released_first() {
    let taken = AtomicBool::new(false);
    let upstream = Upstream::start(move |_| match taken.swap(true, SeqCst) {
        false => vec![Step::Hang],
        true => vec![Step::Send(plain(200, r#"{"choices":[]}"#))],
    });
    let folder = Folder::new();
    let file = folder.write("keys.yaml", &keys(&[("low", "sk-low"), ("high", "sk-high")]));
    let forebay = folder.gateway(&format!(
        "gateway:\n  listen: 127.0.0.1:0\n  keys: {{file: {file}}}\n  tenants: [{{name: low, \
         priorityClass: low}}, {{name: high, priorityClass: high}}]\n\
         admin: {{listen: 127.0.0.1:0}}\npools:\n\
         - {{name: p, models: [sim], endpoints: ['{}'], maxInFlight: 1}}\n",
        upstream.address
    ));
    ready(&forebay);
    let mut first = connect(forebay.address);
    first.write_all(&chat_request("sk-low", "sim", 1)).expect("sent");
    eventually("the only place is taken", || forebay.signals()["inFlight"] == 1);
    let address = forebay.address;
    let held = [("sk-low", 2), ("sk-high", 3)].map(|(key, tokens)| {
        let request = chat_request(key, "sim", tokens);
        let client = std::thread::spawn(move || exchange(address, &request));
        eventually("the request is held", || forebay.signals()["queueDepth"] == tokens - 1);
        client
    });
    drop(first);
    for client in held {
        let answer = client.join().expect("no panic");
        assert_eq!(status(&answer), 200, "{answer}");
    }
    let tokens = |request: &Received| {
        let body: serde_json::Value = serde_json::from_slice(&request.body).expect("JSON");
        body["max_tokens"].as_u64().expect("a number")
    };
    let order: Vec<_> = upstream.received().iter().map(tokens).collect();
    assert_eq!(order, [1, 3, 2], "by max_tokens");
}

#[test]
fn hash_key_prints_entries_for_the_key_file() {
    let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    assert_eq!(
        hash_key(&[], "hello\n").0,
        format!("{hello}\n"),
        "the end of the line does not belong to the key"
    );
    assert_eq!(
        hash_key(&["--tenant", "a"], "hello").0,
        format!("- tenant: a\n  sha256: {hello}\n")
    );
    let (hash, key) = hash_key(&["--new"], "");
    assert!(key.starts_with("sk-") && key.trim().len() == 67, "{key}");
    assert_eq!(hash_key(&[], &key).0, hash);
    assert!(hash_key(&[], "").1.contains("no key was given"));
}

#[test]
fn a_list_of_models_is_logged_with_the_tenant_that_asked() {
    let sim = Sim::start(&["m", "--served-model-name", "m", "--api-key", "sk-upstream"]);
    let folder = Folder::new();
    let file = folder.write("keys.yaml", &keys(&[("a", "sk-a")]));
    let checked = format!("  keys: {{file: {file}}}\n  tenants: [{{name: a}}]");
    let mut forebay = folder.gateway(&config(&folder, &sim, &checked));
    let keyed = request("GET", "/v1/models", &[("authorization", "Bearer sk-a")], "");
    assert_eq!(status(&exchange(forebay.address, &keyed)), 200);
    eventually("the line names the tenant", || {
        let line = |line: &String| line.contains("/v1/models") && line.contains(r#""tenant":"a""#);
        forebay.logged().iter().any(line)
    });
}

#[test]
fn a_gateway_that_is_open_to_all_warns_about_missing_keys() {
    let sim = Sim::start(&["m", "--served-model-name", "m", "--api-key", "sk-upstream"]);
    let folder = Folder::new();
    let text =
        config(&folder, &sim, "").replace("  listen: 127.0.0.1:0\n", "  listen: 0.0.0.0:0\n");
    let mut forebay = folder.gateway(&text);
    let warned = |line: &String| line.contains("WARN") && line.contains("gateway.keys is not set");
    assert!(forebay.logged().iter().any(warned), "{:?}", forebay.log);
    let text = config(&folder, &sim, "");
    let mut forebay = folder.gateway(&text);
    assert!(!forebay.logged().iter().any(warned));
}
