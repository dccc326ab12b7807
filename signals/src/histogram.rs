//! A mergeable histogram of latencies with fixed bounds, which are part of the feeds' schema.
//!
//! Bucket `i` counts values up to `BASE · 2^(i/4)` seconds, from 0.5 ms (an ITL) to 17 minutes (a
//! hold); a value off by a bucket is off by at most 19 %. Counts only grow, so that two readings
//! give the figures of the time between them and readings of several gateways can be summed.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Number of bounded buckets; one more counts all that is larger.
pub const BUCKETS: usize = 85;
const BASE: f64 = 0.0005;

/// Cumulative counts by bucket, with their sum in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    counts: [u64; BUCKETS + 1],
    sum: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS + 1], sum: 0.0 }
    }
}

impl Histogram {
    /// The upper bound of bucket `i`, in seconds; infinite for the last.
    #[must_use]
    pub fn bound(i: usize) -> f64 {
        if i >= BUCKETS { f64::INFINITY } else { BASE * 2f64.powf(i as f64 / 4.0) }
    }

    /// Counts one value in seconds. Negative and NaN values count as zero.
    pub fn record(&mut self, seconds: f64) {
        self.record_n(seconds, 1);
    }

    /// Counts `n` equal values.
    pub fn record_n(&mut self, seconds: f64, n: u64) {
        let seconds = if seconds > 0.0 { seconds } else { 0.0 };
        self.counts[Self::bucket(seconds)] += n;
        self.sum += seconds * n as f64;
    }

    fn bucket(seconds: f64) -> usize {
        if seconds <= BASE {
            return 0;
        }
        // A hair is taken off, so that a bound itself falls into its own bucket.
        let exact = (seconds / BASE).log2() * 4.0;
        ((exact - 1e-9).ceil() as usize).min(BUCKETS)
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The buckets that are not empty: the upper bound in seconds (the last bucket's lower one),
    /// and the count.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, usize)> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(i, count)| (Self::bound(i.min(BUCKETS - 1)), *count as usize))
    }

    /// The values' sum in seconds.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.sum += other.sum;
    }

    /// The difference to `earlier`; everything, if `earlier` counted more (its sender
    /// restarted in between).
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        if self.counts.iter().zip(&earlier.counts).any(|(now, then)| now < then) {
            return self.clone();
        }
        let mut counts = self.counts;
        for (now, then) in counts.iter_mut().zip(&earlier.counts) {
            *now -= then;
        }
        Self { counts, sum: (self.sum - earlier.sum).max(0.0) }
    }

    /// The `q`-quantile (0 to 1) in seconds, linear within its bucket; `None` when empty. What lies
    /// above the last bound is reported as the last bound.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * total as f64;
        let mut below = 0.0;
        for (i, &count) in self.counts.iter().enumerate() {
            let here = count as f64;
            if count > 0 && below + here >= rank {
                let low = if i == 0 { 0.0 } else { Self::bound(i - 1) };
                let high = Self::bound(i.min(BUCKETS - 1));
                return Some(low + (high - low).max(0.0) * ((rank - below) / here).clamp(0.0, 1.0));
            }
            below += here;
        }
        Some(Self::bound(BUCKETS - 1))
    }
}

/// On the wire only what is not zero: `{"sum": s, "counts": [[bucket, count], …]}`.
#[derive(Serialize, Deserialize)]
struct Sparse {
    sum: f64,
    counts: Vec<(usize, u64)>,
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let counts =
            self.counts.iter().copied().enumerate().filter(|(_, count)| *count > 0).collect();
        Sparse { sum: self.sum, counts }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let sparse = Sparse::deserialize(deserializer)?;
        let mut histogram = Self { sum: sparse.sum, ..Self::default() };
        for (bucket, count) in sparse.counts {
            histogram.counts[bucket.min(BUCKETS)] += count;
        }
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bound_falls_into_its_own_bucket() {
        for i in 0..BUCKETS {
            assert_eq!(Histogram::bucket(Histogram::bound(i)), i, "bound {i}");
            assert_eq!(Histogram::bucket(Histogram::bound(i) * 1.001), i + 1, "above bound {i}");
        }
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_a_bucket_of_the_truth(
            mut values in prop::collection::vec(0.0006..900.0f64, 1..200),
            q in 0.0..1.0f64,
        ) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|v| histogram.record(*v));
            values.sort_by(f64::total_cmp);
            let rank = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let truth = values[rank - 1];
            let got = histogram.quantile(q).expect("not empty");
            prop_assert!(got >= truth / 1.2 && got <= truth * 1.2, "{got} for {truth}");
        }

        #[test]
        fn what_goes_over_the_wire_comes_back(values in prop::collection::vec(0.0..2000.0f64, 0..50)) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|v| histogram.record(*v));
            let text = serde_json::to_string(&histogram).expect("plain data");
            let back: Histogram = serde_json::from_str(&text).expect("own format");
            prop_assert_eq!(&back.counts, &histogram.counts);
            prop_assert!((back.sum - histogram.sum).abs() < 1e-6);
        }

        #[test]
        fn merging_then_subtracting_gives_the_other(
            a in prop::collection::vec(0.0..100.0f64, 0..50),
            b in prop::collection::vec(0.0..100.0f64, 0..50),
        ) {
            let (mut one, mut other) = (Histogram::default(), Histogram::default());
            a.iter().for_each(|v| one.record(*v));
            b.iter().for_each(|v| other.record(*v));
            let before = one.clone();
            one.merge(&other);
            prop_assert_eq!(one.since(&before).counts, other.counts);
        }
    }
}
