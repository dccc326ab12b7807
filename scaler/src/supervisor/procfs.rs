//! The tree of processes, from `/proc`.

use std::collections::{HashMap, HashSet};
use std::fs;

/// One process, from `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its PID.
    pub(crate) pid: i32,
    /// Its parent's PID.
    pub(crate) parent: i32,
    /// Its process group.
    pub(crate) group: i32,
    /// Its session.
    pub(crate) session: i32,
    /// Whether it is dead and not reaped.
    pub(crate) zombie: bool,
    /// Start time in clock ticks since boot. Together with the PID it identifies a process for good.
    pub(crate) started: u64,
}

/// Every visible process. Those that come or go meanwhile may be missing.
pub(crate) fn table() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| process(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// The process `pid`.
pub(crate) fn process(pid: i32) -> Option<Process> {
    parse(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
}

/// Whether `pid` was started with `variable` (`NAME=value`) in its environment.
pub(crate) fn has_variable(pid: i32, variable: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|one| one == variable.as_bytes()))
}

/// Every living process below `root`, in no order.
pub(crate) fn descendants(root: i32, table: &[Process]) -> Vec<i32> {
    let mut children = HashMap::<i32, Vec<&Process>>::new();
    for process in table {
        children.entry(process.parent).or_default().push(process);
    }
    // PIDs may be reused while the table is read, so the table might contain a circle.
    let (mut seen, mut next, mut found) = (HashSet::from([root]), vec![root], Vec::new());
    while let Some(pid) = next.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            if seen.insert(child.pid) {
                next.push(child.pid);
                if !child.zombie {
                    found.push(child.pid);
                }
            }
        }
    }
    found
}

/// Parses a line of `/proc/PID/stat`: `PID (name) state parent group session …`. The name may contain
/// anything, including spaces and parentheses.
fn parse(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let fields: Vec<&str> = rest[rest.rfind(')')? + 1..].split_whitespace().collect();
    Some(Process {
        pid: pid.parse().ok()?,
        zombie: matches!(*fields.first()?, "Z" | "X" | "x"),
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        Process { pid, parent, group: 1, session: 1, zombie: false, started: 0 }
    }

    #[test]
    fn a_stat_line_is_read_whatever_the_name() {
        for name in ["sh", "a b", "((", ")) R 1 2", "VLLM::EngineCor"] {
            let line = format!(
                "42 ({name}) S 7 8 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 2367488 171"
            );
            let want =
                Process { pid: 42, parent: 7, group: 8, session: 9, zombie: false, started: 12345 };
            assert_eq!(parse(&line), Some(want), "{name}");
        }
    }

    #[test]
    fn a_broken_stat_line_is_not_a_process() {
        for line in ["", "42", "42 (sh", "42 (sh) S 1", "x (sh) S 7 8 9"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn descendants_are_children_and_their_children_without_the_dead() {
        let mut table =
            vec![process(1, 0), process(2, 1), process(3, 2), process(4, 3), process(5, 1)];
        table[2].zombie = true;
        let mut found = descendants(2, &table);
        found.sort_unstable();
        assert_eq!(found, [4]);
        assert!(descendants(5, &table).is_empty());
    }

    #[test]
    fn a_circle_of_parents_is_walked_once() {
        let table = [process(2, 3), process(3, 2)];
        assert_eq!(descendants(2, &table), [3]);
    }

    #[test]
    fn this_process_is_found_with_its_own_environment() {
        let own = std::process::id().cast_signed();
        assert!(table().iter().any(|process| process.pid == own && !process.zombie));
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        assert!(has_variable(own, &path));
        assert!(!has_variable(own, &path[..path.len() - 1]));
    }
}
