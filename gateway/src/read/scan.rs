//! Reads the few top-level fields of a request that the gateway acts on, and their places in the
//! body.
//!
//! The body is read once and never copied or rebuilt, so unknown fields and the order of keys
//! survive; `edit` changes single places by the ranges found here. The gateway must read the same
//! values as vLLM. So escaped keys are decoded, and a field that occurs twice is refused: one
//! reader may take the first, and another the last. Invalid values are left for vLLM to refuse,
//! except for a model's name that is not a string: without the name, the gateway can't choose a
//! pool.

use std::ops::Range;

use forebay_signals::estimated_tokens;

use crate::answer::refusal::Refusal;
use crate::read::prompt::{Contents, Part};
use crate::text::json::{Cursor, JsonError, JsonKind, Lax, MemberKey};

/// The fields of a request's body that the gateway reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) model: Option<Model>,
    pub(crate) stream: bool,
    pub(crate) stream_options: StreamOptions,
    /// Whether `encoding_format` asks for an answer of bytes instead of JSON.
    pub(crate) wants_bytes: bool,
    /// The most tokens that the client allows for an answer, by any of the field's names.
    pub(crate) max_tokens: Option<u64>,
    /// The number of answers that the client asks for.
    pub(crate) n: Option<u64>,
    /// Whether the client asks for the ids of tokens.
    pub(crate) return_token_ids: Option<Flag>,
    /// The place of the member `priority` with one comma, to be cut out.
    pub(crate) priority: Option<Range<usize>>,
    /// The place of the longest value of `messages`, `prompt` and `input`.
    pub(crate) prompt: Option<Range<usize>>,
    /// The place of the value of `system` or `instructions`. APIs that have it put it before the
    /// prompt.
    pub(crate) system: Option<Range<usize>>,
    /// The contents that the model will see, if they were asked for.
    pub(crate) contents: Option<Box<Contents>>,
    pub(crate) layout: Layout,
}

/// The model's name and the place of its value, in JSON with the quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) at: Range<usize>,
}

/// The form of the body, and the place for new members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Layout {
    /// An object with this number of `members`.
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
    /// An object, with its two known fields if they are there.
    Object {
        /// Offset after the opening brace.
        open: usize,
        members: usize,
        include_usage: Option<Flag>,
        continuous: Option<Flag>,
    },
    /// Not an object: left for vLLM to refuse.
    Other,
}

/// A member that should be a boolean, and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flag {
    pub(crate) at: Range<usize>,
    pub(crate) value: Lax<bool>,
}

/// The reason why a body is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScanError {
    #[error("The request body is empty.")]
    Empty,
    #[error("The request body is not valid JSON: {} at byte {}.", .0.why, .0.at)]
    Broken(JsonError),
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
    /// The field that is wrong, for the error's `param`.
    pub(crate) fn param(&self) -> Option<&'static str> {
        match self {
            Self::Duplicate(field) | Self::WrongType { field, .. } => Some(field),
            _ => None,
        }
    }
}

impl From<JsonError> for ScanError {
    fn from(broken: JsonError) -> Self {
        Self::Broken(broken)
    }
}

impl Scan {
    /// The prompt's estimated tokens. The whole body counts if no prompt is found.
    pub(crate) fn prompt_tokens(&self, body_len: usize) -> u64 {
        let parts = [&self.system, &self.prompt];
        let found: usize = parts.into_iter().flatten().map(ExactSizeIterator::len).sum();
        estimated_tokens((if found > 0 { found } else { body_len }) as u64)
    }

    /// The prompt's first bytes as they are in the body, at most `limit`. They distinguish one
    /// conversation from another.
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

/// Reads a JSON body, without the contents that the model will see.
///
/// # Errors
/// Broken JSON, not an object, a model that is not a string, or a known field that occurs twice.
pub(crate) fn scan(body: &[u8]) -> Result<Scan, ScanError> {
    scan_with(body, None)
}

/// The same with the contents.
///
/// # Errors
/// As for [`scan`].
pub(crate) fn scan_contents(body: &[u8]) -> Result<Scan, ScanError> {
    scan_with(body, Some(Box::default()))
}

fn scan_with(body: &[u8], contents: Option<Box<Contents>>) -> Result<Scan, ScanError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(ScanError::Empty);
    }
    // Most bodies are ASCII, which is found out several times as fast.
    if !body.is_ascii() {
        std::str::from_utf8(body).map_err(|error| ScanError::NotUtf8(error.valid_up_to()))?;
    }
    // Python's reader accepts a byte order mark, so it is passed on.
    let start = if body.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    let mut cursor = Cursor::starting(body, start);
    if !cursor.enter_object()? {
        cursor.end()?;
        return Err(ScanError::NotAnObject);
    }
    let mut fields = Fields { open: cursor.at(), contents, ..Fields::default() };
    let (mut first, mut members) = (true, 0);
    while let Some(key) = cursor.next_key(&mut first)? {
        members += 1;
        fields.member(&mut cursor, key)?;
    }
    cursor.end()?;
    Ok(fields.scan(members))
}

