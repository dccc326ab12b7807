//! An answer's event stream, judged as it comes: tokens, the end, errors, order.
//!
//! Pure: bytes in, tokens and a verdict out.

use std::borrow::Cow;

use memchr::memchr;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The way in which a stream broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Break {
    /// An event carried an error.
    ErrorEvent,
    /// The answer ended without a `finish_reason`.
    NoFinish,
    /// The answer finished, and `data: [DONE]` did not follow.
    NoDone,
    /// An event was not JSON of the expected form.
    Garbled,
    /// The answer was not an event stream.
    NotAStream,
    /// The connection failed in the middle of the answer.
    Connection,
}

impl Break {
    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ErrorEvent => "error event",
            Self::NoFinish => "no finish_reason",
            Self::NoDone => "no [DONE]",
            Self::Garbled => "not JSON",
            Self::NotAStream => "not an event stream",
            Self::Connection => "connection lost",
        }
    }
}

/// One chunk of an answer; of chats and completions alike, streamed or whole.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    error: Option<IgnoredAny>,
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning_content: Option<Cow<'a, str>>,
    tool_calls: Option<IgnoredAny>,
}

/// Reads one answer's events.
#[derive(Default)]
pub(crate) struct EventReader {
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    id: Option<String>,
    finished: bool,
    done: bool,
    failure: Option<Break>,
    misordered: bool,
    /// Tokens so far, and the check that each is its own number.
    tokens: u32,
    numbered: bool,
}

impl EventReader {
    pub(crate) fn new(numbered: bool) -> Self {
        Self { numbered, ..Self::default() }
    }

    /// Takes bytes as they come, and returns how many events with a token they complete.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> u32 {
        let before = self.tokens;
        while let Some(end) = memchr(b'\n', bytes) {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.partial.is_empty() {
                self.line(line);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole);
                whole.clear();
                self.partial = whole;
            }
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
        self.tokens - before
    }

    fn line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(data) = line.strip_prefix(b"data:") {
            self.event(data.strip_prefix(b" ").unwrap_or(data));
        }
    }

    fn event(&mut self, data: &[u8]) {
        if self.done {
            self.misordered = true;
        } else if data == b"[DONE]" {
            self.done = true;
        } else if let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data) {
            self.chunk(&chunk);
        } else {
            self.failure.get_or_insert(Break::Garbled);
        }
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) {
        if chunk.error.is_some() {
            self.failure.get_or_insert(Break::ErrorEvent);
            return;
        }
        match (&self.id, &chunk.id) {
            (None, Some(id)) => self.id = Some(id.clone().into_owned()),
            (Some(first), Some(id)) => self.misordered |= first != id,
            (_, None) => {}
        }
        let Some(choice) = chunk.choices.first() else { return };
        if let Some(text) = choice.token() {
            self.misordered |= self.finished;
            self.misordered |= self.numbered && text.trim_start().parse::<u32>() != Ok(self.tokens);
            self.tokens += 1;
        }
        self.finished |= choice.finish_reason.is_some();
    }

    /// The break, if the answer that ends here is broken.
    pub(crate) fn broken(&self) -> Option<Break> {
        match (self.failure, self.finished, self.done) {
            (Some(failure), ..) => Some(failure),
            (None, false, _) => Some(Break::NoFinish),
            (None, true, false) => Some(Break::NoDone),
            (None, true, true) => None,
        }
    }

    /// Whether a token came twice, not at all, or out of its place, as far as that can be seen: an
    /// event after the end, an event of another answer, a token that is not the next number.
    pub(crate) fn misordered(&self) -> bool {
        self.misordered
    }
}

impl Choice<'_> {
    /// The text of a token; empty for a part of a tool call.
    fn token(&self) -> Option<&str> {
        let Some(delta) = &self.delta else {
            return self.text.as_deref().filter(|text| !text.is_empty());
        };
        let texts = [&delta.content, &delta.reasoning, &delta.reasoning_content];
        let text = texts.into_iter().flatten().find(|text| !text.is_empty()).map(|text| &**text);
        text.or_else(|| delta.tool_calls.as_ref().map(|_| ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str =
        r#"data: {"id":"a","choices":[{"delta":{"role":"assistant","content":""}}]}"#;
    const DONE: &str = "data: [DONE]";

    fn token(text: &str) -> String {
        format!(
            r#"data: {{"id":"a","choices":[{{"delta":{{"content":"{text}"}},"finish_reason":null}}]}}"#
        )
    }

    fn finish() -> String {
        r#"data: {"id":"a","choices":[{"delta":{},"finish_reason":"stop"}]}"#.to_owned()
    }

    fn read(events: &[String]) -> EventReader {
        let mut reader = EventReader::new(true);
        reader.feed(format!("{}\n\n", events.join("\n\n")).as_bytes());
        reader
    }

    #[test]
    fn a_whole_stream_is_complete_wherever_it_is_cut() {
        let events = [ROLE.to_owned(), token(" 0"), token(" 1"), finish(), DONE.to_owned()];
        for separator in ["\n\n", "\r\n\r\n"] {
            let text = events.join(separator) + separator;
            for size in [1, 2, 7, 100, text.len()] {
                let mut reader = EventReader::new(true);
                let tokens: u32 =
                    text.as_bytes().chunks(size).map(|bytes| reader.feed(bytes)).sum();
                assert_eq!((tokens, reader.tokens), (2, 2), "{size}");
                assert_eq!((reader.broken(), reader.misordered()), (None, false), "{size}");
            }
        }
    }

    #[test]
    fn each_way_to_break_has_its_name() {
        let error = r#"data: {"error":{"message":"engine died"}}"#.to_owned();
        for (case, events, want) in [
            ("no finish", vec![token("0"), DONE.to_owned()], Break::NoFinish),
            ("cut off", vec![token("0")], Break::NoFinish),
            ("no [DONE]", vec![token("0"), finish()], Break::NoDone),
            ("an error", vec![token("0"), error, DONE.to_owned()], Break::ErrorEvent),
            ("not JSON", vec!["data: {".to_owned(), finish(), DONE.to_owned()], Break::Garbled),
        ] {
            assert_eq!(read(&events).broken(), Some(want), "{case}");
        }
    }

    #[test]
    fn a_token_out_of_its_place_is_seen() {
        let other = token("1").replace("\"a\"", "\"b\"");
        for (case, events) in [
            ("exchanged", vec![token("1"), token("0"), finish()]),
            ("missing", vec![token("0"), token("2"), finish()]),
            ("twice", vec![token("0"), token("0"), finish()]),
            ("after the finish", vec![token("0"), finish(), token("1")]),
            ("after [DONE]", vec![token("0"), finish(), DONE.to_owned(), finish()]),
            ("of another answer", vec![token("0"), other, finish()]),
        ] {
            assert!(read(&events).misordered(), "{case}");
        }
    }

    #[test]
    fn completions_reasoning_and_tool_calls_are_tokens_and_usage_is_not() {
        let mut reader = EventReader::new(false);
        let tokens = reader.feed(
            b"data: {\"choices\":[{\"text\":\"a\"}]}\n\n\
              data: {\"choices\":[{\"delta\":{\"reasoning\":\"hm\"}}]}\n\n\
              : a comment\n\n\
              data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0}]}}]}\n\n\
              data: {\"choices\":[],\"usage\":{\"completion_tokens\":3}}\n\n",
        );
        assert_eq!(tokens, 3);
    }
}
