//! The memory of what the gateway keeps of streams, so that another replica can go on with them: token
//! ids, text, and requests. All streams together have a bound.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The most bytes of all streams.
const MOST: usize = 256 << 20;
/// Memory is taken in steps of this many bytes.
const STEP: usize = 2 << 10;

/// The bytes of all streams for which memory is taken.
static OF_ALL: AtomicUsize = AtomicUsize::new(0);

/// The memory of one thing that is kept. Dropping it gives the bytes back.
#[derive(Debug, Default)]
pub(crate) struct StreamMemory {
    taken: usize,
}

impl StreamMemory {
    /// Takes memory for `bytes` in all; false if all streams would take too much then.
    pub(crate) fn reach(&mut self, bytes: usize) -> bool {
        if bytes <= self.taken {
            return true;
        }
        let more = (bytes - self.taken).next_multiple_of(STEP);
        self.taken += more;
        OF_ALL.fetch_add(more, Relaxed) + more <= MOST
    }

    /// Gives all of it back.
    pub(crate) fn give_back(&mut self) {
        OF_ALL.fetch_sub(std::mem::take(&mut self.taken), Relaxed);
    }

    /// The bytes that it takes.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }
}

/// A copy takes as much again.
impl Clone for StreamMemory {
    fn clone(&self) -> Self {
        OF_ALL.fetch_add(self.taken, Relaxed);
        Self { taken: self.taken }
    }
}

impl Drop for StreamMemory {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_in_steps_up_to_the_bound_of_all() {
        let mut one = StreamMemory::default();
        assert!(one.reach(1) && one.reach(STEP));
        assert_eq!(one.taken(), STEP);
        assert!(one.reach(STEP + 1));
        assert_eq!(one.taken(), 2 * STEP);
        let mut other = StreamMemory::default();
        assert!(!other.reach(MOST), "together they take too much");
        other.give_back();
        assert!(other.taken() == 0 && other.reach(STEP));
    }
}
