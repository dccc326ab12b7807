//! Probes of endpoints, from the moment they have an address.
//!
//! An endpoint is probed every 100 ms while it starts: vLLM refuses connections until it is up, and
//! held requests wait for this. While it serves, its answers say more: only one that has answered
//! nothing for a few seconds is asked for its health, on a connection that is kept. vLLM may close its
//! listener and leave its connections open and silent, so where no answer comes soon, a new
//! connection is tried at once. A kept connection that the endpoint closes is a reason to ask as well.
//! An endpoint that was ejected gets a real request for one token: `/health` is 200 even while vLLM
//! drains, hangs or sleeps.
//!
//! Each endpoint has a task. While the endpoint answers, `rounds.rs` asks it, together with all others,
//! and the task rests; otherwise the task sleeps until the next probe is due. `endpoint/probing.rs` says
//! when that is, and wakes the task when a request's failure makes it earlier. `pace.rs` bounds all
//! probes together, `connection.rs` is the kept connection, `token.rs` asks the engine, `engine.rs` reads
//! what a replica says of its engine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_base::shortage::Resource;
use forebay_scheduling::pick::EndpointId;
use http::{HeaderValue, StatusCode};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::pool::Pool;
use crate::pool::endpoint::{Due, Probe, Probed, SPREAD, Urgency};
use crate::pool::model_registry::{self, ServedModel};

use connection::{Answer, ProbeConnection, ProbeRequest};
use rounds::Errand;
pub(crate) use rounds::Rounds;

mod connection;
mod engine;
mod pace;
mod rounds;
mod token;

const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer may take on a kept connection before a new one is tried, for the rest of
/// [`HEALTH_TIMEOUT`].
const KEPT_TIMEOUT: Duration = Duration::from_millis(800);
/// The shortest pause after a probe that brought no answer, or that could not be sent.
const AGAIN: Duration = Duration::from_millis(100);
/// How often a replica's models are listed, more or less a tenth: adapters come and go while it runs.
const LIST_EVERY: Duration = Duration::from_secs(30);
/// How often an engine is asked how many requests wait there, while its endpoint's learned limit is
/// reached.
const WAITING_EVERY: Duration = Duration::from_secs(5);
/// How long a server whose metrics say nothing of its engine's cache is not asked about that.
const UNREPORTED_AGAIN: Duration = Duration::from_secs(600);
/// The pause after a list that could not be read.
const LIST_AGAIN: Duration = Duration::from_secs(3);
const MAX_ANSWER: usize = 4 << 20;

/// Probes one endpoint until the pool no longer has it. Dropping the future ends the probes.
pub(crate) async fn probe(pool: Arc<Pool>, address: SocketAddr, rounds: Arc<Rounds>) {
    let Some((id, wake)) = pool.probe_wake(address) else { return };
    let (mut prober, mut next) = (Box::new(Prober::new(pool, address, id)), Instant::now());
    loop {
        let errand;
        (prober, errand) = if prober.next_list.is_some() {
            let Some(visited) = rounds.visit(prober, next, &wake).await else { return };
            visited
        } else {
            rest(next, &wake).await;
            (prober, Errand::Look)
        };
        let (urgency, answers) = match errand {
            Errand::End => return,
            Errand::Probe(probe, urgency, begun) => {
                (urgency, prober.send(probe, urgency, begun).await)
            }
            Errand::List => {
                prober.list(Urgency::Answering).await;
                continue;
            }
            Errand::Look => match prober.begin(Instant::now()) {
                None => return,
                Some(Due::At(at)) => {
                    prober.ask_waiting().await;
                    next = at;
                    continue;
                }
                Some(Due::Now(probe, urgency)) => {
                    (urgency, prober.send(probe, urgency, Instant::now()).await)
                }
            },
        };
        next = Instant::now();
        if !answers {
            next = rounds.pace.turn(urgency, next + AGAIN);
        }
    }
}

