//! The parameters of the model, from a pool of the configuration and the `replay` section.

use std::time::Duration;

use anyhow::{Context, bail};
use forebay_config::{Config, InFlightLimit, Pool, Replay};
use forebay_scheduling::room::LimitRule;

use super::contestants::Bounds;
use super::contestants::forebay::rehearsable;
use super::measure::Price;
use super::replica::EngineModel;
use super::trace::Us;
use super::world::{ColdStart, Model};
use crate::timing::Timing;

/// The setting of all contestants.
pub(crate) struct Scenario {
    pub(crate) pool: Pool,
    pub(crate) config: Config,
    /// Triggers whose figures the model does not have.
    pub(crate) left_out: Vec<String>,
    pub(crate) model: Model,
    pub(crate) bounds: Bounds,
    pub(crate) price: Price,
    /// Share of requests that should be within the objective.
    pub(crate) share: f64,
}

fn us(duration: Duration) -> Us {
    duration.as_micros() as Us
}

impl Scenario {
    /// The scenario of the named pool, or of the only one.
    pub(crate) fn new(config: &Config, pool: Option<&str>) -> anyhow::Result<Self> {
        let names = || {
            let names: Vec<_> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
            names.join(", ")
        };
        let pool = match (pool, config.pools.as_slice()) {
            (None, [only]) => only,
            (None, _) => {
                bail!("the configuration has several pools; name one with --pool: {}", names())
            }
            (Some(name), pools) => {
                let named = pools.iter().find(|pool| pool.name == name);
                named
                    .with_context(|| format!("there is no pool `{name}`; known are {}", names()))?
            }
        };
        let replay = config.replay.clone().unwrap_or_default();
        let (kept, left_out) = triggers(pool, config);
        let mut rehearsed = pool.clone();
        rehearsed.scaling.triggers = kept;
        Ok(Self {
            pool: rehearsed,
            config: config.clone(),
            left_out,
            model: model(pool, &replay),
            bounds: Bounds {
                min: pool.scaling.min_replica_count,
                max: pool.scaling.max_replica_count,
                cooldown: us(pool.scaling.cooldown_period),
                limit: pool.max_in_flight,
                target: pool.target_concurrency(),
            },
            price: Price {
                gpus: replay.replica.gpus.unwrap_or(pool.gpus),
                gpu_hour: replay.gpu_hour_price.unwrap_or(pool.gpu_hour_price),
            },
            share: pool.scaling.objective.share,
        })
    }
}

/// The triggers that can be rehearsed, and the names of the others.
fn triggers(pool: &Pool, config: &Config) -> (Vec<forebay_config::Trigger>, Vec<String>) {
    let names = forebay_config::trigger_names(&pool.scaling.triggers);
    let (mut kept, mut left_out) = (Vec::new(), Vec::new());
    for (at, (trigger, name)) in pool.scaling.triggers.iter().zip(names).enumerate() {
        if rehearsable(pool, config, at) {
            kept.push(trigger.clone());
        } else {
            left_out.push(name);
        }
    }
    (kept, left_out)
}

fn model(pool: &Pool, replay: &Replay) -> Model {
    let replica = &replay.replica;
    let cold = &replica.cold_start;
    let phases = [us(cold.scheduled), us(cold.started), us(cold.healthy)];
    let per_sequence = replica.decode_step_millis_per_sequence / 1e3;
    Model {
        engine: EngineModel {
            timing: Timing {
                cold_start: cold.scheduled + cold.started + cold.healthy,
                prefill_tokens_per_second: replica.prefill_tokens_per_second,
                decode_base: replica.decode_step,
                decode_per_sequence: Duration::try_from_secs_f64(per_sequence).unwrap_or_default(),
            },
            seats: replica.max_sequences as usize,
            tokens_per_step: replica.max_batched_tokens,
            kv_tokens: replica.kv_cache_tokens,
        },
        pick: pool.pick,
        cold_start: ColdStart { phases, spread: cold.spread },
        limit: LimitRule {
            most: pool.max_in_flight,
            learned: pool.limit == InFlightLimit::Learned,
        },
        max_held: pool.hold.max_requests as usize,
        order: pool.hold.order,
        max_wait: pool.hold.max_wait.map(us),
        refuses: true,
        patience: us(replay.clients.patience.min(pool.hold.timeout)),
        retry: (us(replay.clients.retry_pause), us(replay.clients.max_retry_pause)),
        objective: us(pool.scaling.objective.ttft),
        seed: replay.seed,
    }
}
