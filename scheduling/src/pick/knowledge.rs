//! The knowledge of prefix affinity: which prompts endpoints remember, what can be expected of them,
//! and how far both can be trusted.

use std::time::Duration;

use super::candidate::EndpointId;
use super::choice::{CacheReport, CachedTokens, Usage};
use super::expected::Expected;
use super::given::Given;
use super::learned::Learned;
use crate::prefix::correction::{Correction, Reported, USUAL_CACHE};
use crate::prefix::index::{Prefill, PrefixIndex};
use crate::prompt::BLOCK_BYTES;

/// The knowledge of prefix affinity.
#[derive(Debug)]
pub(super) struct Knowledge {
    pub(super) index: PrefixIndex,
    pub(super) expected: Expected,
    pub(super) correction: Correction,
    /// By the endpoints' numbers.
    caches: Vec<KnownCache>,
}

/// An endpoint's own report of its cache, and predictions about it.
#[derive(Clone, Copy, Debug, Default)]
struct KnownCache {
    /// The process that says it.
    process: u64,
    /// The tokens that it takes, once known.
    tokens: Option<u64>,
    /// Its counters at the last report: tokens found, and tokens asked for.
    counters: Option<(u64, u64)>,
    /// The share of tokens that was found, between its last two reports with any.
    seen: Option<f64>,
    /// Whether answers say how much was cached, so that the counters are not needed.
    in_usage: bool,
    /// The bytes of prompts since the last report: those predicted to be cached, and all.
    predicted: (u64, u64),
}

impl Knowledge {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            index: PrefixIndex::new(seed),
            expected: Expected::default(),
            correction: Correction::default(),
            caches: Vec::new(),
        }
    }

    /// A process' cache as it is known. `None` if another process has begun there since.
    fn cache(&mut self, id: EndpointId, process: u64) -> Option<&mut KnownCache> {
        if self.caches.len() <= id.number() {
            self.caches.resize(id.number() + 1, KnownCache::default());
        }
        let cache = &mut self.caches[id.number()];
        if process < cache.process {
            return None;
        }
        if process > cache.process {
            *cache = KnownCache { process, ..KnownCache::default() };
        }
        Some(cache)
    }

    /// Whether the endpoint's own report about its cache would say something new.
    pub(super) fn wants_report(&mut self, id: EndpointId, process: u64) -> bool {
        let cache = self.cache(id, process);
        cache.is_some_and(|cache| {
            cache.tokens.is_none() || (!cache.in_usage && cache.predicted.1 > 0)
        })
    }

    /// Takes an endpoint's own report about its cache.
    pub(super) fn reported(&mut self, id: EndpointId, process: u64, report: &CacheReport) {
        if report.asleep {
            self.index.forget(id.number() as u32);
        }
        let Some(cache) = self.cache(id, process) else { return };
        cache.tokens = report.tokens.or(cache.tokens);
        let before = std::mem::replace(&mut cache.counters, report.counters);
        let (predicted, bytes) = std::mem::take(&mut cache.predicted);
        if let (Some(before), Some(now)) = (before, report.counters)
            && !cache.in_usage
            && now.1 > before.1
        {
            let seen = now.0.saturating_sub(before.0) as f64 / (now.1 - before.1) as f64;
            cache.seen = Some(seen.min(1.0));
            if bytes > 0 {
                self.correction.learn_shares(predicted as f64 / bytes as f64, seen);
            }
        }
    }

    /// Counts a prompt whose answer says how much of it was cached, or does not.
    fn predicted(
        &mut self,
        (id, process): (EndpointId, u64),
        (predicted, bytes): (u64, u64),
        in_usage: bool,
    ) {
        let Some(cache) = self.cache(id, process) else { return };
        cache.in_usage |= in_usage;
        cache.predicted.0 += predicted;
        cache.predicted.1 += bytes;
    }

    /// The knowledge of an endpoint's process.
    pub(super) fn learned(&self, id: EndpointId, process: u64, now: Duration) -> Learned {
        let (first, later) = self.expected.slowness(id, process, now);
        let known = self.caches.get(id.number()).filter(|cache| cache.process == process);
        let tokens = known.and_then(|cache| cache.tokens);
        Learned {
            cache_tokens: tokens.unwrap_or(USUAL_CACHE),
            cache_reported: tokens.is_some(),
            prompt_bytes_per_second: 1.0 / (self.expected.work(1) * first),
            first_token_slowness: first,
            later_token_slowness: later,
        }
    }

    /// The bytes that an endpoint's cache takes before it drops what was not used.
    pub(super) fn horizon(&self, id: EndpointId, process: u64) -> u64 {
        let known = self.caches.get(id.number()).filter(|cache| cache.process == process);
        self.correction.horizon(known.and_then(|cache| cache.tokens).unwrap_or(USUAL_CACHE))
    }

    /// Notes that an endpoint has worked on a prompt, and so holds it.
    pub(super) fn prefilled(&mut self, given: &Given) {
        let Some(prompt) = &given.prompt else { return };
        let new = given.choice.new_bytes(prompt, self.correction.trust());
        let place = (given.choice.id.number() as u32, given.process);
        let horizon = self.horizon(given.choice.id, given.process);
        self.index.prefilled(place, prompt, Prefill { new, horizon, begun: given.choice.begins });
    }

    /// Notes what an endpoint generated, and learns from what it found in its cache.
    pub(super) fn ended(
        &mut self,
        given: &Given,
        usage: Usage,
        now: Duration,
    ) -> Option<CachedTokens> {
        if let (Some(first), Some(work)) = (given.first_token, &given.work) {
            let took = now.saturating_sub(first).saturating_sub(given.client_time).as_secs_f64();
            let rest = (took, usage.generated.saturating_sub(1));
            self.expected.decoded(given.place(), work, rest, now);
        }
        let generated = usage.generated as f64 * self.correction.bytes_per_token();
        let place = (given.choice.id.number() as u32, given.process);
        self.index.written(place, generated as u64);
        let prompt = given.prompt.as_ref().filter(|_| !given.goes_on)?;
        let predicted = u64::from(given.choice.blocks) * BLOCK_BYTES as u64;
        let known = self.cache(given.choice.id, given.process).copied().unwrap_or_default();
        // Some versions of vLLM leave the count out where it is zero.
        let reports = known.in_usage;
        let cached = usage.cached.or((reports && usage.prompt > 0).then_some(0));
        let horizon = self.horizon(given.choice.id, given.process) / BLOCK_BYTES as u64;
        self.correction.learn(&Reported {
            bytes: u64::from(prompt.bytes),
            tokens: usage.prompt,
            predicted,
            cached,
            age: f64::from(given.choice.age) / horizon.max(1) as f64,
        });
        let bytes = u64::from(prompt.bytes);
        self.predicted(given.place(), (predicted.min(bytes), bytes), cached.is_some());
        let part = |share: f64| (share * usage.prompt as f64) as u64;
        let counted = known.seen.filter(|_| cached.is_none()).map(part);
        let predicted = part(predicted as f64 / f64::from(prompt.bytes.max(1)));
        (cached.is_some() || counted.is_some()).then_some(CachedTokens { predicted, counted })
    }
}

