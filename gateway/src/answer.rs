//! Judges and meters a streamed answer, event by event, without touching its bytes.
//!
//! A 200 of vLLM proves nothing: it comes before admission, so a full queue or a dead engine is an
//! event in the stream, followed by a proper end. Nothing may go out to the client before the first
//! event was judged, and an end without the API's own end mark is a failure.

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use serde::Deserialize;
use tokio::time::Instant;

use crate::paths::Api;
use forebay_signals::Histogram;

/// No event of a sound server comes near this.
const MAX_EVENT: usize = 16 << 20;

/// What came of the bytes fed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Keep what was fed so far back.
    Hold,
    /// Pass on all that was fed.
    Pass,
    /// Not committed and failed: the request can be tried elsewhere.
    Retry(String),
    /// Committed and failed: pass on all that was fed, the client has been told by it.
    Failed(String),
}

/// How a stream that reached its end ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With its API's end mark.
    Complete,
    /// Without it.
    Truncated,
    /// The end mark came, after an abort or an error that the client did not cause.
    Failed(String),
}

/// Token counts as the server reported them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Usage {
    #[serde(default, alias = "input_tokens")]
    pub(crate) prompt_tokens: u64,
    #[serde(default, alias = "output_tokens")]
    pub(crate) completion_tokens: u64,
}

/// One streamed answer.
pub(crate) struct Answer {
    api: Api,
    partial: BytesMut,
    committed: bool,
    done: bool,
    failure: Option<String>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    events_with_output: u64,
    usage: Option<Usage>,
    /// Gaps between tokens, taken by the reader from time to time.
    pub(crate) itl: Histogram,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// Says nothing about the answer: a comment, or an event that announces it.
    Neutral,
    Output,
    Done,
    Abort,
    Error {
        code: u16,
        message: String,
    },
}

impl Answer {
    pub(crate) fn new(api: Api) -> Self {
        Self {
            api,
            partial: BytesMut::new(),
            committed: false,
            done: false,
            failure: None,
            first_token: None,
            last_token: None,
            events_with_output: 0,
            usage: None,
            itl: Histogram::default(),
        }
    }

    /// The next bytes of the stream, cut anywhere.
    pub(crate) fn feed(&mut self, bytes: &Bytes, now: Instant) -> Step {
        let mut retry = None;
        let mut rest: &[u8] = bytes;
        let joined;
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.partial).freeze();
            rest = &joined;
        }
        while let Some((event, after)) = split_event(rest) {
            rest = after;
            match judge(self.api, event, &mut self.usage) {
                Kind::Neutral => {}
                Kind::Output => self.output(now),
                Kind::Done => {
                    self.done = true;
                    self.committed = true;
                }
                Kind::Abort => {
                    self.fail(&mut retry, "the replica aborted the request".to_owned());
                }
                Kind::Error { code, message } if code >= 500 => self.fail(&mut retry, message),
                Kind::Error { .. } => self.committed = true,
            }
            if let Some(reason) = retry {
                return Step::Retry(reason);
            }
        }
        if rest.len() > MAX_EVENT {
            self.fail(&mut retry, format!("an event is larger than {MAX_EVENT} bytes"));
        }
        self.partial.extend_from_slice(rest);
        match (retry, &self.failure) {
            (Some(reason), _) => Step::Retry(reason),
            (None, Some(reason)) => Step::Failed(reason.clone()),
            (None, None) if self.committed => Step::Pass,
            (None, None) => Step::Hold,
        }
    }

    fn fail(&mut self, retry: &mut Option<String>, reason: String) {
        if self.committed {
            self.failure.get_or_insert(reason);
        } else {
            *retry = Some(reason);
        }
    }

    fn output(&mut self, now: Instant) {
        self.committed = true;
        self.events_with_output += 1;
        self.first_token.get_or_insert(now);
        if let Some(last) = self.last_token.replace(now) {
            self.itl.record((now - last).as_secs_f64());
        }
    }

    /// The stream ended, in whatever way.
    pub(crate) fn end(&self) -> End {
        match (&self.failure, self.done) {
            (Some(reason), _) => End::Failed(reason.clone()),
            (None, true) => End::Complete,
            (None, false) => End::Truncated,
        }
    }

    pub(crate) fn first_token(&self) -> Option<Instant> {
        self.first_token
    }

    /// Tokens as reported; without a report each event with output counts as one.
    pub(crate) fn usage(&self) -> Usage {
        self.usage.unwrap_or(Usage { prompt_tokens: 0, completion_tokens: self.events_with_output })
    }
}

/// The first complete event and what follows it.
fn split_event(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut from = 0;
    loop {
        let line_end = from + memchr::memchr(b'\n', &bytes[from..])?;
        match (bytes.get(line_end + 1), bytes.get(line_end + 2)) {
            (Some(b'\n'), _) => return Some((&bytes[..line_end], &bytes[line_end + 2..])),
            (Some(b'\r'), Some(b'\n')) => {
                return Some((&bytes[..line_end], &bytes[line_end + 3..]));
            }
            (None, _) => return None,
            _ => from = line_end + 1,
        }
    }
}

