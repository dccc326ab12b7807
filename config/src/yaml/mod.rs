//! YAML with places: text → tree of nodes that know their line → typed values.
//!
//! Serde stops at the first error, and typed values no longer know their lines when the rules that
//! span several fields are checked. A small tree in between gives both: every problem of a file at
//! once, each with its line. `serde-saphyr` parses the YAML; the tree and its deserializer are our
//! own for the sake of these places.

mod de;
mod error;
mod flow;
pub(crate) mod problem;
mod read;
mod tree;

pub(crate) use error::closest;
pub(crate) use flow::flow_list;
pub use flow::scalar;
pub(crate) use read::read;
pub(crate) use tree::{Entry, Kind, Node, Tree};
