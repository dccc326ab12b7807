//! The engine's batch: which sequences run, wait and get a token, step by step.
//!
//! Continuous batching as vLLM's V1 scheduler does it: each step gives one token to every running
//! sequence whose prompt is computed, then spends what is left of the step's token budget on
//! prompts, in order of arrival. A sequence is admitted when there is a free seat and its prompt's
//! blocks fit. If no block is free for a growing sequence, the newest running one is preempted: it
//! loses its blocks and waits at the front to be computed again.
//!
//! Pure: no clock and no text, only lengths. The caller lets a step's time pass between
//! [`Scheduler::plan`] and [`Scheduler::commit`], and passes `now`.

use crate::kv::{HeldBlocks, KvCache};
use crate::timing::Work;
use std::collections::VecDeque;
use std::time::Duration;

/// The number that the caller gave a sequence.
pub(crate) type SeqId = u64;

/// The capacity of the engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) seats: usize,
    pub(crate) tokens_per_step: u32,
    pub(crate) blocks: usize,
    pub(crate) block_size: u32,
}

/// A sequence to be run.
#[derive(Debug, Clone)]
pub(crate) struct NewSeq {
    pub(crate) id: SeqId,
    pub(crate) prompt_tokens: u32,
    /// The prompt's full blocks, each hashed with all before it.
    pub(crate) prefix: Vec<u64>,
    /// Tokens to generate. Zero only computes the prompt, as pooling does.
    pub(crate) output_tokens: u32,
}

/// The progress of one sequence in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SeqProgress {
    pub(crate) id: SeqId,
    /// Tokens generated so far, this step's included.
    pub(crate) produced: u32,
    pub(crate) finished: bool,
    /// Time since the token before; for the first token, since arrival.
    pub(crate) latency: Duration,
    pub(crate) times: Times,
}

/// The times of a sequence, and what the cache had of its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Times {
    pub(crate) arrived: Duration,
    pub(crate) admitted: Duration,
    pub(crate) first_token: Duration,
    pub(crate) cached_tokens: u32,
    pub(crate) preemptions: u32,
}

/// Running totals that the metrics show.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Totals {
    pub(crate) cache_queries: u64,
    pub(crate) cache_hits: u64,
    pub(crate) preemptions: u64,
}

#[derive(Debug)]
struct Seq {
    new: NewSeq,
    produced: u32,
    /// Prompt (and after a preemption, output) tokens still to be computed.
    to_compute: u32,
    /// Computed by the step under way.
    computing: u32,
    held: HeldBlocks,
    last_token: Duration,
    admitted_once: bool,
    times: Times,
}

