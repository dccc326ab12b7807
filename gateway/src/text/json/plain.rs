//! The end of a run of plain bytes in a string.

/// The position of the first quote, backslash or control character from `at` on.
#[inline]
pub(crate) fn plain_until(bytes: &[u8], at: usize) -> usize {
    // Most strings are keys and end within their first bytes.
    if let Some(block) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        match specials(block) {
            0 => plain_from(bytes, at + BLOCK),
            special => at + special.trailing_zeros() as usize,
        }
    } else {
        plain_from(bytes, at)
    }
}

#[inline(never)]
fn plain_from(bytes: &[u8], at: usize) -> usize {
    let mut rest = bytes.get(at..).unwrap_or_default();
    // A long text: two blocks at once, for one decision.
    while let Some((two, after)) = rest.split_first_chunk::<{ 2 * BLOCK }>() {
        let (first, second) = two.split_at(BLOCK);
        let special = [first, second].map(|block| block.first_chunk().map_or(0, specials));
        let special = special[0] | special[1] << BLOCK;
        if special != 0 {
            return bytes.len() - rest.len() + special.trailing_zeros() as usize;
        }
        rest = after;
    }
    if let Some((block, after)) = rest.split_first_chunk() {
        let special = specials(block);
        if special != 0 {
            return bytes.len() - rest.len() + special.trailing_zeros() as usize;
        }
        rest = after;
    }
    bytes.len() - rest.len() + rest.iter().position(is_special).unwrap_or(rest.len())
}

/// The bytes that are looked at together.
const BLOCK: usize = 16;

/// A bit for each special byte, the first byte's the lowest.
#[cfg(target_arch = "x86_64")]
#[inline]
#[allow(unsafe_code)]
fn specials(block: &[u8; BLOCK]) -> u32 {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128,
        _mm_set1_epi8, _mm_xor_si128,
    };
    // SAFETY: every x86-64 processor has SSE2, and sixteen bytes are read from sixteen, of any alignment.
    let marks = unsafe {
        let bytes = _mm_loadu_si128(block.as_ptr().cast());
        let backslashes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\'.cast_signed()));
        // With this bit turned, the quote comes right behind the control characters.
        let turned = _mm_xor_si128(bytes, _mm_set1_epi8(b'"'.cast_signed() ^ 0x20));
        let others = _mm_cmpeq_epi8(_mm_min_epu8(turned, _mm_set1_epi8(0x20)), turned);
        _mm_movemask_epi8(_mm_or_si128(backslashes, others))
    };
    marks.cast_unsigned()
}

/// A bit for each special byte, the first byte's the lowest. The compiler makes vector instructions of it.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn specials(block: &[u8; BLOCK]) -> u32 {
    if !block.iter().fold(false, |found, byte| found | is_special(byte)) {
        return 0;
    }
    block.iter().rev().fold(0, |bits, byte| bits << 1 | u32::from(is_special(byte)))
}

fn is_special(byte: &u8) -> bool {
    (*byte < 0x20) | (*byte == b'"') | (*byte == b'\\')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_special_byte_is_found_at_any_distance(
            plain in prop::collection::vec(prop_oneof![Just(b'a'), Just(0x20), Just(0xff)], 0..150),
            special in prop::sample::select(vec![b'"', b'\\', 0, 0x1f]),
            after in prop::collection::vec(any::<u8>(), 0..20),
            start in any::<prop::sample::Index>(),
        ) {
            let start = start.index(plain.len() + 1);
            prop_assert_eq!(plain_until(&plain, start), plain.len());
            let text = [&plain[..], &[special], &after].concat();
            prop_assert_eq!(plain_until(&text, start), plain.len());
        }
    }
}
