//! Detects threads that hang: each beats on its own runtime, and an observer reports one that falls
//! silent.
//!
//! The observer counts silence in its own ticks, not in time: a process without CPU, or one that is
//! stopped for a while, holds up the observer too, so no thread is blamed for that.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};

/// Time from beat to beat.
const BEAT: Duration = Duration::from_secs(1);
/// Ticks of the observer without a beat, after which a thread counts as silent.
const MISSED: u32 = 10;

/// The threads of this process that serve clients or operators.
#[derive(Clone)]
pub struct Heartbeats(Arc<Inner>);

struct Inner {
    beat: Duration,
    threads: Mutex<Vec<Arc<Thread>>>,
}

struct Thread {
    name: String,
    beats: AtomicU64,
    /// The number of beats at the last tick.
    seen: AtomicU64,
    missed: AtomicU32,
}

/// A thread that no longer runs its tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silent {
    thread: String,
    ticks: u32,
    beat: Duration,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} has been silent for {:?}", self.thread, self.beat * self.ticks)
    }
}

impl Default for Heartbeats {
    fn default() -> Self {
        Self::every(BEAT)
    }
}

impl Heartbeats {
    fn every(beat: Duration) -> Self {
        Self(Arc::new(Inner { beat, threads: Mutex::default() }))
    }

    /// Beats for the thread whose runtime runs this future. The thread is watched from this call until
    /// the future is dropped; if the thread panics, it stays watched.
    pub fn beat(&self, name: impl Into<String>) -> impl Future<Output = ()> + Send + 'static {
        let (beats, seen) = (AtomicU64::new(0), AtomicU64::new(0));
        let thread = Thread { name: name.into(), beats, seen, missed: AtomicU32::new(0) };
        let listed = Listed { inner: Arc::clone(&self.0), thread: Arc::new(thread) };
        self.0.threads.lock().push(Arc::clone(&listed.thread));
        async move {
            let mut ticks = interval(listed.inner.beat);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                listed.thread.beats.fetch_add(1, Relaxed);
            }
        }
    }

    /// Watches the threads until dropped. Run it on a thread that does little else.
    pub async fn watch(self) {
        let mut ticks = interval(self.0.beat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.tick();
        }
    }

    fn tick(&self) {
        for thread in self.0.threads.lock().iter() {
            let beats = thread.beats.load(Relaxed);
            if thread.seen.swap(beats, Relaxed) != beats {
                if thread.missed.swap(0, Relaxed) >= MISSED {
                    tracing::warn!("thread {} runs again", thread.name);
                }
            } else if thread.missed.fetch_add(1, Relaxed) + 1 == MISSED {
                let silent = self.0.silent(thread);
                tracing::error!("{silent}; /healthz and /readyz answer 503 until it runs again");
            }
        }
    }

    /// A thread that has been silent for too long.
    #[must_use]
    pub fn silent(&self) -> Option<Silent> {
        let threads = self.0.threads.lock();
        let silent = threads.iter().find(|thread| thread.missed.load(Relaxed) >= MISSED)?;
        Some(self.0.silent(silent))
    }
}

impl Inner {
    fn silent(&self, thread: &Thread) -> Silent {
        let ticks = thread.missed.load(Relaxed);
        Silent { thread: thread.name.clone(), ticks, beat: self.beat }
    }
}

/// A thread's place on the list, until this is dropped; for good if the thread panicked.
struct Listed {
    inner: Arc<Inner>,
    thread: Arc<Thread>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.inner.threads.lock().retain(|thread| !Arc::ptr_eq(thread, &self.thread));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::thread::JoinHandle;

    use super::*;

    const QUICK: Duration = Duration::from_millis(1);

    /// A thread with a runtime that beats. The first message makes it hang, the second run again.
    fn thread(beats: &Heartbeats, name: &str, end: fn()) -> (Sender<()>, JoinHandle<()>) {
        let (orders, received) = channel::<()>();
        let beat = beats.beat(name);
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let _beating = tokio::spawn(beat);
                while received.try_recv().is_err() {
                    tokio::time::sleep(QUICK).await;
                }
                let _ = received.recv();
                while received.try_recv().is_err() {
                    tokio::time::sleep(QUICK).await;
                }
                end();
            });
        };
        (orders, std::thread::spawn(run))
    }

    /// Ticks until `condition` holds.
    fn watch(beats: &Heartbeats, condition: impl Fn(Option<String>) -> bool) {
        for _ in 0..60_000 {
            std::thread::sleep(QUICK);
            beats.tick();
            if condition(beats.silent().map(|silent| silent.thread)) {
                return;
            }
        }
        panic!("never: silent is {:?}", beats.silent());
    }

    #[test]
    fn a_thread_that_hangs_is_named_until_it_runs_again() {
        let beats = Heartbeats::every(QUICK);
        let (one, first) = thread(&beats, "one", || {});
        let (two, second) = thread(&beats, "two", || {});
        watch(&beats, |silent| silent.is_none());
        two.send(()).expect("it listens");
        watch(&beats, |silent| silent.as_deref() == Some("two"));
        two.send(()).expect("it listens");
        watch(&beats, |silent| silent.is_none());
        for tell in [&one, &two, &one, &one] {
            let _ = tell.send(());
        }
        first.join().expect("it ended");
        second.join().expect("it ended");
        for _ in 0..MISSED * 2 {
            beats.tick();
        }
        assert_eq!(beats.silent(), None, "threads that ended in order are not reported");
    }

    #[test]
    fn a_thread_that_panicked_is_reported() {
        let beats = Heartbeats::every(QUICK);
        let (tell, thread) = thread(&beats, "it", || panic!("on purpose"));
        for _ in 0..3 {
            let _ = tell.send(());
        }
        assert!(thread.join().is_err());
        watch(&beats, |silent| silent.as_deref() == Some("it"));
    }

    #[test]
    fn a_pause_of_the_whole_process_blames_no_thread() {
        let beats = Heartbeats::every(QUICK);
        let _beating = beats.beat("it");
        for _ in 1..MISSED {
            beats.tick();
        }
        std::thread::sleep(QUICK * 50);
        assert_eq!(beats.silent(), None, "time passed, and the observer did not tick");
        beats.tick();
        let silent = beats.silent().expect("it never beat");
        assert_eq!(silent.to_string(), "thread it has been silent for 10ms");
    }
}
