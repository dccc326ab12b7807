//! A tenant's tab: its answers are charged while they come, without access to the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// Charges a tenant while its answer comes, without access to the queue. The queue collects the
/// tokens before it decides on the order.
#[derive(Clone, Debug)]
pub struct Tab(Arc<Sums>);

#[derive(Debug)]
struct Sums {
    tokens: AtomicI64,
    /// The queue's own flag: whether any tab has tokens that the queue has not collected.
    owed: Arc<AtomicBool>,
}

impl Tab {
    /// An empty tab of the queue with this flag.
    pub(super) fn new(owed: &Arc<AtomicBool>) -> Self {
        Self(Arc::new(Sums { tokens: AtomicI64::new(0), owed: Arc::clone(owed) }))
    }

    /// Adds tokens beyond those that were charged.
    pub fn charge(&self, tokens: i64) {
        // In one order with `collect`: either that sees the tokens, or this sees that the flag is
        // down. All tenants share the flag, so it is written only when it is.
        self.0.tokens.fetch_add(tokens, Ordering::SeqCst);
        if !self.0.owed.load(Ordering::SeqCst) {
            self.0.owed.store(true, Ordering::SeqCst);
        }
    }

    /// Takes the tokens, and leaves the tab empty.
    pub(super) fn collect(&self) -> i64 {
        self.0.tokens.swap(0, Ordering::SeqCst)
    }
}
