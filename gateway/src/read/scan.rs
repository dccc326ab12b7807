//! Reads the few top-level fields of a request that the gateway acts on, and where they stand.
//!
//! The body is passed over once and never copied or rebuilt, so unknown fields and the order of
//! keys survive; `edit` changes single places by the ranges found here. What is read must be what
//! vLLM reads: escaped keys are decoded, and a field of ours that occurs twice is refused, since
//! of two readers one takes the first and the other the last. Values that vLLM refuses are its own
//! to refuse, but for a model's name that is not one, for which there is no replica to ask.

use std::ops::Range;

use crate::answer::refusal::Refusal;
use crate::text::json::{Broken, Cursor, Key, Kind, Lax};

/// What the gateway reads of a request's body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) model: Option<Model>,
    pub(crate) stream: bool,
    pub(crate) stream_options: StreamOptions,
    /// The most tokens the client allows for an answer, by whichever name it said so.
    pub(crate) max_tokens: Option<u64>,
    /// Answers asked for.
    pub(crate) n: Option<u64>,
    /// The member `priority` with one comma, to be cut out.
    pub(crate) priority: Option<Range<usize>>,
    /// The value of `messages`, `prompt` or `input`, the longest of them.
    pub(crate) prompt: Option<Range<usize>>,
    /// The value of `system` or `instructions`, which APIs that have it put before the prompt.
    pub(crate) system: Option<Range<usize>>,
    pub(crate) layout: Layout,
}

/// The model's name and its value's place: in JSON with the quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) at: Range<usize>,
}

/// How the body is written, and where new members go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Layout {
    /// An object that begins just before `open` and has `members`.
    Json {
        /// Offset after the opening brace.
        open: usize,
        members: usize,
    },
    #[default]
    Form,
}

/// The field `stream_options`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum StreamOptions {
    #[default]
    Absent,
    /// `null`, at this place.
    Null(Range<usize>),
    /// An object, with its own two fields where they are there.
    Object {
        /// Offset after the opening brace.
        open: usize,
        members: usize,
        include_usage: Option<Flag>,
        continuous: Option<Flag>,
    },
    /// No object: the server's to refuse.
    Other,
}

/// A member that should be a boolean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flag {
    pub(crate) at: Range<usize>,
    pub(crate) value: Lax<bool>,
}

/// Why a body is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScanError {
    #[error("The request body is empty.")]
    Empty,
    #[error("The request body is not valid JSON: {} at byte {}.", .0.why, .0.at)]
    Broken(Broken),
    #[error("The request body is not valid UTF-8 at byte {0}.")]
    NotUtf8(usize),
    #[error("The request body must be a JSON object.")]
    NotAnObject,
    #[error("The field `{0}` occurs twice.")]
    Duplicate(&'static str),
    #[error("The field `{field}` must be {want}.")]
    WrongType { field: &'static str, want: &'static str },
    #[error("The form could not be read: {0}.")]
    BadForm(&'static str),
}

impl From<ScanError> for Refusal {
    fn from(error: ScanError) -> Self {
        Self::BadRequest { message: error.to_string(), param: error.param() }
    }
}

impl ScanError {
    /// The field at fault, for the error's `param`.
    pub(crate) fn param(&self) -> Option<&'static str> {
        match self {
            Self::Duplicate(field) | Self::WrongType { field, .. } => Some(field),
            _ => None,
        }
    }
}

impl From<Broken> for ScanError {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl Scan {
    /// Estimated tokens of the prompt: four bytes a token, of the whole body where no prompt was
    /// found.
    pub(crate) fn prompt_tokens(&self, body_len: usize) -> u64 {
        let parts = [&self.system, &self.prompt];
        let found: usize = parts.into_iter().flatten().map(ExactSizeIterator::len).sum();
        (if found > 0 { found } else { body_len }) as u64 / 4
    }

    /// The prompt's first bytes as they stand in the body, at most `limit`: requests that begin
    /// alike find each other's prefix in a replica's cache.
    #[allow(dead_code, reason = "for picking by prefix")]
    pub(crate) fn lead<'a>(&self, body: &'a [u8], limit: usize) -> &'a [u8] {
        let part = self.system.clone().or_else(|| self.prompt.clone()).unwrap_or_default();
        &body[part.start..part.end.min(part.start + limit)]
    }
}

impl Flag {
    pub(crate) fn is_true(&self) -> bool {
        self.value == Lax::Value(true)
    }
}

/// Reads a JSON body.
///
/// # Errors
/// Broken JSON, no object, a field of the wrong type, or one of ours that occurs twice.
pub(crate) fn scan(body: &[u8]) -> Result<Scan, ScanError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(ScanError::Empty);
    }
    std::str::from_utf8(body).map_err(|error| ScanError::NotUtf8(error.valid_up_to()))?;
    // Python's reader takes a byte order mark, so it is passed on.
    let start = if body.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    let mut cursor = Cursor::starting(body, start);
    if !cursor.enter_object()? {
        cursor.end()?;
        return Err(ScanError::NotAnObject);
    }
    let mut fields = Fields { open: cursor.at(), ..Fields::default() };
    let (mut first, mut members) = (true, 0);
    while let Some(key) = cursor.next_key(&mut first)? {
        members += 1;
        fields.member(&mut cursor, key)?;
    }
    cursor.end()?;
    Ok(fields.scan(members))
}

