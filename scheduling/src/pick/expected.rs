//! The time to the first token that a request can expect at an endpoint.
//!
//! By what each endpoint has in flight, in three terms, whose weights are those of the pool: a time
//! that every request takes, a time for each byte of prompts that the endpoint has still to work on
//! (this request's among them, less what it should have cached), and a time for each request there.
//! The weights are fitted to the times that were seen, by least squares that forget. The result is
//! multiplied by how much slower this endpoint has been than the others.
//!
//! Where answers are long, a request loses more by decoding among many than by a later first token.
//! So what decoding beside each request there adds to the whole answer counts as well: by how the
//! time of a token grows with the requests in flight, and the usual length of an answer.
//!
//! Engines work on prompts in the order of their arrival. So what an endpoint has still to work on
//! are the prompts that were given to it and have no first token yet. A plain answer shows no first
//! token; its prompt counts for the time that was expected of it.

use std::time::Duration;

use super::candidate::{Candidate, EndpointId};
use super::work_queue::{Seconds, Waiting, WorkQueue};

/// The part that a measurement keeps when the next one comes.
const KEPT: f64 = 0.98;
/// How many measurements the weights at the beginning count as.
const PRIOR: f64 = 1.0;
/// The weights at the beginning: 20 ms; a rate of 60 kB/s, which are 15,000 tokens/s; 2 ms for each
/// request in flight. Source of the rate: llm-d's default of its optimized baseline.
const FIRST: [f64; 3] = [0.02, 1.0 / 60_000.0, 0.002];
/// The least weights. Each request in flight counts, so that decoding is shared out too.
const LEAST: [f64; 3] = [0.0, 1e-7, 0.001];
/// The unit of each term in the fit, so that all terms have about the same size.
const UNITS: [f64; 3] = [1.0, 10_000.0, 10.0];
/// The measurements between two fits.
const FIT_EVERY: u32 = 16;
/// The steps of one fit. It goes on from the weights of the one before.
const DESCENTS: u32 = 8;
/// At the beginning, the seconds that each request in flight adds to a token, and the tokens of an
/// answer: those of Llama 3.1 8B on an H100, and of a chat.
const FIRST_SLOPE: f64 = 60e-6;
const FIRST_TOKENS: f64 = 150.0;
/// How much the requests in flight must have differed for the slope that was seen to count as much
/// as the one at the beginning; and the steepest that is believed.
const SPREAD: f64 = 1000.0;
const MOST_SLOPE: f64 = 0.01;
/// The times that a pool's endpoints have been seen to take.
#[derive(Debug)]
pub(super) struct Expected {
    /// Seconds for a request, for a byte, for a request in flight.
    weights: [f64; 3],
    fit: Fit,
    decoding: Decoding,
    /// By the endpoints' numbers.
    queues: Vec<WorkQueue>,
    /// The number of requests given out.
    given: u64,
}

/// The sums of weighted least squares.
#[derive(Clone, Copy, Debug)]
struct Fit {
    products: [[f64; 3]; 3],
    results: [f64; 3],
    /// Measurements since the last fit.
    since: u32,
}

/// The times that decoding takes, by sums over answers that forget.
#[derive(Clone, Copy, Debug)]
struct Decoding {
    count: f64,
    in_flight: f64,
    seconds: f64,
    in_flight_squared: f64,
    product: f64,
    /// The tokens of an answer after its first.
    tokens: f64,
}

/// A request that an endpoint works on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    number: u64,
    terms: [f64; 3],
    /// The requests there that had their first tokens.
    decoding: f64,
}

/// The part of an expectation that is the same at all endpoints of a pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedTerms {
    now: Seconds,
    /// From the first token of an answer to its last.
    answer: f64,
    /// That a request which decodes beside it adds to its answer.
    each_beside: f64,
}

impl Default for Expected {
    fn default() -> Self {
        Self {
            weights: FIRST,
            fit: Fit::default(),
            decoding: Decoding::default(),
            queues: Vec::new(),
            given: 0,
        }
    }
}

impl Default for Fit {
    fn default() -> Self {
        let mut fit = Self { products: [[0.0; 3]; 3], results: [0.0; 3], since: 0 };
        for term in 0..3 {
            fit.pull(term, 1.0);
        }
        fit
    }
}

