//! A simulated vLLM whose protocol clients and gateways can't tell from a real one's.
//!
//! It imitates vLLM 0.32.0 behind uvicorn, from recordings of a real server (`fixtures/vllm`):
//! paths, headers and their order, errors, event streams chunk by chunk, metrics line by line, and
//! how the server starts, stalls and ends. It does not imitate the model: texts are words from a
//! seed, and the time that work takes comes from [`crate::timing`].
//!
//! - `args`: the flags
//! - `engine`: batch, queue and KV cache, stepped in real time
//! - `api`: one file an API: the fields that it reads and the replies that it writes
//! - `metrics`: the `/metrics` page and its figures
//! - `http`: connections, routes, and the framing of replies
//!
//! As a process: [`run`]. In a test: [`Sim`], on a port of its own.

mod api;
mod args;
mod engine;
mod http;
mod metrics;
mod schema;
mod shared;
mod text;
mod wall;

pub use args::{LoraModule, Runner, SigtermOutcome, SimArgs};

use anyhow::Context as _;
use engine::State;
use forebay_base::print;
use shared::{Shared, Stop};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A simulated server in this process. Dropping it is like SIGKILL.
pub struct Sim {
    shared: Arc<Shared>,
    address: SocketAddr,
    listening: watch::Receiver<bool>,
    task: JoinSet<anyhow::Result<()>>,
}

impl Sim {
    /// Binds the port and starts; returns before a cold start is over.
    ///
    /// # Errors
    /// If the settings make no sense or the port is taken.
    pub async fn start(args: SimArgs) -> anyhow::Result<Self> {
        args.check()?;
        let socket = http::server::bind(&args)?;
        let address = socket.local_addr().context("a bound socket has an address")?;
        let shared = Shared::new(args);
        let (listens, mut listening) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(http::server::serve(Arc::clone(&shared), socket, listens));
        if shared.args.speed.cold_start.is_zero() {
            let _ = listening.wait_for(|listens| *listens).await;
        }
        Ok(Self { shared, address, listening, task })
    }

    /// The address that it listens on, now or after its cold start.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// `http://ADDRESS`.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns once connections are accepted.
    pub async fn ready(&self) {
        // An error means that the server ended before it listened: there is nothing to wait for.
        let _ = self.listening.clone().wait_for(|listens| *listens).await;
    }

    /// Ends the server as SIGTERM does.
    pub fn terminate(&self) {
        self.shared.end(Stop::Terminate);
    }

    /// Kills the engine: requests fail, and then the server ends.
    pub fn crash(&self) {
        self.shared.end(Stop::Crash);
    }

    /// Hangs the engine; /health stays 200.
    pub fn hang(&self) {
        self.shared.engine.set(State::Hung);
    }

    /// Lets a hung or paused engine go on.
    pub fn resume(&self) {
        self.shared.engine.set(State::Running);
    }

    /// Sequences in the batch.
    #[must_use]
    pub fn running(&self) -> usize {
        self.shared.engine.gauges().running
    }

    /// Sequences in the queue.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.engine.gauges().waiting
    }

    /// The `/metrics` page.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.shared.metrics()
    }

    /// Waits until the server has ended, after [`Sim::terminate`] or [`Sim::crash`].
    ///
    /// # Errors
    /// If it could not listen.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        match self.task.join_next().await {
            Some(ended) => ended.context("the server's task")?,
            None => Ok(()),
        }
    }

    /// Ends at once, as SIGKILL does: streams stop in the middle.
    pub async fn kill(mut self) {
        self.task.shutdown().await;
    }
}

/// Runs a simulated server until SIGTERM or SIGINT has ended it.
///
/// # Errors
/// If the settings make no sense or the port is taken.
pub async fn run(args: SimArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let pid = std::process::id();
    print::err(format_args!(
        "INFO:     Simulated vLLM {} ({:?} runner)",
        shared::VERSION,
        args.runner
    ));
    print::err(format_args!("INFO:     Serving {} as {}", args.names().join(", "), args.host));
    let mut sim = Sim::start(args).await?;
    print::err(format_args!("INFO:     Started server process [{pid}]"));
    print::err("INFO:     Waiting for application startup.");
    let url = sim.base_url();
    let mut listening = sim.listening.clone();
    let mut announced = false;
    loop {
        tokio::select! {
            ready = listening.wait_for(|listens| *listens), if !announced => {
                announced = true;
                if ready.is_ok() {
                    print::err("INFO:     Application startup complete.");
                    print::err(format_args!("INFO:     Uvicorn running on {url} (Press CTRL+C to quit)"));
                }
            }
            _ = terminate.recv() => {
                print::err("INFO:     Shutting down");
                sim.terminate();
            }
            _ = interrupt.recv() => {
                print::err("INFO:     Shutting down");
                sim.terminate();
            }
            ended = sim.ended() => {
                print::err(format_args!("INFO:     Finished server process [{pid}]"));
                return ended;
            }
        }
    }
}

/// Plays arrivals (microsecond, prompt, output), each with its prompt's blocks, through the scheduler
/// step by step in simulated time, and returns the times of each first and last token. Tests compare the replay with it.
#[cfg(test)]
pub(crate) fn scheduler_times(
    engine: crate::replay::replica::EngineModel,
    requests: &[(u64, u32, u32)],
    prefixes: &[Vec<u64>],
) -> Vec<(u64, u64)> {
    use engine::scheduler::{Limits, NewSeq, Scheduler};
    use std::time::Duration;
    let blocks = (engine.kv_tokens / 16) as usize;
    let (seats, tokens_per_step) = (engine.seats, engine.tokens_per_step);
    let mut scheduler = Scheduler::new(Limits { seats, tokens_per_step, blocks, block_size: 16 });
    let mut times = vec![(0, 0); requests.len()];
    let (mut next, mut now) = (0, 0);
    loop {
        while let Some((at, prompt_tokens, output_tokens)) = requests.get(next).copied()
            && at <= now
        {
            let (id, prefix) = (next as u64, prefixes[next].clone());
            let seq = NewSeq { id, prompt_tokens, prefix, output_tokens };
            scheduler.submit(seq, Duration::from_micros(now));
            next += 1;
        }
        let Some(work) = scheduler.plan(Duration::from_micros(now)) else {
            let Some((at, ..)) = requests.get(next) else { return times };
            now = *at;
            continue;
        };
        now += engine.timing.step(work).as_micros() as u64;
        scheduler.commit(Duration::from_micros(now), |progress| {
            let times = &mut times[progress.id as usize];
            if progress.produced == 1 {
                times.0 = now;
            }
            if progress.finished {
                times.1 = now;
            }
        });
    }
}