/// What was seen so far; each is there at most once.
#[derive(Default)]
struct Fields {
    open: usize,
    model: Once<Model>,
    stream: Once<bool>,
    stream_options: Once<StreamOptions>,
    max_tokens: [Once<u64>; 3],
    n: Once<u64>,
    priority: Once<Range<usize>>,
    prompts: [Once<Range<usize>>; 3],
    systems: [Once<Range<usize>>; 2],
}

/// Seen or not, and what it held.
struct Once<T>(Option<Option<T>>);

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Once<T> {
    fn set(&mut self, field: &'static str, value: Option<T>) -> Result<(), ScanError> {
        if self.0.replace(value).is_some() {
            return Err(ScanError::Duplicate(field));
        }
        Ok(())
    }

    fn get(self) -> Option<T> {
        self.0.flatten()
    }
}

impl Fields {
    fn member(&mut self, cursor: &mut Cursor<'_>, key: Key<'_>) -> Result<(), ScanError> {
        let Some(name) = key.text.decode() else { return Ok(cursor.skip()?) };
        match &*name {
            "model" => self.model.set("model", model(cursor)?),
            "stream" => self.stream.set("stream", Some(flag(cursor)?.is_true())),
            "stream_options" => {
                self.stream_options.set("stream_options", Some(stream_options(cursor)?))
            }
            "max_completion_tokens" => {
                self.max_tokens[0].set("max_completion_tokens", cursor.count()?)
            }
            "max_tokens" => self.max_tokens[1].set("max_tokens", cursor.count()?),
            "max_output_tokens" => self.max_tokens[2].set("max_output_tokens", cursor.count()?),
            "n" => self.n.set("n", cursor.count()?),
            "priority" => {
                cursor.skip()?;
                let end = cursor.at();
                // A comma goes with it: the one after it, or the one before the last member.
                let cut = match (cursor.peek(), key.comma) {
                    (Some(b','), _) => key.at..cursor.at() + 1,
                    (_, Some(comma)) => comma..end,
                    (_, None) => key.at..end,
                };
                self.priority.set("priority", Some(cut))
            }
            "messages" => self.prompts[0].set("messages", Some(range(cursor)?)),
            "prompt" => self.prompts[1].set("prompt", Some(range(cursor)?)),
            "input" => self.prompts[2].set("input", Some(range(cursor)?)),
            "system" => self.systems[0].set("system", Some(range(cursor)?)),
            "instructions" => self.systems[1].set("instructions", Some(range(cursor)?)),
            _ => Ok(cursor.skip()?),
        }
    }

    fn scan(self, members: usize) -> Scan {
        Scan {
            model: self.model.get(),
            stream: self.stream.get().unwrap_or(false),
            stream_options: self.stream_options.get().unwrap_or_default(),
            max_tokens: self.max_tokens.into_iter().find_map(Once::get),
            n: self.n.get(),
            priority: self.priority.get(),
            prompt: longest(self.prompts),
            system: longest(self.systems),
            layout: Layout::Json { open: self.open, members },
        }
    }
}

fn longest<const N: usize>(ranges: [Once<Range<usize>>; N]) -> Option<Range<usize>> {
    ranges.into_iter().filter_map(Once::get).max_by_key(|range| range.len())
}

fn model(cursor: &mut Cursor<'_>) -> Result<Option<Model>, ScanError> {
    let wrong = ScanError::WrongType { field: "model", want: "a string" };
    match cursor.kind()? {
        Kind::Null => {
            cursor.skip()?;
            Ok(None)
        }
        Kind::String => {
            let start = cursor.at();
            let Some(text) = cursor.text()? else { return Err(wrong) };
            let name = text.decode().ok_or(wrong)?.into_owned();
            Ok(Some(Model { name, at: start..cursor.at() }))
        }
        _ => {
            cursor.skip()?;
            Err(wrong)
        }
    }
}

fn flag(cursor: &mut Cursor<'_>) -> Result<Flag, Broken> {
    cursor.kind()?;
    let start = cursor.at();
    let value = cursor.simple()?.boolean();
    Ok(Flag { at: start..cursor.at(), value })
}

fn stream_options(cursor: &mut Cursor<'_>) -> Result<StreamOptions, ScanError> {
    match cursor.kind()? {
        Kind::Object => {}
        Kind::Null => return Ok(StreamOptions::Null(range(cursor)?)),
        _ => {
            cursor.skip()?;
            return Ok(StreamOptions::Other);
        }
    }
    cursor.enter_object()?;
    let open = cursor.at();
    let (mut include_usage, mut continuous) = (Once::default(), Once::default());
    let (mut first, mut members) = (true, 0);
    while let Some(key) = cursor.next_key(&mut first)? {
        members += 1;
        let (field, seen) = match key.text.decode().as_deref() {
            Some("include_usage") => ("stream_options.include_usage", &mut include_usage),
            Some("continuous_usage_stats") => {
                ("stream_options.continuous_usage_stats", &mut continuous)
            }
            _ => {
                cursor.skip()?;
                continue;
            }
        };
        seen.set(field, Some(flag(cursor)?))?;
    }
    let (include_usage, continuous) = (include_usage.get(), continuous.get());
    Ok(StreamOptions::Object { open, members, include_usage, continuous })
}

/// The next value's place.
fn range(cursor: &mut Cursor<'_>) -> Result<Range<usize>, Broken> {
    cursor.kind()?;
    let start = cursor.at();
    cursor.skip()?;
    Ok(start..cursor.at())
}

#[cfg(test)]
mod tests;
