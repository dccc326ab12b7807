//! Reading and writing by the buffers of a thread.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wire::outbox::Outbox;

/// The bytes that are read at once.
const READ: usize = 16 << 10;
/// The largest buffer for writing that a thread keeps.
const SPARE: usize = 64 << 10;
thread_local! {
    /// The bytes of one read, of whichever connection.
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
    /// An empty buffer for the next answer.
    static WRITE_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// An empty buffer for an answer.
pub(super) fn write_buffer() -> Vec<u8> {
    WRITE_BUFFER.take()
}

/// Reads once, and gives the bytes, none at the connection's end, to `take`.
pub(super) fn poll_read<I: AsyncRead + Unpin, T>(
    io: &mut I,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    READ_BUFFER.with_borrow_mut(|buffer| {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(take(buffer.filled())))
    })
}

/// Writes everything that is in `out`.
pub(super) fn poll_flush<I: AsyncWrite + Unpin>(
    io: &mut I,
    out: &mut Outbox,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !out.is_empty() {
        let slices = out.slices();
        let written = match slices {
            [bytes, [], []] => Pin::new(&mut *io).poll_write(cx, bytes),
            slices => Pin::new(&mut *io).poll_write_vectored(cx, &slices.map(IoSlice::new)),
        };
        let count = ready!(written)?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        if let Some(buffer) = out.written(count)
            && buffer.capacity() <= SPARE
        {
            WRITE_BUFFER.set(buffer);
        }
    }
    Pin::new(io).poll_flush(cx)
}
