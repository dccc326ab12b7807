//! Readiness of a scaler: whether it can answer KEDA with a decision, and gateways with the state of
//! the workloads.
//!
//! Once ready it stays ready until its end, also without leading: it then has a last good answer.

use std::sync::Arc;

use parking_lot::Mutex;

/// The reason why the scaler is not ready, if any, as last checked.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<Option<String>>>);

impl Readiness {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Some("it has just started".to_owned()))))
    }

    /// Checks again, unless it is ready already.
    pub(crate) fn look(&self, lack: impl FnOnce() -> Option<String>) {
        let mut known = self.0.lock();
        if known.is_none() {
            return;
        }
        *known = lack();
        if known.is_none() {
            tracing::info!("the scaler is ready");
        }
    }

    /// The reason why it is not ready, in words; `None` if it is.
    #[must_use]
    pub fn lack(&self) -> Option<String> {
        self.0.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scaler_is_ready_once_nothing_is_lacking_and_stays_ready() {
        let readiness = Readiness::new();
        assert!(readiness.lack().is_some(), "not checked yet");
        readiness.look(|| Some("the API server".to_owned()));
        assert_eq!(readiness.lack().as_deref(), Some("the API server"));
        readiness.look(|| None);
        readiness.look(|| Some("a leader".to_owned()));
        assert_eq!(readiness.lack(), None);
    }
}
