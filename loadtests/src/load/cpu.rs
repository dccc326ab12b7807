//! The CPU time of a process and its descendants, as /proc counts it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::param::clock_ticks_per_second;

/// CPU time, user and system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuTime {
    pub(crate) user: Duration,
    pub(crate) system: Duration,
}

impl CpuTime {
    pub(crate) fn total(self) -> Duration {
        self.user + self.system
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }

    /// Of the process and all processes below it that run now: nginx works in its workers.
    ///
    /// # Errors
    /// There is no such process.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let processes = processes()?;
        if !processes.contains_key(&pid) {
            bail!("--cpu-of {pid}: there is no such process; name one that runs on this machine");
        }
        let mut ticks = (0, 0);
        for (child, stat) in &processes {
            if *child == pid || descends(&processes, *child, pid) {
                ticks = (ticks.0 + stat.user, ticks.1 + stat.system);
            }
        }
        let time =
            |ticks: u64| Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64);
        Ok(Self { user: time(ticks.0), system: time(ticks.1) })
    }

    /// Of this process.
    pub(crate) fn own() -> Self {
        Self::of(std::process::id()).unwrap_or_default()
    }
}

#[derive(Clone, Copy)]
struct Stat {
    parent: u32,
    /// In clock ticks.
    user: u64,
    system: u64,
}

fn processes() -> anyhow::Result<BTreeMap<u32, Stat>> {
    let entries = std::fs::read_dir("/proc").context("cannot read /proc")?;
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // One that ended in between has no stat any more.
    Ok(numbers
        .filter_map(|pid: u32| {
            Some((pid, parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))
        })
        .collect())
}

/// The fields after the command's name, which may contain anything but ends at the last `)`.
fn parse(stat: &str) -> Option<Stat> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        user: fields.get(11)?.parse().ok()?,
        system: fields.get(12)?.parse().ok()?,
    })
}

fn descends(processes: &BTreeMap<u32, Stat>, mut pid: u32, from: u32) -> bool {
    while let Some(stat) = processes.get(&pid) {
        if stat.parent == from {
            return true;
        }
        pid = stat.parent;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_s_name_may_contain_anything() {
        let stat =
            parse("7 (a) 1 (b) S 3 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0").expect("a stat");
        assert_eq!((stat.parent, stat.user, stat.system), (3, 250, 50));
    }

    #[test]
    fn a_process_has_its_time_and_a_missing_one_is_an_error() {
        assert!(CpuTime::of(std::process::id()).is_ok());
        let error = CpuTime::of(u32::MAX).expect_err("no process").to_string();
        assert!(error.contains("there is no such process"), "{error}");
    }
}
