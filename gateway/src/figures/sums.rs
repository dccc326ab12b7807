//! A pool's sums, kept by each thread for itself and added up when they are read.
//!
//! A request records several times, `/signals` reads once a second. So a thread has a shard of its
//! own, whose lock no other thread wants but the reader, and two threads never write the same cache
//! line. A lock costs two atomic operations however many sums change, where atomic sums would cost
//! one each.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::available_parallelism;

use forebay_signals::{Histogram, Totals};
use parking_lot::Mutex;

/// More threads than this share shards.
const MOST_SHARDS: usize = 32;

/// Counters and latencies of one pool since the gateway started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) totals: Totals,
    pub(crate) hold: Histogram,
    pub(crate) ttft: Histogram,
    pub(crate) warm_ttft: Histogram,
    pub(crate) upstream_ttft: Histogram,
    pub(crate) itl: Histogram,
    pub(crate) end_to_end: Histogram,
}

impl Sums {
    fn merge(&mut self, other: &Self) {
        self.totals.merge(&other.totals);
        self.hold.merge(&other.hold);
        self.ttft.merge(&other.ttft);
        self.warm_ttft.merge(&other.warm_ttft);
        self.upstream_ttft.merge(&other.upstream_ttft);
        self.itl.merge(&other.itl);
        self.end_to_end.merge(&other.end_to_end);
    }
}

/// One pool's sums, a shard for each thread.
pub(crate) struct ShardedSums(Box<[Shard]>);

/// On cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Shard(Mutex<ThreadSums>);

/// The sums of one thread, or of several.
#[derive(Default)]
struct ThreadSums {
    sums: Sums,
    /// Whether they have changed since [`ShardedSums::take_recorded`].
    recorded: bool,
}

impl Default for ShardedSums {
    fn default() -> Self {
        let threads = available_parallelism().map_or(1, usize::from);
        Self((0..threads.min(MOST_SHARDS)).map(|_| Shard::default()).collect())
    }
}

impl ShardedSums {
    /// Changes the calling thread's sums.
    pub(crate) fn add(&self, change: impl FnOnce(&mut Sums)) {
        let mut shard = self.0[thread_number() % self.0.len()].0.lock();
        shard.recorded = true;
        change(&mut shard.sums);
    }

    /// Whether they have changed since the last call.
    pub(crate) fn take_recorded(&self) -> bool {
        let take = |shard: &Shard| std::mem::take(&mut shard.0.lock().recorded);
        self.0.iter().filter(|shard| take(shard)).count() > 0
    }

    /// Adds all shards up.
    pub(crate) fn read(&self) -> Sums {
        let mut all = Sums::default();
        self.0.iter().for_each(|shard| all.merge(&shard.0.lock().sums));
        all
    }
}

/// Threads are numbered in the order of their first record.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Relaxed);
    }
    NUMBER.with(|number| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_all_threads_are_added_up() {
        let sums = ShardedSums::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        sums.add(|sums| {
                            sums.totals.completed += 1;
                            sums.ttft.record(0.5);
                        });
                    }
                });
            }
        });
        let all = sums.read();
        assert_eq!((all.totals.completed, all.ttft.count(), all.itl.count()), (8000, 8000, 0));
    }
}
