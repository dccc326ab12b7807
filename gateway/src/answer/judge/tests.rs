use super::*;
use std::borrow::Cow;

fn verdict(api: Api, event: &str) -> Verdict {
    judge_event(api, &SseEvent::read(event.as_bytes())).verdict
}

fn cause(verdict: Verdict) -> Option<(Cause, u16)> {
    match verdict {
        Verdict::Failed(failure) => Some((failure.cause, failure.status)),
        _ => None,
    }
}

#[test]
fn an_error_is_known_by_its_structure_not_by_its_words() {
    let chat = |data: &str| verdict(Api::ChatCompletions, &format!("data: {data}\n\n"));
    for (data, want) in [
        (
            r#"{"error": {"message": "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.", "type": "Service Unavailable", "param": null, "code": 503}}"#,
            Some((Cause::QueueFull, 503)),
        ),
        (
            r#"{"error":{"message":"cannot schedule new futures after shutdown","type":"InternalServerError","code":500}}"#,
            Some((Cause::ShuttingDown, 500)),
        ),
        (r#"{"id":1,"error":{"message":"odd","code":"server_error"}}"#, Some((Cause::Server, 500))),
        (r#"{"error":"odd"}"#, Some((Cause::Server, 500))),
        (r#"{"choices":[{"delta":{"content":"{\"error\": {\"code\": 500}}"}}]}"#, None),
        (r#"{"choices":[{"delta":{"content":"data: {\"error\""}}],"error":null}"#, None),
        (
            r#"{"choices":[{"delta":{"content":"a"},"finish_reason":"abort"}]}"#,
            Some((Cause::Aborted, 500)),
        ),
        (r#"{"choices":[{"delta":{"content":"\"finish_reason\":\"abort\""}}]}"#, None),
        (r#"{"choices":[{"delta":{},"finish_reason":"error"}]}"#, Some((Cause::Server, 500))),
    ] {
        assert_eq!(cause(chat(data)), want, "{data}");
    }
    let refused = r#"{"error":{"message":"too long","type":"BadRequestError","code":400}}"#;
    assert_eq!(chat(refused), Verdict::Client(400));
    let typed = r#"{"error":{"message":"no","type":"invalid_request_error"}}"#;
    assert_eq!(chat(typed), Verdict::Client(400));
}

#[test]
fn announcements_are_not_output() {
    use Verdict::{End, Output, Preamble, UsageOnly};
    let first = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
    for (api, event, want) in [
        (Api::ChatCompletions, ": keep-alive".to_owned(), Preamble),
        (Api::ChatCompletions, format!("data: {first}"), Preamble),
        (
            Api::ChatCompletions,
            "data: {\"choices\":[{\"delta\":{\"content\":\"\"}}]}".into(),
            Output,
        ),
        (
            Api::ChatCompletions,
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"a\"}}]}".into(),
            Output,
        ),
        (
            Api::ChatCompletions,
            "data: {\"choices\":[{\"delta\":{\"content\":null,\"tool_calls\":[{}]}}]}".into(),
            Output,
        ),
        (
            Api::ChatCompletions,
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}".into(),
            Output,
        ),
        (Api::ChatCompletions, "data: {\"choices\":[],\"usage\":{}}".into(), UsageOnly),
        (Api::ChatCompletions, "data: [DONE]".into(), End),
        (Api::ChatCompletions, "data: no JSON".into(), Output),
        (Api::Completions, "data: {\"choices\":[{\"text\":\"\"}]}".into(), Output),
        (Api::AudioTranscriptions, "data: [DONE]".into(), End),
        (Api::Messages, "event: ping\ndata: {\"type\":\"ping\"}".into(), Preamble),
        (Api::Messages, "data: {\"type\":\"message_start\",\"message\":{}}".into(), Preamble),
        (Api::Messages, "event: content_block_start\ndata: {}".into(), Preamble),
        (Api::Messages, "event: content_block_delta\ndata: {}".into(), Output),
        (Api::Messages, "event: message_stop\ndata: {}".into(), End),
        (Api::Messages, "data: [DONE]".into(), Output),
        (Api::Responses, "event: response.created\ndata: {}".into(), Preamble),
        (Api::Responses, "event: response.in_progress\ndata: {}".into(), Preamble),
        (Api::Responses, "event: response.output_item.added\ndata: {}".into(), Preamble),
        (Api::Responses, "event: response.output_text.delta\ndata: {}".into(), Output),
        (Api::Responses, "data: {\"type\":\"response.output_text.delta\"}".into(), Output),
        (Api::Responses, "event: response.incomplete\ndata: {}".into(), End),
    ] {
        assert_eq!(verdict(api, &event), want, "{api:?} {event}");
    }
}

#[test]
fn an_unknown_field_is_output_if_it_has_a_value() {
    use Verdict::{Output, Preamble};
    for (delta, want) in [
        (r#"{"audio":{"data":"UklGRg=="}}"#, Output),
        (r#"{"role":"assistant","content":"","audio":{"id":"a"}}"#, Output),
        (r#"{"content":[{"type":"text","text":"a"}]}"#, Output),
        (r#"{"content":{"type":"text"}}"#, Output),
        (r#"{"reasoning_details":[{"text":"a"}]}"#, Output),
        (r#"{"images":["a"]}"#, Output),
        (r#"{"step":1}"#, Output),
        (r#"{"done":true}"#, Output),
        (r#"{"function_call":{"name":"f"}}"#, Output),
        (r#""a""#, Output),
        (r#"["a"]"#, Output),
        (
            r#"{"role":"assistant","content":"","audio":null,"tool_calls":[],"refusal":null}"#,
            Preamble,
        ),
        (r#"{"role":"assistant","content":[],"annotations":[],"extra":{},"name":""}"#, Preamble),
        (r#"{"role":"assistant","last":false}"#, Preamble),
        (r#"{"audio":null}"#, Preamble),
        ("{}", Preamble),
        ("null", Preamble),
        ("\"\"", Preamble),
    ] {
        let event = format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{delta}}}]}}");
        assert_eq!(verdict(Api::ChatCompletions, &event), want, "{delta}");
    }
    let choice = |members: &str| format!("data: {{\"choices\":[{{\"delta\":{{}},{members}}}]}}");
    assert_eq!(verdict(Api::ChatCompletions, &choice("\"token_ids\":[7]")), Output);
    assert_eq!(verdict(Api::ChatCompletions, &choice("\"token_ids\":[]")), Preamble);
    let text = |text: &str| format!("data: {{\"choices\":[{{\"text\":{text}}}]}}");
    assert_eq!(verdict(Api::Completions, &text("[\"a\"]")), Output);
    assert_eq!(verdict(Api::Completions, &text("null")), Preamble);
}

#[test]
fn an_end_mark_may_have_space_around_it() {
    for (api, event) in [
        (Api::ChatCompletions, "data: [DONE] "),
        (Api::ChatCompletions, "data:  [DONE]\t\r\n\r\n"),
        (Api::ChatCompletions, "data: [DONE]\ndata: \n\n"),
        (Api::Completions, "data:[DONE] \r\r"),
        (Api::Messages, "event: message_stop \ndata: {}"),
        (Api::Responses, "event: response.completed\t\ndata: {}"),
    ] {
        assert_eq!(verdict(api, event), Verdict::End, "{event:?}");
    }
    let quoted = "data: {\"choices\":[{\"delta\":{\"content\":\"[DONE]\"}}]}";
    assert_eq!(verdict(Api::ChatCompletions, quoted), Verdict::Output);
}

#[test]
fn each_apis_own_failures_are_recognized() {
    for (api, event, want) in [
        (
            Api::Messages,
            r#"event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":null},"usage":{"output_tokens":2}}"#,
            (Cause::Aborted, 500),
        ),
        (
            Api::Messages,
            r#"event: error
data: {"type":"error","error":{"type":"internal_error","message":"EngineCore died"}}"#,
            (Cause::EngineDead, 500),
        ),
        (
            Api::Messages,
            r#"event: error
data: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            (Cause::Server, 503),
        ),
        (
            Api::Responses,
            r#"event: error
data: {"type":"error","code":"server_error","message":"EngineCore died","param":null}"#,
            (Cause::EngineDead, 500),
        ),
        (
            Api::Responses,
            r#"event: response.failed
data: {"response":{"status":"failed","error":{"code":"server_error","message":"bad"}},"type":"response.failed"}"#,
            (Cause::Server, 500),
        ),
        (Api::Responses, "event: response.failed\ndata: {}", (Cause::Server, 500)),
    ] {
        assert_eq!(cause(verdict(api, event)), Some(want), "{event}");
    }
}

#[test]
fn a_plain_answer_is_judged_by_status_and_body() {
    let judge = |api, status, body: &str| judge_plain(api, status, body.as_bytes()).verdict;
    let failed = |api, status, body| cause(judge(api, status, body));
    let chat = Api::ChatCompletions;
    assert_eq!(failed(chat, 503, ""), Some((Cause::Server, 503)));
    assert_eq!(failed(chat, 502, "<html>"), Some((Cause::Server, 502)));
    let aborted = r#"{"choices":[{"message":{"content":"a"},"finish_reason":"abort"}]}"#;
    assert_eq!(failed(chat, 200, aborted), Some((Cause::Aborted, 500)));
    let one_of_two = r#"{"choices":[{"finish_reason":"stop"},{"finish_reason":"abort"}]}"#;
    assert_eq!(failed(chat, 200, one_of_two), Some((Cause::Aborted, 500)));
    let said = r#"{"choices":[{"message":{"content":"\"finish_reason\":\"abort\""},"finish_reason":"stop"}]}"#;
    assert_eq!(judge(chat, 200, said), Verdict::Output);
    assert_eq!(failed(Api::Messages, 200, r#"{"content":[]}"#), Some((Cause::Aborted, 500)));
    let null = r#"{"content":[],"stop_reason":null}"#;
    assert_eq!(failed(Api::Messages, 200, null), Some((Cause::Aborted, 500)));
    let broken = r#"{"status":"failed","error":{"message":"EngineCore"}}"#;
    assert_eq!(failed(Api::Responses, 200, broken), Some((Cause::EngineDead, 500)));
    assert_eq!(judge(Api::Responses, 200, r#"{"status":"completed"}"#), Verdict::Output);
    assert_eq!(judge(chat, 404, r#"{"detail":"Not Found"}"#), Verdict::Client(404));
    assert_eq!(judge(chat, 501, ""), Verdict::Client(501));
    assert_eq!(judge(Api::Tokenize, 200, r#"{"count":4}"#), Verdict::Output);
    assert_eq!(judge(Api::Embeddings, 200, "not JSON"), Verdict::Preamble, "nothing to read");
}

#[test]
fn data_in_several_lines_is_one_value() {
    let event = SseEvent { name: b"", data: Some(Cow::Borrowed(b"{\"error\":\n{\"code\":503}}")) };
    let joined = SseEvent::read(b"data: {\"error\":\ndata: {\"code\":503}}\n\n");
    assert_eq!(joined, event);
    assert!(cause(judge_event(Api::Completions, &joined).verdict).is_some());
}
