//! How long an engine's work takes: the timing model of one simulated replica.
//!
//! A step of a continuously batched engine reads the weights once (the base), does a little more
//! for each sequence it decodes (the slope), and computes the prompt tokens it took in. That is
//! enough to show what matters to a gateway: throughput grows with the batch and flattens, tokens
//! come slower when the batch is full, and a long prompt delays every other request.
//!
//! Pure: values in, durations out. No clock, no randomness.

use std::time::Duration;

/// The cost of an engine's work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// From the process's start to the first 200 on `/health`.
    pub cold_start: Duration,
    /// Prompt tokens computed per second; zero or less means that prompts cost nothing.
    pub prefill_tokens_per_second: f64,
    /// A decode step with no sequence in it.
    pub decode_base: Duration,
    /// Added to a step by each decoding sequence.
    pub decode_per_sequence: Duration,
}

/// The work of one engine step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Prompt tokens computed in this step.
    pub prefill_tokens: u32,
    /// Sequences that get one token each in this step.
    pub decodes: u32,
}

impl Timing {
    /// How long a step with this work takes. A step without work takes no time.
    #[must_use]
    pub fn step(&self, work: Work) -> Duration {
        let prefill = self.prefill(work.prefill_tokens);
        if work.decodes == 0 {
            return prefill;
        }
        prefill + self.decode_base + self.decode_per_sequence * work.decodes
    }

    /// How long these prompt tokens take to compute.
    #[must_use]
    pub fn prefill(&self, tokens: u32) -> Duration {
        if self.prefill_tokens_per_second <= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(f64::from(tokens) / self.prefill_tokens_per_second)
            .unwrap_or(Duration::MAX)
    }

    /// Tokens per second with this many sequences decoding and no prompts coming in.
    #[must_use]
    pub fn decode_throughput(&self, sequences: u32) -> f64 {
        let step = self.step(Work { prefill_tokens: 0, decodes: sequences });
        if step.is_zero() { f64::INFINITY } else { f64::from(sequences) / step.as_secs_f64() }
    }
}

impl Default for Timing {
    /// A mid-sized model on one accelerator: 8 ms a step, 64 sequences at about 5,700 tokens/s.
    fn default() -> Self {
        Self {
            cold_start: Duration::ZERO,
            prefill_tokens_per_second: 20_000.0,
            decode_base: Duration::from_millis(8),
            decode_per_sequence: Duration::from_micros(50),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_idle_step_takes_no_time_and_a_decode_step_is_base_plus_slope() {
        let timing = Timing::default();
        assert_eq!(timing.step(Work::default()), Duration::ZERO);
        let step = timing.step(Work { prefill_tokens: 0, decodes: 64 });
        assert_eq!(step, Duration::from_micros(8_000 + 64 * 50));
        assert_eq!(timing.prefill(20_000), Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn more_work_never_takes_less_time(
            prefill in 0..20_000u32, decodes in 0..512u32, more in 0..512u32,
            base in 0..50_000u64, slope in 0..1_000u64, rate in 0.0..100_000.0f64,
        ) {
            let timing = Timing {
                prefill_tokens_per_second: rate,
                decode_base: Duration::from_micros(base),
                decode_per_sequence: Duration::from_micros(slope),
                ..Timing::default()
            };
            let step = |prefill_tokens, decodes| timing.step(Work { prefill_tokens, decodes });
            prop_assert!(step(prefill, decodes) <= step(prefill, decodes + more));
            prop_assert!(step(prefill, decodes) <= step(prefill + more, decodes));
        }

        // Batching pays: a larger batch never has a lower throughput.
        #[test]
        fn a_larger_batch_never_has_a_lower_throughput(few in 1..500u32, more in 0..500u32) {
            let timing = Timing::default();
            prop_assert!(timing.decode_throughput(few) <= timing.decode_throughput(few + more) + 1e-6);
        }
    }
}
