//! Triggers: figures → proposed counts, in KEDA's and the HPA's arithmetic.
//!
//! Pure. First-hand figures come with the [`Load`]; second-hand ones come as [`Reading`]s, with the
//! time of the reading. A figure that can't be read is unknown: it is shown, it forbids scaling down,
//! and it never counts as zero.

use std::time::Duration;

use forebay_config::{
    GpuFigure, GpuSource, Millis, Pool, PromQuery, Prometheus, Rule, Signal, TRIGGER_TYPES,
    trigger_names,
};

use super::load::Load;
use super::proposal::{Problem, Proposal};

mod arithmetic;
#[cfg(test)]
pub(crate) mod hpa;
pub(crate) mod recent;
mod schedule;

pub use arithmetic::{ReplicaCounts, Tolerance};
use recent::{RecentLatencies, RecentRate};
use schedule::Schedule;

/// The last reading of a source.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The time of the reading.
    pub at: Millis,
    /// The figure, which may not be finite; `None` if there was no such series. An error says in a
    /// few words why there is no figure.
    pub value: Result<Option<f64>, String>,
    /// The part that could not be read, in a few words: the figure is then a lower bound.
    pub partial: Option<String>,
}

/// A figure that a trigger needs from elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    /// The result of a query; the query names its server.
    Query(PromQuery),
    /// The mean use of the KV cache over the ready replicas, from their own `/metrics`.
    KvCache,
    /// The mean of a figure over GPUs, from DCGM exporters' `/metrics`.
    Gpus {
        /// The figure.
        figure: GpuFigure,
        /// The exporters.
        urls: Vec<String>,
        /// Labels and values that a series must have.
        labels: Vec<(String, String)>,
    },
}

/// A pool's triggers, with their memory.
#[derive(Debug, Default)]
pub struct Triggers {
    triggers: Vec<Trigger>,
    tolerance: Tolerance,
    /// Readings older than this are unknown.
    max_age: Millis,
}

#[derive(Debug)]
struct Trigger {
    name: String,
    kind: &'static str,
    /// The rule and its source, or the reason why the trigger is ignored.
    rule: Result<(Rule, FigureOrigin), String>,
}

/// The source of a trigger's figure, with what it remembers between decisions.
#[derive(Debug)]
enum FigureOrigin {
    /// The clock.
    Schedule(Schedule),
    /// A reading of another program: second-hand.
    Read(Box<Wanted>),
    /// The gateways' signals: first-hand.
    Load(LoadFigure),
}

/// A first-hand figure.
#[derive(Debug)]
enum LoadFigure {
    QueueDepth,
    Concurrency,
    Ttft { quantile: f64, recent: Box<RecentLatencies> },
    Itl { quantile: f64, recent: Box<RecentLatencies> },
    TokensPerSecond(RecentRate),
}

/// A figure as found.
enum Measurement {
    Value(f64),
    /// At least this, and why no more is known.
    AtLeast(f64, String),
    /// There is nothing to measure, and that is certain.
    Nothing,
    Unknown(String),
}

