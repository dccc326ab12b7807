//! The form that the chunks of one stream have in common.
//!
//! A server sends hundreds of chunks that differ in their text alone. To compare a chunk with the
//! one before costs a few instructions for each 32 bytes; to read its JSON costs several thousand.
//! So only a chunk of another form is read. Pure.

use crate::answer::judge::{Facts, Verdict};
use crate::text::json::Cursor;

/// Longer chunks have no template.
const LONGEST: usize = 2 << 10;
/// The one form of an event that has a template: one line of data, and a blank line.
const START: &[u8] = b"data: ";
const END: &[u8] = b"\n\n";

/// A chunk of output that was read, without its text.
#[derive(Debug)]
pub(crate) struct ChunkTemplate {
    /// From the event's first byte to the quote before the text.
    before: Vec<u8>,
    /// From the quote after the text to the event's last byte.
    after: Vec<u8>,
    facts: Facts,
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
        let (before, after) = (event[..start].to_vec(), event[end + 1..].to_vec());
        Some(Self { before, after, facts: facts.clone() })
    }

    /// The length of the event at the beginning of `bytes`, if it differs from this template in its
    /// text alone. It has the same facts then.
    pub(crate) fn matches(&self, bytes: &[u8]) -> Option<usize> {
        if !bytes.starts_with(&self.before) {
            return None;
        }
        let mut cursor = Cursor::starting(bytes, self.before.len() - 1);
        let text = cursor.text().ok()??;
        let whole = !text.raw().is_empty() && bytes[cursor.at()..].starts_with(&self.after);
        whole.then(|| cursor.at() + self.after.len())
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }
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

    #[test]
    fn a_chunk_matches_if_only_its_text_differs() {
        let known = chunk(r#"{"content":" a"}"#, r#","finish_reason":null"#);
        let known = template(&known).expect("a template");
        let rest = r#","finish_reason":null"#;
        for text in ["b", " a", r"\n", r#"\u00e9\""#, "é", "longer than the text before"] {
            let next = chunk(&format!("{{\"content\":\"{text}\"}}"), rest);
            assert_eq!(known.matches(next.as_bytes()), Some(next.len()), "{text}");
            let two = format!("{next}data: [DONE]\n\n");
            assert_eq!(known.matches(two.as_bytes()), Some(next.len()), "what follows is left");
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
                && let Some(length) = template.matches(other.as_bytes())
            {
                prop_assert_eq!(length, other.len());
                let facts = judged(&other);
                prop_assert_eq!(&Facts { text: facts.text.clone(), ..template.facts.clone() }, &facts);
            }
        }
    }
}
