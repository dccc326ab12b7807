//! The supervisor: a small process that every local replica runs under.
//!
//! `forebay supervise -- COMMAND…` starts COMMAND as its only child, and is responsible for all
//! processes that come from it. It is a child subreaper: processes whose parents die become its
//! children, even if they left its process group or session. Nothing of the replica outlives it:
//!
//! - Its standard input, the *tether*, is one end of a socket pair with Forebay. When it ends, Forebay
//!   is gone, for whatever reason, and the supervisor ends every descendant.
//! - When COMMAND ends, the supervisor ends every process that is left, and then reports the end.
//! - A byte on the tether, or SIGTERM, requests a stop: COMMAND gets SIGTERM, and every process left
//!   after the stop timeout gets SIGKILL.
//! - When the supervisor itself is killed, COMMAND is too (`PR_SET_PDEATHSIG`). Forebay, a subreaper
//!   as well, ends the others (`targets::processes`).
//!
//! It is synchronous and single-threaded: the parent-death signal is bound to the thread that
//! started the child, and there may be many of these processes.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use forebay_base::print;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, setpgid};
use tokio::time::Instant;

mod death;
pub(crate) mod procfs;
mod report;

pub(crate) use report::Report;

/// Time from SIGTERM to SIGKILL when no clean end is expected: Forebay or COMMAND is gone.
const GRACE: Duration = Duration::from_secs(2);

/// First and longest pause between two searches for descendants. SIGCHLD reports an end at once; the
/// searches find processes that were born meanwhile, or could not be killed before.
const SWEEP: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// The supervisor's command line.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Time from SIGTERM to SIGKILL at a stop, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    stop_timeout_ms: u64,
    /// COMMAND's soft limit on open files. Default: this process's own.
    #[arg(long)]
    open_files: Option<u64>,
    /// Program and arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs COMMAND and returns its exit status (128 + N after signal N) when nothing of it is left.
