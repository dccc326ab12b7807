//! Waits that begin late.
//!
//! A request has several events to wait for beside its answer: its deadline, the end of the process,
//! a client that leaves, a replica that hangs. To register for each of them costs more than to
//! route the request, and most requests are over before any can happen. So a request looks out for
//! them only once it has run for [`AFTER`]. One alarm wakes its task then, and all its waits begin.
//!
//! All alarms of a thread ring after the same time, so they stand in a row, and only the first of
//! them needs a timer.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};

/// How long a request runs before it waits for more than its answer.
pub(crate) const AFTER: Duration = Duration::from_millis(20);

thread_local! {
    /// Set while [`ring_alarms`] runs.
    static ALARMS: RefCell<Option<Alarms>> = const { RefCell::new(None) };
}

/// The alarms of one thread.
#[derive(Default)]
struct Alarms {
    /// In the order in which they ring.
    row: VecDeque<SetAlarm>,
    /// The number of the first in the row.
    first: u64,
    /// Wakes [`ring_alarms`] if the row was empty.
    ringer: Option<Waker>,
}

struct SetAlarm {
    due: Instant,
    /// `None` once it is dropped.
    waker: Option<Waker>,
}

impl Alarms {
    fn set(&mut self, due: Instant, waker: Waker) -> u64 {
        self.row.push_back(SetAlarm { due, waker: Some(waker) });
        if let Some(ringer) = self.ringer.take() {
            ringer.wake();
        }
        self.first + self.row.len() as u64 - 1
    }

    fn get(&mut self, number: u64) -> Option<&mut SetAlarm> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.row.get_mut(at)
    }

    /// Rings those that are due, and returns when the next one is.
    fn ring(&mut self, now: Instant) -> Option<Instant> {
        while let Some(alarm) = self.row.front_mut() {
            if alarm.due > now && alarm.waker.is_some() {
                return Some(alarm.due);
            }
            if let Some(waker) = alarm.waker.take() {
                waker.wake();
            }
            self.row.pop_front();
            self.first += 1;
        }
        None
    }
}

/// Rings the alarms of this thread while it is polled.
pub(crate) async fn ring_alarms() -> Infallible {
    ALARMS.set(Some(Alarms::default()));
    let _clearer = RowClearer;
    let mut timer = pin!(sleep(AFTER));
    poll_fn(|cx| {
        loop {
            let next = with_alarms(|alarms| {
                let next = alarms.ring(Instant::now());
                if next.is_none() {
                    alarms.ringer = Some(cx.waker().clone());
                }
                next
            });
            let Some(Some(next)) = next else { return Poll::Pending };
            timer.as_mut().reset(next);
            ready!(timer.as_mut().poll(cx));
        }
    })
    .await
}

/// Clears [`ALARMS`] when dropped. An alarm that is polled afterwards finds its clock itself.
struct RowClearer;

impl Drop for RowClearer {
    fn drop(&mut self) {
        ALARMS.set(None);
    }
}

fn with_alarms<T>(change: impl FnOnce(&mut Alarms) -> T) -> Option<T> {
    // While the thread ends, the thread-local may be gone.
    ALARMS.try_with(|alarms| alarms.borrow_mut().as_mut().map(change)).ok().flatten()
}

/// One alarm of a request.
#[derive(Default)]
struct OwnAlarm {
    /// Its number in the row of its thread.
    number: Option<u64>,
}

impl OwnAlarm {
    /// Ready once it rings, or with false if nothing rings the alarms of this thread.
    fn poll(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<bool> {
        let Some(number) = self.number else {
            self.number = with_alarms(|alarms| alarms.set(due, cx.waker().clone()));
            return if self.number.is_some() { Poll::Pending } else { Poll::Ready(false) };
        };
        if Instant::now() >= due {
            return Poll::Ready(true);
        }
        with_alarms(|alarms| {
            if let Some(SetAlarm { waker: Some(waker), .. }) = alarms.get(number) {
                waker.clone_from(cx.waker());
            }
        });
        Poll::Pending
    }
}

impl Drop for OwnAlarm {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        // Dropped outside of the row.
        let _waker = with_alarms(|alarms| alarms.get(number)?.waker.take());
    }
}

