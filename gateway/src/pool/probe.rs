//! Probes of endpoints, from the moment they have an address.
//!
//! An endpoint is probed every 100 ms while it starts: vLLM refuses connections until it is up, and
//! held requests wait for this. While it serves, its answers say more: only one that has answered
//! nothing for a few seconds is asked for its health, on a connection that is kept. vLLM may close its
//! listener and leave its connections open and silent, so where no answer comes within a second, a new
//! connection is tried at once. A kept connection that the endpoint closes is a reason to ask as well.
//! An endpoint that was ejected gets a real request for one token: `/health` is 200 even while vLLM
//! drains, hangs or sleeps.
//!
//! Each endpoint has a task, which sleeps until the next probe is due: `endpoint/probing.rs` says when
//! that is, and wakes it when a request's failure makes it earlier. `pace.rs` bounds all probes
//! together, `connection.rs` is the kept connection, `token.rs` asks the engine, `engine.rs` reads what a
//! replica says of its engine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_base::shortage::Resource;
use http::{HeaderValue, StatusCode};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::net::file_shares::UPSTREAM_FILES;
use crate::pool::Pool;
use crate::pool::endpoint::{Due, Probe, Probed, SPREAD, Urgency};
use crate::pool::model_registry::{self, ServedModel};

use connection::{ProbeConnection, ProbeRequest};
pub(crate) use pace::Pace;

mod connection;
mod engine;
mod pace;
mod token;

const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer may take on a kept connection before a new one is tried.
const KEPT_TIMEOUT: Duration = Duration::from_secs(1);
/// The shortest pause after a probe that brought no answer, or that could not be sent.
const AGAIN: Duration = Duration::from_millis(100);
/// How often a replica's models are listed, more or less a tenth: adapters come and go while it runs.
const LIST_EVERY: Duration = Duration::from_secs(30);
/// How often an engine is asked how many requests wait there, while its endpoint's learned limit is
/// reached.
const WAITING_EVERY: Duration = Duration::from_secs(5);
/// The pause after a list that could not be read.
const LIST_AGAIN: Duration = Duration::from_secs(3);
const MAX_ANSWER: usize = 4 << 20;

/// Probes one endpoint until the pool no longer has it. Dropping the future ends the probes.
pub(crate) async fn probe(pool: Arc<Pool>, address: SocketAddr, pace: Arc<Pace>) {
    let Some(wake) = pool.probe_wake(address) else { return };
    let mut prober =
        Prober { pool, address, kept: None, listed: None, next_list: None, waiting: None };
    let (mut next, mut closed) = (Instant::now(), false);
    loop {
        closed |= prober.rest(next, &wake).await;
        let Some(due) = prober.pool.begin_probe(address, spread(SPREAD), closed) else { return };
        match due {
            Due::At(at) => {
                if prober.next_list.is_some_and(|list| list <= Instant::now()) {
                    prober.list(Urgency::Answering).await;
                } else {
                    prober.ask_waiting().await;
                }
                next = prober.next_list.map_or(at, |list| pace.step(list.min(at)));
            }
            Due::Now(probe, urgency) => {
                closed = false;
                next = match prober.send(probe, urgency).await {
                    true => Instant::now(),
                    false => pace.turn(urgency, Instant::now() + AGAIN),
                };
            }
        }
    }
}

/// A random time up to `most`.
fn spread(most: Duration) -> Duration {
    most.mul_f32(rand::random())
}

/// One endpoint's probes.
struct Prober {
    pool: Arc<Pool>,
    address: SocketAddr,
    kept: Option<ProbeConnection>,
    /// The first model that it lists, once it has listed any.
    listed: Option<String>,
    /// When its models are listed next; `None` while it does not answer.
    next_list: Option<Instant>,
    /// When its engine was last asked how many requests wait there.
    waiting: Option<Instant>,
}

impl Prober {
    /// Waits until a time, or until the endpoint wakes its probe. True if it has closed the connection
    /// meanwhile, and sooner than an idle one is closed. A request that needs the connection's place
    /// among the open files gets it.
    async fn rest(&mut self, until: Instant, wake: &Notify) -> bool {
        if until <= Instant::now() {
            return false;
        }
        let closed = async {
            let Some(connection) = &self.kept else { return std::future::pending().await };
            tokio::select! {
                early = connection.closed() => early,
                () = UPSTREAM_FILES.wanted() => false,
            }
        };
        let early = tokio::select! {
            () = sleep_until(until) => return false,
            () = wake.notified() => return false,
            early = closed => early,
        };
        self.kept = None;
        early
    }

    /// Sends a probe and reports its outcome; true if the endpoint answered it.
    async fn send(&mut self, probe: Probe, urgency: Urgency) -> bool {
        let Some(place) = pace::place(urgency).await else { return false };
        let target = self.target();
        let outcome = match probe {
            Probe::Health => self.health(&target).await,
            Probe::Token => Box::pin(token::token(&target, self.listed.as_ref())).await,
        };
        drop(place);
        let answers = outcome == Probed::Answered;
        if !answers && !matches!(outcome, Probed::NotSent(_)) {
            self.next_list = None;
            if probe == Probe::Health {
                self.listed = None;
            }
        }
        if self.pool.probed(self.address, probe, outcome) {
            tracing::debug!(pool = %self.pool.name, address = %self.address, answers, "probed");
        }
        if answers && self.next_list.is_none_or(|list| list <= Instant::now()) {
            self.list(urgency).await;
        }
        answers
    }

