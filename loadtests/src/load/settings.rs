//! The settings of a run, from a scenario file, from flags, or from both: a flag beats the file.
//!
//! The same structs are read by clap and by serde, so that a flag and its field are one: the flag
//! `--prompt-tokens` is `requests.promptTokens` in the file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use serde::Deserialize;

use super::units::{self, ExtraFields, Header, Rate, RateRange, TokenLength, duration_flag};

/// A scenario, not yet checked.
#[derive(clap::Args, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Settings {
    #[command(flatten)]
    pub(crate) endpoint: EndpointSettings,
    #[command(flatten)]
    pub(crate) arrivals: ArrivalSettings,
    #[command(flatten)]
    pub(crate) requests: RequestSettings,
    #[command(flatten)]
    pub(crate) connections: ConnectionSettings,
}

/// Where requests go.
#[derive(clap::Args, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[command(next_help_heading = "Endpoint")]
pub(crate) struct EndpointSettings {
    /// Base URL, such as http://127.0.0.1:8080; a final /v1 may be left out
    #[arg(value_name = "URL")]
    pub(crate) url: Option<String>,
    /// The model that requests name [default: the first of the endpoint's /v1/models]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// The API [default: chat]
    #[arg(long, value_enum)]
    pub(crate) api: Option<Api>,
    /// File with the API key; it goes out as `authorization: Bearer KEY`
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// A header for every request, `name: value`; may be repeated
    #[arg(long = "header", value_name = "HEADER")]
    #[serde(deserialize_with = "units::parsed_list")]
    pub(crate) headers: Vec<Header>,
}

/// When requests go out. Exactly one of the first five.
#[derive(clap::Args, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[command(next_help_heading = "Arrivals")]
pub(crate) struct ArrivalSettings {
    /// This many requests a second at random times (a Poisson process), as independent users send
    #[arg(long, value_name = "RATE", group = "arrival")]
    #[serde(deserialize_with = "units::parsed")]
    pub(crate) poisson: Option<Rate>,
    /// This many requests a second, evenly spaced
    #[arg(long, value_name = "RATE", group = "arrival")]
    #[serde(deserialize_with = "units::parsed")]
    pub(crate) constant: Option<Rate>,
    /// Random times at a rate that grows or falls evenly, such as 1-200
    #[arg(long, value_name = "FROM-TO", group = "arrival")]
    #[serde(deserialize_with = "units::parsed")]
    pub(crate) ramp: Option<RateRange>,
    /// A recorded load (CSV or Mooncake's JSON lines) or a generated one, as `forebay replay` reads
    #[arg(long, value_name = "FILE|NAME", group = "arrival")]
    pub(crate) trace: Option<String>,
    /// This many clients, each of which sends its next request after its last answer: a closed
    /// loop, for capacity and CPU time only. Its latencies hide queueing
    #[arg(long, value_name = "N", group = "arrival")]
    pub(crate) clients: Option<u32>,
    /// How long requests are sent [default: 30s; a trace: its whole length]
    #[arg(long, value_name = "TIME", value_parser = duration_flag)]
    #[serde(deserialize_with = "units::duration")]
    pub(crate) duration: Option<Duration>,
    /// Time at the beginning whose requests are sent and not counted [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = duration_flag)]
    #[serde(deserialize_with = "units::duration")]
    pub(crate) warmup: Option<Duration>,
    /// Send a trace this many times as fast as it was recorded [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) speed_up: Option<f64>,
    /// The pool to take from a recording of several pools
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<String>,
    /// Seed of all random times, lengths and texts [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// The content of requests.
#[derive(clap::Args, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[command(next_help_heading = "Requests")]
pub(crate) struct RequestSettings {
    /// Prompt length: 600, 100-200 or ~600 [default: 200; a trace: its own lengths]
    #[arg(long, value_name = "TOKENS")]
    #[serde(deserialize_with = "units::parsed")]
    pub(crate) prompt_tokens: Option<TokenLength>,
    /// Tokens at the beginning of every prompt that all requests share [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) shared_prefix_tokens: Option<u32>,
    /// Most tokens of the answer (max_tokens) [default: 100; a trace: its own lengths]
    #[arg(long, value_name = "TOKENS")]
    #[serde(deserialize_with = "units::parsed")]
    pub(crate) output_tokens: Option<TokenLength>,
    /// Share of requests that stream, 0 to 1 [default: 1]
    #[arg(long, value_name = "SHARE")]
    pub(crate) stream_share: Option<f64>,
    /// Further fields of the body, as JSON; {"ignore_eos": true} makes vLLM fill every answer
    #[arg(long, value_name = "JSON")]
    pub(crate) body: Option<ExtraFields>,
    /// Check that the tokens of each stream are the numbers 0, 1, 2 and so on, as the stub of
    /// loadtests/peers sends them [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) numbered: Option<bool>,
}

/// The use of connections. HTTP/1.1, one request at a time on each.
#[derive(clap::Args, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[command(next_help_heading = "Connections")]
pub(crate) struct ConnectionSettings {
    /// Most connections at once; a request that finds none free goes out late [default: 10000]
    #[arg(long = "connections", value_name = "N")]
    pub(crate) most: Option<u32>,
    /// Use connections again; false opens one for each request [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) keep_alive: Option<bool>,
    /// Longest time for a request, from when it goes out [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = duration_flag)]
    #[serde(deserialize_with = "units::duration")]
    pub(crate) timeout: Option<Duration>,
}

/// The form of requests and answers.
#[derive(ValueEnum, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Api {
    /// /v1/chat/completions
    #[default]
    Chat,
    /// /v1/completions
    Completions,
}

