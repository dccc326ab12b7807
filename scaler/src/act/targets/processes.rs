//! Replicas as processes on this machine.
//!
//! Each replica has a task. It leases a port (and a GPU), starts the replica's supervisor, writes the
//! output to a file, starts the replica again after a death, with back-off, and stops it on order.
//! Gateways judge its health, and it is drained before it stops. A process that takes over from this
//! one gets the replicas as they run.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forebay_config as config;
use nix::sys::prctl;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};

use self::gpus::Gpus;
use self::output::Output;
pub use self::passed::{Facts, PassedReplica};
pub use super::{Hung, ReplicaStatus, Replicas};
use super::{ScaleTarget, epoch_time, ports::Ports};

mod death;
mod gpus;
mod guard;
mod launch;
mod output;
mod passed;
mod remnants;
mod replica;

/// Limit for the replicas' tasks to release them: one may be busy with an end.
const LET_GO: Duration = Duration::from_secs(5);

/// The processes of one pool. If dropped, they are ended within seconds; [`Processes::shutdown`]
/// lets them stop in order.
#[derive(Debug)]
pub struct Processes {
    shared: Arc<Shared>,
    runtime: Handle,
    tasks: Mutex<Option<JoinSet<Option<PassedReplica>>>>,
}

/// The state that all replicas' tasks share.
#[derive(Debug)]
struct Shared {
    pool: String,
    settings: config::Processes,
    supervisor: PathBuf,
    ports: Ports,
    gpus: Gpus,
    output: Output,
    status: watch::Sender<Replicas>,
    /// Each replica's orders; present while its task runs.
    orders: Mutex<BTreeMap<String, watch::Sender<ReplicaOrders>>>,
}

/// The orders of one replica.
#[derive(Clone, Debug, Default)]
struct ReplicaOrders {
    /// A gateway found this start healthy.
    ready: bool,
    /// It is drained and has to stop.
    stop: bool,
    /// One of its starts has to end, and the next one to begin.
    replace: Option<Hung>,
    /// Another process takes over.
    pass_on: bool,
}