    /// Asks for its health, on the kept connection if there is one. If that brings no answer, a new
    /// connection shows why.
    async fn health(&mut self, target: &Target) -> Probed {
        let begun = Instant::now();
        let health = ProbeRequest::get("/health");
        let mut asked = Err(ProbeError::Silent(String::new()));
        if let Some(kept) = self.kept.take() {
            asked = kept.ask(target, &health, KEPT_TIMEOUT).await;
        }
        if asked.is_err() {
            let within = HEALTH_TIMEOUT.saturating_sub(begun.elapsed());
            asked = match ProbeConnection::open(self.address, within).await {
                Ok(connection) => connection.ask(target, &health, within).await,
                Err(error) => Err(error),
            };
        }
        let answer = asked.map(|((status, _), kept)| {
            self.kept = kept;
            (status, Bytes::new())
        });
        judge(health.path, answer, |status| status.is_success())
    }

    /// Lists the models that it serves.
    async fn list(&mut self, urgency: Urgency) {
        let models = match pace::place(urgency).await {
            Some(_place) => self.models().await,
            None => None,
        };
        let again = match models {
            Some(models) => {
                self.listed = models.first().map(|model| model.id.clone());
                self.pool.serves(self.address, models);
                if self.pool.wants_cache_report(self.address) {
                    self.report_engine(urgency).await;
                }
                LIST_EVERY * 9 / 10 + spread(LIST_EVERY / 5)
            }
            None => LIST_AGAIN,
        };
        self.next_list = Some(Instant::now() + again);
    }

    async fn models(&mut self) -> Option<Vec<ServedModel>> {
        model_registry::parse(&self.ask(&ProbeRequest::get("/v1/models")).await?)
    }

    /// Reads how many requests wait in its engine, if that is of use and was not read just now.
    async fn ask_waiting(&mut self) {
        let now = Instant::now();
        if self.waiting.is_none_or(|last| last + WAITING_EVERY <= now)
            && self.pool.wants_waiting(self.address)
        {
            self.waiting = Some(now);
            self.report_engine(Urgency::Answering).await;
        }
    }

    /// Reads what it says of its engine.
    async fn report_engine(&mut self, urgency: Urgency) {
        if let Some(_place) = pace::place(urgency).await
            && let Some(page) = self.ask(&ProbeRequest::get("/metrics")).await
            && let Some(report) = engine::parse(&page)
        {
            self.pool.engine_reported(self.address, &report);
        }
    }

    /// The body of its answer, on the kept connection if there is one.
    async fn ask(&mut self, request: &ProbeRequest) -> Option<Bytes> {
        let target = self.target();
        if let Some(kept) = self.kept.take()
            && let Ok(((_, body), kept)) = kept.ask(&target, request, HEALTH_TIMEOUT).await
        {
            self.kept = kept;
            return Some(body);
        }
        // No connection is kept, or it is closed by now.
        let (_, body) = target.ask(request, HEALTH_TIMEOUT).await.ok()?;
        Some(body)
    }

    fn target(&self) -> Target {
        Target { address: self.address, key: self.pool.key.get() }
    }
}

/// Why a probe got no answer.
#[derive(Debug)]
enum ProbeError {
    Unreachable(String),
    Silent(String),
    Broken(String),
    /// It was not sent.
    Shortage(Resource),
}

fn judge(
    path: &str,
    answer: Result<(StatusCode, Bytes), ProbeError>,
    good: impl Fn(StatusCode) -> bool,
) -> Probed {
    match answer {
        // A plain 200 may carry an abort.
        Ok((_, body)) if memchr::memmem::find(&body, b"\"finish_reason\":\"abort\"").is_some() => {
            Probed::Failed(format!("{path} was aborted"))
        }
        Ok((status, _)) if good(status) => Probed::Answered,
        Ok((status, _)) => Probed::Failed(format!("{path} answered {status}")),
        Err(ProbeError::Unreachable(reason)) => Probed::Unreachable(reason),
        Err(ProbeError::Silent(reason)) => Probed::Silent(reason),
        Err(ProbeError::Broken(reason)) => Probed::Failed(reason),
        Err(ProbeError::Shortage(resource)) => Probed::NotSent(resource),
    }
}

/// An endpoint to probe, and the key that it needs.
struct Target {
    address: SocketAddr,
    key: Option<HeaderValue>,
}

impl Target {
    /// Sends a request on a connection of its own, and waits for the answer.
    async fn ask(
        &self,
        request: &ProbeRequest,
        within: Duration,
    ) -> Result<connection::Answer, ProbeError> {
        let connection = ProbeConnection::open(self.address, within).await?;
        let (answer, _) = connection.ask(self, request, within).await?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests;
