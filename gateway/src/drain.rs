//! One drain owns every task and counts every connection.

use std::future::Future;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

/// Begun once; finished when the last that it counts has gone.
#[derive(Clone, Default)]
pub(crate) struct Drain {
    begun: CancellationToken,
    finished: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// Runs a task that serves what is still held while draining, and so goes on until the drain
    /// has finished.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let finished = self.finished.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = finished.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Counts a connection until the token is dropped.
    pub(crate) fn count(&self) -> TaskTrackerToken {
        self.tasks.token()
    }

    pub(crate) fn begin(&self) {
        self.begun.cancel();
        self.tasks.close();
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    pub(crate) async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Until no connection is left, once it has begun.
    pub(crate) async fn idle(&self) {
        self.begun().await;
        self.tasks.wait().await;
    }

    /// `Err(n)`: `n` connections were still there at `deadline`.
    pub(crate) async fn finish(&self, deadline: Instant) -> Result<(), usize> {
        self.begin();
        let finished = timeout_at(deadline, self.tasks.wait()).await;
        self.finished.cancel();
        finished.map_err(|_| self.tasks.len())
    }
}
