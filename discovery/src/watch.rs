//! Watches pods.
//!
//! A list, then a watch; after an error the same again with back-off, and a whole list when the
//! watch has expired. In between, what is known stays.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;

use forebay_config::Pods;
use futures_util::{Stream, StreamExt, stream};
use kube::core::ApiResource;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};

use crate::error::{Rule, explain_watch};
use crate::pace::Pace;
use crate::pod::{Pod, VERBS, Wire};
use crate::service::selector;
use crate::{Change, Changes, Member};

/// A watch that nothing comes from for so long, in seconds, is begun anew: this is also how long a
/// connection that silently broke goes unnoticed.
const WATCH_SECONDS: u32 = 60;
const PAGE: u32 = 500;

/// What changed in the pods of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodChange {
    /// All there are, by name.
    All(BTreeMap<String, Pod>),
    /// One is new or different.
    Put(String, Pod),
    /// One is gone.
    Gone(String),
    /// Nothing new can be learned for now, with the reason. What is known stays.
    Trouble(String),
}

type Events = Pin<Box<dyn Stream<Item = watcher::Result<Event<Wire>>> + Send>>;

struct Watch {
    events: Events,
    namespace: String,
    /// What was told, so that what is no news is not told again.
    known: BTreeMap<String, Pod>,
    /// A list that is not complete yet.
    listed: BTreeMap<String, Pod>,
    pace: Pace,
    trouble: Option<String>,
}

/// Pods by label selector. Never ends.
pub fn pods(
    client: Client,
    namespace: &str,
    selector: &str,
) -> impl Stream<Item = PodChange> + Send + use<> {
    let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
    let api = Api::<Wire>::namespaced_with(client, namespace, &resource);
    let config = watcher::Config::default().labels(selector).timeout(WATCH_SECONDS).page_size(PAGE);
    let watch = Watch {
        events: watcher(api, config).boxed(),
        namespace: namespace.to_owned(),
        known: BTreeMap::new(),
        listed: BTreeMap::new(),
        pace: Pace::default(),
        trouble: None,
    };
    stream::unfold(watch, |mut watch| async move {
        loop {
            let event = watch.events.next().await?;
            let failed = event.is_err();
            let change = watch.take(event);
            if failed {
                watch.failed().await;
            }
            if let Some(change) = change {
                return Some((change, watch));
            }
        }
    })
}

impl Watch {
    fn take(&mut self, event: watcher::Result<Event<Wire>>) -> Option<PodChange> {
        let event = match event {
            Ok(event) => event,
            Err(error) => return self.trouble(&error),
        };
        match event {
            Event::Init => {
                self.listed.clear();
                None
            }
            Event::InitApply(wire) => {
                let name = wire.name_any();
                let pod = Pod::read(&wire, self.known.get(&name));
                if !pod.ended {
                    self.listed.insert(name, pod);
                }
                None
            }
            Event::InitDone => {
                self.calm();
                self.known = std::mem::take(&mut self.listed);
                Some(PodChange::All(self.known.clone()))
            }
            Event::Apply(wire) => {
                self.calm();
                let name = wire.name_any();
                let pod = Pod::read(&wire, self.known.get(&name));
                if pod.ended {
                    return self.known.remove(&name).map(|_| PodChange::Gone(name));
                }
                if self.known.get(&name) == Some(&pod) {
                    return None;
                }
                self.known.insert(name.clone(), pod.clone());
                Some(PodChange::Put(name, pod))
            }
            Event::Delete(wire) => {
                self.calm();
                let name = wire.name_any();
                self.known.remove(&name)?;
                Some(PodChange::Gone(name))
            }
        }
    }

    fn calm(&mut self) {
        self.pace.reset();
        if self.trouble.take().is_some() {
            tracing::info!("pods in namespace {} are watched again", self.namespace);
        }
    }

    /// Told once as long as the reason is the same. Expiry is no trouble: the list follows.
    fn trouble(&mut self, error: &watcher::Error) -> Option<PodChange> {
        if matches!(error, watcher::Error::WatchError(status) if status.code == 410) {
            tracing::debug!("the watch of pods has expired in namespace {}", self.namespace);
            return None;
        }
        let rule = Rule { group: "", resource: "pods", verbs: VERBS, namespace: &self.namespace };
        let why = explain_watch(error, &rule);
        let new = self.trouble.as_ref() != Some(&why);
        self.trouble = Some(why.clone());
        new.then_some(PodChange::Trouble(why))
    }

    async fn failed(&mut self) {
        self.pace.pause().await;
    }
}

/// Pods as members of a pool.
pub(crate) fn members(client: Client, namespace: String, pods: &Pods) -> Changes {
    let port = pods.port;
    let by_selector = move |client: Client, namespace: &str, selector: &str| {
        self::pods(client, namespace, selector).map(move |change| member_change(change, port))
    };
    if let Some(selector) = &pods.selector {
        return by_selector(client, &namespace, selector).boxed();
    }
    let service = pods.service.clone().unwrap_or_default();
    let state = Service {
        client,
        namespace,
        service,
        watch: None,
        selector: String::new(),
        queue: VecDeque::new(),
        pace: Pace::default(),
        trouble: None,
    };
    stream::unfold(state, move |mut state| async move {
        let change = state.next(port).await;
        Some((change, state))
    })
    .boxed()
}

fn member_change(change: PodChange, port: u16) -> Change {
    match change {
        PodChange::All(pods) => {
            Change::All(pods.into_iter().map(|(name, pod)| (name, member(pod, port))).collect())
        }
        PodChange::Put(name, pod) => Change::Put(name, member(pod, port)),
        PodChange::Gone(name) => Change::Gone(name),
        PodChange::Trouble(why) => Change::Trouble(why),
    }
}

fn member(pod: Pod, port: u16) -> Member {
    Member {
        address: pod.ip.map(|ip| SocketAddr::new(ip, port)),
        phase: Some(pod.phase),
        reason: pod.reason,
        message: pod.message,
        withdrawn: pod.withdrawn,
        last_end: pod.last_end,
    }
}

/// The pods of a Service, whose selector is read first and then again by and by: a changed one is
/// rare, and a watch of its own would cost a permission and a connection.
struct Service {
    client: Client,
    namespace: String,
    service: String,
    watch: Option<Pin<Box<dyn Stream<Item = PodChange> + Send>>>,
    selector: String,
    queue: VecDeque<Change>,
    pace: Pace,
    trouble: Option<String>,
}

const REREAD: std::time::Duration = std::time::Duration::from_secs(60);

impl Service {
    async fn next(&mut self, port: u16) -> Change {
        loop {
            if let Some(change) = self.queue.pop_front() {
                return change;
            }
            let Some(watch) = &mut self.watch else {
                self.read().await;
                continue;
            };
            tokio::select! {
                change = watch.next() => match change {
                    Some(change) => return member_change(change, port),
                    None => self.watch = None,
                },
                () = tokio::time::sleep(REREAD) => self.read().await,
            }
        }
    }

    async fn read(&mut self) {
        match selector(&self.client, &self.namespace, &self.service).await {
            Ok(selector) => {
                self.pace.reset();
                self.trouble = None;
                if self.watch.is_none() || selector != self.selector {
                    let pods = pods(self.client.clone(), &self.namespace, &selector);
                    self.watch = Some(pods.boxed());
                    self.selector = selector;
                }
            }
            Err(why) => {
                if self.trouble.as_ref() != Some(&why) {
                    self.queue.push_back(Change::Trouble(why.clone()));
                    self.trouble = Some(why);
                }
                if self.watch.is_none() {
                    self.pace.pause().await;
                }
            }
        }
    }
}