impl Fit {
    /// Pulls a weight towards the one at the beginning.
    fn pull(&mut self, term: usize, part: f64) {
        self.products[term][term] += PRIOR * part;
        self.results[term] += PRIOR * part * FIRST[term] * UNITS[term];
    }

    fn add(&mut self, terms: [f64; 3], seconds: f64) {
        let scaled = [0, 1, 2].map(|term| terms[term] / UNITS[term]);
        for row in 0..3 {
            for column in 0..3 {
                let product = &mut self.products[row][column];
                *product = *product * KEPT + scaled[row] * scaled[column];
            }
            self.results[row] = self.results[row] * KEPT + scaled[row] * seconds;
            // The part of the prior that was forgotten.
            self.pull(row, 1.0 - KEPT);
        }
        self.since += 1;
    }

    /// The weights with the least squares of errors, none less than the least; by coordinate descent.
    fn solve(&mut self, weights: &mut [f64; 3]) {
        self.since = 0;
        let mut scaled = [0, 1, 2].map(|term| weights[term] * UNITS[term]);
        for _ in 0..DESCENTS {
            for row in 0..3 {
                let others: f64 = (0..3)
                    .filter(|column| *column != row)
                    .map(|column| self.products[row][column] * scaled[column])
                    .sum();
                let free = (self.results[row] - others) / self.products[row][row];
                scaled[row] = free.max(LEAST[row] * UNITS[row]);
            }
        }
        *weights = [0, 1, 2].map(|term| scaled[term] / UNITS[term]);
    }
}

impl Default for Decoding {
    fn default() -> Self {
        Self {
            count: 0.0,
            in_flight: 0.0,
            seconds: 0.0,
            in_flight_squared: 0.0,
            product: 0.0,
            tokens: FIRST_TOKENS,
        }
    }
}

impl Decoding {
    /// Takes the seconds for a token of an answer that began among `in_flight` others.
    fn add(&mut self, in_flight: f64, seconds: f64, tokens: f64) {
        for (sum, value) in [
            (&mut self.count, 1.0),
            (&mut self.in_flight, in_flight),
            (&mut self.seconds, seconds),
            (&mut self.in_flight_squared, in_flight * in_flight),
            (&mut self.product, in_flight * seconds),
        ] {
            *sum = *sum * KEPT + value;
        }
        self.tokens += (1.0 - KEPT) * (tokens - self.tokens);
    }

    /// The seconds that each request beside it adds to a token: the slope of the line that fits best.
    fn slope(&self) -> f64 {
        let spread = self.count * self.in_flight_squared - self.in_flight * self.in_flight;
        let common = self.count * self.product - self.in_flight * self.seconds;
        let slope = (common + SPREAD * FIRST_SLOPE) / (spread + SPREAD);
        slope.clamp(0.0, MOST_SLOPE)
    }

    /// The usual seconds from the first token of an answer to its last.
    fn answer(&self) -> f64 {
        self.seconds / self.count.max(1.0) * self.tokens
    }

    /// The seconds for a token of an answer among `in_flight` others.
    fn token(&self, in_flight: f64) -> f64 {
        let count = self.count.max(1.0);
        self.seconds / count + self.slope() * (in_flight - self.in_flight / count)
    }
}

impl Expected {
    /// The part that is the same at all endpoints now.
    pub(super) fn shared(&self, now: Duration) -> SharedTerms {
        SharedTerms {
            now: now.as_secs_f64(),
            answer: self.decoding.answer(),
            each_beside: self.decoding.slope() * self.decoding.tokens,
        }
    }

    /// The seconds that a request can expect at an endpoint that has to work on `bytes` of it: to its
    /// first token, and what decoding among the others adds.
    pub(super) fn seconds(
        &mut self,
        id: EndpointId,
        candidate: &Candidate,
        bytes: u64,
        shared: &SharedTerms,
    ) -> f64 {
        let mut ahead = (0, 0);
        let mut slowness = (1.0, 1.0);
        if let Some(queue) = self.queues.get_mut(id.number())
            && queue.process() == candidate.process
        {
            ahead = queue.ahead(shared.now);
            slowness = queue.slowness(shared.now);
        }
        let first = self.predict(&terms(ahead.0 + bytes, candidate.in_flight));
        let mut beside = f64::from(candidate.in_flight.saturating_sub(ahead.1));
        if ahead.1 > 0 {
            // Those that wait will decode beside it too, unless they end before it begins.
            beside += f64::from(ahead.1) * (shared.answer / first).min(1.0);
        }
        slowness.0 * first + slowness.1 * shared.each_beside * beside
    }

