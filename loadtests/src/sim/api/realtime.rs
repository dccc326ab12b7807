//! `/v1/realtime`: the events of a transcription over a WebSocket.
//!
//! Not recorded from a real server, since a text model has no such route: the events and their order are
//! those of vLLM's source. Audio has 16,000 samples of 16 bits a second; 80 ms of it are a token.

use super::plan::{DefaultLength, Params, Plan};
use crate::sim::api::fault::Fault;
use crate::sim::shared::Shared;
use crate::sim::text::{Prompt, quoted};
use crate::sim::wall;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

const BYTES_PER_SECOND: usize = 32_000;
const BYTES_PER_TOKEN: usize = 2_560;
/// Tokens that are spoken in a second.
const TOKENS_PER_SECOND: usize = 3;

/// An order of a client's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Transcribe by this model.
    Model(String),
    Audio(Vec<u8>),
    /// Begin to transcribe.
    Begin,
    /// No more audio comes for this transcription.
    End,
}

/// An error for the client: its text and its code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Complaint(pub(crate) String, pub(crate) &'static str);

impl Order {
    /// Reads a client's event.
    pub(crate) fn read(text: &str) -> Result<Self, Complaint> {
        let Ok(event) = serde_json::from_str::<Value>(text) else {
            return Err(Complaint("Invalid JSON".into(), "invalid_json"));
        };
        let text = |field: &str| event.get(field).and_then(Value::as_str);
        match text("type") {
            Some("session.update") => match text("model") {
                Some(model) => Ok(Self::Model(model.to_owned())),
                None => Err(Complaint("Missing required field: model".into(), "invalid_event")),
            },
            Some("input_audio_buffer.append") => {
                let audio = BASE64_STANDARD.decode(text("audio").unwrap_or_default());
                match audio {
                    // Samples have two bytes.
                    Ok(audio) if !audio.is_empty() && audio.len() % 2 == 0 => {
                        Ok(Self::Audio(audio))
                    }
                    _ => Err(Complaint("Invalid audio data".into(), "invalid_audio")),
                }
            }
            Some("input_audio_buffer.commit") => {
                let last = event.get("final").and_then(Value::as_bool).unwrap_or(false);
                Ok(if last { Self::End } else { Self::Begin })
            }
            kind => {
                let kind = kind.unwrap_or("None");
                Err(Complaint(format!("Unknown event type: {kind}"), "unknown_event"))
            }
        }
    }
}

impl Complaint {
    pub(crate) fn of(fault: &Fault, code: &'static str) -> Self {
        Self(fault.message.clone(), code)
    }

    /// A commit without a model.
    pub(crate) fn no_model() -> Self {
        let text = "Model not validated. Make sure to validate the model by sending a \
                    session.update event.";
        Self(text.into(), "model_not_validated")
    }

    pub(crate) fn event(&self) -> String {
        format!(r#"{{"type":"error","error":{},"code":"{}"}}"#, quoted(&self.0), self.1)
    }
}

/// The first event of a session.
pub(crate) fn created() -> String {
    let (id, created) = (wall::id16(), wall::now().as_secs());
    format!(r#"{{"type":"session.created","id":"sess-{id}","created":{created}}}"#)
}

pub(crate) fn delta(text: &str) -> String {
    format!(r#"{{"type":"transcription.delta","delta":{}}}"#, quoted(text))
}

/// The last event of a transcription.
pub(crate) fn done(text: &str, prompt: u32, completion: u32) -> String {
    format!(
        r#"{{"type":"transcription.done","text":{},"usage":{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{completion},"prompt_tokens_details":null,"completion_tokens_details":null}}}}"#,
        quoted(text),
        prompt + completion
    )
}

/// The work for a piece of audio.
pub(crate) fn plan(shared: &Shared, model: &str, audio: &[u8]) -> Result<Plan, Fault> {
    let ids: Vec<u32> = audio
        .chunks(BYTES_PER_TOKEN)
        .map(|chunk| chunk.iter().fold(7, |id: u32, byte| id.rotate_left(5) ^ u32::from(*byte)))
        .collect();
    let spoken = (audio.len() * TOKENS_PER_SECOND).div_ceil(BYTES_PER_SECOND);
    let params = Params { model: Some(model.to_owned()), ..Params::default() };
    let length = DefaultLength::Tokens(u32::try_from(spoken).unwrap_or(u32::MAX));
    Plan::new(shared, params, vec![Prompt::ids(&ids)], length, "rt-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_an_order_or_a_complaint_of_vllm_s() {
        let complaint = |text: &str, code| Err(Complaint(text.into(), code));
        for (event, want) in [
            (r#"{"type":"session.update","model":"m"}"#, Ok(Order::Model("m".into()))),
            (
                r#"{"type":"session.update"}"#,
                complaint("Missing required field: model", "invalid_event"),
            ),
            (
                r#"{"type":"input_audio_buffer.append","audio":"AAEC/w=="}"#,
                Ok(Order::Audio(vec![0, 1, 2, 255])),
            ),
            (
                r#"{"type":"input_audio_buffer.append","audio":"AAEC"}"#,
                complaint("Invalid audio data", "invalid_audio"),
            ),
            (
                r#"{"type":"input_audio_buffer.append","audio":""}"#,
                complaint("Invalid audio data", "invalid_audio"),
            ),
            (r#"{"type":"input_audio_buffer.commit"}"#, Ok(Order::Begin)),
            (r#"{"type":"input_audio_buffer.commit","final":true}"#, Ok(Order::End)),
            (r#"{"type":"x"}"#, complaint("Unknown event type: x", "unknown_event")),
            (r#"{}"#, complaint("Unknown event type: None", "unknown_event")),
            (r#"{"#, complaint("Invalid JSON", "invalid_json")),
        ] {
            assert_eq!(Order::read(event), want, "{event}");
        }
    }
}
