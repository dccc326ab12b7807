use super::*;
use proptest::prelude::*;
use std::path::Path;

/// A captured stream's payload, its chunked framing taken off.
fn payload(name: &str) -> Bytes {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../loadtests/fixtures/vllm").join(name);
    let raw = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let head = memmem::find(&raw, b"\r\n\r\n").expect("a response head") + 4;
    let (mut rest, mut out) = (&raw[head..], Vec::new());
    while let Some(line) = memmem::find(rest, b"\r\n") {
        let size = std::str::from_utf8(&rest[..line]).ok();
        let Some(size) = size.and_then(|size| usize::from_str_radix(size, 16).ok()) else { break };
        let end = (line + 2 + size).min(rest.len());
        out.extend_from_slice(&rest[line + 2..end]);
        rest = rest.get(end + 2..).unwrap_or_default();
    }
    out.into()
}

fn run(api: Api, bytes: &Bytes, cuts: &[usize]) -> (Vec<Step>, End, Usage) {
    let mut answer = Answer::new(api);
    let mut steps = Vec::new();
    let mut from = 0;
    for cut in cuts.iter().copied().chain([bytes.len()]) {
        steps.push(answer.feed(&bytes.slice(from..cut), Instant::now()));
        from = cut;
    }
    (steps, answer.end(), answer.usage())
}

#[test]
fn a_sound_stream_is_passed_and_complete() {
    for (name, api, tokens) in [
        ("a-default/chat_stream.resp", Api::ChatCompletions, None),
        ("a-default/chat_stream_usage.resp", Api::ChatCompletions, Some(8)),
        ("a-default/completion_stream_usage.resp", Api::Completions, Some(8)),
        ("a-default/messages_stream.resp", Api::Messages, Some(6)),
        ("a-default/responses_stream.resp", Api::Responses, Some(6)),
    ] {
        let (steps, end, usage) = run(api, &payload(name), &[]);
        assert_eq!((steps, end), (vec![Step::Pass], End::Complete), "{name}");
        if let Some(tokens) = tokens {
            assert!(usage.completion_tokens >= 1 && tokens > 0, "{name}: {usage:?}");
            assert!(usage.prompt_tokens > 0, "{name}: {usage:?}");
        }
    }
}

#[test]
fn a_full_queue_within_a_200_can_be_tried_elsewhere() {
    let bytes = payload("c-options/queue_full_stream.resp");
    let (steps, _, _) = run(Api::ChatCompletions, &bytes, &[]);
    assert!(matches!(&steps[0], Step::Retry(_)), "{steps:?}");
}

#[test]
fn an_abort_after_output_is_a_failure_in_spite_of_its_proper_end() {
    for name in ["b-sigterm-default/stream1.resp", "b2-sigterm-default-all-apis/stream1.resp"] {
        let bytes = payload(name);
        // Cut within the stream, so that the first part is committed.
        let (steps, end, _) = run(Api::ChatCompletions, &bytes, &[2000]);
        assert_eq!(steps[0], Step::Pass, "{name}");
        assert!(matches!(steps[1], Step::Failed(_)), "{name}: {:?}", steps[1]);
        assert!(matches!(end, End::Failed(_)), "{name}: {end:?}");
    }
}

#[test]
fn an_end_without_its_mark_is_truncated() {
    let bytes = payload("j-api-server-sigkill/stream1.resp");
    let (_, end, _) = run(Api::ChatCompletions, &bytes, &[]);
    assert_eq!(end, End::Truncated);
}

#[test]
fn the_words_of_an_abort_in_generated_text_mean_nothing() {
    let text = r#"data: {"choices":[{"index":0,"delta":{"content":"\"finish_reason\":\"abort\" {\"error\""},"finish_reason":null}]}"#;
    let bytes = Bytes::from(format!("{text}\n\ndata: [DONE]\n\n"));
    assert_eq!(run(Api::ChatCompletions, &bytes, &[]).1, End::Complete);
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_figures(cuts in prop::collection::vec(0..2200usize, 0..12)) {
        let bytes = payload("a-default/chat_stream_usage.resp");
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        let whole = run(Api::ChatCompletions, &bytes, &[]);
        let cut = run(Api::ChatCompletions, &bytes, &cuts);
        prop_assert_eq!((&whole.1, whole.2), (&cut.1, cut.2));
        // Held first, then passed, and never back.
        prop_assert!(cut.0.windows(2).all(|pair| pair[0] != Step::Pass || pair[1] == Step::Pass));
    }
}
