//! Where a WebSocket's frames begin, as far as it takes to know whether a side has said its close
//! (RFC 6455, 5.2): a replica that ends a session without one has died.
//!
//! Pure: bytes come as they were cut.

const CLOSE: u8 = 8;
/// Two bytes, eight of a long length, four of a mask.
const LONGEST_HEAD: usize = 14;

/// The frames of one direction.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    head: [u8; LONGEST_HEAD],
    /// Bytes of the head that are here.
    have: usize,
    /// Bytes of the payload that are still to come.
    left: u64,
    closed: bool,
}

impl Frames {
    /// Whether a close frame came.
    pub(crate) fn closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= taken as u64;
                bytes = &bytes[taken..];
                continue;
            }
            self.head[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if self.have == self.head_len() {
                self.closed |= self.head[0] & 0xf == CLOSE;
                self.left = self.payload();
                self.have = 0;
            }
        }
    }

    fn head_len(&self) -> usize {
        if self.have < 2 {
            return 2;
        }
        let long = match self.head[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.head[1] & 0x80 == 0 { 0 } else { 4 };
        2 + long + mask
    }

    fn payload(&self) -> u64 {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        match self.head[1] & 0x7f {
            126 => number(&self.head[2..4]),
            127 => number(&self.head[2..10]),
            short => u64::from(short),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(opcode: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            n @ ..126 => frame.push(mask | n as u8),
            n @ 126..0x1_0000 => {
                frame.push(mask | 126);
                frame.extend((n as u16).to_be_bytes());
            }
            n => {
                frame.push(mask | 127);
                frame.extend((n as u64).to_be_bytes());
            }
        }
        frame.extend(if masked { &[1, 2, 3, 4][..] } else { &[] });
        frame.extend(payload);
        frame
    }

    proptest! {
        #[test]
        fn a_close_is_seen_however_it_is_cut_and_never_in_a_payload(
            frames in prop::collection::vec(
                (prop_oneof![0..3u8, 9..11u8], any::<bool>(), prop_oneof![0..200usize, Just(70_000)]),
                0..6,
            ),
            close: bool,
            piece in 1..4_000usize,
        ) {
            // Payloads look like close frames themselves.
            let mut bytes: Vec<u8> = frames
                .iter()
                .flat_map(|(opcode, masked, len)| frame(*opcode, *masked, &vec![0x88; *len]))
                .collect();
            if close {
                bytes.extend(frame(CLOSE, false, &[3, 232]));
            }
            let mut seen = Frames::default();
            bytes.chunks(piece).for_each(|piece| seen.feed(piece));
            prop_assert_eq!(seen.closed(), close);
        }
    }
}
