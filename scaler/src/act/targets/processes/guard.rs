//! A replica's supervisor: this process's child, or one that another process started.

use std::io;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::time::sleep;

use crate::supervisor::procfs;

/// Between two looks at a supervisor that is not our child.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) enum Guard {
    Child(Child),
    /// It stays its first parent's child, which reaps it, or has ended.
    Adopted {
        pid: i32,
        /// When it was started, in clock ticks since boot.
        started: Option<u64>,
    },
}

impl Guard {
    /// Waits until it is dead; a child is reaped.
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

    /// Kills its process group when it is dead. Of one that may have been reaped the group is looked
    /// for with the other remnants.
    pub(super) fn kill_group(&self, pid: i32) {
        if let Self::Child(_) = self {
            // Not reaped, so the group's name is still its own.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn runs(pid: i32, started: Option<u64>) -> bool {
    let process = procfs::process(pid);
    process.is_some_and(|it| !it.zombie && started.is_none_or(|started| it.started == started))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn an_adopted_one_is_killed_and_known_to_be_dead_before_it_is_reaped() {
        let mut child =
            Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("started");
        let pid = child.id().cast_signed();
        let started = procfs::process(pid).map(|it| it.started);
        let mut other = Guard::Adopted { pid, started: started.map(|it| it + 1) };
        other.kill();
        other.ended().await.expect("another process has this PID");
        assert!(runs(pid, started));
        let mut guard = Guard::Adopted { pid, started };
        guard.kill();
        guard.ended().await.expect("dead");
        child.wait().expect("reaped");
    }
}
