//! The blocks of a prompt that the index keeps: each of the first 64, then ever fewer.
//!
//! Between 64 and 128 blocks each second one is a landmark, between 128 and 256 each fourth, and so
//! on. So a match is known to within a thirty-second of its length, and the longest prompt has no
//! more than 256 landmarks. They depend on nothing but their places, so prompts with the same
//! beginning have the same landmarks in it.

/// How many blocks are all landmarks.
const DENSE: usize = 64;
/// The landmarks of each doubling after that.
const OCTAVE: usize = DENSE / 2;

/// The number of blocks up to the end of a landmark. Landmarks are numbered from 1.
pub(super) fn blocks(landmark: usize) -> usize {
    match landmark.checked_sub(DENSE + 1) {
        None => landmark,
        Some(beyond) => {
            let (octave, place) = (beyond / OCTAVE, beyond % OCTAVE + 1);
            (DENSE << octave) + (place << (octave + 1))
        }
    }
}

/// How many landmarks a prompt of this many blocks has.
pub(super) fn count(blocks: usize) -> usize {
    if blocks <= DENSE {
        return blocks;
    }
    let octave = ((blocks - 1) / DENSE).ilog2() as usize;
    DENSE + octave * OCTAVE + ((blocks - (DENSE << octave)) >> (octave + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::MAX_BLOCKS;

    #[test]
    fn landmarks_are_the_first_blocks_and_ever_fewer_of_the_rest() {
        let all: Vec<_> = (1..).map(blocks).take_while(|blocks| *blocks <= MAX_BLOCKS).collect();
        assert_eq!(all[..64], (1..=64).collect::<Vec<_>>());
        assert_eq!(all[64..68], [66, 68, 70, 72]);
        assert_eq!(all[96..98], [132, 136]);
        assert_eq!(all.last(), Some(&MAX_BLOCKS));
        assert_eq!(all.len(), 256);
        for pair in all.windows(2) {
            assert!(pair[0] < pair[1] && (pair[1] - pair[0]) * 32 <= pair[0].max(32), "{pair:?}");
        }
    }

    #[test]
    fn a_prompt_has_the_landmarks_that_end_within_it() {
        for length in 0..=MAX_BLOCKS {
            let want = (1..).take_while(|number| blocks(*number) <= length).count();
            assert_eq!(count(length), want, "{length}");
        }
    }
}
