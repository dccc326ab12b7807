//! A waker that leaves a mark, so that a task knows whether it was woken through it.
//!
//! A connection's task is woken for each request by its sockets, and hardly ever by its alarm or
//! by a drain. These are polled with a waker of their own, and again only after its mark is set.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake};

use futures_util::task::AtomicWaker;

/// The mark, and the task that it wakes.
pub(crate) struct WakeFlag {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl WakeFlag {
    /// Set at first, so that everything is polled once.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { woken: AtomicBool::new(true), task: AtomicWaker::new() })
    }

    /// Whether it was woken since the last call. From now on it wakes the task of `cx`.
    pub(crate) fn take(&self, cx: &Context<'_>) -> bool {
        self.task.register(cx.waker());
        // A plain read first: most polls find no mark.
        self.woken.load(Ordering::Acquire) && self.woken.swap(false, Ordering::AcqRel)
    }
}

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::{Poll, Waker};

    use tokio::sync::Notify;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn a_task_knows_what_has_woken_it() {
        let (own, other) = (Notify::new(), Notify::new());
        let flag = WakeFlag::new();
        let mut marks = Vec::new();
        let watching = async {
            let (mut own, mut other) = (Box::pin(own.notified()), Box::pin(other.notified()));
            poll_fn(|cx| {
                let woken = flag.take(cx);
                marks.push(woken);
                if woken {
                    let waker = Waker::from(Arc::clone(&flag));
                    if own.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                        return Poll::Ready(());
                    }
                }
                let _ = other.as_mut().poll(cx);
                Poll::Pending
            })
            .await;
        };
        let waking = async {
            yield_now().await;
            other.notify_one();
            yield_now().await;
            own.notify_one();
        };
        futures_util::join!(watching, waking);
        assert_eq!(marks.first(), Some(&true), "everything is polled once");
        assert_eq!(marks.last(), Some(&true), "its own waker");
        assert!(marks[1..marks.len() - 1].iter().all(|mark| !mark), "another waker: {marks:?}");
        assert!(marks.len() > 2, "{marks:?}");
    }
}
