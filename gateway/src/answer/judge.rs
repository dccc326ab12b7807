//! Judges an answer, event by event or as a whole: is it output, an end, or a failure in disguise?
//!
//! A 200 of vLLM proves nothing. vLLM sends it before it admits the request, so a full queue or a
//! dead engine is an event in the stream, followed by a proper end; and a server that stops calls
//! an unfinished answer complete, with `finish_reason` "abort". Generated text may contain the
//! words of an error, so only the structure counts.
//!
//! Pure: each event is judged on its own. `stream` knows the events before it.

mod fields;

use std::ops::Range;

use crate::answer::api::{Api, EndMark};
use crate::answer::failure::{Cause, Failure};
use crate::text::json::JsonError;
use crate::text::sse::SseEvent;
pub(crate) use fields::usage;
use fields::{AnswerFields, read};

/// The meaning of an event for its relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not a part of the answer: a comment, or an event that announces it.
    Preamble,
    /// A part of the answer.
    Output,
    /// The chunk that has only usage.
    UsageOnly,
    /// The stream's end mark.
    End,
    /// The client's own error: passed on unchanged.
    Client(u16),
    /// The replica failed.
    Failed(Failure),
}

/// Why the model stopped generating.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Finish {
    Stop,
    Length,
    ToolCalls,
    Abort,
    Error,
    Other,
}

/// Token counts as the server reported them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenUsage {
    pub(crate) prompt: u64,
    pub(crate) generated: u64,
    /// Prompt tokens found in the prefix cache; `None` where the server does not report them.
    pub(crate) cached: Option<u64>,
}

/// The facts about one of the answers that a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) index: u64,
    /// Whether it carries generated text, tool calls or reasoning, even if only an unfinished
    /// character.
    pub(crate) output: bool,
    /// Its tokens, where their ids were requested.
    pub(crate) tokens: Option<u64>,
    pub(crate) finish: Option<Finish>,
    /// Whether its delta is an object without members.
    pub(crate) bare: bool,
    /// Whether its delta has something else than text and a role: a tool call, for example.
    pub(crate) beyond_text: bool,
    /// The field of its text, if it has any.
    pub(crate) key: TextKey,
    /// Whether it carries probabilities of tokens.
    pub(crate) logprobs: bool,
}

/// The field that a generated text stands in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TextKey {
    /// The delta has none: a role, a tool call or an end, for example.
    #[default]
    None,
    Content,
    Reasoning,
    Refusal,
    /// One delta has texts in several fields.
    Several,
}

/// Places in an event's data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// Behind the bracket that opens the list of choices.
    pub(crate) choices: Option<usize>,
    /// The value of `token_ids`, in the last choice.
    pub(crate) token_ids: Option<Range<usize>>,
    /// The value of `prompt_token_ids`, at the top or in the last choice.
    pub(crate) prompt_token_ids: Option<Range<usize>>,
    /// The value of `logprobs`, in the last choice.
    pub(crate) logprobs: Option<Range<usize>>,
    /// The value of `usage`, if it is an object.
    pub(crate) usage: Option<Range<usize>>,
}

impl Places {
    /// The places of all values but the list of choices.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Range<usize>> {
        let Self { choices: _, token_ids, prompt_token_ids, logprobs, usage } = self;
        [token_ids, prompt_token_ids, logprobs, usage].into_iter().flatten()
    }
}

/// Everything that is read of an event or a plain body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) verdict: Verdict,
    pub(crate) usage: Option<TokenUsage>,
    /// The usage is that of the event's choice so far, not of the whole answer.
    pub(crate) usage_of_choice: bool,
    /// The first choice. Nearly always it is the only one, and needs no memory of its own.
    pub(crate) first: Option<Choice>,
    pub(crate) more: Vec<Choice>,
    /// The place of a generated text in the data, between its quotes. With another text there, the
    /// other facts are the same, unless one of the two texts is empty.
    pub(crate) text: Option<Range<usize>>,
    pub(crate) places: Places,
}

