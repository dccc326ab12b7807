//! The meaning of a trigger: its signal, and the threshold for it.

use std::path::PathBuf;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::gpu::GpuFigure;
use super::metadata::{Fault, Metadata};
use super::range::Range;
use super::{MetricType, Trigger};
use crate::types::prometheus::base_url;
use crate::units::cron::{Cron, near_zone, time_zone};

/// The meaning of a trigger.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The signal that it reads.
    pub signal: Signal,
    /// The value for one replica, above 0; in seconds for latencies. Without meaning for `cron`.
    pub threshold: f64,
    /// The trigger is active above this; at zero replicas only an active one wakes the pool.
    pub activation_threshold: f64,
    /// How value and threshold make a count.
    pub metric_type: MetricType,
}

/// The signal that a trigger reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Signal {
    /// Requests held.
    QueueDepth,
    /// Requests held and in flight.
    Concurrency,
    /// Seconds from accepted to first token, less what was held for a cold start.
    Ttft {
        /// The quantile, 0 to 1.
        quantile: f64,
        /// The time that it covers.
        window: Duration,
    },
    /// Seconds between two tokens.
    Itl {
        /// The quantile, 0 to 1.
        quantile: f64,
        /// The time that it covers.
        window: Duration,
    },
    /// Generated tokens each second, of all replicas.
    TokensPerSecond {
        /// The time that it covers.
        window: Duration,
    },
    /// Share of vLLM's KV cache in use, 0 to 1: the mean over the ready replicas' engines.
    KvCache,
    /// A figure of the GPUs, the mean over them.
    Gpu(GpuFigure, GpuSource),
    /// The result of a query.
    Prometheus(PromQuery),
    /// A schedule.
    Cron(Box<CronWindow>),
}

/// The source of GPU figures.
#[derive(Clone, Debug, PartialEq)]
pub enum GpuSource {
    /// DCGM exporters' own `/metrics`, of all the pool's GPUs.
    Exporters {
        /// URLs, at least one.
        urls: Vec<String>,
        /// Label and value that a series must have.
        labels: Vec<(String, String)>,
    },
    /// A Prometheus server that scrapes them.
    Prometheus(PromQuery),
}

/// A query, and the server for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromQuery {
    /// The server's base URL; by default that of the top-level `prometheus`.
    pub server_address: Option<String>,
    /// PromQL that gives one value.
    pub query: String,
    /// Whether an empty, NaN or infinite result is 0, and not unknown.
    pub ignore_null_values: bool,
    /// Longest time for a query; by default that of the top-level `prometheus`.
    pub timeout: Option<Duration>,
    /// Other parameters of the query.
    pub parameters: Vec<(String, String)>,
    /// Other headers.
    pub headers: Vec<(String, String)>,
    /// File with a bearer token for this server.
    pub bearer_token_file: Option<PathBuf>,
    /// Name, and file with the password, for this server.
    pub basic_auth: Option<(String, PathBuf)>,
}

/// A window of time and the replicas in it.
#[derive(Clone, Debug, PartialEq)]
pub struct CronWindow {
    /// The time zone of its times.
    pub timezone: TimeZone,
    /// When it begins.
    pub start: Cron,
    /// When it ends.
    pub end: Cron,
    /// Replicas in between.
    pub desired_replicas: u32,
}

const WINDOW: Duration = Duration::from_secs(60);
const WINDOWS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

impl Trigger {
    /// The trigger's meaning, and the faults of its metadata; no rule if one of them is an error.
    /// `target_concurrency` is the pool's, the default threshold of `concurrency`.
    #[must_use]
    pub fn rule(&self, target_concurrency: u32) -> (Option<Rule>, Vec<Fault>) {
        let mut metadata = Metadata::new(&self.metadata);
        let rule = self.read(&mut metadata, target_concurrency);
        metadata.rest();
        let rule = rule.filter(|_| !metadata.faults.iter().any(|fault| fault.error));
        (rule, metadata.faults)
    }

