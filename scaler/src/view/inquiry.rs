//! Questions that only the loop can answer, on demand: details of one pool, the gateways, and where a
//! local replica's output is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use forebay_config::Millis;
use forebay_signals::{EndpointSignals, Health, LimitedBy, PodPhase, PoolReplicas, Waiting};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::decide::cold_start::Phases;
use crate::observe::feeds::LastReport;
use crate::view::overview::GatewayState;

/// A question. The sender is dropped without an answer if the loop ends.
pub(crate) enum Inquiry {
    /// Details of a pool; `None` if there is no such pool.
    Pool { pool: String, done: oneshot::Sender<Option<Box<PoolDetail>>> },
    /// The gateways that the scaler reads.
    Gateways { done: oneshot::Sender<Vec<GatewayState>> },
    /// The file with the output of a local replica; `None` if there is none.
    Output { pool: String, replica: String, done: oneshot::Sender<Option<PathBuf>> },
}

/// A pool in detail.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolDetail {
    /// As on `/replicas`.
    pub(crate) published: PoolReplicas,
    /// When each replica's present start was requested, in milliseconds since the epoch.
    pub(crate) starts: BTreeMap<String, Millis>,
    /// The learned phases of a start.
    pub(crate) cold_start_phases: Phases,
    /// By address.
    pub(crate) endpoints: BTreeMap<String, EndpointDetail>,
    /// Pods without an address, by name.
    pub(crate) waiting: BTreeMap<String, Waiting>,
    /// Whether `/pools/NAME/output` has the output of its replicas.
    pub(crate) has_output: bool,
}

/// An endpoint, summed over the gateways.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointDetail {
    /// Ready if any gateway finds it ready; otherwise as the last one judges.
    health: Health,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<PodPhase>,
    /// The reason why it takes no requests, from a gateway that gives it none.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    in_flight: u32,
    limit: u32,
    /// Why not more, at the gateway that was read last.
    limited_by: LimitedBy,
    #[serde(flatten)]
    sums: EndpointSums,
    /// Gateways that know it.
    gateways: u32,
}

/// Counters of an endpoint, as in `EndpointSignals`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointSums {
    completed: u64,
    failed: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    generated_tokens: u64,
    first_tokens: u64,
    ttft_seconds: f64,
    token_gaps: u64,
    itl_seconds: f64,
}

impl EndpointDetail {
    fn add(&mut self, endpoint: &EndpointSignals) {
        if self.health != Health::Ready {
            self.health = endpoint.health;
        }
        if endpoint.health != Health::Ready {
            self.reason.clone_from(&endpoint.reason);
        }
        self.phase = endpoint.phase.or(self.phase);
        self.in_flight += endpoint.in_flight;
        self.limit += endpoint.limit;
        self.limited_by = endpoint.limited_by;
        self.sums.add(endpoint);
        self.gateways += 1;
    }
}

impl EndpointSums {
    fn add(&mut self, endpoint: &EndpointSignals) {
        self.completed += endpoint.completed;
        self.failed += endpoint.failed;
        self.prompt_tokens += endpoint.prompt_tokens;
        self.cached_tokens += endpoint.cached_tokens;
        self.generated_tokens += endpoint.generated_tokens;
        self.first_tokens += endpoint.first_tokens;
        self.ttft_seconds += endpoint.ttft_seconds;
        self.token_gaps += endpoint.token_gaps;
        self.itl_seconds += endpoint.itl_seconds;
    }
}

/// The endpoints that gateways report, and the pods that have no address yet.
pub(crate) fn endpoints(
    reports: &[LastReport<'_>],
) -> (BTreeMap<String, EndpointDetail>, BTreeMap<String, Waiting>) {
    let (mut endpoints, mut waiting) = (BTreeMap::<_, EndpointDetail>::new(), BTreeMap::new());
    for signals in reports.iter().filter_map(|report| report.signals) {
        for (address, endpoint) in &signals.endpoints {
            if let Some(endpoint) = endpoint {
                endpoints.entry(address.clone()).or_default().add(endpoint);
            }
        }
        for (name, pod) in &signals.waiting {
            if let Some(pod) = pod {
                waiting.insert(name.clone(), pod.clone());
            }
        }
    }
    (endpoints, waiting)
}

#[cfg(test)]
mod tests {
    use forebay_signals::PoolSignals;

    use super::*;

    #[test]
    fn an_endpoint_is_summed_over_the_gateways_and_ready_if_any_finds_it_so() {
        let signals = |health, reason: &str, in_flight| {
            let endpoint = EndpointSignals {
                health,
                reason: reason.to_owned(),
                in_flight,
                limit: 8,
                ..EndpointSignals::default()
            };
            PoolSignals {
                endpoints: [("10.0.0.1:8000".to_owned(), Some(endpoint))].into(),
                ..PoolSignals::default()
            }
        };
        let (ready, ejected) =
            (signals(Health::Ready, "", 3), signals(Health::Ejected, "3 failures in a row", 1));
        for order in [[&ready, &ejected], [&ejected, &ready]] {
            let report = |signals| LastReport {
                gateway: 0,
                sender: "a",
                up_for: None,
                signals: Some(signals),
                silent_for: None,
            };
            let (endpoints, _) = endpoints(&order.map(report));
            let endpoint = &endpoints["10.0.0.1:8000"];
            assert_eq!(
                (endpoint.health, endpoint.in_flight, endpoint.limit),
                (Health::Ready, 4, 16)
            );
            assert_eq!((endpoint.reason.as_str(), endpoint.gateways), ("3 failures in a row", 2));
        }
    }
}
