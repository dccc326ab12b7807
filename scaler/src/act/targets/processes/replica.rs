//! One replica's task: start it, watch it, restart it, stop it, or pass it to another process.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forebay_base::backoff::Backoff;
use forebay_base::shortage::Resource;
use forebay_config::Millis;
use forebay_signals::ProcessEnd;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::death::Death;
use super::guard::Guard;
use super::launch::{Launch, launch};
use super::passed::{self, Facts, PassedReplica, Retry, RunningFacts};
use super::remnants::Remnants;
use super::{ReplicaOrders, ReplicaStatus, Shared, epoch_time, gpus, output};
use crate::act::targets::RESTARTS;
use crate::act::targets::ports;
use crate::decide::Condition;
use crate::supervisor::Report;

/// Time that a supervisor may take beyond its replica's processes before it is killed itself.
const OVERTIME: Duration = Duration::from_secs(5);

/// Pause before another start when this process or its machine was short of something.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);

/// Runs the replica until it has to stop, or passes it on.
pub(super) async fn run(
    shared: Arc<Shared>,
    id: String,
    log: PathBuf,
    given: watch::Sender<ReplicaOrders>,
) -> Option<PassedReplica> {
    let orders = given.subscribe();
    let status = ReplicaStatus { reason: String::new(), ..ReplicaStatus::requested(id) };
    let replica = ReplicaTask { shared, log, given, orders, status };
    replica.shared.output.prune();
    replica
        .run_to_its_end(Life { running: None, again_at: None, backoff: RESTARTS, failed_starts: 0 })
        .await
}

/// Takes over a replica that another process started.
pub(super) fn adopt(
    shared: Arc<Shared>,
    passed: PassedReplica,
    given: watch::Sender<ReplicaOrders>,
) -> io::Result<impl Future<Output = Option<PassedReplica>> + Send + 'static> {
    let PassedReplica { facts, tether } = passed;
    let orders = given.subscribe();
    let running = match facts.running.zip(tether) {
        Some((running, tether)) => Some(Running::adopt(&shared, running, tether)?),
        None => None,
    };
    let started_at = Some(Millis::new(facts.started_ms)).filter(|at| *at > Millis::ZERO);
    let serves = running.as_ref().filter(|running| running.replaced.is_none());
    let status = ReplicaStatus {
        address: serves.map(|running| running.port.address()),
        condition: facts.condition,
        reason: facts.reason,
        requested_at: started_at,
        started_at,
        ended: facts.ended,
        inherited: facts.ready,
        ..ReplicaStatus::requested(facts.id)
    };
    shared.set(status.clone());
    let replica = ReplicaTask { shared, log: facts.log, given, orders, status };
    let again_at = passed::deadline(facts.retry.again_in_ms);
    let Retry { failures, failed_starts, .. } = facts.retry;
    let life = Life { running, again_at, backoff: RESTARTS.after(failures), failed_starts };
    Ok(replica.run_to_its_end(life))
}

/// The state of a replica across its starts.
struct Life {
    running: Option<Running>,
    /// Time of the next start, after a death.
    again_at: Option<Instant>,
    backoff: Backoff,
    /// Starts in a row that no gateway found healthy.
    failed_starts: u32,
}

struct ReplicaTask {
    shared: Arc<Shared>,
    log: PathBuf,
    /// The orders from outside. `ready` is reset here at each start.
    given: watch::Sender<ReplicaOrders>,
    orders: watch::Receiver<ReplicaOrders>,
    status: ReplicaStatus,
}

/// One start, with everything that lasts as long as its processes.
struct Running {
    guard: Guard,
    /// The supervisor's PID.
    pid: i32,
    tether: UnixStream,
    /// The supervisor's last report, and the received part of the next.
    last_report: Option<Report>,
    received: Vec<u8>,
    mark: String,
    remnants: Remnants,
    /// Length of the log before this start.
    log_from: u64,
    /// The reason why it is being replaced, if it is.
    replaced: Option<String>,
    port: ports::PortLease,
    gpu: Option<gpus::GpuLease>,
}

