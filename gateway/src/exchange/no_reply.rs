//! Why a replica does not go on with an answer, and what that shows about its process.

use crate::answer::failure::Failure;
use crate::answer::not_continued::NotContinued;
use crate::pool::Slot;

/// Why a replica does not go on with an answer.
pub(crate) enum NoReply {
    /// Another one may.
    Failed(Failure),
    /// This process never does, but another one may.
    BeginsAnew(Failure),
    /// This process does not turn tokens into text, but another one may.
    NoText(Failure),
    /// No other one would.
    Refused(String, NotContinued),
}

impl NoReply {
    /// The failure, after which another replica may go on. What it shows about the process in `slot` is
    /// noted.
    ///
    /// # Errors
    /// No other one would, with the reason.
    pub(crate) fn failure(self, slot: &Slot) -> Result<Failure, (String, NotContinued)> {
        match self {
            Self::Failed(failure) => Ok(failure),
            Self::BeginsAnew(failure) => {
                slot.begins_anew();
                Ok(failure)
            }
            Self::NoText(failure) => {
                slot.has_no_text();
                Ok(failure)
            }
            Self::Refused(message, why) => Err((message, why)),
        }
    }
}

impl From<Failure> for NoReply {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}