/// The batch and its queue.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    kv: KvCache,
    waiting: VecDeque<Seq>,
    running: Vec<Seq>,
    totals: Totals,
    /// The last step had seats, but no blocks, for waiting sequences.
    starved: bool,
    /// While false nothing new starts (`/pause?mode=wait`).
    pub(crate) admitting: bool,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            kv: KvCache::new(limits.blocks),
            waiting: VecDeque::new(),
            running: Vec::new(),
            totals: Totals::default(),
            starved: false,
            admitting: true,
        }
    }

    /// Puts a sequence at the end of the queue.
    pub(crate) fn submit(&mut self, new: NewSeq, now: Duration) {
        let to_compute = new.prompt_tokens.max(1);
        self.waiting.push_back(Seq {
            new,
            produced: 0,
            to_compute,
            computing: 0,
            held: HeldBlocks::default(),
            last_token: now,
            admitted_once: false,
            times: Times { arrived: now, ..Times::default() },
        });
    }

    /// Removes a sequence, running or waiting, and returns its progress. `None` if it has ended.
    pub(crate) fn abort(&mut self, id: SeqId) -> Option<(u32, Times)> {
        let seq = match self.running.iter().position(|seq| seq.new.id == id) {
            Some(at) => self.running.remove(at),
            None => {
                let at = self.waiting.iter().position(|seq| seq.new.id == id)?;
                self.waiting.remove(at)?
            }
        };
        self.kv.release(seq.held);
        Some((seq.produced, seq.times))
    }

    /// Decides the next step. `None` when there is nothing to do.
    pub(crate) fn plan(&mut self, now: Duration) -> Option<Work> {
        let decodes = self.reserve_decodes();
        let mut budget = self.limits.tokens_per_step.saturating_sub(decodes);
        let mut prefill_tokens = 0;
        self.starved = false;
        for seq in &mut self.running {
            seq.computing = seq.to_compute.min(budget);
            budget -= seq.computing;
            prefill_tokens += seq.computing;
        }
        while self.admitting && budget > 0 && self.running.len() < self.limits.seats {
            let Some(mut seq) = self.admit(now) else {
                self.starved = !self.waiting.is_empty();
                break;
            };
            seq.computing = seq.to_compute.min(budget);
            budget -= seq.computing;
            prefill_tokens += seq.computing;
            self.running.push(seq);
        }
        let work = Work { prefill_tokens, decodes };
        (work != Work::default()).then_some(work)
    }

    /// Ends the step that [`Scheduler::plan`] began: reports every token and removes the sequences
    /// that ended.
    pub(crate) fn commit(&mut self, now: Duration, mut report: impl FnMut(SeqProgress)) {
        let mut at = 0;
        while at < self.running.len() {
            let seq = &mut self.running[at];
            let decoding = seq.to_compute == 0;
            seq.to_compute -= seq.computing;
            let computed = seq.computing > 0 && seq.to_compute == 0;
            seq.computing = 0;
            if !decoding && !computed {
                at += 1;
                continue;
            }
            seq.produced = (seq.produced + 1).min(seq.new.output_tokens);
            let latency = now.saturating_sub(seq.last_token);
            seq.last_token = now;
            if seq.produced <= 1 {
                seq.times.first_token = now;
            }
            let finished = seq.produced >= seq.new.output_tokens;
            let (id, produced, times) = (seq.new.id, seq.produced, seq.times);
            report(SeqProgress { id, produced, finished, latency, times });
            if finished {
                let seq = self.running.remove(at);
                self.kv.release(seq.held);
            } else {
                at += 1;
            }
        }
    }

    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether one more sequence would wait behind `most` others. Those that get a seat at the next
    /// step don't count.
    pub(crate) fn queue_full(&self, most: usize) -> bool {
        let here = self.waiting.len() + self.running.len();
        here >= self.limits.seats.saturating_add(most)
            || (self.starved && self.waiting.len() >= most)
    }

    pub(crate) fn kv_usage(&self) -> f64 {
        self.kv.usage()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn reset_prefix_cache(&mut self) {
        self.kv.reset();
    }

    /// Gives every decoding sequence the block that its next token may need, and preempts the
    /// newest sequences while no block is free. Returns how many will get a token.
    fn reserve_decodes(&mut self) -> u32 {
        let (mut at, mut decodes) = (0, 0);
        while at < self.running.len() {
            let seq = &mut self.running[at];
            if seq.to_compute > 0 {
                at += 1;
                continue;
            }
            let needed = self.limits.block_count(seq.new.prompt_tokens + seq.produced + 1);
            if seq.held.blocks() >= needed || self.kv.grow(&mut seq.held) {
                decodes += 1;
                at += 1;
            } else {
                self.preempt_newest();
            }
        }
        decodes
    }

    fn preempt_newest(&mut self) {
        if let Some(mut seq) = self.running.pop() {
            self.kv.release(std::mem::take(&mut seq.held));
            seq.to_compute = seq.new.prompt_tokens.max(1) + seq.produced;
            seq.computing = 0;
            seq.times.preemptions += 1;
            self.totals.preemptions += 1;
            self.waiting.push_front(seq);
        }
    }

    fn admit(&mut self, now: Duration) -> Option<Seq> {
        let seq = self.waiting.front()?;
        let hits = self.kv.hits(&seq.new.prefix) as u32;
        let tokens = seq.new.prompt_tokens + seq.produced + 1;
        let blocks = self.limits.block_count(tokens);
        let held = self.kv.acquire(&seq.new.prefix, blocks.saturating_sub(seq.new.prefix.len()))?;
        let mut seq = self.waiting.pop_front()?;
        seq.held = held;
        // The last prompt token is always computed: its result is the first output token.
        let usable = (seq.new.prompt_tokens.saturating_sub(1)) / self.limits.block_size;
        let cached = hits.min(usable) * self.limits.block_size;
        seq.to_compute = (seq.to_compute - cached.min(seq.to_compute)).max(1);
        if !seq.admitted_once {
            seq.admitted_once = true;
            seq.times.admitted = now;
            seq.times.cached_tokens = cached;
            self.totals.cache_queries += u64::from(seq.new.prompt_tokens);
            self.totals.cache_hits += u64::from(cached);
        }
        Some(seq)
    }
}

