//! New settings for a pool that goes on, and the end of one that is no longer configured.

use std::sync::Arc;

use super::Pool;
use crate::pool::endpoint::Rules;

impl Pool {
    /// As configured now.
    pub(crate) fn settings(&self) -> Arc<forebay_config::Pool> {
        self.settings.load_full()
    }

    /// Takes new settings. What is held and in flight stays, with the deadlines that it came with.
    pub(crate) fn reconfigure(self: &Arc<Self>, settings: forebay_config::Pool) {
        {
            let mut books = self.books.lock();
            let hold = &settings.hold;
            books.queue.set_bounds(hold.max_requests as usize, hold.max_bytes.bytes());
            for endpoint in books.endpoints.values_mut() {
                endpoint.set_rules(Rules::of(&settings));
            }
            books.set_budget(settings.max_in_flight);
        }
        self.settings.store(Arc::new(settings));
        // There may be more room than before.
        self.release();
        self.news.notify_one();
    }

    /// Holds nothing any more: what is held is answered 503, and so is what still comes. What is in
    /// flight goes on to its end.
    pub(crate) fn close(self: &Arc<Self>) {
        let mut waiters = Vec::new();
        {
            let mut books = self.books.lock();
            books.closed = true;
            while let Some((_, _, waiter)) = books.queue.pop() {
                waiters.push(waiter);
            }
        }
        // Now their requests see that nobody can release them.
        drop(waiters);
        self.metrics.set(0, 0, &self.signals().totals, 0.0);
        self.metrics.set_endpoints(|_| 0);
    }
}
