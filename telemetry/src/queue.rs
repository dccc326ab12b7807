//! The spans that wait for their export: bounded, and never waited for.

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::metric;
use crate::span::Span;

/// A queue that many threads fill and one empties.
#[derive(Debug)]
pub(crate) struct Queue {
    spans: Mutex<Vec<Span>>,
    /// Spans that may wait.
    room: usize,
    /// Spans that are exported together.
    batch: usize,
    /// Signals that a whole batch waits. A thread that adds a span wakes nobody before.
    whole_batch: Notify,
}

impl Queue {
    pub(crate) fn new(room: usize, batch: usize) -> Self {
        Self { spans: Mutex::default(), room, batch, whole_batch: Notify::new() }
    }

    /// Adds the spans of one request or decision, all or none: a trace with holes misleads.
    pub(crate) fn push(&self, mut new: Vec<Span>) {
        let mut spans = self.spans.lock();
        let before = spans.len();
        if before + new.len() > self.room {
            drop(spans);
            metric::dropped(metric::DropReason::QueueFull, new.len() as u64);
            return;
        }
        spans.append(&mut new);
        let reached = before < self.batch && spans.len() >= self.batch;
        drop(spans);
        if reached {
            self.whole_batch.notify_one();
        }
    }

    /// Takes the oldest spans, `most` at most.
    pub(crate) fn take(&self, most: usize) -> Vec<Span> {
        let mut spans = self.spans.lock();
        if spans.len() <= most {
            return std::mem::take(&mut *spans);
        }
        let rest = spans.split_off(most);
        std::mem::replace(&mut *spans, rest)
    }

    /// Resolves when there is a whole batch.
    pub(crate) async fn has_batch(&self) {
        while self.spans.lock().len() < self.batch {
            self.whole_batch.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn spans(names: &[&str]) -> Vec<Span> {
        let span = |name: &&str| Span { name: (*name).to_owned(), ..Span::default() };
        names.iter().map(span).collect()
    }

    fn names(spans: &[Span]) -> Vec<&str> {
        spans.iter().map(|span| span.name.as_str()).collect()
    }

    #[test]
    fn spans_that_do_not_fit_are_dropped_together() {
        let queue = Queue::new(3, 2);
        assert!(queue.has_batch().now_or_never().is_none());
        queue.push(spans(&["a"]));
        assert!(queue.has_batch().now_or_never().is_none());
        queue.push(spans(&["b", "c", "d"]));
        queue.push(spans(&["e", "f"]));
        assert!(queue.has_batch().now_or_never().is_some());
        assert_eq!(names(&queue.take(2)), ["a", "e"]);
        assert!(queue.has_batch().now_or_never().is_none());
        assert_eq!(names(&queue.take(2)), ["f"]);
        queue.push(spans(&["g", "h", "i"]));
        assert_eq!(names(&queue.take(9)), ["g", "h", "i"]);
        assert!(queue.take(9).is_empty());
    }
}
