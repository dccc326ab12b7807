//! The changes to a new replica's events that make them a part of the whole answer: its usage, and the
//! offsets into its text.
//!
//! Pure.

use std::borrow::Cow;
use std::ops::Range;

use crate::text::json::{Cursor, JsonError};

/// A part of an event, and the bytes that go out in its place.
pub(super) type Change<'a> = (Range<usize>, Cow<'a, [u8]>);

/// Where the tokens of a completion with probabilities begin, as vLLM counts it: each token by the length of
/// its name in the event, which need not be that of its text (vLLM 0.32, `completion/serving.py`).
#[derive(Clone, Debug, Default)]
pub(super) struct Offsets {
    /// Those of the tokens of the last event with text.
    last: Vec<u64>,
    /// That of the token behind them.
    next: u64,
}

impl Offsets {
    /// The offset of the next token.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Takes the probabilities that begin at `start`. Their offsets count from `before`.
    pub(super) fn take(&mut self, raw: &[u8], start: usize, before: u64) {
        let read = || -> Result<_, JsonError> {
            let (mut offsets, mut length) = (Vec::new(), 0);
            let mut first = true;
            let mut cursor = Cursor::starting(raw, start);
            if !cursor.enter_object()? {
                return Ok(None);
            }
            while let Some(key) = cursor.next_key(&mut first)? {
                let mut first = true;
                match key.text.raw() {
                    b"text_offset" if cursor.enter_array()? => {
                        while cursor.next_element(&mut first)? {
                            cursor.kind()?;
                            offsets.extend(cursor.count()?);
                        }
                    }
                    b"tokens" if cursor.enter_array()? => {
                        while cursor.next_element(&mut first)? {
                            length = cursor.text()?.map_or(0, |token| characters(token.raw()));
                        }
                    }
                    b"text_offset" | b"tokens" => {}
                    _ => cursor.skip()?,
                }
            }
            Ok(offsets
                .last()
                .map(|last: &u64| last.saturating_add(length))
                .map(|next| (offsets, next)))
        };
        if let Ok(Some((offsets, next))) = read() {
            self.last = offsets.into_iter().map(|offset| offset.saturating_add(before)).collect();
            self.next = next.saturating_add(before);
        }
    }

    /// Leaves out the last `tokens`.
    pub(super) fn go_back(&mut self, tokens: usize) {
        let at = self.last.len().checked_sub(tokens);
        if let Some(offset) = at.and_then(|at| self.last.get(at)) {
            self.next = *offset;
        }
    }
}

/// The changes that make the usage at `start` that of the whole answer.
pub(super) fn usage_patches(
    raw: &[u8],
    start: usize,
    carried: u64,
) -> Result<Vec<Change<'static>>, JsonError> {
    let (mut patches, mut first) = (Vec::new(), true);
    let mut cursor = Cursor::starting(raw, start);
    let mut prompt = u64::MAX;
    let mut cached = None;
    let number = |cursor: &mut Cursor<'_>| {
        cursor.kind()?;
        let start = cursor.at();
        cursor.count().map(|count| (start..cursor.at(), count))
    };
    if !cursor.enter_object()? {
        return Ok(patches);
    }
    let text = |count: u64| Cow::Owned(count.to_string().into_bytes());
    while let Some(key) = cursor.next_key(&mut first)? {
        match key.text.raw() {
            b"prompt_tokens" => {
                if let (at, Some(count)) = number(&mut cursor)? {
                    prompt = count.saturating_sub(carried);
                    patches.push((at, text(prompt)));
                }
            }
            b"completion_tokens" => {
                if let (at, Some(count)) = number(&mut cursor)? {
                    patches.push((at, text(count.saturating_add(carried))));
                }
            }
            b"prompt_tokens_details" => {
                let mut first = true;
                if cursor.enter_object()? {
                    while let Some(key) = cursor.next_key(&mut first)? {
                        match key.text.raw() {
                            b"cached_tokens" => cached = Some(number(&mut cursor)?),
                            _ => cursor.skip()?,
                        }
                    }
                }
            }
            _ => cursor.skip()?,
        }
    }
    if let Some((at, Some(count))) = cached
        && count > prompt
    {
        patches.push((at, text(prompt)));
    }
    Ok(patches)
}

/// The changes that make the offsets in the probabilities of a completion at `start` those into the
/// whole text: later by `characters`. A chat's probabilities have none.
pub(super) fn offset_patches(
    raw: &[u8],
    start: usize,
    characters: u64,
) -> Result<Vec<Change<'static>>, JsonError> {
    let (mut patches, mut first) = (Vec::new(), true);
    let mut cursor = Cursor::starting(raw, start);
    if !cursor.enter_object()? {
        return Ok(patches);
    }
    while let Some(key) = cursor.next_key(&mut first)? {
        let mut first = true;
        if key.text.raw() != b"text_offset" {
            cursor.skip()?;
            continue;
        }
        if !cursor.enter_array()? {
            continue;
        }
        while cursor.next_element(&mut first)? {
            cursor.kind()?;
            let start = cursor.at();
            if let Some(offset) = cursor.count()? {
                let text = offset.saturating_add(characters).to_string();
                patches.push((start..cursor.at(), Cow::Owned(text.into_bytes())));
            }
        }
    }
    Ok(patches)
}

/// The number of characters of a text as it stands in JSON, as Python counts them.
fn characters(json: &[u8]) -> u64 {
    let (mut count, mut at) = (0, 0);
    while let Some(byte) = json.get(at) {
        let low_surrogate =
            || json[at..].get(3..4).is_some_and(|byte| b"cdefCDEF".contains(&byte[0]));
        match (byte, json.get(at + 1)) {
            (b'\\', Some(b'u')) => {
                let second = matches!(json.get(at + 2), Some(b'd' | b'D')) && low_surrogate();
                count += u64::from(!second);
                at += 6;
            }
            (b'\\', _) => {
                count += 1;
                at += 2;
            }
            _ => {
                count += u64::from(!(0x80..0xc0).contains(byte));
                at += 1;
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(json: &str, changes: Vec<Change<'static>>) -> String {
        let mut out = json.as_bytes().to_vec();
        for (at, new) in changes.into_iter().rev() {
            out.splice(at, new.iter().copied());
        }
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn characters_are_counted_as_python_does() {
        for (json, want) in [
            ("", 0),
            ("ab", 2),
            ("\u{e9}\u{4e16}\u{1f600}", 3),
            (r#"\n\"\\"#, 3),
            (r"\u00e9x", 2),
            (r"\ud83d\ude00x", 2),
        ] {
            assert_eq!(characters(json.as_bytes()), want, "{json}");
        }
    }

    #[test]
    fn offsets_count_from_the_beginning_of_the_answer() {
        let json = r#"{"text_offset":[0, 3],"tokens":["abc","d"],"top_logprobs":[{"0":1}]}"#;
        let changes = offset_patches(json.as_bytes(), 0, 40).expect("JSON");
        let want = json.replace("[0, 3]", "[40, 43]");
        assert_eq!(patched(json, changes), want);
        for none in [r#"{"content":[{"text_offset":7}]}"#, "null", r#"{"text_offset":null}"#] {
            assert_eq!(offset_patches(none.as_bytes(), 0, 40).expect("JSON"), [], "{none}");
        }
    }
}
