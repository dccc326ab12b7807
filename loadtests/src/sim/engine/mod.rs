//! The engine: one task that steps the batch, and the tickets that requests hold.
//!
//! A request's tokens come through a channel with room for all of them, so the engine never waits
//! for a reader: the real server buffers without bound as well, and only `max_tokens` bounds its
//! output. Dropping a request's [`Ticket`] aborts its sequences at once.
//!
//! Each step is due at a fixed time after the one before, so that late timers don't lower the
//! throughput. Uses the timing model and the figures of `metrics`, no HTTP.

pub(crate) mod scheduler;

use crate::mix::{mix, unit};
use crate::sim::metrics::stats::{FinishedSequence, Parsed, Stats};
use crate::timing::{Timing, Work};
use parking_lot::Mutex;
use scheduler::{Limits, NewSeq, Scheduler, SeqId, SeqProgress, Times, Totals};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

/// Longest delay of a step that later steps make up for.
const MAX_LAG: Duration = Duration::from_millis(50);

/// The label under which aborted sequences are counted.
const ABORT: &str = "abort";

/// The engine, shared by the server's tasks.
#[derive(Debug)]
pub(crate) struct Engine {
    inner: Mutex<Inner>,
    wake: Notify,
    changed: Notify,
    started: Instant,
    timing: Timing,
    max_queued: Option<usize>,
    seed: u64,
    fail_rate: f64,
    reject_rate: f64,
}

#[derive(Debug)]
struct Inner {
    scheduler: Scheduler,
    state: State,
    flows: HashMap<SeqId, Flow>,
    stats: Stats,
    gauges: Gauges,
    next_id: SeqId,
    requests: u64,
    loras: Vec<(String, f64)>,
}

/// The state of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Stepping.
    Running,
    /// Stopped by `/pause`.
    Paused,
    /// Stopped by `/sleep`, at this level.
    Sleeping(u8),
    /// Stuck, and silent.
    Hung,
    /// Gone: all requests fail.
    Dead,
}

/// The route from one sequence back to its request.
#[derive(Debug)]
struct Flow {
    index: u32,
    output: mpsc::Sender<Output>,
    reason: &'static str,
    prompt_tokens: u32,
    max_tokens: u32,
    n: u32,
    /// The sequence fails after this many tokens.
    fails_at: Option<u32>,
}

/// The values of the gauges in `/metrics`; frozen while the engine is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Gauges {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) kv_usage: f64,
}

/// One output of the engine for a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Output {
    /// The number of the sequence within its request.
    pub(crate) index: u32,
    pub(crate) event: SeqEvent,
    /// Prompt tokens found in the cache.
    pub(crate) cached: u32,
}

/// One thing that happened to a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SeqEvent {
    /// A token; `last` when the sequence ended with it.
    Token { last: bool },
    /// The prompt is computed and nothing was to be generated.
    Pooled,
    /// The server aborted it.
    Aborted,
    /// The engine failed.
    Failed,
}

/// A sequence to run.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) prompt_tokens: u32,
    pub(crate) prefix: Vec<u64>,
    pub(crate) output_tokens: u32,
    pub(crate) max_tokens: u32,
    /// The label under which its end is counted.
    pub(crate) reason: &'static str,
}

/// Why the engine refused a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    QueueFull,
    Dead,
}

/// A request's claim on the engine.
#[derive(Debug)]
#[must_use = "dropping it aborts the request"]
pub(crate) struct Ticket {
    engine: Arc<Engine>,
    ids: Vec<SeqId>,
}

impl Ticket {
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.engine.leave(&self.ids);
    }
}

/// The settings of an engine.
#[derive(Debug)]
pub(crate) struct EngineSettings {
    pub(crate) limits: Limits,
    pub(crate) timing: Timing,
    pub(crate) max_queued: Option<usize>,
    pub(crate) seed: u64,
    pub(crate) fail_rate: f64,
    pub(crate) reject_rate: f64,
}

