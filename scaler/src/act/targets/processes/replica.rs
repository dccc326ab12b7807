//! One replica's task: start it, watch it, start it again, stop it.

use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay_signals::ProcessEnd;
use forebay_system::Resource;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::launch::{Start, launch};
use super::remnants::Remnants;
use super::{Orders, Phase, ReplicaStatus, Shared, epoch_ms, gpus, output};
use crate::act::targets::backoff::Backoff;
use crate::act::targets::ports;
use crate::supervisor::Report;

/// How much longer than its replica's processes a supervisor may take before it is killed itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause before a start is tried again that failed for want of something of our own.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);

/// Runs the replica until it is told to stop.
pub(super) async fn run(
    shared: Arc<Shared>,
    id: String,
    log: PathBuf,
    given: watch::Sender<Orders>,
) {
    let orders = given.subscribe();
    let status = ReplicaStatus { reason: String::new(), ..ReplicaStatus::asked_for(id) };
    let mut replica = Replica { shared, log, given, orders, status };
    replica.shared.output.prune();
    replica.until_stopped().await;
    info!(pool = replica.shared.pool, replica = replica.status.id, "replica stopped");
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
    child: Child,
    /// The supervisor's PID.
    pid: i32,
    tether: UnixStream,
    remnants: Remnants,
    /// How long the log was before.
    log_from: u64,
    _port: ports::Lease,
    _gpu: Option<gpus::Lease>,
}

/// What ended a start.
enum Ended {
    Stopped,
    /// It was not started: this process or its machine is short of something.
    Short(Resource),
    Died {
        why: String,
        log_from: Option<u64>,
    },
}

impl Replica {
    async fn until_stopped(&mut self) {
        let mut backoff = Backoff::default();
        let mut rng = SmallRng::from_os_rng();
        loop {
            self.given.send_if_modified(|orders| {
                orders.replace.take().is_some() | std::mem::take(&mut orders.ready)
            });
            let (why, log_from) = match self.once().await {
                Ended::Stopped => return,
                Ended::Died { why, log_from } => (why, log_from),
                Ended::Short(resource) => {
                    self.status.address = None;
                    self.set(Phase::Pending, format!("can't be started: short of {resource}"));
                    if self.stopped_within(SHORTAGE_PAUSE).await {
                        return;
                    }
                    continue;
                }
            };
            if self.orders.borrow().ready {
                backoff.reset();
            }
            let pause = backoff.next(&mut rng);
            self.failed(&why, log_from, pause);
            if self.stopped_within(pause).await {
                return;
            }
        }
    }

    /// Waits; whether it is told to stop meanwhile.
    async fn stopped_within(&mut self, pause: Duration) -> bool {
        tokio::select! {
            _ = self.orders.wait_for(|orders| orders.stop) => true,
            () = sleep(pause) => false,
        }
    }

    /// Starts the replica once and sees it to its end.
    async fn once(&mut self) -> Ended {
        if self.orders.borrow().stop {
            return Ended::Stopped;
        }
        let mut running = match self.start() {
            Ok(running) => running,
            Err(error) => {
                let Some(resource) = Resource::of_start(&error) else {
                    return Ended::Died { why: error.to_string(), log_from: None };
                };
                let during = format_args!("cannot start {}: {error}", self.status.id);
                forebay_system::report(resource, &during);
                return Ended::Short(resource);
            }
        };
        let (said, replaced) = self.watch(&mut running).await;
        let settled =
            matches!(said, Some(Report::NotStarted(_) | Report::Exited(_) | Report::Killed(_)));
        if !settled {
            // The supervisor is dead and not reaped, so the group's name is still its own.
            let _ = killpg(Pid::from_raw(running.pid), Signal::SIGKILL);
        }
        if let Err(error) = running.child.wait().await {
            warn!(pool = self.shared.pool, %error, "cannot wait for a supervisor");
        }
        if !settled {
            running.remnants.end().await;
        }
        if self.orders.borrow().stop {
            return Ended::Stopped;
        }
        // What was ended for another was told of when that was ordered.
        if replaced.is_none() {
            let end = match &said {
                Some(said) if settled => said.end(),
                _ => Some(ProcessEnd::Crashed),
            };
            self.status.ended = self.status.address.zip(end);
        }
        let why = match (replaced, said) {
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
        Ok(Running { child, pid, tether, remnants, log_from, _port: port, _gpu: gpu })
    }

    /// Listens to the supervisor until it is gone, and passes on what the replica is told.
    /// Returns the last report, and why the start was ended for another.
    async fn watch(&mut self, running: &mut Running) -> (Option<Report>, Option<String>) {
        let (mut said, mut heard) = (None, Vec::new());
        let (mut stopping, mut replaced, mut killed) = (false, None, false);
        let mut deadline = None;
        loop {
            let orders = self.orders.borrow_and_update().clone();
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
                replaced = Some(hung.why);
            }
            let too_long = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                read = running.tether.read_buf(&mut heard) => {
                    if !matches!(read, Ok(1..)) {
                        return (said, replaced);
                    }
                    while let Some(line) = next_line(&mut heard) {
                        let Ok(report) = line.parse::<Report>() else { continue };
                        if matches!(report, Report::Started(_)) && !stopping {
                            self.set(Phase::Running, report.sentence());
                        }
                        said = Some(report);
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
                        let _ = running.child.start_kill();
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
