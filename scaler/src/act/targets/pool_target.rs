//! A pool's target, of any kind.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use forebay_config::{Pool, Target as TargetConfig};
use tokio::sync::watch;

use forebay_discovery::Cluster;

use super::keda::KedaTarget;
use super::kubernetes::Kubernetes;
use super::processes::{PassedReplica, Processes};
use super::{Drains, Hung, ReplicaStatus, Replicas, ScaleTarget, StartFailure};
use crate::decide::{Condition, Override};
use crate::observe::feeds::LastReport;

/// The driver of one pool's replicas.
pub(crate) enum PoolTarget {
    /// Processes on this machine.
    Processes(Processes),
    /// A workload in Kubernetes, through its `/scale`.
    Kubernetes(Kubernetes),
    /// KEDA, which polls the scaler.
    Keda(KedaTarget),
    /// Nothing: the replicas found are only shown.
    Observe,
}

impl PoolTarget {
    /// Starts the target of this pool.
    ///
    /// # Errors
    /// It can't be used as configured.
    pub(crate) fn start(pool: &Pool, cluster: Option<&Cluster>) -> io::Result<Self> {
        match &pool.target {
            Some(TargetConfig::Processes(settings)) => {
                // Not by the executable's path, which may hold another binary by now.
                let exe = "/proc/self/exe".into();
                Processes::start(pool, settings, exe).map(Self::Processes)
            }
            Some(TargetConfig::Kubernetes(settings)) => {
                Kubernetes::start(pool, settings, cluster).map(Self::Kubernetes)
            }
            Some(TargetConfig::Keda(settings)) => {
                KedaTarget::start(pool, settings, cluster).map(Self::Keda)
            }
            None => Ok(Self::Observe),
        }
    }

    /// The replicas as they change. `None` if the target has no list of its own; the gateways'
    /// endpoints count then.
    pub(crate) fn replicas(&self) -> Option<watch::Receiver<Replicas>> {
        match self {
            Self::Processes(target) => Some(target.replicas()),
            Self::Kubernetes(target) => Some(target.replicas()),
            Self::Keda(_) | Self::Observe => None,
        }
    }

