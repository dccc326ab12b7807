//! The EndpointSlices of a Service, watched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use forebay_base::backoff::Backoff;
use forebay_base::trouble::Trouble;
use forebay_config::EndpointSlices;
use forebay_signals::PodPhase;
use futures_util::{Stream, StreamExt, stream};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};

use crate::error::{Rule, explain_watch};
use crate::{BACKOFF, Change, Changes, Member};

type SliceEvents = Pin<Box<dyn Stream<Item = watcher::Result<Event<EndpointSlice>>> + Send>>;

/// The conditions of an address in a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AddressState {
    ready: bool,
    terminating: bool,
}

struct SliceWatch {
    events: SliceEvents,
    config: EndpointSlices,
    namespace: String,
    slices: BTreeMap<String, BTreeMap<SocketAddr, AddressState>>,
    listed: Option<BTreeMap<String, BTreeMap<SocketAddr, AddressState>>>,
    /// Addresses that have been ready: one that no longer is was withdrawn.
    been_ready: BTreeSet<SocketAddr>,
    backoff: Backoff,
    trouble: Trouble,
}

pub(crate) fn changes(client: Client, namespace: String, config: EndpointSlices) -> Changes {
    let api = Api::<EndpointSlice>::namespaced(client, &namespace);
    let label = format!("kubernetes.io/service-name={}", config.service);
    let events = watcher(api, watcher::Config::default().labels(&label).timeout(60)).boxed();
    let watch = SliceWatch {
        events,
        config,
        namespace,
        slices: BTreeMap::new(),
        listed: None,
        been_ready: BTreeSet::new(),
        backoff: BACKOFF,
        trouble: Trouble::default(),
    };
    stream::unfold(watch, |mut watch| async move {
        loop {
            let event = watch.events.next().await?;
            let failed = event.is_err();
            let change = watch.take(event);
            if failed {
                watch.backoff.pause().await;
            }
            if let Some(change) = change {
                return Some((change, watch));
            }
        }
    })
    .boxed()
}

impl SliceWatch {
    fn take(&mut self, event: watcher::Result<Event<EndpointSlice>>) -> Option<Change> {
        let event = match event {
            Ok(event) => event,
            Err(watcher::Error::WatchError(status)) if status.code == 410 => return None,
            Err(error) => {
                let rule = Rule {
                    group: "discovery.k8s.io",
                    resource: "endpointslices",
                    verbs: &["list", "watch"],
                    namespace: &self.namespace,
                };
                let why = explain_watch(&error, &rule);
                return self.trouble.begins(why.as_str()).then_some(Change::Trouble(why));
            }
        };
        match event {
            Event::Init => {
                self.listed = Some(BTreeMap::new());
                return None;
            }
            Event::InitApply(slice) => {
                let read = read(&slice, self.config.port_name.as_deref());
                self.listed.get_or_insert_default().insert(slice.name_any(), read);
                return None;
            }
            Event::InitDone => self.slices = self.listed.take().unwrap_or_default(),
            Event::Apply(slice) => {
                let read = read(&slice, self.config.port_name.as_deref());
                self.slices.insert(slice.name_any(), read);
            }
            Event::Delete(slice) => {
                self.slices.remove(&slice.name_any());
            }
        }
        self.backoff.reset();
        self.trouble.ends();
        Some(self.all())
    }

    /// All addresses. A Service has few slices of a hundred addresses each, so the whole list is
    /// reported.
    fn all(&mut self) -> Change {
        let mut all: BTreeMap<SocketAddr, AddressState> = BTreeMap::new();
        for (address, stands) in self.slices.values().flatten() {
            // While an address moves between two slices, the better state counts.
            let merged = all.entry(*address).or_insert(*stands);
            merged.ready |= stands.ready;
            merged.terminating &= stands.terminating;
        }
        self.been_ready.retain(|address| all.contains_key(address));
        self.been_ready
            .extend(all.iter().filter(|(_, endpoint)| endpoint.ready).map(|(address, _)| *address));
        let member = |(address, stands): (SocketAddr, AddressState)| {
            let phase = match stands {
                AddressState { terminating: true, .. } => PodPhase::Draining,
                AddressState { ready: true, .. } => PodPhase::Healthy,
                _ => PodPhase::Starting,
            };
            let withdrawn = phase == PodPhase::Starting && self.been_ready.contains(&address);
            let reason = if withdrawn { "NotReady".to_owned() } else { String::new() };
            let member = Member { phase: Some(phase), withdrawn, reason, ..Member::at(address) };
            (address.to_string(), member)
        };
        Change::All(all.into_iter().map(member).collect())
    }
}

fn read(slice: &EndpointSlice, port_name: Option<&str>) -> BTreeMap<SocketAddr, AddressState> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let named = |name: &str| ports.iter().find(|port| port.name.as_deref() == Some(name));
    let port = port_name.map_or_else(|| ports.first(), named).and_then(|port| port.port);
    let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { return BTreeMap::new() };
    let mut found = BTreeMap::new();
    for endpoint in &slice.endpoints {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let stands = AddressState {
            ready: conditions.ready.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
        };
        for address in &endpoint.addresses {
            if let Ok(ip) = address.parse::<IpAddr>() {
                found.insert(SocketAddr::new(ip, port), stands);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn watch() -> SliceWatch {
        SliceWatch {
            events: stream::empty().boxed(),
            config: EndpointSlices {
                namespace: None,
                service: "vllm".into(),
                port_name: Some("http".into()),
            },
            namespace: "models".into(),
            slices: BTreeMap::new(),
            listed: None,
            been_ready: BTreeSet::new(),
            backoff: BACKOFF,
            trouble: Trouble::default(),
        }
    }

    fn slice(ready: bool, terminating: bool) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": "vllm-1"}, "addressType": "IPv4",
            "ports": [{"name": "metrics", "port": 9}, {"name": "http", "port": 8000}],
            "endpoints": [{"addresses": ["10.0.0.1"],
                "conditions": {"ready": ready, "terminating": terminating}}],
        }))
        .expect("a slice")
    }

    fn only(change: Option<Change>) -> Member {
        let Some(Change::All(mut all)) = change else { panic!("{change:?}") };
        assert_eq!(all.len(), 1);
        all.remove(0).1
    }

    #[test]
    fn an_address_counts_before_it_is_ready_and_is_taken_out_when_it_no_longer_is() {
        let mut watch = watch();
        assert_eq!(watch.take(Ok(Event::Init)), None);
        assert_eq!(watch.take(Ok(Event::InitApply(slice(false, false)))), None);
        let new = only(watch.take(Ok(Event::InitDone)));
        assert_eq!(new.address, "10.0.0.1:8000".parse().ok(), "by the port's name");
        assert_eq!((new.phase, new.withdrawn), (Some(PodPhase::Starting), false));
        let ready = only(watch.take(Ok(Event::Apply(slice(true, false)))));
        assert_eq!((ready.phase, ready.withdrawn), (Some(PodPhase::Healthy), false));
        let out = only(watch.take(Ok(Event::Apply(slice(false, false)))));
        assert!(out.withdrawn);
        let leaving = only(watch.take(Ok(Event::Apply(slice(false, true)))));
        assert!(leaving.is_draining());
    }
}
