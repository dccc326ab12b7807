//! The events that the gateway writes itself, in the form of the stream's other ones.

use bytes::Bytes;

use super::{END, TokenRecord};
use crate::answer::fingerprint::Fingerprint;
use crate::answer::judge::TextKey;
use crate::text::rope::Rope;

impl TokenRecord {
    /// The event with the end of the text of the tokens so far, which the lost replica kept back.
    /// `chat`: the chunks are a chat's.
    pub(crate) fn kept_back(&mut self, text: &str, chat: bool) -> Bytes {
        let json = serde_json::Value::from(text).to_string();
        if let Some(seam) = &mut self.seam {
            seam.rest = json.as_bytes()[1..json.len() - 1].to_vec();
        }
        let reasoning = self.shown.key() == TextKey::Reasoning;
        let name = if reasoning { "reasoning" } else { "content" };
        let choice = if chat {
            format!(
                r#"{{"index":0,"delta":{{"{name}":{json}}},"logprobs":null,"finish_reason":null,"token_ids":null}}]}}"#
            )
        } else {
            format!(
                r#"{{"index":0,"text":{json},"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}}]}}"#
            )
        };
        [&self.head[..], choice.as_bytes(), END].concat().into()
    }

    /// Appends the events that end the answer in place of a replica that is gone: the end of the choice if
    /// it has not come, the usage if the client asked for it, and the end mark. `chat`: the chunks are a
    /// chat's. The last chunk before the mark has the server's fingerprint, if that is known.
    pub(crate) fn end(
        &self,
        (chat, usage): (bool, bool),
        fingerprint: Option<&Fingerprint>,
        out: &mut Rope,
    ) {
        let stamp = |event: Vec<u8>, last: bool, out: &mut Rope| match fingerprint {
            Some(fingerprint) if last => fingerprint.stamp(event.into(), out),
            _ => out.push(event.into()),
        };
        let usage = usage && !self.usage_came;
        if !self.finished {
            let mut end = self.head.to_vec();
            end.extend_from_slice(if chat {
                br#"{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]}"#
            } else {
                br#"{"index":0,"text":"","logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}"#
            });
            end.extend_from_slice(END);
            stamp(end, !usage, out);
        }
        if usage {
            let (prompt, answer) = (self.ids.prompt_tokens(), self.ids.answer_tokens());
            let total = prompt + answer;
            let usage = format!(
                r#"],"usage":{{"prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{answer}}}}}"#
            );
            stamp([&self.head[..], usage.as_bytes(), END].concat(), true, out);
        }
        out.push(Bytes::from_static(b"data: [DONE]\n\n"));
    }
}