/// Wakes the task of a request that begins `now` once its late waits begin. It completes with the
/// next poll after that, so all of them have been polled in between.
pub(crate) async fn alarm(now: Instant) {
    let due = now + AFTER;
    let mut own = OwnAlarm::default();
    if !poll_fn(|cx| own.poll(cx, due)).await {
        // Boxed, as it hardly ever happens.
        Box::pin(sleep_until(due)).await;
    }
    yield_now().await;
}

/// Waits, but not before `begins`; the task's [`alarm`] must ring then. `now` is the present time.
pub(crate) fn late<F: Future>(begins: Instant, now: Instant, wait: F) -> Late<F> {
    Late { wait, begins: (now < begins).then_some(begins), polled: false }
}

pin_project! {
    /// A wait that begins late. An async block would keep the wait twice.
    pub(crate) struct Late<F> {
        #[pin]
        wait: F,
        // `None` once the wait has begun.
        begins: Option<Instant>,
        polled: bool,
    }
}

impl<F: Future> Future for Late<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if let Some(begins) = *this.begins {
            // The clock is read only if there is a second poll.
            if !std::mem::replace(this.polled, true) || Instant::now() < begins {
                return Poll::Pending;
            }
            *this.begins = None;
        }
        this.wait.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use tokio::time::{advance, timeout};

    use super::*;

    /// Runs a late wait beside an alarm, and returns whether the wait began.
    async fn begins_within(time: Duration) -> bool {
        let now = Instant::now();
        let begun = AtomicBool::new(false);
        let wait = late(now + AFTER, now, async {
            begun.store(true, Relaxed);
            pending::<()>().await;
        });
        let rings = async {
            alarm(now).await;
            pending::<()>().await;
        };
        let both = async {
            tokio::select! {
                biased;
                () = wait => {}
                () = rings => {}
            }
        };
        assert!(timeout(time, both).await.is_err());
        begun.load(Relaxed)
    }

    async fn with_ringer<T>(test: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            never = ring_alarms() => match never {},
            done = test => done,
        }
    }

    fn in_row() -> usize {
        with_alarms(|alarms| alarms.row.len()).expect("a ringer")
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_wait_begins_when_the_alarm_rings() {
        assert!(!begins_within(AFTER / 2).await, "without a ringer");
        assert!(begins_within(AFTER * 2).await, "without a ringer");
        with_ringer(async {
            assert!(!begins_within(AFTER / 2).await);
            assert!(begins_within(AFTER * 2).await);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_wait_is_kept_once() {
        let wait = async {
            let room = [0_u8; 1000];
            pending::<()>().await;
            std::hint::black_box(&room);
        };
        let (size, now) = (size_of_val(&wait), Instant::now());
        assert!(size_of_val(&late(now, now, wait)) < size + 100);
    }

    #[tokio::test(start_paused = true)]
    async fn alarms_ring_in_their_order_and_dropped_ones_leave_the_row() {
        with_ringer(async {
            let start = Instant::now();
            let ring = async |after: u64| {
                sleep(Duration::from_millis(after)).await;
                alarm(Instant::now()).await;
                start.elapsed().as_millis()
            };
            let dropped = timeout(Duration::from_millis(1), ring(0));
            let (first, second, dropped, last) = tokio::join!(ring(0), ring(5), dropped, ring(60));
            assert_eq!([first, second, last], [20, 25, 80]);
            assert!(dropped.is_err());
            assert_eq!(in_row(), 0);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_of_a_request_that_has_run_for_long_begins_at_once() {
        let accepted = Instant::now();
        advance(AFTER).await;
        late(accepted + AFTER, Instant::now(), async {}).await;
        let mut early = pin!(late(Instant::now() + AFTER, Instant::now(), async {}));
        assert!(futures_util::future::poll_immediate(&mut early).await.is_none());
        advance(AFTER).await;
        early.await;
    }
}