impl Running {
    fn adopt(shared: &Shared, facts: RunningFacts, tether: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            guard: Guard::Adopted { pid: facts.pid, started: facts.since },
            pid: facts.pid,
            tether: passed::stream(tether)?,
            last_report: facts.last_report.and_then(|report| report.parse().ok()),
            received: facts.received,
            remnants: Remnants::since(facts.pid, facts.since, &facts.mark),
            mark: facts.mark,
            log_from: facts.log_from,
            replaced: facts.replaced,
            port: shared.ports.adopt(facts.port),
            gpu: facts.gpu.map(|gpu| shared.gpus.adopt(gpu)),
        })
    }

    fn pass_on(self) -> io::Result<(RunningFacts, OwnedFd)> {
        let facts = RunningFacts {
            pid: self.pid,
            since: self.remnants.started(),
            mark: self.mark,
            log_from: self.log_from,
            port: self.port.port(),
            gpu: self.gpu.as_ref().map(|gpu| gpu.name().to_owned()),
            last_report: self.last_report.as_ref().map(ToString::to_string),
            received: self.received,
            replaced: self.replaced,
        };
        Ok((facts, self.tether.into_std()?.into()))
    }
}

/// The end of a start, or of this task's part in it.
enum StartEnd {
    Stopped,
    /// Not started: this process or its machine is short of something.
    Short(Resource),
    Died(Death),
    PassedOn(Option<Box<Running>>),
}

/// The end of the watch over a start.
enum WatchEnd {
    /// The supervisor is gone.
    Gone,
    PassOn,
}

impl ReplicaTask {
    async fn run_to_its_end(mut self, life: Life) -> Option<PassedReplica> {
        let passed = self.live(life).await;
        if passed.is_none() {
            info!(pool = self.shared.pool, replica = self.status.id, "replica stopped");
        }
        passed
    }

    async fn live(&mut self, mut life: Life) -> Option<PassedReplica> {
        let mut rng = SmallRng::from_os_rng();
        loop {
            if let Some(again_at) = life.again_at.take() {
                tokio::select! {
                    _ = self.orders.wait_for(|orders| orders.stop || orders.pass_on) => {}
                    () = sleep_until(again_at) => {}
                }
                let orders = self.orders.borrow().clone();
                if orders.stop {
                    return None;
                }
                if orders.pass_on {
                    life.again_at = Some(again_at);
                    return self.pass_on(life);
                }
            }
            let end = match life.running.take() {
                Some(running) => self.see_out(running).await,
                None => {
                    self.given.send_if_modified(|orders| {
                        orders.replace.take().is_some() | std::mem::take(&mut orders.ready)
                    });
                    self.once().await
                }
            };
            let death = match end {
                StartEnd::Stopped => return None,
                StartEnd::PassedOn(running) => {
                    life.running = running.map(|running| *running);
                    return self.pass_on(life);
                }
                StartEnd::Died(death) => death,
                StartEnd::Short(resource) => {
                    self.status.address = None;
                    self.set(Condition::Pending, format!("can't be started: short of {resource}"));
                    life.again_at = Some(Instant::now() + SHORTAGE_PAUSE);
                    continue;
                }
            };
            life.failed_starts += 1;
            if self.orders.borrow().ready {
                life.backoff.reset();
                life.failed_starts = 0;
            }
            let pause = life.backoff.next(&mut rng);
            self.status.start_failure = death.start_failure(life.failed_starts, &self.log, pause);
            self.failed(&death, pause);
            life.again_at = Some(Instant::now() + pause);
        }
    }

