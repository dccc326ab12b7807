//! The parent-death signal: the one system call here that std has no safe way for.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};

/// Has the kernel kill what `command` starts when the thread that starts it ends.
pub(super) fn dies_with_this_thread(command: &mut Command) {
    let parent = getpid();
    let arm = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above.
        if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: the closure runs between fork and exec. It makes two system calls, which are
    // async-signal-safe, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(arm) };
}
