//! `system_fingerprint`: vLLM's word for its version and configuration, in a stream's last chunk.
//!
//! vLLM 0.32 (`chat_completion/serving.py`, `completion/serving.py`) ends each choice's last chunk with
//! it, or, where usage was asked for, puts it into the usage chunk alone. So the one can be made of
//! the other.
//!
//! Pure.

use bytes::Bytes;
use memchr::memmem;

use crate::answer::judge::Facts;
use crate::text::json::Cursor;
use crate::text::rope::Pieces;

/// A quote within a text is escaped, so this can only be a key.
const KEY: &[u8] = b"\"system_fingerprint\":";

/// A member with its comma, as it stands at the end of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(Bytes);

/// Whether an unasked server would have written it into this event: the last of a choice, where it
/// is not yet.
pub(crate) fn belongs(event: &[u8], facts: &Facts) -> bool {
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

    /// The event with it as its object's last member, for what its neighbours are one slice.
    pub(crate) fn stamp(&self, event: Bytes, out: &mut Pieces) {
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
    fn it_is_taken_from_one_chunk_and_put_into_another() {
        let usage = br#"data: {"model":"\"system_fingerprint\":","choices":[],"usage":{},"system_fingerprint":"vllm-0.32.0-b\"b","metrics":{}}"#;
        let fingerprint = Fingerprint::read(usage).expect("it has one");
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
            let mut out = Pieces::default();
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
