//! The parts that gateway and scaler need as processes, whatever happens around them; each once.
//!
//! **From the machine**: how much [memory] and how many [open files](open_files) there are, and
//! the [shortage]s of a process that has used them up. A shortage of this process says nothing about
//! the other end, so code that connects or starts something checks it first
//! ([`shortage::Resource::of`]).
//!
//! **To others**: one way to [dial], and one to send a [request](http1) over it; the servers that are
//! trusted over [https]; [backoff] between tries; a [trouble] that lasts is reported once.
//!
//! **From clients**: a [listener](listen) that no client can fill.
//!
//! **To the outside**: lines whose writing delays no request ([`output`], [`mod@print`]).
//!
//! **Within**: detection of threads that hang ([`Heartbeats`]), and of files whose content changes
//! ([`file_watch`]).
//!
//! This crate knows nothing of models, pools or the configuration.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "Forebay runs on Linux only: it uses Linux's sockets, process supervision and /proc. On another \
     system, build and run it in a container or a virtual machine."
);

pub mod backoff;
pub mod dial;
pub mod file_watch;
mod heartbeat;
pub mod http1;
pub mod https;
pub mod listen;
pub mod memory;
mod metric;
pub mod open_files;
pub mod output;
pub mod print;
pub mod shortage;
pub mod trouble;

pub use heartbeat::Heartbeats;
pub use metric::{WITHDRAWN, describe, is_withdrawn, loaded, reloaded, set_build_info};