impl Triggers {
    /// The triggers of a pool. Those that name no server query `prometheus`.
    #[must_use]
    pub fn of(pool: &Pool, prometheus: &Prometheus) -> Self {
        let names = trigger_names(&pool.scaling.triggers);
        let mut slowest = prometheus.timeout;
        let triggers = pool.scaling.triggers.iter().zip(names).map(|(trigger, name)| {
            let (rule, faults) = trigger.rule(pool.target_concurrency());
            let error = || {
                let fault = faults.iter().find(|fault| fault.error);
                fault.map_or_else(
                    || format!("`{}` is not a known trigger", trigger.kind),
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
            let rule = rule.map(|rule| {
                let source = FigureOrigin::of(&rule.signal);
                (rule, source)
            });
            Trigger { name, kind: kind.unwrap_or("unknown"), rule }
        });
        let triggers = triggers.collect();
        let max_age = Millis::from(pool.scaling.polling_interval * 3 + slowest);
        Self { triggers, tolerance: Tolerance::of(&pool.scaling), max_age }
    }

    /// The figures to read elsewhere, for each trigger in order; `None` for first-hand triggers.
    #[must_use]
    pub fn wanted(&self) -> Vec<Option<Wanted>> {
        let wanted = |trigger: &Trigger| match &trigger.rule {
            Ok((_, FigureOrigin::Read(wanted))) => Some(wanted.as_ref().clone()),
            Ok((_, FigureOrigin::Schedule(_) | FigureOrigin::Load(_))) | Err(_) => None,
        };
        self.triggers.iter().map(wanted).collect()
    }

    /// The proposal of each trigger now. `readings` has one place for each trigger, in order.
    /// `now` never goes back.
    #[must_use]
    pub fn propose(
        &mut self,
        load: &Load,
        readings: &[Option<Reading>],
        replicas: ReplicaCounts,
        now: Millis,
    ) -> Vec<Proposal> {
        let (tolerance, max_age) = (self.tolerance, self.max_age);
        let propose = |(at, trigger): (usize, &mut Trigger)| {
            let reading = readings.get(at).and_then(Option::as_ref);
            trigger.propose(load, reading, replicas, tolerance, max_age, now)
        };
        self.triggers.iter_mut().enumerate().map(propose).collect()
    }
}

fn query_of(signal: &mut Signal) -> Option<&mut PromQuery> {
    match signal {
        Signal::Prometheus(query) | Signal::Gpu(_, GpuSource::Prometheus(query)) => Some(query),
        Signal::Gpu(_, GpuSource::Exporters { .. })
        | Signal::KvCache
        | Signal::QueueDepth
        | Signal::Concurrency
        | Signal::Ttft { .. }
        | Signal::Itl { .. }
        | Signal::TokensPerSecond { .. }
        | Signal::Cron(_) => None,
    }
}

/// Fills in the settings that the trigger leaves to the top-level `prometheus`. Its credentials are
/// only sent to its own server.
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
        query.basic_auth = basic.map(|auth| (auth.username.clone(), auth.password_file.clone()));
    }
    Ok(())
}

impl FigureOrigin {
    fn of(signal: &Signal) -> Self {
        let read = |wanted| Self::Read(Box::new(wanted));
        let latencies = |window: &Duration| Box::new(RecentLatencies::over(Millis::from(*window)));
        match signal {
            Signal::QueueDepth => Self::Load(LoadFigure::QueueDepth),
            Signal::Concurrency => Self::Load(LoadFigure::Concurrency),
            Signal::Ttft { quantile, window } => {
                Self::Load(LoadFigure::Ttft { quantile: *quantile, recent: latencies(window) })
            }
            Signal::Itl { quantile, window } => {
                Self::Load(LoadFigure::Itl { quantile: *quantile, recent: latencies(window) })
            }
            Signal::TokensPerSecond { window } => {
                Self::Load(LoadFigure::TokensPerSecond(RecentRate::over((*window).into())))
            }
            Signal::KvCache => read(Wanted::KvCache),
            Signal::Prometheus(query) | Signal::Gpu(_, GpuSource::Prometheus(query)) => {
                read(Wanted::Query(query.clone()))
            }
            Signal::Gpu(figure, GpuSource::Exporters { urls, labels }) => {
                let (urls, labels) = (urls.clone(), labels.clone());
                read(Wanted::Gpus { figure: *figure, urls, labels })
            }
            Signal::Cron(window) => Self::Schedule(Schedule::new(window.as_ref().clone())),
        }
    }
}

impl LoadFigure {
    /// Whether it covers a window and has observed nothing yet.
    fn is_new(&self) -> bool {
        match self {
            Self::Ttft { recent, .. } | Self::Itl { recent, .. } => recent.is_new(),
            Self::TokensPerSecond(recent) => recent.is_new(),
            Self::QueueDepth | Self::Concurrency => false,
        }
    }

