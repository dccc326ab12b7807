//! A request's place in a queue.

/// A request's place in one queue. The request keeps it over all its tries; [`Queue::broke`] gives another
/// one to a stream that broke.
///
/// [`Queue::broke`]: super::Queue::broke
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub(super) flow: usize,
    /// The number of its arrival in this pool.
    pub seq: u64,
    /// The number of its last break among the streams that broke; zero if it has not broken.
    pub(super) broke: u64,
}

impl Place {
    /// The place of an arrival.
    pub(super) fn new(flow: usize, seq: u64) -> Self {
        Self { flow, seq, broke: 0 }
    }

    /// Its rank among requests that are tried again: streams that broke in the order in which they broke,
    /// and then the others in the order of their arrival.
    pub(super) fn rank(self) -> u64 {
        const UNBROKEN: u64 = 1 << 63;
        if self.broke > 0 { self.broke } else { UNBROKEN | self.seq }
    }
}