    fn read(&self, metadata: &mut Metadata<'_>, target_concurrency: u32) -> Option<Rule> {
        let gpu = |metadata: &mut Metadata<'_>, figure: GpuFigure| {
            Some(Signal::Gpu(figure, gpu_source(metadata, figure)?))
        };
        let signal = match self.kind.as_str() {
            "queueDepth" => Signal::QueueDepth,
            "concurrency" => Signal::Concurrency,
            "ttft" => Signal::Ttft { quantile: quantile(metadata), window: window(metadata) },
            "itl" => Signal::Itl { quantile: quantile(metadata), window: window(metadata) },
            "tokensPerSecond" => Signal::TokensPerSecond { window: window(metadata) },
            "kvCache" => Signal::KvCache,
            "gpuUtilization" => gpu(metadata, GpuFigure::Utilization)?,
            "gpuMemoryCopyUtilization" => gpu(metadata, GpuFigure::MemoryCopyUtilization)?,
            "gpuMemoryUsed" => gpu(metadata, GpuFigure::MemoryUsed)?,
            "gpuPower" => gpu(metadata, GpuFigure::Power)?,
            "prometheus" => {
                let query = metadata.required("query", "sum(vllm:num_requests_waiting)");
                let query = query.unwrap_or_default().to_owned();
                Signal::Prometheus(prom_query(metadata, query))
            }
            "cron" => {
                return cron(metadata).map(|window| Rule {
                    signal: Signal::Cron(Box::new(window)),
                    threshold: 1.0,
                    activation_threshold: 0.0,
                    metric_type: MetricType::AverageValue,
                });
            }
            // Reported at the type itself.
            _ => return None,
        };
        let metric_type = self.metric_type.unwrap_or_else(|| signal.metric_type());
        let threshold = threshold(metadata, &signal, target_concurrency)?;
        let activation_threshold = if signal.is_latency() {
            metadata.seconds("activationThreshold")
        } else {
            metadata.number("activationThreshold")
        };
        let activation_threshold = activation_threshold.unwrap_or(0.0);
        Some(Rule { signal, threshold, activation_threshold, metric_type })
    }
}

impl Signal {
    /// `Value` for figures that don't grow with the replicas.
    #[must_use]
    pub fn metric_type(&self) -> MetricType {
        match self {
            Self::Ttft { .. } | Self::Itl { .. } | Self::KvCache | Self::Gpu(..) => {
                MetricType::Value
            }
            Self::QueueDepth
            | Self::Concurrency
            | Self::TokensPerSecond { .. }
            | Self::Prometheus(_)
            | Self::Cron(_) => MetricType::AverageValue,
        }
    }

    /// Whether its value and threshold are durations.
    fn is_latency(&self) -> bool {
        match self {
            Self::Ttft { .. } | Self::Itl { .. } => true,
            Self::QueueDepth
            | Self::Concurrency
            | Self::TokensPerSecond { .. }
            | Self::KvCache
            | Self::Gpu(..)
            | Self::Prometheus(_)
            | Self::Cron(_) => false,
        }
    }

    /// The default of its threshold, if it has one, and an example. `concurrency` is the pool's.
    fn usual_threshold(&self, concurrency: u32) -> (Option<f64>, &'static str) {
        match self {
            Self::QueueDepth | Self::Prometheus(_) | Self::Cron(_) => (None, "5"),
            Self::Concurrency => (Some(f64::from(concurrency)), "5"),
            Self::Ttft { .. } => (None, "2s"),
            Self::Itl { .. } => (None, "100ms"),
            Self::TokensPerSecond { .. } => (None, "1500"),
            Self::KvCache => (Some(0.8), "5"),
            Self::Gpu(figure, _) => (figure.is_percentage().then_some(80.0), "600"),
        }
    }

