//! The difference between the cached tokens that replicas report and those that the index predicted:
//! from it the index learns how far it can be trusted in this pool.
//!
//! Three things are learned: how many bytes a token has; which part of what is predicted turns out
//! to be cached (none where the engines have no prefix cache, or where the client's own salt is not
//! seen); and how much the caches really take, as a part of their size. A prediction that fails for
//! content that was used long ago says that caches take less; one that comes true near the horizon
//! says that they may take more.

/// The weight of the newest request.
const WEIGHT: f64 = 0.05;
/// The tokens from which a prompt has its whole weight for the bytes of a token. In a shorter one the
/// template's own tokens count for too much.
const WHOLE_WEIGHT: f64 = 1_000.0;
/// The bytes of a token before any was counted: that of English text.
const BYTES_PER_TOKEN: f64 = 4.0;
/// The least trust: by it the index finds out when it is right again.
const LEAST_TRUST: f64 = 0.02;
/// The tokens that a cache takes if the endpoint does not say: as many as Llama 3.1 8B has on a GPU
/// of 80 GB, less a half.
pub const USUAL_CACHE: u64 = 262_144;

/// The corrections that a pool's index has learned.
#[derive(Clone, Copy, Debug)]
pub struct Correction {
    bytes_per_token: f64,
    trust: f64,
    scale: f64,
}

/// The content that a replica found in its cache, as it reported, and as was predicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reported {
    /// The prompt's content, in bytes.
    pub bytes: u64,
    /// The prompt's tokens.
    pub tokens: u64,
    /// The bytes that were predicted.
    pub predicted: u64,
    /// The tokens that were cached; `None` if the replica reports none.
    pub cached: Option<u64>,
    /// When the predicted content was last used, as a part of the horizon: between 0 and 1.
    pub age: f64,
}

impl Default for Correction {
    fn default() -> Self {
        Self { bytes_per_token: BYTES_PER_TOKEN, trust: 1.0, scale: 1.0 }
    }
}

impl Correction {
    /// Takes a replica's report about one request.
    pub fn learn(&mut self, reported: &Reported) {
        let Reported { bytes, tokens, predicted, cached, age } = *reported;
        if tokens == 0 || bytes == 0 {
            return;
        }
        let bytes_per_token = (bytes as f64 / tokens as f64).clamp(0.25, 64.0);
        let weight = WEIGHT * (tokens as f64 / WHOLE_WEIGHT).min(1.0);
        self.bytes_per_token += weight * (bytes_per_token - self.bytes_per_token);
        let Some(cached) = cached else { return };
        if predicted == 0 {
            return;
        }
        let predicted = predicted as f64 / bytes as f64;
        let seen = cached as f64 / tokens as f64;
        self.observe((seen / predicted).min(1.0), age);
    }

    /// Takes the part of a prediction that came true.
    fn observe(&mut self, part: f64, age: f64) {
        // Content that was used just now is cached, unless nothing ever is. Content that was used
        // long ago may be gone, and that says nothing about the rest.
        if age < 0.5 || part > 0.5 {
            self.trust += WEIGHT * (part - self.trust);
            self.trust = self.trust.max(LEAST_TRUST);
        }
        if part < 0.3 && age > 0.1 {
            self.scale *= 1.0 - WEIGHT * (1.0 - age);
        } else if part > 0.7 && age > 0.7 {
            self.scale *= 1.0 + WEIGHT;
        }
        self.scale = self.scale.clamp(0.05, 4.0);
    }

    /// Takes the shares of the prompts of a while that an endpoint found in its cache, by its own
    /// counters, and that were predicted of it.
    pub fn learn_shares(&mut self, predicted: f64, seen: f64) {
        if predicted > 0.01 {
            // One such report stands for many requests, of which some may be others'.
            let part = (seen / predicted).min(1.0);
            self.trust = (self.trust + 0.25 * (part - self.trust)).max(LEAST_TRUST);
        }
    }

    /// The part of a prediction that comes true: between 0 and 1.
    #[must_use]
    pub fn trust(&self) -> f64 {
        self.trust
    }

    /// The bytes of a token.
    #[must_use]
    pub fn bytes_per_token(&self) -> f64 {
        self.bytes_per_token
    }

    /// The bytes that a cache of this many tokens takes before it drops what was not used.
    #[must_use]
    pub fn horizon(&self, tokens: u64) -> u64 {
        (tokens as f64 * self.bytes_per_token * self.scale) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: Reported =
        Reported { bytes: 4000, tokens: 1000, predicted: 3000, cached: Some(750), age: 0.1 };

    fn after(count: usize, reported: Reported) -> Correction {
        let mut correction = Correction::default();
        (0..count).for_each(|_| correction.learn(&reported));
        correction
    }

    #[test]
    fn predictions_that_come_true_change_nothing() {
        let correction = after(100, REPORT);
        assert!((correction.trust() - 1.0).abs() < 1e-9);
        assert_eq!(correction.horizon(1000), 4000);
    }

    #[test]
    fn without_a_prefix_cache_trust_goes_and_comes_back() {
        let mut correction = after(100, Reported { cached: Some(0), ..REPORT });
        assert!(correction.trust() < 0.03, "{}", correction.trust());
        (0..100).for_each(|_| correction.learn(&REPORT));
        assert!(correction.trust() > 0.95, "{}", correction.trust());
    }

    #[test]
    fn what_replicas_do_not_report_is_not_taken_for_nothing() {
        let correction = after(100, Reported { cached: None, ..REPORT });
        assert!((correction.trust() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn caches_that_drop_old_content_earlier_are_taken_for_smaller() {
        let old = Reported { cached: Some(0), age: 0.6, ..REPORT };
        let smaller = after(50, old);
        assert!(smaller.horizon(1000) < 2000, "{}", smaller.horizon(1000));
        assert!((smaller.trust() - 1.0).abs() < 1e-9, "what is new is cached as before");
    }

    #[test]
    fn caches_that_still_have_the_oldest_content_are_taken_for_larger() {
        let kept = Reported { age: 0.95, ..REPORT };
        assert!(after(20, kept).horizon(1000) > 8000);
        assert_eq!(after(1000, kept).horizon(1000), 16_000, "within bounds");
    }

    #[test]
    fn the_bytes_of_a_token_are_counted() {
        let correction = after(200, Reported { bytes: 1500, predicted: 0, ..REPORT });
        assert!((correction.bytes_per_token() - 1.5).abs() < 0.01);
        let odd = after(200, Reported { tokens: 0, ..REPORT });
        assert!((odd.bytes_per_token() - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_short_prompt_says_little_of_the_bytes_of_a_token() {
        let change = |reported| (4.0 - after(1, reported).bytes_per_token()).abs();
        let long = change(Reported { bytes: 1500, predicted: 0, ..REPORT });
        let short = change(Reported { bytes: 15, tokens: 10, predicted: 0, ..REPORT });
        assert!((long / short - 100.0).abs() < 0.1, "{long} {short}");
        let longer = change(Reported { bytes: 15_000, tokens: 10_000, predicted: 0, ..REPORT });
        assert!((longer - long).abs() < 1e-9, "{longer} {long}");
    }

    #[test]
    fn an_endpoints_counters_tell_as_much() {
        let mut correction = Correction::default();
        (0..20).for_each(|_| correction.learn_shares(0.5, 0.1));
        assert!((correction.trust() - 0.2).abs() < 0.01);
        correction.learn_shares(0.0, 0.9);
        assert!((correction.trust() - 0.2).abs() < 0.01, "nothing was predicted");
    }
}
