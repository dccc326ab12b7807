//! A pool's target, whichever kind it is.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use forebay_config::{Pool, Target as TargetConfig};
use forebay_signals::PodPhase;
use tokio::sync::watch;

use forebay_discovery::Cluster;

use super::keda::KedaTarget;
use super::kubernetes::Kubernetes;
use super::processes::{PassedReplica, Processes};
use super::{Drains, Hung, Phase, ReplicaStatus, Replicas, Target};
use crate::decide::Override;
use crate::observe::heard::Heard;

/// What drives one pool's replicas.
pub(crate) enum Driver {
    /// Processes on this machine.
    Processes(Processes),
    /// A workload in Kubernetes, by its `/scale`.
    Kubernetes(Kubernetes),
    /// KEDA, which asks.
    Keda(KedaTarget),
    /// Nothing: what is there is only shown.
    Observe,
}

impl Driver {
    /// The target of this pool.
    ///
    /// # Errors
    /// It can't be used as configured.
    pub(crate) fn start(pool: &Pool, cluster: Option<&Cluster>) -> io::Result<Self> {
        match &pool.target {
            Some(TargetConfig::Processes(settings)) => {
                // Not by its path, which may hold another binary by now.
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

    /// The replicas as they change. `None` where the target has no list of its own, and the
    /// gateways' endpoints count.
    pub(crate) fn replicas(&self) -> Option<watch::Receiver<Replicas>> {
        match self {
            Self::Processes(it) => Some(it.replicas()),
            Self::Kubernetes(it) => Some(it.replicas()),
            Self::Keda(_) | Self::Observe => None,
        }
    }

    /// The replicas now; `None` as long as they have not been read once, or where only gateways
    /// could tell and none does.
    pub(crate) fn statuses(&self, heard: &[Heard<'_>]) -> Option<Replicas> {
        match self {
            Self::Processes(it) => Some(Arc::clone(&it.replicas().borrow())),
            Self::Kubernetes(it) => it.statuses(),
            Self::Keda(_) | Self::Observe => {
                heard.iter().any(|it| it.signals.is_some()).then(|| Arc::new(observed(heard)))
            }
        }
    }

    /// Whether Kubernetes reported a pod at this address.
    pub(crate) fn has_pod(&self, heard: &[Heard<'_>], address: SocketAddr) -> bool {
        match self {
            Self::Processes(_) => false,
            Self::Kubernetes(it) => it.statuses().is_some_and(|all| is_among(&all, address)),
            Self::Keda(_) | Self::Observe => {
                let key = address.to_string();
                let endpoint = |it: &Heard<'_>| it.signals?.endpoints.get(&key)?.as_ref()?.phase;
                heard.iter().any(|it| endpoint(it).is_some())
            }
        }
    }

    /// Whether a replica of it is known to be at this address.
    pub(crate) fn has_replica(&self, heard: &[Heard<'_>], address: SocketAddr) -> bool {
        self.statuses(heard).is_some_and(|all| is_among(&all, address))
    }

    /// Whether what it scales has been looked for, where that is elsewhere.
    pub(crate) fn was_asked_for(&self) -> bool {
        match self {
            Self::Kubernetes(it) => it.was_asked_for(),
            Self::Processes(_) | Self::Keda(_) | Self::Observe => true,
        }
    }

    /// Lets go of what ends with this process.
    pub(crate) async fn shutdown(&self) {
        match self {
            Self::Processes(it) => it.shutdown().await,
            Self::Kubernetes(_) | Self::Keda(_) | Self::Observe => {}
        }
    }

    /// Lets go of the replicas that end with this process, for another.
    pub(crate) async fn hand_over(&self) -> Vec<PassedReplica> {
        match self {
            Self::Processes(it) => it.hand_over().await,
            Self::Kubernetes(_) | Self::Keda(_) | Self::Observe => Vec::new(),
        }
    }

    /// Looks after a replica that another process started; gives it back where that is not its
    /// business.
    pub(crate) fn adopt(&self, passed: PassedReplica) -> Option<PassedReplica> {
        let Self::Processes(it) = self else { return Some(passed) };
        let pool = passed.pool().to_owned();
        if let Err(error) = it.adopt(passed) {
            tracing::error!("{pool}: a replica can't be taken over, and ends: {error}");
        }
        None
    }

    /// Whether replicas end with this process, and gateways are to be told so.
    pub(crate) fn takes_its_replicas_along(&self) -> bool {
        matches!(self, Self::Processes(_))
    }

    fn target(&self) -> Option<&dyn Target> {
        match self {
            Self::Processes(it) => Some(it),
            Self::Kubernetes(it) => Some(it),
            Self::Keda(it) => Some(it),
            Self::Observe => None,
        }
    }
}

impl Target for Driver {
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
        self.target().map_or(Drains::Never, Target::drains)
    }
    fn scales(&self) -> bool {
        self.target().is_some()
    }
    fn surplus(&self) -> u32 {
        self.target().map_or(0, Target::surplus)
    }
    fn order(&self) -> Override {
        self.target().map_or(Override::None, Target::order)
    }
    fn decided(&self, sentence: &str) {
        if let Some(target) = self.target() {
            target.decided(sentence);
        }
    }
    fn rest(&self) {
        if let Some(target) = self.target() {
            target.rest();
        }
    }
    fn trouble(&self) -> Option<String> {
        self.target()?.trouble()
    }
}

fn is_among(replicas: &Replicas, address: SocketAddr) -> bool {
    replicas.values().any(|replica| replica.address == Some(address))
}

/// The replicas that gateways know of, where the target can't list its own.
fn observed(heard: &[Heard<'_>]) -> BTreeMap<String, ReplicaStatus> {
    let status = |id: &String, address, phase, reason: &String| ReplicaStatus {
        address,
        phase,
        reason: reason.clone(),
        ..ReplicaStatus::asked_for(id)
    };
    let mut all = BTreeMap::new();
    for signals in heard.iter().filter_map(|heard| heard.signals) {
        for (address, endpoint) in &signals.endpoints {
            let Some(endpoint) = endpoint else { continue };
            let phase = match endpoint.phase {
                Some(PodPhase::Draining) => Phase::Stopping,
                Some(PodPhase::Failed) => Phase::Failed,
                Some(PodPhase::Unscheduled | PodPhase::Pulling) => Phase::Pending,
                Some(PodPhase::Starting | PodPhase::Healthy) | None => Phase::Running,
            };
            let replica = status(address, address.parse().ok(), phase, &endpoint.reason);
            all.insert(address.clone(), replica);
        }
        for (name, waiting) in &signals.waiting {
            let Some(waiting) = waiting else { continue };
            let phase = match waiting.phase {
                PodPhase::Draining => Phase::Stopping,
                PodPhase::Failed => Phase::Failed,
                _ => Phase::Pending,
            };
            all.insert(name.clone(), status(name, None, phase, &waiting.reason));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use forebay_signals::{EndpointSignals, PoolSignals};

    use super::*;

    #[test]
    fn a_pod_is_what_kubernetes_reported_and_nothing_else() {
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
        let heard = [Heard { gateway: 0, sender: "a", signals: Some(&signals), lost_ms: None }];
        let driver = Driver::Observe;
        for (at, replica, pod) in [
            ("10.0.0.1:8000", true, true),
            ("10.0.0.2:8000", true, false),
            ("10.0.0.1:8001", false, false),
        ] {
            let at = address(at);
            assert_eq!(driver.has_replica(&heard, at), replica, "{at}");
            assert_eq!(driver.has_pod(&heard, at), pod, "{at}");
        }
        assert!(!driver.has_pod(&[], address("10.0.0.1:8000")), "no gateway reports it");
    }
}
