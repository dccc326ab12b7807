//! The tokens of a session, as its replica reports them message by message.
//!
//! vLLM's `transcription.done` has `usage` at the top, OpenAI's `response.done` within `response`.
//! Each report covers one answer, and a session has many. Deltas are counted until a report covers
//! them, so an answer that breaks off counts by its events, like a stream.
//!
//! Pure.

use crate::answer::judge::{TokenUsage, usage};
use crate::answer::meter::Tokens;
use crate::text::json::{Cursor, JsonError};

/// The tokens of one session so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    prompt: Option<u64>,
    cached: Option<u64>,
    generated: u64,
    /// Deltas that no report covers yet.
    deltas: u64,
}

/// The parts of one message that count tokens.
#[derive(Default)]
struct MessageUsage {
    usage: Option<TokenUsage>,
    is_delta: bool,
}

impl Tally {
    /// Adds one message. True if it changed the tally.
    pub(super) fn add(&mut self, message: &[u8]) -> bool {
        let Ok(found) = read(message) else { return false };
        if let Some(usage) = found.usage {
            let sum = |sum: Option<u64>, more: u64| Some(sum.unwrap_or(0).saturating_add(more));
            self.prompt = sum(self.prompt, usage.prompt);
            self.cached = usage.cached.map_or(self.cached, |more| sum(self.cached, more));
            self.generated = self.generated.saturating_add(usage.generated);
            self.deltas = 0;
        }
        self.deltas += u64::from(found.is_delta);
        found.is_delta || found.usage.is_some()
    }

    pub(super) fn tokens(&self) -> Tokens {
        Tokens {
            prompt: self.prompt,
            cached: self.cached,
            generated: self.generated.saturating_add(self.deltas),
            exact: self.prompt.is_some() && self.deltas == 0,
            finishes: Vec::new(),
        }
    }
}

fn read(message: &[u8]) -> Result<MessageUsage, JsonError> {
    let (mut cursor, mut found) = (Cursor::new(message), MessageUsage::default());
    read_object(&mut cursor, &mut found, true)?;
    cursor.end()?;
    Ok(found)
}

/// Reads the event, or the `response` in it.
fn read_object(
    cursor: &mut Cursor<'_>,
    found: &mut MessageUsage,
    top: bool,
) -> Result<(), JsonError> {
    let mut first = true;
    if !cursor.enter_object()? {
        return Ok(());
    }
    while let Some(key) = cursor.next_key(&mut first)? {
        match key.text.raw() {
            b"type" if top => {
                found.is_delta = cursor.text()?.is_some_and(|kind| kind.raw().ends_with(b".delta"));
            }
            b"usage" => found.usage = usage(cursor)?.or(found.usage),
            b"response" if top => read_object(cursor, found, false)?,
            _ => cursor.skip()?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELTA: &str = r#"{"type":"transcription.delta","delta":"a \"usage\": b"}"#;
    const DONE: &str = r#"{"type":"transcription.done","text":"ab","usage":{"prompt_tokens":7,"total_tokens":12,"completion_tokens":5}}"#;
    const RESPONSE: &str = r#"{"type":"response.done","event_id":"e","response":{"id":"r","status":"completed","output":[{"usage":1}],"usage":{"total_tokens":9,"input_tokens":6,"output_tokens":3,"input_token_details":{"text_tokens":2,"audio_tokens":4,"cached_tokens":2},"output_token_details":{"text_tokens":3}}}}"#;

    #[test]
    fn each_report_adds_to_the_session_and_covers_the_deltas_before_it() {
        let tokens = |prompt, cached, generated, exact| Tokens {
            prompt,
            cached,
            generated,
            exact,
            finishes: Vec::new(),
        };
        for (case, messages, changes, want) in [
            (
                "nothing yet",
                &[r#"{"type":"session.created"}"#][..],
                0,
                tokens(None, None, 0, false),
            ),
            ("two deltas", &[DELTA, DELTA], 2, tokens(None, None, 2, false)),
            ("covered", &[DELTA, DELTA, DONE], 3, tokens(Some(7), None, 5, true)),
            ("broken off", &[DELTA, DONE, DELTA], 3, tokens(Some(7), None, 6, false)),
            ("OpenAI's", &[RESPONSE], 1, tokens(Some(6), Some(2), 3, true)),
            ("several", &[DONE, RESPONSE, DONE], 3, tokens(Some(20), Some(2), 13, true)),
            (
                "no usage",
                &[r#"{"type":"transcription.done","usage":null}"#],
                0,
                tokens(None, None, 0, false),
            ),
            ("not an event", &["{", "", "[]", "7"], 0, tokens(None, None, 0, false)),
        ] {
            let mut tally = Tally::default();
            let changed = messages.iter().filter(|message| tally.add(message.as_bytes())).count();
            assert_eq!((changed, tally.tokens()), (changes, want), "{case}");
        }
    }
}
