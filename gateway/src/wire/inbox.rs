//! The bytes of a client's connection that belong to no request yet.

use crate::wire::body::MessageBody;
use crate::wire::request::{HeadError, HeadLimits, RequestStart, may_be_complete, read_request};

/// Bytes that have come before or behind a request.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    /// The first bytes that are known to hold no whole head.
    seen: usize,
}

impl Inbox {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, seen: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether there is nothing but the empty lines that may stand before a head.
    pub(crate) fn is_blank(&self) -> bool {
        self.bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
    }

    /// Whether there are bytes that [`read_head`](Self::read_head) has not looked at.
    pub(crate) fn is_unseen(&self) -> bool {
        self.seen < self.bytes.len()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.seen = 0;
        std::mem::take(&mut self.bytes)
    }

    /// Takes more bytes, and reads a head with as much of its body as has come; `None` if it is
    /// incomplete. Nothing is taken from a body that the client must be asked for.
    ///
    /// # Errors
    /// As for [`read_request`].
    pub(crate) fn read_head(
        &mut self,
        more: &[u8],
        limits: HeadLimits,
    ) -> Result<Option<Box<RequestStart>>, HeadError> {
        if self.bytes.is_empty() {
            // Nearly always, a request comes whole, and is not copied.
            let start = read(more, limits)?;
            let used = start.as_ref().map_or(0, |(_, used)| *used);
            self.push(&more[used..]);
            return Ok(self.note(start));
        }
        self.push(more);
        if self.seen > 0 && !may_be_complete(&self.bytes, self.seen) {
            self.seen = self.bytes.len();
            return if self.seen < limits.bytes { Ok(None) } else { Err(HeadError::Long) };
        }
        let start = read(&self.bytes, limits)?;
        if let Some((_, used)) = &start {
            // Not drained: no memory is kept for bytes that are gone.
            self.bytes = self.bytes[*used..].to_vec();
        }
        Ok(self.note(start))
    }

    fn note(&mut self, start: Option<ReadStart>) -> Option<Box<RequestStart>> {
        self.seen = if start.is_none() { self.bytes.len() } else { 0 };
        start.map(|(start, _)| start)
    }

    /// Gives a body the bytes that it consists of. Earlier data must have been taken.
    pub(crate) fn feed(&mut self, body: &mut MessageBody) {
        if !self.bytes.is_empty() {
            self.bytes = body.feed_part(&self.bytes).to_vec();
        }
    }
}

/// A request, and the number of bytes that it has taken.
type ReadStart = (Box<RequestStart>, usize);

fn read(bytes: &[u8], limits: HeadLimits) -> Result<Option<ReadStart>, HeadError> {
    let Some(mut start) = read_request(bytes, limits)? else { return Ok(None) };
    let mut rest = &bytes[start.length..];
    if !start.expects_continue {
        rest = start.body.feed_part(rest);
    }
    let used = bytes.len() - rest.len();
    Ok(Some((start, used)))
}
