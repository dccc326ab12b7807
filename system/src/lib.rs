//! What this process may use of its machine, for both halves: open files, memory, and shortages of
//! either.
//!
//! The rule: a shortage of our own says nothing about anybody else. Whoever connects or starts
//! something asks [`Resource::of`] before it blames the other end.

pub mod files;
pub mod memory;
mod shortage;

pub use shortage::{Resource, describe, report};
