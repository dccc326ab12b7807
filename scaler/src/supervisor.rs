//! The small process that every local replica runs under.
//!
//! `forebay supervise -- COMMAND…` starts COMMAND as its only child, and answers for whatever
//! becomes of it: it is a child subreaper, so that processes whose parents die come to it, also
//! those that left its process group or session. Nothing of the replica outlives it:
//!
//! - its standard input, the *tether*, is one end of a socket pair with Forebay. When that ends,
//!   Forebay is gone, for whatever reason, and every descendant is ended;
//! - when COMMAND ends, whatever it left behind is ended before that is reported;
//! - a byte on the tether, or SIGTERM, asks for a stop: COMMAND gets SIGTERM, and what is left
//!   after the stop timeout SIGKILL;
//! - when the supervisor itself is killed, COMMAND is too (`PR_SET_PDEATHSIG`); Forebay, a subreaper
//!   as well, sees to the rest (`targets::processes`).
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

use forebay_bounds::print;
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

/// From SIGTERM to SIGKILL where nobody waits for a clean end any more: Forebay or COMMAND is
/// gone.
const GRACE: Duration = Duration::from_secs(2);

/// First and longest pause between two looks for descendants. An end is noticed at once, by
/// SIGCHLD; these are for processes that were born meanwhile, or that cannot be killed just now.
const SWEEP: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// The supervisor's command line.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// From SIGTERM to SIGKILL when asked to stop, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    stop_timeout_ms: u64,
    /// COMMAND's soft limit on open files. Left out: as this process has it.
    #[arg(long)]
    open_files: Option<u64>,
    /// Program and arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs COMMAND and returns its exit status (128 + N after signal N) when nothing of it is left.
/// To be called before any other thread is started.
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
    // Another name than Forebay's, so that `pkill -9 forebay` leaves it to do its duty.
    prctl::set_name(c"replica-guard")?;
    prctl::set_child_subreaper(true)?;
    // Forebay did this already; a session leader, which cannot, leads its group anyway.
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let signals = blocked_signals()?;
    let mut tether = File::from(io::stdin().as_fd().try_clone_to_owned()?);

    if let Some(soft) = args.open_files {
        forebay_system::files::set_soft(soft)?;
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
            tell(&mut tether, &Report::NotStarted(why));
            return Ok(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 });
        }
    };
    tell(&mut tether, &Report::Started(child.as_raw()));
    let end = Supervisor::new(child, Duration::from_millis(args.stop_timeout_ms))
        .until_nothing_is_left(&signals, &mut tether)?;
    tell(&mut tether, &end);
    Ok(match end {
        Report::Exited(code) => u8::try_from(code).unwrap_or(u8::MAX),
        Report::Killed(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        Report::Started(_) | Report::NotStarted(_) => u8::MAX,
    })
}

/// What is going on; each later one outranks those before it.
#[derive(Clone, Copy)]
enum Phase {
    Running,
    /// COMMAND was asked to stop, and has until then.
    Stopping(Instant),
    /// Every descendant was asked to end, and has until then.
    Ending(Instant),
}

struct Supervisor {
    child: Pid,
    stop_timeout: Duration,
    phase: Phase,
    /// How COMMAND ended.
    end: Option<Report>,
    /// Descendants that got SIGTERM.
    asked: HashSet<i32>,
    /// Pause before the next look for descendants.
    pause: Duration,
    /// The tether is worth listening to.
    tethered: bool,
}

impl Supervisor {
    fn new(child: Pid, stop_timeout: Duration) -> Self {
        Self {
            child,
            stop_timeout,
            phase: Phase::Running,
            end: None,
            asked: HashSet::new(),
            pause: SWEEP.0,
            tethered: true,
        }
    }

    /// Returns when there is no child left. As every orphan below becomes a child, that means: no
    /// descendant.
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
        // The status of a child that died of a signal without a name is not told.
        Ok(self.end.unwrap_or(Report::Killed(0)))
    }

    /// Takes in the ends of children; true when there are none left.
    fn reap(&mut self) -> io::Result<bool> {
        loop {
            let end = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return Ok(false),
                Ok(WaitStatus::Exited(pid, code)) => (pid, Report::Exited(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Report::Killed(signal as i32)),
                Err(Errno::ECHILD) => return Ok(true),
                // EINVAL: reaped, but of a signal without a name.
                Ok(_) | Err(Errno::EINTR | Errno::EINVAL) => continue,
                Err(error) => return Err(error.into()),
            };
            self.asked.remove(&end.0.as_raw());
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

    /// Asks COMMAND to stop. Only itself: how its own processes are to stop is its business.
    fn stop(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Running) && self.end.is_none() {
            self.phase = Phase::Stopping(now + self.stop_timeout);
            // Not reaped yet, so the PID is still its own.
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
            } else if self.asked.insert(pid.as_raw()) {
                let _ = kill(pid, Signal::SIGTERM);
                // A stopped process hears of it only once it goes on.
                let _ = kill(pid, Signal::SIGCONT);
            }
        }
    }
}

/// Blocks what the loop wants to hear of, and gives the descriptor that tells it.
fn blocked_signals() -> io::Result<SignalFd> {
    let signals: SigSet =
        [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Tells Forebay, where it is still there to hear it.
fn tell(tether: &mut File, report: &Report) {
    let _ = tether.write_all(format!("{report}\n").as_bytes());
}

/// The error in plain words, without the operating system's number.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "not found".into(),
        io::ErrorKind::PermissionDenied => "not allowed to run it".into(),
        _ => error.to_string(),
    }
}
