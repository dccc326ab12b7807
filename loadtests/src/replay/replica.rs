//! One replica in simulated time: continuous batching by the shared timing model.
//!
//! The rules are those of the simulated vLLM's scheduler: each step gives one token to every sequence
//! whose prompt is computed, then spends the rest of the step's token budget on prompts in order of
//! arrival. Steps that only decode are alike until a sequence ends or arrives, so they are taken in
//! one stretch: the cost grows with requests, not with tokens. The prefix cache is the simulated
//! vLLM's own. One thing is simpler: a sequence reserves its whole length of the KV cache, so that no
//! sequence is preempted.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use super::trace::Us;
use crate::kv::{HeldBlocks, KvCache};
use crate::timing::{Timing, Work};

/// Tokens in a block of the KV cache: vLLM's default.
pub(crate) const KV_BLOCK: u32 = 16;

/// The speed and the capacity of a replica.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct EngineModel {
    pub(crate) timing: Timing,
    /// Sequences that run at once.
    pub(crate) seats: usize,
    /// Tokens computed in one step.
    pub(crate) tokens_per_step: u32,
    /// Tokens that the KV cache holds.
    pub(crate) kv_tokens: u64,
}

impl EngineModel {
    fn step(&self, work: Work) -> Us {
        // At least a microsecond, so that time advances even if work costs nothing in the model.
        (self.timing.step(work).as_micros() as u64).max(1)
    }
}

/// A request as a replica sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) id: u32,
    pub(crate) prompt: u32,
    pub(crate) output: u32,
}

impl Sequence {
    /// Blocks of the KV cache that it needs at its end.
    fn blocks(self) -> usize {
        let tokens = u64::from(self.prompt) + u64::from(self.output);
        tokens.div_ceil(KV_BLOCK.into()) as usize
    }
}

/// Prompt tokens of the sequences that were begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PromptTokens {
    pub(crate) all: u64,
    /// Those that the prefix cache had.
    pub(crate) cached: u64,
}

/// A sequence whose prompt is being computed.
#[derive(Debug)]
struct Prefill {
    sequence: Sequence,
    held: HeldBlocks,
    cached: u32,
    left: u32,
    /// The tokens of this step.
    computing: u32,
}

/// A sequence whose tokens are being generated.
#[derive(Debug)]
struct Decoding {
    sequence: Sequence,
    held: HeldBlocks,
    /// The step after which it ends.
    last: u64,
}

/// An event at the end of a stretch of steps, with the sequence's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenEvent {
    /// The first token, and the tokens of the prompt that the cache had.
    First(u32, u32),
    /// The last token, and the number of tokens.
    Last(u32, u32),
}

/// The stretch of steps under way.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    began: Us,
    /// Length of each step.
    step: Us,
    steps: u64,
    prefill: bool,
}

impl Stretch {
    fn end(&self) -> Us {
        self.began.saturating_add(self.step.saturating_mul(self.steps))
    }
}

/// A running engine with its batch and its queue.
#[derive(Debug)]
pub(crate) struct Batch {
    engine: EngineModel,
    /// Sequences with the blocks of their prompts.
    waiting: VecDeque<(Sequence, Vec<u64>)>,
    prefilling: Vec<Prefill>,
    /// Decoding sequences by the step after which they end.
    decoding: BinaryHeap<Reverse<(u64, u32)>>,
    /// The decoding sequences by id.
    lengths: HashMap<u32, Decoding>,
    /// Decode steps taken.
    steps: u64,
    kv: KvCache,
    /// Whether the one running sequence is longer than the whole cache.
    overflows: bool,
    tokens: PromptTokens,
    stretch: Option<Stretch>,
    /// Number of the current plan, by which events of older plans are recognized.
    plan: u32,
}

impl Batch {
    pub(crate) fn new(engine: EngineModel) -> Self {
        Self {
            engine,
            waiting: VecDeque::new(),
            prefilling: Vec::new(),
            decoding: BinaryHeap::new(),
            lengths: HashMap::new(),
            steps: 0,
            kv: KvCache::new((engine.kv_tokens / u64::from(KV_BLOCK)) as usize),
            overflows: false,
            tokens: PromptTokens::default(),
            stretch: None,
            plan: 0,
        }
    }

    /// Sequences in the batch.
    pub(crate) fn running(&self) -> usize {
        self.prefilling.len() + self.lengths.len()
    }

    /// Sequences that wait for a seat: vLLM's `vllm:num_requests_waiting`.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Share of the KV cache in use.
    pub(crate) fn kv_usage(&self) -> f64 {
        if self.overflows { 1.0 } else { self.kv.usage() }
    }

