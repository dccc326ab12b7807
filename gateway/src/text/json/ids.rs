//! Arrays of token ids: a prompt may have very many.

use super::{Cursor, JsonError};

/// The length of a piece.
const PIECE: usize = 512;

impl Cursor<'_> {
    /// Reads an array's elements while they are whole numbers of at most nine digits, as token ids
    /// are, and calls `piece` with four bytes for each, in pieces. To be called before an element.
    /// True if it stops before another element, false at the array's end.
    pub(crate) fn id_pieces(&mut self, mut piece: impl FnMut(&[u8])) -> Result<bool, JsonError> {
        let (mut out, mut length) = ([0; PIECE], 0);
        let more = loop {
            self.peek();
            let (mut end, mut id) = (self.at, 0u32);
            while let Some(digit @ b'0'..=b'9') = self.bytes.get(end) {
                id = id.wrapping_mul(10).wrapping_add(u32::from(digit - b'0'));
                end += 1;
            }
            let next = self.bytes.get(end);
            let count = end - self.at;
            let is_short = (1..10).contains(&count);
            let leads = count > 1 && self.bytes[self.at] == b'0';
            let ends = matches!(next, Some(b',' | b']' | b' ' | b'\n' | b'\r' | b'\t'));
            if !is_short || leads || !ends {
                break true;
            }
            out[length..length + 4].copy_from_slice(&id.to_le_bytes());
            length += 4;
            if length == PIECE {
                piece(&out);
                length = 0;
            }
            self.at = end;
            // Python writes a space after a comma.
            let after = end + 1 + usize::from(self.bytes.get(end + 1) == Some(&b' '));
            if next == Some(&b',') && self.bytes.get(after).is_some_and(u8::is_ascii_digit) {
                self.at = after;
            } else if !self.next_element(&mut false)? {
                break false;
            }
        };
        piece(&out[..length]);
        Ok(more)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The numbers, and whether another element follows.
    fn ids(json: &str) -> (Vec<u32>, Result<bool, JsonError>) {
        let mut bytes = Vec::new();
        let read = Cursor::new(json.as_bytes()).id_pieces(|piece| bytes.extend_from_slice(piece));
        let (numbers, rest) = bytes.as_chunks();
        assert!(rest.is_empty());
        (numbers.iter().map(|four| u32::from_le_bytes(*four)).collect(), read)
    }

    #[test]
    fn ids_are_read_up_to_the_first_number_that_is_none() {
        for (json, want, more) in [
            ("1, 22,\n333 ]", vec![1, 22, 333], false),
            ("1,999999999,1000000000]", vec![1, 999_999_999], true),
            ("0,07]", vec![0], true),
            ("7,-1]", vec![7], true),
            ("7,1.5]", vec![7], true),
            ("7,1e2]", vec![7], true),
            ("7,[8]]", vec![7], true),
            ("\"7\"]", vec![], true),
        ] {
            assert_eq!(ids(json), (want, Ok(more)), "{json}");
        }
        for broken in ["1,]", "1, ]", "1,2 3]", "1,2}"] {
            let (_, read) = ids(broken);
            assert!(read.is_err() || read == Ok(true), "{broken}");
        }
        assert!(ids("1,]").1.is_err(), "nothing follows the comma");
    }

    proptest! {
        #[test]
        fn ids_are_the_numbers_that_are_written(
            numbers in prop::collection::vec(0..1_000_000_000u32, 1..400), pretty: bool,
        ) {
            let write = if pretty { serde_json::to_string_pretty } else { serde_json::to_string };
            let json = write(&numbers).expect("plain data");
            prop_assert_eq!(ids(&json[1..]), (numbers, Ok(false)));
        }
    }
}
