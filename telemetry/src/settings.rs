//! The settings of the export: the configuration, and what it leaves out from OpenTelemetry's own
//! environment variables. Pure: the environment is an argument.
//!
//! A variable that can't be used is ignored with a warning, as the specification demands: what is
//! traced must not keep a server from its work.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use forebay_base::https::ClientCertificate;
use forebay_config::{OpenTelemetry, OtlpProtocol, base_url, redacted};
use percent_encoding::percent_decode_str;

use crate::sampler::Sampler;

/// The port by which gRPC is recognized.
const GRPC_PORT: &str = ":4317";
const TIMEOUT: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_secs(60);
const SCHEDULE_DELAY: Duration = Duration::from_secs(5);
/// Spans that may wait, and spans of one export. A request has about four, and each takes up to 2 KiB.
const QUEUE: usize = 8192;
const BATCH: usize = 512;

/// One kind of data that is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Figures.
    Metrics,
}

/// Everything about the export.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// The export of traces, if there is one.
    pub traces: Option<Traces>,
    /// The export of metrics, if there is one.
    pub metrics: Option<Metrics>,
    /// The attributes of this process.
    pub resource: BTreeMap<String, String>,
    /// Variables that are not used as they stand, each with the reason.
    pub warnings: Vec<String>,
}

/// How traces are exported.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    /// Where they go.
    pub receiver: Receiver,
    /// Which requests are traced.
    pub sampler: Sampler,
    /// Requests that were held for this long are always exported.
    pub always_over: Duration,
    /// How long spans wait for others, unless there is a whole batch.
    pub delay: Duration,
    /// Spans that may wait.
    pub queue: usize,
    /// Spans of one export.
    pub batch: usize,
}

/// How metrics are exported.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Where they go.
    pub receiver: Receiver,
    /// The time between two exports.
    pub interval: Duration,
}

/// A receiver of OTLP.
#[derive(Clone, Debug, PartialEq)]
pub struct Receiver {
    /// The URL that requests go to; for gRPC without the method's path.
    pub url: String,
    /// The protocol.
    pub protocol: OtlpProtocol,
    /// The headers of each request.
    pub headers: Headers,
    /// The authorities for `https`; by default the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate for a receiver that asks for one.
    pub certificate: Option<ClientCertificate>,
    /// Whether requests are compressed.
    pub gzip: bool,
    /// Longest time for one export, with its repetitions.
    pub timeout: Duration,
}

/// Where the headers of requests come from.
#[derive(Clone, PartialEq)]
pub enum Headers {
    /// These, by name.
    Fixed(Vec<(String, String)>),
    /// A file, read anew for each export.
    File(PathBuf),
}

/// The values may be keys.
impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(headers) => {
                f.debug_list().entries(headers.iter().map(|(name, _)| name)).finish()
            }
            Self::File(file) => file.fmt(f),
        }
    }
}

impl Signal {
    /// Its part of a variable's name.
    fn variable(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    /// Its path over HTTP.
    fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
        }
    }

    /// Its name in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }
}

/// The environment, with the variables of it that could not be used.
struct Environment<F> {
    get: F,
    warnings: Vec<String>,
}

impl Settings {
    /// The settings for a process that is called `service` unless it is given another name. `env`
    /// returns the value of a variable.
    #[must_use]
    pub fn resolve(
        config: &OpenTelemetry,
        service: &str,
        env: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let mut env = Environment { get: env, warnings: Vec::new() };
        let disabled = env.get("OTEL_SDK_DISABLED");
        if disabled.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Self::default();
        }
        let traces = config.traces.enabled.then(|| env.traces(config)).flatten();
        let metrics = config.metrics.enabled.then(|| env.metrics(config)).flatten();
        if traces.is_none() && metrics.is_none() {
            return Self { warnings: env.warnings, ..Self::default() };
        }
        let resource = env.resource(config, service);
        Self { traces, metrics, resource, warnings: env.warnings }
    }
}

impl<F: Fn(&str) -> Option<String>> Environment<F> {
    /// A variable's value. One that is empty counts as not set.
    fn get(&self, name: &str) -> Option<String> {
        (self.get)(name).filter(|value| !value.trim().is_empty())
    }

    /// The name and value of a variable of one signal, or else of all.
    fn of_signal(&self, signal: Signal, name: &str) -> Option<(String, String)> {
        let own = format!("OTEL_EXPORTER_OTLP_{}_{name}", signal.variable());
        let all = format!("OTEL_EXPORTER_OTLP_{name}");
        [own, all].into_iter().find_map(|name| self.get(&name).map(|value| (name, value)))
    }