impl Facts {
    /// The facts of a body that can't be read.
    pub(crate) fn nothing() -> Self {
        Self::of(Verdict::Preamble)
    }

    fn of(verdict: Verdict) -> Self {
        Self {
            verdict,
            usage: None,
            usage_of_choice: false,
            first: None,
            more: Vec::new(),
            text: None,
            places: Places::default(),
        }
    }

    pub(crate) fn choices(&self) -> impl Iterator<Item = &Choice> {
        self.first.iter().chain(&self.more)
    }

    fn add(&mut self, choice: Choice) {
        match self.first {
            None => self.first = Some(choice),
            Some(_) => self.more.push(choice),
        }
    }

    fn finished(&self, finish: Finish) -> bool {
        self.choices().any(|choice| choice.finish == Some(finish))
    }
}

impl Finish {
    fn of(reason: &[u8]) -> Self {
        match reason {
            b"stop" | b"end_turn" | b"stop_sequence" => Self::Stop,
            b"length" | b"max_tokens" | b"max_output_tokens" => Self::Length,
            b"tool_calls" | b"function_call" | b"tool_use" => Self::ToolCalls,
            b"abort" => Self::Abort,
            b"error" => Self::Error,
            _ => Self::Other,
        }
    }

    pub(crate) const ALL: [Self; 6] =
        [Self::Stop, Self::Length, Self::ToolCalls, Self::Abort, Self::Error, Self::Other];

    /// Its label in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Abort => "abort",
            Self::Error => "error",
            Self::Other => "other",
        }
    }
}

/// Judges one event of a stream that came with status 200.
pub(crate) fn judge_event(api: Api, event: &SseEvent<'_>) -> Facts {
    let Some(data) = event.data.as_deref() else { return Facts::of(Verdict::Preamble) };
    let facts = match api.end_mark() {
        Some(EndMark::MessageStop) => message_event(event.name.trim_ascii(), data),
        Some(EndMark::Response) => response_event(event.name.trim_ascii(), data),
        Some(EndMark::Done) | None if is_done(data) => return Facts::of(Verdict::End),
        Some(EndMark::Done) | None => chunk(data),
    };
    // An event that can't be read goes through: the client may understand it.
    facts.unwrap_or_else(|_| Facts::of(Verdict::Output))
}

/// Clients compare only the beginning of the data, so a space behind the mark changes nothing.
fn is_done(data: &[u8]) -> bool {
    data.trim_ascii_start().starts_with(b"[DONE]")
}

/// Whether a plain answer's status alone says that the replica failed.
pub(crate) fn is_failure(status: u16) -> bool {
    matches!(status, 500 | 502 | 503 | 504)
}

/// Judges a complete plain answer. One that can't be read has no facts.
pub(crate) fn judge_plain(api: Api, status: u16, body: &[u8]) -> Facts {
    if is_failure(status) {
        let message = read(body).ok().and_then(|read| read.error).map(|error| error.message);
        let message = message.unwrap_or_else(|| format!("The replica answered with {status}."));
        return Facts::of(Verdict::Failed(Failure::of(status, message)));
    }
    if status >= 400 {
        return Facts::of(Verdict::Client(status));
    }
    let Ok(mut read) = read(body) else { return Facts::nothing() };
    let messages = api == Api::Messages;
    if messages {
        let finish = read.stop_reason.unwrap_or(Finish::Abort);
        read.facts.add(Choice { output: true, finish: Some(finish), ..Choice::default() });
    }
    if api == Api::Responses {
        let finish = match read.status {
            Some(b"completed") => Finish::Stop,
            Some(b"incomplete") => Finish::Length,
            Some(b"failed") => Finish::Error,
            _ => Finish::Other,
        };
        read.facts.add(Choice { output: true, finish: Some(finish), ..Choice::default() });
    }
    read.facts.verdict = match read.error {
        Some(error) if read.facts.first.is_none() || read.facts.finished(Finish::Error) => {
            Verdict::Failed(Failure::of(500, error.message))
        }
        _ => bad_end(&read.facts).unwrap_or(Verdict::Output),
    };
    read.facts
}

