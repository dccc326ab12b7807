//! One replica's task: start it, watch it, start it again, stop it, or pass it to another process.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay_signals::ProcessEnd;
use forebay_system::Resource;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::guard::Guard;
use super::launch::{Start, launch};
use super::passed::{self, Facts, PassedReplica, RunningFacts};
use super::remnants::Remnants;
use super::{Orders, Phase, ReplicaStatus, Shared, epoch_ms, gpus, output};
use crate::act::targets::backoff::Backoff;
use crate::act::targets::ports;
use crate::supervisor::Report;

/// How much longer than its replica's processes a supervisor may take before it is killed itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause before a start is tried again that failed for want of something of our own.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);

/// Runs the replica until it is told to stop, or passes it on.
pub(super) async fn run(
    shared: Arc<Shared>,
    id: String,
    log: PathBuf,
    given: watch::Sender<Orders>,
) -> Option<PassedReplica> {
    let orders = given.subscribe();
    let status = ReplicaStatus { reason: String::new(), ..ReplicaStatus::asked_for(id) };
    let replica = Replica { shared, log, given, orders, status };
    replica.shared.output.prune();
    replica.run_to_its_end(Life::default()).await
}

/// Goes on with a replica that another process started.
pub(super) fn adopt(
    shared: Arc<Shared>,
    passed: PassedReplica,
    given: watch::Sender<Orders>,
) -> io::Result<impl Future<Output = Option<PassedReplica>> + Send + 'static> {
    let PassedReplica { facts, tether } = passed;
    let orders = given.subscribe();
    let running = match facts.running.zip(tether) {
        Some((running, tether)) => Some(Running::adopt(&shared, running, tether)?),
        None => None,
    };
    let serves = running.as_ref().filter(|running| running.replaced.is_none());
    let status = ReplicaStatus {
        address: serves.map(|running| running.port.address()),
        phase: facts.phase,
        reason: facts.reason,
        asked_ms: Some(facts.started_ms).filter(|ms| *ms > 0),
        started_ms: facts.started_ms,
        ended: facts.ended,
        inherited: facts.ready,
        ..ReplicaStatus::asked_for(facts.id)
    };
    shared.set(status.clone());
    let replica = Replica { shared, log: facts.log, given, orders, status };
    let again_at = passed::deadline(facts.again_in_ms);
    let life = Life { running, again_at, backoff: Backoff::after(facts.failures) };
    Ok(replica.run_to_its_end(life))
}

/// Where a replica is between its starts.
#[derive(Default)]
struct Life {
    running: Option<Running>,
    /// When it is started again, after a death.
    again_at: Option<Instant>,
    backoff: Backoff,
}

struct Replica {
    shared: Arc<Shared>,
    log: PathBuf,
    /// Told from outside; `ready` is taken back here at each start.
    given: watch::Sender<Orders>,
    orders: watch::Receiver<Orders>,
    status: ReplicaStatus,
}

/// One start, with all that is its own as long as its processes live.
struct Running {
    guard: Guard,
    /// The supervisor's PID.
    pid: i32,
    tether: UnixStream,
    /// The supervisor's last report, and what has come of the next.
    said: Option<Report>,
    heard: Vec<u8>,
    mark: String,
    remnants: Remnants,
    /// How long the log was before.
    log_from: u64,
    /// Why it is ended for another start, where it is.
    replaced: Option<String>,
    port: ports::Lease,
    gpu: Option<gpus::Lease>,
}

impl Running {
    fn adopt(shared: &Shared, facts: RunningFacts, tether: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            guard: Guard::Adopted { pid: facts.pid, started: facts.since },
            pid: facts.pid,
            tether: passed::stream(tether)?,
            said: facts.said.and_then(|said| said.parse().ok()),
            heard: facts.heard,
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
            said: self.said.as_ref().map(ToString::to_string),
            heard: self.heard,
            replaced: self.replaced,
        };
        Ok((facts, self.tether.into_std()?.into()))
    }
}

/// What ended a start, or our part in it.
enum Ended {
    Stopped,
    /// It was not started: this process or its machine is short of something.
    Short(Resource),
    Died {
        why: String,
        log_from: Option<u64>,
    },
    PassedOn(Option<Box<Running>>),
}

/// What ended the watch over a start.
enum Watched {
    /// The supervisor is gone.
    Gone,
    PassOn,
}