    /// The prompt tokens so far, and those that the cache had.
    pub(crate) fn prompt_tokens(&self) -> PromptTokens {
        self.tokens
    }

    /// The end of the stretch under way, with its plan.
    pub(crate) fn due(&self) -> Option<(Us, u32)> {
        self.stretch.map(|stretch| (stretch.end(), self.plan))
    }

    /// Estimated time to first token of a prompt that arrives `now`, if no prefix is cached.
    pub(crate) fn first_token_after(&self, prompt: u32, now: Us) -> Us {
        let queued: u32 = self.waiting.iter().map(|(sequence, _)| sequence.prompt).sum();
        let begun: u32 = self.prefilling.iter().map(|one| one.left - one.computing).sum();
        let tokens = queued.saturating_add(begun).saturating_add(prompt);
        let decodes = self.lengths.len() as u32;
        let budget = self.engine.tokens_per_step.saturating_sub(decodes).max(1);
        let steps = u64::from(tokens.div_ceil(budget).max(1));
        let decoding = self.engine.step(Work { prefill_tokens: 0, decodes });
        let under_way = self.stretch.map_or(0, |stretch| {
            let left = stretch.end().saturating_sub(now);
            if stretch.prefill { left } else { left.min(stretch.step) }
        });
        under_way + self.engine.timing.prefill(tokens).as_micros() as u64 + steps * decoding
    }

    /// Adds a sequence. `prefix`: its prompt's full blocks of [`KV_BLOCK`] tokens, each hashed with all
    /// before it; empty if it has no content in common with others. A stretch of decode steps ends with
    /// the step under way, so that the next step computes the new sequence's prompt.
    pub(crate) fn submit(&mut self, sequence: Sequence, prefix: Vec<u64>, now: Us) {
        self.waiting.push_back((sequence, prefix));
        match self.stretch {
            None => self.plan(now),
            Some(_) => self.cut_stretch(now),
        }
    }

    /// Has a stretch of decode steps end with the step under way.
    fn cut_stretch(&mut self, now: Us) {
        if let Some(stretch) = &mut self.stretch
            && !stretch.prefill
        {
            let done = now.saturating_sub(stretch.began).div_ceil(stretch.step).max(1);
            if done < stretch.steps {
                stretch.steps = done;
                self.plan += 1;
            }
        }
    }

    /// The decode steps that are complete.
    fn steps_at(&self, now: Us) -> u64 {
        let done = |stretch: Stretch| now.saturating_sub(stretch.began) / stretch.step;
        self.steps + self.stretch.map_or(0, |stretch| done(stretch).min(stretch.steps))
    }

    /// The first of the sequences whose tokens are being generated and that miss more than one.
    pub(crate) fn first_decoding(&self, now: Us) -> Option<u32> {
        let steps = self.steps_at(now);
        let open = self.lengths.iter().filter(|(_, one)| one.last > steps + 1);
        open.map(|(id, _)| *id).min()
    }

    /// Takes such a sequence out: it goes on elsewhere, from the tokens so far, which become a part of
    /// its prompt. Their number comes with it.
    pub(crate) fn take(&mut self, id: u32, now: Us) -> Option<(Sequence, u32)> {
        let steps = self.steps_at(now);
        let Decoding { sequence, held, last } = self.lengths.remove(&id)?;
        self.release(held);
        self.cut_stretch(now);
        let output = last.saturating_sub(steps) as u32;
        let generated = sequence.output - output;
        Some((Sequence { prompt: sequence.prompt + generated, output, ..sequence }, generated))
    }

    /// Removes a sequence whose client left.
    pub(crate) fn abort(&mut self, id: u32) {
        if let Some(at) = self.waiting.iter().position(|(sequence, _)| sequence.id == id) {
            self.waiting.remove(at);
        } else if let Some(at) = self.prefilling.iter().position(|one| one.sequence.id == id) {
            let held = self.prefilling.remove(at).held;
            self.release(held);
        } else if let Some(decoding) = self.lengths.remove(&id) {
            // Its place in the heap is skipped when it comes up.
            self.release(decoding.held);
        }
    }

    fn release(&mut self, held: HeldBlocks) {
        self.kv.release(held);
        self.overflows = false;
    }

