//! One replica in simulated time: continuous batching by the shared timing model.
//!
//! The same rules as the simulated vLLM's scheduler: each step gives one token to every sequence
//! whose prompt is computed, then spends what is left of the step's token budget on prompts in
//! order of arrival. Steps that only decode are all alike until a sequence ends or one comes in, so
//! they are taken in one stretch: the cost is by request, not by token. One thing is simpler than
//! there: a sequence reserves its whole length of the KV cache, so that nothing is preempted.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::trace::Us;
use crate::timing::{Timing, Work};

/// What a replica is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Engine {
    pub(crate) timing: Timing,
    /// Sequences that run at once.
    pub(crate) seats: usize,
    /// Tokens worked on in one step.
    pub(crate) tokens_per_step: u32,
    /// Tokens that the KV cache holds.
    pub(crate) kv_tokens: u64,
}

impl Engine {
    fn step(&self, work: Work) -> Us {
        // At least a microsecond: time moves on also where the model says that work costs nothing.
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
    /// Tokens of the KV cache that it needs in the end.
    fn kv(self) -> u64 {
        u64::from(self.prompt) + u64::from(self.output)
    }
}

/// What came out of a stretch of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Its first token.
    First(u32),
    /// Its last token; the second figure is how many there were.
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
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    engine: Engine,
    waiting: VecDeque<Sequence>,
    /// Sequences whose prompt is being computed, with the tokens left and those of this step.
    prefilling: Vec<(Sequence, u32, u32)>,
    /// Decoding sequences by the step after which they end.
    decoding: BinaryHeap<Reverse<(u64, u32)>>,
    /// By id, of what decodes: the KV tokens it holds and its output.
    lengths: std::collections::HashMap<u32, Sequence>,
    /// Decode steps taken.
    steps: u64,
    kv: u64,
    stretch: Option<Stretch>,
    /// Changes with every new plan, so that an event of an old one is known.
    plan: u32,
}

impl Batch {
    pub(crate) fn new(engine: Engine) -> Self {
        Self {
            engine,
            waiting: VecDeque::new(),
            prefilling: Vec::new(),
            decoding: BinaryHeap::new(),
            lengths: std::collections::HashMap::new(),
            steps: 0,
            kv: 0,
            stretch: None,
            plan: 0,
        }
    }

    /// Sequences in the batch.
    pub(crate) fn running(&self) -> usize {
        self.prefilling.len() + self.lengths.len()
    }

    /// Sequences that wait for a seat: what vLLM shows as `vllm:num_requests_waiting`.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Share of the KV cache in use.
    pub(crate) fn kv_usage(&self) -> f64 {
        self.kv as f64 / self.engine.kv_tokens.max(1) as f64
    }

    /// When the stretch under way ends, with the plan that it belongs to.
    pub(crate) fn due(&self) -> Option<(Us, u32)> {
        self.stretch.map(|stretch| (stretch.end(), self.plan))
    }

