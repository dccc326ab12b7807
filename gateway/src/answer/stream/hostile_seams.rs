//! Replicas that should go on with a stream, and send what no vLLM sends.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::seam_tests::{SeamClient, recorded};
use super::*;

/// A stream of one token that was cut behind it, and the bytes that its client has.
fn cut() -> (SeamClient, Vec<u8>) {
    let mut client = SeamClient::new(Api::ChatCompletions, true);
    let begin = r#"data: {"id":"a","choices":[{"index":0,"delta":{"content":"x"},"token_ids":[7]}],"prompt_token_ids":[1,2]}"#;
    assert_eq!(client.feed(&[format!("{begin}\n\n").into()]), None);
    assert_eq!(client.seam(), Ok(Rest::Tokens));
    let out = client.out.clone();
    (client, out)
}

const IDS: &str = r#""prompt_token_ids":[1,2,7]"#;
const ROLE: &str = r#""choices":[{"index":0,"delta":{"role":"assistant","content":""}}]"#;
const TEXT: &str = r#""choices":[{"index":0,"delta":{"content":"y"},"token_ids":[5],"logprobs":{"text_offset":[1]}}]"#;
const HUGE: &str =
    r#""usage":{"prompt_tokens":18446744073709551615,"completion_tokens":18446744073709551615}"#;
const USAGE: &str = r#""usage":{"prompt_tokens":3,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":9}}"#;

fn event(members: &[&str]) -> Bytes {
    format!("data: {{{}}}\n\n", members.join(",")).into()
}

#[test]
fn nothing_of_a_replica_goes_out_before_it_has_shown_that_it_goes_on() {
    for (case, event) in [
        ("an end", "data: [DONE]\n\n".into()),
        ("an end without a blank line", "data: [DONE]".into()),
        ("no choices", event(&[r#""id":"b""#])),
        ("no JSON", "data: hello\n\n".into()),
        ("a client's error", event(&[r#""error":{"message":"no","code":400}"#])),
        ("usage", event(&[r#""choices":[]"#, USAGE, IDS])),
        ("a comment", ": hello\n\n".into()),
        ("a role", event(&[ROLE, IDS])),
    ] {
        let (mut client, before) = cut();
        let failed = client.feed(&[event]).is_some();
        let ended = client.stream.end(Instant::now());
        ended.0.for_each(|piece| client.out.extend_from_slice(&piece));
        assert_eq!(client.out, before, "{case}");
        assert!(matches!(ended.1, StreamEnd::Failed(_)), "{case}");
        assert!(!client.stream.is_complete(), "{case}");
        let waits = ["an end without a blank line", "a comment", "a role"].contains(&case);
        assert_eq!(failed, !waits, "{case}");
    }
}

#[test]
fn counts_beyond_all_numbers_stay_numbers() {
    let (mut client, before) = cut();
    assert_eq!(client.feed(&[event(&[TEXT, IDS]), event(&[r#""choices":[]"#, HUGE])]), None);
    assert!(client.out.len() > before.len());
    assert_eq!(client.stream.meter.tokens().generated, u64::MAX);
}

#[test]
fn an_event_with_values_before_its_choices_or_with_more_choices_is_refused() {
    for members in [
        [USAGE, TEXT, IDS],
        [IDS, TEXT, USAGE],
        [r#""id":"b""#, USAGE, TEXT],
        // Two lists of choices.
        [ROLE, TEXT, IDS],
    ] {
        let (mut client, before) = cut();
        let failure = client.feed(&[event(&members)]).expect("it is refused");
        assert_eq!(failure.cause, Cause::NotContinued);
        assert_eq!(client.out, before);
    }
}

#[test]
fn events_without_text_are_kept_back_up_to_a_number_of_bytes() {
    let mut client = SeamClient::new(Api::ChatCompletions, false);
    let events = recorded("chat_full_stream");
    client.feed(&events[..4]);
    let before = client.out.len();
    let silent = String::from_utf8(events[4].to_vec()).expect("UTF-8");
    let long = format!("{{}},\"more\":\"{}\"", "x".repeat(150 << 10));
    let silent = Bytes::from(silent.replace("{\"content\":\"\"}", &long));
    client.feed(std::slice::from_ref(&silent));
    assert_eq!(client.out.len(), before, "it waits for a text");
    client.feed(std::slice::from_ref(&silent));
    assert_eq!(client.out.len(), before + 2 * silent.len(), "they take too much");
}

proptest! {
    #[test]
    fn no_order_of_members_is_a_panic_or_goes_out_unproven(
        events in vec(
            vec(select(vec![
                r#""id":"b""#, ROLE, TEXT, USAGE, HUGE, IDS, r#""choices":[]"#, r#""token_ids":[5]"#,
                r#""choices":null"#, r#""error":{"message":"no","code":400}"#,
            ]), 0..5),
            1..5,
        ),
        strip in any::<bool>(),
    ) {
        let (mut client, before) = cut();
        client.stream.stripped_usage.enabled = strip;
        for members in &events {
            let failed = client.feed(&[event(members)]).is_some();
            if !client.stream.is_resumed() {
                prop_assert_eq!(&client.out, &before);
            }
            if failed {
                break;
            }
        }
    }
}
