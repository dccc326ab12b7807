//! How much of request bodies the gateway has in memory in all, whoever sent them: those that are
//! being read, and those that are held or on their way to a replica.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;

/// All bodies of the process.
#[derive(Default)]
pub(crate) struct Bodies {
    bytes: Arc<AtomicU64>,
}

/// One body's part of it, for as long as anybody has the body.
#[must_use = "dropping it gives the bytes back"]
pub(crate) struct Share {
    all: Arc<AtomicU64>,
    own: u64,
    most: u64,
}

impl Bodies {
    /// A body that comes while there may be at most so many bytes in all.
    pub(crate) fn share(&self, most: u64) -> Share {
        Share { all: Arc::clone(&self.bytes), own: 0, most }
    }
}

impl Share {
    /// So many more bytes have come; false if that is more than there may be.
    #[must_use]
    pub(crate) fn grow(&mut self, bytes: u64) -> bool {
        let more = |all: u64| all.checked_add(bytes).filter(|all| *all <= self.most);
        let fits = self.all.fetch_update(Relaxed, Relaxed, more).is_ok();
        if fits {
            self.own += bytes;
        }
        fits
    }

    /// The body, counted until the last slice of it is dropped.
    pub(crate) fn keep(self, body: Bytes) -> Bytes {
        if body.is_empty() { body } else { Bytes::from_owner(Kept { body, _share: self }) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Relaxed);
    }
}

struct Kept {
    body: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_counts_until_its_last_slice_is_gone() {
        let bodies = Bodies::default();
        let mut first = bodies.share(10);
        assert!(first.grow(4) && first.grow(3));
        assert!(!first.grow(4), "what does not fit is not counted");
        let first = first.keep(Bytes::from_static(b"1234567"));
        let slice = first.slice(2..4);
        drop(first);
        let mut second = bodies.share(10);
        assert!(!second.grow(4), "a slice keeps all of it");
        assert_eq!(&slice[..], b"34");
        drop(slice);
        assert!(second.grow(10));
        drop(second);
        assert_eq!(bodies.bytes.load(Relaxed), 0);
        drop(bodies.share(10).keep(Bytes::new()));
        assert!(!bodies.share(10).grow(u64::MAX));
    }
}