/// The verdict on an answer of which a choice ended badly; `None` if none did.
fn bad_end(facts: &Facts) -> Option<Verdict> {
    if facts.finished(Finish::Abort) {
        return Some(Verdict::Failed(Failure::aborted()));
    }
    let failed = || Failure::new(Cause::Server, "The replica failed while it generated.");
    facts.finished(Finish::Error).then(|| Verdict::Failed(failed()))
}

fn chunk(data: &[u8]) -> Result<Facts, JsonError> {
    let AnswerFields { mut facts, error, choices, .. } = read(data)?;
    facts.usage_of_choice = choices.is_some_and(|choices| choices > 0);
    facts.verdict = if let Some(error) = error {
        error.verdict()
    } else if choices == Some(0) && facts.usage.is_some() {
        Verdict::UsageOnly
    } else if let Some(bad) = bad_end(&facts) {
        bad
    } else if choices.is_some()
        && !facts.choices().any(|choice| choice.output || choice.finish.is_some())
    {
        // The chunk with the role comes just before the first token's.
        Verdict::Preamble
    } else {
        Verdict::Output
    };
    Ok(facts)
}

fn message_event(name: &[u8], data: &[u8]) -> Result<Facts, JsonError> {
    let mut read = read(data)?;
    let name = if name.is_empty() { read.kind.unwrap_or_default() } else { name };
    read.facts.verdict = match name {
        b"message_start" | b"content_block_start" | b"ping" => Verdict::Preamble,
        b"message_stop" => Verdict::End,
        b"error" => read.error.unwrap_or_default().verdict(),
        b"message_delta" => {
            let finish = read.stop_reason.unwrap_or(Finish::Abort);
            read.facts.add(Choice { finish: Some(finish), ..Choice::default() });
            bad_end(&read.facts).unwrap_or(Verdict::Output)
        }
        b"content_block_delta" => {
            // A signature closes a block of thinking; it is not output.
            let output = read.delta_kind != Some(b"signature_delta");
            read.facts.add(Choice { output, ..Choice::default() });
            Verdict::Output
        }
        _ => Verdict::Output,
    };
    Ok(read.facts)
}

fn response_event(name: &[u8], data: &[u8]) -> Result<Facts, JsonError> {
    if name.ends_with(b".delta") {
        let mut facts = Facts::of(Verdict::Output);
        facts.add(Choice { output: true, ..Choice::default() });
        return Ok(facts);
    }
    let mut read = read(data)?;
    let name = if name.is_empty() { read.kind.unwrap_or_default() } else { name };
    let (verdict, output, finish) = match name {
        b"response.created" | b"response.in_progress" | b"response.queued" => {
            (Verdict::Preamble, false, None)
        }
        // vLLM also sends "completed" when the length limit ended the answer: the status differs.
        b"response.completed" if read.status != Some(b"incomplete") => {
            (Verdict::End, false, Some(Finish::Stop))
        }
        b"response.completed" | b"response.incomplete" => {
            (Verdict::End, false, Some(Finish::Length))
        }
        b"response.failed" | b"error" => {
            (read.error.unwrap_or_default().verdict(), false, Some(Finish::Error))
        }
        name if name.ends_with(b".added") => (Verdict::Preamble, false, None),
        name => (Verdict::Output, name.ends_with(b".delta"), None),
    };
    if output || finish.is_some() {
        read.facts.add(Choice { output, finish, ..Choice::default() });
    }
    read.facts.verdict = verdict;
    Ok(read.facts)
}

#[cfg(test)]
mod tests;
