//! The content of prompts, as far as it says what prompts have in common.

use forebay_scheduling::prompt::{BLOCK_BYTES, Prompt};

use crate::mix::mix;

/// Bytes of a token, on average: the gateway's estimate.
const TOKEN_BYTES: u32 = 4;

/// A piece of text. Pieces with the same number are the same text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) id: u64,
    pub(crate) tokens: u32,
}

/// The content of one prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PromptContent {
    pub(crate) segments: Box<[Segment]>,
    /// The client's session, if it names one.
    pub(crate) session: Option<u64>,
}

impl PromptContent {
    /// The prompt's length in tokens.
    pub(crate) fn tokens(&self) -> u32 {
        self.segments.iter().map(|segment| segment.tokens).sum()
    }

    /// A hash for each full block of `size` tokens, of everything up to its end.
    pub(crate) fn blocks(&self, size: u32) -> Vec<u64> {
        let mut blocks = Vec::with_capacity((self.tokens() / size) as usize);
        let (mut chain, mut begin, mut at) = (0, 0, 0);
        for segment in &self.segments {
            // Which text it is and where it begins: with that, all up to its end is known.
            chain = mix(mix(chain, segment.id), begin);
            begin += u64::from(segment.tokens);
            while at + u64::from(size) <= begin {
                at += u64::from(size);
                blocks.push(mix(chain, at));
            }
        }
        blocks
    }

    /// The prompt as the gateway would see it.
    pub(crate) fn prompt(&self) -> Prompt {
        Prompt {
            blocks: self.blocks(BLOCK_BYTES as u32 / TOKEN_BYTES).into(),
            bytes: self.tokens().saturating_mul(TOKEN_BYTES),
            session: self.session,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content(segments: &[(u64, u32)]) -> PromptContent {
        let segments = segments.iter().map(|(id, tokens)| Segment { id: *id, tokens: *tokens });
        PromptContent { segments: segments.collect(), session: None }
    }

    #[test]
    fn prompts_share_the_full_blocks_before_the_first_difference() {
        let first = content(&[(1, 100), (2, 50)]).blocks(16);
        assert_eq!(first.len(), 9);
        for (case, other, want) in [
            ("another end", content(&[(1, 100), (3, 50)]), 6),
            ("a longer prompt", content(&[(1, 100), (2, 50), (4, 9)]), 9),
            ("another beginning", content(&[(5, 100), (2, 50)]), 0),
            ("the same text elsewhere", content(&[(1, 99), (2, 50)]), 6),
        ] {
            let other = other.blocks(16);
            let shared = first.iter().zip(&other).take_while(|(one, other)| one == other).count();
            assert_eq!(shared, want, "{case}");
        }
    }

    proptest! {
        // The text of each segment written out: equal blocks are equal beginnings.
        #[test]
        fn blocks_are_equal_where_the_written_text_is(
            one in prop::collection::vec((0..3u64, 1..40u32), 0..6),
            other in prop::collection::vec((0..3u64, 1..40u32), 0..6),
            size in 1..20u32,
        ) {
            // A segment's text depends on its number, and its length is part of the number here.
            let numbered = |all: Vec<(u64, u32)>| -> Vec<(u64, u32)> {
                all.into_iter().map(|(id, tokens)| (id * 100 + u64::from(tokens), tokens)).collect()
            };
            let (one, other) = (numbered(one), numbered(other));
            let text = |all: &[(u64, u32)]| -> Vec<(u64, u32)> {
                all.iter().flat_map(|(id, tokens)| (0..*tokens).map(|at| (*id, at))).collect()
            };
            let same = text(&one).iter().zip(text(&other)).take_while(|(a, b)| **a == *b).count();
            let (one, other) = (content(&one).blocks(size), content(&other).blocks(size));
            let shared = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
            prop_assert_eq!(shared, same / size as usize);
        }
    }
}
