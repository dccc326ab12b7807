//! The abilities of a pool's replicas that continuing a stream needs, as their answers have shown them.

use parking_lot::Mutex;
use std::collections::BTreeSet;

/// The most processes that are remembered.
const MOST_REMEMBERED: usize = 1024;

/// The abilities of the replicas.
#[derive(Debug, Default)]
pub(crate) struct Abilities {
    /// Processes that begin anew where they should go on with an answer.
    begin_anew: Mutex<BTreeSet<u64>>,
}

impl Abilities {
    /// Notes that a process began anew where it should have gone on with an answer.
    pub(super) fn note_begins_anew(&self, process: u64) {
        let mut known = self.begin_anew.lock();
        if known.len() == MOST_REMEMBERED {
            known.pop_first();
        }
        known.insert(process);
    }

    /// The processes that begin anew.
    pub(super) fn begin_anew(&self) -> BTreeSet<u64> {
        self.begin_anew.lock().clone()
    }
}