impl Settings {
    /// The settings of a scenario file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let mut settings: Self = serde_saphyr::from_str(&text)
            .map_err(|error| anyhow::anyhow!("{name}: {}", error.to_string().trim_end()))?;
        // Files that a scenario names lie beside it.
        let beside = |file: &Path| path.parent().map(|folder| folder.join(file));
        if let Some(trace) = &mut settings.arrivals.trace
            && let Some(file) = beside(Path::new(trace)).filter(|file| file.exists())
        {
            *trace = file.display().to_string();
        }
        if let Some(key) = &mut settings.endpoint.api_key_file
            && let Some(file) = beside(key)
        {
            *key = file;
        }
        Ok(settings)
    }

    /// These flags, and the file's settings where a flag is missing.
    pub(crate) fn over(self, file: Self) -> Self {
        let (endpoint, requests) = (self.endpoint, self.requests);
        let mut headers = file.endpoint.headers;
        headers.retain(|header| endpoint.headers.iter().all(|flag| flag.name != header.name));
        headers.extend(endpoint.headers);
        Self {
            endpoint: EndpointSettings {
                url: endpoint.url.or(file.endpoint.url),
                model: endpoint.model.or(file.endpoint.model),
                api: endpoint.api.or(file.endpoint.api),
                api_key_file: endpoint.api_key_file.or(file.endpoint.api_key_file),
                headers,
            },
            arrivals: self.arrivals.over(file.arrivals),
            requests: RequestSettings {
                prompt_tokens: requests.prompt_tokens.or(file.requests.prompt_tokens),
                shared_prefix_tokens: requests
                    .shared_prefix_tokens
                    .or(file.requests.shared_prefix_tokens),
                output_tokens: requests.output_tokens.or(file.requests.output_tokens),
                stream_share: requests.stream_share.or(file.requests.stream_share),
                body: requests.body.or(file.requests.body),
                numbered: requests.numbered.or(file.requests.numbered),
            },
            connections: ConnectionSettings {
                most: self.connections.most.or(file.connections.most),
                keep_alive: self.connections.keep_alive.or(file.connections.keep_alive),
                timeout: self.connections.timeout.or(file.connections.timeout),
            },
        }
    }
}

impl ArrivalSettings {
    /// The number of kinds of arrivals that are given.
    pub(crate) fn kinds(&self) -> usize {
        [
            self.poisson.is_some(),
            self.constant.is_some(),
            self.ramp.is_some(),
            self.trace.is_some(),
            self.clients.is_some(),
        ]
        .into_iter()
        .filter(|given| *given)
        .count()
    }

    /// A kind given by a flag replaces the file's, of whichever kind it is.
    fn over(self, file: Self) -> Self {
        let kind = if self.kinds() > 0 { self.clone() } else { file.clone() };
        Self {
            duration: self.duration.or(file.duration),
            warmup: self.warmup.or(file.warmup),
            speed_up: self.speed_up.or(file.speed_up),
            pool: self.pool.or(file.pool),
            seed: self.seed.or(file.seed),
            ..kind
        }
    }
}
