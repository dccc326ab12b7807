//! A WebSocket's frames (RFC 6455, 5.2), as far as the gateway needs them: where each frame ends,
//! so that the gateway can send its own close frame between two others; whether a side has sent a
//! close frame, since a replica that ends a session without one has died; and the text of a
//! replica's messages, which reports usage.
//!
//! By hand, since bytes pass on as they came: a WebSocket library takes messages apart and frames
//! them anew. Pure: bytes may be cut anywhere.

const CONTINUED: u8 = 0;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const FINAL: u8 = 0x80;
/// Set if an extension has changed the payload.
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
/// Two bytes, eight of a long length, four of a mask.
const LONGEST_HEAD: usize = 14;
/// Longer messages pass without being read.
const LONGEST_TEXT: usize = 1 << 20;

/// The frames of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; LONGEST_HEAD],
    /// The bytes of the head that have come.
    have: usize,
    /// The bytes of the payload that have not come yet.
    left: u64,
    closed: bool,
    messages: u64,
    /// Whether messages are read, or only counted.
    reads: bool,
    /// The part of a message that has come, if it is read.
    text: Option<Vec<u8>>,
}

impl Frames {
    /// Frames whose text messages are read, unless they are masked, as a client's are, or
    /// compressed.
    pub(super) fn reading() -> Self {
        Self { reads: true, ..Self::default() }
    }

    /// Whether a close frame came.
    pub(super) fn closed(&self) -> bool {
        self.closed
    }

    /// The complete messages, of one frame or many.
    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    /// Takes the next bytes, and gives each text message that they complete to `on_text`. Returns
    /// the offset after the last frame that ends in these bytes, or at their beginning; `None` if
    /// no frame ends there.
    pub(super) fn feed(&mut self, bytes: &[u8], mut on_text: impl FnMut(&[u8])) -> Option<usize> {
        let mut whole = (self.have == 0 && self.left == 0).then_some(0);
        let mut at = 0;
        while at < bytes.len() {
            if self.left > 0 {
                let rest = &bytes[at..];
                let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
                self.payload(&rest[..taken]);
                self.left -= taken as u64;
                at += taken;
            } else {
                self.head[self.have] = bytes[at];
                self.have += 1;
                at += 1;
                if self.have < self.head_len() {
                    continue;
                }
                self.begin();
            }
            if self.left == 0 {
                self.end(&mut on_text);
                whole = Some(at);
            }
        }
        whole
    }

    fn opcode(&self) -> u8 {
        self.head[0] & 0xf
    }

    /// Whether it is not a control frame. Control frames may stand between those of a message.
    fn has_data(&self) -> bool {
        self.opcode() < CLOSE
    }

    /// Begins the payload: the head is complete.
    fn begin(&mut self) {
        self.have = 0;
        self.left = self.length();
        self.closed |= self.opcode() == CLOSE;
        let plain = self.head[0] & RESERVED == 0 && self.head[1] & MASKED == 0;
        if self.opcode() == TEXT && self.reads {
            self.text = Some(Vec::new());
        } else if self.has_data() && self.opcode() != CONTINUED {
            self.text = None;
        }
        if self.has_data() && !plain {
            self.text = None;
        }
    }

    fn payload(&mut self, bytes: &[u8]) {
        if self.has_data()
            && let Some(text) = &mut self.text
        {
            if text.len() + bytes.len() > LONGEST_TEXT {
                self.text = None;
            } else {
                text.extend_from_slice(bytes);
            }
        }
    }

