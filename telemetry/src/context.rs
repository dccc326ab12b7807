//! The identifiers of traces and spans, and the W3C's `traceparent` that carries them from one server
//! to the next. Pure, apart from the random numbers.

use std::fmt;

/// The identifier of a trace: not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// The identifier of a span: not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

/// A position in a trace: the span that comes next has this one as its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    /// Whether it is traced.
    pub sampled: bool,
}

/// The length of a `traceparent` of version 00, in bytes.
pub const TRACE_PARENT_LEN: usize = 55;

impl TraceId {
    /// A new one, by chance.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random::<u128>().max(1))
    }

    /// Its 16 bytes, in the order in which they are written.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Its text: 32 digits in lower case hex.
    #[must_use]
    pub fn hex(self) -> [u8; 32] {
        hex(&self.bytes())
    }

    /// Its last eight bytes as a number. They are random, whatever made the identifier.
    pub(crate) fn low(self) -> u64 {
        self.0 as u64
    }
}

impl SpanId {
    /// A new one, by chance.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random::<u64>().max(1))
    }

    /// Its 8 bytes, in the order in which they are written.
    #[must_use]
    pub fn bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

impl TraceContext {
    /// The beginning of a new trace, by chance.
    #[must_use]
    pub fn random(sampled: bool) -> Self {
        Self { trace: TraceId::random(), span: SpanId::random(), sampled }
    }

    /// Reads a `traceparent`: `version-trace-parent-flags` in lower case hex, of which only version and
    /// flags may be all zero. Later versions than 00 may add fields. `None` if it is not one.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (head, more) = text.split_at_checked(TRACE_PARENT_LEN)?;
        let version = digits(&head[..2])?;
        let dashes = [2, 35, 52].iter().all(|at| head[*at] == b'-');
        let ends = more.is_empty() || version > 0 && more[0] == b'-';
        if !dashes || !ends || version == 0xff {
            return None;
        }
        let (trace, span) = (digits(&head[3..35])?, digits(&head[36..52])? as u64);
        let sampled = digits(&head[53..])? & 1 == 1;
        (trace > 0 && span > 0).then_some(Self {
            trace: TraceId(trace),
            span: SpanId(span),
            sampled,
        })
    }

    /// The `traceparent` for the next server.
    #[must_use]
    pub fn trace_parent(&self) -> [u8; TRACE_PARENT_LEN] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        text[3..35].copy_from_slice(&self.trace.hex());
        text[36..52].copy_from_slice(&hex::<16>(&self.span.bytes()));
        text[54] = if self.sampled { b'1' } else { b'0' };
        text
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.trace_parent()))
    }
}

/// A number in lower case hex; `None` for any other text.
fn digits(text: &[u8]) -> Option<u128> {
    text.iter().try_fold(0, |number, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

fn hex<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut text = [b'0'; N];
    for (eight, bytes) in text.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
        *eight = hex_of_four(*bytes);
    }
    text
}

/// The eight digits of four bytes, made all at once.
fn hex_of_four(bytes: [u8; 4]) -> [u8; 8] {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let bits = u64::from(u32::from_be_bytes(bytes));
    // Half a byte for each byte.
    let halves = (bits | bits << 16) & 0x0000_ffff_0000_ffff;
    let halves = (halves | halves << 8) & 0x00ff_00ff_00ff_00ff;
    let halves = (halves | halves << 4) & (0x0f * EACH);
    // From ten on, letters.
    let letters = (halves + 6 * EACH) >> 4 & EACH;
    let text = halves + u64::from(b'0') * EACH + letters * u64::from(b'a' - b'0' - 10);
    text.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_parent_is_read_and_written_alike() {
        for text in [
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        ] {
            let context = TraceContext::parse(text.as_bytes()).expect("valid");
            assert_eq!(context.to_string(), text);
            assert_eq!(context.sampled, text.ends_with("01"));
            assert_eq!(&context.trace.hex(), &text.as_bytes()[3..35]);
        }
        let made = TraceContext::random(true);
        assert_eq!(TraceContext::parse(&made.trace_parent()), Some(made));
        assert_ne!(TraceContext::random(true), made);
    }

    #[test]
    fn later_versions_and_other_flags_are_read_as_far_as_they_are_known() {
        for (text, sampled) in [
            ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more", false),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-fe", false),
        ] {
            let context = TraceContext::parse(text.as_bytes()).expect(text);
            assert_eq!(context.sampled, sampled, "{text}");
        }
    }

    #[test]
    fn anything_else_is_not_a_trace_parent() {
        for text in [
            "",
            "nonsense",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(text.as_bytes()), None, "{text}");
        }
    }
}
