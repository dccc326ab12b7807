//! An alarm that rings on time even in a task that is always busy.
//!
//! Tokio checks its timers when a thread is idle or after a number of polls, and a task that has
//! used up its budget of reads and writes sees no timer fire. A stream that is always ready could
//! go on for seconds like that, so this alarm reads the clock.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, Sleep, sleep_until};

/// Ready once the alarm's time has come, even if tokio has not noticed.
pub(crate) fn poll_alarm(alarm: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    if alarm.deadline() <= Instant::now() {
        return Poll::Ready(());
    }
    alarm.poll(cx)
}

/// An alarm of a task that is polled far more often than its alarm rings. Tokio's timer is polled
/// only once for each time that it is set: it wakes the task then.
pub(crate) struct Alarm {
    sleep: Pin<Box<Sleep>>,
    /// The waker that the timer wakes.
    waker: Option<Waker>,
}

impl Alarm {
    pub(crate) fn at(due: Instant) -> Self {
        Self { sleep: Box::pin(sleep_until(due)), waker: None }
    }

    pub(crate) fn due(&self) -> Instant {
        self.sleep.deadline()
    }

    pub(crate) fn set(&mut self, due: Instant) {
        self.waker = None;
        self.sleep.as_mut().reset(due);
    }

    /// Ready once its time has come; `now` is the present time.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()> {
        if self.due() <= now {
            return Poll::Ready(());
        }
        if self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        // Without a budget, the timer does not take the waker.
        let takes_waker = has_budget_remaining();
        let polled = self.sleep.as_mut().poll(cx);
        self.waker = (takes_waker && polled.is_pending()).then(|| cx.waker().clone());
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::task::coop::{consume_budget, has_budget_remaining};
    use tokio::time::{advance, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_alarm_rings_in_a_task_that_has_used_up_its_budget() {
        let mut alarm = Box::pin(sleep(Duration::from_secs(1)));
        advance(Duration::from_secs(2)).await;
        poll_fn(|cx| {
            while has_budget_remaining() {
                let _ = std::pin::pin!(consume_budget()).poll(cx);
            }
            assert!(alarm.as_mut().poll(cx).is_pending(), "tokio's own timer does not fire");
            assert!(poll_alarm(alarm.as_mut(), cx).is_ready());
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_that_is_set_anew_or_polled_by_another_task_wakes_it() {
        let second = Duration::from_secs(1);
        let mut alarm = Alarm::at(Instant::now() + second);
        let rings = async |alarm: &mut Alarm| {
            let start = Instant::now();
            poll_fn(|cx| alarm.poll(cx, Instant::now())).await;
            start.elapsed()
        };
        assert_eq!(rings(&mut alarm).await, second);
        alarm.set(Instant::now() + 2 * second);
        assert_eq!(rings(&mut alarm).await, 2 * second);
        alarm.set(Instant::now() + 3 * second);
        assert!(poll_fn(|cx| Poll::Ready(alarm.poll(cx, Instant::now()))).await.is_pending());
        let elsewhere = tokio::spawn(async move {
            let start = Instant::now();
            poll_fn(|cx| alarm.poll(cx, Instant::now())).await;
            start.elapsed()
        });
        assert_eq!(elsewhere.await.expect("it ends"), 3 * second);
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_that_was_polled_without_a_budget_is_polled_again() {
        let mut alarm = Alarm::at(Instant::now() + Duration::from_secs(1));
        poll_fn(|cx| {
            while has_budget_remaining() {
                let _ = std::pin::pin!(consume_budget()).poll(cx);
            }
            assert!(alarm.poll(cx, Instant::now()).is_pending());
            Poll::Ready(())
        })
        .await;
        poll_fn(|cx| alarm.poll(cx, Instant::now())).await;
    }
}