    /// Ends the frame: the payload is complete.
    fn end(&mut self, on_text: &mut impl FnMut(&[u8])) {
        if self.has_data() && self.head[0] & FINAL != 0 {
            self.messages += 1;
            if let Some(text) = self.text.take() {
                on_text(&text);
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
        let mask = if self.head[1] & MASKED == 0 { 0 } else { 4 };
        2 + long + mask
    }

    fn length(&self) -> u64 {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        match self.head[1] & 0x7f {
            126 => number(&self.head[2..4]),
            127 => number(&self.head[2..10]),
            short => u64::from(short),
        }
    }
}

/// A server's close frame. The reason, which is for people, is cut to the size of a control frame.
pub(super) fn close(code: u16, reason: &str) -> Vec<u8> {
    let reason = &reason.as_bytes()[..reason.len().min(123)];
    let mut frame = vec![FINAL | CLOSE, reason.len() as u8 + 2];
    frame.extend(code.to_be_bytes());
    frame.extend(reason);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `first` is the frame's first byte.
    fn frame(first: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
        let mask = if masked { MASKED } else { 0 };
        let mut frame = vec![first];
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

    /// The texts that are read from bytes that come in pieces of this size.
    fn read_texts(frames: &mut Frames, bytes: &[u8], piece: usize) -> Vec<String> {
        let mut texts = Vec::new();
        for piece in bytes.chunks(piece) {
            frames.feed(piece, |text| texts.push(String::from_utf8_lossy(text).into_owned()));
        }
        texts
    }

    #[test]
    fn a_message_is_read_over_its_frames_with_others_between_them() {
        let long = vec![b'x'; LONGEST_TEXT + 1];
        for (case, frames, texts, messages) in [
            ("one", vec![frame(0x81, false, b"a"), frame(0x81, false, b"")], vec!["a", ""], 2),
            (
                "in parts, a ping between them",
                vec![
                    frame(0x01, false, b"a"),
                    frame(0x89, false, b"ping"),
                    frame(0x00, false, b"b"),
                    frame(0x80, false, b"c"),
                ],
                vec!["abc"],
                1,
            ),
            ("binary", vec![frame(0x02, false, b"a"), frame(0x80, false, b"b")], vec![], 1),
            ("compressed", vec![frame(0xc1, false, b"a"), frame(0x81, false, b"b")], vec!["b"], 2),
            ("masked", vec![frame(0x81, true, b"a")], vec![], 1),
            ("too long", vec![frame(0x81, false, &long), frame(0x81, false, b"b")], vec!["b"], 2),
        ] {
            let mut seen = Frames::reading();
            assert_eq!(read_texts(&mut seen, &frames.concat(), 5), texts, "{case}");
            assert_eq!(seen.messages(), messages, "{case}");
            let mut counting = Frames::default();
            assert!(read_texts(&mut counting, &frames.concat(), 5).is_empty(), "{case}");
            assert_eq!(counting.messages(), messages, "{case}");
        }
    }

    #[test]
    fn our_close_is_one_frame_with_its_code() {
        let bytes = close(1001, "going");
        assert_eq!(bytes, frame(0x88, false, b"\x03\xe9going"));
        assert_eq!(close(1001, &"x".repeat(500)).len(), 2 + 125);
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
                .flat_map(|(opcode, masked, len)| frame(0x80 | opcode, *masked, &vec![0x88; *len]))
                .collect();
            if close {
                bytes.extend(frame(0x88, false, &[3, 232]));
            }
            let mut seen = Frames::reading();
            read_texts(&mut seen, &bytes, piece);
            prop_assert_eq!(seen.closed(), close);
        }

        #[test]
        fn the_end_of_a_frame_is_found_in_any_piece(
            lens in prop::collection::vec((any::<bool>(), prop_oneof![0..9usize, Just(300)]), 1..8),
            piece in 1..40usize,
        ) {
            let (mut bytes, mut ends) = (Vec::new(), vec![0]);
            for (masked, len) in lens {
                bytes.extend(frame(0x82, masked, &vec![0x81; len]));
                ends.push(bytes.len());
            }
            let mut seen = Frames::default();
            for (i, part) in bytes.chunks(piece).enumerate() {
                let (from, to) = (i * piece, i * piece + part.len());
                let last = ends.iter().rfind(|end| (from..=to).contains(end)).map(|end| end - from);
                prop_assert_eq!(seen.feed(part, |_| {}), last);
            }
        }
    }
}
