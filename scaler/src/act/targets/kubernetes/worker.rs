//! The task behind a workload: watches it and its pods, and writes what is wanted.
//!
//! While the API server is away, what is known stays and nothing is decided anew from less; the
//! write that is due is tried again and again.

mod replacing;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_config as config;
use forebay_discovery::error::explain_watch;
use forebay_discovery::pod::Pod;
use forebay_discovery::{Cluster, PodChange};
use futures_util::{Stream, StreamExt, stream};
use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use parking_lot::Mutex;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::events::{Events, Told as Noted};
use super::pods::{self, Times};
use super::workload::{FIRST_TO_GO, Scaled, Unfound, Workload, order};
use super::{Orders, Seen};
use crate::act::targets::backoff::Backoff;
use crate::act::targets::{Replicas, epoch_ms};
use crate::decide::Override;

/// How often the scale is read without a sign that it changed.
const REREAD: Duration = Duration::from_secs(10);

type Changes =
    Pin<Box<dyn Stream<Item = watcher::Result<Event<PartialObjectMeta<DynamicObject>>>> + Send>>;
type Pods = Pin<Box<dyn Stream<Item = PodChange> + Send>>;

/// What its watch has shown of the workload itself.
#[derive(Debug, PartialEq, Eq)]
enum Metadata {
    /// Nothing yet: a person's annotations may be there.
    Unseen,
    Absent,
    /// Its generation and annotations.
    There(Option<i64>, BTreeMap<String, String>),
}

/// What can be in trouble, the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Scale,
    Pods,
    Watch,
    Annotation,
    Mark,
    Replacement,
}

/// Where the worker tells what it knows.
pub(super) struct Told {
    pub(super) seen: watch::Sender<Seen>,
    pub(super) replicas: watch::Sender<Replicas>,
    pub(super) trouble: Arc<Mutex<Option<String>>>,
    /// The API server was asked for the workload and has answered, whatever it said.
    pub(super) answered: Arc<AtomicBool>,
}

pub(super) struct Worker {
    pool: String,
    settings: config::Kubernetes,
    port: u16,
    /// Of its pods, for a kind whose `/scale` does not tell.
    fallback_selector: Option<String>,
    cluster: Cluster,
    namespace: String,
    told: Told,
    orders: watch::Receiver<Orders>,
    pods: BTreeMap<String, Pod>,
    times: BTreeMap<String, Times>,
    listed: bool,
    scaled: Option<Scaled>,
    order: Override,
    /// The count that we wrote last: another one is somebody else's.
    written: Option<u32>,
    /// Pods that carry our mark.
    marked: BTreeSet<String>,
    /// UIDs of pods that were deleted for others.
    deleted: BTreeSet<String>,
    retry: Option<Instant>,
    troubles: BTreeMap<About, String>,
}

