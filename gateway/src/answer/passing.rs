//! The bytes of one frame of a stream on their way out: as few slices as possible, and copies only of
//! events that are changed.

use std::ops::Range;

use bytes::Bytes;

use crate::text::rope::Rope;

/// The bytes of one frame that go out.
pub(crate) struct Passing {
    frame: Bytes,
    /// Events that lie side by side in the frame go out as one slice of it.
    run: Range<usize>,
    /// Events that are copied, since they go out otherwise than they came.
    copied: Vec<u8>,
    out: Rope,
}

impl Passing {
    pub(crate) fn of(frame: Bytes) -> Self {
        Self { frame, run: 0..0, copied: Vec::new(), out: Rope::default() }
    }

    /// Passes on the events at this place of the frame.
    pub(crate) fn keep(&mut self, at: Range<usize>) {
        if self.run.end == at.start && !self.run.is_empty() {
            self.run.end = at.end;
        } else {
            self.flush();
            self.run = at;
        }
    }

    /// Passes on bytes that are not the frame's.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.flush();
        self.out.push(bytes);
    }

    /// Passes on what `write` appends.
    pub(crate) fn copy(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if !self.run.is_empty() {
            self.flush();
        }
        write(&mut self.copied);
    }

    /// Everything that goes out so far; more may be pushed.
    pub(crate) fn flush(&mut self) -> &mut Rope {
        let run = std::mem::take(&mut self.run);
        self.out.push(self.frame.slice(run));
        if !self.copied.is_empty() {
            self.out.push(std::mem::take(&mut self.copied).into());
        }
        &mut self.out
    }

    #[inline]
    pub(crate) fn end(mut self) -> Rope {
        if self.run.len() == self.frame.len() {
            self.out.push(self.frame);
        } else {
            self.flush();
        }
        self.out
    }
}
