//! The limit on open files (`RLIMIT_NOFILE`).
//!
//! The usual soft limit of 1,024 is there for programs that use `select`, which can't watch more.
//! Forebay uses epoll, so it takes what the hard limit allows, as Go's runtime and nginx do. The
//! programs that it starts get the soft limit back that Forebay was started with: they may be of the
//! other kind, and some close every possible descriptor when they start another one. vLLM raises its
//! own limit.

use std::io;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The soft limit that this process was started with, once it was raised.
static ORIGINAL: OnceLock<u64> = OnceLock::new();

/// Raises the soft limit to the hard one. To be called before any other thread is started.
///
/// # Errors
/// The limit can't be read or set.
pub fn raise() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let _ = ORIGINAL.set(soft);
    }
    Ok(())
}

/// The soft limit for programs that this process starts, where it raised its own.
#[must_use]
pub fn for_children() -> Option<u64> {
    ORIGINAL.get().copied()
}

/// Sets the soft limit of this process, to what it may be.
///
/// # Errors
/// The limit can't be read or set.
pub fn set_soft(soft: u64) -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?;
    Ok(())
}

/// How many files this process may have open at once. A limit that can't be read is taken for the
/// usual one.
#[must_use]
pub fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// How many files this process could have open at once after [`raise`].
#[must_use]
pub fn hard_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard)
}
