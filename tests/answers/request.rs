//! The part of a request that reaches the replica: its path, its priority, the key.

use crate::support::post;
use crate::support::reply::{ask, parse};
use crate::support::upstream::{Step, Upstream, plain};
use crate::{CHAT, fixture, gateway};

#[test]
fn only_paths_of_the_api_are_passed_on() {
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
        assert!(got.header("server-timing").is_some(), "{path}: an error has its times, too");
    }
    assert_eq!(upstream.received().len(), before);
}

#[test]
fn slashes_behind_a_path_are_answered_as_vllm_answers_them() {
    let upstream = Upstream::start(|_| vec![Step::Hang]);
    let forebay = gateway("slashes", &[&upstream], "");
    let recorded = |kind: &str| fixture(&format!("a-default/chat_trailing_slash.{kind}"));
    let want = parse(&recorded("resp"));
    let request = String::from_utf8(recorded("req")).expect("text");
    let request = request.replace("Accept: */*", "Connection: close");
    let got = ask(forebay.address, request.as_bytes());
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
fn a_client_whose_own_error_names_the_field_for_token_ids_does_not_end_the_asking() {
    let recorded = fixture("a-default/chat_stream_usage.resp");
    let wrong =
        r#"{"error":{"message":"1 validation error: input: 'return_token_ids'","code":400}}"#;
    let upstream = Upstream::start(move |request| {
        let wrong_field = request.text().contains("\"max_tokens\":\"return_token_ids\"");
        vec![Step::Send(if wrong_field { plain(400, wrong) } else { recorded.clone() })]
    });
    let forebay = gateway("echo", &[&upstream], "");
    let bad = r#"{"model":"sim","stream":true,"messages":[],"max_tokens":"return_token_ids"}"#;
    let reply = ask(forebay.address, &post(CHAT, bad));
    assert_eq!((reply.status, reply.text()), (400, wrong.to_owned()));
    assert_eq!(
        ask(forebay.address, &post(CHAT, r#"{"model":"sim","stream":true,"messages":[]}"#)).status,
        200
    );
    let last = upstream.received().pop().expect("one");
    assert!(last.text().contains("\"return_token_ids\":true"), "{}", last.text());
}

#[test]
fn a_server_that_refuses_the_field_for_token_ids_is_not_asked_again() {
    let recorded = fixture("a-default/chat_stream_usage.resp");
    let unknown = r#"{"detail":[{"type":"extra_forbidden","loc":["body","return_token_ids"]}]}"#;
    let upstream = Upstream::start(move |request| {
        let asked = request.text().contains("return_token_ids");
        vec![Step::Send(if asked { plain(422, unknown) } else { recorded.clone() })]
    });
    let forebay = gateway("strict", &[&upstream], "");
    let body = r#"{"model":"sim","stream":true,"messages":[]}"#;
    for requests in [2, 3] {
        assert_eq!(ask(forebay.address, &post(CHAT, body)).status, 200);
        assert_eq!(upstream.received().len(), requests, "only the first one asks");
    }
    // A client that asks for them itself gets the refusal.
    let asked = r#"{"return_token_ids":true,"model":"sim","stream":true,"messages":[]}"#;
    let reply = ask(forebay.address, &post(CHAT, asked));
    assert_eq!((reply.status, reply.text()), (422, unknown.to_owned()));
}