    /// Ends the stretch of this plan: adds its first and last tokens to `events`, and begins the next
    /// stretch. False for an older plan.
    pub(crate) fn ended(&mut self, plan: u32, now: Us, events: &mut Vec<TokenEvent>) -> bool {
        if plan != self.plan {
            return false;
        }
        let Some(stretch) = self.stretch.take() else { return false };
        self.steps += stretch.steps;
        while let Some(Reverse((step, id))) = self.decoding.peek().copied() {
            if step > self.steps && self.lengths.contains_key(&id) {
                break;
            }
            self.decoding.pop();
            if let Some(Decoding { sequence, held, .. }) = self.lengths.remove(&id) {
                self.release(held);
                events.push(TokenEvent::Last(id, sequence.output));
            }
        }
        let mut left = Vec::with_capacity(self.prefilling.len());
        for prefill in std::mem::take(&mut self.prefilling) {
            if prefill.left > prefill.computing {
                left.push(Prefill {
                    left: prefill.left - prefill.computing,
                    computing: 0,
                    ..prefill
                });
                continue;
            }
            let Prefill { sequence, held, cached, .. } = prefill;
            events.push(TokenEvent::First(sequence.id, cached));
            if sequence.output <= 1 {
                self.release(held);
                events.push(TokenEvent::Last(sequence.id, sequence.output));
            } else {
                let last = self.steps + u64::from(sequence.output) - 1;
                self.decoding.push(Reverse((last, sequence.id)));
                self.lengths.insert(sequence.id, Decoding { sequence, held, last });
            }
        }
        self.prefilling = left;
        self.plan(now);
        true
    }

    fn plan(&mut self, now: Us) {
        let decodes = self.lengths.len() as u32;
        let mut budget = self.engine.tokens_per_step.saturating_sub(decodes);
        let mut prefill_tokens = 0;
        for one in &mut self.prefilling {
            one.computing = one.left.min(budget);
            budget -= one.computing;
            prefill_tokens += one.computing;
        }
        while budget > 0 && self.running() < self.engine.seats {
            let Some(mut next) = self.begin_next() else { break };
            next.computing = next.left.min(budget);
            budget -= next.computing;
            prefill_tokens += next.computing;
            self.prefilling.push(next);
        }
        self.plan = self.plan.wrapping_add(1);
        self.stretch = None;
        if prefill_tokens == 0 && decodes == 0 {
            return;
        }
        let step = self.engine.step(Work { prefill_tokens, decodes });
        let prefill = prefill_tokens > 0;
        // Until the first decoding sequence ends; a step that computes prompts stands alone.
        let first = self.decoding.peek().map_or(1, |Reverse((last, _))| last - self.steps);
        let steps = if prefill { 1 } else { first.max(1) };
        self.stretch = Some(Stretch { began: now, step, steps, prefill });
    }
}

