//! Streams that another replica continues, from the bytes of a real vLLM: whole answers, and the
//! answers to their continuations after each token.

use std::path::Path;

use serde_json::Value;

use super::*;
use crate::answer::meter::Tokens;
use crate::answer::token_ids::read_ids;

/// The events of a recorded stream.
pub(super) fn recorded(name: &str) -> Vec<Bytes> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../loadtests/fixtures/vllm/k-resume");
    let response = std::fs::read(folder.join(format!("{name}.resp"))).expect("a recording");
    let head = memchr::memmem::find(&response, b"\r\n\r\n").expect("a head") + 4;
    let mut rest = &response[head..];
    let mut events = Vec::new();
    while let Some(end) = memchr::memmem::find(rest, b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).expect("a size");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size > 0 {
            events.push(Bytes::copy_from_slice(&rest[end + 2..end + 2 + size]));
        }
        rest = &rest[(end + 4 + size).min(rest.len())..];
    }
    events
}

/// A stream as a client that did not ask for ids gets it, and the ids that were recorded.
pub(super) struct SeamClient {
    pub(super) stream: AnswerStream,
    pub(super) out: Vec<u8>,
}

impl SeamClient {
    pub(super) fn new(api: Api, strip: bool) -> Self {
        let mut stream = AnswerStream::new(api, false, None);
        stream.record_token_ids(strip);
        Self { stream, out: Vec::new() }
    }

    pub(super) fn feed(&mut self, events: &[Bytes]) -> Option<Failure> {
        for event in events {
            match self.stream.feed(event.clone(), Instant::now()) {
                Step::Hold => {}
                Step::Pass(out) => out.for_each(|piece| self.out.extend_from_slice(&piece)),
                Step::Retry(failure) => return Some(failure),
                Step::Failed(out, failure) => {
                    out.for_each(|piece| self.out.extend_from_slice(&piece));
                    return Some(failure);
                }
            }
        }
        None
    }

    /// Begins a seam where that is possible.
    pub(super) fn seam(&mut self) -> Result<Rest, NotContinued> {
        let rest = self.stream.cut()?;
        if rest == Rest::Tokens {
            self.stream.begin_seam();
        }
        Ok(rest)
    }

    pub(super) fn tokens(&self) -> Tokens {
        self.stream.meter.tokens()
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.out.clone()).expect("UTF-8")
    }

    /// The texts, ids and probabilities, each joined, and all else that the events have, in order.
    /// vLLM may put several tokens into one event.
    fn content(&self) -> (String, Vec<Value>, Vec<Value>, Vec<Value>) {
        let (mut text, mut ids, mut logprobs) = (String::new(), Vec::new(), Vec::new());
        let mut rest: Vec<Value> = Vec::new();
        for event in self.text().split("\n\n") {
            let data = event.strip_prefix("data: ").filter(|data| *data != "[DONE]");
            let Some(data) = data else { continue };
            let mut event: Value = serde_json::from_str(data).expect("JSON");
            if event["choices"] == Value::Array(Vec::new()) {
                rest.push(event);
                continue;
            }
            let choice = &mut event["choices"][0];
            for part in [&mut choice["delta"]["content"].take(), &mut choice["text"].take()] {
                text.push_str(part.as_str().unwrap_or_default());
            }
            let taken = choice["token_ids"].take();
            ids.extend(taken.as_array().cloned().unwrap_or_default());
            let taken = choice["logprobs"].take()["content"].take();
            logprobs.extend(taken.as_array().cloned().unwrap_or_default());
            // Usage of a part counts its tokens.
            if choice["finish_reason"].is_null() && !choice["index"].is_null() {
                event["usage"].take();
            }
            if rest.last() != Some(&event) {
                rest.push(event);
            }
        }
        assert!(self.text().ends_with("data: [DONE]\n\n"));
        (text, ids, logprobs, rest)
    }
}

fn whole(api: Api, strip: bool, name: &str) -> SeamClient {
    let mut client = SeamClient::new(api, strip);
    assert_eq!(client.feed(&recorded(name)), None);
    assert!(client.stream.is_complete());
    client
}