    fn pass_on(&self, life: Life) -> Option<PassedReplica> {
        let orders = self.orders.borrow().clone();
        let running = match life.running.map(Running::pass_on).transpose() {
            Ok(running) => running,
            Err(error) => {
                warn!(
                    pool = self.shared.pool,
                    replica = self.status.id,
                    "can't be passed on: {error}"
                );
                return None;
            }
        };
        let (running, tether) = running.unzip();
        let facts = Facts {
            pool: self.shared.pool.clone(),
            id: self.status.id.clone(),
            log: self.log.clone(),
            command: self.shared.settings.command.clone(),
            condition: self.status.condition,
            reason: self.status.reason.clone(),
            started_ms: self.status.started_at.map_or(0, Millis::get),
            ended: self.status.ended,
            ready: orders.ready,
            stop: orders.stop,
            retry: Retry {
                failures: life.backoff.failures(),
                failed_starts: life.failed_starts,
                again_in_ms: passed::left(life.again_at),
            },
            running,
        };
        Some(PassedReplica { facts, tether })
    }

    /// Starts the replica once and follows it to its end.
    async fn once(&mut self) -> StartEnd {
        let orders = self.orders.borrow().clone();
        if orders.stop {
            return StartEnd::Stopped;
        }
        if orders.pass_on {
            return StartEnd::PassedOn(None);
        }
        match self.start() {
            Ok(running) => self.see_out(running).await,
            Err(error) => {
                let Some(resource) = Resource::of_start(&error) else {
                    return StartEnd::Died(Death::unborn(&error));
                };
                let during = format_args!("can't start {}: {error}", self.status.id);
                forebay_base::shortage::report(resource, &during);
                StartEnd::Short(resource)
            }
        }
    }

    /// Follows a start to its end.
    async fn see_out(&mut self, mut running: Running) -> StartEnd {
        if let WatchEnd::PassOn = self.watch(&mut running).await {
            return StartEnd::PassedOn(Some(Box::new(running)));
        }
        let settled = matches!(
            running.last_report,
            Some(Report::NotStarted(_) | Report::Exited(_) | Report::Killed(_))
        );
        if !settled {
            running.guard.kill_group(running.pid);
        }
        if let Err(error) = running.guard.ended().await {
            warn!(pool = self.shared.pool, %error, "can't wait for a supervisor");
        }
        if !settled {
            running.remnants.end().await;
        }
        if self.orders.borrow().stop {
            return StartEnd::Stopped;
        }
        // The end of a replaced start was reported when the replacement was ordered.
        if running.replaced.is_none() {
            let end = match &running.last_report {
                Some(report) if settled => report.end(),
                _ => Some(ProcessEnd::Crashed),
            };
            self.status.ended = self.status.address.zip(end);
        }
        let from = running.log_from;
        StartEnd::Died(match (running.replaced, running.last_report) {
            (Some(why), _) => Death::replaced(why, from),
            (None, Some(report)) if settled => Death::reported(&report, from),
            (None, _) => Death::with_supervisor(from),
        })
    }

    fn start(&mut self) -> io::Result<Running> {
        let shared = &*self.shared;
        let gpu = shared.gpus.lease()?;
        let (port, ours, theirs) = shared.ports.lease()?;
        // A replica serves even if its output can't be kept.
        let output = output::append(&self.log).or_else(|error| {
            let (pool, replica) = (&shared.pool, &self.status.id);
            warn!(pool, replica, "{error}; the output of this replica is lost");
            output::nowhere()
        })?;
        let log_from = output.metadata()?.len();
        let mark = format!("{:032x}", rand::random::<u128>());
        ours.set_nonblocking(true)?;
        let tether = UnixStream::from_std(ours)?;
        let start = Launch {
            port: port.port(),
            gpu: gpu.as_ref().map(gpus::GpuLease::name),
            mark: &mark,
            output,
            tether: theirs,
        };
        let child = launch(&shared.supervisor, &shared.settings, start).map_err(|error| {
            if Resource::of_start(&error).is_some() {
                return error;
            }
            let exe = shared.supervisor.display();
            io::Error::new(error.kind(), format!("can't start the supervisor {exe}: {error}"))
        })?;
        let pid = child.id().ok_or(io::ErrorKind::NotFound)?.cast_signed();
        let remnants = Remnants::of(pid, &mark);
        (self.status.address, self.status.ended) = (Some(port.address()), None);
        self.status.started_at = Some(epoch_time());
        if let Some(failure) = &mut self.status.start_failure {
            failure.next_try = None;
        }
        self.set(Condition::Pending, "is being started".into());
        info!(
            pool = self.shared.pool,
            replica = self.status.id,
            "replica starting on {}, its output goes to {}",
            port.address(),
            self.log.display()
        );
        Ok(Running {
            guard: Guard::Child(child),
            pid,
            tether,
            last_report: None,
            received: Vec::new(),
            mark,
            remnants,
            log_from,
            replaced: None,
            port,
            gpu,
        })
    }