    fn warn(&mut self, name: &str, message: &str) {
        let warning = format!("{name}: {message}");
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// A number, or `None` with a warning.
    fn number(&mut self, name: &str) -> Option<u64> {
        let value = self.get(name)?;
        match value.trim().parse() {
            Ok(number) if number > 0 => Some(number),
            _ => {
                self.warn(name, &format!("`{value}` is not a number above zero; it is ignored"));
                None
            }
        }
    }

    fn millis(&mut self, name: &str) -> Option<Duration> {
        self.number(name).map(Duration::from_millis)
    }

    /// Whether the environment wants this signal exported.
    fn wants(&mut self, signal: Signal) -> bool {
        let name = format!("OTEL_{}_EXPORTER", signal.variable());
        match self.get(&name).as_deref() {
            Some("none") => false,
            None | Some("otlp") => true,
            Some(other) => {
                self.warn(&name, &format!("`{other}` is not known; otlp is used"));
                true
            }
        }
    }

    fn traces(&mut self, config: &OpenTelemetry) -> Option<Traces> {
        let receiver = self.receiver(config, Signal::Traces)?;
        let sampler = match config.traces.sample_ratio {
            Some(ratio) => Sampler { ratio, by_parent: true },
            None => self.sampler(),
        };
        let size = |value: Option<u64>| value.and_then(|value| usize::try_from(value).ok());
        let queue = size(self.number("OTEL_BSP_MAX_QUEUE_SIZE")).unwrap_or(QUEUE);
        let batch = size(self.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE")).unwrap_or(BATCH);
        Some(Traces {
            receiver,
            sampler,
            always_over: config.traces.always_over,
            delay: self.millis("OTEL_BSP_SCHEDULE_DELAY").unwrap_or(SCHEDULE_DELAY),
            queue,
            batch: batch.min(queue),
        })
    }

    fn metrics(&mut self, config: &OpenTelemetry) -> Option<Metrics> {
        let receiver = self.receiver(config, Signal::Metrics)?;
        let interval = config.metrics.interval;
        let interval = interval.or_else(|| self.millis("OTEL_METRIC_EXPORT_INTERVAL"));
        Some(Metrics { receiver, interval: interval.unwrap_or(INTERVAL) })
    }

    fn sampler(&mut self) -> Sampler {
        let (name, argument) = ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG");
        let sampler = self.get(name);
        let sampler = sampler.as_deref().unwrap_or("parentbased_always_on");
        let (by_parent, root) = match sampler.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, sampler),
        };
        let ratio = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => {
                let value = self.get(argument);
                let ratio = value.as_deref().map_or(Some(1.0), |value| value.trim().parse().ok());
                ratio.filter(|ratio| (0.0..=1.0).contains(ratio)).unwrap_or_else(|| {
                    let value = value.unwrap_or_default();
                    self.warn(argument, &format!("`{value}` is not between 0 and 1; 1 is used"));
                    1.0
                })
            }
            _ => {
                let message = format!("`{sampler}` is not known; parentbased_always_on is used");
                self.warn(name, &message);
                return Sampler { ratio: 1.0, by_parent: true };
            }
        };
        Sampler { ratio, by_parent }
    }

    /// Where a signal goes; `None` if it goes nowhere.
    fn receiver(&mut self, config: &OpenTelemetry, signal: Signal) -> Option<Receiver> {
        if !self.wants(signal) {
            return None;
        }
        let (endpoint, complete) = match &config.endpoint {
            Some(endpoint) => (endpoint.trim_end_matches('/').to_owned(), false),
            None => self.endpoint(signal)?,
        };
        let protocol = config.protocol.or_else(|| self.protocol(signal));
        let protocol = protocol.unwrap_or(match endpoint.ends_with(GRPC_PORT) {
            true => OtlpProtocol::Grpc,
            false => OtlpProtocol::Http,
        });
        let url = match protocol {
            OtlpProtocol::Http if !complete => endpoint + signal.path(),
            _ => endpoint,
        };
        let headers = match &config.headers_file {
            Some(file) => Headers::File(file.clone()),
            None => self.headers(signal),
        };
        let ca_file = config.ca_file.clone();
        let ca_file = ca_file
            .or_else(|| self.of_signal(signal, "CERTIFICATE").map(|(_, file)| PathBuf::from(file)));
        let timeout = config.timeout.or_else(|| {
            let (name, _) = self.of_signal(signal, "TIMEOUT")?;
            self.millis(&name)
        });
        let timeout = timeout.unwrap_or(TIMEOUT);
        let (certificate, gzip) = (self.certificate(signal), self.gzip(signal));
        Some(Receiver { url, protocol, headers, ca_file, certificate, gzip, timeout })
    }

    /// The certificate of this process, and its key.
    fn certificate(&mut self, signal: Signal) -> Option<ClientCertificate> {
        let of = |name| self.of_signal(signal, name);
        match (of("CLIENT_CERTIFICATE"), of("CLIENT_KEY")) {
            (Some((_, certificate)), Some((_, key))) => {
                Some(ClientCertificate { certificate: certificate.into(), key: key.into() })
            }
            (Some((name, _)), None) | (None, Some((name, _))) => {
                self.warn(
                    &name,
                    "certificate and key need each other; no certificate is presented",
                );
                None
            }
            (None, None) => None,
        }
    }

    fn gzip(&mut self, signal: Signal) -> bool {
        let Some((name, value)) = self.of_signal(signal, "COMPRESSION") else { return false };
        match value.trim() {
            "gzip" => return true,
            "none" => {}
            other => {
                self.warn(&name, &format!("`{other}` is not supported; nothing is compressed"))
            }
        }
        false
    }

    /// The endpoint, and whether it is complete: a signal's own one is used as it stands.
    fn endpoint(&mut self, signal: Signal) -> Option<(String, bool)> {
        let (name, value) = self.of_signal(signal, "ENDPOINT")?;
        let complete = name.contains(signal.variable());
        let insecure = self.of_signal(signal, "INSECURE");
        let insecure = insecure.is_some_and(|(_, value)| value.eq_ignore_ascii_case("true"));
        let url = match (value.contains("://"), insecure) {
            (true, _) => value,
            (false, true) => format!("http://{value}"),
            (false, false) => format!("https://{value}"),
        };
        match base_url(&url) {
            // A path that is complete keeps its slash.
            Ok(base) => Some((if complete { url } else { base.to_owned() }, complete)),
            Err(_) => {
                let message = format!(
                    "`{}` is not the URL of a server, such as http://otel-collector:4317; no {} \
                     are exported",
                    redacted(&url),
                    signal.name()
                );
                self.warn(&name, &message);
                None
            }
        }
    }

    fn protocol(&mut self, signal: Signal) -> Option<OtlpProtocol> {
        let (name, value) = self.of_signal(signal, "PROTOCOL")?;
        match value.trim() {
            "grpc" => Some(OtlpProtocol::Grpc),
            "http/protobuf" => Some(OtlpProtocol::Http),
            other => {
                self.warn(&name, &format!("`{other}` is not supported; http/protobuf is used"));
                Some(OtlpProtocol::Http)
            }
        }
    }

    /// The headers of `OTEL_EXPORTER_OTLP_HEADERS`.
    fn headers(&mut self, signal: Signal) -> Headers {
        let Some((name, value)) = self.of_signal(signal, "HEADERS") else {
            return Headers::Fixed(Vec::new());
        };
        match pairs(&value) {
            Some(headers) => Headers::Fixed(headers),
            None => {
                self.warn(&name, "is not a list of NAME=VALUE, with commas between; it is ignored");
                Headers::Fixed(Vec::new())
            }
        }
    }

    fn resource(&mut self, config: &OpenTelemetry, service: &str) -> BTreeMap<String, String> {
        let name = "OTEL_RESOURCE_ATTRIBUTES";
        let given = self.get(name).unwrap_or_default();
        let mut resource: BTreeMap<_, _> = match pairs(&given) {
            Some(attributes) => attributes.into_iter().collect(),
            None => {
                self.warn(name, "is not a list of NAME=VALUE, with commas between; it is ignored");
                BTreeMap::new()
            }
        };
        resource.extend(config.resource_attributes.clone());
        let service_name = config.service_name.clone().or_else(|| self.get("OTEL_SERVICE_NAME"));
        match service_name {
            Some(given) => drop(resource.insert("service.name".to_owned(), given)),
            None => {
                resource.entry("service.name".to_owned()).or_insert_with(|| service.to_owned());
            }
        }
        resource
    }
}

/// Reads `NAME=VALUE,NAME=VALUE` with percent-encoded values. `None` if it is not such a list.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let pair = |item: &str| {
        let (name, value) = item.split_once('=')?;
        let decoded =
            |text: &str| Some(percent_decode_str(text.trim()).decode_utf8().ok()?.into_owned());
        Some((decoded(name).filter(|name| !name.is_empty())?, decoded(value)?))
    };
    items.map(pair).collect()
}

#[cfg(test)]
mod tests;
