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
    /// Processes that do not turn tokens into text.
    no_text: Mutex<BTreeSet<u64>>,
}

impl Abilities {
    /// Notes that a process began anew where it should have gone on with an answer.
    pub(super) fn note_begins_anew(&self, process: u64) {
        remember(&self.begin_anew, process);
    }

    /// Notes that a process does not turn tokens into text.
    pub(super) fn note_no_text(&self, process: u64) {
        remember(&self.no_text, process);
    }

    /// The processes that can't go on with an answer. `compares`: the text of its tokens must be
    /// compared with what its client has.
    pub(super) fn unable(&self, compares: bool) -> BTreeSet<u64> {
        let mut unable = self.begin_anew.lock().clone();
        if compares {
            unable.extend(self.no_text.lock().iter());
        }
        unable
    }
}

/// Adds a process in place of the oldest one, if there are many.
fn remember(known: &Mutex<BTreeSet<u64>>, process: u64) {
    let mut known = known.lock();
    if known.len() == MOST_REMEMBERED {
        known.pop_first();
    }
    known.insert(process);
}