    /// Reads the supervisor's reports and carries out the replica's orders, until the supervisor is
    /// gone, or another process takes over.
    async fn watch(&mut self, running: &mut Running) -> WatchEnd {
        let (mut stopping, mut killed) = (running.replaced.is_some(), false);
        let mut deadline = stopping.then(|| Instant::now() + OVERTIME * 2);
        loop {
            let orders = self.orders.borrow_and_update().clone();
            if orders.pass_on {
                return WatchEnd::PassOn;
            }
            if orders.ready && self.status.start_failure.take().is_some() {
                self.shared.set(self.status.clone());
            }
            // A supervisor that is gone is noticed below.
            if orders.stop && !stopping {
                stopping = true;
                deadline = Instant::now().checked_add(self.shared.settings.stop_timeout + OVERTIME);
                let _ = running.tether.write_all(b"s").await;
                self.set(Condition::Draining, "is stopping".into());
            }
            let hung = orders.replace.filter(|hung| hung.started_at == self.status.started_at);
            if let Some(hung) = hung.filter(|_| !stopping) {
                stopping = true;
                deadline = Instant::now().checked_add(OVERTIME * 2);
                // It has nothing to finish: closing the tether ends all its processes.
                let _ = running.tether.shutdown().await;
                let address = self.status.address.take();
                self.status.ended = address.map(|address| (address, ProcessEnd::Stopped));
                self.set(Condition::Failed, format!("{}, and is ended", hung.why));
                running.replaced = Some(hung.why);
            }
            let too_long = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                read = running.tether.read_buf(&mut running.received) => {
                    if !matches!(read, Ok(1..)) {
                        return WatchEnd::Gone;
                    }
                    while let Some(line) = next_line(&mut running.received) {
                        let Ok(report) = line.parse::<Report>() else { continue };
                        if matches!(report, Report::Started(_)) && !stopping {
                            self.set(Condition::Starting, report.sentence());
                        }
                        running.last_report = Some(report);
                    }
                }
                changed = self.orders.changed() => debug_assert!(changed.is_ok(), "holds a sender"),
                () = too_long => {
                    deadline = None;
                    if !killed {
                        killed = true;
                        warn!(
                            pool = self.shared.pool,
                            replica = self.status.id,
                            "the supervisor does not stop and gets killed"
                        );
                        running.guard.kill();
                    }
                }
            }
        }
    }

    fn failed(&mut self, death: &Death, pause: Duration) {
        self.status.address = None;
        let seconds = pause.as_millis().div_ceil(1000);
        let reason = format!("{}, again in {seconds} s", death.why());
        warn!(
            pool = self.shared.pool,
            replica = self.status.id,
            "replica failed: {reason}{}",
            death.last_output(&self.log)
        );
        self.set(Condition::Failed, reason);
    }

    fn set(&mut self, condition: Condition, reason: String) {
        (self.status.condition, self.status.reason) = (condition, reason);
        self.shared.set(self.status.clone());
    }
}

impl Drop for ReplicaTask {
    /// Runs also if the task panicked: a replica without a task does not count.
    fn drop(&mut self) {
        self.shared.remove(&self.status.id);
    }
}

fn next_line(received: &mut Vec<u8>) -> Option<String> {
    let end = received.iter().position(|byte| *byte == b'\n')?;
    let line: Vec<u8> = received.drain(..=end).collect();
    Some(String::from_utf8_lossy(&line[..end]).into_owned())
}
