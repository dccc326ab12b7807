//! Whether a scaler can answer what it is asked: KEDA with a decision, gateways with what was seen of
//! the workloads.
//!
//! Once it can, it stays so until its end, whoever leads: it has a last good answer from then on.

use std::sync::Arc;

use parking_lot::Mutex;

/// What still keeps a scaler from being ready, as it was seen last.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<Option<String>>>);

impl Readiness {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Some("it has just started".to_owned()))))
    }

    /// Looks again, unless it is ready already.
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

    /// Why it is not ready, in words; `None` when it is.
    #[must_use]
    pub fn lack(&self) -> Option<String> {
        self.0.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_nothing_is_lacking_for_the_first_time_and_stays_so() {
        let readiness = Readiness::new();
        assert!(readiness.lack().is_some(), "nobody has looked yet");
        readiness.look(|| Some("the API server".to_owned()));
        assert_eq!(readiness.lack().as_deref(), Some("the API server"));
        readiness.look(|| None);
        readiness.look(|| Some("a leader".to_owned()));
        assert_eq!(readiness.lack(), None);
    }
}
