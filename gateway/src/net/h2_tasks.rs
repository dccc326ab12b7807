//! The requests of one HTTP/2 connection, driven by the task of the connection itself.
//!
//! hyper hands each to an executor. Polled here, beside the connection, they need no task of their
//! own, and they are gone with it: a client that leaves frees at once whatever it held.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use forebay_config::Limits;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::net::activity::Flight;
use crate::net::alarm::poll_alarm;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where hyper puts them.
#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<Mutex<New>>);

#[derive(Default)]
struct New {
    /// Of the request that hyper has just begun, and will hand over next.
    flight: Option<Arc<Flight>>,
    tasks: Vec<(Task, Option<Arc<Flight>>)>,
}

impl Streams {
    /// Notes whose future comes next.
    pub(crate) fn announce(&self, flight: &Arc<Flight>) {
        self.0.lock().flight = Some(Arc::clone(flight));
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, future: F) {
        let mut new = self.0.lock();
        let flight = new.flight.take();
        new.tasks.push((Box::pin(future), flight));
    }
}

/// Where they are polled.
pub(crate) struct Running {
    streams: Streams,
    running: FuturesUnordered<Timed>,
    limits: Arc<Limits>,
}

impl Running {
    pub(crate) fn new(streams: Streams, limits: Arc<Limits>) -> Self {
        Self { streams, running: FuturesUnordered::new(), limits }
    }

    /// Polls what can go on; true if there was something new.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let new = std::mem::take(&mut self.streams.0.lock().tasks);
        let any = !new.is_empty();
        for (task, flight) in new {
            self.running.push(Timed::new(task, flight, Arc::clone(&self.limits)));
        }
        while let Poll::Ready(Some(())) = self.running.poll_next_unpin(cx) {}
        any
    }
}

/// A request that is dropped, and so reset, when its client has taken nothing for too long, or too
/// long altogether. The alarm moves only when it rings.
struct Timed {
    task: Task,
    watch: Option<(Arc<Flight>, Pin<Box<Sleep>>)>,
    limits: Arc<Limits>,
}

impl Timed {
    fn new(task: Task, flight: Option<Arc<Flight>>, limits: Arc<Limits>) -> Self {
        let watch = flight.map(|flight| {
            let due = flight.due(Instant::now(), &limits);
            (flight, Box::pin(sleep_until(due)))
        });
        Self { task, watch, limits }
    }
}

impl Future for Timed {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.task.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let this = &mut *self;
        let Some((flight, alarm)) = &mut this.watch else { return Poll::Pending };
        while poll_alarm(alarm.as_mut(), cx).is_ready() {
            let now = Instant::now();
            let due = flight.due(now, &this.limits);
            if due <= now {
                tracing::debug!("a stream was cut off: its client took nothing for too long");
                return Poll::Ready(());
            }
            alarm.as_mut().reset(due);
        }
        Poll::Pending
    }
}