#[test]
fn a_client_that_did_not_ask_for_ids_gets_none() {
    let (chat, completion) = (Api::ChatCompletions, Api::Completions);
    for (api, name) in [
        (chat, "chat_full_stream"),
        (chat, "chat_logprobs_stream"),
        (chat, "chat_continuous_stream"),
        (chat, "chat_n2_stream"),
        (completion, "completions_full_stream"),
    ] {
        let asked = recorded(name).concat();
        assert_eq!(whole(api, false, name).out, asked, "{name}: nothing changes for one that did");
        let mut want = String::from_utf8(asked).expect("UTF-8");
        for field in ["\"prompt_token_ids\":[", "\"token_ids\":["] {
            while let Some(at) = want.find(field) {
                let start = at + field.len() - 1;
                let end = start + want[start..].find(']').expect("a list's end");
                want.replace_range(start..=end, "null");
            }
        }
        assert_eq!(whole(api, true, name).text(), want, "{name}");
    }
}

/// Both parts of an answer that is cut after `events` events, the first of which has no token in a
/// chat, and continued by the recording `rest`.
fn joined(api: Api, strip: bool, name: &str, events: usize, rest: &str) -> SeamClient {
    let mut client = SeamClient::new(api, strip);
    assert_eq!(client.feed(&recorded(name)[..events]), None);
    assert_eq!(client.seam(), Ok(Rest::Tokens), "{name} after {events}");
    assert!(!client.stream.token_record().expect("recorded").is_resumed());
    let failure = client.feed(&recorded(rest));
    assert_eq!(failure, None, "{name} after {events}, then {rest}");
    assert!(client.stream.token_record().expect("recorded").is_resumed());
    client
}

#[test]
fn an_answer_is_the_same_after_a_seam_behind_any_token() {
    let (chat, completion) = (Api::ChatCompletions, Api::Completions);
    let mut cuts: Vec<_> = (1..12)
        // Behind the fourth token, a character is not complete: the answer goes on from the third.
        .map(|cut| (cut + 1, format!("chat_resumed_{}_stream", if cut == 4 { 3 } else { cut })))
        .map(|(events, rest)| (chat, "chat_full_stream", events, rest))
        .collect();
    cuts.push((chat, "chat_logprobs_stream", 4, "chat_logprobs_resumed_stream".into()));
    cuts.push((chat, "chat_continuous_stream", 4, "chat_continuous_resumed_stream".into()));
    cuts.push((completion, "completions_full_stream", 5, "completions_resumed_5_stream".into()));
    for (api, name, events, rest) in cuts {
        for strip in [true, false] {
            let (want, got) = (whole(api, strip, name), joined(api, strip, name, events, &rest));
            assert_eq!(got.content(), want.content(), "{name} after {events} events");
            assert!(got.stream.is_complete());
            let (got, want) = (got.tokens(), want.tokens());
            assert_eq!((got.prompt, got.generated), (want.prompt, want.generated), "{name}");
            assert_eq!(got.finishes, want.finishes);
        }
    }
}

#[test]
fn an_answer_can_have_more_than_one_seam() {
    let mut client = SeamClient::new(Api::ChatCompletions, true);
    client.feed(&recorded("chat_full_stream")[..4]);
    client.seam().expect("complete");
    client.feed(&recorded("chat_resumed_3_stream")[..6]);
    client.seam().expect("complete");
    let ids = client.stream.token_record().expect("recorded").ids();
    assert_eq!(ids.answer_tokens(), 8);
    assert_eq!(client.feed(&recorded("chat_resumed_8_stream")), None);
    let want = whole(Api::ChatCompletions, true, "chat_full_stream");
    assert_eq!(client.text(), want.text());
    assert_eq!(client.tokens().generated, 12);
}

#[test]
fn a_cut_inside_a_character_that_the_client_has_a_part_of_is_refused() {
    let refused = Err(NotContinued::InsideCharacter);
    let mut client = SeamClient::new(Api::ChatCompletions, true);
    let mut events = recorded("chat_full_stream");
    events.truncate(5);
    let half = String::from_utf8(events[4].to_vec()).expect("UTF-8");
    events[4] = half.replace("\"content\":\"\"", "\"content\":\"a\u{fffd}\"").into();
    client.feed(&events);
    assert_eq!(client.seam(), refused, "the client has a part of the character");
}

