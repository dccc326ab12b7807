//! The prompts that an endpoint has still to work on, and how slow it is.
//!
//! Each pick reads this of several endpoints, of which in a large pool few are in the cache. So the
//! fields that it reads are in one cache line.

use std::collections::VecDeque;
use std::mem::offset_of;

/// The weight of an endpoint's newest measurement in its slowness.
const NEWEST: f64 = 0.1;
/// The seconds that an endpoint is taken to have needed as expected at the beginning.
const UNKNOWN: f64 = 1e-4;
/// How slow or fast an endpoint can be taken for.
const SLOWNESS: (f64, f64) = (0.1, 16.0);
/// The time after which an endpoint's slowness counts a half.
const FORGETS: f64 = 30.0;

/// A moment, by the clock of all [`Duration`](std::time::Duration)s here.
pub(super) type Seconds = f64;

/// The work of an endpoint's process.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct WorkQueue {
    process: u64,
    /// The sum of the bytes of `waiting`, and their number.
    bytes: u64,
    count: usize,
    /// When the first of them is taken to be worked on; never, if there is none.
    next: Seconds,
    /// How many times as long as expected a first token takes, and a later one.
    first: Slowness,
    later: Slowness,
    // The second line begins here.
    waiting: VecDeque<Waiting>,
    first_sums: TimeSums,
    later_sums: TimeSums,
}

const _: () = assert!(offset_of!(WorkQueue, waiting) <= align_of::<WorkQueue>());

/// A prompt that an endpoint has still to work on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) number: u64,
    pub(super) bytes: u64,
    /// When it is taken to be worked on; never, if its first token will be seen.
    pub(super) until: Seconds,
}

/// How many times as long as the pool's endpoints on the whole one of them takes.
#[derive(Clone, Copy, Debug)]
struct Slowness {
    times: f64,
    /// When that was measured.
    at: Seconds,
}

/// The sums of times that were seen and expected. They forget, so that a few short times that came much
/// later than expected don't count for much.
#[derive(Clone, Copy, Debug, Default)]
struct TimeSums {
    seconds: f64,
    expected: f64,
}

impl Slowness {
    /// It as it is now: without news it is forgotten.
    fn at(&self, now: Seconds) -> f64 {
        1.0 + (self.times - 1.0) / (1.0 + self.idle(now) / FORGETS)
    }

    fn idle(&self, now: Seconds) -> f64 {
        (now - self.at).max(0.0)
    }

    fn note(&mut self, sums: &mut TimeSums, seconds: f64, expected: f64, now: Seconds) {
        let kept = (1.0 - NEWEST) / (1.0 + self.idle(now) / FORGETS);
        sums.seconds = seconds + sums.seconds * kept;
        sums.expected = expected + sums.expected * kept;
        let times = (sums.seconds + UNKNOWN) / (sums.expected + UNKNOWN);
        *self = Self { times: times.clamp(SLOWNESS.0, SLOWNESS.1), at: now };
    }
}

impl WorkQueue {
    /// The queue of a process that has begun.
    pub(super) fn of(process: u64) -> Self {
        Self {
            process,
            bytes: 0,
            count: 0,
            next: Seconds::INFINITY,
            first: Slowness { times: 1.0, at: 0.0 },
            later: Slowness { times: 1.0, at: 0.0 },
            waiting: VecDeque::new(),
            first_sums: TimeSums::default(),
            later_sums: TimeSums::default(),
        }
    }

    pub(super) fn process(&self) -> u64 {
        self.process
    }

    /// The bytes that it has still to work on, and the number of prompts that they are of.
    pub(super) fn ahead(&mut self, now: Seconds) -> (u64, u32) {
        while self.next <= now {
            let first = self.waiting.pop_front();
            self.removed(first);
        }
        (self.bytes, self.count as u32)
    }

    /// How many times as long as expected a first token takes, and a later one.
    pub(super) fn slowness(&self, now: Seconds) -> (f64, f64) {
        (self.first.at(now), self.later.at(now))
    }

    pub(super) fn add(&mut self, waiting: Waiting) {
        self.bytes += waiting.bytes;
        self.count += 1;
        self.waiting.push_back(waiting);
        self.next = self.waiting[0].until;
    }

    pub(super) fn remove(&mut self, number: u64) {
        // Mostly it is the one that came first.
        let removed = match self.waiting.front() {
            Some(first) if first.number == number => self.waiting.pop_front(),
            _ => {
                let at = self.waiting.binary_search_by_key(&number, |waiting| waiting.number);
                at.ok().and_then(|at| self.waiting.remove(at))
            }
        };
        self.removed(removed);
    }

    fn removed(&mut self, removed: Option<Waiting>) {
        self.bytes -= removed.map_or(0, |waiting| waiting.bytes);
        self.count = self.waiting.len();
        self.next = self.waiting.front().map_or(Seconds::INFINITY, |first| first.until);
    }

    /// Takes a first token that came after this time, and the one that was expected.
    pub(super) fn note_first(&mut self, seconds: f64, expected: f64, now: Seconds) {
        self.first.note(&mut self.first_sums, seconds, expected, now);
    }

    /// Takes the time of a later token, and the one that was expected.
    pub(super) fn note_later(&mut self, seconds: f64, expected: f64, now: Seconds) {
        self.later.note(&mut self.later_sums, seconds, expected, now);
    }
}