    /// The range of its value. First-hand figures need no check.
    #[must_use]
    pub fn range(&self) -> Range {
        match self {
            Self::KvCache => Range::SHARE,
            Self::Gpu(figure, _) => figure.range(),
            Self::QueueDepth
            | Self::Concurrency
            | Self::Ttft { .. }
            | Self::Itl { .. }
            | Self::TokensPerSecond { .. }
            | Self::Prometheus(_)
            | Self::Cron(_) => Range::COUNTABLE,
        }
    }
}

fn threshold(metadata: &mut Metadata<'_>, signal: &Signal, concurrency: u32) -> Option<f64> {
    let (default, example) = signal.usual_threshold(concurrency);
    let written = match default {
        Some(_) => metadata.text("threshold"),
        None => metadata.required("threshold", example),
    };
    if written.is_none() {
        return default;
    }
    let threshold = if signal.is_latency() {
        metadata.seconds("threshold")?
    } else {
        metadata.number("threshold")?
    };
    if threshold <= 0.0 {
        metadata.error("threshold", format!("must be above 0; write for example {example}"));
        return None;
    }
    if *signal == Signal::KvCache && threshold > 1.0 {
        let share = threshold / 100.0;
        let message =
            format!("{threshold} is never reached: the KV cache's use is 0 to 1; write {share}");
        metadata.error("threshold", message);
        return None;
    }
    if let Signal::Gpu(figure, _) = signal
        && figure.is_percentage()
        && threshold > 100.0
    {
        metadata
            .error("threshold", format!("{threshold} is never reached: it is 0 to 100 percent"));
        return None;
    }
    Some(threshold)
}

fn quantile(metadata: &mut Metadata<'_>) -> f64 {
    let quantile = metadata.number("quantile").unwrap_or(0.95);
    if quantile <= 0.0 || quantile >= 1.0 {
        metadata
            .error("quantile", format!("{quantile} is not between 0 and 1; write 0.95 for p95"));
    }
    quantile
}

fn window(metadata: &mut Metadata<'_>) -> Duration {
    metadata.duration("window", WINDOW, WINDOWS)
}

fn gpu_source(metadata: &mut Metadata<'_>, figure: GpuFigure) -> Option<GpuSource> {
    let selector = metadata.text("selector").unwrap_or_default();
    let Some(urls) = metadata.text("exporter") else {
        let own = metadata.text("query").map(str::to_owned);
        let query = own.unwrap_or_else(|| figure.query(selector));
        return Some(GpuSource::Prometheus(prom_query(metadata, query)));
    };
    let mut valid = Vec::new();
    for url in urls.split(',').map(str::trim).filter(|url| !url.is_empty()) {
        match base_url(url) {
            Ok(url) => valid.push(url.to_owned()),
            Err(message) => metadata.error("exporter", message),
        }
    }
    let mut labels = Vec::new();
    for item in selector.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let pair = item.split_once('=').filter(|(name, _)| !name.ends_with('!'));
        let quoted =
            |text: &str| text.trim().strip_prefix('"')?.strip_suffix('"').map(str::to_owned);
        match pair.and_then(|(name, value)| Some((name.trim().to_owned(), quoted(value)?))) {
            Some(pair) => labels.push(pair),
            None => {
                let message = format!(
                    "`{item}` is not label=\"value\", the only selector for an exporter's own figures; \
                     for others query a server, by serverAddress"
                );
                metadata.error("selector", message);
            }
        }
    }
    (!valid.is_empty()).then_some(GpuSource::Exporters { urls: valid, labels })
}