    /// About how long after `now` a prompt that comes then would give its first token.
    pub(crate) fn first_token_after(&self, prompt: u32, now: Us) -> Us {
        let queued: u32 = self.waiting.iter().map(|sequence| sequence.prompt).sum();
        let begun: u32 = self.prefilling.iter().map(|(_, left, computing)| left - computing).sum();
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

    /// Takes a sequence in. A stretch of decode steps ends with the step under way, as the new
    /// sequence's prompt is then to be computed.
    pub(crate) fn submit(&mut self, sequence: Sequence, now: Us) {
        self.waiting.push_back(sequence);
        match &mut self.stretch {
            None => self.plan(now),
            Some(stretch) if !stretch.prefill => {
                let done = now.saturating_sub(stretch.began).div_ceil(stretch.step).max(1);
                if done < stretch.steps {
                    stretch.steps = done;
                    self.plan += 1;
                }
            }
            Some(_) => {}
        }
    }

    /// Takes a sequence out, wherever it is: its client left.
    pub(crate) fn abort(&mut self, id: u32) {
        if let Some(at) = self.waiting.iter().position(|sequence| sequence.id == id) {
            self.waiting.remove(at);
        } else if let Some(at) = self.prefilling.iter().position(|(seq, ..)| seq.id == id) {
            let (sequence, ..) = self.prefilling.remove(at);
            self.kv -= sequence.kv();
        } else if let Some(sequence) = self.lengths.remove(&id) {
            // Its place in the heap is skipped when it comes up.
            self.kv -= sequence.kv();
        }
    }

    /// The stretch of this plan has ended: tells of first and last tokens, and begins the next.
    /// False for an event of an older plan.
    pub(crate) fn ended(&mut self, plan: u32, now: Us, told: &mut Vec<Told>) -> bool {
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
            if let Some(sequence) = self.lengths.remove(&id) {
                self.kv -= sequence.kv();
                told.push(Told::Last(id, sequence.output));
            }
        }
        let mut left = Vec::with_capacity(self.prefilling.len());
        for (sequence, to_compute, computing) in self.prefilling.drain(..) {
            if to_compute > computing {
                left.push((sequence, to_compute - computing, 0));
                continue;
            }
            told.push(Told::First(sequence.id));
            if sequence.output <= 1 {
                self.kv -= sequence.kv();
                told.push(Told::Last(sequence.id, sequence.output));
            } else {
                let last = self.steps + u64::from(sequence.output) - 1;
                self.decoding.push(Reverse((last, sequence.id)));
                self.lengths.insert(sequence.id, sequence);
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
        for (_, to_compute, computing) in &mut self.prefilling {
            *computing = (*to_compute).min(budget);
            budget -= *computing;
            prefill_tokens += *computing;
        }
        while budget > 0 && self.running() < self.engine.seats {
            let Some(next) = self.waiting.front().copied() else { break };
            // One that is longer than the whole cache runs alone.
            if self.kv > 0 && self.kv + next.kv() > self.engine.kv_tokens {
                break;
            }
            self.waiting.pop_front();
            self.kv += next.kv();
            let to_compute = next.prompt.max(1);
            let computing = to_compute.min(budget);
            budget -= computing;
            prefill_tokens += computing;
            self.prefilling.push((next, to_compute, computing));
        }
        self.plan = self.plan.wrapping_add(1);
        self.stretch = None;
        if prefill_tokens == 0 && decodes == 0 {
            return;
        }
        let step = self.engine.step(Work { prefill_tokens, decodes });
        let prefill = prefill_tokens > 0;
        // Until the first of those that decode ends; a prompt is computed in a step of its own.
        let first = self.decoding.peek().map_or(1, |Reverse((last, _))| last - self.steps);
        let steps = if prefill { 1 } else { first.max(1) };
        self.stretch = Some(Stretch { began: now, step, steps, prefill });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::scheduler_times;
    use proptest::prelude::*;

    fn engine() -> Engine {
        Engine { timing: Timing::default(), seats: 8, tokens_per_step: 2048, kv_tokens: 1_000_000 }
    }

    /// Plays arrivals through one replica; first and last token of each, in microseconds.
    fn play(engine: Engine, requests: &[(Us, u32, u32)]) -> Vec<(Us, Us)> {
        let mut batch = Batch::new(engine);
        let mut times = vec![(0, 0); requests.len()];
        let mut next = 0;
        loop {
            let arrival = requests.get(next).map(|(at, ..)| *at);
            match (arrival, batch.due()) {
                (None, None) => return times,
                (Some(at), due) if due.is_none_or(|(end, _)| at < end) => {
                    let (_, prompt, output) = requests[next];
                    batch.submit(Sequence { id: next as u32, prompt, output }, at);
                    next += 1;
                }
                (_, Some((end, plan))) => {
                    let mut told = Vec::new();
                    batch.ended(plan, end, &mut told);
                    for told in told {
                        match told {
                            Told::First(id) => times[id as usize].0 = end,
                            Told::Last(id, _) => times[id as usize].1 = end,
                        }
                    }
                }
                _ => unreachable!("one of the two is there"),
            }
        }
    }

    #[test]
    fn one_request_alone_takes_its_prompt_and_a_step_for_each_further_token() {
        // 20,000 tokens a second, then 9 steps of 8.05 ms.
        let times = play(engine(), &[(1_000, 1_000, 10)]);
        assert_eq!(times, [(51_000, 51_000 + 9 * 8_050)]);
    }

    #[test]
    fn a_client_that_leaves_makes_room_at_once() {
        let mut batch = Batch::new(Engine { seats: 1, ..engine() });
        for id in 0..3 {
            batch.submit(Sequence { id, prompt: 100, output: 50 }, 0);
        }
        assert_eq!((batch.running(), batch.waiting()), (1, 2));
        batch.abort(0);
        batch.abort(1);
        let (end, plan) = batch.due().expect("the step goes on");
        assert!(batch.ended(plan, end, &mut Vec::new()));
        assert_eq!((batch.running(), batch.waiting()), (1, 0));
        assert!(!batch.ended(plan, end, &mut Vec::new()), "an old plan's event is known");
    }

    proptest! {
        // Stretches change nothing: the simulated vLLM's scheduler, step by step, gives each
        // first and last token at the same time.
        #[test]
        fn agrees_with_the_simulated_vllm_step_by_step(
            requests in prop::collection::vec((0..400_000u64, 1..5_000u32, 1..40u32), 1..40),
        ) {
            let mut requests = requests;
            requests.sort_unstable();
            let engine = engine();
            let ours = play(engine, &requests);
            let theirs = scheduler_times(engine, &requests);
            prop_assert_eq!(ours, theirs);
        }
    }
}
