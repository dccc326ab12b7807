//! Finds replicas and gateways: pods, EndpointSlices, DNS.
//!
//! What both halves know of Kubernetes is here: the client, pods with their phases, and errors that
//! name the missing permission. A stream of [`Change`]s never ends. When the API server is away,
//! what was found last stays found.

pub mod client;
mod dns;
pub mod error;
mod pace;
pub mod pod;
mod service;
mod slices;
mod watch;

use std::net::SocketAddr;
use std::pin::Pin;

use forebay_config::Discovery;
use forebay_signals::PodPhase;
use futures_util::{Stream, StreamExt};
use kube::Client;

pub use client::Cluster;
pub use watch::{PodChange, pods};

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where it listens, or will; `None` as long as it has no address.
    pub address: Option<SocketAddr>,
    /// Where its pod is on its way, where that is known.
    pub phase: Option<PodPhase>,
    /// A word of Kubernetes' on why it is not further: `ImagePullBackOff`. Empty for none.
    pub reason: String,
    /// The same at length, for operators.
    pub message: String,
    /// It was ready and is not any more, though it runs: it gets nothing new.
    pub withdrawn: bool,
    /// How a container of it ended last, where that is known.
    pub last_end: Option<pod::End>,
}

/// What changed in what is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// All there is, by name: what was known before and is not in it is gone.
    All(Vec<(String, Member)>),
    /// One is new or different.
    Put(String, Member),
    /// One is gone.
    Gone(String),
    /// Nothing new can be learned for now, with the reason in words. What is known stays.
    Trouble(String),
}

/// Changes as they come, for as long as the stream is held.
pub type Changes = Pin<Box<dyn Stream<Item = Change> + Send>>;

impl Member {
    /// One of which only the address is known.
    #[must_use]
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address: Some(address),
            phase: None,
            reason: String::new(),
            message: String::new(),
            withdrawn: false,
            last_end: None,
        }
    }

    /// Whether it was deleted and finishes what it has.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.phase == Some(PodPhase::Draining)
    }
}

/// Whether this way of finding needs a Kubernetes cluster.
#[must_use]
pub fn needs_cluster(discovery: &Discovery) -> bool {
    !matches!(discovery, Discovery::Dns(_))
}

/// Begins to find. `cluster` is needed where [`needs_cluster`] says so; without it nothing is found,
/// and told so.
#[must_use]
pub fn discover(discovery: &Discovery, cluster: Option<&Cluster>) -> Changes {
    let client = |namespace: &Option<String>| -> Option<(Client, String)> {
        let cluster = cluster?;
        let own = || cluster.namespace.clone();
        Some((cluster.client.clone(), namespace.clone().unwrap_or_else(own)))
    };
    let nowhere = || {
        let trouble = Change::Trouble("no Kubernetes cluster is configured".to_owned());
        futures_util::stream::iter([trouble]).chain(futures_util::stream::pending()).boxed()
    };
    match discovery {
        Discovery::Dns(dns) => dns::changes(dns.clone()),
        Discovery::Pods(pods) => match client(&pods.namespace) {
            Some((client, namespace)) => watch::members(client, namespace, pods),
            None => nowhere(),
        },
        Discovery::EndpointSlices(slices) => match client(&slices.namespace) {
            Some((client, namespace)) => slices::changes(client, namespace, slices.clone()),
            None => nowhere(),
        },
    }
}
