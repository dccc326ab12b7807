//! The record of a stream's token ids, which the gateway asked the replica for, and the seam where
//! another replica goes on.
//!
//! A client that did not ask for the ids gets the events as the replica sends them unasked. vLLM 0.32
//! then has `null` in place of each list, and leaves out a chunk with nothing but ids in it.
//!
//! At a seam, each event of the new replica gets the beginning that the stream's events have: the same
//! `id`, `created` and `model`. The new replica's first event has the ids of its prompt. Only if these
//! are the ids that it was sent, it goes on with this answer: a server that does not know the field
//! begins anew. Its parser of reasoning and calls begins in the middle of the answer, and may take text
//! for something else (`misread`). So nothing of it is passed on before its first text, which must
//! stand in the field of the text before the seam.
//!
//! Pure.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use crate::answer::failure::{Cause, Failure};
use crate::answer::judge::{Choice, Facts, Places, TextKey, TokenUsage, Verdict};
use crate::answer::not_continued::NotContinued;
use crate::answer::seam_patches::{Change, Offsets, offset_patches, usage_patches};
use crate::answer::shown_text::ShownText;
use crate::answer::token_ids::{TextShown, TokenIds, read_ids};

mod own_events;

/// The most events without text that are kept back.
const MOST_SILENT: usize = 16;
/// The same for the first ones of a new replica.
const MOST_SILENT_OF_NEW: usize = 1024;
/// The most bytes of events without text that are kept back.
const MOST_SILENT_BYTES: usize = 256 << 10;
/// The most bytes of the beginning that all events have.
const LONGEST_HEAD: usize = 4 << 10;
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
    /// The bytes of these events.
    silent_bytes: usize,
    shown: ShownText,
    /// The usage of the whole answer has come.
    usage_came: bool,
    /// The offsets of its tokens, if it is a completion with probabilities.
    offsets: Offsets,
    /// The last replica began anew where it should have gone on.
    began_anew: bool,
}

/// A place where another replica goes on.
#[derive(Clone, Debug)]
struct Seam {
    /// The beginning of the new replica's events, once it has shown that it goes on.
    head: Option<Bytes>,
    /// The answer's tokens before the seam, which the new replica takes for the prompt's.
    carried: u64,
    /// The offset of the first token behind the seam.
    offset: u64,
    /// Whether a part of the answer came since: text, a call, or the end.
    resumed: bool,
    /// Tokens came since that have no text.
    skipped: bool,
    /// Text of the tokens before, as it stands in JSON, which goes out with the first part of the
    /// answer.
    rest: Vec<u8>,
}