fn judge(api: Api, event: &[u8], usage: &mut Option<Usage>) -> Kind {
    let (mut name, mut data): (&[u8], Option<&[u8]>) = (b"", None);
    for line in event.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(value) = line.strip_prefix(b"data:") {
            data = Some(value.strip_prefix(b" ").unwrap_or(value));
        } else if let Some(value) = line.strip_prefix(b"event:") {
            name = value.strip_prefix(b" ").unwrap_or(value);
        }
    }
    let Some(data) = data else { return Kind::Neutral };
    if data == b"[DONE]" {
        return Kind::Done;
    }
    if memmem::find(data, b"\"usage\":{").is_some() {
        read_usage(data, usage);
    }
    match name {
        b"" => {}
        b"message_start" | b"ping" | b"response.created" | b"response.in_progress" => {
            return Kind::Neutral;
        }
        b"message_stop" | b"response.completed" | b"response.incomplete" | b"response.failed" => {
            return Kind::Done;
        }
        b"message_delta" if stop_reason_is_null(data) => return Kind::Abort,
        b"error" => return error(data),
        _ => {}
    }
    // Python's spacing or the compact one: an error is the object's first key.
    if data.starts_with(b"{\"error\"") {
        return error(data);
    }
    if matches!(api, Api::ChatCompletions | Api::Completions)
        && memmem::find(data, b"\"finish_reason\":\"abort\"").is_some()
        && finish_reason_is_abort(data)
    {
        return Kind::Abort;
    }
    // The chunk that announces the role comes together with the first token's, and has none.
    let neutral: [&[u8]; 2] = [b"\"choices\":[]", b"{\"role\":\"assistant\",\"content\":\"\"}"];
    if neutral.iter().any(|text| memmem::find(data, text).is_some()) {
        return Kind::Neutral;
    }
    Kind::Output
}

fn error(data: &[u8]) -> Kind {
    #[derive(Deserialize)]
    struct Body {
        error: Inner,
    }
    #[derive(Deserialize)]
    struct Inner {
        message: String,
        #[serde(default)]
        code: serde_json::Value,
    }
    match serde_json::from_slice::<Body>(data) {
        Ok(Body { error }) => {
            let code = error.code.as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
            Kind::Error { code, message: error.message }
        }
        Err(_) => Kind::Error { code: 500, message: String::from_utf8_lossy(data).into_owned() },
    }
}

/// The text alone may stand in generated text too, so the structure decides.
fn finish_reason_is_abort(data: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Chunk {
        choices: Vec<Choice>,
    }
    #[derive(Deserialize)]
    struct Choice {
        finish_reason: Option<String>,
    }
    serde_json::from_slice::<Chunk>(data).is_ok_and(|chunk| {
        chunk.choices.iter().any(|choice| choice.finish_reason.as_deref() == Some("abort"))
    })
}

fn stop_reason_is_null(data: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(data)
        .is_ok_and(|body| body["delta"].is_object() && body["delta"]["stop_reason"].is_null())
}

fn read_usage(data: &[u8], usage: &mut Option<Usage>) {
    #[derive(Deserialize)]
    struct Chunk {
        usage: Option<Usage>,
        response: Option<Box<Chunk>>,
        message: Option<Box<Chunk>>,
    }
    if let Ok(chunk) = serde_json::from_slice::<Chunk>(data) {
        let nested = chunk.response.or(chunk.message).and_then(|inner| inner.usage);
        if let Some(new) = chunk.usage.or(nested) {
            let known = usage.get_or_insert_with(Usage::default);
            known.prompt_tokens = known.prompt_tokens.max(new.prompt_tokens);
            known.completion_tokens = known.completion_tokens.max(new.completion_tokens);
        }
    }
}

/// What a complete plain answer says.
pub(crate) fn judge_plain(status: u16, body: &[u8]) -> Result<Usage, String> {
    #[derive(Deserialize)]
    struct Plain {
        usage: Option<Usage>,
        #[serde(default)]
        choices: Vec<Choice>,
        #[serde(rename = "type")]
        kind: Option<String>,
        #[serde(default, deserialize_with = "present")]
        stop_reason: Option<Option<String>>,
    }
    #[derive(Deserialize)]
    struct Choice {
        finish_reason: Option<String>,
    }
    fn present<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Option<String>>, D::Error> {
        Deserialize::deserialize(d).map(Some)
    }
    if status >= 500 {
        let message = match error(body) {
            Kind::Error { message, .. } => message,
            _ => String::new(),
        };
        return Err(format!("status {status}: {message}"));
    }
    let Ok(plain) = serde_json::from_slice::<Plain>(body) else { return Ok(Usage::default()) };
    let aborted = plain.choices.iter().any(|c| c.finish_reason.as_deref() == Some("abort"))
        || (plain.kind.as_deref() == Some("message") && plain.stop_reason == Some(None));
    if aborted {
        return Err("the replica aborted the request".to_owned());
    }
    Ok(plain.usage.unwrap_or_default())
}

#[cfg(test)]
mod tests;
