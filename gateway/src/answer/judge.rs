//! What an answer says, event by event or as a whole: output, an end, or a failure in disguise.
//!
//! A 200 of vLLM proves nothing. It comes before admission, so a full queue or a dead engine is an
//! event in the stream, followed by a proper end; and a server that was told to stop calls what it
//! has a complete answer, with `finish_reason` "abort". The words of an error may well stand in
//! generated text, so only the structure counts.
//!
//! Pure: each event is judged by itself. What has gone before, and to whom, is `stream`'s.

use crate::answer::api::{Api, EndMark};
use crate::answer::failure::{Cause, Failure};
use crate::text::json::{Broken, Cursor, Kind as JsonKind};
use crate::text::sse::Event;

/// What an event is to the one who relays it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Says nothing about the answer: a comment, or an event that announces it.
    Hold,
    /// A part of the answer.
    Output,
    /// The chunk that has only usage.
    UsageOnly,
    /// The stream's end mark.
    End,
    /// The client's own error: passed on as it is.
    Client(u16),
    /// The replica failed.
    Failed(Failure),
}

/// Why the model stopped.
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
pub(crate) struct Usage {
    pub(crate) prompt: u64,
    pub(crate) generated: u64,
    /// Of the prompt, found in the prefix cache; `None` where the server does not tell.
    pub(crate) cached: Option<u64>,
}

/// What an event tells of one of the answers asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) index: u64,
    /// Whether it carries generated text, tool calls or reasoning, were it an unfinished character.
    pub(crate) output: bool,
    /// Tokens in it, where the client asked for their ids.
    pub(crate) tokens: Option<u64>,
    pub(crate) finish: Option<Finish>,
}

/// All that is read of an event or a plain body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) verdict: Verdict,
    pub(crate) usage: Option<Usage>,
    /// The usage is that of the event's choice so far, not of the whole answer.
    pub(crate) usage_of_choice: bool,
    /// One for each choice; nearly always there is one, and no memory is needed.
    pub(crate) first: Option<Choice>,
    pub(crate) more: Vec<Choice>,
}

impl Facts {
    /// Nothing was read.
    pub(crate) fn nothing() -> Self {
        Self::of(Verdict::Hold)
    }

    fn of(verdict: Verdict) -> Self {
        Self { verdict, usage: None, usage_of_choice: false, first: None, more: Vec::new() }
    }

    pub(crate) fn choices(&self) -> impl Iterator<Item = &Choice> {
        self.first.iter().chain(&self.more)
    }

    fn choice(&mut self, choice: Choice) {
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

    /// The word for it in figures.
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
pub(crate) fn judge_event(api: Api, event: &Event<'_>) -> Facts {
    let Some(data) = event.data.as_deref() else { return Facts::of(Verdict::Hold) };
    let facts = match api.end_mark() {
        Some(EndMark::MessageStop) => message_event(event.name.trim_ascii(), data),
        Some(EndMark::Response) => response_event(event.name.trim_ascii(), data),
        Some(EndMark::Done) | None if is_done(data) => return Facts::of(Verdict::End),
        Some(EndMark::Done) | None => chunk(data),
    };
    // What we can't read is the client's to understand.
    facts.unwrap_or_else(|_| Facts::of(Verdict::Output))
}

/// Clients compare the beginning of the data only, so that a space behind the mark changes nothing.
fn is_done(data: &[u8]) -> bool {
    data.trim_ascii_start().starts_with(b"[DONE]")
}

/// Whether a plain answer's status alone says that the replica failed.
pub(crate) fn is_failure(status: u16) -> bool {
    matches!(status, 500 | 502 | 503 | 504)
}

/// Judges a complete plain answer; one that can't be read has nothing in it.
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
        read.facts.choice(Choice { output: true, finish: Some(finish), ..Choice::default() });
    }
    if api == Api::Responses {
        let finish = match read.status {
            Some(b"completed") => Finish::Stop,
            Some(b"incomplete") => Finish::Length,
            Some(b"failed") => Finish::Error,
            _ => Finish::Other,
        };
        read.facts.choice(Choice { output: true, finish: Some(finish), ..Choice::default() });
    }
    read.facts.verdict = match read.error {
        Some(error) if read.facts.first.is_none() || read.facts.finished(Finish::Error) => {
            Verdict::Failed(Failure::of(500, error.message))
        }
        _ => ended(&read.facts).unwrap_or(Verdict::Output),
    };
    read.facts
}

