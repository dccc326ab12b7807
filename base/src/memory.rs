//! How much memory this process may use: the least of its control groups' limits and the machine's
//! memory.
//!
//! A limit holds for everything below its group, so all groups from the process's own up to the root
//! are read: in both versions of cgroups, which may be mounted side by side. Inside a container the
//! path that `/proc/self/cgroup` names may be that of the host, of which only the end is mounted;
//! then the mount's root is the process's own group.

use std::fmt;
use std::path::{Path, PathBuf};

/// A version 1 group without a limit has the largest number of whole pages; anything near it is
/// not a limit.
const UNLIMITED: u64 = 1 << 60;

/// An amount of memory and its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In bytes.
    pub bytes: u64,
    /// The origin of the amount.
    pub source: Source,
}

/// The origin of a bound on memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file of a control group's limit.
    Cgroup(PathBuf),
    /// The machine's memory.
    Machine,
    /// Nothing can be read; this is a guess.
    Unknown,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(file) => write!(f, "the limit in {}", file.display()),
            Self::Machine => f.write_str("the machine's memory"),
            Self::Unknown => f.write_str("a guess, since /proc/meminfo can't be read"),
        }
    }
}

/// The memory that this process may use.
#[must_use]
pub fn available() -> Memory {
    within(Path::new("/"))
}

/// The same, with `/proc` and `/sys` below `root`.
fn within(root: &Path) -> Memory {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let groups = groups(&read("proc/self/cgroup"));
    let files = mounts(&read("proc/self/mountinfo")).into_iter().flat_map(|mount| {
        let group = match mount.version {
            Version::One => groups.memory.as_deref(),
            Version::Two => groups.unified.as_deref(),
        };
        group.map(|group| mount.files(group)).unwrap_or_default()
    });
    let limits = files.filter_map(|file| {
        let below = file.strip_prefix("/").unwrap_or(&file);
        let limit = std::fs::read_to_string(root.join(below)).ok()?.trim().parse().ok()?;
        (limit < UNLIMITED).then_some(Memory { bytes: limit, source: Source::Cgroup(file) })
    });
    let machine = total(&read("proc/meminfo"))
        .map(|bytes| Memory { bytes, source: Source::Machine })
        .unwrap_or(Memory { bytes: 1 << 30, source: Source::Unknown });
    // A group may allow more than there is.
    limits.chain([machine.clone()]).min_by_key(|memory| memory.bytes).unwrap_or(machine)
}

/// The process's groups by `/proc/self/cgroup`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Groups {
    /// The group of version 1's memory controller.
    memory: Option<String>,
    /// The group of version 2.
    unified: Option<String>,
}

fn groups(text: &str) -> Groups {
    let mut groups = Groups::default();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if id == "0" && controllers.is_empty() {
            groups.unified = Some(path.to_owned());
        } else if controllers.split(',').any(|name| name == "memory") {
            groups.memory = Some(path.to_owned());
        }
    }
    groups
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A hierarchy of groups that is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// The group that is mounted.
    group: String,
    at: PathBuf,
}

/// The mounts in `/proc/self/mountinfo` that can limit memory.
fn mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, _, options) = (right.next()?, right.next()?, right.next()?);
        let version = match kind {
            "cgroup2" => Version::Two,
            "cgroup" if options.split(',').any(|option| option == "memory") => Version::One,
            _ => return None,
        };
        let mut left = left.split(' ').skip(3);
        let (group, at) = (unescape(left.next()?), unescape(left.next()?));
        Some(Mount { version, group, at: at.into() })
    };
    text.lines().filter_map(mount).collect()
}

/// Space, tab, newline and backslash are written as `\040` and so on.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, meant)| text.replace(code, meant))
}

