//! A limit per minute as a bucket that fills at a steady rate and holds a minute's worth.
//!
//! In any interval, at most the level at its beginning and the inflow since can be taken. An
//! estimated amount is corrected afterwards: a part is given back, or more is taken, even below
//! zero.
//!
//! A limit is for all gateways together: each has a bucket for its share. Pure: callers pass `now`.

use std::time::Duration;

use tokio::time::Instant;

const MINUTE: f64 = 60.0;

/// One gateway's share of a limit, per minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Share {
    limit: u64,
    gateways: u32,
}

/// A bucket. `level` is as of `at`.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    share: Share,
    level: f64,
    at: Instant,
}

/// A limit's present state, for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LimitStatus {
    /// Per minute, over all gateways.
    pub(crate) limit: u64,
    /// The amount that could be taken now, over all gateways, if the others are as full as this
    /// one.
    pub(crate) remaining: u64,
    /// The time until the bucket is full.
    pub(crate) reset: Duration,
}

impl Share {
    pub(crate) fn of(limit: u64, gateways: u32) -> Self {
        Self { limit, gateways: gateways.max(1) }
    }

    fn per_second(self) -> f64 {
        self.limit as f64 / f64::from(self.gateways) / MINUTE
    }

    /// The most that the bucket holds: a minute's worth, and at least one, since otherwise no
    /// request would ever fit.
    fn capacity(self) -> f64 {
        (self.limit as f64 / f64::from(self.gateways)).max(1.0)
    }
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(share: Share, now: Instant) -> Self {
        Self { share, level: share.capacity(), at: now }
    }

    /// Sets the share. A smaller share reduces the level in proportion, since another gateway has
    /// the rest now. A larger share adds nothing at once: the gateway that had it may have used it
    /// up.
    pub(crate) fn set_share(&mut self, share: Share, now: Instant) {
        self.fill(now);
        let part = (share.capacity() / self.share.capacity()).min(1.0);
        if self.level > 0.0 {
            self.level = (self.level * part).min(share.capacity());
        }
        self.share = share;
    }

    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let full = self.share.capacity();
        self.level = (self.level + since * self.share.per_second()).min(full);
    }

    /// The part of `amount` that is taken at once. A request for more than the bucket ever holds
    /// takes a full bucket; a later correction takes the rest.
    fn fit(&self, amount: u64) -> f64 {
        (amount as f64).min(self.share.capacity())
    }

    /// The time until `amount` can be taken; zero if it can be taken now.
    pub(crate) fn wait(&mut self, amount: u64, now: Instant) -> Duration {
        self.fill(now);
        let missing = self.fit(amount) - self.level;
        // The level is a sum of many small amounts, so it is not exact.
        if missing <= 1e-6 {
            return Duration::ZERO;
        }
        seconds(missing / self.share.per_second())
    }

    /// Takes `amount` after [`wait`](Self::wait) returned zero; returns the amount taken.
    pub(crate) fn take(&mut self, amount: u64) -> f64 {
        let taken = self.fit(amount);
        self.level -= taken;
        taken
    }

    /// Takes more, or gives a negative amount back.
    pub(crate) fn correct(&mut self, more: f64, now: Instant) {
        self.fill(now);
        self.level = (self.level - more).min(self.share.capacity());
    }

    pub(crate) fn status(&mut self, now: Instant) -> LimitStatus {
        self.fill(now);
        let missing = self.share.capacity() - self.level;
        let all = self.level.max(0.0) * f64::from(self.share.gateways);
        LimitStatus {
            limit: self.share.limit,
            remaining: ((all + 1e-6) as u64).min(self.share.limit),
            reset: if missing > 1e-6 {
                seconds(missing / self.share.per_second())
            } else {
                Duration::ZERO
            },
        }
    }
}