/// KEDA's fields beside the query, and those for credentials, which KEDA has in another object.
fn prom_query(metadata: &mut Metadata<'_>, query: String) -> PromQuery {
    let server = metadata.text("serverAddress").map(|text| (text, base_url(text)));
    let server_address = match server {
        Some((_, Ok(url))) => Some(url.to_owned()),
        Some((_, Err(message))) => {
            metadata.error("serverAddress", message);
            None
        }
        None => None,
    };
    let timeout = metadata.text("timeout").and_then(|text| {
        // A plain number is milliseconds in KEDA.
        let bare = text.bytes().all(|byte| byte.is_ascii_digit());
        let text = if bare { format!("{text}ms") } else { text.to_owned() };
        match crate::units::parse_duration(&text) {
            Ok(timeout) if !timeout.is_zero() => Some(timeout),
            Ok(_) => None,
            Err(error) => {
                metadata.error("timeout", error.to_string());
                None
            }
        }
    });
    let mut parameters = metadata.pairs("queryParameters");
    parameters.extend(
        metadata.text("namespace").map(|namespace| ("namespace".to_owned(), namespace.to_owned())),
    );
    let headers = metadata.pairs("customHeaders");
    if metadata.flag("unsafeSsl") == Some(true) {
        let message = "has no effect: certificates are always checked; give prometheus.caFile";
        metadata.warn("unsafeSsl", message);
    }
    if metadata.text("metricName").is_some() {
        let message = "has no effect: KEDA removed it from the prometheus trigger; to name the trigger, \
                       write `name` beside `type`";
        metadata.warn("metricName", message);
    }
    let bearer_token_file = metadata.text("bearerTokenFile").map(PathBuf::from);
    if metadata.text("authModes").is_some() && bearer_token_file.is_none() {
        let message = "has no effect: give bearerTokenFile here, or prometheus.bearerTokenFile or \
                       prometheus.basicAuth";
        metadata.warn("authModes", message);
    }
    let user = metadata.text("username").map(str::to_owned);
    let password = metadata.text("passwordFile").map(PathBuf::from);
    if user.is_some() != password.is_some() {
        let lacking = if user.is_some() { "passwordFile" } else { "username" };
        metadata.error(lacking, "missing; username and passwordFile are given together");
    }
    PromQuery {
        server_address,
        query,
        ignore_null_values: metadata.flag("ignoreNullValues").unwrap_or(false),
        timeout,
        parameters,
        headers,
        bearer_token_file,
        basic_auth: user.zip(password),
    }
}

fn cron(metadata: &mut Metadata<'_>) -> Option<CronWindow> {
    let timezone = metadata.required("timezone", "Europe/Amsterdam").and_then(|name| {
        let zone = time_zone(name);
        if zone.is_none() {
            metadata.error("timezone", unknown_zone(name));
        }
        zone
    });
    let start = times(metadata, "start", "0 8 * * 1-5");
    let end = times(metadata, "end", "0 18 * * 1-5");
    let desired = metadata.required("desiredReplicas", "3").and_then(|text| {
        let number = text.parse::<u32>().ok().filter(|number| *number > 0);
        if number.is_none() {
            let message = format!("`{text}` is not a whole number of 1 or more");
            metadata.error("desiredReplicas", message);
        }
        number
    });
    if let (Some(start), Some(end)) = (metadata.text("start"), metadata.text("end"))
        && start == end
    {
        metadata.error("end", "is the same as start; the window would be empty");
        return None;
    }
    Some(CronWindow { timezone: timezone?, start: start?, end: end?, desired_replicas: desired? })
}

/// The fault of a zone's name, with the right name if only the case differs.
pub(crate) fn unknown_zone(name: &str) -> String {
    match near_zone(name) {
        Some(near) => format!("`{name}` is not known; write {near}"),
        None => format!("`{name}` is not known; write for example Europe/Amsterdam"),
    }
}

fn times(metadata: &mut Metadata<'_>, key: &'static str, example: &str) -> Option<Cron> {
    let text = metadata.required(key, &format!("\"{example}\""))?;
    match Cron::parse(text) {
        Ok(cron) => Some(cron),
        Err(what) => {
            let message = format!("`{text}` {what}; write for example \"{example}\"");
            metadata.error(key, message);
            None
        }
    }
}
