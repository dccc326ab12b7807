//! Triggers: figures → proposed counts, in KEDA's and the HPA's arithmetic.
//!
//! Pure. First-hand figures come with the [`Load`]; those that are read elsewhere come as
//! [`Reading`]s, with the time they were read. What can't be read is unknown: it is shown, it forbids
//! scaling down, and it is never taken for zero.

use std::time::Duration;

use forebay_config::{
    GpuFigure, GpuSource, Pool, PromQuery, Prometheus, Rule, Signal, TRIGGER_TYPES, trigger_names,
};

use super::load::Load;
use super::proposal::{Problem, Proposal};

mod arithmetic;
#[cfg(test)]
pub(crate) mod hpa;
pub(crate) mod recent;
mod schedule;

pub use arithmetic::{Replicas, Tolerance};
use recent::{Latencies, Rate};
use schedule::Schedule;

/// What a source last had to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// When that was, in milliseconds since the epoch.
    pub at_ms: u64,
    /// The figure, which may be no finite number; `None` where there was no such series. Or why
    /// there is none, in a few words.
    pub value: Result<Option<f64>, String>,
    /// What of it could not be read, in a few words: the truth is no less than the figure.
    pub partial: Option<String>,
}

/// What has to be read elsewhere for a trigger.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    /// A query's result; the query names its server.
    Query(PromQuery),
    /// The mean use of the KV cache over the ready replicas' engines, of their own `/metrics`.
    KvCache,
    /// The mean of a figure over GPUs, of DCGM exporters' own `/metrics`.
    Gpus {
        /// Which figure.
        figure: GpuFigure,
        /// The exporters.
        urls: Vec<String>,
        /// Label and value that a series must have.
        labels: Vec<(String, String)>,
    },
}

/// A pool's triggers, with what they remember.
#[derive(Debug, Default)]
pub struct Triggers {
    triggers: Vec<Trigger>,
    tolerance: Tolerance,
    /// Readings older than this are unknown.
    max_age_ms: u64,
}

#[derive(Debug)]
struct Trigger {
    name: String,
    kind: &'static str,
    /// Or why it is left out.
    rule: Result<Rule, String>,
    memory: Memory,
}

/// What a trigger remembers from decision to decision.
#[derive(Debug)]
enum Memory {
    Nothing,
    Latencies(Box<Latencies>),
    Rate(Rate),
    Schedule(Schedule),
}

/// A figure as it was found.
enum Found {
    Value(f64),
    /// No less than this, and why no more is known.
    AtLeast(f64, String),
    /// There is nothing to be measured, and that is known.
    Nothing,
    Unknown(String),
}

impl Triggers {
    /// A pool's. `prometheus` is asked by those that name no server.
    #[must_use]
    pub fn of(pool: &Pool, prometheus: &Prometheus) -> Self {
        let names = trigger_names(&pool.scaling.triggers);
        let mut slowest = prometheus.timeout;
        let triggers = pool.scaling.triggers.iter().zip(names).map(|(trigger, name)| {
            let (rule, faults) = trigger.rule(pool.target_concurrency());
            let error = || {
                let fault = faults.iter().find(|fault| fault.error);
                fault.map_or_else(
                    || format!("`{}` is not known", trigger.kind),
                    |fault| format!("metadata.{}: {}", fault.key, fault.message),
                )
            };
            let mut rule = rule.ok_or_else(error);
            if let Ok(found) = &mut rule
                && let Some(query) = query_of(&mut found.signal)
            {
                slowest = slowest.max(query.timeout.unwrap_or_default());
                if let Err(error) = complete(query, prometheus) {
                    rule = Err(error);
                }
            }
            let kind = TRIGGER_TYPES.into_iter().find(|kind| *kind == trigger.kind);
            let memory = rule.as_ref().map_or(Memory::Nothing, |rule| Memory::of(&rule.signal));
            Trigger { name, kind: kind.unwrap_or("unknown"), rule, memory }
        });
        let triggers = triggers.collect();
        let max_age = pool.scaling.polling_interval * 3 + slowest;
        let max_age_ms = max_age.as_millis() as u64;
        Self { triggers, tolerance: Tolerance::of(&pool.scaling), max_age_ms }
    }

    /// What has to be read elsewhere, for each trigger in order; `None` for the others.
    #[must_use]
    pub fn wanted(&self) -> Vec<Option<Wanted>> {
        self.triggers.iter().map(|trigger| trigger.rule.as_ref().ok().and_then(wanted)).collect()
    }

