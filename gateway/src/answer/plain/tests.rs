use http::Method;
use proptest::prelude::*;

use super::*;
use crate::wire::head::HeadReader;

const OK: AnswerHead = AnswerHead { status: StatusCode::OK, json: true, framed: true };
const UNFRAMED: AnswerHead = AnswerHead { framed: false, ..OK };

fn ended(head: AnswerHead, body: &str) -> PlainEnd {
    let mut answer = PlainAnswer::new(Api::ChatCompletions, head, 1 << 20);
    answer.feed(Bytes::copy_from_slice(body.as_bytes()));
    answer.end()
}

/// The ends of the same answer: kept whole, and passed on in pieces of this size.
fn both(api: Api, body: &str, size: usize) -> (PlainEnd, PlainEnd) {
    let whole = {
        let mut answer = PlainAnswer::new(api, OK, usize::MAX);
        answer.feed(Bytes::copy_from_slice(body.as_bytes()));
        answer.end()
    };
    let mut answer = PlainAnswer::new(api, OK, 0);
    let mut out = Vec::new();
    let mut take = |pieces: Rope| pieces.for_each(|piece| out.extend_from_slice(&piece));
    for piece in body.as_bytes().chunks(size) {
        take(answer.feed(Bytes::copy_from_slice(piece)));
        take(answer.commit());
    }
    assert_eq!(out, body.as_bytes(), "every byte goes out");
    (whole, answer.end())
}

const USAGE: &str = r#""usage":{"prompt_tokens":7,"completion_tokens":9,"prompt_tokens_details":{"cached_tokens":4}}"#;

