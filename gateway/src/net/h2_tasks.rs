//! The requests of one HTTP/2 connection, driven by the connection's own task.
//!
//! hyper hands each request to an executor. This one polls the requests beside the connection, so
//! they need no tasks of their own and end with the connection: when a client leaves, all that its
//! requests occupy is free at once.

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

use crate::net::activity::RequestActivity;
use crate::net::alarm::poll_alarm;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The executor to which hyper hands the requests.
#[derive(Clone, Default)]
pub(crate) struct H2Executor(Arc<Mutex<NewTasks>>);

#[derive(Default)]
struct NewTasks {
    /// The activity of the request that hyper has just begun and hands over next.
    flight: Option<Arc<RequestActivity>>,
    tasks: Vec<(Task, Option<Arc<RequestActivity>>)>,
}

impl H2Executor {
    /// Notes the request whose future comes next.
    pub(crate) fn announce(&self, flight: &Arc<RequestActivity>) {
        self.0.lock().flight = Some(Arc::clone(flight));
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for H2Executor {
    fn execute(&self, future: F) {
        let mut new = self.0.lock();
        let flight = new.flight.take();
        new.tasks.push((Box::pin(future), flight));
    }
}

/// The requests in progress, polled by the connection's task.
pub(crate) struct H2Tasks {
    streams: H2Executor,
    running: FuturesUnordered<TimedTask>,
    limits: Arc<Limits>,
}

impl H2Tasks {
    pub(crate) fn new(streams: H2Executor, limits: Arc<Limits>) -> Self {
        Self { streams, running: FuturesUnordered::new(), limits }
    }

    /// Polls the requests that can go on; returns whether there were new ones.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let new = std::mem::take(&mut self.streams.0.lock().tasks);
        let any = !new.is_empty();
        for (task, flight) in new {
            self.running.push(TimedTask::new(task, flight, Arc::clone(&self.limits)));
        }
        while let Poll::Ready(Some(())) = self.running.poll_next_unpin(cx) {}
        any
    }
}

/// A request that is dropped, and so reset, when its client has read nothing for too long or its
/// total time is over. The alarm is set again only when it rings.
struct TimedTask {
    task: Task,
    watch: Option<(Arc<RequestActivity>, Pin<Box<Sleep>>)>,
    limits: Arc<Limits>,
}

impl TimedTask {
    fn new(task: Task, flight: Option<Arc<RequestActivity>>, limits: Arc<Limits>) -> Self {
        let watch = flight.map(|flight| {
            let due = flight.due(Instant::now(), &limits);
            (flight, Box::pin(sleep_until(due)))
        });
        Self { task, watch, limits }
    }
}

impl Future for TimedTask {
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
                tracing::debug!(
                    "a stream was cut off: its client read nothing for too long, or its total time was over"
                );
                return Poll::Ready(());
            }
            alarm.as_mut().reset(due);
        }
        Poll::Pending
    }
}
