//! The task behind a workload: watches it and its pods, and writes the wanted count.
//!
//! While the API server is unreachable, the state that was read last stays in use. A write that is due is
//! retried until it succeeds.

mod replacing;
mod scale_up;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_base::trouble::Trouble;
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

use super::events::{Events, Note};
use super::pods::{self, PodTimes};
use super::workload::{FIRST_TO_GO, Scaled, Unfound, Workload, annotated_override};
use super::{WorkloadOrders, WorkloadState};
use crate::act::targets::{RESTARTS, Replicas, epoch_time};
use crate::decide::Override;

/// Pause between two reads of the scale without a sign of a change.
const REREAD: Duration = Duration::from_secs(10);

type Changes =
    Pin<Box<dyn Stream<Item = watcher::Result<Event<PartialObjectMeta<DynamicObject>>>> + Send>>;
type Pods = Pin<Box<dyn Stream<Item = PodChange> + Send>>;

/// The metadata of the workload, as its watch shows it.
#[derive(Debug, PartialEq, Eq)]
enum Metadata {
    /// Not read yet: there may be an operator's annotations.
    Unread,
    Absent,
    /// Its generation and annotations.
    Present(Option<i64>, BTreeMap<String, String>),
}

/// The subject of a trouble, the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Scale,
    Pods,
    Watch,
    Annotation,
    Mark,
    Replacement,
}

/// The state that the worker publishes.
pub(super) struct Published {
    pub(super) state: watch::Sender<WorkloadState>,
    pub(super) replicas: watch::Sender<Replicas>,
    pub(super) trouble: Arc<Mutex<Option<String>>>,
    /// The API server has answered a request for the workload, whatever the answer.
    pub(super) answered: Arc<AtomicBool>,
}

pub(super) struct Worker {
    scope: Scope,
    published: Published,
    orders: watch::Receiver<WorkloadOrders>,
    pods: PodTable,
    scaled: Option<Scaled>,
    operator_override: Override,
    /// The count that we wrote last. Another count is another client's.
    written: Option<u32>,
    retry: Option<Instant>,
    troubles: BTreeMap<Subject, Trouble>,
    /// The trouble of reading whether nodes are being added.
    scale_ups: Trouble,
    /// The failure of the starts that an Event was written for.
    warned: Option<String>,
}

/// The workload to scale, and where it is.
struct Scope {
    pool: String,
    settings: config::Kubernetes,
    port: u16,
    /// The selector of its pods, for a kind whose `/scale` has none.
    fallback_selector: Option<String>,
    cluster: Cluster,
    namespace: String,
}

/// The workload's pods, as last read.
#[derive(Default)]
struct PodTable {
    all: BTreeMap<String, Pod>,
    times: BTreeMap<String, PodTimes>,
    /// Whether they have been listed once.
    listed: bool,
    /// Pods that carry our mark.
    marked: BTreeSet<String>,
    /// UIDs of pods that were deleted so that others replace them.
    deleted: BTreeSet<String>,
}

impl Worker {
    pub(super) fn new(
        pool: &config::Pool,
        settings: &config::Kubernetes,
        cluster: Cluster,
        published: Published,
        orders: watch::Receiver<WorkloadOrders>,
    ) -> Self {
        let fallback_selector = match &pool.discovery {
            Some(config::Discovery::Pods(pods)) => pods.selector.clone(),
            _ => None,
        };
        let scope = Scope {
            pool: pool.name.clone(),
            settings: settings.clone(),
            port: pool.replica_port(),
            fallback_selector,
            namespace: settings.namespace.clone().unwrap_or_else(|| cluster.namespace.clone()),
            cluster,
        };
        Self {
            scope,
            published,
            orders,
            pods: PodTable::default(),
            scaled: None,
            operator_override: Override::None,
            written: None,
            retry: None,
            troubles: BTreeMap::new(),
            scale_ups: Trouble::default(),
            warned: None,
        }
    }

