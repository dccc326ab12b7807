//! The KV cache of an engine, as far as the requests in flight fill it.
//!
//! A request takes the tokens of its prompt that are not shared, and those of its answer: on average
//! over its time, half of a usual answer. The prompt's are estimated from its bytes, which is wrong by
//! a factor for images, code or other scripts than Latin. So the estimate is multiplied by what the
//! engine reports, and counts nothing before it has reported any.

use super::learned::EndpointSums;

/// The part of what was learned that the next window replaces.
const NEWEST: f64 = 0.25;

/// A KV cache.
#[derive(Clone, Debug, Default)]
pub(super) struct KvCache {
    /// The tokens that it has; `None` if that is not known.
    pub(super) size: Option<u64>,
    /// Estimated tokens of the prompts in flight.
    pub(super) in_flight: u64,
    /// Those of the prompts that have ended since the last window, and their number.
    pub(super) ended: u64,
    pub(super) ends: u32,
    learned: Option<Usual>,
}

/// A usual request, as far as it fills the cache.
#[derive(Clone, Copy, Debug)]
struct Usual {
    /// Tokens of a prompt for each that is estimated.
    factor: f64,
    /// Tokens of an answer.
    answer: f64,
    /// Estimated tokens of a prompt.
    prompt: f64,
}

impl KvCache {
    /// Learns from what has ended.
    pub(super) fn learn(&mut self, new: &EndpointSums) {
        let (ended, ends) = (std::mem::take(&mut self.ended), std::mem::take(&mut self.ends));
        if new.uncached_tokens == 0 || ended == 0 {
            return;
        }
        let ends = f64::from(ends);
        let seen = Usual {
            factor: new.uncached_tokens as f64 / ended as f64,
            answer: new.generated_tokens as f64 / ends,
            prompt: ended as f64 / ends,
        };
        let usual = self.learned.get_or_insert(seen);
        for (known, seen) in [
            (&mut usual.factor, seen.factor),
            (&mut usual.answer, seen.answer),
            (&mut usual.prompt, seen.prompt),
        ] {
            *known += NEWEST * (seen - *known);
        }
    }

    /// How many more requests it has room for, beside those in flight.
    pub(super) fn left(&self, in_flight: u32) -> u32 {
        let (Some(size), Some(usual)) = (self.size, self.learned) else { return u32::MAX };
        if in_flight == 0 {
            // One that is longer than the whole cache is the engine's to refuse.
            return u32::MAX;
        }
        let answers = f64::from(in_flight) * usual.answer / 2.0;
        let taken = self.in_flight as f64 * usual.factor + answers;
        let each = usual.prompt * usual.factor + usual.answer / 2.0;
        ((size as f64 - taken) / each.max(1.0)).max(0.0) as u32
    }
}