impl Engine {
    pub(crate) fn new(setup: EngineSettings, stats: Stats) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                scheduler: Scheduler::new(setup.limits),
                state: State::Running,
                flows: HashMap::new(),
                stats,
                gauges: Gauges::default(),
                next_id: 0,
                requests: 0,
                loras: Vec::new(),
            }),
            wake: Notify::new(),
            changed: Notify::new(),
            started: Instant::now(),
            timing: setup.timing,
            max_queued: setup.max_queued,
            seed: setup.seed,
            fail_rate: setup.fail_rate,
            reject_rate: setup.reject_rate,
        })
    }

    /// Steps for ever. Run it in a task that ends with the server.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut due = Instant::now();
        loop {
            let Some(work) = self.begin_step() else {
                self.wake.notified().await;
                due = due.max(Instant::now());
                continue;
            };
            let now = Instant::now();
            due = if due + MAX_LAG < now { now } else { due } + self.timing.step(work);
            if due > now {
                sleep_until(due).await;
            } else {
                // Let the connections read the output of the last step.
                tokio::task::yield_now().await;
            }
            while self.inner.lock().state != State::Running {
                self.wake.notified().await;
            }
            self.end_step(work);
        }
    }

    /// Submits a request's sequences, all or none.
    pub(crate) fn submit(
        self: &Arc<Self>,
        jobs: Vec<Job>,
        n: u32,
        lora: Option<&str>,
    ) -> Result<(Ticket, mpsc::Receiver<Output>), Refused> {
        let now = self.now();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        if inner.state == State::Dead {
            return Err(Refused::Dead);
        }
        inner.requests += 1;
        let roll = mix(self.seed, inner.requests);
        let chance = |kind: u64| unit(mix(roll, kind));
        let full = self.max_queued.is_some_and(|most| inner.scheduler.queue_full(most));
        if full || chance(1) < self.reject_rate {
            inner.stats.rejections += 1;
            return Err(Refused::QueueFull);
        }
        let fails = chance(2) < self.fail_rate;
        let fails_at = |tokens: u32| fails.then(|| 1 + (chance(3) * f64::from(tokens)) as u32);
        let room: usize = jobs.iter().map(|job| job.output_tokens as usize + 2).sum();
        let (sender, out) = mpsc::channel(room.max(1));
        let mut ids = Vec::with_capacity(jobs.len());
        for (index, job) in (0..).zip(jobs) {
            let id = inner.next_id;
            inner.next_id += 1;
            ids.push(id);
            inner.flows.insert(
                id,
                Flow {
                    index,
                    output: sender.clone(),
                    reason: job.reason,
                    prompt_tokens: job.prompt_tokens,
                    max_tokens: job.max_tokens,
                    n,
                    fails_at: fails_at(job.output_tokens),
                },
            );
            let seq = NewSeq {
                id,
                prompt_tokens: job.prompt_tokens,
                prefix: job.prefix,
                output_tokens: job.output_tokens,
            };
            inner.scheduler.submit(seq, now);
        }
        if let Some(name) = lora {
            inner.note_lora(name);
        }
        inner.publish();
        drop(guard);
        self.wake.notify_one();
        Ok((Ticket { engine: Arc::clone(self), ids }, out))
    }

    /// Aborts every request as the server itself does: reported and counted. Returns how many.
    pub(crate) fn abort_all(&self) -> usize {
        let now = self.now();
        let mut inner = self.inner.lock();
        let aborted = inner.end_all(SeqEvent::Aborted, ABORT, now);
        inner.publish();
        drop(inner);
        self.changed.notify_waiters();
        aborted
    }

    /// Ends the engine: every request is aborted or fails, and no more are accepted.
    pub(crate) fn kill(&self, event: SeqEvent) {
        let now = self.now();
        let mut inner = self.inner.lock();
        let label = if event == SeqEvent::Failed { "error" } else { ABORT };
        inner.end_all(event, label, now);
        inner.publish();
        inner.state = State::Dead;
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Changes the state. A dead engine stays dead.
    pub(crate) fn set(&self, state: State) {
        let mut inner = self.inner.lock();
        if inner.state != State::Dead {
            inner.state = state;
        }
        drop(inner);
        self.wake.notify_one();
        self.changed.notify_waiters();
    }

    pub(crate) fn state(&self) -> State {
        self.inner.lock().state
    }

    /// Starts or stops admitting waiting sequences to the batch.
    pub(crate) fn admit(&self, admitting: bool) {
        self.inner.lock().scheduler.admitting = admitting;
        self.wake.notify_one();
    }

    pub(crate) fn reset_prefix_cache(&self) {
        self.inner.lock().scheduler.reset_prefix_cache();
    }

    /// Returns once no sequence runs and, unless `only_running`, none waits.
    pub(crate) async fn idle(&self, only_running: bool) {
        loop {
            let changed = self.changed.notified();
            {
                let scheduler = &self.inner.lock().scheduler;
                if scheduler.running() == 0 && (only_running || scheduler.waiting() == 0) {
                    return;
                }
            }
            changed.await;
        }
    }

    pub(crate) fn gauges(&self) -> Gauges {
        self.inner.lock().gauges
    }

    /// Records a value in one of the histograms.
    pub(crate) fn observe(&self, name: &str, value: f64) {
        self.inner.lock().stats.observe(name, value);
    }

    /// Counts a text that a parser of tool calls was given.
    pub(crate) fn parsed(&self, parsed: Parsed) {
        *self.inner.lock().stats.parsed.entry(parsed).or_default() += 1;
    }

    /// Reads the figures under the lock.
    pub(crate) fn figures<T>(
        &self,
        read: impl FnOnce(&Stats, Gauges, Totals, State, &[(String, f64)]) -> T,
    ) -> T {
        let inner = self.inner.lock();
        read(&inner.stats, inner.gauges, inner.scheduler.totals(), inner.state, &inner.loras)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn begin_step(&self) -> Option<Work> {
        let now = self.now();
        let mut inner = self.inner.lock();
        if inner.state != State::Running {
            return None;
        }
        let work = inner.scheduler.plan(now);
        inner.publish();
        work
    }

    fn end_step(&self, work: Work) {
        let now = self.now();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let tokens = f64::from(work.prefill_tokens + work.decodes);
        inner.stats.observe("vllm:iteration_tokens_total", tokens);
        let (flows, stats) = (&mut inner.flows, &mut inner.stats);
        let mut failed = Vec::new();
        inner.scheduler.commit(now, |progress| {
            if report(flows, stats, &progress, now) {
                failed.push(progress.id);
            }
        });
        for id in failed {
            inner.scheduler.abort(id);
        }
        inner.publish();
        drop(guard);
        self.changed.notify_waiters();
    }

    /// The client left: its sequences end at once and are not counted.
    fn leave(&self, ids: &[SeqId]) {
        let mut inner = self.inner.lock();
        for id in ids {
            if inner.flows.remove(id).is_some() {
                inner.scheduler.abort(*id);
            }
        }
        inner.publish();
        drop(inner);
        self.wake.notify_one();
        self.changed.notify_waiters();
    }
}

/// Sends one sequence's progress to its request. True if the sequence has just failed.
fn report(
    flows: &mut HashMap<SeqId, Flow>,
    stats: &mut Stats,
    progress: &SeqProgress,
    now: Duration,
) -> bool {
    let Some(flow) = flows.get_mut(&progress.id) else { return false };
    let times = &progress.times;
    let cached = times.cached_tokens;
    if progress.produced <= 1 {
        stats.prompt_done(flow.prompt_tokens, cached);
        stats.observe("vllm:time_to_first_token_seconds", progress.latency.as_secs_f64());
    } else {
        stats.observe("vllm:inter_token_latency_seconds", progress.latency.as_secs_f64());
    }
    stats.generation_tokens += u64::from(progress.produced > 0);
    let fails = flow.fails_at.is_some_and(|at| progress.produced >= at);
    let (event, label) = match progress {
        _ if fails => (SeqEvent::Failed, "error"),
        SeqProgress { produced: 0, .. } => (SeqEvent::Pooled, "stop"),
        SeqProgress { finished, .. } => (SeqEvent::Token { last: *finished }, flow.reason),
    };
    // The channel has room for every token: an error means that the client has just left.
    let _ = flow.output.try_send(Output { index: flow.index, event, cached });
    if fails || progress.finished {
        stats.ended(label, &flow.ended(progress.produced, times), now);
        flows.remove(&progress.id);
    }
    fails && !progress.finished
}

impl Flow {
    fn ended(&self, produced: u32, times: &Times) -> FinishedSequence {
        FinishedSequence {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: times.cached_tokens,
            produced,
            max_tokens: self.max_tokens,
            n: self.n,
            preemptions: times.preemptions,
            arrived: times.arrived,
            admitted: times.admitted,
            first_token: times.first_token,
        }
    }
}

impl Inner {
    fn publish(&mut self) {
        if self.state == State::Running {
            self.gauges = Gauges {
                running: self.scheduler.running(),
                waiting: self.scheduler.waiting(),
                kv_usage: self.scheduler.kv_usage(),
            };
        }
    }

    fn end_all(&mut self, event: SeqEvent, label: &'static str, now: Duration) -> usize {
        let flows = std::mem::take(&mut self.flows);
        for (id, flow) in &flows {
            let (produced, times) = self.scheduler.abort(*id).unwrap_or_default();
            let cached = times.cached_tokens;
            let _ = flow.output.try_send(Output { index: flow.index, event, cached });
            self.stats.ended(label, &flow.ended(produced, &times), now);
        }
        flows.len()
    }

    fn note_lora(&mut self, name: &str) {
        let now = crate::sim::wall::now().as_secs_f64();
        match self.loras.iter_mut().find(|(known, _)| known == name) {
            Some((_, when)) => *when = now,
            None => self.loras.push((name.to_owned(), now)),
        }
    }
}

#[cfg(test)]
mod tests;
