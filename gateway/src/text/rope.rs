//! A rope: slices of bytes in order, which are never joined. The bytes of an answer go out as a
//! rope, and so does an edited request body: slices of the original, with new text between them.

use std::collections::VecDeque;

use bytes::Bytes;

/// Slices of bytes in order. Nearly always there is one, which needs no memory of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rope {
    first: Bytes,
    more: VecDeque<Bytes>,
}

impl Rope {
    /// Appends a slice; ignores an empty one.
    pub(crate) fn push(&mut self, slice: Bytes) {
        if self.first.is_empty() {
            self.first = slice;
        } else if !slice.is_empty() {
            self.more.push_back(slice);
        }
    }

    /// Takes the first slice.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let next = self.more.pop_front().unwrap_or_default();
        let first = std::mem::replace(&mut self.first, next);
        (!first.is_empty()).then_some(first)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// The slices in order.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(&self.more)
    }

    /// The length of all slices, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.more.iter().map(Bytes::len).sum::<usize>()
    }
}

impl From<Bytes> for Rope {
    fn from(first: Bytes) -> Self {
        Self { first, more: VecDeque::new() }
    }
}

impl Iterator for Rope {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.pop()
    }
}
