//! Commands for an operator on the terminal. They read and change a running Forebay over its admin port,
//! as the console does.

mod client;
mod commands;
mod status;
mod summary;
mod top;

pub(crate) use client::AdminArgs;
pub(crate) use commands::{DrainArgs, OverrideArgs, PoolArgs, command, drain, fix};
pub(crate) use status::{StatusArgs, status};
pub(crate) use top::{TopArgs, top};