    /// The replicas now; `None` before they were read once. For a target without a list, `None`
    /// before a gateway reports.
    pub(crate) fn statuses(&self, reports: &[LastReport<'_>]) -> Option<Replicas> {
        match self {
            Self::Processes(target) => Some(Arc::clone(&target.replicas().borrow())),
            Self::Kubernetes(target) => target.statuses(),
            Self::Keda(_) | Self::Observe => {
                let any = reports.iter().any(|report| report.signals.is_some());
                any.then(|| Arc::new(observed(reports)))
            }
        }
    }

    /// Whether Kubernetes reported a pod at this address.
    pub(crate) fn has_pod(&self, reports: &[LastReport<'_>], address: SocketAddr) -> bool {
        match self {
            Self::Processes(_) => false,
            Self::Kubernetes(target) => {
                target.statuses().is_some_and(|all| is_among(&all, address))
            }
            Self::Keda(_) | Self::Observe => {
                let key = address.to_string();
                let phase =
                    |report: &LastReport<'_>| report.signals?.endpoints.get(&key)?.as_ref()?.phase;
                reports.iter().any(|report| phase(report).is_some())
            }
        }
    }

    /// Whether one of its replicas is known to be at this address.
    pub(crate) fn has_replica(&self, reports: &[LastReport<'_>], address: SocketAddr) -> bool {
        self.statuses(reports).is_some_and(|all| is_among(&all, address))
    }

    /// Whether the workload has been looked up, if it is elsewhere.
    pub(crate) fn was_looked_up(&self) -> bool {
        match self {
            Self::Kubernetes(target) => target.was_looked_up(),
            Self::Processes(_) | Self::Keda(_) | Self::Observe => true,
        }
    }

    /// Stops the replicas that end with this process.
    pub(crate) async fn shutdown(&self) {
        match self {
            Self::Processes(target) => target.shutdown().await,
            Self::Kubernetes(_) | Self::Keda(_) | Self::Observe => {}
        }
    }

    /// Releases the replicas that end with this process, for another process.
    pub(crate) async fn hand_over(&self) -> Vec<PassedReplica> {
        match self {
            Self::Processes(target) => target.hand_over().await,
            Self::Kubernetes(_) | Self::Keda(_) | Self::Observe => Vec::new(),
        }
    }

    /// Takes over a replica that another process started; returns it if this target runs no
    /// processes.
    pub(crate) fn adopt(&self, passed: PassedReplica) -> Option<PassedReplica> {
        let target = match self {
            Self::Processes(target) => target,
            Self::Kubernetes(_) | Self::Keda(_) | Self::Observe => return Some(passed),
        };
        let pool = passed.pool().to_owned();
        if let Err(error) = target.adopt(passed) {
            tracing::error!("{pool}: a replica can't be taken over, and ends: {error}");
        }
        None
    }

    /// Whether the replicas end with this process, and gateways have to hear that.
    pub(crate) fn ends_its_replicas(&self) -> bool {
        match self {
            Self::Processes(_) => true,
            Self::Kubernetes(_) | Self::Keda(_) | Self::Observe => false,
        }
    }

    /// The file with the output of a replica that runs on this machine.
    pub(crate) fn output(&self, replica: &str) -> Option<PathBuf> {
        match self {
            Self::Processes(target) => target.output(replica),
            Self::Kubernetes(_) | Self::Keda(_) | Self::Observe => None,
        }
    }

    fn target(&self) -> Option<&dyn ScaleTarget> {
        match self {
            Self::Processes(target) => Some(target),
            Self::Kubernetes(target) => Some(target),
            Self::Keda(target) => Some(target),
            Self::Observe => None,
        }
    }
}

impl ScaleTarget for PoolTarget {
    fn ensure(&self, count: u32) {
        if let Some(target) = self.target() {
            target.ensure(count);
        }
    }
    fn ready(&self, id: &str) {
        if let Some(target) = self.target() {
            target.ready(id);
        }
    }
    fn stop(&self, id: &str) {
        if let Some(target) = self.target() {
            target.stop(id);
        }
    }
    fn replace(&self, hung: &BTreeMap<String, Hung>) {
        if let Some(target) = self.target() {
            target.replace(hung);
        }
    }
    fn recall(&self, id: &str) -> bool {
        self.target().is_some_and(|target| target.recall(id))
    }
    fn drains(&self) -> Drains {
        self.target().map_or(Drains::Never, ScaleTarget::drains)
    }
    fn scales(&self) -> bool {
        self.target().is_some()
    }
    fn surplus(&self) -> u32 {
        self.target().map_or(0, ScaleTarget::surplus)
    }
    fn operator_override(&self) -> Override {
        self.target().map_or(Override::None, ScaleTarget::operator_override)
    }
    fn decided(&self, sentence: &str) {
        if let Some(target) = self.target() {
            target.decided(sentence);
        }
    }
    fn starts_fail(&self, sentence: Option<&str>) {
        if let Some(target) = self.target() {
            target.starts_fail(sentence);
        }
    }
    fn stand_by(&self) {
        if let Some(target) = self.target() {
            target.stand_by();
        }
    }
    fn trouble(&self) -> Option<String> {
        self.target()?.trouble()
    }
}

fn is_among(replicas: &Replicas, address: SocketAddr) -> bool {
    replicas.values().any(|replica| replica.address == Some(address))
}

/// The replicas that gateways know of, for a target without a list.
fn observed(reports: &[LastReport<'_>]) -> BTreeMap<String, ReplicaStatus> {
    let status = |id: &String, address, condition, reason: &String| ReplicaStatus {
        address,
        condition,
        reason: reason.clone(),
        ..ReplicaStatus::requested(id)
    };
    let mut all = BTreeMap::new();
    for signals in reports.iter().filter_map(|report| report.signals) {
        for (address, endpoint) in &signals.endpoints {
            let Some(endpoint) = endpoint else { continue };
            let condition = endpoint.phase.map_or(Condition::Starting, Condition::of_pod);
            let replica = status(address, address.parse().ok(), condition, &endpoint.reason);
            let failure =
                endpoint.phase.and_then(|phase| StartFailure::of_text(phase, &endpoint.reason));
            let replica = ReplicaStatus { start_failure: failure, ..replica };
            all.insert(address.clone(), replica);
        }
        for (name, waiting) in &signals.waiting {
            let Some(waiting) = waiting else { continue };
            let condition = match Condition::of_pod(waiting.phase) {
                // Without an address no container of it can run.
                Condition::Starting => Condition::Pending,
                condition => condition,
            };
            let replica = ReplicaStatus {
                start_failure: StartFailure::of_text(waiting.phase, &waiting.reason),
                ..status(name, None, condition, &waiting.reason)
            };
            all.insert(name.clone(), replica);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use forebay_signals::{EndpointSignals, PodPhase, PoolSignals};

    use super::*;

    #[test]
    fn a_pod_is_an_endpoint_that_kubernetes_reported_and_nothing_else() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let endpoint = |phase| Some(EndpointSignals { phase, ..EndpointSignals::default() });
        let signals = PoolSignals {
            endpoints: [
                ("10.0.0.1:8000".to_owned(), endpoint(Some(PodPhase::Draining))),
                ("10.0.0.2:8000".to_owned(), endpoint(None)),
            ]
            .into(),
            ..PoolSignals::default()
        };
        let reports = [LastReport {
            gateway: 0,
            sender: "a",
            up_for: None,
            signals: Some(&signals),
            silent_for: None,
        }];
        let driver = PoolTarget::Observe;
        for (at, replica, pod) in [
            ("10.0.0.1:8000", true, true),
            ("10.0.0.2:8000", true, false),
            ("10.0.0.1:8001", false, false),
        ] {
            let at = address(at);
            assert_eq!(driver.has_replica(&reports, at), replica, "{at}");
            assert_eq!(driver.has_pod(&reports, at), pod, "{at}");
        }
        assert!(!driver.has_pod(&[], address("10.0.0.1:8000")), "no gateway reports it");
    }
}
