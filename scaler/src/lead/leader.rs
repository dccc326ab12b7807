//! Leader election among several scalers, by a Lease.
//!
//! Another scaler's clock is never read: a lease is over when its record has not changed for its
//! duration, measured by our own clock. A leader that can't renew stops leading before another may
//! begin, even in the middle of a call. A conflict is not a loss: the record is read again.

use std::time::Duration;

use forebay_base::trouble::Trouble;
use forebay_config::LeaderElection;
use forebay_discovery::Cluster;
use forebay_discovery::error::{Rule, explain};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// The annotation of the Lease with the address of the leader's admin port.
const ADDRESS: &str = "forebay.io/admin-url";

/// Most conflicts in a row within one turn.
const CONFLICTS: u32 = 4;

/// The scaler that decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Leadership {
    /// None that is known.
    #[default]
    Unknown,
    /// This process.
    Ours,
    /// The scaler at this base URL.
    Theirs(String),
}

/// Participation in the election, for the lifetime of this value.
pub(crate) struct Election {
    pub(crate) leadership: watch::Receiver<Leadership>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// One candidate's view of the Lease.
struct Candidate {
    api: Api<Lease>,
    settings: LeaderElection,
    namespace: String,
    identity: String,
    url: String,
    /// The Lease as last read, and the time since which it has not changed.
    seen: Option<(Lease, Instant)>,
    /// The start of our last renewal that succeeded.
    renewed: Option<Instant>,
    published: watch::Sender<Leadership>,
    trouble: Trouble,
}

impl Election {
    /// Takes part in the election. `url` is the address of this scaler's admin port.
    pub(crate) fn start(settings: &LeaderElection, cluster: &Cluster, url: String) -> Self {
        let namespace = settings.namespace.clone().unwrap_or_else(|| cluster.namespace.clone());
        let name = std::env::var("POD_NAME").unwrap_or_else(|_| "scaler".to_owned());
        let (published, leadership) = watch::channel(Leadership::default());
        let candidate = Candidate {
            api: Api::namespaced(cluster.client.clone(), &namespace),
            settings: settings.clone(),
            namespace,
            identity: format!("{name}_{:08x}", rand::random::<u32>()),
            url,
            seen: None,
            renewed: None,
            published,
            trouble: Trouble::default(),
        };
        let stop = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(candidate.run(stop.clone())));
        Self { leadership, stop, task }
    }