impl Limits {
    fn block_count(&self, tokens: u32) -> usize {
        tokens.div_ceil(self.block_size) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(seats: usize, blocks: usize) -> Limits {
        Limits { seats, tokens_per_step: 64, blocks, block_size: 4 }
    }

    fn seq(id: SeqId, prompt_tokens: u32, output_tokens: u32) -> NewSeq {
        let prefix = (0..u64::from(prompt_tokens / 4)).map(|block| id * 1000 + block).collect();
        NewSeq { id, prompt_tokens, prefix, output_tokens }
    }

    /// Steps until idle; one step a millisecond. Returns (id, produced, finished) in order.
    fn run(scheduler: &mut Scheduler) -> Vec<(SeqId, u32, bool)> {
        let mut seen = Vec::new();
        for step in 0..10_000 {
            if scheduler.plan(Duration::from_millis(step)).is_none() {
                return seen;
            }
            scheduler.commit(Duration::from_millis(step + 1), |p| {
                seen.push((p.id, p.produced, p.finished));
            });
        }
        panic!("never idle: {scheduler:?}");
    }

    #[test]
    fn running_sequences_take_turns_and_the_next_one_waits_for_a_seat() {
        let mut scheduler = Scheduler::new(limits(2, 100));
        for id in 1..=3 {
            scheduler.submit(seq(id, 4, 2), Duration::ZERO);
        }
        assert_eq!((scheduler.waiting(), scheduler.queue_full(1)), (3, true));
        assert!(!scheduler.queue_full(2), "two of the three have seats");
        let seen = run(&mut scheduler);
        let want =
            [(1, 1, false), (2, 1, false), (1, 2, true), (2, 2, true), (3, 1, false), (3, 2, true)];
        assert_eq!(seen, want);
        assert_eq!((scheduler.running(), scheduler.kv_usage()), (0, 0.0));
    }

    #[test]
    fn a_long_prompt_is_computed_in_pieces_of_the_step_budget() {
        let mut scheduler = Scheduler::new(limits(2, 100));
        scheduler.submit(seq(1, 150, 1), Duration::ZERO);
        let mut pieces = Vec::new();
        while let Some(work) = scheduler.plan(Duration::ZERO) {
            pieces.push(work.prefill_tokens);
            scheduler.commit(Duration::ZERO, |_| ());
        }
        assert_eq!(pieces, [64, 64, 22]);
    }

    #[test]
    fn the_same_prompt_again_computes_only_its_last_block() {
        let mut scheduler = Scheduler::new(limits(1, 100));
        for id in [1, 2] {
            scheduler.submit(NewSeq { id, ..seq(7, 40, 1) }, Duration::ZERO);
            let _ = scheduler.plan(Duration::ZERO);
            scheduler.commit(Duration::ZERO, |p| {
                assert_eq!(p.times.cached_tokens, if id == 1 { 0 } else { 36 });
            });
        }
        assert_eq!(
            scheduler.totals(),
            Totals { cache_queries: 80, cache_hits: 36, preemptions: 0 }
        );
    }

    #[test]
    fn an_aborted_sequence_is_gone_at_once_with_its_blocks() {
        let mut scheduler = Scheduler::new(limits(1, 100));
        scheduler.submit(seq(1, 8, 50), Duration::ZERO);
        scheduler.submit(seq(2, 8, 50), Duration::ZERO);
        let _ = scheduler.plan(Duration::ZERO);
        assert!(scheduler.abort(1).is_some() && scheduler.abort(2).is_some());
        assert!(scheduler.abort(1).is_none(), "a second abort finds nothing");
        assert_eq!((scheduler.running(), scheduler.waiting(), scheduler.kv_usage()), (0, 0, 0.0));
    }

    proptest! {
        // Every sequence that fits alone gets all its tokens, in order, whatever is preempted.
        #[test]
        fn every_sequence_gets_its_tokens_in_order(
            seqs in proptest::collection::vec((1..40u32, 1..40u32), 1..12),
            seats in 1..6usize, blocks in 20..40usize,
        ) {
            let mut scheduler = Scheduler::new(limits(seats, blocks));
            for (id, (prompt, output)) in seqs.iter().enumerate() {
                scheduler.submit(seq(id as u64, *prompt, *output), Duration::ZERO);
            }
            let seen = run(&mut scheduler);
            for (id, (_, output)) in seqs.iter().enumerate() {
                let of: Vec<u32> =
                    seen.iter().filter(|t| t.0 == id as u64).map(|t| t.1).collect();
                let want: Vec<u32> = (1..=*output).collect();
                prop_assert_eq!(of, want);
            }
            prop_assert_eq!(scheduler.kv_usage(), 0.0);
        }
    }
}