    pub(super) async fn run(mut self) {
        let workload = self.find().await;
        let events = Events::start(workload.client(), workload.namespace().to_owned());
        let fields = format!("metadata.name={}", self.scope.settings.name);
        let config = watcher::Config::default().fields(&fields).timeout(60);
        let mut changes: Changes = watcher(workload.metadata.clone(), config).boxed();
        let mut pods: Pods = stream::pending().boxed();
        let mut selector = String::new();
        let mut reread = interval(REREAD);
        reread.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut metadata, mut listed) = (Metadata::Unread, false);
        let (mut backoff, mut rng) = (RESTARTS, SmallRng::from_os_rng());
        // After an error the watch rests; orders and pods are still handled.
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
                    self.publish();
                }
                Some(change) = pods.next() => {
                    self.take(change);
                    self.publish();
                }
                Some(change) = change => match change {
                    Ok(Event::Init) => listed = false,
                    Ok(Event::Apply(object) | Event::InitApply(object)) => {
                        listed = true;
                        backoff.reset();
                        self.calm(Subject::Watch);
                        let annotations = object.annotations().clone();
                        let now = Metadata::Present(object.metadata.generation, annotations);
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
                        if !matches!(&error, watcher::Error::WatchError(status) if status.code == 410) {
                            let why = explain_watch(&error, &workload.watch_rule());
                            self.complain(Subject::Watch, why);
                        }
                        rests_until = Instant::now() + backoff.next(&mut rng);
                    }
                },
                _ = reread.tick(), if metadata != Metadata::Unread => {
                    self.read(&workload, &events, &metadata).await;
                    self.look_for_nodes().await;
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
                pods = forebay_discovery::pods(client, &self.scope.namespace, &selector).boxed();
            }
            if self.retry.is_none() {
                self.warn(&workload, &events);
                self.write(&workload, &events).await;
                self.replace(&workload, &events).await;
            }
        }
    }

    async fn find(&mut self) -> Workload {
        let (mut backoff, mut rng) = (RESTARTS, SmallRng::from_os_rng());
        loop {
            let client = self.scope.cluster.client.clone();
            match Workload::find(client, &self.scope.namespace, &self.scope.settings).await {
                Ok(workload) => {
                    self.calm(Subject::Scale);
                    return workload;
                }
                Err(unfound) => {
                    if matches!(unfound, Unfound::Refused(_)) {
                        self.answered();
                    }
                    self.complain(Subject::Scale, unfound.to_string());
                }
            }
            sleep(backoff.next(&mut rng)).await;
        }
    }

    fn answered(&self) {
        self.published.answered.store(true, Ordering::Relaxed);
    }

    fn take(&mut self, change: PodChange) {
        let now = epoch_time();
        match change {
            PodChange::All(all) => {
                if !std::mem::replace(&mut self.pods.listed, true) {
                    let before = |name: &String| (name.clone(), PodTimes::inherited());
                    self.pods.times = all.keys().map(before).collect();
                }
                self.pods.all = all;
            }
            PodChange::Put(name, pod) => {
                self.pods.all.insert(name, pod);
            }
            PodChange::Gone(name) => {
                self.pods.all.remove(&name);
            }
            PodChange::Trouble(why) => return self.complain(Subject::Pods, why),
        }
        self.calm(Subject::Pods);
        self.pods.times.retain(|name, _| self.pods.all.contains_key(name));
        self.pods.marked.retain(|name| self.pods.all.contains_key(name));
        for (name, pod) in &self.pods.all {
            self.pods.times.entry(name.clone()).or_default().observe(pod, now);
            // Includes the marks of an earlier leader. A pod that lost its mark is marked anew.
            if pod.deletion_cost == Some(FIRST_TO_GO) {
                self.pods.marked.insert(name.clone());
            } else {
                self.pods.marked.remove(name);
            }
        }
    }

    fn selector(&self) -> Option<String> {
        let selector = &self.scaled.as_ref()?.selector;
        if selector.is_empty() {
            self.scope.fallback_selector.clone()
        } else {
            Some(selector.clone())
        }
    }

    /// Reads the scale, and notices changes by other clients.
    async fn read(&mut self, workload: &Workload, events: &Events, metadata: &Metadata) {
        let scaled = match workload.read().await {
            Ok(scaled) => scaled,
            Err(why) => return self.complain(Subject::Scale, why),
        };
        self.calm(Subject::Scale);
        if scaled.selector.is_empty() && self.scope.fallback_selector.is_none() {
            self.complain(Subject::Pods, format!(
                "the /scale of {} has no selector of its pods; set discovery.pods.selector of the pool",
                self.scope.settings.kind
            ));
        }
        let annotation = |key: &str| match metadata {
            Metadata::Present(_, annotations) => annotations.get(key).cloned(),
            Metadata::Unread | Metadata::Absent => None,
        };
        match annotated_override(annotation, scaled.replicas) {
            Ok(annotated) if annotated != self.operator_override => {
                let pool = &self.scope.pool;
                match annotated {
                    Override::None => tracing::info!("{pool}: Forebay scales the workload again"),
                    annotated => {
                        tracing::info!("{pool}: paused by an annotation ({annotated:?})")
                    }
                }
                self.operator_override = annotated;
            }
            Ok(_) => self.calm(Subject::Annotation),
            Err(why) => self.complain(Subject::Annotation, why),
        }
        let foreign = self.written.is_some_and(|ours| ours != scaled.replicas);
        // A scaler that does not lead wants no count, so the leader's writes are not foreign.
        let wanted = self.orders.borrow().count.filter(|wanted| *wanted != scaled.replicas);
        if let (true, Override::None, Some(wanted)) = (foreign, self.operator_override, wanted) {
            let note = format!(
                "another client set replicas to {}; {wanted} are wanted (annotate the workload with \
                 {}=true to keep them)",
                scaled.replicas,
                super::workload::PAUSED
            );
            tracing::warn!("{}: {note}", self.scope.pool);
            events.write(Note {
                regarding: workload.reference(scaled.uid.clone()),
                reason: "ForeignScale",
                warning: true,
                note,
            });
        }
        self.written = Some(scaled.replicas);
        self.scaled = Some(scaled);
        self.publish();
    }

    /// Publishes the state to the loop.
    fn publish(&mut self) {
        let Some(scaled) = &self.scaled else { return };
        if !self.pods.listed {
            return;
        }
        let replicas = scaled.replicas;
        let (mut stopping, spared) = {
            let orders = self.orders.borrow_and_update();
            let spared = match orders.count {
                Some(count) if count == replicas => {
                    pods::spared(&self.pods.all, replicas, &orders.stopping)
                }
                _ => BTreeSet::new(),
            };
            (orders.stopping.clone(), spared)
        };
        stopping.retain(|name| !spared.contains(name));
        let state = WorkloadState {
            known: true,
            replicas,
            surplus: pods::surplus(&self.pods.all, replicas, &stopping),
            operator_override: self.operator_override,
        };
        self.published.state.send_replace(state);
        let statuses = pods::statuses(
            &self.scope.pool,
            &self.pods.all,
            &self.pods.times,
            replicas,
            self.scope.port,
            &stopping,
            &spared,
        );
        self.published.replicas.send_if_modified(|published| {
            let new = **published != statuses;
            if new {
                *published = Arc::new(statuses);
            }
            new
        });
    }

    /// Writes an Event for the failure of the workload's starts.
    fn warn(&mut self, workload: &Workload, events: &Events) {
        let failure = self.orders.borrow().failure.clone();
        if failure == self.warned {
            return;
        }
        self.warned.clone_from(&failure);
        let Some(note) = failure else { return };
        let regarding = self.scaled.as_ref().and_then(|scaled| scaled.uid.clone());
        events.write(Note {
            regarding: workload.reference(regarding),
            reason: "StartFailed",
            warning: true,
            note,
        });
    }

    /// Logs a trouble, once while its reason is the same.
    fn complain(&mut self, subject: Subject, why: String) {
        if self.troubles.entry(subject).or_default().begins(why.as_str()) {
            tracing::error!(
                "{}: {} {}: {why}",
                self.scope.pool,
                self.scope.settings.kind,
                self.scope.settings.name
            );
            self.publish_trouble();
        }
    }

    fn calm(&mut self, subject: Subject) {
        if self.troubles.remove(&subject).is_some() {
            self.publish_trouble();
        }
    }

    /// Publishes the gravest trouble.
    fn publish_trouble(&self) {
        let gravest = self.troubles.values().find_map(Trouble::reason);
        *self.published.trouble.lock() = gravest.map(str::to_owned);
    }
}

/// Whether the error is an answer of the API server itself.
fn is_an_answer(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => matches!(error, kube::Error::Api(_)),
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => true,
    }
}