/// The text of an event, as far as it decides whether the event goes out.
enum Taken {
    /// It has some, or something else that goes out at once.
    Some,
    /// It has none yet.
    None,
    /// The new replica's parser takes it for something else.
    Misread,
}

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
        Self {
            ids: TokenIds::default(),
            strip,
            head: Bytes::new(),
            seam: None,
            finished: false,
            silent: 0,
            silent_bytes: 0,
            shown: ShownText::default(),
            usage_came: false,
            offsets: Offsets::default(),
            began_anew: false,
        }
    }

    pub(crate) fn ids(&self) -> &TokenIds {
        &self.ids
    }

    /// Whether the only choice has ended, and the rest of the events is known. `usage`: the client gets
    /// the usage, too.
    pub(crate) fn is_finished(&self, usage: bool) -> bool {
        self.finished
            && match self.ids.lost() {
                None => true,
                // It is the only choice still, and its tokens are not known.
                Some(NotContinued::ToolCall | NotContinued::Memory) => !usage || self.usage_came,
                Some(_) => false,
            }
    }

    /// The text that the client has of the last tokens.
    pub(crate) fn shown(&self) -> &ShownText {
        &self.shown
    }

    /// Whether the last replica began anew where it should have gone on.
    pub(crate) fn began_anew(&self) -> bool {
        self.began_anew
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

    /// The tokens of the answer that the present replica generated.
    pub(crate) fn own_tokens(&self) -> u64 {
        (self.ids.answer_tokens() as u64).saturating_sub(self.carried())
    }

    /// Cuts the answer behind the last text that may be complete.
    ///
    /// # Errors
    /// That is not possible.
    pub(crate) fn cut(&mut self) -> Result<(), NotContinued> {
        self.ids.cut_back()?;
        self.shown.cut(self.ids.all().len());
        Ok(())
    }

    /// Begins a seam: another replica goes on where the answer was cut.
    pub(crate) fn begin_seam(&mut self) {
        let carried = self.ids.answer_tokens() as u64;
        let offset = self.offsets.next();
        let (resumed, skipped) = (false, false);
        let rest = Vec::new();
        self.seam = Some(Seam { head: None, carried, offset, resumed, skipped, rest });
        (self.silent, self.began_anew) = (0, false);
    }

    /// Begins the seam earlier by `tokens`, of whose text the client has nothing.
    pub(crate) fn go_back(&mut self, tokens: usize) {
        self.ids.go_back(tokens);
        self.shown.cut(self.ids.all().len());
        self.offsets.go_back(tokens);
        if let Some(seam) = &mut self.seam {
            seam.offset = self.offsets.next();
            seam.carried = self.ids.answer_tokens() as u64;
        }
    }

    /// The usage of the whole answer, with the prompt as the client sent it.
    pub(crate) fn whole_usage(&self, usage: TokenUsage) -> TokenUsage {
        let carried = self.carried();
        let prompt = usage.prompt.saturating_sub(carried);
        let cached = usage.cached.map(|cached| cached.min(prompt));
        TokenUsage { prompt, generated: usage.generated.saturating_add(carried), cached }
    }

    /// Takes a chunk of the form of an earlier one: its text, as it stands in the JSON, and its ids.
    pub(crate) fn chunk(&mut self, text: &[u8], ids: &[u8]) {
        let shown = if ends_within_character(text) { TextShown::Part } else { TextShown::Complete };
        let before = self.ids.all().len();
        self.ids.generated(ids, shown);
        self.shown.push(self.shown.key(), text, before, self.ids.all().len());
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
            return match facts.verdict {
                _ if self.is_resumed() => Treatment::Keep,
                // A comment: every event with data but without choices is more than that.
                Verdict::Preamble => Treatment::Drop,
                _ => self.fail(),
            };
        };
        let past_the_answer = matches!(facts.verdict, Verdict::UsageOnly | Verdict::Client(_));
        if (past_the_answer || !facts.more.is_empty()) && !self.is_resumed() {
            return self.fail();
        }
        let line = raw.strip_prefix(START).and_then(|line| line.strip_suffix(END));
        let Some(data) = line.filter(|line| memchr::memchr2(b'\n', b'\r', line).is_none()) else {
            self.ids.lose(NotContinued::Form);
            return if self.seam.is_some() { self.fail() } else { Treatment::Keep };
        };
        // Its beginning is replaced, so nothing else may stand there that would be.
        if self.seam.is_some() && facts.places.others().any(|at| at.start < choices) {
            return self.fail();
        }
        let head = &raw[..START.len() + choices];
        match &mut self.seam {
            None if self.head.is_empty() && head.len() <= LONGEST_HEAD => {
                self.head = Bytes::copy_from_slice(head);
            }
            None if self.head != head => self.ids.lose(NotContinued::Form),
            Some(Seam { head: Some(theirs), .. }) if *theirs != head => return self.fail(),
            Some(seam @ Seam { head: None, .. }) => {
                let mut ids = Vec::new();
                let given = facts.places.prompt_token_ids.clone();
                let read = given.and_then(|at| read_ids(&data[at], &mut ids));
                if read.is_none() || ids != self.ids.all() {
                    self.began_anew = true;
                    return self.fail();
                }
                seam.head = Some(Bytes::copy_from_slice(head));
            }
            _ => {}
        }
        self.usage_came |= facts.verdict == Verdict::UsageOnly;
        let first = facts.first.unwrap_or_default();
        let role = facts.verdict == Verdict::Preamble && self.seam.is_some();
        let ids_alone = self.strip && first.bare && !first.logprobs && first.finish.is_none();
        let drops = role || (ids_alone && first.tokens.is_some_and(|tokens| tokens > 0));
        let holds = match self.take_ids(data, facts, drops) {
            Taken::Some => false,
            Taken::None => true,
            Taken::Misread => {
                self.ids.lose(NotContinued::Parser);
                return self.fail();
            }
        };
        if drops {
            return Treatment::Drop;
        }
        match self.rewritten(raw, facts) {
            Treatment::Keep if holds => Treatment::Hold(None),
            Treatment::Replace(bytes) if holds => Treatment::Hold(Some(bytes)),
            treatment => treatment,
        }
    }

    /// Whether the new replica's parser takes a choice for something else than it is: text in another
    /// field than the text before the seam, or text after tokens of which it made nothing. vLLM's
    /// parser for gpt-oss makes nothing of a text whose beginning it did not see, up to its end. Others
    /// find no mark of a reasoning part that has begun, and take the rest for content.
    fn is_misread(&self, choice: &Choice) -> bool {
        let Some(seam) = self.seam.as_ref().filter(|seam| !seam.resumed) else { return false };
        let before = self.shown.key();
        match choice.key {
            // A call may begin there. Its parser makes nothing of its beginning.
            TextKey::None => choice.beyond_text && seam.skipped && before == TextKey::Reasoning,
            key => before != TextKey::None && (key != before || seam.skipped),
        }
    }

    /// Takes an event's ids. If the event has no text yet, it is kept back until there is some: then
    /// the answer can be cut before it. `drops`: it does not go out in any case.
    fn take_ids(&mut self, data: &[u8], facts: &Facts, drops: bool) -> Taken {
        let list = |at: &Option<Range<usize>>| {
            at.clone().map(|at| &data[at]).filter(|list| list.starts_with(b"["))
        };
        if self.seam.is_none()
            && let Some(prompt) = list(&facts.places.prompt_token_ids)
        {
            self.ids.prompt(prompt);
            self.shown.begin(self.ids.all().len());
        }
        let Some(choice) = &facts.first else { return Taken::Some };
        if self.is_misread(choice) {
            return Taken::Misread;
        }
        if choice.index != 0 || !facts.more.is_empty() {
            self.ids.lose(NotContinued::Choices);
        }
        if choice.beyond_text {
            self.ids.lose(NotContinued::ToolCall);
        }
        if choice.finish.is_some() {
            self.finished = true;
            self.seam.iter_mut().for_each(|seam| seam.resumed = true);
        }
        if !choice.output {
            return Taken::Some;
        }
        let text = facts.text.clone().map(|at| &data[at]).unwrap_or_default();
        if text.is_empty() && !drops {
            self.silent_bytes = if self.silent > 0 { self.silent_bytes } else { 0 } + data.len();
            self.silent += 1;
        } else {
            (self.silent, self.silent_bytes) = (0, 0);
        }
        let most = if self.is_resumed() { MOST_SILENT } else { MOST_SILENT_OF_NEW };
        let waits = self.silent <= most && self.silent_bytes <= MOST_SILENT_BYTES;
        let (shown, taken) = match text {
            [] if choice.finish.is_none() && !choice.beyond_text && (drops || waits) => {
                (TextShown::Nothing, Taken::None)
            }
            [] => (TextShown::Part, Taken::Some),
            text if ends_within_character(text) => (TextShown::Part, Taken::Some),
            _ => (TextShown::Complete, Taken::Some),
        };
        let before = self.ids.all().len();
        match list(&facts.places.token_ids) {
            Some(ids) => self.ids.generated(ids, shown),
            None => self.ids.lose(NotContinued::NoTokenIds),
        }
        let after = self.ids.all().len();
        if let Some(seam) = self.seam.as_mut().filter(|_| !text.is_empty())
            && !seam.rest.is_empty()
        {
            let rest = std::mem::take(&mut seam.rest);
            self.shown.push(self.shown.key(), &rest, before, before);
        }
        if !text.is_empty() {
            self.shown.push(choice.key, text, before, after);
        } else if facts.text.is_none() {
            self.shown.skip(after);
        }
        if let (true, false, Some(at)) = (choice.logprobs, text.is_empty(), &facts.places.logprobs)
        {
            let before = self.seam.as_ref().map_or(0, |seam| seam.offset);
            self.offsets.take(data, at.start, before);
        }
        if let Some(seam) = &mut self.seam {
            let comes = !text.is_empty() || choice.beyond_text;
            seam.resumed |= comes || !waits;
            seam.skipped |= !comes && choice.bare;
        }
        if self.ids.are_lost() { Taken::Some } else { taken }
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
        if let Some(seam) = &self.seam {
            if let Some(at) = &facts.places.usage {
                let patched = usage_patches(raw, in_raw(at).start, seam.carried);
                patches.extend(patched.unwrap_or_default());
            }
            if let Some(at) = &facts.places.logprobs {
                let patched = offset_patches(raw, in_raw(at).start, seam.offset);
                patches.extend(patched.unwrap_or_default());
            }
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
}

/// Whether a text, as it stands in JSON, ends with the sign for an unfinished character.
fn ends_within_character(text: &[u8]) -> bool {
    let escaped = |text: &[u8]| text[text.len() - 6..].eq_ignore_ascii_case(br"\ufffd");
    text.ends_with("\u{fffd}".as_bytes()) || (text.len() >= 6 && escaped(text))
}