impl Worker {
    pub(super) fn new(
        pool: &config::Pool,
        settings: &config::Kubernetes,
        cluster: Cluster,
        told: Told,
        orders: watch::Receiver<Orders>,
    ) -> Self {
        let namespace = settings.namespace.clone().unwrap_or_else(|| cluster.namespace.clone());
        let fallback_selector = match &pool.discovery {
            Some(config::Discovery::Pods(pods)) => pods.selector.clone(),
            _ => None,
        };
        Self {
            pool: pool.name.clone(),
            settings: settings.clone(),
            port: pool.replica_port(),
            fallback_selector,
            cluster,
            namespace,
            told,
            orders,
            pods: BTreeMap::new(),
            times: BTreeMap::new(),
            listed: false,
            scaled: None,
            order: Override::None,
            written: None,
            marked: BTreeSet::new(),
            deleted: BTreeSet::new(),
            retry: None,
            troubles: BTreeMap::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let workload = self.find().await;
        let events = Events::start(workload.client(), workload.namespace().to_owned());
        let fields = format!("metadata.name={}", self.settings.name);
        let config = watcher::Config::default().fields(&fields).timeout(60);
        let mut changes: Changes = watcher(workload.metadata.clone(), config).boxed();
        let mut pods: Pods = stream::pending().boxed();
        let mut selector = String::new();
        let mut reread = interval(REREAD);
        reread.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut metadata, mut listed) = (Metadata::Unseen, false);
        let (mut backoff, mut rng) = (Backoff::default(), SmallRng::from_os_rng());
        // After an error the watch rests; meanwhile orders and pods are heard.
        let mut rests_until = Instant::now();
        loop {
            let retry = self.retry;
            let change = async {
                sleep_until(rests_until).await;
                changes.next().await
            };
            tokio::select! {
                changed = self.orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.tell();
                }
                Some(change) = pods.next() => {
                    self.take(change);
                    self.tell();
                }
                Some(change) = change => match change {
                    Ok(Event::Init) => listed = false,
                    Ok(Event::Apply(it) | Event::InitApply(it)) => {
                        listed = true;
                        backoff.reset();
                        self.calm(About::Watch);
                        let annotations = it.annotations().clone();
                        let now = Metadata::There(it.metadata.generation, annotations);
                        if now != metadata {
                            metadata = now;
                            self.read(&workload, &events, &metadata).await;
                        }
                    }
                    Ok(Event::InitDone) if listed => self.answered(),
                    Ok(Event::InitDone | Event::Delete(_)) => {
                        self.answered();
                        metadata = Metadata::Absent;
                        self.read(&workload, &events, &metadata).await;
                    }
                    Err(error) => {
                        if is_an_answer(&error) {
                            self.answered();
                        }
                        if !matches!(&error, watcher::Error::WatchError(it) if it.code == 410) {
                            self.complain(About::Watch, explain_watch(&error, &workload.watch_rule()));
                        }
                        rests_until = Instant::now() + backoff.next(&mut rng);
                    }
                },
                _ = reread.tick(), if metadata != Metadata::Unseen => {
                    self.read(&workload, &events, &metadata).await;
                }
                () = async { sleep_until(retry.unwrap_or_else(Instant::now)).await }, if retry.is_some() => {
                    self.retry = None;
                }
            }
            if let Some(now) = self.selector()
                && now != selector
            {
                selector = now;
                let client = workload.client();
                pods = forebay_discovery::pods(client, &self.namespace, &selector).boxed();
            }
            if self.retry.is_none() {
                self.write(&workload, &events).await;
                self.replace(&workload, &events).await;
            }
        }
    }

    async fn find(&mut self) -> Workload {
        let (mut backoff, mut rng) = (Backoff::default(), SmallRng::from_os_rng());
        loop {
            let client = self.cluster.client.clone();
            match Workload::find(client, &self.namespace, &self.settings).await {
                Ok(workload) => {
                    self.calm(About::Scale);
                    return workload;
                }
                Err(unfound) => {
                    if matches!(unfound, Unfound::Told(_)) {
                        self.answered();
                    }
                    self.complain(About::Scale, unfound.to_string());
                }
            }
            sleep(backoff.next(&mut rng)).await;
        }
    }

    fn answered(&self) {
        self.told.answered.store(true, Ordering::Relaxed);
    }

    fn take(&mut self, change: PodChange) {
        let now_ms = epoch_ms();
        match change {
            PodChange::All(all) => {
                if !std::mem::replace(&mut self.listed, true) {
                    let before = |name: &String| (name.clone(), Times::inherited());
                    self.times = all.keys().map(before).collect();
                }
                self.pods = all;
            }
            PodChange::Put(name, pod) => {
                self.pods.insert(name, pod);
            }
            PodChange::Gone(name) => {
                self.pods.remove(&name);
            }
            PodChange::Trouble(why) => return self.complain(About::Pods, why),
        }
        self.calm(About::Pods);
        self.times.retain(|name, _| self.pods.contains_key(name));
        self.marked.retain(|name| self.pods.contains_key(name));
        for (name, pod) in &self.pods {
            self.times.entry(name.clone()).or_default().see(pod, now_ms);
            // Also those of a leader before this one. One that lost its mark since is to get it anew.
            if pod.deletion_cost == Some(FIRST_TO_GO) {
                self.marked.insert(name.clone());
            } else {
                self.marked.remove(name);
            }
        }
    }

    fn selector(&self) -> Option<String> {
        let told = &self.scaled.as_ref()?.selector;
        if told.is_empty() { self.fallback_selector.clone() } else { Some(told.clone()) }
    }

    /// Reads the scale, and notices what somebody else did.
    async fn read(&mut self, workload: &Workload, events: &Events, metadata: &Metadata) {
        let scaled = match workload.read().await {
            Ok(scaled) => scaled,
            Err(why) => return self.complain(About::Scale, why),
        };
        self.calm(About::Scale);
        if scaled.selector.is_empty() && self.fallback_selector.is_none() {
            self.complain(About::Pods, format!(
                "{} tells no selector of its pods in /scale; give the pool discovery.pods.selector",
                self.settings.kind
            ));
        }
        let annotation = |key: &str| match metadata {
            Metadata::There(_, annotations) => annotations.get(key).cloned(),
            Metadata::Unseen | Metadata::Absent => None,
        };
        match order(annotation, scaled.replicas) {
            Ok(order) if order != self.order => {
                let pool = &self.pool;
                match order {
                    Override::None => tracing::info!("{pool}: the workload is ours again"),
                    order => tracing::info!("{pool}: paused by an annotation ({order:?})"),
                }
                self.order = order;
            }
            Ok(_) => self.calm(About::Annotation),
            Err(why) => self.complain(About::Annotation, why),
        }
        let foreign = self.written.is_some_and(|ours| ours != scaled.replicas);
        // One that does not lead wants nothing, and the leader is no stranger.
        let wanted = self.orders.borrow().count.filter(|wanted| *wanted != scaled.replicas);
        if let (true, Override::None, Some(wanted)) = (foreign, self.order, wanted) {
            let note = format!(
                "somebody else set replicas to {}; {wanted} are wanted (annotate the workload with \
                 {}=true to keep them)",
                scaled.replicas,
                super::workload::PAUSED
            );
            tracing::warn!("{}: {note}", self.pool);
            events.tell(Noted {
                regarding: workload.reference(scaled.uid.clone()),
                reason: "ForeignScale",
                warning: true,
                note,
            });
        }
        self.written = Some(scaled.replicas);
        self.scaled = Some(scaled);
        self.tell();
    }

    /// Shows the loop what is known.
    fn tell(&mut self) {
        let Some(scaled) = &self.scaled else { return };
        if !self.listed {
            return;
        }
        let replicas = scaled.replicas;
        let (mut stopping, spared) = {
            let orders = self.orders.borrow_and_update();
            let spared = match orders.count {
                Some(count) if count == replicas => {
                    pods::spared(&self.pods, replicas, &orders.stopping)
                }
                _ => BTreeSet::new(),
            };
            (orders.stopping.clone(), spared)
        };
        stopping.retain(|name| !spared.contains(name));
        let seen = Seen {
            known: true,
            replicas,
            surplus: pods::surplus(&self.pods, replicas, &stopping),
            order: self.order,
        };
        self.told.seen.send_replace(seen);
        let statuses = pods::statuses(
            &self.pool,
            &self.pods,
            &self.times,
            replicas,
            self.port,
            &stopping,
            &spared,
        );
        self.told.replicas.send_if_modified(|told| {
            let new = **told != statuses;
            if new {
                *told = Arc::new(statuses);
            }
            new
        });
    }

    /// Told once as long as the reason is the same.
    fn complain(&mut self, of: About, why: String) {
        if self.troubles.get(&of) != Some(&why) {
            tracing::error!("{}: {} {}: {why}", self.pool, self.settings.kind, self.settings.name);
            self.troubles.insert(of, why);
            *self.told.trouble.lock() = self.troubles.values().next().cloned();
        }
    }

    fn calm(&mut self, of: About) {
        if self.troubles.remove(&of).is_some() {
            *self.told.trouble.lock() = self.troubles.values().next().cloned();
        }
    }
}

/// Whether the API server itself refused.
fn is_an_answer(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => matches!(error, kube::Error::Api(_)),
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => true,
    }
}
