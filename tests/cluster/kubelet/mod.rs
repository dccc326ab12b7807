//! A small kubelet: one GPU node, whose pods are simulated vLLM servers on loopback addresses.
//!
//! It does everything that a watcher of pods can see: it registers a Node and renews its Lease,
//! takes the pods that the scheduler binds to it, gives each an address of its own (127.x.y.z),
//! reports phases, conditions, readiness and restarts, and ends pods with hook, SIGTERM and grace.
//! It misbehaves on request, by a pod's annotations or for the whole node.

mod pod;
mod status;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Annotations with which a pod misbehaves.
pub mod annotation {
    /// How long the pull of its image takes: `2s`, `500ms`.
    pub const PULL: &str = "kubelet.test/pull";
    /// Its image can't be pulled, this many times: `2`, or `always`.
    pub const PULL_FAILS: &str = "kubelet.test/pull-fails";
    /// Its container exits with this code at once, this many times.
    pub const CRASHES: &str = "kubelet.test/crashes";
}

/// A node that runs pods.
pub struct Kubelet {
    node: Arc<Shared>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// The state that the node's tasks share.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) client: kube::Client,
    /// `forebay`, whose `vllm-sim` plays vLLM.
    pub(crate) program: PathBuf,
    pub(crate) logs: PathBuf,
    gpus: u32,
    /// x and y of the pods' addresses, 127.x.y.z.
    net: (u8, u8),
    next: AtomicU8,
    /// Cancelled when the machine is gone: its processes are dead, and it reports nothing.
    pub(crate) dead: CancellationToken,
    silent: AtomicBool,
}

impl Kubelet {
    /// Registers a node with this number of GPUs, and runs the pods that are bound to it.
    pub async fn start(
        client: kube::Client,
        program: PathBuf,
        logs: PathBuf,
        name: &str,
        gpus: u32,
    ) -> Self {
        let node = Arc::new(Shared {
            name: name.to_owned(),
            client,
            program,
            logs,
            gpus,
            // Two runs of these tests at once have different addresses.
            net: (rand::random_range(10..250), rand::random_range(1..250)),
            next: AtomicU8::new(10),
            dead: CancellationToken::new(),
            silent: AtomicBool::new(false),
        });
        node.register().await;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(heartbeat(Arc::clone(&node), stop.clone()));
        tasks.spawn(run(Arc::clone(&node), stop.clone()));
        Self { node, stop, tasks }
    }

    pub fn name(&self) -> &str {
        &self.node.name
    }

    /// The machine loses power: its processes end at once, and it reports nothing.
    pub fn die(&self) {
        self.node.silent.store(true, Ordering::Relaxed);
        self.node.dead.cancel();
    }

    /// Stops the pods, and removes the node from the cluster.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        let nodes: Api<Node> = Api::all(self.node.client.clone());
        let _ = nodes.delete(&self.node.name, &DeleteParams::default()).await;
    }
}

impl Shared {
    async fn register(&self) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name, "labels": {
                "kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux",
                "nvidia.com/gpu.present": "true",
            }},
        });
        let node = serde_json::from_value(node).expect("a Node");
        nodes.create(&PostParams::default(), &node).await.expect("the node is registered");
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": self.name},
            "spec": {"holderIdentity": self.name, "leaseDurationSeconds": 40},
        });
        let lease = serde_json::from_value(lease).expect("a Lease");
        let _ = leases.create(&PostParams::default(), &lease).await;
        self.beat().await;
    }

    /// Reports that the node is healthy, and its resources. This is repeated, because the node
    /// controller changes the status of a node that was silent.
    async fn beat(&self) {
        let now = jiff::Timestamp::now();
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let renewed = json!({"spec": {"renewTime": format!("{now:.6}")}});
        let _ = leases.patch(&self.name, &PatchParams::default(), &Patch::Merge(renewed)).await;
        let resources = json!({
            "cpu": "64", "memory": "512Gi", "pods": "200", "ephemeral-storage": "1Ti",
            "nvidia.com/gpu": self.gpus.to_string(),
        });
        let ready = json!({
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        });
        let status = json!({"status": {
            "capacity": resources, "allocatable": resources, "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": self.address(1).to_string()},
                          {"type": "Hostname", "address": self.name}],
            "nodeInfo": {
                "kubeletVersion": "v1.36.3", "osImage": "test", "operatingSystem": "linux",
                "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "test://1",
                "kernelVersion": "", "kubeProxyVersion": "", "machineID": "", "systemUUID": "",
            },
        }});
        let nodes: Api<Node> = Api::all(self.client.clone());
        let _ =
            nodes.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(status)).await;
    }

    pub(crate) fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.net.0, self.net.1, last)
    }

    /// An address at which `port` is free.
    pub(crate) fn lease_address(&self, port: u16) -> Ipv4Addr {
        loop {
            let last = self.next.fetch_add(1, Ordering::Relaxed);
            let address = self.address(last.max(2));
            if TcpListener::bind((address, port)).is_ok() {
                return address;
            }
        }
    }
}

async fn heartbeat(node: Arc<Shared>, stop: CancellationToken) {
    let mut ticks = interval(Duration::from_secs(2));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if !node.silent.load(Ordering::Relaxed) {
            node.beat().await;
        }
    }
}

/// Follows the pods that are bound to the node, with one task for each.
async fn run(node: Arc<Shared>, stop: CancellationToken) {
    let pods: Api<Pod> = Api::all(node.client.clone());
    let bound = watcher::Config::default().fields(&format!("spec.nodeName={}", node.name));
    let mut changes = watcher(pods, bound).default_backoff().boxed();
    let mut running: BTreeMap<String, watch::Sender<Option<Pod>>> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut listed = Vec::new();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            () = node.dead.cancelled() => break,
            event = changes.next() => event,
        };
        let mut take = |pod: Pod| {
            let Some(uid) = pod.metadata.uid.clone() else { return };
            match running.get(&uid) {
                Some(latest) => {
                    latest.send_replace(Some(pod));
                }
                None => {
                    let (sender, latest) = watch::channel(Some(pod));
                    running.insert(uid, sender);
                    tasks.spawn(pod::run(Arc::clone(&node), latest));
                }
            }
        };
        match event {
            Some(Ok(watcher::Event::Apply(pod))) => take(pod),
            Some(Ok(watcher::Event::Init)) => listed.clear(),
            Some(Ok(watcher::Event::InitApply(pod))) => {
                listed.extend(pod.metadata.uid.clone());
                take(pod);
            }
            // Pods that are not in the new list were deleted while the watch was broken.
            Some(Ok(watcher::Event::InitDone)) => running.retain(|uid, latest| {
                let there = listed.contains(uid);
                if !there {
                    latest.send_replace(None);
                }
                there
            }),
            Some(Ok(watcher::Event::Delete(pod))) => {
                if let Some(latest) = pod.metadata.uid.and_then(|uid| running.remove(&uid)) {
                    latest.send_replace(None);
                }
            }
            Some(Err(_)) => {}
            None => break,
        }
    }
    // Without their senders, the pods end.
    drop(running);
    tasks.shutdown().await;
}

/// This machine's own address, for pods in its network; `None` if it has only loopback and
/// link-local addresses, which EndpointSlices refuse.
pub fn host_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the system only chooses the address that it would use.
    socket.connect("192.0.2.1:9").ok()?;
    let IpAddr::V4(address) = socket.local_addr().ok()?.ip() else { return None };
    let usable = !(address.is_loopback() || address.is_unspecified() || address.is_link_local());
    usable.then_some(address)
}
