//! The time of the present poll.
//!
//! A request notes the time at each of its steps, most of which follow each other within one poll
//! of its connection. To read the system's clock for each of them would cost more than some of the
//! steps. So the clock is read once for each poll, and stands still within it.

use std::cell::Cell;

use tokio::time::Instant;

thread_local! {
    /// Set within [`hold`].
    static HELD: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The time of the present poll, or the present time where no poll of a connection is running.
pub(crate) fn now() -> Instant {
    HELD.get().unwrap_or_else(Instant::now)
}

/// Runs a poll during which the time is `now`.
pub(crate) fn hold<T>(now: Instant, poll: impl FnOnce() -> T) -> T {
    let _running = Running(HELD.replace(Some(now)));
    poll()
}

/// Sets the clock back when dropped, also by a panic: the thread goes on.
struct Running(Option<Instant>);

impl Drop for Running {
    fn drop(&mut self) {
        HELD.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_stands_still_within_a_poll_alone() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        advance(second).await;
        assert_eq!(hold(start, now), start);
        assert_eq!(now(), start + second);
        let inner = || (hold(start + second, now), now());
        assert_eq!(hold(start, inner), (start + second, start));
        assert!(catch_unwind(|| hold(start, || panic!("a request's"))).is_err());
        assert_eq!(now(), start + second, "a panic does not stop the clock");
    }
}
