//! New settings for a pool that goes on, and the end of one that is no longer configured.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Pool;
use crate::pool::endpoint::Rules;

impl Pool {
    /// The pool's present configuration.
    pub(crate) fn settings(&self) -> Arc<forebay_config::Pool> {
        self.settings.load_full()
    }

    /// The interval of the heartbeats for a held request, `stream` or plain; zero for none.
    pub(crate) fn heartbeat(&self, stream: bool) -> Duration {
        let settings = self.settings.load();
        let hold = &settings.hold;
        if stream || hold.heartbeat_plain { hold.heartbeat } else { Duration::ZERO }
    }

    /// Takes new settings. Requests that are held or in flight keep their deadlines.
    pub(crate) fn reconfigure(self: &Arc<Self>, settings: forebay_config::Pool) {
        let (policy, other_policy) = (settings.pick, {
            let mut state = self.scheduling.lock();
            let hold = &settings.hold;
            state.queue.set_bounds(hold.max_requests as usize, hold.max_bytes.bytes());
            state.queue.set_lower_share(hold.lower_class_share);
            let rules = Rules::of(&settings);
            let now = Instant::now();
            state.endpoints.change_all(now, |endpoint| endpoint.set_rules(rules, now));
            state.set_budget(settings.max_in_flight);
            // Under the lock, so that an endpoint added meanwhile gets the new rules.
            let changed = state.set_policy(settings.pick);
            self.settings.store(Arc::new(settings));
            changed
        });
        if other_policy {
            tracing::info!("{}: endpoints are picked by {policy} from now on", self.name);
        }
        // There may be more room than before.
        self.release();
        self.changed.notify_one();
    }

    /// Closes the pool: held requests and later ones are answered with 503. Requests in flight
    /// continue to their end.
    pub(crate) fn close(self: &Arc<Self>) {
        let waiters = {
            let mut state = self.scheduling.lock();
            state.closed = true;
            state.queue.drain()
        };
        // Each held request sees its channel closed, and asks again.
        drop(waiters);
        self.figures.close(&self.signals().totals);
    }
}