/// The verdict where a choice ended badly.
fn ended(facts: &Facts) -> Option<Verdict> {
    if facts.finished(Finish::Abort) {
        return Some(Verdict::Failed(Failure::aborted()));
    }
    let failed = Failure::new(Cause::Server, "The replica failed while it generated.");
    facts.finished(Finish::Error).then_some(Verdict::Failed(failed))
}

fn chunk(data: &[u8]) -> Result<Facts, Broken> {
    let Read { mut facts, error, choices, .. } = read(data)?;
    facts.usage_of_choice = choices.is_some_and(|choices| choices > 0);
    facts.verdict = if let Some(error) = error {
        error.verdict()
    } else if choices == Some(0) && facts.usage.is_some() {
        Verdict::UsageOnly
    } else if let Some(bad) = ended(&facts) {
        bad
    } else if choices.is_some()
        && !facts.choices().any(|choice| choice.output || choice.finish.is_some())
    {
        // The chunk that tells the role comes just before the first token's.
        Verdict::Hold
    } else {
        Verdict::Output
    };
    Ok(facts)
}

fn message_event(name: &[u8], data: &[u8]) -> Result<Facts, Broken> {
    let mut read = read(data)?;
    let name = if name.is_empty() { read.kind.unwrap_or_default() } else { name };
    read.facts.verdict = match name {
        b"message_start" | b"content_block_start" | b"ping" => Verdict::Hold,
        b"message_stop" => Verdict::End,
        b"error" => read.error.unwrap_or_default().verdict(),
        b"message_delta" => {
            let finish = read.stop_reason.unwrap_or(Finish::Abort);
            read.facts.choice(Choice { finish: Some(finish), ..Choice::default() });
            ended(&read.facts).unwrap_or(Verdict::Output)
        }
        b"content_block_delta" => {
            // A signature closes a block of thoughts and is none.
            let output = read.delta_kind != Some(b"signature_delta");
            read.facts.choice(Choice { output, ..Choice::default() });
            Verdict::Output
        }
        _ => Verdict::Output,
    };
    Ok(read.facts)
}

fn response_event(name: &[u8], data: &[u8]) -> Result<Facts, Broken> {
    if name.ends_with(b".delta") {
        let mut facts = Facts::of(Verdict::Output);
        facts.choice(Choice { output: true, ..Choice::default() });
        return Ok(facts);
    }
    let mut read = read(data)?;
    let name = if name.is_empty() { read.kind.unwrap_or_default() } else { name };
    let (verdict, output, finish) = match name {
        b"response.created" | b"response.in_progress" | b"response.queued" => {
            (Verdict::Hold, false, None)
        }
        // vLLM says "completed" also when the length ended it; the status tells.
        b"response.completed" if read.status != Some(b"incomplete") => {
            (Verdict::End, false, Some(Finish::Stop))
        }
        b"response.completed" | b"response.incomplete" => {
            (Verdict::End, false, Some(Finish::Length))
        }
        b"response.failed" | b"error" => {
            (read.error.unwrap_or_default().verdict(), false, Some(Finish::Error))
        }
        name if name.ends_with(b".added") => (Verdict::Hold, false, None),
        name => (Verdict::Output, name.ends_with(b".delta"), None),
    };
    if output || finish.is_some() {
        read.facts.choice(Choice { output, finish, ..Choice::default() });
    }
    read.facts.verdict = verdict;
    Ok(read.facts)
}

/// The parts of a JSON body that any of the APIs answers with.
struct Read<'a> {
    facts: Facts,
    error: Option<Error>,
    /// How many choices there are, where there is such a list.
    choices: Option<usize>,
    /// `type` at the top.
    kind: Option<&'a [u8]>,
    /// `type` of the member `delta`.
    delta_kind: Option<&'a [u8]>,
    stop_reason: Option<Finish>,
    /// `status` at the top or of the member `response`.
    status: Option<&'a [u8]>,
}

struct Error {
    status: u16,
    message: String,
}

impl Default for Error {
    fn default() -> Self {
        Self { status: 500, message: "The replica reported an error.".to_owned() }
    }
}

impl Error {
    fn verdict(self) -> Verdict {
        match self.status {
            400..=499 => Verdict::Client(self.status),
            _ => Verdict::Failed(Failure::of(self.status, self.message)),
        }
    }
}

fn read(data: &[u8]) -> Result<Read<'_>, Broken> {
    let mut cursor = Cursor::new(data);
    let mut read = Read {
        facts: Facts::of(Verdict::Output),
        error: None,
        choices: None,
        kind: None,
        delta_kind: None,
        stop_reason: None,
        status: None,
    };
    read.object(&mut cursor, true)?;
    cursor.end()?;
    Ok(read)
}

