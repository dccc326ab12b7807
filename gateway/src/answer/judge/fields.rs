//! Reads the members of an answer's JSON that `judge` needs, by their names in any of the APIs.
//!
//! One pass over the bytes, no tree. Any other member is skipped.

use std::ops::Range;

use super::{Choice, Facts, Finish, TextKey, TokenUsage, Verdict};
use crate::answer::failure::Failure;
use crate::text::json::{Cursor, JsonError, JsonKind};

/// The members of an answer's JSON, in any of the APIs.
pub(super) struct AnswerFields<'a> {
    pub(super) facts: Facts,
    pub(super) error: Option<ReportedError>,
    /// The length of the list `choices`, if there is one.
    pub(super) choices: Option<usize>,
    /// `type` at the top.
    pub(super) kind: Option<&'a [u8]>,
    /// `type` of the member `delta`.
    pub(super) delta_kind: Option<&'a [u8]>,
    pub(super) stop_reason: Option<Finish>,
    /// `status` at the top or of the member `response`.
    pub(super) status: Option<&'a [u8]>,
}

/// An error that the server reports in its JSON.
pub(super) struct ReportedError {
    status: u16,
    pub(super) message: String,
}

impl Default for ReportedError {
    fn default() -> Self {
        Self { status: 500, message: "The replica reported an error.".to_owned() }
    }
}

impl ReportedError {
    pub(super) fn verdict(self) -> Verdict {
        match self.status {
            400..=499 => Verdict::Client(self.status),
            _ => Verdict::Failed(Failure::of(self.status, self.message)),
        }
    }
}