/// The fields found so far, each at most once.
#[derive(Default)]
struct Fields {
    open: usize,
    model: Once<Model>,
    stream: Once<bool>,
    stream_options: Once<StreamOptions>,
    wants_bytes: Once<bool>,
    max_tokens: [Once<u64>; 3],
    n: Once<u64>,
    return_token_ids: Once<Flag>,
    priority: Once<Range<usize>>,
    prompts: [Once<Range<usize>>; 3],
    systems: [Once<Range<usize>>; 2],
    contents: Option<Box<Contents>>,
}

/// Whether a field was found, and its value.
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
    fn member(&mut self, cursor: &mut Cursor<'_>, key: MemberKey<'_>) -> Result<(), ScanError> {
        let decoded;
        let name = match key.text.unescaped() {
            Some(name) => name,
            None => {
                let Some(name) = key.text.decode() else { return Ok(cursor.skip()?) };
                decoded = name;
                decoded.as_bytes()
            }
        };
        match name {
            b"model" => self.model.set("model", model(cursor)?),
            b"stream" => self.stream.set("stream", Some(flag(cursor)?.is_true())),
            b"stream_options" => {
                self.stream_options.set("stream_options", Some(stream_options(cursor)?))
            }
            b"encoding_format" => {
                self.wants_bytes.set("encoding_format", Some(names_bytes(cursor)?))
            }
            b"max_completion_tokens" => {
                self.max_tokens[0].set("max_completion_tokens", cursor.count()?)
            }
            b"max_tokens" => self.max_tokens[1].set("max_tokens", cursor.count()?),
            b"max_output_tokens" => self.max_tokens[2].set("max_output_tokens", cursor.count()?),
            b"n" => self.n.set("n", cursor.count()?),
            b"return_token_ids" => {
                self.return_token_ids.set("return_token_ids", Some(flag(cursor)?))
            }
            b"priority" => {
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
            b"messages" => {
                let at = self.part(Part::Messages, cursor)?;
                self.prompts[0].set("messages", Some(at))
            }
            b"prompt" => {
                let at = self.part(Part::Prompt, cursor)?;
                self.prompts[1].set("prompt", Some(at))
            }
            b"input" => {
                let at = self.part(Part::Messages, cursor)?;
                self.prompts[2].set("input", Some(at))
            }
            b"system" => {
                let at = self.part(Part::System, cursor)?;
                self.systems[0].set("system", Some(at))
            }
            b"instructions" => {
                let at = self.part(Part::System, cursor)?;
                self.systems[1].set("instructions", Some(at))
            }
            // These decide nothing but which replica may remember the prompt, so the last one counts,
            // as it does for Python.
            b"tools" => self.part(Part::Tools, cursor).map(drop),
            b"documents" => self.part(Part::Documents, cursor).map(drop),
            _ => match &mut self.contents {
                Some(contents) => Ok(contents.read_field(name, cursor)?),
                None => Ok(cursor.skip()?),
            },
        }
    }

    /// The place of the next value, which has content for the model.
    fn part(&mut self, part: Part, cursor: &mut Cursor<'_>) -> Result<Range<usize>, ScanError> {
        cursor.kind()?;
        let start = cursor.at();
        match &mut self.contents {
            Some(contents) => contents.read(part, cursor)?,
            None => cursor.skip()?,
        }
        Ok(start..cursor.at())
    }

    fn scan(self, members: usize) -> Scan {
        Scan {
            model: self.model.get(),
            stream: self.stream.get().unwrap_or(false),
            stream_options: self.stream_options.get().unwrap_or_default(),
            wants_bytes: self.wants_bytes.get().unwrap_or(false),
            max_tokens: self.max_tokens.into_iter().find_map(Once::get),
            n: self.n.get(),
            return_token_ids: self.return_token_ids.get(),
            priority: self.priority.get(),
            prompt: longest(self.prompts),
            system: longest(self.systems),
            contents: self.contents,
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
        JsonKind::Null => {
            cursor.skip()?;
            Ok(None)
        }
        JsonKind::String => {
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

/// Whether the next value is one of vLLM's formats without JSON: `bytes`, `bytes_only`.
fn names_bytes(cursor: &mut Cursor<'_>) -> Result<bool, JsonError> {
    let name = cursor.text()?;
    Ok(name.and_then(|name| name.decode()).is_some_and(|name| name.starts_with("bytes")))
}

fn flag(cursor: &mut Cursor<'_>) -> Result<Flag, JsonError> {
    cursor.kind()?;
    let start = cursor.at();
    let value = cursor.scalar()?.boolean();
    Ok(Flag { at: start..cursor.at(), value })
}

fn stream_options(cursor: &mut Cursor<'_>) -> Result<StreamOptions, ScanError> {
    match cursor.kind()? {
        JsonKind::Object => {}
        JsonKind::Null => return Ok(StreamOptions::Null(range(cursor)?)),
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

/// The place of the next value.
fn range(cursor: &mut Cursor<'_>) -> Result<Range<usize>, JsonError> {
    cursor.kind()?;
    let start = cursor.at();
    cursor.skip()?;
    Ok(start..cursor.at())
}

#[cfg(test)]
mod tests;