/// Waits until a time, or until the endpoint wakes its probe.
async fn rest(until: Instant, wake: &Notify) {
    if until > Instant::now() {
        tokio::select! {
            () = sleep_until(until) => {}
            () = wake.notified() => {}
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
    /// The address as the replica's name.
    host: Arc<str>,
    /// The endpoint's number in the pool.
    id: EndpointId,
    kept: Option<ProbeConnection>,
    /// The endpoint has closed its kept connection, sooner than an idle one is closed, and has not been
    /// asked why.
    closed: bool,
    /// The first model that it lists, once it has listed any.
    listed: Option<String>,
    /// When its models are listed next; `None` while it does not answer.
    next_list: Option<Instant>,
    /// When its engine was last asked how many requests wait there.
    waiting: Option<Instant>,
    /// When its metrics last said nothing of its engine's cache.
    unreported: Option<Instant>,
}

impl Prober {
    fn new(pool: Arc<Pool>, address: SocketAddr, id: EndpointId) -> Self {
        Self {
            pool,
            address,
            host: address.to_string().into(),
            id,
            kept: None,
            closed: false,
            listed: None,
            next_list: None,
            waiting: None,
            unreported: None,
        }
    }

    /// Begins the probe that is due, or returns when one will be; `None` if the pool has no such endpoint.
    fn begin(&mut self, now: Instant) -> Option<Due> {
        let endpoint = (self.address, self.id);
        let due = self.pool.begin_probe(endpoint, || spread(SPREAD), self.closed, now)?;
        self.closed &= matches!(due, Due::At(_));
        Some(due)
    }

    /// Sends a probe that was begun at this time and reports its outcome; true if the endpoint answered
    /// it.
    async fn send(&mut self, probe: Probe, urgency: Urgency, begun: Instant) -> bool {
        let Some(place) = pace::place(urgency).await else { return false };
        let target = self.target();
        let outcome = match probe {
            Probe::Health => self.health(&target, begun).await,
            Probe::Token => Box::pin(token::token(&target, self.listed.as_ref())).await,
        };
        drop(place);
        let answers = self.report(probe, outcome);
        if answers && self.next_list.is_none_or(|list| list <= Instant::now()) {
            self.list(urgency).await;
        }
        answers
    }

    /// Reports a probe's outcome; true if the endpoint answered it.
    fn report(&mut self, probe: Probe, outcome: Probed) -> bool {
        let answers = outcome == Probed::Answered;
        if !answers && !matches!(outcome, Probed::NotSent(_)) {
            self.next_list = None;
            self.kept = None;
            if probe == Probe::Health {
                self.listed = None;
                self.unreported = None;
            }
        }
        let endpoint = (self.address, self.id);
        if !self.pool.is_as_probed(endpoint, probe, &outcome)
            && self.pool.probed(self.address, probe, outcome)
        {
            tracing::debug!(pool = %self.pool.name, address = %self.address, answers, "probed");
        }
        answers
    }

    /// Asks for its health, on the kept connection if there is one. If that brings no answer, a new
    /// connection shows why.
    async fn health(&mut self, target: &Target, begun: Instant) -> Probed {
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
        let answered = models.is_some();
        self.listed(models);
        if answered && self.wants_cache_report() {
            self.report_engine(urgency).await;
        }
    }

    /// Whether a report about its cache is of use.
    fn wants_cache_report(&self) -> bool {
        let silent = self.unreported.is_some_and(|last| last.elapsed() < UNREPORTED_AGAIN);
        !silent && self.pool.wants_cache_report(self.address)
    }

    /// Whether a list of its models may take the place of a health probe. A server lists them even if its
    /// engine is dead, so it does not while requests are there.
    fn lists_for_probe(&self) -> bool {
        !self.wants_cache_report() && self.pool.is_idle(self.address)
    }

    /// Takes the models that it listed; `None` if it listed none that can be read.
    fn listed(&mut self, models: Option<Vec<ServedModel>>) {
        let again = match models {
            Some(models) => {
                self.listed = models.first().map(|model| model.id.clone());
                self.pool.serves(self.address, models);
                LIST_EVERY * 9 / 10 + spread(LIST_EVERY / 5)
            }
            None => LIST_AGAIN,
        };
        self.next_list = Some(Instant::now() + again);
    }

    async fn models(&mut self) -> Option<Vec<ServedModel>> {
        let (status, list) = self.ask(&ProbeRequest::get("/v1/models")).await?;
        status.is_success().then(|| model_registry::parse(&list))?
    }

    /// Whether to read how many requests wait in its engine: that is of use and was not read just now.
    fn wants_waiting(&self, now: Instant) -> bool {
        self.waiting.is_none_or(|last| last + WAITING_EVERY <= now)
            && self.pool.wants_waiting((self.address, self.id), now)
    }

    /// Reads how many requests wait in its engine, if that is wanted.
    async fn ask_waiting(&mut self) {
        let now = Instant::now();
        if self.wants_waiting(now) {
            self.waiting = Some(now);
            self.report_engine(Urgency::Answering).await;
        }
    }

    /// Reads what it says of its engine.
    async fn report_engine(&mut self, urgency: Urgency) {
        if let Some(_place) = pace::place(urgency).await
            && let Some((status, page)) = self.ask(&ProbeRequest::get("/metrics")).await
            && !status.is_server_error()
        {
            let report = status.is_success().then(|| engine::parse(&page)).flatten();
            let report = report.unwrap_or_default();
            self.unreported = report.cache.is_none().then(Instant::now);
            self.pool.engine_reported(self.address, &report);
        }
    }

    /// Its answer, on the kept connection if there is one.
    async fn ask(&mut self, request: &ProbeRequest) -> Option<Answer> {
        let target = self.target();
        if let Some(kept) = self.kept.take()
            && let Ok((answer, kept)) = kept.ask(&target, request, HEALTH_TIMEOUT).await
        {
            self.kept = kept;
            return Some(answer);
        }
        // No connection is kept, or it is closed by now.
        target.ask(request, HEALTH_TIMEOUT).await.ok()
    }

    fn target(&self) -> Target {
        let (address, host) = (self.address, Arc::clone(&self.host));
        Target { address, host, key: self.pool.key.get() }
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
    /// The address as the replica's name.
    host: Arc<str>,
    key: Option<HeaderValue>,
}

impl Target {
    /// Sends a request on a connection of its own, and waits for the answer.
    async fn ask(&self, request: &ProbeRequest, within: Duration) -> Result<Answer, ProbeError> {
        let connection = ProbeConnection::open(self.address, within).await?;
        let (answer, _) = connection.ask(self, request, within).await?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests;
