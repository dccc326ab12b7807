//! The number of conversations that go on at each endpoint, estimated without a list of them.
//!
//! A conversation uses its content in a cache again with each turn, and adds to it. Each conversation
//! counts by its last turn alone. The older that turn is, the less it counts: e times less for each
//! quarter of the caches' size that was written into them since. So the clock here is the number of
//! blocks that were written into all caches of a pool.

/// The part of what the pool's caches take after which a turn counts e times less.
const PART: f64 = 0.25;
/// The number of latest prompts that the share of those that go on is about.
const PROMPTS: u32 = 64;
/// The number of prompts that are taken to have come before the first. None of them went on.
const BEFORE: u32 = 8;

/// The clock of a pool's caches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    /// Blocks written into all of them so far. The count wraps around.
    pub(super) now: u32,
    /// The blocks that all of them take.
    pub(super) capacity: u64,
}

/// The conversations that go on in one cache.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Conversations {
    count: f32,
    at: u32,
}

/// The share of prompts that go on with a conversation, of those lately.
#[derive(Clone, Copy, Debug)]
pub(super) struct GoingOn {
    share: f32,
    prompts: u32,
}

impl Clock {
    /// How much a turn at that time still counts.
    fn counts(&self, then: u32) -> f32 {
        let since = f64::from(self.now.wrapping_sub(then));
        (-since / (self.capacity.max(1) as f64 * PART)).exp() as f32
    }
}

impl Conversations {
    pub(super) fn count(self, clock: &Clock) -> f32 {
        self.count * clock.counts(self.at)
    }

    /// Takes back a first turn that was counted, and did not come.
    pub(super) fn take_back(&mut self, clock: &Clock) {
        *self = Self { count: (self.count(clock) - 1.0).max(0.0), at: clock.now };
    }

    /// Counts a turn. `last`: when the conversation had its last turn in this cache; `None` for its first.
    pub(super) fn turn(&mut self, last: Option<u32>, clock: &Clock) {
        let again = last.map_or(0.0, |last| clock.counts(last));
        *self = Self { count: (self.count(clock) + 1.0 - again).max(0.0), at: clock.now };
    }
}

impl Default for GoingOn {
    fn default() -> Self {
        Self { share: 0.0, prompts: BEFORE }
    }
}

impl GoingOn {
    pub(super) fn share(self) -> f32 {
        self.share
    }

    pub(super) fn add(&mut self, goes_on: bool) {
        self.prompts = (self.prompts + 1).min(PROMPTS);
        self.share += (f32::from(u8::from(goes_on)) - self.share) / self.prompts as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_counts_once_whatever_its_turns_and_is_forgotten_without_them() {
        let mut clock = Clock { now: u32::MAX - 50, capacity: 1000 };
        let mut cache = Conversations::default();
        let mut last = None;
        for _ in 0..20 {
            cache.turn(last, &clock);
            assert!((cache.count(&clock) - 1.0).abs() < 1e-4, "{cache:?}");
            last = Some(clock.now);
            clock.now = clock.now.wrapping_add(100);
        }
        cache.turn(None, &clock);
        assert!((cache.count(&clock) - 1.67).abs() < 0.01, "{}", cache.count(&clock));
        clock.now = clock.now.wrapping_add(1000);
        assert!(cache.count(&clock) < 0.04, "{}", cache.count(&clock));
    }
}
