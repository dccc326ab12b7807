//! One drain owns every task and counts every connection.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

/// So long before everything is cut off, clients are told, and a quarter of a shorter patience.
const NOTICE: Duration = Duration::from_secs(1);

/// Begun once; finished when the last that it counts has gone.
#[derive(Clone, Default)]
pub(crate) struct Drain {
    /// Another process takes new connections, and those that are here end one by one.
    retired: CancellationToken,
    begun: CancellationToken,
    ending: CancellationToken,
    finished: CancellationToken,
    connections: TaskTracker,
    /// What serves connections, as long as there are any.
    tasks: TaskTracker,
}

impl Drain {
    /// Runs a task that serves what is still held while draining, and so goes on until the drain
    /// has finished.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let finished = self.finished.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = finished.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Counts a connection until the token is dropped.
    pub(crate) fn count(&self) -> TaskTrackerToken {
        self.connections.token()
    }

    /// From now on each HTTP/1 connection ends with its next answer, and each HTTP/2 connection with
    /// the requests that it has. No request is refused.
    pub(crate) fn retire(&self) {
        self.retired.cancel();
        self.connections.close();
    }

    pub(crate) fn has_retired(&self) -> bool {
        self.retired.is_cancelled()
    }

    pub(crate) async fn retired(&self) {
        self.retired.cancelled().await;
    }

    /// Until no connection is left, once it has retired.
    pub(crate) async fn deserted(&self) {
        self.retired().await;
        self.connections.wait().await;
    }

    pub(crate) fn begin(&self) {
        self.begun.cancel();
        self.connections.close();
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
        self.connections.wait().await;
    }

    /// Cancelled when what is not finished is to end at once, with a word to its client.
    pub(crate) fn ending(&self) -> CancellationToken {
        self.ending.clone()
    }

    /// `Err(n)`: `n` connections were still busy shortly before `deadline`, and were ended.
    pub(crate) async fn finish(&self, deadline: Instant) -> Result<(), usize> {
        self.begin();
        let within = deadline.saturating_duration_since(Instant::now());
        let notice = deadline.checked_sub(NOTICE.min(within / 4)).unwrap_or(deadline);
        let mut finished = Ok(());
        if timeout_at(notice, self.connections.wait()).await.is_err() {
            finished = Err(self.connections.len());
            self.ending.cancel();
            let _ = timeout_at(deadline, self.connections.wait()).await;
        }
        self.finished.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        finished
    }
}
