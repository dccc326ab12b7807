//! The body of a message, without its framing.

use bytes::Bytes;

use crate::wire::WireError;
use crate::wire::chunks::Chunks;

/// The body of one message while its bytes come.
///
/// Data is copied out of the bytes that come, once and into exactly its size. So a piece that is
/// kept for long keeps nothing else in memory, and one buffer for reading serves all connections
/// of a thread.
#[derive(Debug)]
pub(crate) struct MessageBody {
    framing: Framing,
    /// Data that has come and is not taken.
    data: Bytes,
    /// The reason why nothing comes behind `data`.
    error: Option<WireError>,
    /// Bytes have come behind the body's end.
    excess: bool,
}

/// The sign of a body's end.
#[derive(Debug)]
enum Framing {
    /// This many bytes are left.
    Length(u64),
    /// A last chunk.
    Chunks(Chunks),
    /// The connection's end.
    Close,
    /// The connection has ended.
    Closed,
}

impl MessageBody {
    /// A body of `length` bytes.
    pub(crate) fn sized(length: u64) -> Self {
        Self::new(Framing::Length(length))
    }

    /// A body in chunks.
    pub(crate) fn chunked() -> Self {
        Self::new(Framing::Chunks(Chunks::default()))
    }

    /// A body that ends with its connection.
    pub(crate) fn until_close() -> Self {
        Self::new(Framing::Close)
    }

    /// Whether only the connection's end is the body's end.
    pub(crate) fn ends_with_connection(&self) -> bool {
        matches!(self.framing, Framing::Close | Framing::Closed)
    }

    fn new(framing: Framing) -> Self {
        Self { framing, data: Bytes::new(), error: None, excess: false }
    }

    /// Takes the next bytes of the connection, of which all must belong to the body. Earlier data
    /// must have been taken.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let rest = self.feed_part(bytes);
        self.excess |= !rest.is_empty();
    }

    /// Takes the next bytes of the connection up to the body's end, and returns those behind it.
    /// Earlier data must have been taken.
    pub(crate) fn feed_part<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        debug_assert!(self.data.is_empty() && self.error.is_none(), "it is not taken");
        match self.data(&mut bytes) {
            Ok(data) => self.data = data,
            Err((data, error)) => (self.data, self.error) = (data, Some(error)),
        }
        bytes
    }

    /// Nearly always there is one slice of data. More of them are joined.
    fn data(&mut self, bytes: &mut &[u8]) -> Result<Bytes, (Bytes, WireError)> {
        let first = match self.framing.next(bytes) {
            Ok(Some(first)) => first,
            Ok(None) => return Ok(Bytes::new()),
            Err(error) => return Err((Bytes::new(), error)),
        };
        let mut joined: Option<Vec<u8>> = None;
        let data = |joined: Option<Vec<u8>>| {
            let Some(mut joined) = joined else { return Bytes::copy_from_slice(first) };
            // Long extensions, or the next message.
            if joined.capacity() > 2 * joined.len() {
                joined.shrink_to_fit();
            }
            Bytes::from(joined)
        };
        loop {
            match self.framing.next(bytes) {
                Ok(Some(slice)) => {
                    let joined = joined.get_or_insert_with(|| {
                        let mut all = Vec::with_capacity(first.len() + slice.len() + bytes.len());
                        all.extend_from_slice(first);
                        all
                    });
                    joined.extend_from_slice(slice);
                }
                Ok(None) => return Ok(data(joined)),
                Err(error) => return Err((data(joined), error)),
            }
        }
    }

    /// The number of bytes that belong to the body whatever they are, for a reader that can read them
    /// in place: [`place`](Self::place).
    pub(crate) fn placeable(&self) -> u64 {
        match self.framing {
            Framing::Length(left) if self.data.is_empty() && self.error.is_none() => left,
            _ => 0,
        }
    }

    /// Takes the next bytes of the connection, at most [`placeable`](Self::placeable), as they are.
    pub(crate) fn place(&mut self, data: Bytes) {
        if let Framing::Length(left) = &mut self.framing {
            *left = left.saturating_sub(data.len() as u64);
            self.data = data;
        }
    }

    /// Notes that the connection failed or, without an `error`, ended.
    pub(crate) fn close(&mut self, error: Option<WireError>) {
        match (&self.framing, error) {
            (_, Some(error)) => self.error = Some(error),
            (Framing::Close, None) => self.framing = Framing::Closed,
            (_, None) if self.is_complete() => {}
            (_, None) => self.error = Some(WireError::Cut),
        }
    }

    /// Takes the data that has come, if there is any.
    pub(crate) fn take(&mut self) -> Option<Bytes> {
        (!self.data.is_empty()).then(|| std::mem::take(&mut self.data))
    }

    /// Takes the reason why nothing more comes, if there is one. Data comes before it.
    pub(crate) fn take_error(&mut self) -> Option<WireError> {
        self.error.take()
    }

    /// Whether no error is known.
    pub(crate) fn is_sound(&self) -> bool {
        self.error.is_none()
    }

    /// Whether all data has come.
    pub(crate) fn is_complete(&self) -> bool {
        match &self.framing {
            Framing::Length(left) => *left == 0,
            Framing::Chunks(chunks) => chunks.is_complete(),
            Framing::Close => false,
            Framing::Closed => true,
        }
    }

    /// Whether all data has come and is taken.
    pub(crate) fn is_over(&self) -> bool {
        self.data.is_empty() && self.error.is_none() && self.is_complete()
    }

    /// Whether bytes have come behind the body's end, which answer no request.
    pub(crate) fn has_excess(&self) -> bool {
        self.excess
    }

    /// The number of bytes that are left to take, if the head says how many there are.
    pub(crate) fn left(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left.saturating_add(self.data.len() as u64)),
            _ => None,
        }
    }
}

impl Framing {
    /// Takes the next data from the beginning of `bytes`; `None` if they hold no more.
    fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<&'a [u8]>, WireError> {
        let count = match self {
            Self::Chunks(chunks) => return chunks.next(bytes),
            Self::Close => bytes.len(),
            Self::Closed => 0,
            Self::Length(left) => {
                let count = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                count
            }
        };
        let (data, rest) = bytes.split_at(count);
        *bytes = rest;
        Ok((!data.is_empty()).then_some(data))
    }
}