    /// What each trigger asks for now. `readings` has one place for each trigger, in order.
    /// `now_ms` never goes back.
    #[must_use]
    pub fn propose(
        &mut self,
        load: &Load,
        readings: &[Option<Reading>],
        replicas: Replicas,
        now_ms: u64,
    ) -> Vec<Proposal> {
        let (tolerance, max_age_ms) = (self.tolerance, self.max_age_ms);
        let propose = |(at, trigger): (usize, &mut Trigger)| {
            let reading = readings.get(at).and_then(Option::as_ref);
            trigger.propose(load, reading, replicas, tolerance, max_age_ms, now_ms)
        };
        self.triggers.iter_mut().enumerate().map(propose).collect()
    }
}

/// Whether the signal is not first-hand.
fn is_read(signal: &Signal) -> bool {
    matches!(signal, Signal::KvCache | Signal::Prometheus(_) | Signal::Gpu(..))
}

fn wanted(rule: &Rule) -> Option<Wanted> {
    match &rule.signal {
        Signal::KvCache => Some(Wanted::KvCache),
        Signal::Prometheus(query) | Signal::Gpu(_, GpuSource::Prometheus(query)) => {
            Some(Wanted::Query(query.clone()))
        }
        Signal::Gpu(figure, GpuSource::Exporters { urls, labels }) => {
            Some(Wanted::Gpus { figure: *figure, urls: urls.clone(), labels: labels.clone() })
        }
        _ => None,
    }
}

fn query_of(signal: &mut Signal) -> Option<&mut PromQuery> {
    match signal {
        Signal::Prometheus(query) | Signal::Gpu(_, GpuSource::Prometheus(query)) => Some(query),
        _ => None,
    }
}

/// Fills in what the trigger leaves to the top-level `prometheus`. Its credentials are for its own
/// server alone.
fn complete(query: &mut PromQuery, prometheus: &Prometheus) -> Result<(), String> {
    let common = prometheus.server_address.as_deref().map(|url| url.trim_end_matches('/'));
    query.timeout.get_or_insert(prometheus.timeout);
    if query.server_address.is_none() {
        query.server_address = common.map(str::to_owned);
    }
    if query.server_address.is_none() {
        return Err("no serverAddress of its own, nor a prometheus.serverAddress".to_owned());
    }
    let own = query.bearer_token_file.is_some() || query.basic_auth.is_some();
    if !own && query.server_address.as_deref() == common {
        query.bearer_token_file.clone_from(&prometheus.bearer_token_file);
        let basic = prometheus.basic_auth.as_ref();
        query.basic_auth = basic.map(|it| (it.username.clone(), it.password_file.clone()));
    }
    Ok(())
}

impl Memory {
    fn of(signal: &Signal) -> Self {
        let ms = |window: &Duration| window.as_millis() as u64;
        match signal {
            Signal::Ttft { window, .. } | Signal::Itl { window, .. } => {
                Self::Latencies(Box::new(Latencies::over(ms(window))))
            }
            Signal::TokensPerSecond { window } => Self::Rate(Rate::over(ms(window))),
            Signal::Cron(window) => Self::Schedule(Schedule::new(window.as_ref().clone())),
            _ => Self::Nothing,
        }
    }
}

impl Memory {
    /// It has to remember something, and nothing was observed yet.
    fn is_new(&self) -> bool {
        match self {
            Self::Latencies(recent) => recent.is_new(),
            Self::Rate(recent) => recent.is_new(),
            Self::Nothing | Self::Schedule(_) => false,
        }
    }
}