#[test]
fn a_replica_that_begins_anew_is_not_passed_on() {
    let mut client = SeamClient::new(Api::ChatCompletions, true);
    client.feed(&recorded("chat_full_stream")[..6]);
    let before = client.out.clone();
    client.seam().expect("complete");
    let failure = client.feed(&recorded("chat_full_stream")).expect("another prompt");
    assert_eq!(failure.cause, Cause::NotContinued);
    assert_eq!(client.out, before);
    // Another one may go on.
    client.seam().expect("complete");
    let other = client.feed(&recorded("chat_resumed_5_stream"));
    assert_eq!(other, None);
    assert_eq!(client.text(), whole(Api::ChatCompletions, true, "chat_full_stream").text());
    // A server that reports no ids may have begun anew.
    let mut client = SeamClient::new(Api::ChatCompletions, true);
    client.feed(&recorded("chat_full_stream")[..6]);
    client.seam().expect("complete");
    let unasked = String::from_utf8(recorded("chat_resumed_5_stream").concat()).expect("UTF-8");
    let ids = unasked.find("[1,").expect("ids");
    let end = ids + unasked[ids..].find(']').expect("a list's end");
    let unasked = format!("{}null{}", &unasked[..ids], &unasked[end + 1..]);
    assert!(client.feed(&[unasked.into()]).is_some());
}