pub(super) fn read(data: &[u8]) -> Result<AnswerFields<'_>, JsonError> {
    let mut cursor = Cursor::new(data);
    let mut read = AnswerFields {
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

impl<'a> AnswerFields<'a> {
    /// Reads the object at the top of an event, or the one below its `response` or `message`.
    fn object(&mut self, cursor: &mut Cursor<'a>, top: bool) -> Result<(), JsonError> {
        let mut first = true;
        if !cursor.enter_object()? {
            return Ok(());
        }
        // An error of `/v1/responses` has its message beside its type.
        let mut message = None;
        while let Some(key) = cursor.next_key(&mut first)? {
            match key.text.raw() {
                b"choices" => self.choices(cursor)?,
                b"usage" => {
                    let start = start(cursor)?;
                    if let Some(usage) = usage(cursor)? {
                        self.facts.usage = Some(usage);
                        self.facts.places.usage = Some(start..cursor.at());
                    }
                }
                b"prompt_token_ids" => {
                    let start = start(cursor)?;
                    cursor.skip()?;
                    self.facts.places.prompt_token_ids = Some(start..cursor.at());
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
            self.error =
                Some(ReportedError { message: message.into_owned(), ..ReportedError::default() });
        }
        Ok(())
    }

    fn delta(&mut self, cursor: &mut Cursor<'a>) -> Result<(), JsonError> {
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

    fn choices(&mut self, cursor: &mut Cursor<'a>) -> Result<(), JsonError> {
        let mut first = true;
        if !cursor.enter_array()? {
            return Ok(());
        }
        self.facts.places.choices = Some(cursor.at());
        let mut count = 0;
        while cursor.next_element(&mut first)? {
            count += 1;
            let choice = choice(cursor, &mut self.facts)?;
            self.facts.add(choice);
        }
        self.choices = Some(count);
        Ok(())
    }
}

/// Reads a choice, and notes the places of its text and its token ids.
fn choice(cursor: &mut Cursor<'_>, facts: &mut Facts) -> Result<Choice, JsonError> {
    let (mut choice, mut first) = (Choice::default(), true);
    if !cursor.enter_object()? {
        return Ok(choice);
    }
    while let Some(key) = cursor.next_key(&mut first)? {
        match key.text.raw() {
            b"index" => choice.index = cursor.count()?.unwrap_or(0),
            b"delta" | b"message" => delta(cursor, &mut choice, &mut facts.text)?,
            b"text" if cursor.kind()? == JsonKind::String => {
                let text = text(cursor, &mut facts.text)?;
                choice.output = true;
                if text.is_some_and(|text| !text.is_empty()) {
                    choice.key = TextKey::Content;
                }
            }
            b"text" => choice.output |= has_value(cursor)?,
            b"finish_reason" => choice.finish = raw(cursor)?.map(Finish::of),
            b"token_ids" => {
                let start = start(cursor)?;
                choice.tokens = length(cursor)?;
                choice.output |= choice.tokens.is_some_and(|tokens| tokens > 0);
                facts.places.token_ids = Some(start..cursor.at());
            }
            b"prompt_token_ids" => {
                let start = start(cursor)?;
                cursor.skip()?;
                facts.places.prompt_token_ids = Some(start..cursor.at());
            }
            b"logprobs" => {
                let start = start(cursor)?;
                choice.logprobs = has_value(cursor)?;
                facts.places.logprobs = Some(start..cursor.at());
            }
            _ => cursor.skip()?,
        }
    }
    Ok(choice)
}

impl TextKey {
    /// The field of a text, of which this one is known, and that has another text in the field `name`.
    fn with(self, name: &[u8]) -> Self {
        let other = match name {
            b"content" => Self::Content,
            b"refusal" => Self::Refusal,
            _ => Self::Reasoning,
        };
        if self == Self::None || self == other { other } else { Self::Several }
    }
}

/// Where the next value begins.
fn start(cursor: &mut Cursor<'_>) -> Result<usize, JsonError> {
    cursor.kind()?;
    Ok(cursor.at())
}

/// Reads whether a delta carries a token. An empty text counts, unless a role is beside it: it stands
/// for the bytes of an unfinished character. An unknown field counts, and so does an unknown kind of
/// value: servers add new kinds of output.
fn delta(
    cursor: &mut Cursor<'_>,
    choice: &mut Choice,
    place: &mut Option<Range<usize>>,
) -> Result<(), JsonError> {
    if cursor.kind()? != JsonKind::Object {
        let output = has_value(cursor)?;
        choice.output |= output;
        choice.beyond_text |= output;
        return Ok(());
    }
    let (mut role, mut empty, mut output, mut first) = (false, false, false, true);
    cursor.enter_object()?;
    choice.bare = true;
    while let Some(key) = cursor.next_key(&mut first)? {
        choice.bare = false;
        match key.text.raw() {
            b"role" => role |= cursor.text()?.is_some(),
            b"content" | b"reasoning" | b"reasoning_content" | b"refusal"
                if cursor.kind()? == JsonKind::String =>
            {
                match text(cursor, place)? {
                    Some([]) => empty = true,
                    _ => {
                        output = true;
                        choice.key = choice.key.with(key.text.raw());
                    }
                }
            }
            _ => choice.beyond_text |= has_value(cursor)?,
        }
    }
    choice.output |= output || choice.beyond_text || (empty && !role);
    Ok(())
}

/// Reads a generated text, and notes its place.
fn text<'a>(
    cursor: &mut Cursor<'a>,
    place: &mut Option<Range<usize>>,
) -> Result<Option<&'a [u8]>, JsonError> {
    let text = raw(cursor)?;
    // The closing quote has been read.
    let end = cursor.at() - 1;
    *place = text.map(|text| end - text.len()..end);
    Ok(text)
}

/// Whether a value is neither `null` nor `false` nor empty.
fn has_value(cursor: &mut Cursor<'_>) -> Result<bool, JsonError> {
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

/// The number of an array's elements; skips any other value and returns `None`.
fn length(cursor: &mut Cursor<'_>) -> Result<Option<u64>, JsonError> {
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

fn raw<'a>(cursor: &mut Cursor<'a>) -> Result<Option<&'a [u8]>, JsonError> {
    Ok(cursor.text()?.map(|text| text.raw()))
}

/// Usage, by its names in any of the APIs; `None` for `null`.
pub(crate) fn usage(cursor: &mut Cursor<'_>) -> Result<Option<TokenUsage>, JsonError> {
    let (mut usage, mut first) = (TokenUsage::default(), true);
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
            // Anthropic counts cached tokens in addition to the others.
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

fn cached(cursor: &mut Cursor<'_>) -> Result<Option<u64>, JsonError> {
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

/// An error in any of the shapes: vLLM's with a number as code, Anthropic's with only a type, or a
/// mere text; `None` for `null`.
fn error(cursor: &mut Cursor<'_>) -> Result<Option<ReportedError>, JsonError> {
    let mut error = ReportedError::default();
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
