//! Figures that are not first-hand: PromQL, vLLM's and the DCGM exporters' `/metrics`.
//!
//! One task for each trigger that needs one reads again and again, and leaves what it found, with the
//! time of it. A decision takes what lies there and never waits. Each read is bounded in time and in
//! bytes; a source that is down is asked less often.
//!
//! Nothing is believed that can't be: what a figure is made of has a range and a unit, where it is
//! declared (`forebay_config::Range`). What is out of it, missing, of another time or cut off is not
//! known, and said; never zero, and never the most.

use std::sync::Arc;
use std::time::Duration;

use forebay_config::Pool;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::clock::{Clock, epoch_ms};
use crate::decide::{Reading, Wanted};

mod client;
mod dcgm;
mod exposition;
mod prometheus;
mod vllm;

pub(crate) use client::Client;

/// Longest time for a read, but for queries, which have their own.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Longest pause after failures; longer only where `pollingInterval` is.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a source found: the figure, and why it is too low where a part of it could not be read.
pub(crate) type Found = Result<(Option<f64>, Option<String>), String>;

/// A pool's sources. Dropping it ends their tasks.
pub(crate) struct Sources {
    /// One place for each trigger, in order.
    slots: Vec<Option<Slot>>,
    /// `HOST:PORT` of the replicas that take requests.
    endpoints: watch::Sender<Arc<[String]>>,
    needs_endpoints: bool,
    /// Ends with this.
    _tasks: JoinSet<()>,
}

type Slot = Arc<Mutex<Option<Reading>>>;

impl Sources {
    /// Begins to read what `pool`'s triggers want.
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

    /// What each trigger's source last found.
    pub(crate) fn readings(&self) -> Vec<Option<Reading>> {
        self.slots.iter().map(|slot| slot.as_ref()?.lock().clone()).collect()
    }

    /// Which replicas to ask from now on.
    pub(crate) fn ask(&self, endpoints: impl Iterator<Item = String>) {
        if !self.needs_endpoints {
            return;
        }
        let endpoints: Arc<[String]> = endpoints.collect();
        self.endpoints.send_if_modified(|asked| {
            let changed = *asked != endpoints;
            *asked = endpoints;
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
            *self.slot.lock() = Some(Reading { at_ms: self.clock.now_ms(), value, partial });
            let pause = pause(self.interval, failures);
            tokio::select! {
                () = tokio::time::sleep_until(began + pause) => {}
                // A replica that came is asked at once; without this task's sender nobody listens.
                changed = self.endpoints.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn read(&mut self) -> Found {
        let now_ms = epoch_ms();
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

/// `read`, for no longer than `limit`.
async fn bounded<T>(
    limit: Duration,
    read: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let late = |_| Err(format!("no answer within {}", forebay_config::format_duration(limit)));
    timeout(limit, read).await.unwrap_or_else(late)
}

/// Doubles with each failure in a row after the first two.
fn pause(interval: Duration, failures: u32) -> Duration {
    let factor = 1 << failures.saturating_sub(2).min(16);
    (interval * factor).min(LONGEST_PAUSE.max(interval))
}

#[cfg(test)]
mod tests;
