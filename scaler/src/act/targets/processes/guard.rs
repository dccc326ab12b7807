//! A replica's supervisor: a child of this process, or one that another process started.

use std::io;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::time::sleep;

use crate::supervisor::procfs;

/// Pause between two checks of a supervisor that is not our child.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) enum Guard {
    Child(Child),
    /// Still a child of the process that started it, which reaps it; or orphaned.
    Adopted {
        pid: i32,
        /// Start time in clock ticks since boot.
        started: Option<u64>,
    },
}

impl Guard {
    /// Waits until it is dead. A child is reaped.
    pub(super) async fn ended(&mut self) -> io::Result<()> {
        match self {
            Self::Child(child) => child.wait().await.map(drop),
            Self::Adopted { pid, started } => {
                while runs(*pid, *started) {
                    sleep(PAUSE).await;
                }
                Ok(())
            }
        }
    }

    /// Kills it.
    pub(super) fn kill(&mut self) {
        match self {
            Self::Child(child) => drop(child.start_kill()),
            Self::Adopted { pid, started } => {
                if runs(*pid, *started) {
                    let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                }
            }
        }
    }

    /// Kills its process group when it is dead. A supervisor that may have been reaped is skipped:
    /// its group is found with the other remnants.
    pub(super) fn kill_group(&self, pid: i32) {
        if let Self::Child(_) = self {
            // It is not reaped yet, so the group's number is still its own.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn runs(pid: i32, started: Option<u64>) -> bool {
    let process = procfs::process(pid);
    process.is_some_and(|process| {
        !process.zombie && started.is_none_or(|started| process.started == started)
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn an_adopted_supervisor_is_killed_and_known_to_be_dead_before_it_is_reaped() {
        let mut child =
            Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("started");
        let pid = child.id().cast_signed();
        let started = procfs::process(pid).map(|process| process.started);
        let mut other = Guard::Adopted { pid, started: started.map(|ticks| ticks + 1) };
        other.kill();
        other.ended().await.expect("another process has this PID");
        assert!(runs(pid, started));
        let mut guard = Guard::Adopted { pid, started };
        guard.kill();
        guard.ended().await.expect("dead");
        child.wait().expect("reaped");
    }
}
