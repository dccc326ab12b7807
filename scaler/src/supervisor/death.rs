//! Settings between fork and exec, for which std has no safe way.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{getpid, getppid};

/// Makes the kernel kill the child when the thread that starts it ends, and unblocks all signals for
/// it: a signal mask is inherited, and std leaves it alone.
pub(super) fn dies_with_this_thread(command: &mut Command) {
    let parent = getpid();
    let arm = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        SigSet::empty().thread_set_mask()?;
        // The parent may have died before the first line.
        if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: the closure runs between fork and exec. It makes three system calls, which are
    // async-signal-safe, and none allocates or takes a lock.
    unsafe { command.pre_exec(arm) };
}
