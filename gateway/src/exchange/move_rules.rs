//! How long a stream's move off a replica that drains may take, and when it is tried again.
//!
//! Pure.

use std::time::Duration;

use forebay_base::backoff::doubled;

use crate::answer::failure::{Cause, Failure};

/// The longest silence of the new replica in a move of a short answer. Then the old one goes on.
const LONGEST: Duration = Duration::from_secs(10);
/// For each of these tokens of prompt and answer, it may be silent for a second more.
const TOKENS_A_SECOND: usize = 5_000;
/// How often a stream tries again to leave its replica.
const MOST_AGAIN: u32 = 6;
/// The pause before the first of these tries. Each next one is twice as long.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// How long the new replica may be silent while it computes `tokens` of prompt and answer.
pub(crate) fn longest_move(tokens: usize) -> Duration {
    LONGEST + Duration::from_secs((tokens / TOKENS_A_SECOND) as u64)
}

/// The end of a move to a replica that was silent for this long, which is not a failure of it.
pub(crate) fn too_slow(silence: Duration) -> Failure {
    let message = format!("The new replica sent nothing for {silence:?}, so the old one goes on.");
    Failure::new(Cause::Moved, message)
}

/// Whether a stream may try again to leave its replica after this failure of the new one. If that has
/// worked on the request, the request may be the reason.
pub(crate) fn may_move_after(cause: Cause) -> bool {
    !cause.is_counted_try()
}

/// The pause before a stream tries again to leave its replica, after `vain` tries that failed; `None` if
/// it stays.
pub(crate) fn pause_before(vain: u32) -> Option<Duration> {
    (vain < MOST_AGAIN).then(|| doubled(AGAIN_AFTER, vain, Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_prompt_may_take_longer() {
        for (tokens, seconds) in [(0, 10), (4_999, 10), (5_000, 11), (1 << 18, 62)] {
            assert_eq!(longest_move(tokens).as_secs(), seconds, "{tokens} tokens");
        }
    }

    #[test]
    fn a_stream_tries_again_a_few_times_with_longer_and_longer_pauses() {
        let pauses: Vec<_> = (0..9).map_while(pause_before).map(|pause| pause.as_secs()).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64]);
    }

    #[test]
    fn only_a_failure_that_the_request_can_not_have_caused_is_tried_again() {
        let again = Cause::ALL.into_iter().filter(|cause| may_move_after(*cause));
        let want = [
            Cause::Connect,
            Cause::QueueFull,
            Cause::ShuttingDown,
            Cause::KeyRefused,
            Cause::NotServed,
            Cause::NotContinued,
            Cause::Shortage,
            Cause::Moved,
        ];
        assert!(again.eq(want));
    }
}
