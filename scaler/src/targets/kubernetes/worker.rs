//! The task behind a workload: watches it and its pods, and writes what is wanted.
//!
//! While the API server is away, what is known stays and nothing is decided anew from less; the
//! write that is due is tried again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
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
use super::workload::{Failed, Scaled, Workload, order};
use super::{Orders, Seen};
use crate::core::Override;
use crate::targets::backoff::Backoff;
use crate::targets::{Replicas, epoch_ms};

/// How often the scale is read without a sign that it changed.
const REREAD: Duration = Duration::from_secs(10);
/// Conflicts in a row that are tried again at once.
const CONFLICTS: u32 = 5;
const RETRY: Duration = Duration::from_millis(500);

type Metadata = PartialObjectMeta<DynamicObject>;
type Changes = Pin<Box<dyn Stream<Item = watcher::Result<Event<Metadata>>> + Send>>;
type Pods = Pin<Box<dyn Stream<Item = PodChange> + Send>>;

/// What can be in trouble, the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Scale,
    Pods,
    Watch,
    Annotation,
    Mark,
}

/// Where the worker tells what it knows.
pub(super) struct Told {
    pub(super) seen: watch::Sender<Seen>,
    pub(super) replicas: watch::Sender<Replicas>,
    pub(super) trouble: Arc<Mutex<Option<String>>>,
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
        let mut metadata = None;
        let (mut backoff, mut rng) = (Backoff::default(), SmallRng::from_os_rng());
        loop {
            let retry = self.retry;
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
                Some(change) = changes.next() => match change {
                    Ok(Event::Apply(it) | Event::InitApply(it)) => {
                        backoff.reset();
                        self.calm(About::Watch);
                        let stands = (it.metadata.generation, it.annotations().clone());
                        if metadata.as_ref() != Some(&stands) {
                            self.read(&workload, &events, &stands.1).await;
                            metadata = Some(stands);
                        }
                    }
                    Ok(Event::Delete(_)) => metadata = None,
                    Ok(_) => {}
                    Err(error) => {
                        if !matches!(&error, watcher::Error::WatchError(it) if it.code == 410) {
                            self.complain(About::Watch, explain_watch(&error, &workload.watch_rule()));
                        }
                        // The watch is tried again; meanwhile orders and pods are heard.
                        let rest = stream::once(sleep(backoff.next(&mut rng))).filter_map(async |()| None);
                        changes = rest.chain(changes).boxed();
                    }
                },
                _ = reread.tick() => {
                    let annotations = metadata.as_ref().map(|(_, it)| it.clone()).unwrap_or_default();
                    self.read(&workload, &events, &annotations).await;
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
                Err(why) => self.complain(About::Scale, why),
            }
            sleep(backoff.next(&mut rng)).await;
        }
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
        }
    }

    fn selector(&self) -> Option<String> {
        let told = &self.scaled.as_ref()?.selector;
        if told.is_empty() { self.fallback_selector.clone() } else { Some(told.clone()) }
    }

    /// Reads the scale, and notices what somebody else did.
    async fn read(
        &mut self,
        workload: &Workload,
        events: &Events,
        annotations: &BTreeMap<String, String>,
    ) {
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
        match order(|key| annotations.get(key).cloned(), scaled.replicas) {
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

    /// Writes the count if it is not the one that is wanted.
    async fn write(&mut self, workload: &Workload, events: &Events) {
        for _ in 0..CONFLICTS {
            let orders = self.orders.borrow().clone();
            let (Some(count), Some(scaled)) = (orders.count, self.scaled.clone()) else { return };
            if scaled.replicas == count {
                return self.unmark(workload, &orders.stopping).await;
            }
            // Who is in charge by an annotation also writes, unless a number stands there.
            let theirs = matches!(self.order, Override::Fixed(it) if it != count);
            if theirs {
                return;
            }
            if count < scaled.replicas {
                self.mark(workload, &orders.stopping).await;
            }
            match workload.write(count, &scaled.version).await {
                Ok(now) => {
                    self.calm(About::Scale);
                    let up = count > scaled.replicas;
                    tracing::debug!(
                        "{}: replicas written: {} → {count}",
                        self.pool,
                        scaled.replicas
                    );
                    let from = scaled.replicas;
                    let note = match orders.why.as_str() {
                        "" => format!("scaling {from} → {count}"),
                        why => why.to_owned(),
                    };
                    events.tell(Noted {
                        regarding: workload.reference(now.uid.clone()),
                        reason: if up { "ScaledUp" } else { "ScaledDown" },
                        warning: false,
                        note,
                    });
                    self.written = Some(count);
                    // The answer to a write may lack the status.
                    let selector =
                        if now.selector.is_empty() { scaled.selector } else { now.selector };
                    self.scaled = Some(Scaled { selector, ..now });
                    self.tell();
                    return;
                }
                Err(Failed::Conflict) => match workload.read().await {
                    // Only its status changed in most cases. A count that somebody else set is
                    // noticed with the watch, which tells of the annotations too.
                    Ok(now) if now.replicas == scaled.replicas => self.scaled = Some(now),
                    Ok(now) => {
                        self.scaled = Some(now);
                        return self.retry_later();
                    }
                    Err(why) => {
                        self.complain(About::Scale, why);
                        return self.retry_later();
                    }
                },
                Err(Failed::For(why)) => {
                    self.complain(About::Scale, why);
                    return self.retry_later();
                }
            }
        }
        self.retry_later();
    }

    fn retry_later(&mut self) {
        self.retry = Some(Instant::now() + RETRY);
    }

    /// Just before a scale-down, and only on those that are to go.
    async fn mark(&mut self, workload: &Workload, stopping: &BTreeSet<String>) {
        let by_number = self.pods.values().any(|pod| pod.ordinal.is_some());
        if by_number {
            return;
        }
        let mut new: Vec<_> = stopping.difference(&self.marked).cloned().collect();
        new.retain(|name| self.pods.contains_key(name));
        for name in new {
            match workload.mark(&name, true).await {
                Ok(()) => {
                    self.marked.insert(name);
                    self.calm(About::Mark);
                }
                Err(why) => self.complain(About::Mark, why),
            }
        }
    }

    /// Those that are kept after all.
    async fn unmark(&mut self, workload: &Workload, stopping: &BTreeSet<String>) {
        let kept: Vec<_> = self.marked.difference(stopping).cloned().collect();
        for name in kept {
            match workload.mark(&name, false).await {
                Ok(()) => {
                    self.marked.remove(&name);
                }
                Err(why) => return self.complain(About::Mark, why),
            }
        }
    }

    /// Shows the loop what is known.
    fn tell(&mut self) {
        let Some(scaled) = &self.scaled else { return };
        if !self.listed {
            return;
        }
        let stopping = self.orders.borrow_and_update().stopping.clone();
        let replicas = scaled.replicas;
        let seen = Seen {
            known: true,
            replicas,
            surplus: pods::surplus(&self.pods, replicas, &stopping),
            order: self.order,
        };
        self.told.seen.send_replace(seen);
        let statuses =
            pods::statuses(&self.pool, &self.pods, &self.times, replicas, self.port, &stopping);
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
