//! Finds replicas and gateways: pods, EndpointSlices, DNS.
//!
//! Holds all that both halves know of Kubernetes: the client, pods with their phases, and errors that
//! name the missing permission. A stream of [`Change`]s never ends. While the API server is away, the
//! last known members stay.

pub mod client;
mod dns;
pub mod error;
pub mod pod;
mod service;
mod slices;
mod watch;

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use forebay_base::backoff::{Backoff, Spread};
use forebay_config::Discovery;
use forebay_signals::PodPhase;
use futures_util::{Stream, StreamExt};
use kube::Client;

pub use client::Cluster;
pub use watch::{PodChange, pods};

/// Pauses between requests to an API server that fails. Chance shortens them, so that processes that
/// lost it together return at different times.
const BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5), Spread::Below);

/// A member of the list that discovery keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where it listens, or will listen; `None` while it has no address.
    pub address: Option<SocketAddr>,
    /// The phase of its pod, if it is known.
    pub phase: Option<PodPhase>,
    /// Kubernetes' reason why it is not ready, such as `ImagePullBackOff`; may be empty.
    pub reason: String,
    /// The same at length, for operators.
    pub message: String,
    /// It was ready and no longer is, though it runs: it gets no new requests.
    pub withdrawn: bool,
    /// The last end of one of its containers, if it is known.
    pub last_end: Option<pod::End>,
}

/// A change in the list of members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// All members, by name: a known one that is missing here is gone.
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
    /// A member of which only the address is known.
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

    /// Whether it was deleted and finishes its requests.
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

/// Begins discovery. Where [`needs_cluster`] is true, nothing is found without a `cluster`, and a
/// trouble is reported.
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