impl<'a> Read<'a> {
    /// Reads an object at the top, or the one that `response` or `message` wraps in an event.
    fn object(&mut self, cursor: &mut Cursor<'a>, top: bool) -> Result<(), Broken> {
        let mut first = true;
        if !cursor.enter_object()? {
            return Ok(());
        }
        // An error of `/v1/responses` has its text beside its type.
        let mut message = None;
        while let Some(key) = cursor.next_key(&mut first)? {
            match key.text.raw() {
                b"choices" => self.choices(cursor)?,
                b"usage" => {
                    if let Some(usage) = usage(cursor)? {
                        self.facts.usage = Some(usage);
                    }
                }
                b"error" => {
                    if let Some(error) = error(cursor)? {
                        self.error = Some(error);
                    }
                }
                b"type" if top => self.kind = raw(cursor)?,
                b"message" if top && cursor.kind()? == JsonKind::String => {
                    message = cursor.text()?.and_then(|text| text.decode());
                }
                b"response" | b"message" if top => self.object(cursor, false)?,
                b"delta" if top => self.delta(cursor)?,
                b"stop_reason" => self.stop_reason = raw(cursor)?.map(Finish::of),
                b"status" => self.status = raw(cursor)?,
                _ => cursor.skip()?,
            }
        }
        if let (None, Some(message), Some(b"error")) = (&self.error, message, self.kind) {
            self.error = Some(Error { message: message.into_owned(), ..Error::default() });
        }
        Ok(())
    }

    fn delta(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        let mut first = true;
        if !cursor.enter_object()? {
            return Ok(());
        }
        while let Some(key) = cursor.next_key(&mut first)? {
            match key.text.raw() {
                b"type" => self.delta_kind = raw(cursor)?,
                b"stop_reason" => self.stop_reason = raw(cursor)?.map(Finish::of),
                _ => cursor.skip()?,
            }
        }
        Ok(())
    }

    fn choices(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        let mut first = true;
        if !cursor.enter_array()? {
            return Ok(());
        }
        let mut count = 0;
        while cursor.next_element(&mut first)? {
            count += 1;
            let choice = choice(cursor)?;
            self.facts.choice(choice);
        }
        self.choices = Some(count);
        Ok(())
    }
}

fn choice(cursor: &mut Cursor<'_>) -> Result<Choice, Broken> {
    let (mut choice, mut first) = (Choice::default(), true);
    if !cursor.enter_object()? {
        return Ok(choice);
    }
    while let Some(key) = cursor.next_key(&mut first)? {
        match key.text.raw() {
            b"index" => choice.index = cursor.count()?.unwrap_or(0),
            b"delta" | b"message" => choice.output |= speaks(cursor)?,
            b"text" if cursor.kind()? == JsonKind::String => {
                cursor.skip()?;
                choice.output = true;
            }
            b"text" => choice.output |= has_value(cursor)?,
            b"finish_reason" => choice.finish = raw(cursor)?.map(Finish::of),
            b"token_ids" => {
                choice.tokens = length(cursor)?;
                choice.output |= choice.tokens.is_some_and(|tokens| tokens > 0);
            }
            _ => cursor.skip()?,
        }
    }
    Ok(choice)
}

/// Whether a delta carries a token. An empty text does, as it stands for the bytes of an
/// unfinished character, but not beside the role. A field that is not known here, or holds another
/// kind of value than is known, is output as well: servers grow new kinds of it.
fn speaks(cursor: &mut Cursor<'_>) -> Result<bool, Broken> {
    if cursor.kind()? != JsonKind::Object {
        return has_value(cursor);
    }
    let (mut role, mut empty, mut output, mut first) = (false, false, false, true);
    cursor.enter_object()?;
    while let Some(key) = cursor.next_key(&mut first)? {
        match key.text.raw() {
            b"role" => role |= cursor.text()?.is_some(),
            b"content" | b"reasoning" | b"reasoning_content" | b"refusal"
                if cursor.kind()? == JsonKind::String =>
            {
                match raw(cursor)? {
                    Some([]) => empty = true,
                    _ => output = true,
                }
            }
            _ => output |= has_value(cursor)?,
        }
    }
    Ok(output || (empty && !role))
}

