//! Keys, limits and what clients of each API are told about them, with the real binary.

mod support;

use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use support::sims::{Folder, Sim};
use support::{Forebay, connect, eventually, exchange, json, status};

const CHAT: &str = "/v1/chat/completions";

/// A request with these headers, to be answered on a connection of its own.
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
    let body = format!(
        r#"{{"model":"{model}","max_tokens":{tokens},"ignore_eos":true,"messages":[{{"role":"user","content":"hello"}}]}}"#
    );
    let bearer = format!("Bearer {key}");
    exchange(forebay.address, &request("POST", CHAT, &[("authorization", &bearer)], &body))
}

/// The value of a header of an answer.
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
fn a_key_opens_what_its_tenant_may_use_and_goes_no_further() {
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

    // The server behind refuses every key but its own: what it got is not what the client sent.
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
    // Without a name the server would take its own, which `b` may not use.
    let body = r#"{"messages":[{"role":"user","content":"hello"}]}"#;
    let b = [("authorization", "Bearer sk-b")];
    assert_eq!(status(&exchange(forebay.address, &request("POST", CHAT, &b, body))), 403);

    let models = |key: &str| {
        let bearer = format!("Bearer {key}");
        let request = request("GET", "/v1/models", &[("authorization", &bearer)], "");
        let list = json(&exchange(forebay.address, &request));
        let ids = list["data"].as_array().cloned().unwrap_or_default();
        ids.iter().map(|it| it["id"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
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
fn limits_are_told_with_every_answer_and_refuse_in_the_apis_own_shape() {
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
    let reset = header(&first, "x-ratelimit-reset-requests").expect("told");
    assert!(reset.starts_with("30s") || reset.starts_with("29."), "{reset}");
    assert_eq!(header(&first, "x-ratelimit-limit-tokens"), None, "not limited");
    assert_eq!(status(&chat(&forebay, "sk-few", "m", 2)), 200);

    let over = chat(&forebay, "sk-few", "m", 2);
    assert_eq!(status(&over), 429, "{over}");
    let retry: u64 = header(&over, "retry-after").and_then(|it| it.parse().ok()).expect("seconds");
    assert!((1..=30).contains(&retry), "{retry}");
    assert_eq!(header(&over, "x-ratelimit-remaining-requests"), Some("0"));
    let error = &json(&over)["error"];
    assert_eq!((&error["type"], &error["code"]), (&"RateLimitError".into(), &429.into()));
    let message = error["message"].as_str().expect("text");
    assert!(message.contains("2 requests per minute"), "{message}");

    // Asked for many, answered with few: what was not used is there again.
    let body = r#"{"model":"m","max_tokens":900,"min_tokens":1,"messages":[{"role":"user","content":"hello"}]}"#;
    let small = [("x-api-key", "sk-small"), ("anthropic-version", "2023-06-01")];
    let ask = || exchange(forebay.address, &request("POST", "/v1/messages", &small, body));
    let first = ask();
    assert_eq!(status(&first), 200, "{first}");
    let remaining = |answer: &str| -> u64 {
        header(answer, "x-ratelimit-remaining-tokens").and_then(|it| it.parse().ok()).expect("told")
    };
    assert!(remaining(&first) < 110, "the estimate is taken: {first}");
    let used = json(&first)["usage"].clone();
    let used = used["input_tokens"].as_u64().expect("told")
        + used["output_tokens"].as_u64().expect("told");
    let body = r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hello"}]}"#;
    let second = exchange(forebay.address, &request("POST", "/v1/messages", &small, body));
    let left = remaining(&second);
    assert!(left > 1000 - used - 50, "{left} of 1000 are left after {used}");

    // Answers have 50 tokens and more: one is all that a minute has.
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

/// `forebay scaler` alone, which goes with it.
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
fn gateways_share_a_limit_and_the_one_that_stays_has_all_of_it() {
    let slow = ["--decode-step-ms", "200", "--api-key", "sk-upstream"];
    let sim = Sim::start(&[&["m", "--served-model-name", "m", "other"][..], &slow].concat());
    let folder = Folder::new();
    let file = folder.write("keys.yaml", &keys(&[("busy", "sk-busy"), ("few", "sk-few")]));
    // On an address that nothing else takes ports of until the scaler binds it.
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

    // One of its two requests is under way at each for as long as the test takes.
    let busy = |forebay: &Forebay| {
        let body = r#"{"model":"m","stream":true,"max_tokens":1500,"ignore_eos":true,"messages":[{"role":"user","content":"hello"}]}"#;
        let mut stream = connect(forebay.address);
        let key = [("authorization", "Bearer sk-busy")];
        stream.write_all(&request("POST", CHAT, &key, body)).expect("open");
        eventually("it is under way", || forebay.signals()["inFlight"] == 1);
        stream
    };
    let (under_way, _stays) = (busy(&one), busy(&other));
    let second = |forebay: &Forebay| status(&chat(forebay, "sk-busy", "m", 1));
    for forebay in [&one, &other] {
        assert_eq!(second(forebay), 200, "nobody knows of another gateway");
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
        eventually("each has one of the two", || second(forebay) == 429);
        let few = || status(&chat(forebay, "sk-few", "m", 1));
        assert_eq!([few(), few()], [200, 429], "one a minute is its share of two");
    }

    drop(under_way);
    one.signal("TERM");
    eventually("the other has both", || second(&other) == 200);
    drop(scaler);
    assert_eq!(second(&other), 200, "what the scaler said last stays");
}

#[test]
fn keys_change_with_their_file_and_stay_when_it_cannot_be_used() {
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
fn hash_key_makes_what_the_file_needs() {
    let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    assert_eq!(
        hash_key(&[], "hello\n").0,
        format!("{hello}\n"),
        "a line's end is no part of a key"
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
fn an_open_gateway_without_keys_says_so() {
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