    /// Releases the lease, so that another scaler takes over at once.
    pub(crate) async fn resign(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

impl Candidate {
    async fn run(mut self, stop: CancellationToken) {
        let mut ticks = interval(self.period());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ours_until = self.ours_until();
            let over = async {
                match ours_until {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = over => {
                    self.renewed = None;
                    self.publish();
                    continue;
                }
                _ = ticks.tick() => {}
            }
            let began = Instant::now();
            // A call that hangs must not outlast our lease.
            let longest = began + self.period() * 2;
            let until = ours_until.map_or(longest, |at| at.min(longest));
            let tried = tokio::select! {
                () = stop.cancelled() => break,
                tried = timeout_at(until, self.turn()) => tried,
            };
            match tried.unwrap_or_else(|_| Err("the API server does not answer".to_owned())) {
                Ok(true) => {
                    self.renewed = Some(began);
                    self.trouble.ends();
                }
                Ok(false) => {
                    self.renewed = None;
                    self.trouble.ends();
                }
                Err(why) => {
                    if self.trouble.begins(why.as_str()) {
                        tracing::warn!("leader election: {why}");
                    }
                }
            }
            self.publish();
        }
        if self.leads() {
            let _ = timeout(self.period() * 2, self.release()).await;
        }
        self.published.send_replace(Leadership::Unknown);
    }

    fn period(&self) -> Duration {
        self.settings.lease_duration / 5
    }

    /// The end of our leadership without another renewal. Less than the lease's duration, after which
    /// another scaler may begin.
    fn ours_until(&self) -> Option<Instant> {
        self.renewed.map(|at| at + self.settings.lease_duration * 4 / 5)
    }

    fn leads(&self) -> bool {
        self.ours_until().is_some_and(|at| Instant::now() < at)
    }

    fn publish(&self) {
        let holder = self.seen.as_ref().map(|(lease, _)| lease);
        let now = if self.leads() {
            Leadership::Ours
        } else {
            let theirs =
                holder.filter(|lease| holder_of(lease).is_some_and(|id| id != self.identity));
            let url =
                theirs.and_then(|lease| lease.metadata.annotations.as_ref()?.get(ADDRESS).cloned());
            url.map_or(Leadership::Unknown, Leadership::Theirs)
        };
        self.published.send_if_modified(|published| {
            if *published == now {
                return false;
            }
            match &now {
                Leadership::Ours => tracing::info!("this scaler leads"),
                Leadership::Theirs(url) => tracing::info!("the scaler at {url} leads"),
                Leadership::Unknown => tracing::warn!("no leading scaler is known"),
            }
            *published = now;
            true
        });
    }

    /// Reads the Lease, and writes it if it is ours or free. Returns whether it is ours now.
    async fn turn(&mut self) -> Result<bool, String> {
        for _ in 0..CONFLICTS {
            let Some(lease) = self.read().await? else {
                let new = self.record(Lease::default());
                let created = self.api.create(&PostParams::default(), &new).await;
                if self.wrote(created, "create")? {
                    return Ok(true);
                }
                continue;
            };
            if !self.is_free(&lease) {
                return Ok(false);
            }
            let new = self.record(lease);
            let replaced =
                self.api.replace(&self.settings.lease, &PostParams::default(), &new).await;
            if self.wrote(replaced, "update")? {
                return Ok(true);
            }
        }
        Err(format!("the Lease {} changes at every attempt to write it", self.settings.lease))
    }

    /// Reads the Lease, and remembers since when it has not changed.
    async fn read(&mut self) -> Result<Option<Lease>, String> {
        let found = self.api.get_opt(&self.settings.lease).await;
        let Some(lease) = found.map_err(|error| self.explain(&error, "get"))? else {
            return Ok(None);
        };
        let same = |(seen, _): &(Lease, Instant)| {
            seen.spec == lease.spec && seen.metadata.annotations == lease.metadata.annotations
        };
        let since = match &self.seen {
            Some(seen) if same(seen) => seen.1,
            _ => Instant::now(),
        };
        self.seen = Some((lease.clone(), since));
        Ok(Some(lease))
    }

    /// Whether the Lease has no holder, or is ours, or its holder has not renewed it in time.
    fn is_free(&self, lease: &Lease) -> bool {
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
        let duration = Duration::from_secs(seconds.max(0).unsigned_abs().into());
        match holder_of(lease) {
            None => true,
            Some(holder) if holder == self.identity => true,
            Some(_) => self.seen.as_ref().is_some_and(|(_, since)| since.elapsed() >= duration),
        }
    }

    /// Whether the write succeeded; false after a conflict.
    fn wrote(&mut self, wrote: kube::Result<Lease>, verb: &str) -> Result<bool, String> {
        match wrote {
            Ok(lease) => {
                self.seen = Some((lease, Instant::now()));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(self.explain(&error, verb)),
        }
    }

    fn explain(&self, error: &kube::Error, verb: &str) -> String {
        let rule = Rule {
            group: "coordination.k8s.io",
            resource: "leases",
            verbs: &[verb],
            namespace: &self.namespace,
        };
        explain(error, &rule)
    }

    /// The Lease with this scaler as its holder. Its version stays, so that the first write wins.
    fn record(&self, lease: Lease) -> Lease {
        let before = lease.spec.unwrap_or_default();
        let ours = before.holder_identity.as_ref() == Some(&self.identity);
        let now = MicroTime(Timestamp::now());
        let seconds = self.settings.lease_duration.as_secs_f64().ceil() as i32;
        let mut annotations = lease.metadata.annotations.unwrap_or_default();
        annotations.insert(ADDRESS.to_owned(), self.url.clone());
        Lease {
            metadata: ObjectMeta {
                name: Some(self.settings.lease.clone()),
                annotations: Some(annotations),
                ..lease.metadata
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(seconds),
                acquire_time: if ours { before.acquire_time } else { Some(now.clone()) },
                renew_time: Some(now),
                lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!ours)),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Releases the Lease if it still is ours.
    async fn release(&mut self) -> Result<(), String> {
        for _ in 0..CONFLICTS {
            let Some(mut lease) = self.read().await? else { return Ok(()) };
            if holder_of(&lease) != Some(&self.identity) {
                return Ok(());
            }
            if let Some(spec) = &mut lease.spec {
                spec.holder_identity = Some(String::new());
            }
            let params = PostParams::default();
            let replaced = self.api.replace(&self.settings.lease, &params, &lease).await;
            if self.wrote(replaced, "update")? {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn holder_of(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
mod tests;