#[test]
fn an_answer_without_all_its_ids_is_not_continued() {
    let (chat, completion) = (Api::ChatCompletions, Api::Completions);
    for (api, name, want) in [
        (chat, "chat_n2_stream", NotContinued::Choices),
        (completion, "completions_full_stream", NotContinued::NoTokenIds),
    ] {
        let mut client = SeamClient::new(api, true);
        let mut events = recorded(name);
        if api == completion {
            let second = String::from_utf8(events[1].to_vec()).expect("UTF-8");
            events[1] = second.replace("[1344]", "null").into();
        }
        client.feed(&events[..5]);
        assert_eq!(client.seam(), Err(want), "{name}");
    }
    let mut client = SeamClient::new(chat, true);
    let mut events = recorded("chat_full_stream");
    let text = String::from_utf8(events[3].to_vec()).expect("UTF-8");
    events[3] = text.replace(r#""content":"compress""#, r#""tool_calls":[{"index":0}]"#).into();
    client.feed(&events[..5]);
    assert_eq!(client.text().matches("tool_calls").count(), 1, "nothing is kept back");
    assert_eq!(client.seam(), Err(NotContinued::ToolCall));
    let mut silent = AnswerStream::new(chat, true, None);
    assert_eq!(silent.cut(), Err(NotContinued::NoTokenIds), "nothing was asked for");
}

#[test]
fn an_aborted_choice_does_not_end_the_answer() {
    let events = recorded("chat_full_stream");
    let mut client = SeamClient::new(Api::ChatCompletions, true);
    client.feed(&events[..6]);
    let aborted = String::from_utf8(events[6].to_vec()).expect("UTF-8");
    let aborted = aborted.replace("\"finish_reason\":null", "\"finish_reason\":\"abort\"");
    let failure = client.feed(&[aborted.into()]).expect("an abort");
    assert_eq!(failure.cause, Cause::Aborted);
    assert_eq!(client.seam(), Ok(Rest::Tokens));
    let ids = client.stream.token_record().expect("recorded").ids();
    assert_eq!(ids.answer_tokens(), 5);
    assert_eq!(client.feed(&recorded("chat_resumed_5_stream")), None);
    assert_eq!(client.text(), whole(Api::ChatCompletions, true, "chat_full_stream").text());
}

#[test]
fn any_framing_gives_the_same_stream_and_the_same_ids() {
    let all: Bytes = recorded("chat_full_stream").concat().into();
    let want = whole(Api::ChatCompletions, true, "chat_full_stream");
    let ids = want.stream.token_record().expect("recorded").ids().all().to_vec();
    let mut known = Vec::new();
    let list = b"[1614,942,1551,163,268,56,921,1880,325,651,714,1357]";
    read_ids(list, &mut known).expect("a list");
    assert_eq!(ids[24..], known);
    for size in [1, 7, 100, 500, 5000] {
        let mut client = SeamClient::new(Api::ChatCompletions, true);
        let pieces: Vec<Bytes> = all.chunks(size).map(Bytes::copy_from_slice).collect();
        assert_eq!(client.feed(&pieces), None);
        assert_eq!(client.text(), want.text(), "in pieces of {size}");
        assert_eq!(client.stream.token_record().expect("recorded").ids().all(), ids);
    }
}

#[test]
fn a_chunk_with_nothing_but_ids_is_left_out() {
    let events = recorded("chat_full_stream");
    let silent = String::from_utf8(events[4].to_vec()).expect("UTF-8");
    let silent = silent.replace("{\"content\":\"\"}", "{}");
    let mut client = SeamClient::new(Api::ChatCompletions, true);
    client.feed(&events[..4]);
    let before = client.out.clone();
    client.feed(&[silent.clone().into()]);
    assert_eq!(client.out, before, "vLLM sends none unasked");
    assert_eq!(client.stream.token_record().expect("recorded").ids().answer_tokens(), 4);
    let mut client = SeamClient::new(Api::ChatCompletions, false);
    client.feed(&events[..4]);
    let before = client.out.len();
    client.feed(&[silent.clone().into()]);
    assert_eq!(client.out.len(), before, "it waits for the text");
    client.feed(&events[5..6]);
    let want = [silent.as_bytes(), &events[5]].concat();
    assert_eq!(client.out[before..], want, "a client that asked for ids gets them");
}

/// A recorded stream with other texts, one for each event that has one.
fn changed(name: &str, change: impl Fn(&str) -> String) -> Vec<Bytes> {
    let text = |event: Bytes| String::from_utf8(event.to_vec()).expect("UTF-8");
    recorded(name).into_iter().map(|event| change(&text(event)).into()).collect()
}

#[test]
fn an_end_counts_only_for_the_only_choice() {
    // The second choice has not begun when the first one ends.
    let events = recorded("chat_n2_stream");
    let first = |event: &&Bytes| memchr::memmem::find(event, br#""index":0"#).is_some();
    let end = |event: &Bytes| memchr::memmem::find(event, br#""finish_reason":""#).is_some();
    let end = events.iter().position(|event| first(&event) && end(event)).expect("an end");
    let mut client = SeamClient::new(Api::ChatCompletions, true);
    client.feed(&events[..=end]);
    assert_eq!(client.seam(), Err(NotContinued::Choices));
    // A choice whose ids are not known may have others beside it.
    let mut client = SeamClient::new(Api::ChatCompletions, true);
    let events = changed("chat_full_stream", |event| event.replace("[1614]", "null"));
    client.feed(&events[..events.len() - 2]);
    assert_eq!(client.seam(), Err(NotContinued::NoTokenIds));
}

#[test]
fn usage_that_has_come_is_not_sent_twice() {
    let events = recorded("chat_full_stream");
    let mut client = SeamClient::new(Api::ChatCompletions, true);
    client.feed(&events[..events.len() - 1]);
    assert_eq!(client.text().matches("\"usage\":{").count(), 1);
    assert_eq!(client.seam(), Ok(Rest::End));
    client.stream.conclude().for_each(|piece| client.out.extend_from_slice(&piece));
    assert_eq!(client.text(), whole(Api::ChatCompletions, true, "chat_full_stream").text());
}

#[test]
fn the_text_of_the_last_tokens_is_known_for_a_comparison() {
    let mut client = SeamClient::new(Api::ChatCompletions, true);
    // Speculative decoding: two tokens in one event, of which the second has no text yet.
    let events = changed("chat_full_stream", |event| event.replace("[1551]", "[1551,163]"));
    client.feed(&events[..4]);
    assert_eq!(client.seam(), Ok(Rest::Tokens));
    let record = client.stream.token_record().expect("recorded");
    assert!(record.ids().ends_with_several());
    assert_eq!(record.ids().answer_tokens(), 4);
    let shown = record.shown().shown().expect("a text");
    assert_eq!(shown.start, 24);
    assert_eq!(shown.with(""), " afterEDcompress");
    // A comparison shows that the last one is to be left out: the answer goes on from the third.
    client.stream.move_seam(1, "");
    assert_eq!(client.feed(&recorded("chat_resumed_3_stream")), None);
    let want = whole(Api::ChatCompletions, true, "chat_full_stream");
    assert_eq!(client.text(), want.text());
    assert_eq!(client.tokens().generated, 12);
}

#[test]
fn text_that_was_kept_back_goes_out_at_the_seam() {
    let mut client = SeamClient::new(Api::ChatCompletions, true);
    let events = changed("chat_full_stream", |event| event.replace("compress", "com"));
    client.feed(&events[..4]);
    assert_eq!(client.seam(), Ok(Rest::Tokens));
    client.stream.move_seam(0, "press");
    assert!(!client.text().contains("press"), "the new replica may fail");
    client.seam().expect("it failed");
    client.stream.move_seam(0, "press");
    assert_eq!(client.feed(&recorded("chat_resumed_3_stream")), None);
    let want = whole(Api::ChatCompletions, true, "chat_full_stream");
    assert_eq!(client.content().0, want.content().0);
    let shown = client.stream.token_record().expect("recorded").shown().shown();
    assert_eq!(shown.expect("a text").with(""), want.content().0);
}

#[test]
fn a_parser_that_takes_text_for_something_else_is_noticed_before_it_goes_out() {
    let reasoning = |event: &str| event.replace("\"content\":\"", "\"reasoning\":\"");
    let nothing = |event: &str| event.replace("{\"content\":\"\"}", "{}");
    let call = |event: &str| event.replace("\"content\":\"", "\"tool_calls\":[{}],\"content\":\"");
    type Change<'a> = &'a dyn Fn(&str) -> String;
    let same: Change<'_> = &|event: &str| event.to_owned();
    // The first event of the recording behind the cut has a token without text.
    for (case, before, after, misread) in [
        ("content", same, same, false),
        ("reasoning", &reasoning as Change<'_>, &reasoning as Change<'_>, false),
        ("reasoning as content", &reasoning, same, true),
        ("content as reasoning", same, &reasoning, true),
        ("text after tokens of which it made nothing", same, &nothing, true),
        ("a call", same, &call, false),
    ] {
        for strip in [true, false] {
            let mut client = SeamClient::new(Api::ChatCompletions, strip);
            client.feed(&changed("chat_full_stream", before)[..4]);
            let shown = client.out.clone();
            assert_eq!(client.seam(), Ok(Rest::Tokens), "{case}");
            let failure = client.feed(&changed("chat_resumed_3_stream", after));
            assert_eq!(failure.is_some(), misread, "{case}");
            if misread {
                assert_eq!(client.out, shown, "{case}: nothing of it goes out");
                assert_eq!(client.seam(), Err(NotContinued::Parser), "{case}");
            }
        }
    }
}

#[test]
fn offsets_of_a_completions_tokens_go_on() {
    let choice = |text: &str, token: &str, offset: u32, id: u32, prompt: &str| {
        Bytes::from(format!(
            "data: {{\"id\":\"cmpl-1\",\"choices\":[{{\"index\":0,\"text\":\"{text}\",\"logprobs\":\
             {{\"text_offset\":[{offset}],\"tokens\":[\"{token}\"]}},\"finish_reason\":null,\
             \"prompt_token_ids\":{prompt},\"token_ids\":[{id}]}}]}}\n\n"
        ))
    };
    // vLLM counts the tokens as it names them: by their texts, or by their ids.
    for (names, offsets) in [
        (["a\\u00e9", "b\\n", "c", "d"], [0, 2, 4, 5]),
        (["token_id:7", "token_id:8", "token_id:9", "token_id:10"], [0, 10, 20, 30]),
    ] {
        let mut client = SeamClient::new(Api::Completions, true);
        client.feed(&[
            choice("a\\u00e9", names[0], offsets[0], 7, "[1,2]"),
            choice("b\\n", names[1], offsets[1], 8, "null"),
        ]);
        assert_eq!(client.seam(), Ok(Rest::Tokens));
        client.feed(&[
            choice("c", names[2], 0, 9, "[1,2,7,8]"),
            choice("d", names[3], offsets[3] - offsets[2], 10, "null"),
        ]);
        for offset in offsets {
            let want = format!("\"text_offset\":[{offset}]");
            assert!(client.text().contains(&want), "{want} in {}", client.text());
        }
    }
}

#[test]
fn offsets_go_back_with_the_tokens_of_an_event() {
    let event = |offsets: &str, names: &str, ids: &str, prompt: &str| {
        Bytes::from(format!(
            "data: {{\"id\":\"cmpl-1\",\"choices\":[{{\"index\":0,\"text\":\"abc\",\"logprobs\":\
             {{\"text_offset\":{offsets},\"tokens\":{names}}},\"finish_reason\":null,\
             \"prompt_token_ids\":{prompt},\"token_ids\":{ids}}}]}}\n\n"
        ))
    };
    let mut client = SeamClient::new(Api::Completions, true);
    client.feed(&[event("[0,1,3]", r#"["a","bc","\u00e9\u00e9"]"#, "[7,8,9]", "[1,2]")]);
    assert_eq!(client.seam(), Ok(Rest::Tokens));
    client.stream.move_seam(2, "");
    client.feed(&[event("[0]", r#"["bc"]"#, "[8]", "[1,2,7]")]);
    assert!(client.text().contains("\"text_offset\":[1]"), "{}", client.text());
}