#[test]
fn a_long_answers_tokens_are_read_at_any_place() {
    let text = "word \\\"usage\\\":{\\\"prompt_tokens\\\":1} \\\\\\u00e9 {[".repeat(400);
    let choices = format!(
        r#""choices":[{{"index":0,"message":{{"content":"{text}","usage":{{"prompt_tokens":3}}}},"finish_reason":"length"}},{{"index":1,"message":{{}},"finish_reason":"stop"}}]"#
    );
    let numbers =
        r#"{"12":{"logprob":-0.5,"decoded_token":"}"},"usage":{"logprob":-1}},"#.repeat(300);
    let logprobs = format!(r#""prompt_logprobs":[null,{numbers}null]"#);
    for members in [
        [choices.as_str(), USAGE, &logprobs],
        [USAGE, &choices, &logprobs],
        [&logprobs, USAGE, &choices],
        [&logprobs, &choices, USAGE],
    ] {
        for (space, body) in [
            ("compact", format!("{{\"id\":\"a\",{}}}", members.join(","))),
            (
                "spaced",
                format!(" {{ \"id\" : 1 ,\n{} }} \n", members.join(" , ").replace("\":", "\" : ")),
            ),
        ] {
            for size in [1, 7, 4096] {
                let (whole, passed) = both(Api::ChatCompletions, &body, size);
                let (PlainEnd::Answered(_, whole), PlainEnd::Answered(_, passed)) = (whole, passed)
                else {
                    panic!("answered")
                };
                assert_eq!(whole, passed, "{space}, in pieces of {size}");
                let counts =
                    (passed.prompt, passed.cached, passed.generated, passed.finishes.len());
                assert_eq!(counts, (Some(7), Some(4), 9, 2));
            }
        }
    }
}

#[test]
fn a_long_answer_of_other_apis_is_judged_as_a_short_one() {
    let numbers = "0.125,".repeat(4096);
    let text = "a".repeat(5000);
    for (api, body) in [
        (
            Api::Embeddings,
            format!(r#"{{"data":[{{"embedding":[{numbers}1]}}],"usage":{{"prompt_tokens":7}}}}"#),
        ),
        (Api::Pooling, format!(r#"{{"usage":{{"prompt_tokens":7}},"data":[[{numbers}1]]}}"#)),
        (
            Api::Messages,
            format!(
                r#"{{"content":[{{"text":"{text}"}}],"stop_reason":"end_turn","usage":{{"input_tokens":5,"cache_read_input_tokens":2,"output_tokens":3}}}}"#
            ),
        ),
        (
            Api::Responses,
            format!(
                r#"{{"output":[{{"text":"{text}"}}],"status":"incomplete","usage":{{"input_tokens":7,"output_tokens":3}}}}"#
            ),
        ),
        (Api::ChatCompletions, format!(r#"["usage",{{"prompt_tokens":7}},"{text}"]"#)),
    ] {
        let (whole, passed) = both(api, &body, 1000);
        let (PlainEnd::Answered(_, whole), PlainEnd::Answered(_, passed)) = (whole, passed) else {
            panic!("answered: {api:?}")
        };
        assert_eq!(whole, passed, "{api:?}");
    }
    let aborted = format!(
        r#"{{"choices":[{{"message":{{"content":"{text}"}},"finish_reason":"abort"}}],{USAGE}}}"#
    );
    let (whole, passed) = both(Api::ChatCompletions, &aborted, 1000);
    assert_eq!(whole, PlainEnd::Retry(Failure::aborted()));
    assert_eq!(passed, whole, "an abort in an answer that has gone out is a failure, too");
}

#[test]
fn json_that_is_cut_off_is_not_an_answer() {
    let whole = r#" {"id":"a\\","choices":[{"text":"a }\"]{","finish_reason":"stop"}],"n":[[1.5e3,true]]} "#;
    let end = whole.trim_end().len();
    for head in [OK, UNFRAMED] {
        for at in 2..end {
            let PlainEnd::Retry(failure) = ended(head, &whole[..at]) else {
                panic!("{at}: an answer")
            };
            let want = if head.framed { Cause::Server } else { Cause::Truncated };
            assert_eq!(failure.cause, want, "cut at {at}");
        }
        assert!(matches!(ended(head, whole), PlainEnd::Answered(..)));
        assert!(matches!(ended(head, &whole[..end]), PlainEnd::Answered(..)));
        let other = AnswerHead { json: false, ..head };
        assert!(matches!(ended(other, "[Music] {"), PlainEnd::Answered(..)), "not JSON");
        for odd in ["null", "\"text\"", "12", "tru", "not JSON", "{\"a\":nul}"] {
            assert!(matches!(ended(head, odd), PlainEnd::Answered(..)), "goes through: {odd}");
        }
    }
    assert!(
        matches!(ended(UNFRAMED, ""), PlainEnd::Retry(_)),
        "the connection ended after the head"
    );
    assert!(matches!(ended(OK, ""), PlainEnd::Answered(..)), "its length is zero");
}

#[test]
fn a_whole_refusal_goes_to_the_client() {
    for status in [400, 404, 422, 501] {
        let status = StatusCode::from_u16(status).expect("a status");
        let head = AnswerHead { status, ..UNFRAMED };
        let body = r#"{"detail":"Not Found"}"#;
        assert_eq!(ended(head, body), PlainEnd::Client(Bytes::from(body)), "{status}");
        assert!(matches!(ended(head, &body[..9]), PlainEnd::Retry(_)), "{status}");
    }
}

#[test]
fn a_head_shows_how_its_body_ends_and_whether_it_is_json() {
    for (status, headers, json, framed) in [
        (200, vec![("content-type", "application/json")], true, false),
        (
            200,
            vec![("content-type", "Application/JSON; charset=utf-8"), ("content-length", "2")],
            true,
            true,
        ),
        (
            200,
            vec![("content-type", "application/problem+json"), ("transfer-encoding", "chunked")],
            true,
            true,
        ),
        (200, vec![("content-type", "text/plain; a=application/json")], false, false),
        (200, vec![], true, false),
        (204, vec![], true, true),
        (304, vec![("content-type", "audio/wav")], false, true),
    ] {
        let lines = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let text = format!("HTTP/1.1 {status} x\r\n{}\r\n", lines.collect::<String>());
        let start = HeadReader::default().feed(text.as_bytes(), &Method::POST);
        let head = start.expect("valid").expect("complete").head;
        let head = AnswerHead::new(&head, head.content_type());
        assert_eq!((head.json, head.framed), (json, framed), "{status} {headers:?}");
    }
}

#[test]
fn the_copy_of_a_long_answer_is_bounded() {
    let choice = r#"{"index":0,"message":{"content":"x"},"finish_reason":"stop"},"#;
    let many = format!(r#"{{"choices":[{}1],{USAGE}}}"#, choice.repeat(20_000));
    let text = format!(r#"{{"type":"{}",{USAGE}}}"#, "a".repeat(1 << 20));
    let endless = "}".repeat(1 << 20);
    for body in [many, text] {
        let mut abridged = Abridged::default();
        abridged.feed(body.as_bytes());
        assert!(abridged.kept().len() <= 256 << 10, "{}", abridged.kept().len());
        let (_, passed) = both(Api::ChatCompletions, &body, 1 << 16);
        let PlainEnd::Answered(_, tokens) = passed else { panic!("answered") };
        assert_eq!(tokens.prompt, Some(7), "only the member that is too large is left out");
    }
    let mut abridged = Abridged::default();
    abridged.feed(endless.as_bytes());
    assert!(abridged.kept().len() < 16);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_copy_does_not_depend_on_how_the_bytes_are_cut(
        text in "[\\[\\]{}:,\"\\\\ a1]{0,60}|(\\{\"(usage|choices|x)\":(\\{\"a\":1\\}|\\[1,\"\\\\\"\"\\]|\"b\"|2),?){0,6}",
        size in 1..9usize,
    ) {
        let read = |size: usize| {
            let mut abridged = Abridged::default();
            text.as_bytes().chunks(size).for_each(|piece| abridged.feed(piece));
            (abridged.kept().to_vec(), abridged.is_open())
        };
        prop_assert_eq!(read(size), read(usize::MAX));
    }

    #[test]
    fn a_value_is_open_everywhere_before_its_end(value in json(), at in any::<prop::sample::Index>()) {
        let text = serde_json::json!({"usage": {"prompt_tokens": 1}, "x": value}).to_string();
        prop_assert!(!is_cut(text.as_bytes()));
        let at = 1 + at.index(text.len() - 1);
        prop_assert!(is_cut(&text.as_bytes()[..at]), "{}", &text.get(..at).unwrap_or_default());
    }
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((".{0,6}", inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}
