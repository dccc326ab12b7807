//! A replica's HTTP/1.1 response as bytes: its head, and its body without the framing.
//!
//! Every response has one end. Where its framing could be read in two ways (RFC 9112, 6.3), it is
//! refused: the rest of one response must never pass for the beginning of the next. Bytes come in
//! pieces of any size, and the result does not depend on the cuts.
//!
//! Pure: sockets are in `exchange/upstream.rs` and `pool/probe/connection.rs`. Uses no other room.
//! In the order of the bytes: `head`, then `body` with `chunks`.

pub(crate) mod body;
pub(crate) mod chunks;
pub(crate) mod head;
#[cfg(test)]
mod tests;

/// The reason why a response can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("the connection closed before the response was complete")]
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
    #[error("the chunks of the response are not valid: {0}")]
    Chunks(&'static str),
}

impl WireError {
    /// Whether the connection failed or ended. All other errors are about bytes that a live server
    /// wrote.
    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Cut)
    }
}
