//! Alarms that ring on time also in a task that is busy all the time.
//!
//! Tokio looks at its timers when a thread has nothing else to do, or after so many polls, and a
//! task that has used up its budget of reads and writes is told that no timer has fired. A stream
//! that is always ready could go on for seconds like that, so the clock decides.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

/// Ready once the alarm's time has come, whoever has noticed it.
pub(crate) fn poll_alarm(alarm: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    if alarm.deadline() <= Instant::now() {
        return Poll::Ready(());
    }
    alarm.poll(cx)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::task::coop::{consume_budget, has_budget_remaining};
    use tokio::time::{advance, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_rings_in_a_task_that_has_used_up_its_budget() {
        let mut alarm = Box::pin(sleep(Duration::from_secs(1)));
        advance(Duration::from_secs(2)).await;
        poll_fn(|cx| {
            while has_budget_remaining() {
                let _ = std::pin::pin!(consume_budget()).poll(cx);
            }
            assert!(alarm.as_mut().poll(cx).is_pending(), "as tokio has it");
            assert!(poll_alarm(alarm.as_mut(), cx).is_ready());
            Poll::Ready(())
        })
        .await;
    }
}