/// Must be called before any other thread is started.
pub fn run(args: Args) -> ExitCode {
    match supervise(&args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            print::err(format_args!("forebay: cannot supervise: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn supervise(args: &Args) -> io::Result<u8> {
    // A name other than Forebay's, so that `pkill -9 forebay` leaves the supervisor to its duty.
    prctl::set_name(c"replica-guard")?;
    prctl::set_child_subreaper(true)?;
    // Forebay did this already. It fails for a session leader, which leads its group anyway.
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let signals = blocked_signals()?;
    let mut tether = File::from(io::stdin().as_fd().try_clone_to_owned()?);

    if let Some(soft) = args.open_files {
        forebay_base::open_files::set_soft(soft)?;
    }
    let (program, arguments) = args.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    death::dies_with_this_thread(&mut command);
    let child = match command.spawn() {
        Ok(child) => Pid::from_raw(child.id().cast_signed()),
        Err(error) => {
            let why = format!("{}: {}", program.to_string_lossy(), reason(&error));
            print::err(format_args!("forebay: cannot start {why}"));
            report(&mut tether, &Report::NotStarted(why));
            return Ok(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 });
        }
    };
    report(&mut tether, &Report::Started(child.as_raw()));
    let end = Supervisor::new(child, Duration::from_millis(args.stop_timeout_ms))
        .until_nothing_is_left(&signals, &mut tether)?;
    report(&mut tether, &end);
    Ok(match end {
        Report::Exited(code) => u8::try_from(code).unwrap_or(u8::MAX),
        Report::Killed(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        Report::Started(_) | Report::NotStarted(_) => u8::MAX,
    })
}

/// The phase of the supervision, in order.
#[derive(Clone, Copy)]
enum Phase {
    Running,
    /// COMMAND got SIGTERM and has until this time.
    Stopping(Instant),
    /// Every descendant got SIGTERM and has until this time.
    Ending(Instant),
}

struct Supervisor {
    child: Pid,
    stop_timeout: Duration,
    phase: Phase,
    /// The end of COMMAND.
    end: Option<Report>,
    /// Descendants that got SIGTERM.
    terminated: HashSet<i32>,
    /// Pause before the next search for descendants.
    pause: Duration,
    /// Whether the tether is still open.
    tethered: bool,
}

impl Supervisor {
    fn new(child: Pid, stop_timeout: Duration) -> Self {
        Self {
            child,
            stop_timeout,
            phase: Phase::Running,
            end: None,
            terminated: HashSet::new(),
            pause: SWEEP.0,
            tethered: true,
        }
    }

    /// Returns when no child is left. Every orphan below becomes a child, so no descendant is left
    /// either.
    fn until_nothing_is_left(
        mut self,
        signals: &SignalFd,
        tether: &mut File,
    ) -> io::Result<Report> {
        while !self.reap()? {
            let now = Instant::now();
            if self.end.is_some() {
                self.end_all(now, GRACE);
            }
            if let Phase::Stopping(until) = self.phase
                && now >= until
            {
                self.end_all(now, Duration::ZERO);
            }
            let timeout = match self.phase {
                Phase::Running => None,
                Phase::Stopping(until) => Some(until - now),
                Phase::Ending(until) => {
                    self.signal_descendants(now >= until);
                    self.pause = (self.pause * 2).min(SWEEP.1);
                    let left = until.saturating_duration_since(now);
                    Some(if left.is_zero() { self.pause } else { self.pause.min(left) })
                }
            };
            self.wait(signals, tether, timeout)?;
        }
        // The status is unknown for a child that died of a signal without a name.
        Ok(self.end.unwrap_or(Report::Killed(0)))
    }

    /// Reaps children that have ended; true when none is left.
    fn reap(&mut self) -> io::Result<bool> {
        loop {
            let end = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return Ok(false),
                Ok(WaitStatus::Exited(pid, code)) => (pid, Report::Exited(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Report::Killed(signal as i32)),
                Err(Errno::ECHILD) => return Ok(true),
                // EINVAL: reaped, but died of a signal without a name.
                Ok(_) | Err(Errno::EINTR | Errno::EINVAL) => continue,
                Err(error) => return Err(error.into()),
            };
            self.terminated.remove(&end.0.as_raw());
            if end.0 == self.child {
                self.end = Some(end.1);
            }
        }
    }

    /// Waits for a signal, the tether or the timeout.
    fn wait(
        &mut self,
        signals: &SignalFd,
        tether: &mut File,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        // Rounded up, so that a deadline has passed when its timeout has.
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            let millis = timeout.as_micros().div_ceil(1000);
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        });
        let (signalled, pulled) = {
            let mut watched = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(tether.as_fd(), PollFlags::POLLIN),
            ];
            let watched = if self.tethered { &mut watched[..] } else { &mut watched[..1] };
            match poll(watched, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let any = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
            (any(&watched[0]), watched.get(1).is_some_and(any))
        };
        let now = Instant::now();
        if signalled {
            while let Some(signal) = signals.read_signal()? {
                if signal.ssi_signo.cast_signed() != Signal::SIGCHLD as i32 {
                    self.stop(now);
                }
            }
        }
        if pulled {
            match tether.read(&mut [0; 64]) {
                Ok(1..) => self.stop(now),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Forebay is gone.
                Ok(0) | Err(_) => {
                    self.tethered = false;
                    self.end_all(now, GRACE);
                }
            }
        }
        Ok(())
    }

    /// Asks COMMAND alone to stop. It stops its own processes in its own way.
    fn stop(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Running) && self.end.is_none() {
            self.phase = Phase::Stopping(now + self.stop_timeout);
            // It is not reaped yet, so the PID is still its own.
            let _ = kill(self.child, Signal::SIGTERM);
            let _ = kill(self.child, Signal::SIGCONT);
        }
    }

    /// Ends every descendant: SIGTERM, and SIGKILL after `grace`.
    fn end_all(&mut self, now: Instant, grace: Duration) {
        if !matches!(self.phase, Phase::Ending(_)) {
            self.phase = Phase::Ending(now + grace);
        }
    }

    fn signal_descendants(&mut self, force: bool) {
        for pid in procfs::descendants(getpid().as_raw(), &procfs::table()) {
            let pid = Pid::from_raw(pid);
            if force {
                let _ = kill(pid, Signal::SIGKILL);
            } else if self.terminated.insert(pid.as_raw()) {
                let _ = kill(pid, Signal::SIGTERM);
                // A stopped process receives the signal only when it continues.
                let _ = kill(pid, Signal::SIGCONT);
            }
        }
    }
}

/// Blocks the signals that the loop reads, and returns the descriptor to read them from.
fn blocked_signals() -> io::Result<SignalFd> {
    let signals: SigSet =
        [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Reports to Forebay. If Forebay is gone, the report is dropped.
fn report(tether: &mut File, report: &Report) {
    let _ = tether.write_all(format!("{report}\n").as_bytes());
}

/// The error in plain words, without the operating system's number.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => report::NOT_FOUND.into(),
        io::ErrorKind::PermissionDenied => report::NOT_ALLOWED.into(),
        _ => error.to_string(),
    }
}