impl Batch {
    /// Takes the next sequence that waits, if its blocks fit.
    fn begin_next(&mut self) -> Option<Prefill> {
        let (sequence, prefix) = self.waiting.front()?;
        if self.overflows {
            return None;
        }
        let hits = self.kv.hits(prefix) as u32;
        let private = sequence.blocks().saturating_sub(prefix.len());
        let held = match self.kv.acquire(prefix, private) {
            Some(held) => held,
            // A sequence that is longer than the whole cache runs alone.
            None if self.running() == 0 => {
                self.overflows = true;
                HeldBlocks::default()
            }
            None => return None,
        };
        let (sequence, _) = self.waiting.pop_front()?;
        // The last prompt token is always computed: its result is the first output token.
        let usable = sequence.prompt.saturating_sub(1) / KV_BLOCK;
        let cached = hits.min(usable) * KV_BLOCK;
        self.tokens.all += u64::from(sequence.prompt);
        self.tokens.cached += u64::from(cached);
        let left = sequence.prompt.saturating_sub(cached).max(1);
        Some(Prefill { sequence, held, cached, left, computing: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::scheduler_times;
    use proptest::prelude::*;

    fn engine() -> EngineModel {
        EngineModel {
            timing: Timing::default(),
            seats: 8,
            tokens_per_step: 2048,
            kv_tokens: 1_000_000,
        }
    }

    /// The blocks of a prompt that has this number of tokens in common with all others of its family.
    fn prefix(prompt: u32, (family, shared): (u64, u32), id: usize) -> Vec<u64> {
        let block = |end: u32| if end <= shared { family << 40 } else { (id as u64 + 1) << 20 };
        (1..=prompt / KV_BLOCK).map(|at| block(at * KV_BLOCK) + u64::from(at)).collect()
    }

    /// Plays arrivals through one replica; returns first and last token of each, in microseconds.
    fn play(
        engine: EngineModel,
        requests: &[(Us, u32, u32)],
        prefixes: &[Vec<u64>],
    ) -> Vec<(Us, Us)> {
        let mut batch = Batch::new(engine);
        let mut times = vec![(0, 0); requests.len()];
        let mut next = 0;
        loop {
            let arrival = requests.get(next).map(|(at, ..)| *at);
            match (arrival, batch.due()) {
                (None, None) => return times,
                (Some(at), due) if due.is_none_or(|(end, _)| at < end) => {
                    let (_, prompt, output) = requests[next];
                    let prefix = prefixes.get(next).cloned().unwrap_or_default();
                    batch.submit(Sequence { id: next as u32, prompt, output }, prefix, at);
                    next += 1;
                }
                (_, Some((end, plan))) => {
                    let mut events = Vec::new();
                    batch.ended(plan, end, &mut events);
                    for event in events {
                        match event {
                            TokenEvent::First(id, _) => times[id as usize].0 = end,
                            TokenEvent::Last(id, _) => times[id as usize].1 = end,
                        }
                    }
                }
                _ => unreachable!("an arrival or a step is due"),
            }
        }
    }

    #[test]
    fn one_request_alone_takes_its_prompt_and_a_step_for_each_further_token() {
        // 20,000 tokens a second, then 9 steps of 8.05 ms.
        let times = play(engine(), &[(1_000, 1_000, 10)], &[]);
        assert_eq!(times, [(51_000, 51_000 + 9 * 8_050)]);
    }

    #[test]
    fn a_prompt_that_the_cache_has_takes_the_time_of_its_rest() {
        let prefixes = [prefix(1_000, (1, 800), 0), prefix(1_000, (1, 800), 1)];
        let times = play(engine(), &[(0, 1_000, 1), (100_000, 1_000, 1)], &prefixes);
        assert_eq!(times, [(50_000, 50_000), (110_000, 110_000)], "200 of 1,000 tokens are new");
    }

    #[test]
    fn a_sequence_longer_than_the_cache_runs_alone() {
        let engine = EngineModel { kv_tokens: 1_000, ..engine() };
        let times = play(engine, &[(0, 2_000, 1), (0, 100, 1)], &[]);
        assert_eq!(times, [(100_000, 100_000), (105_000, 105_000)]);
    }

    #[test]
    fn a_client_that_leaves_makes_room_at_once() {
        let mut batch = Batch::new(EngineModel { seats: 1, ..engine() });
        for id in 0..3 {
            batch.submit(Sequence { id, prompt: 100, output: 50 }, Vec::new(), 0);
        }
        assert_eq!((batch.running(), batch.waiting()), (1, 2));
        batch.abort(0);
        batch.abort(1);
        let (end, plan) = batch.due().expect("the step goes on");
        assert!(batch.ended(plan, end, &mut Vec::new()));
        assert_eq!((batch.running(), batch.waiting()), (1, 0));
        assert!(!batch.ended(plan, end, &mut Vec::new()), "the event of an old plan is recognized");
    }

    #[test]
    fn a_sequence_that_is_taken_out_has_its_tokens_so_far_in_its_prompt() {
        let mut batch = Batch::new(engine());
        batch.submit(Sequence { id: 7, prompt: 1_000, output: 10 }, Vec::new(), 0);
        assert_eq!(batch.first_decoding(0), None, "its prompt is being computed");
        let (end, plan) = batch.due().expect("a step");
        batch.ended(plan, end, &mut Vec::new());
        // One token with the prompt, then one every 8.05 ms.
        let now = end + 3 * 8_050 + 100;
        assert_eq!(batch.first_decoding(now), Some(7));
        let taken = batch.take(7, now).expect("it decodes");
        assert_eq!(taken, (Sequence { id: 7, prompt: 1_004, output: 6 }, 4));
        let (end, plan) = batch.due().expect("the step under way");
        assert_eq!(end, 50_000 + 4 * 8_050, "the stretch ends with it");
        let mut events = Vec::new();
        assert!(batch.ended(plan, end, &mut events));
        assert_eq!((events, batch.running(), batch.due()), (vec![], 0, None));
    }

    proptest! {
        // Stretches change nothing: the simulated vLLM's scheduler, step by step, gives each
        // first and last token at the same time, whatever prompts have in common.
        #[test]
        fn agrees_with_the_simulated_vllm_step_by_step(
            requests in prop::collection::vec((0..400_000u64, 1..5_000u32, 1..40u32), 1..40),
            families in prop::collection::vec((0..3u64, 0..5_000u32), 40),
        ) {
            let mut requests = requests;
            requests.sort_unstable();
            let engine = engine();
            let prefix = |(id, (request, family)): (usize, (&(_, u32, _), &(u64, u32)))| {
                prefix(request.1, *family, id)
            };
            let prefixes: Vec<_> = requests.iter().zip(&families).enumerate().map(prefix).collect();
            let ours = play(engine, &requests, &prefixes);
            let theirs = scheduler_times(engine, &requests, &prefixes);
            prop_assert_eq!(ours, theirs);
        }
    }
}
