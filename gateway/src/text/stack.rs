//! Short texts that are written without an allocation and without the machinery of `std::fmt`,
//! which costs some hundred instructions for each number.

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Each byte in hex.
const HEX: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < pairs.len() {
        pairs[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    pairs
};

/// A text of at most `N` bytes. More than that is cut off.
pub(crate) struct StackText<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> StackText<N> {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// All bytes, for a text that fills its room. The rest of a shorter text is zero.
    pub(crate) fn whole(&self) -> &[u8; N] {
        &self.bytes
    }

    pub(crate) fn push(&mut self, text: &[u8]) {
        let free = &mut self.bytes[self.len..];
        let count = text.len().min(free.len());
        free[..count].copy_from_slice(&text[..count]);
        self.len += count;
    }

    /// Appends a number in decimal.
    pub(crate) fn number(&mut self, mut number: u64) {
        let count = number.checked_ilog10().map_or(1, |log| log as usize + 1);
        let free = &mut self.bytes[self.len..];
        let room = count.min(free.len());
        for _ in room..count {
            number /= 10;
        }
        for digit in free[..room].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        self.len += room;
    }

    /// Appends a number of at most three digits in decimal. Every address has four of them.
    fn octet(&mut self, number: u8) {
        if number >= 100 {
            self.byte(b'0' + number / 100);
        }
        if number >= 10 {
            self.byte(b'0' + number / 10 % 10);
        }
        self.byte(b'0' + number % 10);
    }

    fn byte(&mut self, byte: u8) {
        if let Some(free) = self.bytes.get_mut(self.len) {
            *free = byte;
            self.len += 1;
        }
    }

    /// Appends bytes as lower case hex.
    pub(crate) fn hex(&mut self, bytes: &[u8]) {
        let free = self.bytes[self.len..].chunks_exact_mut(2);
        let mut pairs = 0;
        for (pair, byte) in free.zip(bytes) {
            pair.copy_from_slice(&HEX[usize::from(*byte)]);
            pairs += 1;
        }
        self.len += 2 * pairs;
    }

    /// Appends a time in milliseconds with one decimal place.
    pub(crate) fn millis(&mut self, time: Duration) {
        // Without 128 bits, which no processor divides.
        let rounded = (u64::from(time.subsec_nanos()) + 50_000) / 100_000;
        let tenths = time.as_secs().saturating_mul(10_000).saturating_add(rounded);
        self.number(tenths / 10);
        self.push(&[b'.', b'0' + (tenths % 10) as u8]);
    }

    pub(crate) fn ip(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => {
                let [first, rest @ ..] = address.octets();
                self.octet(first);
                for octet in rest {
                    self.byte(b'.');
                    self.octet(octet);
                }
            }
            // Rare, and its short form is not simple.
            IpAddr::V6(address) => {
                let _ = write!(self, "{address}");
            }
        }
    }

    pub(crate) fn socket(&mut self, address: SocketAddr) {
        match address {
            SocketAddr::V4(address) => {
                self.ip(IpAddr::V4(*address.ip()));
                self.push(b":");
                self.number(address.port().into());
            }
            SocketAddr::V6(address) => {
                let _ = write!(self, "{address}");
            }
        }
    }
}

impl<const N: usize> Write for StackText<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut StackText<64>)) -> String {
        let mut text = StackText::new();
        write(&mut text);
        String::from_utf8(text.as_bytes().to_vec()).expect("text")
    }

    #[test]
    fn more_than_there_is_room_for_is_cut_off() {
        let mut text = StackText::<5>::new();
        text.push(b"abc");
        text.number(123);
        text.push(b"x");
        assert_eq!(text.as_bytes(), b"abc12");
    }

    #[test]
    fn times_are_rounded_to_a_tenth_of_a_millisecond() {
        for (micros, want) in [
            (0, "0.0"),
            (49, "0.0"),
            (50, "0.1"),
            (12_345, "12.3"),
            (99_950, "100.0"),
            (3_999_960, "4000.0"),
        ] {
            assert_eq!(written(|text| text.millis(Duration::from_micros(micros))), want);
        }
        assert_eq!(written(|text| text.millis(Duration::MAX)), format!("{}.5", u64::MAX / 10));
    }

    proptest! {
        #[test]
        fn texts_are_those_of_the_standard_library(
            number: u64, ip: IpAddr, port: u16, bytes in prop::collection::vec(any::<u8>(), 0..32),
        ) {
            prop_assert_eq!(written(|text| text.number(number)), number.to_string());
            prop_assert_eq!(written(|text| text.ip(ip)), ip.to_string());
            let socket = SocketAddr::new(ip, port);
            prop_assert_eq!(written(|text| text.socket(socket)), socket.to_string());
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(written(|text| text.hex(&bytes)), hex);
        }
    }
}
