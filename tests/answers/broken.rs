//! Answers that fail: retried before they are committed, ended with an error event afterwards.

use crate::support::eventually;
use crate::support::reply::ask;
use crate::support::upstream::{Received, Step, Upstream, plain, stream_head};
use crate::{CHAT, DONE, TOKEN, ended, gateway, logged, request, streamed};

#[test]
fn a_failure_before_the_commit_is_answered_by_another_replica() {
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
        // Of two requests, at least one goes to the failing replica first.
        for _ in 0..2 {
            let got = ask(forebay.address, &request(path, stream));
            assert_eq!(got.status, 200, "{case}: {}", got.text());
            assert!(got.text().contains("sound") && got.whole, "{case}: {}", got.text());
            let nothing_else = ["abort", "message_start", "created", "keep-alive", "busy", "role"];
            assert!(!nothing_else.iter().any(|word| got.text().contains(word)), "{case}");
        }
        let bodies: Vec<_> = failing.received().iter().map(Received::text).collect();
        assert!(!bodies.is_empty(), "{case}: the failing replica was tried");
        assert_eq!(bodies[0], sound.received()[0].text(), "{case}: both got the same body");
        eventually(&format!("{case}: the failure is counted"), || {
            let series = format!(r#"forebay_failures_total{{pool="p",cause="{cause}"}}"#);
            // One abort does not eject the replica, so the second request may go there too.
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
    for (case, path, first, script, error_event, cause) in [
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
        assert!(rest.contains(error_event), "{case}: {rest}");
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
        assert_eq!(line["generated_tokens"], 1, "{case}: the tokens until then");
        let aborts = r#"forebay_aborts_total{pool="p",by="replica"}"#;
        let want = f64::from(u32::from(cause == "aborted"));
        assert_eq!(forebay.metric(aborts), Some(want), "{case}");
        eventually(&format!("{case}: the failure is counted"), || {
            let signals = forebay.signals();
            signals["endpoints"][upstream.address.to_string()]["failed"] == 1
                && signals["totals"]["failed"] == 1
        });
    }
}
