//! Shortages of this process: open files, ports, memory, threads.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use metrics::{counter, describe_counter};
use nix::errno::Errno;
use parking_lot::Mutex;
use tokio::time::Instant;

const SHORTAGES: &str = "forebay_shortages_total";
/// A shortage is logged once, and again when it still lasts after this time.
const QUIET: Duration = Duration::from_secs(60);

/// A resource of this process, or of its machine, that can run short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Open files of this process (EMFILE).
    Files,
    /// Open files of the whole machine (ENFILE).
    SystemFiles,
    /// Local ports for connections to one address (EADDRNOTAVAIL, EAGAIN).
    Ports,
    /// Memory of the kernel or of this process (ENOMEM, ENOBUFS).
    Memory,
    /// Sockets that this user may watch with epoll (ENOSPC).
    Watches,
    /// Threads and processes (EAGAIN where one was to start).
    Threads,
}

impl Resource {
    const ALL: [Self; 6] =
        [Self::Files, Self::SystemFiles, Self::Ports, Self::Memory, Self::Watches, Self::Threads];

    /// The resource whose shortage made a connection fail; `None` for any other failure. Also looks
    /// at the causes of `error`, since libraries wrap them.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                match (error.raw_os_error(), error.get_ref()) {
                    (Some(code), _) => return Self::of_code(Errno::from_raw(code)),
                    (None, Some(inner)) => return Self::of(inner),
                    (None, None) => return None,
                }
            }
            next = error.source();
        }
        None
    }

    /// The resource whose shortage kept a process or a thread from starting.
    #[must_use]
    pub fn of_start(error: &io::Error) -> Option<Self> {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EAGAIN) => Some(Self::Threads),
            Some(code) => Self::of_code(code),
            None => None,
        }
    }

    fn of_code(code: Errno) -> Option<Self> {
        match code {
            Errno::EMFILE => Some(Self::Files),
            Errno::ENFILE => Some(Self::SystemFiles),
            // Linux says the latter where the port is chosen before the connection is made.
            Errno::EADDRNOTAVAIL | Errno::EAGAIN => Some(Self::Ports),
            Errno::ENOMEM | Errno::ENOBUFS => Some(Self::Memory),
            Errno::ENOSPC => Some(Self::Watches),
            _ => None,
        }
    }

    /// Its value of the label `resource`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::SystemFiles => "system_files",
            Self::Ports => "ports",
            Self::Memory => "memory",
            Self::Watches => "watches",
            Self::Threads => "threads",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Files => {
                "raise the hard limit on open files (LimitNOFILE= of systemd, --ulimit nofile= of \
                 Docker, ulimit -Hn)"
            }
            Self::SystemFiles => "raise the machine's fs.file-max",
            Self::Ports => {
                "widen net.ipv4.ip_local_port_range, or spread the requests over more replicas"
            }
            Self::Memory => "give it more memory, or lower gateway.limits",
            Self::Watches => "raise the machine's fs.epoll.max_user_watches",
            Self::Threads => "raise the limit on processes (TasksMax= of systemd, pids of the pod)",
        }
    }
}

/// The resource in words, after "short of".
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => "open files",
            Self::SystemFiles => "open files of the whole machine",
            Self::Ports => "local ports",
            Self::Memory => "memory",
            Self::Watches => "sockets that may be watched",
            Self::Threads => "threads and processes",
        })
    }
}

/// Help texts.
pub(crate) fn describe() {
    describe_counter!(
        SHORTAGES,
        "Times that this process was short of something of its own, by resource"
    );
}

/// Counts a shortage, and logs it with its remedy, once a minute for each resource.
pub fn report(resource: Resource, during: &dyn fmt::Display) {
    static LOGGED: Mutex<[Option<Instant>; Resource::ALL.len()]> =
        Mutex::new([None; Resource::ALL.len()]);
    counter!(SHORTAGES, "resource" => resource.name()).increment(1);
    let now = Instant::now();
    let mut logged = LOGGED.lock();
    let last = &mut logged[resource as usize];
    if last.is_some_and(|at| now.saturating_duration_since(at) < QUIET) {
        return;
    }
    *last = Some(now);
    drop(logged);
    tracing::warn!("short of {resource}: {during}; {}", resource.remedy());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_shortages_are_known_also_inside_other_errors() {
        let raw = |code: Errno| io::Error::from_raw_os_error(code as i32);
        for (code, want) in [
            (Errno::EMFILE, Some(Resource::Files)),
            (Errno::ENFILE, Some(Resource::SystemFiles)),
            (Errno::EADDRNOTAVAIL, Some(Resource::Ports)),
            (Errno::EAGAIN, Some(Resource::Ports)),
            (Errno::ENOBUFS, Some(Resource::Memory)),
            (Errno::ENOMEM, Some(Resource::Memory)),
            (Errno::ENOSPC, Some(Resource::Watches)),
            (Errno::ECONNREFUSED, None),
            (Errno::ECONNRESET, None),
            (Errno::EHOSTUNREACH, None),
            (Errno::ETIMEDOUT, None),
        ] {
            assert_eq!(Resource::of(&raw(code)), want, "{code}");
            let wrapped = io::Error::other(raw(code));
            assert_eq!(Resource::of(&wrapped), want, "{code} wrapped");
            let twice = io::Error::new(io::ErrorKind::NotConnected, wrapped);
            assert_eq!(Resource::of(&twice), want, "{code} wrapped twice");
        }
        assert_eq!(Resource::of(&io::Error::other("a text")), None);
        assert_eq!(Resource::of_start(&raw(Errno::EAGAIN)), Some(Resource::Threads));
        assert_eq!(Resource::of_start(&raw(Errno::EMFILE)), Some(Resource::Files));
        assert_eq!(Resource::of_start(&raw(Errno::ENOENT)), None);
    }

    #[test]
    fn every_resource_has_its_own_place() {
        for (i, resource) in Resource::ALL.into_iter().enumerate() {
            assert_eq!(resource as usize, i);
        }
    }
}
