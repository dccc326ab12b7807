//! The end of a run of plain bytes in a string.

/// The position of the first quote, backslash or control character from `at` on.
#[inline]
pub(crate) fn plain_until(bytes: &[u8], at: usize) -> usize {
    // Most strings are keys and end within their first bytes, so eight of them are read at once.
    if let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        match plain_bytes(*eight) {
            8 => plain_from(bytes, at + 8),
            plain => at + plain,
        }
    } else {
        plain_from(bytes, at)
    }
}

/// How many of eight bytes come before the first special one.
#[inline]
fn plain_bytes(eight: [u8; 8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = ONES << 7;
    // A borrow can only mark bytes after a real hit, so the first mark is exact.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word;
    let word = u64::from_le_bytes(eight);
    let quotes = zeros(word ^ (ONES * u64::from(b'"')));
    let backslashes = zeros(word ^ (ONES * u64::from(b'\\')));
    let controls = word.wrapping_sub(ONES * 0x20) & !word;
    let hits = (quotes | backslashes | controls) & TOPS;
    hits.trailing_zeros() as usize / 8
}

#[inline(never)]
fn plain_from(bytes: &[u8], at: usize) -> usize {
    let mut rest = bytes.get(at..).unwrap_or_default();
    let mut words = 0;
    while let Some((eight, after)) = rest.split_first_chunk() {
        let plain = plain_bytes(*eight);
        if plain < 8 {
            return bytes.len() - rest.len() + plain;
        }
        rest = after;
        words += 1;
        if words == 4 {
            rest = without_plain_blocks(rest);
        }
    }
    bytes.len() - rest.len() + rest.iter().position(is_special).unwrap_or(rest.len())
}

/// Skips blocks without a quote, backslash or control character. The compiler makes a few vector
/// instructions of each block, so a long text costs half an instruction for each of its bytes.
fn without_plain_blocks(mut rest: &[u8]) -> &[u8] {
    while let Some((block, after)) = rest.split_first_chunk::<32>() {
        if block.iter().fold(false, |found, byte| found | is_special(byte)) {
            break;
        }
        rest = after;
    }
    rest
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
