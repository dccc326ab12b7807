//! HTTP/1.1 messages as bytes: their heads, and their bodies without the framing.
//!
//! Every message has one end. Where its framing could be read in two ways (RFC 9112, 6.3), it is
//! refused, or nothing follows it: the rest of one message must never pass for the beginning of the
//! next. Bytes come in pieces of any size, and the result does not depend on the cuts.
//!
//! Pure: sockets are in `edge/http1.rs`, `exchange/upstream.rs` and `pool/probe/connection.rs`. Uses
//! `text`. For a replica's responses: `head`, and `lines` with their headers. For clients: `inbox` has
//! the bytes that come, `request` reads a request's head, and `outbox` writes responses. For both:
//! `body` with `chunks`.

pub(crate) mod body;
pub(crate) mod chunks;
pub(crate) mod head;
pub(crate) mod inbox;
pub(crate) mod lines;
pub(crate) mod outbox;
pub(crate) mod request;
#[cfg(test)]
mod tests;

/// The reason why a message can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("the connection closed before the message was complete")]
    Cut,
    #[error("the head of the response is not valid: {0}")]
    Head(httparse::Error),
    #[error("the head of the response is too long")]
    LongHead,
    #[error("the response switches to another protocol, which the request did not ask for")]
    Switched,
    #[error("the `content-length` of the response is not one number")]
    Length,
    #[error("the `transfer-encoding` of the response is not `chunked` alone")]
    TransferEncoding,
    #[error("the response has a `content-length` and a `transfer-encoding`")]
    TwoLengths,
    #[error("the chunks of the message are not valid: {0}")]
    Chunks(&'static str),
}

impl WireError {
    /// Whether the connection failed or ended. All other errors are about bytes that a live server
    /// wrote.
    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Cut)
    }
}

/// A number of decimal digits alone.
fn digits(text: &[u8]) -> Option<u64> {
    let mut number: u64 = 0;
    for byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number.checked_mul(10)?.checked_add(digit.into())?;
    }
    (!text.is_empty()).then_some(number)
}

/// Whether a list, like the value of `connection`, has this token. A list that is not ASCII has none.
fn lists_token(list: &[u8], token: &[u8]) -> bool {
    list.is_ascii() && has_token(list, token)
}

/// Whether a list has this token, whatever else it has.
fn has_token(list: &[u8], token: &[u8]) -> bool {
    let mut tokens = list.split(|byte| *byte == b',');
    tokens.any(|found| found.trim_ascii().eq_ignore_ascii_case(token))
}
