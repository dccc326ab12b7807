//! The form that the chunks of one stream have in common.
//!
//! A server sends hundreds of chunks that differ in their text alone. To compare a chunk with the
//! one before costs a few instructions for each 32 bytes; to read its JSON costs several thousand.
//! So only a chunk of another form is read. Chunks with token ids differ in these, too. Pure.

use std::ops::Range;

use crate::answer::judge::{Facts, Verdict};
use crate::text::json::Cursor;

/// Longer chunks have no template.
const LONGEST: usize = 2 << 10;
/// The one form of an event that has a template: one line of data, and a blank line.
const START: &[u8] = b"data: ";
const END: &[u8] = b"\n\n";

/// A chunk of output that was read, without its text.
#[derive(Clone, Debug)]
pub(crate) struct ChunkTemplate {
    /// From the event's first byte to the quote before the text.
    before: Vec<u8>,
    /// From the quote after the text to the event's last byte, or to the bracket that opens the ids.
    after: Vec<u8>,
    /// From the bracket that closes the ids to the event's last byte, and the number of ids.
    after_ids: Option<(Vec<u8>, u64)>,
    facts: Facts,
}

/// An event that has a template's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) length: usize,
    /// The place of its text, between the quotes.
    pub(crate) text: Range<usize>,
    /// The place of its token ids, between the brackets.
    pub(crate) ids: Option<Range<usize>>,
}

impl ChunkTemplate {
    /// The template of an event with these facts; `None` if other events of its form may differ in
    /// more than their text.
    pub(crate) fn of(event: &[u8], facts: &Facts) -> Option<Self> {
        let text = facts.text.clone().filter(|text| !text.is_empty())?;
        let line = event.strip_prefix(START)?.strip_suffix(END)?;
        let plain = facts.verdict == Verdict::Output
            && facts.usage.is_none()
            && facts.choices().all(|choice| choice.finish.is_none());
        if !plain || event.len() > LONGEST || memchr::memchr2(b'\n', b'\r', line).is_some() {
            return None;
        }
        let (start, end) = (START.len() + text.start, START.len() + text.end);
        let ids = facts.places.token_ids.clone();
        let ids = ids.map(|at| START.len() + at.start..START.len() + at.end);
        let (after, after_ids) = match ids.filter(|at| event[at.start] == b'[') {
            None => (event[end + 1..].to_vec(), None),
            Some(at) if at.start < end => return None,
            Some(at) => {
                let count = facts.first?.tokens.filter(|count| *count > 0)?;
                let after = event[end + 1..=at.start].to_vec();
                (after, Some((event[at.end - 1..].to_vec(), count)))
            }
        };
        Some(Self { before: event[..start].to_vec(), after, after_ids, facts: facts.clone() })
    }

    /// The event at the beginning of `bytes`, if it differs from this template in its text and in
    /// as many ids alone. It has the same facts then, but for the places.
    #[inline]
    pub(crate) fn matches(&self, bytes: &[u8]) -> Option<Match> {
        if !bytes.starts_with(&self.before) {
            return None;
        }
        let mut cursor = Cursor::starting(bytes, self.before.len() - 1);
        let text = cursor.text().ok()??;
        let length = text.raw().len();
        if length == 0 || !bytes[cursor.at()..].starts_with(&self.after) {
            return None;
        }
        // The closing quote has been read.
        let text = cursor.at() - 1 - length..cursor.at() - 1;
        let end = cursor.at() + self.after.len();
        let Some((after, count)) = &self.after_ids else {
            return Some(Match { length: end, text, ids: None });
        };
        let ids = ids_length(&bytes[end..], *count)?;
        let whole = bytes[end + ids..].starts_with(after);
        whole.then(|| Match { length: end + ids + after.len(), text, ids: Some(end..end + ids) })
    }

    /// Whether its chunks have token ids.
    pub(crate) fn has_ids(&self) -> bool {
        self.after_ids.is_some()
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }
}

