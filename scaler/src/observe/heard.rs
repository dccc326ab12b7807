//! The last report of one gateway on one pool.

use forebay_signals::PoolSignals;

/// The last report of one gateway on one pool.
pub(crate) struct Heard<'a> {
    /// Which gateway.
    pub(crate) gateway: usize,
    /// The name of its process.
    pub(crate) sender: &'a str,
    pub(crate) signals: Option<&'a PoolSignals>,
    /// How long ago its feed was lost, or that it was listed and was not heard yet; `None` while it
    /// is there. One that is there and says nothing of this pool has nothing of it.
    pub(crate) lost_ms: Option<u64>,
}
