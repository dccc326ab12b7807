//! A pool in short: one entry of the feed `/overview`, which the console and the terminal follow.

use forebay_config::{Millis, Pool, Target};
use forebay_signals::{Delta, PoolReplicas, ReplicaState};
use serde::{Deserialize, Serialize};

use crate::decide::Override;

/// A pool in short.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolOverview {
    /// The configuration; in a change, `None` if it is as before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<Box<PoolSettings>>,
    /// Requests held now.
    pub held: u32,
    /// Requests at replicas now.
    pub in_flight: u32,
    /// Rates and latencies of the last 10 to 20 seconds.
    #[serde(flatten)]
    pub rates: Rates,
    /// Replicas that the scaler wants.
    pub desired: u32,
    /// The replicas there are.
    pub replicas: StateCounts,
    /// When the next start is expected to end, by the learned median, in milliseconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_ready_millis: Option<Millis>,
    /// An operator's override, if one stands.
    #[serde(skip_serializing_if = "is_none")]
    pub operator_override: Override,
    /// The decision that last changed the count, in one sentence.
    pub why: String,
    /// The troubles that a person should look at, the worst first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<Trouble>,
    /// GPU-hours of this day.
    pub today: Spending,
}

fn is_none(of: &Override) -> bool {
    *of == Override::None
}

/// Replicas by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StateCounts {
    /// Ordered; nothing runs yet.
    pub pending: u32,
    /// Up, and not healthy yet.
    pub starting: u32,
    /// They take requests.
    pub ready: u32,
    /// They finish their requests, and then stop.
    pub draining: u32,
    /// Down, or ejected for their behaviour.
    pub failed: u32,
}

impl StateCounts {
    pub(crate) fn of(pool: &PoolReplicas) -> Self {
        let mut counts = Self::default();
        for replica in pool.replicas.values().flatten() {
            *match replica.state {
                ReplicaState::Pending => &mut counts.pending,
                ReplicaState::Starting => &mut counts.starting,
                ReplicaState::Ready => &mut counts.ready,
                ReplicaState::Draining => &mut counts.draining,
                ReplicaState::Failed => &mut counts.failed,
            } += 1;
        }
        counts
    }

    /// Replicas that occupy their GPUs: all but the pending ones.
    #[must_use]
    pub fn occupying(self) -> u32 {
        self.starting + self.ready + self.draining + self.failed
    }
}

/// Rates and latencies over some seconds, with three digits. A figure without a request is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rates {
    /// Requests a second that arrived.
    pub arrivals: f32,
    /// Requests a second that failed or were refused.
    pub failures: f32,
    /// Generated tokens a second.
    pub tokens: f32,
    /// Median time from acceptance to the first token, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_p50: Option<f32>,
    /// The same for 95 of 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_p95: Option<f32>,
    /// Median time between tokens, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl_p50: Option<f32>,
    /// The same for 95 of 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl_p95: Option<f32>,
    /// Share of the prompts' tokens that were found in a prefix cache, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hit_share: Option<f32>,
}

/// The configuration of a pool, as far as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolSettings {
    /// Names that clients may send: models, aliases, adapters. The first few.
    pub models: Vec<String>,
    /// How many there are.
    pub model_count: usize,
    /// The kind of its scale target: `processes`, `kubernetes`, `keda` or `none`.
    pub target: String,
    /// `minReplicaCount`.
    pub min_replicas: u32,
    /// `maxReplicaCount`.
    pub max_replicas: u32,
    /// Replicas of the idle pool.
    pub idle_replicas: u32,
    /// Most requests in flight at one replica.
    pub max_in_flight: u32,
    /// The objective's time to the first token, in seconds.
    pub objective_ttft_seconds: f64,
    /// The share of requests that have to meet it, 0 to 1.
    pub objective_share: f64,
    /// GPUs of one replica.
    pub gpus: u32,
    /// Price of one GPU for one hour; 0 if it is not known.
    pub gpu_hour_price: f64,
}

/// Most names of models to send.
const MOST_MODELS: usize = 8;

impl PoolSettings {
    pub(crate) fn of(pool: &Pool) -> Self {
        let scaling = &pool.scaling;
        let names = || pool.models.iter().chain(pool.aliases.keys()).chain(&pool.adapters);
        Self {
            models: names().take(MOST_MODELS).cloned().collect(),
            model_count: names().count(),
            target: match &pool.target {
                Some(Target::Processes(_)) => "processes",
                Some(Target::Kubernetes(_)) => "kubernetes",
                Some(Target::Keda(_)) => "keda",
                None => "none",
            }
            .to_owned(),
            min_replicas: scaling.min_replica_count,
            max_replicas: scaling.max_replica_count,
            idle_replicas: scaling.idle_replica_count.unwrap_or(scaling.min_replica_count),
            max_in_flight: pool.max_in_flight,
            objective_ttft_seconds: scaling.objective.ttft.as_secs_f64(),
            objective_share: scaling.objective.share,
            gpus: pool.gpus,
            gpu_hour_price: pool.gpu_hour_price,
        }
    }