#[cfg(test)]
mod tests {
    use forebay_config::Pick;

    use super::super::tests::{Pool, candidate, prompted};
    use super::*;
    use crate::prompt::Prompt;

    #[test]
    fn the_knowledge_of_an_endpoint_is_its_own_report_or_what_is_usual() {
        let mut knowledge = Knowledge::new(1);
        let id = EndpointId::of(0);
        let usual = knowledge.learned(id, 5, Duration::ZERO);
        assert_eq!((usual.cache_tokens, usual.cache_reported), (USUAL_CACHE, false));
        assert!((usual.prompt_bytes_per_second - 60_000.0).abs() < 1e-6, "{usual:?}");
        let report = CacheReport { tokens: Some(9_000), ..CacheReport::default() };
        knowledge.reported(id, 5, &report);
        let learned = knowledge.learned(id, 5, Duration::ZERO);
        assert_eq!((learned.cache_tokens, learned.cache_reported), (9_000, true));
        assert!(!knowledge.learned(id, 6, Duration::ZERO).cache_reported, "another process");
    }

    #[test]
    fn an_endpoints_counters_say_what_was_cached_where_its_answers_do_not() {
        let mut pool = Pool::new(Pick::PrefixAffinity, &[candidate(1)]);
        let prompt = Prompt { bytes: 512 * 50, blocks: (0..50).collect(), session: None };
        let request = prompted(prompt);
        let mut ended = |counters, cached| {
            pool.counts(1, counters);
            let given = pool.give(&request, Duration::ZERO).expect("it learns");
            pool.end_with(given, cached, Duration::ZERO)
        };
        let counted = |predicted, counted| Some(CachedTokens { predicted, counted });
        assert_eq!(ended((300, 1_000), None), None, "nothing is known of what came before");
        assert_eq!(ended((600, 1_500), None), counted(10_000, Some(6_000)));
        assert_eq!(ended((0, 0), None), counted(10_000, Some(6_000)), "it has restarted");
        assert_eq!(ended((50, 100), None), counted(10_000, Some(5_000)));
        assert_eq!(ended((50, 200), Some(9_000)), counted(10_000, None), "the answer says it");
    }

    #[test]
    fn an_older_process_says_nothing_of_the_cache_of_the_one_that_followed() {
        let mut knowledge = Knowledge::new(1);
        let id = EndpointId::of(0);
        let report = |tokens| CacheReport { tokens: Some(tokens), ..CacheReport::default() };
        knowledge.reported(id, 5, &report(1_000));
        let known = knowledge.horizon(id, 5);
        knowledge.reported(id, 4, &report(9_000));
        assert_eq!(knowledge.horizon(id, 5), known);
        assert!(!knowledge.wants_report(id, 4) && !knowledge.wants_report(id, 5));
        assert!(knowledge.wants_report(id, 6), "nothing is known of the next one");
    }
}
