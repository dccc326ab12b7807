//! YAML with places: text → tree of nodes that know their line → typed values.
//!
//! Serde's way stops at the first error, and typed values have forgotten their lines when the
//! rules that span several fields are checked. A small tree in between gives both: every problem
//! of a file at once, each with its line.

mod de;
mod error;
pub(crate) mod problem;
mod read;
mod tree;

pub(crate) use error::closest;
pub(crate) use read::read;
pub(crate) use tree::{Entry, Kind, Node, Tree};