impl Replica {
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
            let ended = match life.running.take() {
                Some(running) => self.see_out(running).await,
                None => {
                    self.given.send_if_modified(|orders| {
                        orders.replace.take().is_some() | std::mem::take(&mut orders.ready)
                    });
                    self.once().await
                }
            };
            let (why, log_from) = match ended {
                Ended::Stopped => return None,
                Ended::PassedOn(running) => {
                    life.running = running.map(|running| *running);
                    return self.pass_on(life);
                }
                Ended::Died { why, log_from } => (why, log_from),
                Ended::Short(resource) => {
                    self.status.address = None;
                    self.set(Phase::Pending, format!("can't be started: short of {resource}"));
                    life.again_at = Some(Instant::now() + SHORTAGE_PAUSE);
                    continue;
                }
            };
            if self.orders.borrow().ready {
                life.backoff.reset();
            }
            let pause = life.backoff.next(&mut rng);
            self.failed(&why, log_from, pause);
            life.again_at = Some(Instant::now() + pause);
        }
    }

    fn pass_on(&self, life: Life) -> Option<PassedReplica> {
        let orders = self.orders.borrow().clone();
        let running = match life.running.map(Running::pass_on).transpose() {
            Ok(running) => running,
            Err(error) => {
                warn!(pool = self.shared.pool, replica = self.status.id, "is ended: {error}");
                return None;
            }
        };
        let (running, tether) = running.unzip();
        let facts = Facts {
            pool: self.shared.pool.clone(),
            id: self.status.id.clone(),
            log: self.log.clone(),
            command: self.shared.settings.command.clone(),
            phase: self.status.phase,
            reason: self.status.reason.clone(),
            started_ms: self.status.started_ms,
            ended: self.status.ended,
            ready: orders.ready,
            stop: orders.stop,
            failures: life.backoff.failures(),
            again_in_ms: passed::left(life.again_at),
            running,
        };
        Some(PassedReplica { facts, tether })
    }

    /// Starts the replica once and sees it to its end.
    async fn once(&mut self) -> Ended {
        let orders = self.orders.borrow().clone();
        if orders.stop {
            return Ended::Stopped;
        }
        if orders.pass_on {
            return Ended::PassedOn(None);
        }
        match self.start() {
            Ok(running) => self.see_out(running).await,
            Err(error) => {
                let Some(resource) = Resource::of_start(&error) else {
                    return Ended::Died { why: error.to_string(), log_from: None };
                };
                let during = format_args!("cannot start {}: {error}", self.status.id);
                forebay_system::report(resource, &during);
                Ended::Short(resource)
            }
        }
    }

    /// Sees a start to its end.
    async fn see_out(&mut self, mut running: Running) -> Ended {
        if let Watched::PassOn = self.watch(&mut running).await {
            return Ended::PassedOn(Some(Box::new(running)));
        }
        let settled = matches!(
            running.said,
            Some(Report::NotStarted(_) | Report::Exited(_) | Report::Killed(_))
        );
        if !settled {
            running.guard.kill_group(running.pid);
        }
        if let Err(error) = running.guard.ended().await {
            warn!(pool = self.shared.pool, %error, "cannot wait for a supervisor");
        }
        if !settled {
            running.remnants.end().await;
        }
        if self.orders.borrow().stop {
            return Ended::Stopped;
        }
        // What was ended for another was told of when that was ordered.
        if running.replaced.is_none() {
            let end = match &running.said {
                Some(said) if settled => said.end(),
                _ => Some(ProcessEnd::Crashed),
            };
            self.status.ended = self.status.address.zip(end);
        }
        let why = match (running.replaced, running.said) {
            (Some(why), _) => why,
            (None, Some(said)) if settled => said.sentence(),
            (None, _) => "was killed with its supervisor".into(),
        };
        Ended::Died { why, log_from: Some(running.log_from) }
    }

    fn start(&mut self) -> io::Result<Running> {
        let shared = &*self.shared;
        let gpu = shared.gpus.lease()?;
        let (port, ours, theirs) = shared.ports.lease()?;
        // A replica that can't be heard serves all the same.
        let output = output::append(&self.log).or_else(|error| {
            let (pool, replica) = (&shared.pool, &self.status.id);
            warn!(pool, replica, "{error}; what this replica says is lost");
            output::nowhere()
        })?;
        let log_from = output.metadata()?.len();
        let mark = format!("{:032x}", rand::random::<u128>());
        ours.set_nonblocking(true)?;
        let tether = UnixStream::from_std(ours)?;
        let start = Start {
            port: port.port(),
            gpu: gpu.as_ref().map(gpus::Lease::name),
            mark: &mark,
            output,
            tether: theirs,
        };
        let child = launch(&shared.supervisor, &shared.settings, start).map_err(|error| {
            if Resource::of_start(&error).is_some() {
                return error;
            }
            let exe = shared.supervisor.display();
            io::Error::new(error.kind(), format!("cannot start the supervisor {exe}: {error}"))
        })?;
        let pid = child.id().ok_or(io::ErrorKind::NotFound)?.cast_signed();
        let remnants = Remnants::of(pid, &mark);
        (self.status.address, self.status.ended) = (Some(port.address()), None);
        self.status.started_ms = epoch_ms();
        self.set(Phase::Pending, "is being started".into());
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
            said: None,
            heard: Vec::new(),
            mark,
            remnants,
            log_from,
            replaced: None,
            port,
            gpu,
        })
    }

    /// Listens to the supervisor until it is gone, and passes on what the replica is told; or until
    /// another process is to do that.
    async fn watch(&mut self, running: &mut Running) -> Watched {
        let (mut stopping, mut killed) = (running.replaced.is_some(), false);
        let mut deadline = stopping.then(|| Instant::now() + PATIENCE * 2);
        loop {
            let orders = self.orders.borrow_and_update().clone();
            if orders.pass_on {
                return Watched::PassOn;
            }
            // A supervisor that is gone is noticed below.
            if orders.stop && !stopping {
                stopping = true;
                deadline = Instant::now().checked_add(self.shared.settings.stop_timeout + PATIENCE);
                let _ = running.tether.write_all(b"s").await;
                self.set(Phase::Stopping, "was told to stop".into());
            }
            let hung = orders.replace.filter(|it| it.started_ms == self.status.started_ms);
            if let Some(hung) = hung.filter(|_| !stopping) {
                stopping = true;
                deadline = Instant::now().checked_add(PATIENCE * 2);
                // There is nothing that it could finish: this ends all its processes.
                let _ = running.tether.shutdown().await;
                let address = self.status.address.take();
                self.status.ended = address.map(|address| (address, ProcessEnd::Stopped));
                self.set(Phase::Failed, format!("{}, and is ended", hung.why));
                running.replaced = Some(hung.why);
            }
            let too_long = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                read = running.tether.read_buf(&mut running.heard) => {
                    if !matches!(read, Ok(1..)) {
                        return Watched::Gone;
                    }
                    while let Some(line) = next_line(&mut running.heard) {
                        let Ok(report) = line.parse::<Report>() else { continue };
                        if matches!(report, Report::Started(_)) && !stopping {
                            self.set(Phase::Running, report.sentence());
                        }
                        running.said = Some(report);
                    }
                }
                told = self.orders.changed() => debug_assert!(told.is_ok(), "holds a sender"),
                () = too_long => {
                    deadline = None;
                    if !killed {
                        killed = true;
                        warn!(
                            pool = self.shared.pool,
                            replica = self.status.id,
                            "the supervisor does not stop and is killed"
                        );
                        running.guard.kill();
                    }
                }
            }
        }
    }

    fn failed(&mut self, why: &str, log_from: Option<u64>, pause: Duration) {
        self.status.address = None;
        let reason = format!("{why}, again in {} s", pause.as_millis().div_ceil(1000));
        warn!(
            pool = self.shared.pool,
            replica = self.status.id,
            "replica failed: {reason}{}",
            log_from.map(|from| last_output(&self.log, from)).unwrap_or_default()
        );
        self.set(Phase::Failed, reason);
    }

    fn set(&mut self, phase: Phase, reason: String) {
        (self.status.phase, self.status.reason) = (phase, reason);
        self.shared.set(self.status.clone());
    }
}

impl Drop for Replica {
    /// Also when the task panicked: a replica that nobody looks after counts for nothing.
    fn drop(&mut self) {
        self.shared.remove(&self.status.id);
    }
}

/// The end of the replica's output, as the end of a message.
fn last_output(log: &Path, from: u64) -> String {
    match output::last_lines(log, from) {
        Ok(lines) if lines.is_empty() => format!("; it wrote nothing to {}", log.display()),
        Ok(lines) => format!("; the last lines of {}:{lines}", log.display()),
        Err(error) => format!("; cannot read {}: {error}", log.display()),
    }
}

fn next_line(heard: &mut Vec<u8>) -> Option<String> {
    let end = heard.iter().position(|byte| *byte == b'\n')?;
    let line: Vec<u8> = heard.drain(..=end).collect();
    Some(String::from_utf8_lossy(&line[..end]).into_owned())
}
