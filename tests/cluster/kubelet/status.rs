//! A pod's status, as the kubelet reports it.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// The state of a pod's one container, from which the pod's status follows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Status {
    pub(super) address: Option<Ipv4Addr>,
    pub(super) host: Ipv4Addr,
    pub(super) container: Container,
    pub(super) last: Option<Ended>,
    pub(super) restarts: u32,
    pub(super) started: bool,
    pub(super) ready: bool,
    /// When `ready` changed.
    pub(super) since: Timestamp,
    pub(super) begun: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Container {
    Waiting { reason: &'static str, message: String },
    Running { since: Timestamp },
    Ended(Ended),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ended {
    pub(super) code: i32,
    pub(super) since: Timestamp,
    pub(super) at: Timestamp,
}

impl Ended {
    fn json(self) -> Value {
        json!({"terminated": {
            "exitCode": if self.code < 0 { 128 - self.code } else { self.code },
            "reason": if self.code == 0 { "Completed" } else { "Error" },
            "startedAt": self.since, "finishedAt": self.at,
        }})
    }
}

impl Status {
    pub(super) fn new(host: Ipv4Addr) -> Self {
        let now = Timestamp::now();
        Self {
            address: None,
            host,
            container: Container::Waiting { reason: "ContainerCreating", message: String::new() },
            last: None,
            restarts: 0,
            started: false,
            ready: false,
            since: now,
            begun: now,
        }
    }

    pub(super) fn set_ready(&mut self, ready: bool) {
        if self.ready != ready {
            (self.ready, self.since) = (ready, Timestamp::now());
        }
    }

    /// The patch of the pod's status.
    pub(super) fn json(&self, pod: &Pod) -> Value {
        let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
        let (name, image) = container
            .map(|spec| (spec.name.clone(), spec.image.clone().unwrap_or_default()))
            .unwrap_or_default();
        let state = match &self.container {
            Container::Waiting { reason, message } => {
                json!({"waiting": {"reason": reason, "message": message}})
            }
            Container::Running { since } => json!({"running": {"startedAt": since}}),
            Container::Ended(ended) => ended.json(),
        };
        let phase = match &self.container {
            Container::Ended(Ended { code: 0, .. }) => "Succeeded",
            Container::Ended(_) => "Failed",
            Container::Waiting { .. } if self.last.is_none() => "Pending",
            _ => "Running",
        };
        let condition = |kind: &str, met: bool, since: Timestamp| {
            let status = if met { "True" } else { "False" };
            let reason = if met { "" } else { "ContainersNotReady" };
            json!({"type": kind, "status": status, "reason": reason, "lastTransitionTime": since})
        };
        let conditions = [
            condition("PodReadyToStartContainers", self.address.is_some(), self.begun),
            condition("Initialized", true, self.begun),
            condition("Ready", self.ready, self.since),
            condition("ContainersReady", self.ready, self.since),
            condition("PodScheduled", true, self.begun),
        ];
        let mut status = json!({
            "phase": phase, "conditions": conditions, "hostIP": self.host.to_string(),
            "startTime": self.begun,
            "containerStatuses": [{
                "name": name, "image": image, "imageID": "", "ready": self.ready,
                "started": self.started, "restartCount": self.restarts, "state": state,
                "lastState": self.last.map_or(json!({}), Ended::json),
            }],
        });
        if let Some(address) = self.address {
            status["podIP"] = json!(address.to_string());
            status["podIPs"] = json!([{"ip": address.to_string()}]);
        }
        json!({"status": status})
    }
}
