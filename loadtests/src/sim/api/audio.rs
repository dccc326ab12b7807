//! `/v1/audio/transcriptions` and `/v1/audio/translations`: a multipart form with a file.
//!
//! Not recorded from a real server, since a text model has no such routes: the shapes are those of
//! vLLM's documentation. The file's bytes are the prompt, 32 to a token, and 32,000 bytes count as
//! one second of audio.

use crate::sim::api::events::Sink;
use crate::sim::api::fault::Fault;
use crate::sim::api::json::Check;
use crate::sim::api::plan::{Completion, DefaultLength, Params, Plan};
use crate::sim::shared::Shared;
use crate::sim::text::{Prompt, quoted};
use serde_json::{Map, Value};

const BYTES_PER_SECOND: usize = 32_000;
const BYTES_PER_TOKEN: usize = 32;
const DEFAULT_MAX_TOKENS: u32 = 448;

/// A parsed form.
#[derive(Debug)]
pub(crate) struct Form {
    fields: Map<String, Value>,
    file: Option<Vec<u8>>,
}

impl Form {
    /// Parses `multipart/form-data`.
    pub(crate) fn parse(content_type: &str, body: &[u8]) -> Result<Self, Fault> {
        let boundary = content_type
            .strip_prefix("multipart/form-data")
            .and_then(|rest| rest.split("boundary=").nth(1))
            .map(|rest| rest.split(';').next().unwrap_or(rest).trim().trim_matches('"'))
            .ok_or_else(Fault::unreadable)?;
        let mut form = Self { fields: Map::new(), file: None };
        for part in split(body, format!("--{boundary}").as_bytes()).into_iter().skip(1) {
            if part.starts_with(b"--") {
                break;
            }
            let part = part.strip_prefix(b"\r\n").unwrap_or(part);
            let part = part.strip_suffix(b"\r\n").unwrap_or(part);
            let Some((head, value)) = cut(part, b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(head);
            let Some(name) = head.split("name=\"").nth(1).and_then(|rest| rest.split('"').next())
            else {
                continue;
            };
            if name == "file" {
                form.file = Some(value.to_vec());
            } else {
                let text = String::from_utf8_lossy(value).into_owned();
                form.fields.insert(name.to_owned(), text.into());
            }
        }
        Ok(form)
    }

    pub(crate) fn plan(&self, shared: &Shared, request_id: Option<String>) -> Result<Plan, Fault> {
        let mut check = Check::new();
        let mut params = Params::sampling(&self.fields, &mut check);
        let Some(file) = &self.file else {
            check.missing(&self.fields, "file");
            check.ok()?;
            return Err(Fault::unreadable());
        };
        check.ok()?;
        params.request_id = request_id;
        let ids: Vec<u32> = file
            .chunks(BYTES_PER_TOKEN)
            .map(|chunk| chunk.iter().fold(7, |id: u32, byte| id.rotate_left(5) ^ u32::from(*byte)))
            .collect();
        let length = DefaultLength::Tokens(DEFAULT_MAX_TOKENS);
        Plan::new(shared, params, vec![Prompt::ids(&ids)], length, "trsc-")
    }

    /// A plain reply and its content type.
    pub(crate) fn whole(&self, completion: &Completion) -> (String, &'static str) {
        let text = completion.texts[0].trim();
        let format = self.fields.get("response_format").and_then(Value::as_str);
        if format == Some("text") {
            return (text.to_owned(), "text/plain; charset=utf-8");
        }
        let seconds = self.file.as_ref().map_or(0, Vec::len).div_ceil(BYTES_PER_SECOND);
        let body = format!(
            r#"{{"text":{},"usage":{{"type":"duration","seconds":{seconds}}}}}"#,
            quoted(text)
        );
        (body, "application/json")
    }
}

/// A streamed reply.
pub(crate) struct AudioStream {
    /// `transcription` or `translation`.
    pub(crate) task: &'static str,
}

impl crate::sim::api::events::Dialect for AudioStream {
    fn open(&mut self, _: &Plan, _: &mut Sink) {}

    fn token(&mut self, plan: &Plan, step: &crate::sim::api::events::Step<'_>, out: &mut Sink) {
        let finish = step.reason.map_or_else(
            || "null".to_owned(),
            |reason| format!("\"{}\",\"stop_reason\":{}", reason.openai(), reason.stop_reason()),
        );
        out.data(&format!(
            r#"{{"id":"{}","object":"{}.chunk","created":{},"model":{},"choices":[{{"delta":{{"content":{}}},"finish_reason":{finish}}}]}}"#,
            super::chat::escaped(&plan.id),
            self.task,
            plan.created,
            quoted(&plan.model),
            quoted(step.piece),
        ));
    }

    fn close(&mut self, _: &Plan, _: crate::sim::api::events::Tally, out: &mut Sink) {
        out.done();
    }
}

fn split<'a>(mut body: &'a [u8], by: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    while let Some((part, rest)) = cut(body, by) {
        parts.push(part);
        body = rest;
    }
    parts.push(body);
    parts
}

fn cut<'a>(body: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let found = body.windows(at.len()).position(|window| window == at)?;
    Some((&body[..found], &body[found + at.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_gives_its_fields_and_its_file() {
        let body = b"--xx\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nsim\r\n--xx\r\n\
            Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
            Content-Type: audio/wav\r\n\r\nRIFF\r\n\x00\r\n--xx--\r\n";
        let form = Form::parse("multipart/form-data; boundary=\"xx\"", body).expect("a form");
        assert_eq!(form.fields["model"], "sim");
        assert_eq!(form.file.as_deref(), Some(&b"RIFF\r\n\x00"[..]));
        assert!(Form::parse("application/json", body).is_err());
    }
}
