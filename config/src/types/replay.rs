//! The model of `forebay replay`: the replicas' speed, their price, and the clients.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units;

/// The model that `forebay replay` plays a load against. Nothing else reads it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Replay {
    /// Timing of one replica.
    pub replica: ReplicaModel,
    /// How clients behave.
    pub clients: Clients,
    /// Price of one GPU for one hour, in any currency. Left out: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub gpu_hour_price: Option<f64>,
    /// Seed of all random choices.
    pub seed: u64,
}

/// Timing of one replica: the model of `forebay vllm-sim`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ReplicaModel {
    /// GPUs of one replica. Left out: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub gpus: Option<u32>,
    /// How long a start takes.
    pub cold_start: ColdStartModel,
    /// Prompt tokens computed per second; 0 makes prompts free.
    #[schemars(range(min = 0))]
    pub prefill_tokens_per_second: f64,
    /// Time of a decode step without any sequence.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub decode_step: Duration,
    /// Time that each decoding sequence adds to a step, in milliseconds.
    #[schemars(range(min = 0))]
    pub decode_step_millis_per_sequence: f64,
    /// Sequences that run at once (vLLM's `--max-num-seqs`).
    #[schemars(range(min = 1))]
    pub max_sequences: u32,
    /// Tokens worked on in one step (vLLM's `--max-num-batched-tokens`).
    #[schemars(range(min = 1))]
    pub max_batched_tokens: u32,
    /// Tokens that the KV cache holds.
    #[schemars(range(min = 1))]
    pub kv_cache_tokens: u64,
}

/// How long a start takes, phase by phase, at the median.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ColdStartModel {
    /// Ordered → scheduled.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub scheduled: Duration,
    /// Scheduled → process or container started.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub started: Duration,
    /// Started → healthy.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub healthy: Duration,
    /// Spread of starts: the standard deviation of their logarithm. 0.1 is about 10 % up or down.
    #[schemars(range(min = 0, max = 2))]
    pub spread: f64,
}

/// How clients behave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Clients {
    /// How long a client waits for its first token before it gives up.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub patience: Duration,
    /// First pause of a client before it retries a refused request; doubled each time.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub retry_pause: Duration,
    /// Longest such pause.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub max_retry_pause: Duration,
}

impl Default for ReplicaModel {
    /// The simulated vLLM's own defaults, and a cold start of a minute.
    fn default() -> Self {
        Self {
            gpus: None,
            cold_start: ColdStartModel::default(),
            prefill_tokens_per_second: 20_000.0,
            decode_step: Duration::from_millis(8),
            decode_step_millis_per_sequence: 0.05,
            max_sequences: 256,
            max_batched_tokens: 8192,
            kv_cache_tokens: 262_144,
        }
    }
}

impl Default for ColdStartModel {
    fn default() -> Self {
        Self {
            scheduled: Duration::from_secs(2),
            started: Duration::from_secs(8),
            healthy: Duration::from_secs(50),
            spread: 0.1,
        }
    }
}

impl Default for Clients {
    /// As OpenAI's clients pause, and as long as a pool holds by default.
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(10 * 60),
            retry_pause: Duration::from_millis(500),
            max_retry_pause: Duration::from_secs(8),
        }
    }
}