/// The length of `count` numbers with commas between them at the beginning of `bytes`.
#[inline]
fn ids_length(bytes: &[u8], count: u64) -> Option<usize> {
    let (mut left, mut digits) = (count, false);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'0'..=b'9' => digits = true,
            b',' if digits && left > 1 => (left, digits) = (left - 1, false),
            _ => return (digits && left == 1).then_some(at),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::answer::api::Api;
    use crate::answer::judge::judge_event;
    use crate::text::sse::SseEvent;

    fn judged(event: &str) -> Facts {
        judge_event(Api::ChatCompletions, &SseEvent::read(event.as_bytes()))
    }

    fn template(event: &str) -> Option<ChunkTemplate> {
        ChunkTemplate::of(event.as_bytes(), &judged(event))
    }

    fn chunk(delta: &str, rest: &str) -> String {
        format!("data: {{\"id\":\"1\",\"choices\":[{{\"index\":0,\"delta\":{delta}{rest}}}]}}\n\n")
    }

    fn length(template: &ChunkTemplate, event: &str) -> Option<usize> {
        template.matches(event.as_bytes()).map(|found| found.length)
    }

    #[test]
    fn a_chunk_with_as_many_token_ids_matches() {
        let with = |text: &str, ids: &str| {
            chunk(&format!(r#"{{"content":"{text}"}}"#), &format!(r#","token_ids":{ids}"#))
        };
        let known = template(&with("a", "[12]")).expect("a template");
        for (text, ids) in [("b", "[7]"), ("cc", "[123456]")] {
            let next = with(text, ids);
            let found = known.matches(next.as_bytes()).expect("a match");
            assert_eq!(found.length, next.len());
            assert_eq!(&next[found.text], text);
            assert_eq!(&next[found.ids.expect("ids")], &ids[1..ids.len() - 1]);
        }
        for ids in ["[]", "[1,2]", "null", "[x]", "[1"] {
            assert_eq!(length(&known, &with("b", ids)), None, "{ids}");
        }
        let two = template(&with("a", "[1,2]")).expect("a template");
        assert_eq!(length(&two, &with("b", "[3,44]")), Some(with("b", "[3,44]").len()));
        assert_eq!(length(&two, &with("b", "[3]")), None);
        assert_eq!(length(&two, &with("b", "[3,]")), None);
        assert!(template(&with("a", "[]")).is_none(), "a text without a token");
        let null = template(&with("a", "null")).expect("a template");
        assert_eq!(length(&null, &with("b", "null")), Some(with("b", "null").len()));
    }

    #[test]
    fn a_chunk_matches_if_only_its_text_differs() {
        let known = chunk(r#"{"content":" a"}"#, r#","finish_reason":null"#);
        let known = template(&known).expect("a template");
        let rest = r#","finish_reason":null"#;
        for text in ["b", " a", r"\n", r#"\u00e9\""#, "é", "longer than the text before"] {
            let next = chunk(&format!("{{\"content\":\"{text}\"}}"), rest);
            assert_eq!(length(&known, &next), Some(next.len()), "{text}");
            let found = known.matches(next.as_bytes()).expect("a match");
            assert_eq!((&next[found.text], found.ids), (text, None));
            let two = format!("{next}data: [DONE]\n\n");
            assert_eq!(length(&known, &two), Some(next.len()), "what follows is left");
            assert_eq!(known.matches(&next.as_bytes()[..next.len() - 1]), None, "cut");
        }
        for other in [
            chunk(r#"{"content":""}"#, rest),
            chunk(r#"{"content":null}"#, rest),
            chunk("{\"content\":\"\n\"}", rest),
            chunk(r#"{"content":"\x"}"#, rest),
            chunk(r#"{"content":"a","tool_calls":[]}"#, rest),
            chunk(r#"{"role":"assistant","content":"a"}"#, rest),
            chunk(r#"{"content":"a"}"#, r#","finish_reason":"stop""#),
            "data: [DONE]\n\n".to_owned(),
            String::new(),
        ] {
            assert_eq!(known.matches(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn only_a_chunk_of_output_alone_has_a_template() {
        let content = r#"{"content":"a"}"#;
        assert!(template(&chunk(content, "")).is_some());
        assert!(template(&chunk(r#"{"reasoning":"a"}"#, "")).is_some());
        assert!(template("data: {\"choices\":[{\"text\":\"a\"}]}\n\n").is_some());
        for none in [
            chunk(r#"{"content":""}"#, ""),
            chunk(content, r#","finish_reason":"stop""#),
            chunk(content, "").replace("]}", r#"],"usage":{"prompt_tokens":1}}"#),
            chunk(content, "").replace("]}", r#"],"error":{"message":"a"}}"#),
            chunk(content, "").replace('\n', "\r\n"),
            chunk(content, "").replace("data: ", "data:"),
            chunk(content, "").replace("data: ", "event: a\ndata: "),
            chunk(content, "").replace(",\"choices", ",\ndata: \"choices"),
            chunk(&format!("{{\"content\":\"{}\"}}", "a".repeat(LONGEST)), ""),
        ] {
            assert!(template(&none).is_none(), "{none}");
        }
    }

    fn chunks() -> impl Strategy<Value = String> {
        let text =
            prop::sample::select(vec!["", "a", r"\n", r"\x", "\"", "\n", "some longer text"]);
        let member = prop::sample::select(vec!["content", "reasoning", "role", "text", "x"]);
        let deltas = prop::collection::vec((member, text), 1..3);
        let tail = prop::sample::select(vec![
            "",
            r#","finish_reason":null"#,
            r#","finish_reason":"stop""#,
            r#","text":"b""#,
            r#","token_ids":[7]"#,
            r#","token_ids":[12,345]"#,
            r#","token_ids":null"#,
        ]);
        (deltas, tail).prop_map(|(members, tail)| {
            let members: Vec<_> =
                members.iter().map(|(name, text)| format!("\"{name}\":\"{text}\"")).collect();
            chunk(&format!("{{{}}}", members.join(",")), tail)
        })
    }

    proptest! {
        #[test]
        fn a_chunk_that_matches_has_the_facts_of_the_template(one in chunks(), other in chunks()) {
            if let Some(template) = template(&one)
                && let Some(found) = template.matches(other.as_bytes())
            {
                prop_assert_eq!(found.length, other.len());
                let facts = judged(&other);
                let known = template.facts.clone();
                let (text, places) = (facts.text.clone(), facts.places.clone());
                prop_assert_eq!(&Facts { text, places, ..known }, &facts);
            }
        }
    }
}
