//! `system_fingerprint`: the mark of vLLM's version and configuration, in a stream's last chunk.
//!
//! vLLM 0.32 (`chat_completion/serving.py`, `completion/serving.py`) puts it into the last chunk of
//! each choice, or, if usage is requested, into the usage chunk alone. So the gateway can make the
//! first form out of the second.
//!
//! Pure.

use bytes::Bytes;
use memchr::memmem;

use crate::answer::judge::Facts;
use crate::text::json::Cursor;
use crate::text::rope::Rope;

/// A quote within a string is escaped, so this can only be a key.
const KEY: &[u8] = b"\"system_fingerprint\":";

/// A member with its comma, as it stands at the end of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(Bytes);

/// Whether this event would have a fingerprint if the gateway had not requested usage: it ends a
/// choice, and has no fingerprint.
pub(crate) fn is_missing(event: &[u8], facts: &Facts) -> bool {
    facts.choices().any(|choice| choice.finish.is_some()) && memmem::find(event, KEY).is_none()
}

impl Fingerprint {
    /// Takes it from an event; `None` if the server has none.
    pub(crate) fn read(event: &[u8]) -> Option<Self> {
        let at = memmem::find(event, KEY)? + KEY.len();
        let value = Cursor::starting(event, at).text().ok()??;
        let member = [b",", KEY, b"\"", value.raw(), b"\""].concat();
        Some(Self(member.into()))
    }

    /// Appends the event to `out`, with the fingerprint as its object's last member.
    pub(crate) fn stamp(&self, event: Bytes, out: &mut Rope) {
        let end = event.iter().rposition(|byte| *byte == b'}');
        let Some(end) = end.filter(|end| event[end + 1..].trim_ascii().is_empty()) else {
            out.push(event);
            return;
        };
        out.push(event.slice(..end));
        out.push(self.0.clone());
        out.push(event.slice(end..));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_taken_from_one_chunk_and_put_into_another() {
        let usage = br#"data: {"model":"\"system_fingerprint\":","choices":[],"usage":{},"system_fingerprint":"vllm-0.32.0-b\"b","metrics":{}}"#;
        let fingerprint = Fingerprint::read(usage).expect("a fingerprint");
        for (event, want) in [
            (
                "data: {\"choices\":[{}]}\n\n",
                "data: {\"choices\":[{}],\"system_fingerprint\":\"vllm-0.32.0-b\\\"b\"}\n\n",
            ),
            (
                "data: {\"choices\":[]}\r\n\r\n",
                "data: {\"choices\":[],\"system_fingerprint\":\"vllm-0.32.0-b\\\"b\"}\r\n\r\n",
            ),
            ("data: {}\nid: 1\n\n", "data: {}\nid: 1\n\n"),
            ("data: 1\n\n", "data: 1\n\n"),
        ] {
            let mut out = Rope::default();
            fingerprint.stamp(event.into(), &mut out);
            assert_eq!(out.flatten().collect::<Vec<u8>>(), want.as_bytes());
        }
        for none in [
            &br#"data: {"system_fingerprint":null}"#[..],
            b"data: {}",
            b"data: {\"system_fingerprint\":",
        ] {
            assert_eq!(Fingerprint::read(none), None);
        }
    }
}
