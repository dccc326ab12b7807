//! A file that is read at an interval, because its content may change while this process runs.
//!
//! A change is found by comparing contents, so it does not matter how a file is replaced:
//! overwritten, renamed, or by the symbolic links of a Kubernetes volume, which `inotify` does not see on every
//! volume. A reading hangs while its volume does, so it has a thread of its own, and there is one
//! reading at a time: threads don't pile up when the wait for one is given up.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// A function that reads the content, from one file or several.
type Read<T, E> = Arc<dyn Fn() -> Result<T, E> + Send + Sync>;

/// Follows a content of type `T`; `E` is the error of a failed reading.
pub struct FileWatch<T, E> {
    read: Read<T, E>,
    ticks: Interval,
    /// The last reading, if it succeeded.
    last: Option<T>,
    /// The next reading is returned in any case.
    wanted: bool,
    /// The reading under way, which outlives a dropped [`next`](Self::next).
    reading: Option<JoinHandle<Result<T, E>>>,
    /// The reading under way began before [`read_now`](Self::read_now), so it does not count.
    outdated: bool,
}

impl<T, E> FileWatch<T, E>
where
    T: Clone + PartialEq + Send + 'static,
    E: Send + 'static,
{
    /// Reads every `period` from now on. `last` is the content that is known already.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new(
        period: Duration,
        last: Option<T>,
        read: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Self {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { read: Arc::new(read), ticks, last, wanted: false, reading: None, outdated: false }
    }

    /// Reads at once, and returns the result from [`next`](Self::next) also if nothing has changed.
    pub fn read_now(&mut self) {
        self.wanted = true;
        self.outdated = self.reading.is_some();
        self.ticks.reset_immediately();
    }

    /// Returns the next reading also if nothing has changed.
    pub fn read_again(&mut self) {
        self.wanted = true;
    }

    /// The next content that differs from the last one, or the error of a reading that failed, each
    /// time. After an error, a content is returned also if it is the one before. Cancel-safe.
    pub async fn next(&mut self) -> Result<T, E> {
        loop {
            let reading = match &mut self.reading {
                Some(reading) => reading,
                None => {
                    self.ticks.tick().await;
                    let read = Arc::clone(&self.read);
                    self.reading.insert(tokio::task::spawn_blocking(move || read()))
                }
            };
            let content = reading.await;
            self.reading = None;
            let outdated = std::mem::take(&mut self.outdated);
            // A reading that panics, or is not run since the runtime ends, does not count.
            let Ok(content) = content else { continue };
            if outdated {
                continue;
            }
            let wanted = std::mem::take(&mut self.wanted);
            match content {
                Ok(content) if !wanted && self.last.as_ref() == Some(&content) => {}
                Ok(content) => {
                    self.last = Some(content.clone());
                    return Ok(content);
                }
                Err(error) => {
                    self.last = None;
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use parking_lot::Mutex;

    use super::*;

    type Content = Result<&'static str, &'static str>;

    /// A watch of a content that the test sets.
    fn watched(
        last: Option<&'static str>,
    ) -> (FileWatch<&'static str, &'static str>, Arc<Mutex<Content>>) {
        let content = Arc::new(Mutex::new(Ok("one")));
        let read = Arc::clone(&content);
        (FileWatch::new(Duration::from_secs(2), last, move || *read.lock()), content)
    }

    /// The next reading within a minute.
    async fn next(watch: &mut FileWatch<&'static str, &'static str>) -> Option<Content> {
        tokio::time::timeout(Duration::from_secs(60), watch.next()).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_content_is_returned_when_it_has_changed() {
        let (mut watch, content) = watched(None);
        assert_eq!(next(&mut watch).await, Some(Ok("one")));
        assert_eq!(next(&mut watch).await, None, "nothing has changed");
        *content.lock() = Ok("two");
        assert_eq!(next(&mut watch).await, Some(Ok("two")));
        assert_eq!(next(&mut watch).await, None);
        watch.read_now();
        assert_eq!(next(&mut watch).await, Some(Ok("two")), "it was wanted");
        assert_eq!(next(&mut watch).await, None, "once");
    }

    #[tokio::test]
    async fn a_hung_volume_holds_one_thread_however_often_the_wait_is_given_up() {
        let begun = Arc::new(AtomicUsize::new(0));
        let (release, hung) = std::sync::mpsc::channel::<&str>();
        let read = {
            let (begun, hung) = (Arc::clone(&begun), Mutex::new(hung));
            move || {
                begun.fetch_add(1, Relaxed);
                hung.lock().recv()
            }
        };
        let mut watch = FileWatch::new(Duration::from_millis(1), None, read);
        for _ in 0..5 {
            let given_up = tokio::time::timeout(Duration::from_millis(20), watch.next()).await;
            assert!(given_up.is_err());
        }
        assert_eq!(begun.load(Relaxed), 1);
        watch.read_now();
        release.send("before").expect("it hangs");
        release.send("after").expect("another reading follows");
        assert_eq!(watch.next().await, Ok("after"), "the hung reading began before it was wanted");
        assert_eq!(begun.load(Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_known_content_is_not_returned() {
        let (mut watch, _content) = watched(Some("one"));
        assert_eq!(next(&mut watch).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_error_the_content_is_returned_again() {
        let (mut watch, content) = watched(Some("one"));
        *content.lock() = Err("gone");
        assert_eq!(next(&mut watch).await, Some(Err("gone")));
        assert_eq!(next(&mut watch).await, Some(Err("gone")));
        *content.lock() = Ok("one");
        assert_eq!(next(&mut watch).await, Some(Ok("one")));
        assert_eq!(next(&mut watch).await, None);
    }
}