    /// How many times as long as at the pool's endpoints on the whole a first token takes at this
    /// one, and a later one.
    pub(super) fn slowness(&self, id: EndpointId, process: u64, now: Duration) -> (f64, f64) {
        match self.queues.get(id.number()) {
            Some(queue) if queue.process() == process => queue.slowness(now.as_secs_f64()),
            _ => (1.0, 1.0),
        }
    }

    /// The seconds that a pool's endpoints work on prompts of `bytes`.
    pub(super) fn work(&self, bytes: u64) -> f64 {
        self.weights[1] * bytes as f64
    }

    fn predict(&self, terms: &[f64; 3]) -> f64 {
        (0..3).map(|term| self.weights[term] * terms[term]).sum()
    }

    /// Takes that an endpoint was given a request of which it has to work on `bytes`. `in_flight`:
    /// the others there. `streamed`: its first token will be seen.
    pub(super) fn given(
        &mut self,
        id: EndpointId,
        candidate: &Candidate,
        bytes: u64,
        streamed: bool,
        now: Duration,
    ) -> Work {
        let (others, now) = (candidate.in_flight.saturating_sub(1), now.as_secs_f64());
        let queue = self.queue(id, candidate.process);
        let ((ahead, waiting), (slowness, _)) = (queue.ahead(now), queue.slowness(now));
        let decoding = f64::from(others.saturating_sub(waiting));
        let terms = terms(ahead + bytes, others);
        let seconds = (slowness * self.predict(&terms)).min(600.0);
        let until = if streamed { Seconds::INFINITY } else { now + seconds };
        self.given += 1;
        let number = self.given;
        self.queue(id, candidate.process).add(Waiting { number, bytes, until });
        Work { number, terms, decoding }
    }

    fn queue(&mut self, id: EndpointId, process: u64) -> &mut WorkQueue {
        let at = id.number();
        if self.queues.len() <= at {
            self.queues.resize_with(at + 1, || WorkQueue::of(0));
        }
        let queue = &mut self.queues[at];
        if queue.process() < process {
            *queue = WorkQueue::of(process);
        }
        queue
    }

    /// Takes the first token of a stream, after this many seconds.
    pub(super) fn first_token(
        &mut self,
        (id, process): (EndpointId, u64),
        work: &Work,
        seconds: f64,
        now: Duration,
    ) {
        self.left((id, process), work);
        let predicted = self.predict(&work.terms);
        let queue = self.queue(id, process);
        if queue.process() == process {
            queue.note_first(seconds, predicted, now.as_secs_f64());
        }
        self.fit.add(work.terms, seconds);
        if self.fit.since >= FIT_EVERY {
            self.fit.solve(&mut self.weights);
        }
    }

    /// Takes a whole answer: the seconds and the tokens after its first.
    pub(super) fn decoded(
        &mut self,
        (id, process): (EndpointId, u64),
        work: &Work,
        (seconds, tokens): (f64, u64),
        now: Duration,
    ) {
        if tokens == 0 {
            return;
        }
        let seconds = seconds / tokens as f64;
        self.decoding.add(work.decoding, seconds, tokens as f64);
        let expected = self.decoding.token(work.decoding);
        let queue = self.queue(id, process);
        if queue.process() == process {
            queue.note_later(seconds, expected, now.as_secs_f64());
        }
    }

    /// Takes that an endpoint has no more work with the prompt of a request.
    pub(super) fn left(&mut self, (id, process): (EndpointId, u64), work: &Work) {
        if let Some(queue) = self.queues.get_mut(id.number())
            && queue.process() == process
        {
            queue.remove(work.number);
        }
    }
}

fn terms(bytes: u64, in_flight: u32) -> [f64; 3] {
    [1.0, bytes as f64, f64::from(in_flight)]
}

#[cfg(test)]
mod tests;
