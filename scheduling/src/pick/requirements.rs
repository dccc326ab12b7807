//! The conditions that a request sets for its endpoint.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::prompt::Prompt;

/// The conditions that a request sets for its endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// The model, by the name that the endpoint receives.
    pub model: Option<Arc<str>>,
    /// Processes that failed the request. They get it only where no other is ready.
    pub avoid: BTreeSet<u64>,
    /// Processes that are not set up for the request. They never get it again.
    pub refused: BTreeSet<u64>,
    /// Set when the request first loses its replica: the number of the youngest process at that
    /// moment. Processes with larger numbers are preferred: where replicas are restarted one by
    /// one, they have their restart behind them.
    pub began_after: Option<u64>,
    /// Its prompt, if it has one. This is not a condition: it says where the request is best, not
    /// where it may go.
    pub prompt: Option<Arc<Prompt>>,
    /// Whether its first token is reported when it comes. This is not a condition either.
    pub streamed: bool,
}

impl Requirements {
    /// A number of its conditions, the same for all requests that the same endpoints can take. Others have
    /// another one, but for a chance of one in 2⁶⁴.
    #[must_use]
    pub fn kind(&self) -> u64 {
        let Self { model, avoid, refused, began_after, prompt: _, streamed: _ } = self;
        let mut hasher = DefaultHasher::new();
        (model, avoid, refused, began_after).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether the process is younger than the request's first loss of a replica; true for all
    /// processes if it has lost none.
    pub(super) fn prefers(&self, process: u64) -> bool {
        self.began_after.is_none_or(|last| process > last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_do_not_change_which_endpoints_can_take_a_request() {
        let prompt = Some(Arc::new(Prompt { bytes: 7, ..Prompt::default() }));
        let request = Requirements { refused: [1].into(), ..Requirements::default() };
        let other = Requirements { prompt, ..request.clone() };
        assert_eq!(request.kind(), other.kind());
        assert_ne!(request.kind(), Requirements::default().kind());
    }
}
