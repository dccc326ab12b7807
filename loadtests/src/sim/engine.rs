//! The engine: one task that steps the batch, and the handles requests hold on it.
//!
//! A request's tokens come through a channel with room for all of them, so the engine never waits
//! for a reader: the real server buffers without bound as well, and its output is bounded by
//! `max_tokens` alone. Dropping a request's [`Ticket`] aborts its sequences at once.
//!
//! Steps are timed by a running due time, so timers that fire late don't lower the throughput.

use super::scheduler::{Limits, NewSeq, Progress, Scheduler, SeqId, Times, Totals};
use super::stats::{Ended, Stats};
use super::text::{mix, unit};
use crate::timing::{Timing, Work};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

/// How far steps may fall behind before the lost time is given up.
const MAX_LAG: Duration = Duration::from_millis(50);

/// How a cut sequence is counted.
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

/// What the engine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Stepping.
    Running,
    /// Stopped by `/pause`.
    Paused,
    /// Stopped by `/sleep`, at this level.
    Sleeping(u8),
    /// Stuck, without a word.
    Hung,
    /// Gone: all requests fail.
    Dead,
}

/// One sequence's way back to its request.
#[derive(Debug)]
struct Flow {
    index: u32,
    told: mpsc::Sender<Out>,
    reason: &'static str,
    prompt_tokens: u32,
    max_tokens: u32,
    n: u32,
    /// A misfortune after this many tokens.
    fails_at: Option<u32>,
}

/// What the metrics' gauges show; frozen while the engine is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Gauges {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) kv_usage: f64,
}

/// What the engine tells a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Out {
    /// Which of the request's sequences.
    pub(crate) index: u32,
    pub(crate) event: Event,
    /// Prompt tokens found in the cache.
    pub(crate) cached: u32,
}

/// One thing that happened to a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A token; `last` when the sequence ended with it.
    Token { last: bool },
    /// The prompt is computed and nothing was to be generated.
    Pooled,
    /// The server cut it.
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
    /// The label it will be counted under.
    pub(crate) reason: &'static str,
}

/// Why the engine took nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    QueueFull,
    Dead,
}

/// A request's hold on the engine.
#[derive(Debug)]
#[must_use = "dropping it aborts the request"]
pub(crate) struct Ticket {
    engine: Arc<Engine>,
    ids: Vec<SeqId>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.engine.leave(&self.ids);
    }
}

/// What every engine needs to know.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) timing: Timing,
    pub(crate) max_queued: Option<usize>,
    pub(crate) seed: u64,
    pub(crate) fail_rate: f64,
    pub(crate) reject_rate: f64,
}

impl Engine {
    pub(crate) fn new(setup: Setup, stats: Stats) -> Arc<Self> {
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
                // Connections have to get at what the last step told them.
                tokio::task::yield_now().await;
            }
            while self.inner.lock().state != State::Running {
                self.wake.notified().await;
            }
            self.end_step(work);
        }
    }

    /// Takes a request's sequences in, all or none.
    pub(crate) fn submit(
        self: &Arc<Self>,
        jobs: Vec<Job>,
        n: u32,
        lora: Option<&str>,
    ) -> Result<(Ticket, mpsc::Receiver<Out>), Refused> {
        let now = self.now();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        if inner.state == State::Dead {
            return Err(Refused::Dead);
        }
        inner.requests += 1;
        let fate = mix(self.seed, inner.requests);
        let luck = |kind: u64| unit(mix(fate, kind));
        let full = self.max_queued.is_some_and(|most| inner.scheduler.queue_full(most));
        if full || luck(1) < self.reject_rate {
            inner.stats.rejections += 1;
            return Err(Refused::QueueFull);
        }
        let fails = luck(2) < self.fail_rate;
        let fails_at = |tokens: u32| fails.then(|| 1 + (luck(3) * f64::from(tokens)) as u32);
        let room: usize = jobs.iter().map(|job| job.output_tokens as usize + 2).sum();
        let (told, out) = mpsc::channel(room.max(1));
        let mut ids = Vec::with_capacity(jobs.len());
        for (index, job) in (0..).zip(jobs) {
            let id = inner.next_id;
            inner.next_id += 1;
            ids.push(id);
            inner.flows.insert(
                id,
                Flow {
                    index,
                    told: told.clone(),
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

    /// Cuts every request, as the server itself does: told and counted. Returns how many.
    pub(crate) fn abort_all(&self) -> usize {
        let now = self.now();
        let mut inner = self.inner.lock();
        let aborted = inner.end_all(Event::Aborted, ABORT, now);
        inner.publish();
        drop(inner);
        self.changed.notify_waiters();
        aborted
    }

    /// Ends the engine: every request is cut or failed, and no more are taken.
    pub(crate) fn kill(&self, event: Event) {
        let now = self.now();
        let mut inner = self.inner.lock();
        let label = if event == Event::Failed { "error" } else { ABORT };
        inner.end_all(event, label, now);
        inner.publish();
        inner.state = State::Dead;
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Changes what the engine does. A dead one stays dead.
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

    /// Starts or stops taking waiting sequences into the batch.
    pub(crate) fn admit(&self, admitting: bool) {
        self.inner.lock().scheduler.admitting = admitting;
        self.wake.notify_one();
    }

    pub(crate) fn reset_prefix_cache(&self) {
        self.inner.lock().scheduler.reset_prefix_cache();
    }

    /// Returns once nothing runs and, unless only the running ones are meant, nothing waits.
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

    /// Counts a value into one of the metrics' histograms.
    pub(crate) fn observe(&self, name: &str, value: f64) {
        self.inner.lock().stats.observe(name, value);
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
            if tell(flows, stats, &progress, now) {
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

    /// A client that went away: its sequences end at once and are counted nowhere.
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

/// Passes one sequence's progress on. True if it has just failed.
fn tell(
    flows: &mut HashMap<SeqId, Flow>,
    stats: &mut Stats,
    progress: &Progress,
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
        _ if fails => (Event::Failed, "error"),
        Progress { produced: 0, .. } => (Event::Pooled, "stop"),
        Progress { finished, .. } => (Event::Token { last: *finished }, flow.reason),
    };
    // The channel has room for every token; an error means the client has just left.
    let _ = flow.told.try_send(Out { index: flow.index, event, cached });
    if fails || progress.finished {
        stats.ended(label, &flow.ended(progress.produced, times), now);
        flows.remove(&progress.id);
    }
    fails && !progress.finished
}

impl Flow {
    fn ended(&self, produced: u32, times: &Times) -> Ended {
        Ended {
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

    fn end_all(&mut self, event: Event, label: &'static str, now: Duration) -> usize {
        let flows = std::mem::take(&mut self.flows);
        for (id, flow) in &flows {
            let (produced, times) = self.scheduler.abort(*id).unwrap_or_default();
            let cached = times.cached_tokens;
            let _ = flow.told.try_send(Out { index: flow.index, event, cached });
            self.stats.ended(label, &flow.ended(produced, &times), now);
        }
        flows.len()
    }

    fn note_lora(&mut self, name: &str) {
        let now = super::wall::now().as_secs_f64();
        match self.loras.iter_mut().find(|(known, _)| known == name) {
            Some((_, when)) => *when = now,
            None => self.loras.push((name.to_owned(), now)),
        }
    }
}

#[cfg(test)]
mod tests;