/// A duration of at most a year.
fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 365.0 * 86_400.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bucket(limit: u64) -> (Bucket, Instant) {
        let now = Instant::now();
        (Bucket::new(Share::of(limit, 1), now), now)
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn try_take(bucket: &mut Bucket, amount: u64, now: Instant) -> Result<f64, Duration> {
        match bucket.wait(amount, now) {
            Duration::ZERO => Ok(bucket.take(amount)),
            wait => Err(wait),
        }
    }

    #[test]
    fn a_minutes_worth_may_come_at_once_and_then_one_each_time_it_has_flowed_in() {
        let (mut bucket, start) = bucket(60);
        for _ in 0..60 {
            assert_eq!(try_take(&mut bucket, 1, start), Ok(1.0));
        }
        assert_eq!(try_take(&mut bucket, 1, start), Err(ms(1000)));
        assert_eq!(try_take(&mut bucket, 1, start + ms(400)), Err(ms(600)));
        assert_eq!(try_take(&mut bucket, 1, start + ms(1000)), Ok(1.0));
        let status = bucket.status(start + ms(1000));
        assert_eq!(status, LimitStatus { limit: 60, remaining: 0, reset: ms(60_000) });
        assert_eq!(bucket.status(start + ms(200_000)).remaining, 60, "full, and no more than that");
    }

    #[test]
    fn an_estimate_that_was_too_high_is_given_back_and_one_that_was_too_low_is_owed() {
        let (mut bucket, start) = bucket(1000);
        assert_eq!(try_take(&mut bucket, 900, start), Ok(900.0));
        bucket.correct(-850.0, start);
        assert_eq!(bucket.status(start).remaining, 950);
        bucket.correct(1950.0, start);
        assert_eq!(
            bucket.status(start),
            LimitStatus { limit: 1000, remaining: 0, reset: ms(120_000) }
        );
        assert_eq!(try_take(&mut bucket, 500, start), Err(ms(90_000)));
        bucket.correct(-9e9, start);
        assert_eq!(bucket.status(start).remaining, 1000, "never more than it holds");
    }

    #[test]
    fn an_amount_beyond_a_minutes_worth_waits_for_a_full_bucket() {
        let (mut bucket, start) = bucket(100);
        assert_eq!(try_take(&mut bucket, 5_000, start), Ok(100.0));
        assert_eq!(try_take(&mut bucket, 5_000, start), Err(ms(60_000)));
    }

    #[test]
    fn a_share_of_less_than_one_still_admits_one_now_and_then() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Share::of(1, 4), now);
        assert_eq!(try_take(&mut bucket, 1, now), Ok(1.0));
        assert_eq!(try_take(&mut bucket, 1, now), Err(ms(240_000)));
    }

    #[test]
    fn gateways_together_get_no_more_when_one_comes_or_goes() {
        let now = Instant::now();
        let mut old = Bucket::new(Share::of(120, 1), now);
        old.take(20);
        old.set_share(Share::of(120, 2), now);
        let mut new = Bucket::new(Share::of(120, 2), now);
        let mut taken = 0;
        for bucket in [&mut old, &mut new] {
            while try_take(bucket, 1, now).is_ok() {
                taken += 1;
            }
        }
        assert_eq!(taken, 50 + 60, "half of the 100 that were left, and a new one's own half");
        old.set_share(Share::of(120, 1), now);
        assert!(try_take(&mut old, 1, now).is_err(), "a larger share gives nothing back at once");
        old.set_share(Share::of(120, 1), now + ms(30_000));
        assert_eq!(old.status(now + ms(30_000)).remaining, 60);
    }

    #[derive(Clone, Debug)]
    enum BucketEvent {
        Pass(u64),
        Take(u64),
        GiveBack(usize),
        Share(u32),
    }

    fn event() -> impl Strategy<Value = BucketEvent> {
        prop_oneof![
            (0..20_000u64).prop_map(BucketEvent::Pass),
            (1..200u64).prop_map(BucketEvent::Take),
            (0..20usize).prop_map(BucketEvent::GiveBack),
            (1..5u32).prop_map(BucketEvent::Share),
        ]
    }

    proptest! {
        #[test] // whatever the share is meanwhile
        fn never_admits_more_than_limit_and_burst(
            limit in 1..1000u64, events in prop::collection::vec(event(), 1..100),
        ) {
            let (mut bucket, start) = bucket(limit);
            let (mut now, mut open, mut used) = (start, Vec::new(), 0.0);
            for event in events {
                match event {
                    BucketEvent::Pass(millis) => now += ms(millis),
                    BucketEvent::Take(amount) => {
                        if let Ok(taken) = try_take(&mut bucket, amount, now) {
                            used += taken;
                            open.push(taken);
                        }
                    }
                    BucketEvent::GiveBack(nth) if nth < open.len() => {
                        let taken = open.swap_remove(nth);
                        bucket.correct(-taken, now);
                        used -= taken;
                    }
                    BucketEvent::GiveBack(_) => {}
                    BucketEvent::Share(gateways) => bucket.set_share(Share::of(limit, gateways), now),
                }
                let flowed = (now - start).as_secs_f64() * limit as f64 / 60.0;
                let most = limit as f64 + flowed;
                prop_assert!(used <= most + 1e-3, "{used} of {most}");
                prop_assert!(bucket.level <= bucket.share.capacity());
            }
        }

        #[test] // giving all of it back at once leaves no trace
        fn a_refund_is_as_if_nothing_had_been_taken(limit in 1..1000u64, amount in 1..2000u64, millis in 0..60_000u64) {
            let (mut bucket, start) = bucket(limit);
            bucket.take(limit / 2);
            let now = start + ms(millis);
            let before = bucket.status(now);
            if let Ok(taken) = try_take(&mut bucket, amount, now) {
                bucket.correct(-taken, now);
            }
            prop_assert_eq!(bucket.status(now).remaining.abs_diff(before.remaining), 0);
        }

        #[test] // after the wait, the amount can be taken
        fn a_wait_is_long_enough(limit in 1..100_000u64, amount in 1..100_000u64, gateways in 1..9u32) {
            let start = Instant::now();
            let mut bucket = Bucket::new(Share::of(limit, gateways), start);
            bucket.take(u64::MAX);
            let wait = bucket.wait(amount, start);
            prop_assert_eq!(bucket.wait(amount, start + wait + ms(1)), Duration::ZERO);
        }
    }
}