impl Processes {
    /// Prepares to start replicas of `pool`, each under `supervisor_exe supervise`.
    ///
    /// Makes this process a child subreaper: if a supervisor is killed, its descendants become
    /// children of this process, which can end them.
    ///
    /// # Errors
    /// There is no runtime, or no place for the replicas' output.
    pub fn start(
        pool: &config::Pool,
        settings: &config::Processes,
        supervisor_exe: PathBuf,
    ) -> io::Result<Self> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        prctl::set_child_subreaper(true)?;
        let shared = Shared {
            pool: pool.name.clone(),
            ports: Ports::new(settings.ports, rand::random()),
            gpus: Gpus::new(&settings.gpus),
            output: Output::open(settings.log_dir.as_deref(), &pool.name)?,
            settings: settings.clone(),
            supervisor: supervisor_exe,
            status: watch::Sender::default(),
            orders: Mutex::default(),
        };
        let tasks = Mutex::new(Some(JoinSet::new()));
        Ok(Self { shared: Arc::new(shared), runtime, tasks })
    }

    /// Ensures that `count` replicas are not stopping; failed ones that wait for their next start
    /// count. Only ever adds replicas, and returns at once.
    ///
    /// Must not be called while a [`watch::Ref`] of [`Processes::replicas`] is borrowed.
    pub fn ensure(&self, count: u32) {
        let mut tasks = self.tasks.lock();
        let Some(tasks) = tasks.as_mut() else { return };
        while let Some(done) = tasks.try_join_next() {
            report_panic(done);
        }
        let mut orders = self.shared.orders.lock();
        let going_on = orders.values().filter(|orders| !orders.borrow().stop).count();
        for _ in going_on..count as usize {
            let (id, log) = std::iter::repeat_with(|| self.shared.output.next_replica())
                // A replica that was taken over may have its name from another folder.
                .find(|(id, _)| !orders.contains_key(id))
                .expect("the iterator never ends");
            let given = watch::Sender::new(ReplicaOrders::default());
            orders.insert(id.clone(), given.clone());
            self.shared.set(ReplicaStatus::requested(&id));
            tasks.spawn_on(replica::run(self.shared.clone(), id, log, given), &self.runtime);
        }
    }

    /// A gateway found the replica healthy: its start is over, and its failures are reset.
    pub fn ready(&self, id: &str) {
        self.shared.order(id, |orders| !std::mem::replace(&mut orders.ready, true));
    }

    /// The replica is drained: SIGTERM, then SIGKILL after `stopTimeout`. A failed replica that
    /// waits for its next start is dropped.
    pub fn stop(&self, id: &str) {
        self.shared.order(id, |orders| !std::mem::replace(&mut orders.stop, true));
    }

    /// Each of these replicas hangs: all its processes are ended within seconds, and it is started
    /// anew as after a failure.
    pub fn replace(&self, hung: &BTreeMap<String, Hung>) {
        for (id, hung) in hung {
            self.shared.order(id, |orders| {
                let new = orders.replace.as_ref() != Some(hung);
                orders.replace = Some(hung.clone());
                new
            });
        }
    }

    /// The replicas as they change. A replica that has stopped is not among them.
    #[must_use]
    pub fn replicas(&self) -> watch::Receiver<Replicas> {
        self.shared.status.subscribe()
    }

    /// The file with the output of one of its replicas; `None` if it has no such replica.
    #[must_use]
    pub fn output(&self, id: &str) -> Option<PathBuf> {
        let is_ours = self.shared.orders.lock().contains_key(id);
        is_ours.then(|| self.shared.output.file(id))
    }

    /// Releases every replica, for another process or for [`Processes::adopt`].
    pub async fn hand_over(&self) -> Vec<PassedReplica> {
        let Some(mut tasks) = self.tasks.lock().as_mut().map(std::mem::take) else {
            return Vec::new();
        };
        for orders in self.shared.orders.lock().values() {
            orders.send_modify(|orders| orders.pass_on = true);
        }
        let (until, mut passed) = (Instant::now() + LET_GO, Vec::new());
        while let Ok(Some(done)) = timeout_at(until, tasks.join_next()).await {
            match done {
                Ok(replica) => passed.extend(replica),
                failed => report_panic(failed),
            }
        }
        // The others are ending.
        tasks.detach_all();
        passed
    }

    /// Takes over a replica that another process started.
    ///
    /// # Errors
    /// Its tether can't be used. The replica ends then.
    pub fn adopt(&self, passed: PassedReplica) -> io::Result<()> {
        let mut tasks = self.tasks.lock();
        let Some(tasks) = tasks.as_mut() else { return Ok(()) };
        let (id, pool) = (passed.facts.id.clone(), &self.shared.pool);
        if passed.facts.command != self.shared.settings.command {
            tracing::info!(
                "{pool}: replica {id} keeps running with the command it was started with"
            );
        }
        let (ready, stop) = (passed.facts.ready, passed.facts.stop);
        let given = watch::Sender::new(ReplicaOrders { ready, stop, ..ReplicaOrders::default() });
        let task = replica::adopt(self.shared.clone(), passed, given.clone())?;
        self.shared.orders.lock().insert(id, given);
        tasks.spawn_on(task, &self.runtime);
        Ok(())
    }

    /// Stops every replica, and returns when no process is left. Nothing starts from then on.
    ///
    /// If this future is dropped before, the remaining replicas are ended at once.
    pub async fn shutdown(&self) {
        let Some(mut tasks) = self.tasks.lock().take() else { return };
        for orders in self.shared.orders.lock().values() {
            orders.send_modify(|orders| orders.stop = true);
        }
        while let Some(done) = tasks.join_next().await {
            report_panic(done);
        }
    }
}

impl ScaleTarget for Processes {
    fn ensure(&self, count: u32) {
        Self::ensure(self, count);
    }
    fn ready(&self, id: &str) {
        Self::ready(self, id);
    }
    fn stop(&self, id: &str) {
        Self::stop(self, id);
    }
    fn replace(&self, hung: &BTreeMap<String, Hung>) {
        Self::replace(self, hung);
    }
}

impl Shared {
    fn order(&self, id: &str, change: impl FnOnce(&mut ReplicaOrders) -> bool) {
        if let Some(orders) = self.orders.lock().get(id) {
            orders.send_if_modified(change);
        }
    }

    fn set(&self, status: ReplicaStatus) {
        self.status.send_modify(|replicas| {
            Arc::make_mut(replicas).insert(status.id.clone(), status);
        });
    }

    /// Forgets a replica that has ended.
    fn remove(&self, id: &str) {
        self.orders.lock().remove(id);
        self.status.send_modify(|replicas| {
            Arc::make_mut(replicas).remove(id);
        });
    }
}

fn report_panic<T>(done: Result<T, JoinError>) {
    if let Err(error) = done
        && error.is_panic()
    {
        tracing::error!(%error, "a replica's task panicked");
    }
}
