//! The record of a stream's token ids, which the gateway asked the replica for, and the seam where
//! another replica goes on.
//!
//! A client that did not ask for the ids gets the events as the replica sends them unasked. vLLM 0.32
//! then has `null` in place of each list, and leaves out a chunk with nothing but ids in it.
//!
//! At a seam, each event of the new replica gets the beginning that the stream's events have: the same
//! `id`, `created` and `model`. The new replica's first event has the ids of its prompt. Only if these
//! are the ids that it was sent, it goes on with this answer: a server that does not know the field
//! begins anew. So nothing of it is passed on before.
//!
//! Pure.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use crate::answer::failure::{Cause, Failure};
use crate::answer::judge::{Facts, Places, TokenUsage, Verdict};
use crate::answer::not_continued::NotContinued;
use crate::answer::token_ids::{TextShown, TokenIds, read_ids};
use crate::text::json::{Cursor, JsonError};

/// The most events without text that are kept back.
const MOST_SILENT: usize = 16;
/// The one form of an event whose ids are read: one line of data, and a blank line.
const START: &[u8] = b"data: ";
const END: &[u8] = b"\n\n";

/// The record of one stream.
#[derive(Clone, Debug)]
pub(crate) struct TokenRecord {
    ids: TokenIds,
    /// The client did not ask for the ids.
    strip: bool,
    /// The beginning of every event, up to the bracket that opens the choices.
    head: Bytes,
    seam: Option<Seam>,
    /// The choice has ended.
    finished: bool,
    /// The number of events without text since the last one with text.
    silent: usize,
}

/// A place where another replica goes on.
#[derive(Clone, Debug)]
struct Seam {
    /// The beginning of the new replica's events, once it has shown that it goes on.
    head: Option<Bytes>,
    /// The answer's tokens before the seam, which the new replica takes for the prompt's.
    carried: u64,
    /// Whether a part of the answer came since.
    resumed: bool,
}

/// A part of an event, and the bytes that go out in its place.
type Change<'a> = (Range<usize>, Cow<'a, [u8]>);

/// The treatment of one event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Treatment {
    Keep,
    Drop,
    Replace(Bytes),
    /// It has no text yet: it goes out with the next one that has, as it came or in this form.
    Hold(Option<Bytes>),
    /// The replica does not go on with the answer.
    Fail(Failure),
}

impl TokenRecord {
    /// `strip`: the client did not ask for the ids.
    pub(crate) fn new(strip: bool) -> Self {
        let (ids, head) = (TokenIds::default(), Bytes::new());
        Self { ids, strip, head, seam: None, finished: false, silent: 0 }
    }