impl Trigger {
    fn propose(
        &mut self,
        load: &Load,
        reading: Option<&Reading>,
        replicas: Replicas,
        tolerance: Tolerance,
        max_age_ms: u64,
        now_ms: u64,
    ) -> Proposal {
        let mut proposal =
            Proposal { name: self.name.clone(), kind: self.kind, ..Proposal::default() };
        let rule = match &self.rule {
            Ok(rule) => rule,
            Err(error) => {
                proposal.problem = Some(Problem::Misconfigured(error.clone()));
                return proposal;
            }
        };
        if let Memory::Schedule(schedule) = &mut self.memory {
            let within = schedule.within(now_ms);
            let asked = f64::from(schedule.desired_replicas());
            proposal.active = within;
            proposal.figure = Some(f64::from(u8::from(within)));
            // Out of its hours it asks for one, as in KEDA, and keeps nothing awake.
            proposal.needed = Some(if within { asked } else { 1.0 });
            proposal.threshold = asked;
            return proposal;
        }
        proposal.threshold = rule.threshold;
        proposal.activation = rule.activation_threshold;
        let found = if is_read(&rule.signal) {
            proposal.age_ms = reading.map(|reading| now_ms.saturating_sub(reading.at_ms));
            read(rule, reading, replicas, max_age_ms, now_ms)
        } else {
            measure(rule, &mut self.memory, load, now_ms)
        };
        let value = match found {
            Found::Value(value) => Some(value),
            Found::AtLeast(value, why) => {
                proposal.problem = Some(Problem::Unreadable(why));
                Some(value)
            }
            Found::Nothing => None,
            Found::Unknown(why) => {
                proposal.problem = Some(Problem::Unreadable(why));
                None
            }
        };
        if let Some(value) = value {
            let (threshold, metric_type) = (rule.threshold, rule.metric_type);
            proposal.figure = Some(value);
            proposal.active = value > rule.activation_threshold;
            proposal.needed =
                arithmetic::needed(value, threshold, metric_type, replicas, tolerance);
        }
        proposal
    }
}

/// The figure of a reading.
fn read(
    rule: &Rule,
    reading: Option<&Reading>,
    replicas: Replicas,
    max_age_ms: u64,
    now_ms: u64,
) -> Found {
    if rule.signal == Signal::KvCache && replicas.ready == 0 {
        return Found::Nothing;
    }
    let Some(reading) = reading else { return Found::Unknown("not read yet".to_owned()) };
    let age_ms = now_ms.saturating_sub(reading.at_ms);
    if age_ms > max_age_ms {
        return Found::Unknown(format!("last read {} s ago", age_ms / 1000));
    }
    let null_is_zero = match &rule.signal {
        Signal::Prometheus(query) | Signal::Gpu(_, GpuSource::Prometheus(query)) => {
            query.ignore_null_values
        }
        _ => false,
    };
    match &reading.value {
        Ok(Some(value)) if value.is_finite() => {
            match (rule.signal.range().check(*value), &reading.partial) {
                (Err(why), _) => Found::Unknown(format!("the result {why}")),
                (Ok(value), Some(why)) => Found::AtLeast(value, why.clone()),
                (Ok(value), None) => Found::Value(value),
            }
        }
        Ok(_) if null_is_zero => Found::Value(0.0),
        Ok(Some(value)) => Found::Unknown(format!("the result is {value}")),
        Ok(None) => Found::Unknown("the result is empty".to_owned()),
        Err(error) => Found::Unknown(error.clone()),
    }
}

/// A first-hand figure.
fn measure(rule: &Rule, memory: &mut Memory, load: &Load, now_ms: u64) -> Found {
    let concurrency = load.held.saturating_add(load.in_flight);
    // What gateways counted before they were first heard is no part of any window.
    if load.missing && memory.is_new() {
        return Found::Unknown("not every gateway was heard yet".to_owned());
    }
    match (&rule.signal, memory) {
        (Signal::QueueDepth, _) => Found::Value(f64::from(load.held)),
        (Signal::Ttft { quantile, .. }, Memory::Latencies(recent)) => {
            recent.observe(now_ms, &load.latencies.warm_ttft);
            latency(recent.quantile(*quantile), concurrency)
        }
        (Signal::Itl { quantile, .. }, Memory::Latencies(recent)) => {
            recent.observe(now_ms, &load.latencies.itl);
            latency(recent.quantile(*quantile), concurrency)
        }
        (Signal::TokensPerSecond { .. }, Memory::Rate(recent)) => {
            recent.observe(now_ms, load.totals.generated_tokens);
            match recent.per_second() {
                Some(rate) => Found::Value(rate),
                None => Found::Unknown("not watched for long enough".to_owned()),
            }
        }
        _ => Found::Value(f64::from(concurrency)),
    }
}

/// Where nobody asked, there is no latency; where somebody waits and none was measured, it is not
/// known.
fn latency(quantile: Option<f64>, concurrency: u32) -> Found {
    match quantile {
        Some(seconds) => Found::Value(seconds),
        None if concurrency == 0 => Found::Nothing,
        None => Found::Unknown("requests are there, and none was measured yet".to_owned()),
    }
}

#[cfg(test)]
mod tests;
