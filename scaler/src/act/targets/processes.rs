//! Replicas as processes on this machine.
//!
//! Each replica has a task here, which leases it a port (and a GPU), starts its supervisor, puts
//! its output in a file, starts it again with back-off when it dies, and stops it when told. Whether
//! a replica is healthy the gateways judge, and what is to stop has been drained before. A process
//! that takes over from this one gets the replicas as they run.

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
pub use super::{Hung, Phase, ReplicaStatus, Replicas};
use super::{Target, epoch_ms, ports::Ports};

mod gpus;
mod guard;
mod launch;
mod output;
mod passed;
mod remnants;
mod replica;

/// How long the replicas' tasks may take to let go of them: one may be busy with an end.
const LET_GO: Duration = Duration::from_secs(5);

/// The processes of one pool. Dropping it ends them within seconds; [`Processes::shutdown`] lets
/// them end well.
#[derive(Debug)]
pub struct Processes {
    shared: Arc<Shared>,
    runtime: Handle,
    tasks: Mutex<Option<JoinSet<Option<PassedReplica>>>>,
}

/// What every replica's task needs.
#[derive(Debug)]
struct Shared {
    pool: String,
    settings: config::Processes,
    supervisor: PathBuf,
    ports: Ports,
    gpus: Gpus,
    output: Output,
    status: watch::Sender<Replicas>,
    /// What each replica has been told; present as long as its task runs.
    orders: Mutex<BTreeMap<String, watch::Sender<Orders>>>,
}

/// What a replica has been told.
#[derive(Clone, Debug, Default)]
struct Orders {
    /// A gateway found this start healthy.
    ready: bool,
    /// It was drained and is to stop.
    stop: bool,
    /// One of its starts is to end, and another to begin.
    replace: Option<Hung>,
    /// Another process looks after it from now on.
    pass_on: bool,
}

impl Processes {
    /// Prepares to start replicas of `pool`, each under `supervisor_exe supervise`.
    ///
    /// Makes this process a child subreaper: if a supervisor is killed, what it looked after
    /// comes here and can be ended.
    ///
    /// # Errors
    /// Outside of a runtime, or where there is no place for the replicas' output.
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

    /// Sees to it that there are `count` replicas which are not stopping; those that failed and
    /// wait to be started again count. Only ever adds, and returns at once.
    ///
    /// Must not be called while a [`watch::Ref`] of [`Processes::replicas`] is held.
    pub fn ensure(&self, count: u32) {
        let mut tasks = self.tasks.lock();
        let Some(tasks) = tasks.as_mut() else { return };
        while let Some(done) = tasks.try_join_next() {
            complain(done);
        }
        let mut orders = self.shared.orders.lock();
        let going_on = orders.values().filter(|orders| !orders.borrow().stop).count();
        for _ in going_on..count as usize {
            let (id, log) = std::iter::repeat_with(|| self.shared.output.next_replica())
                // One that was taken over may have its name from another folder.
                .find(|(id, _)| !orders.contains_key(id))
                .expect("it never ends");
            let given = watch::Sender::new(Orders::default());
            orders.insert(id.clone(), given.clone());
            self.shared.set(ReplicaStatus::asked_for(&id));
            tasks.spawn_on(replica::run(self.shared.clone(), id, log, given), &self.runtime);
        }
    }

    /// A gateway found the replica healthy: its start is over, and its failures are forgotten.
    pub fn ready(&self, id: &str) {
        self.shared.tell(id, |orders| !std::mem::replace(&mut orders.ready, true));
    }

    /// The replica is drained: SIGTERM, then SIGKILL after `stopTimeout`. One that failed and
    /// waits to be started again is dropped.
    pub fn stop(&self, id: &str) {
        self.shared.tell(id, |orders| !std::mem::replace(&mut orders.stop, true));
    }

    /// Each of these is of no use any more: all its processes are ended, within seconds, and it is
    /// started anew as after a failure.
    pub fn replace(&self, hung: &BTreeMap<String, Hung>) {
        for (id, hung) in hung {
            self.shared.tell(id, |orders| {
                let new = orders.replace.as_ref() != Some(hung);
                orders.replace = Some(hung.clone());
                new
            });
        }
    }

    /// The replicas, now and as they change. One that has stopped is gone from it.
    #[must_use]
    pub fn replicas(&self) -> watch::Receiver<Replicas> {
        self.shared.status.subscribe()
    }

    /// Lets go of every replica, for another process, or for [`Processes::adopt`].
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
                failed => complain(failed),
            }
        }
        // Those are on their way out.
        tasks.detach_all();
        passed
    }

    /// Looks after a replica that another process started.
    ///
    /// # Errors
    /// Its tether can't be used; it ends then.
    pub fn adopt(&self, passed: PassedReplica) -> io::Result<()> {
        let mut tasks = self.tasks.lock();
        let Some(tasks) = tasks.as_mut() else { return Ok(()) };
        let (id, pool) = (passed.facts.id.clone(), &self.shared.pool);
        if passed.facts.command != self.shared.settings.command {
            tracing::info!("{pool}: replica {id} runs on by the command that it was started with");
        }
        let (ready, stop) = (passed.facts.ready, passed.facts.stop);
        let given = watch::Sender::new(Orders { ready, stop, ..Orders::default() });
        let task = replica::adopt(self.shared.clone(), passed, given.clone())?;
        self.shared.orders.lock().insert(id, given);
        tasks.spawn_on(task, &self.runtime);
        Ok(())
    }

    /// Stops every replica, and returns when no process is left. Nothing is started from then on.
    ///
    /// Dropped before, the rest are ended at once.
    pub async fn shutdown(&self) {
        let Some(mut tasks) = self.tasks.lock().take() else { return };
        for orders in self.shared.orders.lock().values() {
            orders.send_modify(|orders| orders.stop = true);
        }
        while let Some(done) = tasks.join_next().await {
            complain(done);
        }
    }
}

impl Target for Processes {
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
    fn tell(&self, id: &str, change: impl FnOnce(&mut Orders) -> bool) {
        if let Some(orders) = self.orders.lock().get(id) {
            orders.send_if_modified(change);
        }
    }

    fn set(&self, status: ReplicaStatus) {
        self.status.send_modify(|replicas| {
            Arc::make_mut(replicas).insert(status.id.clone(), status);
        });
    }

    /// The replica's end: it is forgotten.
    fn remove(&self, id: &str) {
        self.orders.lock().remove(id);
        self.status.send_modify(|replicas| {
            Arc::make_mut(replicas).remove(id);
        });
    }
}

fn complain<T>(done: Result<T, JoinError>) {
    if let Err(error) = done
        && error.is_panic()
    {
        tracing::error!(%error, "a replica's task panicked");
    }
}