impl Mount {
    /// The limits that hold for `group`: its own and those of the groups above it.
    fn files(&self, group: &str) -> Vec<PathBuf> {
        // A group outside of what is mounted is one of another namespace: the mount is our own.
        let below = match Path::new(group).strip_prefix(&self.group) {
            Ok(below) if !group.contains("/..") => below,
            _ => Path::new(""),
        };
        let file = match self.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        below.ancestors().map(|group| self.at.join(group).join(file)).collect()
    }
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files, removed on drop.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root =
                std::env::temp_dir().join(format!("forebay-memory-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&root);
            for (file, text) in files {
                let file = root.join(file);
                std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
                std::fs::write(file, text).expect("written");
            }
            Self(root)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       16384000 kB\nMemFree:        1000 kB\n");
    const V2: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "30 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      31 23 0:28 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n";

    fn read(name: &str, files: &[(&str, &str)]) -> (u64, String) {
        let root = Root::new(name, files);
        let memory = within(&root.0);
        (memory.bytes, memory.source.to_string())
    }

    #[test]
    fn a_machine_without_limits_has_its_own_memory() {
        assert_eq!(read("bare", &[MEMINFO]), (16_384_000 << 10, "the machine's memory".to_owned()));
        let groups = [
            MEMINFO,
            ("proc/self/cgroup", "0::/user.slice\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
        ];
        assert_eq!(read("max", &groups).0, 16_384_000 << 10);
        assert_eq!(read("nothing", &[]).0, 1 << 30);
    }

    #[test]
    fn the_least_limit_on_the_way_up_holds_in_version_2() {
        let groups = [
            MEMINFO,
            ("proc/self/cgroup", "0::/kubepods/pod1/gateway\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/kubepods/memory.max", "8589934592\n"),
            ("sys/fs/cgroup/kubepods/pod1/memory.max", "2147483648\n"),
            ("sys/fs/cgroup/kubepods/pod1/gateway/memory.max", "max\n"),
        ];
        let limit = "the limit in /sys/fs/cgroup/kubepods/pod1/memory.max".to_owned();
        assert_eq!(read("v2", &groups), (2 << 30, limit));
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        let groups = [
            MEMINFO,
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/memory.max", "2147483648\n"),
        ];
        assert_eq!(read("namespace", &groups).0, 2 << 30);
        let hosts = [
            MEMINFO,
            ("proc/self/cgroup", "5:memory:/docker/abc\n0::/\n"),
            (
                "proc/self/mountinfo",
                "31 23 0:28 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
        ];
        assert_eq!(read("bind", &hosts).0, 512 << 20);
        let elsewhere = [
            MEMINFO,
            ("proc/self/cgroup", "0::/../../other\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/memory.max", "1073741824\n"),
        ];
        assert_eq!(read("elsewhere", &elsewhere).0, 1 << 30);
    }

    #[test]
    fn version_1_and_both_together_are_read() {
        let one = [
            MEMINFO,
            ("proc/self/cgroup", "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/\n"),
            ("proc/self/mountinfo", V1),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "4294967296\n"),
            ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        let limit = "the limit in /sys/fs/cgroup/memory/a/memory.limit_in_bytes".to_owned();
        assert_eq!(read("v1", &one), (4 << 30, limit));
        let both = [
            MEMINFO,
            ("proc/self/cgroup", "4:cpuset,memory:/a\n0::/b\n"),
            (
                "proc/self/mountinfo",
                "31 23 0:28 / /cg\\040one rw - cgroup cgroup rw,cpuset,memory\n\
                 32 23 0:29 / /two rw - cgroup2 cgroup2 rw\n",
            ),
            ("cg one/a/memory.limit_in_bytes", "3000000000\n"),
            ("two/b/memory.max", "2000000000\n"),
        ];
        assert_eq!(read("both", &both).0, 2_000_000_000);
    }

    #[test]
    fn a_limit_above_the_machines_memory_does_not_count() {
        let groups = [
            MEMINFO,
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/memory.max", "1099511627776\n"),
        ];
        assert_eq!(read("above", &groups).1, "the machine's memory");
    }
}