    pub(crate) fn ids(&self) -> &TokenIds {
        &self.ids
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether another replica goes on with the answer.
    pub(crate) fn has_seam(&self) -> bool {
        self.seam.is_some()
    }

    /// Whether events go out otherwise than they come.
    pub(crate) fn rewrites(&self) -> bool {
        self.strip || self.seam.is_some()
    }

    /// The tokens of the answer that the present replica takes for the prompt's.
    pub(crate) fn carried(&self) -> u64 {
        self.seam.as_ref().map_or(0, |seam| seam.carried)
    }

    /// Whether a part of the answer has come since the last seam, if there is one.
    pub(crate) fn is_resumed(&self) -> bool {
        self.seam.as_ref().is_none_or(|seam| seam.resumed)
    }

    /// Begins a seam: another replica goes on behind the last complete text.
    ///
    /// # Errors
    /// That is not possible.
    pub(crate) fn begin_seam(&mut self) -> Result<(), NotContinued> {
        self.ids.cut_back()?;
        let carried = self.ids.answer_tokens() as u64;
        self.seam = Some(Seam { head: None, carried, resumed: false });
        self.silent = 0;
        Ok(())
    }

    /// The usage of the whole answer, with the prompt as the client sent it.
    pub(crate) fn whole_usage(&self, usage: TokenUsage) -> TokenUsage {
        let carried = self.carried();
        let prompt = usage.prompt.saturating_sub(carried);
        let cached = usage.cached.map(|cached| cached.min(prompt));
        TokenUsage { prompt, generated: usage.generated + carried, cached }
    }

    /// Takes a chunk of the form of an earlier one: its text, as it stands in the JSON, and its ids.
    pub(crate) fn chunk(&mut self, text: &[u8], ids: &[u8]) {
        let shown = if ends_within_character(text) { TextShown::Part } else { TextShown::Complete };
        self.ids.generated(ids, shown);
        self.silent = 0;
        if let Some(seam) = &mut self.seam {
            seam.resumed = true;
        }
    }

    /// Appends such a chunk to `out` as it goes out. `ids`: their place in it, without brackets.
    pub(crate) fn write_chunk(&self, event: &[u8], ids: Range<usize>, out: &mut Vec<u8>) {
        const NULL: &[u8] = b"null";
        let theirs = self.seam.as_ref().and_then(|seam| seam.head.as_ref()).map(Bytes::len);
        let head = if theirs.is_some() { &self.head[..] } else { &[] };
        let from = theirs.unwrap_or(0);
        // One chunk a frame is the usual case: its copy needs no memory beyond its length.
        let stripped = if self.strip { ids.len() + 2 } else { 0 };
        let new = if self.strip { NULL.len() } else { 0 };
        out.reserve_exact(head.len() + (event.len() - from) - stripped + new);
        out.extend_from_slice(head);
        if self.strip {
            out.extend_from_slice(&event[from..ids.start - 1]);
            out.extend_from_slice(NULL);
            out.extend_from_slice(&event[ids.end + 1..]);
        } else {
            out.extend_from_slice(&event[from..]);
        }
    }

    /// Takes an event with these facts.
    pub(crate) fn event(&mut self, raw: &[u8], facts: &Facts) -> Treatment {
        // A choice that the replica aborts does not end so for the client.
        if matches!(facts.verdict, Verdict::Failed(_)) {
            return Treatment::Keep;
        }
        let Some(choices) = facts.places.choices else {
            let fails = matches!(facts.verdict, Verdict::Client(_)) && !self.is_resumed();
            return if fails { self.fail() } else { Treatment::Keep };
        };
        let line = raw.strip_prefix(START).and_then(|line| line.strip_suffix(END));
        let Some(data) = line.filter(|line| memchr::memchr2(b'\n', b'\r', line).is_none()) else {
            self.ids.lose(NotContinued::Form);
            return if self.seam.is_some() { self.fail() } else { Treatment::Keep };
        };
        let head = &raw[..START.len() + choices];
        match &mut self.seam {
            None if self.head.is_empty() => self.head = Bytes::copy_from_slice(head),
            None if self.head != head => self.ids.lose(NotContinued::Form),
            Some(Seam { head: Some(theirs), .. }) if *theirs != head => return self.fail(),
            Some(seam @ Seam { head: None, .. }) => {
                let mut ids = Vec::new();
                let given = facts.places.prompt_token_ids.clone();
                let read = given.and_then(|at| read_ids(&data[at], &mut ids));
                if read.is_none() || ids != self.ids.all() {
                    return self.fail();
                }
                seam.head = Some(Bytes::copy_from_slice(head));
            }
            _ => {}
        }
        let holds = self.take_ids(data, facts);
        let first = facts.first.unwrap_or_default();
        let role = facts.verdict == Verdict::Preamble && self.seam.is_some();
        let ids_alone = self.strip && first.bare && !first.logprobs && first.finish.is_none();
        if role || (ids_alone && first.tokens.is_some_and(|tokens| tokens > 0)) {
            return Treatment::Drop;
        }
        match self.rewritten(raw, facts) {
            Treatment::Keep if holds => Treatment::Hold(None),
            Treatment::Replace(bytes) if holds => Treatment::Hold(Some(bytes)),
            treatment => treatment,
        }
    }

    /// Takes an event's ids. True if the event has no text yet, and is kept back until there is some:
    /// then the answer can be cut before it.
    fn take_ids(&mut self, data: &[u8], facts: &Facts) -> bool {
        let list = |at: &Option<Range<usize>>| {
            at.clone().map(|at| &data[at]).filter(|list| list.starts_with(b"["))
        };
        if self.seam.is_none()
            && let Some(prompt) = list(&facts.places.prompt_token_ids)
        {
            self.ids.prompt(prompt);
        }
        let Some(choice) = &facts.first else { return false };
        if choice.index != 0 || !facts.more.is_empty() {
            self.ids.lose(NotContinued::Choices);
        }
        if choice.beyond_text {
            self.ids.lose(NotContinued::ToolCall);
        }
        self.finished |= choice.finish.is_some();
        if !choice.output {
            return false;
        }
        let text = facts.text.clone().map(|at| &data[at]).unwrap_or_default();
        self.silent = if text.is_empty() { self.silent + 1 } else { 0 };
        let (shown, holds) = match text {
            [] if choice.finish.is_none() && self.silent <= MOST_SILENT => {
                (TextShown::Nothing, true)
            }
            [] => (TextShown::Part, false),
            text if ends_within_character(text) => (TextShown::Part, false),
            _ => (TextShown::Complete, false),
        };
        match list(&facts.places.token_ids) {
            Some(ids) => self.ids.generated(ids, shown),
            None => self.ids.lose(NotContinued::NoTokenIds),
        }
        if let Some(seam) = &mut self.seam {
            seam.resumed = true;
        }
        holds && !self.ids.are_lost()
    }

    /// The event as it goes out.
    fn rewritten(&self, raw: &[u8], facts: &Facts) -> Treatment {
        let mut patches: Vec<Change<'_>> = Vec::new();
        let in_raw = |at: &Range<usize>| START.len() + at.start..START.len() + at.end;
        if let Some(theirs) = self.seam.as_ref().and_then(|seam| seam.head.as_ref()) {
            patches.push((0..theirs.len(), Cow::Borrowed(&self.head)));
        }
        let Places { prompt_token_ids, token_ids, .. } = &facts.places;
        // The client has its prompt's ids from the first replica.
        let prompt = prompt_token_ids.as_ref().filter(|_| self.rewrites());
        let tokens = token_ids.as_ref().filter(|_| self.strip);
        for at in prompt.into_iter().chain(tokens) {
            patches.push((in_raw(at), Cow::Borrowed(b"null")));
        }
        if let (Some(seam), Some(at)) = (&self.seam, &facts.places.usage) {
            let patched = usage_patches(raw, in_raw(at).start, seam.carried);
            patches.extend(patched.unwrap_or_default());
        }
        patches.sort_by_key(|(at, _)| at.start);
        let unchanged = |(at, new): &Change<'_>| raw[at.clone()] == **new;
        if patches.iter().all(unchanged) {
            return Treatment::Keep;
        }
        let (mut out, mut from) = (Vec::with_capacity(raw.len() + 16), 0);
        for (at, new) in patches {
            out.extend_from_slice(&raw[from..at.start]);
            out.extend_from_slice(&new);
            from = at.end;
        }
        out.extend_from_slice(&raw[from..]);
        Treatment::Replace(out.into())
    }

    fn fail(&self) -> Treatment {
        let message = "The replica did not go on from the answer's token ids.";
        Treatment::Fail(Failure::new(Cause::NotContinued, message))
    }

    /// The events that end the answer in place of a replica that is gone: the end of the choice if it
    /// has not come, the usage if the client asked for it, and the end mark. `chat`: the chunks are a
    /// chat's.
    pub(crate) fn ending(&self, chat: bool, usage: bool) -> Bytes {
        let mut out = Vec::new();
        if !self.finished {
            out.extend_from_slice(&self.head);
            out.extend_from_slice(if chat {
                br#"{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]}"#
            } else {
                br#"{"index":0,"text":"","logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}"#
            });
            out.extend_from_slice(END);
        }
        if usage {
            let (prompt, answer) = (self.ids.prompt_tokens(), self.ids.answer_tokens());
            let total = prompt + answer;
            out.extend_from_slice(&self.head);
            let usage = format!(
                r#"],"usage":{{"prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{answer}}}}}"#
            );
            out.extend_from_slice(usage.as_bytes());
            out.extend_from_slice(END);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
        out.into()
    }
}

/// Whether a text, as it stands in JSON, ends with the sign for an unfinished character.
fn ends_within_character(text: &[u8]) -> bool {
    let escaped = |text: &[u8]| text[text.len() - 6..].eq_ignore_ascii_case(br"\ufffd");
    text.ends_with("\u{fffd}".as_bytes()) || (text.len() >= 6 && escaped(text))
}

/// The changes that make the usage at `start` that of the whole answer.
fn usage_patches(
    raw: &[u8],
    start: usize,
    carried: u64,
) -> Result<Vec<Change<'static>>, JsonError> {
    let (mut patches, mut first) = (Vec::new(), true);
    let mut cursor = Cursor::starting(raw, start);
    let mut prompt = u64::MAX;
    let mut cached = None;
    let number = |cursor: &mut Cursor<'_>| {
        cursor.kind()?;
        let start = cursor.at();
        cursor.count().map(|count| (start..cursor.at(), count))
    };
    if !cursor.enter_object()? {
        return Ok(patches);
    }
    let text = |count: u64| Cow::Owned(count.to_string().into_bytes());
    while let Some(key) = cursor.next_key(&mut first)? {
        match key.text.raw() {
            b"prompt_tokens" => {
                if let (at, Some(count)) = number(&mut cursor)? {
                    prompt = count.saturating_sub(carried);
                    patches.push((at, text(prompt)));
                }
            }
            b"completion_tokens" => {
                if let (at, Some(count)) = number(&mut cursor)? {
                    patches.push((at, text(count + carried)));
                }
            }
            b"prompt_tokens_details" => {
                let mut first = true;
                if cursor.enter_object()? {
                    while let Some(key) = cursor.next_key(&mut first)? {
                        match key.text.raw() {
                            b"cached_tokens" => cached = Some(number(&mut cursor)?),
                            _ => cursor.skip()?,
                        }
                    }
                }
            }
            _ => cursor.skip()?,
        }
    }
    if let Some((at, Some(count))) = cached
        && count > prompt
    {
        patches.push((at, text(prompt)));
    }
    Ok(patches)
}