/// Whether a value holds something: `null`, `false` and what is empty do not.
fn has_value(cursor: &mut Cursor<'_>) -> Result<bool, Broken> {
    match cursor.kind()? {
        JsonKind::String => Ok(raw(cursor)?.is_some_and(|text| !text.is_empty())),
        JsonKind::Array => Ok(length(cursor)?.is_some_and(|length| length > 0)),
        JsonKind::Object => {
            let (mut members, mut first) = (false, true);
            cursor.enter_object()?;
            while cursor.next_key(&mut first)?.is_some() {
                members = true;
                cursor.skip()?;
            }
            Ok(members)
        }
        kind @ (JsonKind::Number | JsonKind::True | JsonKind::False | JsonKind::Null) => {
            cursor.skip()?;
            Ok(matches!(kind, JsonKind::Number | JsonKind::True))
        }
    }
}

/// The elements of an array.
fn length(cursor: &mut Cursor<'_>) -> Result<Option<u64>, Broken> {
    let (mut count, mut first) = (0, true);
    if !cursor.enter_array()? {
        return Ok(None);
    }
    while cursor.next_element(&mut first)? {
        cursor.skip()?;
        count += 1;
    }
    Ok(Some(count))
}

fn raw<'a>(cursor: &mut Cursor<'a>) -> Result<Option<&'a [u8]>, Broken> {
    Ok(cursor.text()?.map(|text| text.raw()))
}

/// Usage in the words of any of the APIs; `None` for `null`.
pub(crate) fn usage(cursor: &mut Cursor<'_>) -> Result<Option<Usage>, Broken> {
    let (mut usage, mut first) = (Usage::default(), true);
    let mut beside = 0;
    if !cursor.enter_object()? {
        return Ok(None);
    }
    while let Some(key) = cursor.next_key(&mut first)? {
        match key.text.raw() {
            b"prompt_tokens" | b"input_tokens" => usage.prompt = cursor.count()?.unwrap_or(0),
            b"completion_tokens" | b"output_tokens" => {
                usage.generated = cursor.count()?.unwrap_or(0);
            }
            b"prompt_tokens_details" | b"input_tokens_details" | b"input_token_details" => {
                usage.cached = cached(cursor)?.or(usage.cached);
            }
            // Anthropic counts cached tokens beside the others, not among them.
            b"cache_read_input_tokens" => {
                usage.cached = cursor.count()?;
                beside += usage.cached.unwrap_or(0);
            }
            b"cache_creation_input_tokens" => beside += cursor.count()?.unwrap_or(0),
            _ => cursor.skip()?,
        }
    }
    usage.prompt += beside;
    Ok(Some(usage))
}

fn cached(cursor: &mut Cursor<'_>) -> Result<Option<u64>, Broken> {
    let (mut cached, mut first) = (None, true);
    if cursor.enter_object()? {
        while let Some(key) = cursor.next_key(&mut first)? {
            match key.text.raw() {
                b"cached_tokens" => cached = cursor.count()?,
                _ => cursor.skip()?,
            }
        }
    }
    Ok(cached)
}

/// An error in any of the shapes: vLLM's with a number as code, Anthropic's with a type alone, or
/// just a text; `None` for `null`.
fn error(cursor: &mut Cursor<'_>) -> Result<Option<Error>, Broken> {
    let mut error = Error::default();
    match cursor.kind()? {
        JsonKind::Object => {}
        JsonKind::String => {
            if let Some(text) = cursor.text()?.and_then(|text| text.decode()) {
                error.message = text.into_owned();
            }
            return Ok(Some(error));
        }
        _ => {
            cursor.skip()?;
            return Ok(None);
        }
    }
    cursor.enter_object()?;
    let (mut code, mut kind, mut first) = (None, None, true);
    while let Some(key) = cursor.next_key(&mut first)? {
        match key.text.raw() {
            b"message" => {
                if let Some(text) = cursor.text()?.and_then(|text| text.decode()) {
                    error.message = text.into_owned();
                }
            }
            b"code" => code = cursor.count()?,
            b"type" => kind = raw(cursor)?,
            _ => cursor.skip()?,
        }
    }
    let by_kind = || match kind {
        Some(b"invalid_request_error" | b"BadRequestError" | b"Bad Request") => 400,
        Some(b"authentication_error") => 401,
        Some(b"permission_error") => 403,
        Some(b"not_found_error" | b"NotFoundError") => 404,
        Some(b"request_too_large") => 413,
        Some(b"rate_limit_error") => 429,
        Some(b"overloaded_error" | b"Service Unavailable") => 503,
        _ => 500,
    };
    let code = code.and_then(|code| u16::try_from(code).ok()).filter(|code| *code >= 400);
    error.status = code.unwrap_or_else(by_kind);
    Ok(Some(error))
}

#[cfg(test)]
mod tests;
