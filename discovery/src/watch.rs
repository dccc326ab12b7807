//! Watches pods.
//!
//! A list, then a watch; after an error the same again with back-off, and a whole list when the
//! watch has expired. In between, what is known stays.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use forebay_base::backoff::Backoff;
use forebay_base::trouble::Trouble;
use forebay_config::Pods;
use futures_util::{Stream, StreamExt, stream};
use kube::core::ApiResource;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::time::{Instant, sleep_until};

use crate::error::{Rule, explain_watch};
use crate::pod::{Pod, VERBS, Wire};
use crate::service::selector;
use crate::{BACKOFF, Change, Changes, Member};

/// A watch without events for this long, in seconds, is started anew: this is also how long a
/// connection that silently broke goes unnoticed.
const WATCH_SECONDS: u32 = 60;
const PAGE: u32 = 500;

/// A change in the pods of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodChange {
    /// All pods, by name.
    All(BTreeMap<String, Pod>),
    /// One is new or different.
    Put(String, Pod),
    /// One is gone.
    Gone(String),
    /// Nothing new can be learned for now, with the reason. What is known stays.
    Trouble(String),
}

type PodEvents = Pin<Box<dyn Stream<Item = watcher::Result<Event<Wire>>> + Send>>;

struct PodWatch {
    events: PodEvents,
    namespace: String,
    /// The pods as last reported, so that only changes are reported.
    known: BTreeMap<String, Pod>,
    /// A list that is not complete yet.
    listed: BTreeMap<String, Pod>,
    backoff: Backoff,
    trouble: Trouble,
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
    let watch = PodWatch {
        events: watcher(api, config).boxed(),
        namespace: namespace.to_owned(),
        known: BTreeMap::new(),
        listed: BTreeMap::new(),
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
}

impl PodWatch {
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
        self.backoff.reset();
        if self.trouble.ends() {
            tracing::info!("pods in namespace {} are watched again", self.namespace);
        }
    }

    /// Reports a trouble once for each reason. An expired watch is not one: a list follows.
    fn trouble(&mut self, error: &watcher::Error) -> Option<PodChange> {
        if matches!(error, watcher::Error::WatchError(status) if status.code == 410) {
            tracing::debug!("the watch of pods has expired in namespace {}", self.namespace);
            return None;
        }
        let rule = Rule { group: "", resource: "pods", verbs: VERBS, namespace: &self.namespace };
        let why = explain_watch(error, &rule);
        self.trouble.begins(why.as_str()).then_some(PodChange::Trouble(why))
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
        reread_at: Instant::now(),
        queue: VecDeque::new(),
        backoff: BACKOFF,
        trouble: Trouble::default(),
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

/// The pods of a Service, whose selector is read at an interval: it changes rarely, and a watch of it
/// would cost a permission and a connection.
struct Service {
    client: Client,
    namespace: String,
    service: String,
    watch: Option<Pin<Box<dyn Stream<Item = PodChange> + Send>>>,
    selector: String,
    /// When the selector is read again.
    reread_at: Instant,
    queue: VecDeque<Change>,
    backoff: Backoff,
    trouble: Trouble,
}

/// How often a Service's selector is read.
const REREAD: Duration = Duration::from_secs(60);

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
                // A fixed time: pods that change all the while don't postpone it.
                () = sleep_until(self.reread_at) => self.read().await,
            }
        }
    }

    async fn read(&mut self) {
        self.reread_at = Instant::now() + REREAD;
        match selector(&self.client, &self.namespace, &self.service).await {
            Ok(selector) => {
                self.backoff.reset();
                self.trouble.ends();
                if self.watch.is_none() || selector != self.selector {
                    let pods = pods(self.client.clone(), &self.namespace, &selector);
                    self.watch = Some(pods.boxed());
                    self.selector = selector;
                }
            }
            Err(why) => {
                if self.trouble.begins(why.as_str()) {
                    self.queue.push_back(Change::Trouble(why));
                }
                if self.watch.is_none() {
                    self.backoff.pause().await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use kube::client::Body;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_selector_is_read_again_although_pods_change_all_the_while() {
        let reads = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&reads);
        let api = tower::service_fn(move |_: http::Request<Body>| {
            count.fetch_add(1, Relaxed);
            let service = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"vllm"},
                "spec":{"selector":{"app":"vllm"}}}"#;
            async {
                Ok::<_, Infallible>(http::Response::new(Body::from(service.as_bytes().to_vec())))
            }
        });
        let changing = stream::unfold((), |()| async {
            sleep(Duration::from_secs(1)).await;
            Some((PodChange::Gone("vllm-1".to_owned()), ()))
        });
        let mut service = Service {
            client: Client::new(api, "models"),
            namespace: "models".to_owned(),
            service: "vllm".to_owned(),
            watch: Some(changing.boxed()),
            selector: "app=vllm".to_owned(),
            reread_at: Instant::now() + REREAD,
            queue: VecDeque::new(),
            backoff: BACKOFF,
            trouble: Trouble::default(),
        };
        for _ in 0..150 {
            assert_eq!(service.next(8000).await, Change::Gone("vllm-1".to_owned()));
        }
        assert_eq!(reads.load(Relaxed), 2, "once a minute");
    }
}
