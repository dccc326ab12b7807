//! A pool's settings, which can be replaced while it goes on.

use super::{Arc, Pool};

impl Pool {
    /// As configured now.
    pub(crate) fn settings(&self) -> Arc<forebay_config::Pool> {
        self.settings.load_full()
    }
}
