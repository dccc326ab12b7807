//! Second-hand figures: PromQL, and the `/metrics` of vLLM and DCGM exporters.
//!
//! One task per trigger reads again and again, and stores the last reading with its time. A decision
//! takes the stored reading and never waits. Each read is bounded in time and bytes; a source that is
//! down is read less often.
//!
//! An impossible figure is not believed: each gauge declares its range and unit
//! (`forebay_config::Range`). A figure that is out of range, missing, old or cut off is unknown and
//! reported as such; it is never zero, and never the maximum.

use std::sync::Arc;
use std::time::Duration;

use forebay_base::backoff::doubled;
use forebay_config::Pool;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::clock::{Clock, epoch_time};
use crate::decide::{Reading, Wanted};

mod client;
mod dcgm;
mod exposition;
mod prometheus;
mod vllm;

pub(crate) use client::Client;

/// Longest time for a read. Queries have their own.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Longest pause after failures; `pollingInterval` if that is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The result of a read: the figure, and the reason why it is only a lower bound, if it is.
pub(crate) type SourceResult = Result<(Option<f64>, Option<String>), String>;

/// A pool's sources. Dropping it ends their tasks.
pub(crate) struct Sources {
    /// One place for each trigger, in order.
    slots: Vec<Option<Slot>>,
    /// `HOST:PORT` of the replicas to read.
    endpoints: watch::Sender<Arc<[String]>>,
    needs_endpoints: bool,
    // The tasks end when this is dropped.
    _tasks: JoinSet<()>,
}

type Slot = Arc<Mutex<Option<Reading>>>;

impl Sources {
    /// Starts to read the figures that `pool`'s triggers need.
    pub(crate) fn start(
        pool: &Pool,
        wanted: Vec<Option<Wanted>>,
        client: &Client,
        clock: Clock,
    ) -> Self {
        let (endpoints, watched) = watch::channel(Arc::from([]));
        let mut tasks = JoinSet::new();
        let needs_endpoints = wanted.iter().flatten().any(|wanted| *wanted == Wanted::KvCache);
        let interval = pool.scaling.polling_interval;
        let slots = wanted.into_iter().map(|wanted| {
            let slot = Slot::default();
            let source = Source {
                wanted: wanted?,
                client: client.clone(),
                endpoints: watched.clone(),
                interval,
                clock,
                slot: Arc::clone(&slot),
            };
            tasks.spawn(source.run());
            Some(slot)
        });
        let slots = slots.collect();
        Self { slots, endpoints, needs_endpoints, _tasks: tasks }
    }

    /// The last reading for each trigger.
    pub(crate) fn readings(&self) -> Vec<Option<Reading>> {
        self.slots.iter().map(|slot| slot.as_ref()?.lock().clone()).collect()
    }

    /// Sets the replicas to read from now on.
    pub(crate) fn set_endpoints(&self, endpoints: impl Iterator<Item = String>) {
        if !self.needs_endpoints {
            return;
        }
        let endpoints: Arc<[String]> = endpoints.collect();
        self.endpoints.send_if_modified(|known| {
            let changed = *known != endpoints;
            *known = endpoints;
            changed
        });
    }
}

struct Source {
    wanted: Wanted,
    client: Client,
    endpoints: watch::Receiver<Arc<[String]>>,
    interval: Duration,
    clock: Clock,
    slot: Slot,
}

impl Source {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let found = self.read().await;
            failures = if found.is_err() { failures + 1 } else { 0 };
            let (value, partial) = match found {
                Ok((value, partial)) => (Ok(value), partial),
                Err(error) => (Err(error), None),
            };
            *self.slot.lock() = Some(Reading { at: self.clock.now(), value, partial });
            let pause = pause(self.interval, failures);
            tokio::select! {
                () = tokio::time::sleep_until(began + pause) => {}
                // A new replica is read at once. A closed channel means that the pool is gone.
                changed = self.endpoints.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn read(&mut self) -> SourceResult {
        let now_ms = epoch_time().get();
        match &self.wanted {
            Wanted::Query(query) => {
                let limit = query.timeout.unwrap_or(TIMEOUT);
                bounded(limit, prometheus::read(&self.client, query, now_ms)).await
            }
            Wanted::KvCache => {
                let endpoints = Arc::clone(&self.endpoints.borrow_and_update());
                vllm::kv_cache(&self.client, &endpoints, now_ms).await
            }
            Wanted::Gpus { figure, urls, labels } => {
                let read = dcgm::read(&self.client, *figure, urls, labels, now_ms);
                bounded(TIMEOUT, read).await
            }
        }
    }
}

/// Runs `read` for at most `limit`.
async fn bounded<T>(
    limit: Duration,
    read: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let late = |_| Err(format!("no answer within {}", forebay_config::format_duration(limit)));
    timeout(limit, read).await.unwrap_or_else(late)
}

/// The pause between reads. It doubles with each failure in a row after the first two.
fn pause(interval: Duration, failures: u32) -> Duration {
    doubled(interval, failures.saturating_sub(2), LONGEST_PAUSE.max(interval))
}

#[cfg(test)]
mod tests;
