//! How many requests an endpoint can take, beyond its fixed limit: while its server is new, as many as
//! the slow start allows.

use std::time::Duration;

use forebay_scheduling::room::slow_start::{Part, SlowStart};
use tokio::time::Instant;

use super::Endpoint;

/// The room of an endpoint's present server process.
#[derive(Clone, Debug)]
pub(super) struct EndpointRoom {
    /// The moment from which its times count.
    began: Instant,
    /// `None` once the server has its whole room.
    slow_start: Option<SlowStart>,
}

/// A request's part in the slow start of the process that has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Warming {
    part: Part,
    process: u64,
}

impl Warming {
    /// Whether its first token changes anything.
    pub(crate) fn waits(&self) -> bool {
        self.part == (Part::Waiting { streamed: true })
    }
}

impl EndpointRoom {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, slow_start: Some(SlowStart::default()) }
    }

    /// Starts slowly again, for another process.
    pub(super) fn begin_anew(&mut self) {
        self.slow_start = Some(SlowStart::default());
    }

    /// How many more requests it allows.
    pub(super) fn left(&self, now: Instant) -> u32 {
        self.slow_start.as_ref().map_or(u32::MAX, |start| start.left(self.at(now)))
    }

    /// The most requests in flight that it allows.
    pub(super) fn allowed(&self, now: Instant) -> u32 {
        self.slow_start.as_ref().map_or(u32::MAX, |start| start.allowed(self.at(now)))
    }

    /// The moment at which time alone makes more room, if there is one.
    pub(super) fn changes_at(&self) -> Option<Instant> {
        Some(self.began + self.slow_start.as_ref()?.plain_counts_at()?)
    }

    fn at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }
}

impl Endpoint {
    /// Counts a request that it is given into its slow start, if that goes on. `streamed`: its first
    /// token will be seen.
    pub(crate) fn warm_up(&mut self, streamed: bool, now: Instant) -> Option<Warming> {
        let at = self.work.room.at(now);
        let part = self.work.room.slow_start.as_mut()?.given(streamed, at);
        Some(Warming { part, process: self.process().id() })
    }

    /// Takes the first token of a request; true if that makes room for others.
    pub(crate) fn warmed(&mut self, warming: &mut Warming, now: Instant) -> bool {
        self.step(warming.process, now, |start, at| start.first_token(&mut warming.part, at))
    }

    /// Takes the end of a request. `complete`: it was answered.
    pub(crate) fn warming_ended(&mut self, warming: Warming, complete: bool, now: Instant) {
        self.step(warming.process, now, |start, at| start.ended(warming.part, complete, at));
    }

    /// Makes a step in the slow start of a process, and ends it if its whole room is reached; true if
    /// it went on until then.
    fn step(
        &mut self,
        process: u64,
        now: Instant,
        step: impl FnOnce(&mut SlowStart, Duration),
    ) -> bool {
        let (at, same) = (self.work.room.at(now), process == self.process().id());
        let Some(start) = self.work.room.slow_start.as_mut().filter(|_| same) else { return false };
        step(start, at);
        if start.allowed(at) >= self.rules.limit {
            self.work.room.slow_start = None;
        }
        true
    }

    /// Gives it its whole room at once.
    #[cfg(test)]
    pub(crate) fn is_warm(&mut self) {
        self.work.room.slow_start = None;
    }
}
