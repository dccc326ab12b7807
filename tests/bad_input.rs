//! Mistakes of clients: each gets a clear error in vLLM's shape or a clean close, and the next
//! request works.

mod support;

use std::io::{Read, Write};

use support::{Forebay, connect, exchange, get, json, post, status};

const CHAT: &str = "/v1/chat/completions";
const JSON: &str = "content-type: application/json\r\n";

#[test]
fn mistakes_are_answered_in_vllms_shape_with_the_right_status() {
    let forebay = Forebay::dev(&["--cold-start", "200ms"]);
    let huge = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{JSON}content-length: 999999999\r\n\r\n"
    );
    for (case, request, want, text) in [
        ("broken JSON", post(CHAT, r#"{"model":"#), 400, "not valid JSON"),
        ("not an object", post(CHAT, "[]"), 400, "must be a JSON object"),
        ("a field twice", post(CHAT, r#"{"model":"sim","model":"x"}"#), 400, "occurs twice"),
        ("empty body", post(CHAT, ""), 400, "body is empty"),
        ("unknown model", post(CHAT, r#"{"model":"nope"}"#), 404, "Known models: `sim`"),
        ("wrong path", post("/v1/nope", "{}"), 404, "/v1/nope"),
        ("an open path of vLLM", post("/invocations", "{}"), 404, "is not served here"),
        ("body over the limit", huge.into_bytes(), 413, "larger than the limit"),
        (
            "wrong method",
            format!("DELETE {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                .into_bytes(),
            405,
            "takes POST",
        ),
    ] {
        let answer = exchange(forebay.address, &request);
        assert_eq!(status(&answer), want, "{case}: {answer}");
        let error = &json(&answer)["error"];
        assert_eq!(error["code"], want, "{case}");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains(text), "{case}: {message}");
        assert!(error["type"].is_string() && error.get("param").is_some(), "{case}: {error}");
    }
    let signals = forebay.signals();
    assert_eq!(signals["totals"]["accepted"], 0, "none of them woke a replica");
    let models = json(&get(forebay.address, "/v1/models"));
    assert_eq!(models["data"][0]["id"], "sim", "a sleeping model is listed");
}

#[test]
fn a_megabyte_of_headers_is_refused_and_the_next_request_works() {
    let forebay = Forebay::dev(&[]);
    let mut request =
        format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx-long: {}\r\n", "a".repeat(1 << 20));
    request.push_str("\r\n");
    let answer = exchange(forebay.address, request.as_bytes());
    // A client that is still sending may see a reset before the answer.
    assert!(matches!(status(&answer), 0 | 431), "{answer}");
    assert_eq!(status(&get(forebay.address, "/health")), 200);
}

#[test]
fn a_body_that_never_ends_does_not_delay_other_clients() {
    let forebay = Forebay::dev(&["--cold-start", "200ms"]);
    let mut slow = connect(forebay.address);
    write!(slow, "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{JSON}content-length: 100\r\n\r\n{{")
        .expect("sent");
    let answer = exchange(forebay.address, &support::chat(false, 2));
    assert_eq!(status(&answer), 200, "{answer}");
    let mut garbage = connect(forebay.address);
    garbage.write_all(b"\x16\x03\x01\x00\xff not http\r\n\r\n").expect("sent");
    let mut closed = Vec::new();
    let _ = garbage.read_to_end(&mut closed);
    assert_eq!(status(&get(forebay.address, "/health")), 200);
}
