//! The drain of a gateway: it owns every task and counts every connection.

use std::array;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

/// How long before the deadline requests are ended with an error; a quarter of the drain time if
/// that is shorter.
const NOTICE: Duration = Duration::from_secs(1);

/// Tokens among which the threads' requests are spread. A token has a lock, which every request
/// takes several times, so threads that serve requests should not share one.
const SHARDS: usize = 64;

/// A drain. It begins once, and has finished when the last connection has gone.
#[derive(Clone, Default)]
pub(crate) struct Drain {
    /// Another process accepts new connections; those of this process end one by one.
    retired: Event,
    begun: Event,
    /// Cancelled when it retires or begins.
    closing: CancellationToken,
    ending: Arc<Ending>,
    finished: CancellationToken,
    connections: TaskTracker,
    /// Tasks that run until the drain has finished.
    tasks: TaskTracker,
}

/// Something that happens once. Asking whether it has takes no lock.
#[derive(Clone, Default)]
struct Event {
    happened: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Event {
    fn happen(&self) {
        self.happened.store(true, Relaxed);
        self.token.cancel();
    }

    fn has_happened(&self) -> bool {
        self.happened.load(Relaxed)
    }
}

/// Cancelled when unfinished requests must end at once; a token for each shard.
struct Ending([CancellationToken; SHARDS]);

impl Default for Ending {
    fn default() -> Self {
        Self(array::from_fn(|_| CancellationToken::new()))
    }
}

impl Ending {
    /// The token of this thread's shard.
    fn token(&self) -> CancellationToken {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static SHARD: usize = THREADS.fetch_add(1, Relaxed) % SHARDS);
        self.0[SHARD.with(|shard| *shard)].clone()
    }

    fn cancel(&self) {
        self.0.iter().for_each(CancellationToken::cancel);
    }
}

impl Drain {
    /// Runs a task until the drain has finished: requests that are still held need it.
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

    /// Lets each HTTP/1 connection end with its next answer, and each HTTP/2 connection with the
    /// requests that it has. No request is refused.
    pub(crate) fn retire(&self) {
        self.retired.happen();
        self.closing.cancel();
        self.connections.close();
    }

    pub(crate) fn has_retired(&self) -> bool {
        self.retired.has_happened()
    }

    pub(crate) async fn retired(&self) {
        self.retired.token.cancelled().await;
    }

    /// Waits until it has retired and no connection is left.
    pub(crate) async fn deserted(&self) {
        self.retired().await;
        self.connections.wait().await;
    }

    pub(crate) fn begin(&self) {
        self.begun.happen();
        self.closing.cancel();
        self.connections.close();
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.begun.has_happened()
    }

    /// Waits until it has retired or begun.
    pub(crate) async fn closing(&self) {
        self.closing.cancelled().await;
    }

    pub(crate) async fn begun(&self) {
        self.begun.token.cancelled().await;
    }

    /// Waits until it has begun and no connection is left.
    pub(crate) async fn idle(&self) {
        self.begun().await;
        self.connections.wait().await;
    }

    /// Cancelled when unfinished requests must end at once, with an error to their clients.
    pub(crate) fn ending(&self) -> CancellationToken {
        self.ending.token()
    }

    /// Begins the drain and waits for its end.
    ///
    /// # Errors
    /// `n` connections were still busy shortly before `deadline`, and were cut off.
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

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_end_reaches_the_requests_of_every_thread() {
        let drain = Drain::default();
        let of_thread = |_| {
            let drain = drain.clone();
            thread::spawn(move || drain.ending()).join().expect("a token")
        };
        let tokens: Vec<_> = (0..2 * SHARDS).map(of_thread).collect();
        let _connection = drain.count();
        assert!(!drain.has_begun() && tokens.iter().all(|token| !token.is_cancelled()));
        assert_eq!(drain.finish(Instant::now() + Duration::from_secs(9)).await, Err(1));
        assert!(drain.has_begun() && tokens.iter().all(CancellationToken::is_cancelled));
    }
}