    /// `maxReplicaCount`, if something scales the pool.
    pub(crate) fn most(&self) -> Option<u32> {
        (self.target != "none").then_some(self.max_replicas)
    }
}

/// A gateway as the scaler hears it: an entry of `/gateways`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayState {
    /// Base URL of its admin port.
    pub url: String,
    /// Whether discovery lists it, or the configuration does.
    pub listed: bool,
    /// Time without a report; `None` while its feed is connected.
    #[serde(rename = "silentMillis", default, skip_serializing_if = "Option::is_none")]
    pub silent_for: Option<Millis>,
    /// It said goodbye and is not heard since. It counts no longer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
}

/// A silence up to this long may be a reconnect.
const RECONNECT: Millis = Millis::from_secs(3);

impl GatewayState {
    /// The trouble with it, in one sentence, if a person should look at it.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let silent = self.listed && self.silent_for.is_some_and(|span| span > RECONNECT);
        silent.then(|| format!("the gateway at {} is silent, so nothing scales down", self.url))
    }
}

/// Something that a person should look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    /// Its kind.
    pub kind: TroubleKind,
    /// In one sentence.
    pub text: String,
}

/// The kinds of trouble, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TroubleKind {
    /// No gateway reports, so the load is unknown.
    NoGateway,
    /// No replica can be started.
    CannotStart,
    /// The target can't carry out its orders.
    Target,
    /// A replica failed, or its behaviour took it out.
    Failed,
    /// A start takes much longer than it usually does.
    SlowStart,
    /// A trigger can't be read.
    Trigger,
    /// The pool needs more replicas than it may have.
    Maximum,
}

/// GPU-hours since midnight (UTC), or since this scaler began to decide if that is later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spending {
    /// The beginning of that time, in milliseconds since the epoch.
    pub since_millis: Millis,
    /// Spent. Not rounded, since readers subtract it.
    pub gpu_hours: f64,
    /// The hours that `maxReplicaCount` replicas would have spent; 0 for a pool that nothing scales.
    pub at_maximum: f64,
}

impl Delta for PoolOverview {
    fn since(&self, old: &Self) -> Option<Self> {
        if self == old {
            return None;
        }
        let settings = self.settings.clone().filter(|_| self.settings != old.settings);
        Some(Self { settings, ..self.clone() })
    }

    fn apply(&mut self, change: Self) {
        let settings = change.settings.clone().or_else(|| self.settings.take());
        *self = Self { settings, ..change };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_carries_the_settings_only_if_they_changed() {
        let settings = |name: &str| {
            let mut pool = Pool::named(name);
            pool.models = vec![name.to_owned()];
            Some(Box::new(PoolSettings::of(&pool)))
        };
        let old = PoolOverview { settings: settings("a"), ..PoolOverview::default() };
        assert_eq!(old.since(&old), None);
        let busier = PoolOverview { held: 3, ..old.clone() };
        let change = busier.since(&old).expect("it differs");
        assert_eq!((change.held, &change.settings), (3, &None));
        let mut reader = old.clone();
        reader.apply(change);
        assert_eq!(reader, busier);
        let renamed = PoolOverview { settings: settings("b"), ..busier };
        let change = renamed.since(&reader).expect("it differs");
        assert!(change.settings.is_some());
        reader.apply(change);
        assert_eq!(reader, renamed);
    }

    #[test]
    fn a_gateway_that_is_listed_and_silent_for_long_is_trouble() {
        for (case, listed, silent_millis, stopped, trouble) in [
            ("it reports", true, None, false, false),
            ("it may reconnect", true, Some(3_000), false, false),
            ("it is silent", true, Some(3_001), false, true),
            ("it is no longer listed", false, Some(60_000), false, false),
            ("it said goodbye", true, None, true, false),
        ] {
            let url = "http://10.0.0.1:9900".to_owned();
            let silent_for = silent_millis.map(Millis::new);
            let gateway = GatewayState { url, listed, silent_for, stopped };
            assert_eq!(gateway.trouble().is_some(), trouble, "{case}");
            let text = serde_json::to_string(&gateway).expect("JSON");
            assert_eq!(serde_json::from_str::<GatewayState>(&text).expect("the same"), gateway);
        }
    }

    #[test]
    fn names_of_models_are_bounded() {
        let mut pool = Pool::named("p");
        pool.models = (0..5).map(|n| format!("m{n}")).collect();
        pool.adapters = (0..100).map(|n| format!("a{n}")).collect();
        let settings = PoolSettings::of(&pool);
        assert_eq!((settings.models.len(), settings.model_count), (MOST_MODELS, 105));
        assert_eq!(settings.most(), None, "nothing scales it");
    }
}
