//! Milliseconds as a type: a time since the epoch, or a span between two such times.
//!
//! The decision core, replay and cron count in milliseconds since the epoch, so that a time can be
//! written into a snapshot and compared after a restart. On the wire it is the bare number. "Not
//! yet" is `Option<Millis>`, never zero.

use std::fmt;
use std::ops::{Add, AddAssign, Mul};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds, since the epoch or between two times. Arithmetic saturates.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(u64);

impl Millis {
    /// The epoch, or no time at all.
    pub const ZERO: Self = Self(0);
    /// A time that never comes.
    pub const MAX: Self = Self(u64::MAX);

    /// From a bare number of milliseconds.
    #[must_use]
    pub const fn new(millis: u64) -> Self {
        Self(millis)
    }

    /// From whole seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// From seconds, rounded down; zero for negative numbers and NaN.
    #[must_use]
    pub fn from_secs_f64(seconds: f64) -> Self {
        Self((seconds * 1000.0) as u64)
    }

    /// The bare number of milliseconds.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whole seconds, rounded down.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// Seconds with their fraction.
    #[must_use]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// The span from `earlier` to this time; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

impl Add for Millis {
    type Output = Self;

    fn add(self, span: Self) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl AddAssign for Millis {
    fn add_assign(&mut self, span: Self) {
        *self = *self + span;
    }
}

impl Mul<u64> for Millis {
    type Output = Self;

    fn mul(self, times: u64) -> Self {
        Self(self.0.saturating_mul(times))
    }
}

impl From<Duration> for Millis {
    fn from(span: Duration) -> Self {
        Self(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }
}

impl From<Millis> for Duration {
    fn from(span: Millis) -> Self {
        Self::from_millis(span.0)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let (early, late) = (Millis::new(1), Millis::from_secs(2));
        assert_eq!((late.since(early), early.since(late)), (Millis::new(1999), Millis::ZERO));
        assert_eq!((Millis::MAX + late, Millis::MAX * 2), (Millis::MAX, Millis::MAX));
        assert_eq!(Millis::from(Duration::MAX), Millis::MAX);
        assert_eq!(Millis::from_secs_f64(-1.0), Millis::ZERO);
    }

    #[test]
    fn seconds_and_durations_convert_both_ways() {
        let span = Millis::from_secs_f64(1.5);
        assert_eq!((span.get(), span.as_secs(), span.as_secs_f64()), (1500, 1, 1.5));
        assert_eq!(Duration::from(span), Duration::from_millis(1500));
        assert_eq!(Millis::from(Duration::from_micros(1999)), Millis::new(1));
        assert_eq!(span.to_string(), "1500 ms");
    }

    #[test]
    fn the_wire_has_the_bare_number() {
        let text = serde_json::to_string(&Some(Millis::new(7))).expect("plain data");
        assert_eq!(text, "7");
        assert_eq!(serde_json::from_str::<Option<Millis>>("null").expect("valid"), None);
        assert_eq!(serde_json::from_str::<Millis>("7").expect("valid"), Millis::new(7));
    }
}
