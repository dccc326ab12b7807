//! The processes that are left when a supervisor was killed.
//!
//! The kernel then kills the replica's first process, and makes all its other descendants children of
//! this process, a subreaper. A process belongs to the replica if it is in the supervisor's process
//! group, or has the mark in its environment, or is a child of a process that belongs. Without any of
//! these signs it still belongs if it became a child of this process after the supervisor's start, and is
//! of another session. No other process fits: those of other replicas stay with their living supervisor,
//! and Forebay itself starts only supervisors, in its own session.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};

use super::launch::MARK;
use crate::supervisor::procfs::{self, Process};

/// Pause between two searches.
const PAUSE: Duration = Duration::from_millis(20);

/// The signs by which a replica's processes are recognized.
#[derive(Clone, Debug)]
pub(super) struct Remnants {
    /// The supervisor's PID, also of its process group.
    supervisor: i32,
    /// The supervisor's start time, in clock ticks since boot.
    started: Option<u64>,
    /// `FOREBAY_REPLICA=…`, as in its environment.
    mark: String,
}

/// This process.
#[derive(Clone, Copy, Debug)]
struct Owner {
    pid: i32,
    session: i32,
}

/// The result of a search through all processes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Search {
    alive: Vec<i32>,
    dead: Vec<i32>,
}

impl Remnants {
    /// The signs of a supervisor that was just started, and not reaped.
    pub(super) fn of(supervisor: i32, mark: &str) -> Self {
        let started = procfs::process(supervisor).map(|process| process.started);
        Self::since(supervisor, started, mark)
    }

    /// The signs of a supervisor that another process started. Processes that became children of
    /// that process, or of one above, are recognized by the group, the mark and their parents.
    pub(super) fn since(supervisor: i32, started: Option<u64>, mark: &str) -> Self {
        Self { supervisor, started, mark: format!("{MARK}={mark}") }
    }

    /// The supervisor's start time, in clock ticks since boot.
    pub(super) fn started(&self) -> Option<u64> {
        self.started
    }

    /// Kills until nothing is left. Call after the supervisor was reaped.
    pub(super) async fn end(self) {
        let mut clean = 0;
        // A process that is born while the table is read can be missed once.
        while clean < 2 {
            let this = self.clone();
            let look = tokio::task::spawn_blocking(move || this.kill()).await;
            match look {
                Ok(Ok(false)) => clean += 1,
                Ok(Ok(true)) => clean = 0,
                Ok(Err(error)) => {
                    tracing::error!(%error, "can't search for the processes of a killed supervisor");
                    return;
                }
                // The runtime is shutting down, and this process with it.
                Err(_) => return,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Kills and reaps the current processes; returns whether there were any.
    fn kill(&self) -> io::Result<bool> {
        let own = getpid().as_raw();
        let owner = procfs::process(own).ok_or(io::ErrorKind::NotFound)?;
        let owner = Owner { pid: own, session: owner.session };
        let table = procfs::table();
        let found = self.find(owner, &table, |pid| procfs::has_variable(pid, &self.mark));
        for pid in &found.alive {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        for pid in &found.dead {
            let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
        }
        Ok(!found.alive.is_empty() || !found.dead.is_empty())
    }

    /// The replica's processes; of the dead, only those that this process has to reap.
    fn find(&self, owner: Owner, table: &[Process], marked: impl Fn(i32) -> bool) -> Search {
        let adopted = |process: &Process| {
            // The first process of a container becomes the parent of unrelated orphans too.
            process.parent == owner.pid
                && owner.pid != 1
                && process.session != owner.session
                && self.started.is_some_and(|started| process.started >= started)
        };
        let mut found = Search::default();
        let mut belongs = HashSet::new();
        for process in table {
            let pid = process.pid;
            if pid == owner.pid {
                continue;
            }
            let certain = process.group == self.supervisor || adopted(process);
            if process.zombie {
                if certain && process.parent == owner.pid {
                    found.dead.push(pid);
                }
            } else if certain || marked(pid) {
                belongs.insert(pid);
            }
        }
        for root in belongs.clone() {
            belongs.extend(procfs::descendants(root, table));
        }
        belongs.remove(&owner.pid);
        found.alive = belongs.into_iter().collect();
        found.alive.sort_unstable();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { pid: 10, session: 5 };

    fn remnants() -> Remnants {
        Remnants { supervisor: 20, started: Some(100), mark: String::new() }
    }

    fn process(pid: i32, parent: i32, group: i32, session: i32, started: u64) -> Process {
        Process { pid, parent, group, session, zombie: false, started }
    }

    fn find(owner: Owner, table: &[Process], marked: &[i32]) -> Vec<i32> {
        remnants().find(owner, table, |pid| marked.contains(&pid)).alive
    }

    #[test]
    fn a_replicas_process_is_found_however_it_hides() {
        let table = [
            process(21, 10, 20, 5, 101),
            // In its own session, recognized by its mark; and its child, recognized by its parent.
            process(22, 10, 22, 22, 102),
            process(23, 22, 23, 23, 103),
            // Without mark, group or parent.
            process(24, 10, 24, 24, 104),
        ];
        assert_eq!(find(OWNER, &table, &[22]), [21, 22, 23, 24]);
    }

    #[test]
    fn nothing_else_is_touched() {
        let table = [
            process(1, 0, 1, 1, 0),
            process(10, 1, 10, 5, 50),
            // Another replica's supervisor and its processes.
            process(30, 10, 30, 5, 101),
            process(31, 30, 30, 5, 102),
            process(32, 30, 32, 32, 103),
            // An unrelated process, and an orphan that was here before.
            process(40, 1, 40, 40, 200),
            process(41, 10, 41, 41, 99),
        ];
        assert!(find(OWNER, &table, &[]).is_empty());
        // Not even the owner itself, if a replica started it.
        assert!(find(OWNER, &table[1..2], &[10]).is_empty());
    }

    #[test]
    fn the_first_process_of_a_container_spares_other_orphans() {
        let owner = Owner { pid: 1, session: 1 };
        let table = [process(24, 1, 24, 24, 104), process(25, 1, 20, 1, 105)];
        assert_eq!(find(owner, &table, &[]), [25]);
    }

    #[test]
    fn only_own_children_are_reaped() {
        let mut table = [
            process(21, 10, 20, 5, 101),
            process(22, 10, 22, 22, 102),
            process(23, 7, 20, 5, 103),
            process(30, 10, 30, 5, 104),
        ];
        for process in &mut table {
            process.zombie = true;
        }
        let found = remnants().find(OWNER, &table, |_| false);
        assert_eq!(found, Search { alive: vec![], dead: vec![21, 22] });
    }
}