    fn measure(&mut self, load: &Load, now: Millis) -> Measurement {
        // A gateway's counts from before its first report belong to no window.
        if load.missing && self.is_new() {
            return Measurement::Unknown("not every gateway has reported yet".to_owned());
        }
        let concurrency = load.held.saturating_add(load.in_flight);
        match self {
            Self::QueueDepth => Measurement::Value(f64::from(load.held)),
            Self::Concurrency => Measurement::Value(f64::from(concurrency)),
            Self::Ttft { quantile, recent } => {
                recent.observe(now, &load.latencies.warm_ttft);
                latency(recent.quantile(*quantile), concurrency)
            }
            Self::Itl { quantile, recent } => {
                recent.observe(now, &load.latencies.itl);
                latency(recent.quantile(*quantile), concurrency)
            }
            Self::TokensPerSecond(recent) => {
                recent.observe(now, load.totals.generated_tokens);
                match recent.per_second() {
                    Some(rate) => Measurement::Value(rate),
                    None => Measurement::Unknown("not observed for long enough".to_owned()),
                }
            }
        }
    }
}

impl Trigger {
    fn propose(
        &mut self,
        load: &Load,
        reading: Option<&Reading>,
        replicas: ReplicaCounts,
        tolerance: Tolerance,
        max_age: Millis,
        now: Millis,
    ) -> Proposal {
        let mut proposal =
            Proposal { name: self.name.clone(), kind: self.kind, ..Proposal::default() };
        let (rule, source) = match &mut self.rule {
            Ok((rule, source)) => (&*rule, source),
            Err(error) => {
                proposal.problem = Some(Problem::Misconfigured(error.clone()));
                return proposal;
            }
        };
        let found = match source {
            FigureOrigin::Schedule(schedule) => {
                let within = schedule.within(now);
                let desired = f64::from(schedule.desired_replicas());
                proposal.active = within;
                proposal.figure = Some(f64::from(u8::from(within)));
                // Outside its hours it proposes one replica, as in KEDA, and keeps nothing awake.
                proposal.needed = Some(if within { desired } else { 1.0 });
                proposal.threshold = desired;
                return proposal;
            }
            FigureOrigin::Read(wanted) => {
                proposal.age = reading.map(|reading| now.since(reading.at));
                read(rule, wanted, reading, replicas, max_age, now)
            }
            FigureOrigin::Load(figure) => figure.measure(load, now),
        };
        proposal.threshold = rule.threshold;
        proposal.activation = rule.activation_threshold;
        let value = match found {
            Measurement::Value(value) => Some(value),
            Measurement::AtLeast(value, why) => {
                proposal.problem = Some(Problem::Unreadable(why));
                Some(value)
            }
            Measurement::Nothing => None,
            Measurement::Unknown(why) => {
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
    wanted: &Wanted,
    reading: Option<&Reading>,
    replicas: ReplicaCounts,
    max_age: Millis,
    now: Millis,
) -> Measurement {
    if *wanted == Wanted::KvCache && replicas.ready == 0 {
        return Measurement::Nothing;
    }
    let Some(reading) = reading else { return Measurement::Unknown("not read yet".to_owned()) };
    let age = now.since(reading.at);
    if age > max_age {
        return Measurement::Unknown(format!("last read {} s ago", age.as_secs()));
    }
    let null_is_zero = match wanted {
        Wanted::Query(query) => query.ignore_null_values,
        Wanted::KvCache | Wanted::Gpus { .. } => false,
    };
    match &reading.value {
        Ok(Some(value)) if value.is_finite() => {
            match (rule.signal.range().check(*value), &reading.partial) {
                (Err(why), _) => Measurement::Unknown(format!("the result {why}")),
                (Ok(value), Some(why)) => Measurement::AtLeast(value, why.clone()),
                (Ok(value), None) => Measurement::Value(value),
            }
        }
        Ok(_) if null_is_zero => Measurement::Value(0.0),
        Ok(Some(value)) => Measurement::Unknown(format!("the result is {value}")),
        Ok(None) => Measurement::Unknown("the result is empty".to_owned()),
        Err(error) => Measurement::Unknown(error.clone()),
    }
}

/// Without requests there is no latency; with requests, and none measured, the latency is unknown.
fn latency(quantile: Option<f64>, concurrency: u32) -> Measurement {
    match quantile {
        Some(seconds) => Measurement::Value(seconds),
        None if concurrency == 0 => Measurement::Nothing,
        None => Measurement::Unknown("requests are waiting, and none was measured yet".to_owned()),
    }
}

#[cfg(test)]
mod tests;
