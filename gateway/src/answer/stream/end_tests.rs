//! Answers that the gateway ends in place of a replica that is gone.

use super::seam_tests::{SeamClient, recorded};
use super::*;

#[test]
fn the_gateway_ends_an_answer_of_which_only_the_end_is_missing() {
    for (strip, usage) in [(true, false), (false, true)] {
        let events = recorded("chat_full_stream");
        let last = events.len() - 2;
        assert!(events[last].starts_with(b"data: {") && events[last + 1] == "data: [DONE]\n\n");
        let mut client = SeamClient::new(Api::ChatCompletions, true);
        client.stream.stripped_usage.enabled = strip;
        client.feed(&events[..last]);
        assert_eq!(client.seam(), Ok(Rest::End));
        client.stream.conclude().for_each(|piece| client.out.extend_from_slice(&piece));
        assert!(client.stream.is_complete());
        let text = client.text();
        assert!(text.ends_with("data: [DONE]\n\n"));
        assert_eq!(text.matches("\"finish_reason\":\"length\"").count(), 1, "{text}");
        let counts = r#""choices":[],"usage":{"prompt_tokens":24,"total_tokens":36,"completion_tokens":12}}"#;
        assert_eq!(text.contains(counts), usage, "{text}");
        let tokens = client.tokens();
        assert_eq!((tokens.prompt, tokens.generated), (Some(24), 12));
    }
}

#[test]
fn a_call_that_has_ended_ends_the_answer_if_only_the_mark_is_missing() {
    let call = r#"data: {"id":"a","choices":[{"index":0,"delta":{"tool_calls":[{"index":0}]},"finish_reason":null,"token_ids":[7]}],"prompt_token_ids":[1,2]}"#;
    let end = r#"data: {"id":"a","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls","token_ids":[8]}]}"#;
    for (usage_wanted, want) in [(false, Ok(Rest::End)), (true, Err(NotContinued::ToolCall))] {
        let mut client = SeamClient::new(Api::ChatCompletions, true);
        client.stream.stripped_usage.enabled = !usage_wanted;
        let both = [call, end].map(|event| Bytes::from(format!("{event}\n\n")));
        client.feed(&both[..1]);
        assert_eq!(client.seam(), Err(NotContinued::ToolCall), "it has not ended");
        client.feed(&both[1..]);
        assert_eq!(client.seam(), want);
        if want.is_ok() {
            let before = client.tokens();
            client.stream.conclude().for_each(|piece| client.out.extend_from_slice(&piece));
            assert!(client.text().ends_with("data: [DONE]\n\n"), "{}", client.text());
            assert_eq!(client.text().matches("tool_calls\"").count(), 2, "{}", client.text());
            assert_eq!(client.tokens().generated, before.generated);
        }
    }
}

#[test]
fn the_gateways_own_end_has_the_servers_fingerprint() {
    let usage = br#"{"usage":{},"system_fingerprint":"vllm-0.32.0-a"}"#;
    for strip in [true, false] {
        let events = recorded("chat_full_stream");
        let fingerprint = Fingerprint::read(usage);
        let mut stream = AnswerStream::new(Api::ChatCompletions, strip, fingerprint);
        stream.record_token_ids(true);
        let mut client = SeamClient { stream, out: Vec::new() };
        client.feed(&events[..events.len() - 3]);
        assert_eq!(client.seam(), Ok(Rest::Tokens));
        client.stream.conclude().for_each(|piece| client.out.extend_from_slice(&piece));
        let text = client.text();
        assert_eq!(text.matches("system_fingerprint").count(), 1, "{text}");
        let last = text.split("\n\n").filter(|event| event.starts_with("data: {")).last();
        assert!(last.is_some_and(|last| last.contains("vllm-0.32.0-a")), "{text}");
    }
}
