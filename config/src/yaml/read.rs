//! Tree → typed value, with every error of the file and not just the first.
//!
//! Serde stops at the first error. So the offending value is reported, taken out of the tree, and
//! the tree is read again, until it is read whole. Only values without a fault of their own are
//! left then, so that no error follows from another one.

use serde::de::DeserializeOwned;

use super::de::Reader;
use super::error::{ErrorKind, closest};
use super::tree::{Kind, Node, Tree};
use crate::yaml::problem::Path;

/// Most faults reported at once: a file with more is not of our format.
const MOST_FAULTS: usize = 50;

/// A fault of the value at `path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldError {
    pub(crate) path: Path,
    pub(crate) message: String,
}

/// Reads a `T`. `elsewhere` returns the right place of a field that is unknown where it stands.
///
/// # Errors
/// All faults that were found, up to a bound, in no order.
pub(crate) fn read<T: DeserializeOwned>(
    tree: &Tree,
    elsewhere: &dyn Fn(&str) -> Option<String>,
) -> Result<T, Vec<FieldError>> {
    let mut tree = tree.clone();
    let mut faults = Vec::new();
    // Fields that were meant by misspelt ones, and so are not missing.
    let mut meant = Vec::new();
    loop {
        let reader = Reader { node: &tree.root, path: Path::default() };
        let error = match T::deserialize(reader) {
            Ok(value) if faults.is_empty() => return Ok(value),
            Ok(_) => return Err(faults),
            Err(error) => error,
        };
        let path = error.path.unwrap_or_default();
        let Some(node) = tree.node_mut(&path) else { return Err(faults) };
        let (field, silent) = match &error.kind {
            // A field that was removed as faulty is reported already.
            ErrorKind::MissingField(name) => {
                let field = path.key(name);
                let reported = node.lost(Some(name)) || meant.contains(&field);
                (field, reported)
            }
            ErrorKind::UnknownField { name, known } => {
                meant.extend(closest(name, known).map(|near| path.sibling(near)));
                (path.clone(), false)
            }
            ErrorKind::NoVariant(_) => (path.clone(), node.lost(None)),
            // A field that is named and left empty counts as not written, as in Kubernetes.
            ErrorKind::Value(_) => (path.clone(), node.is_null() && !path.ends_in_list()),
            ErrorKind::UnknownVariant { .. } => (path.clone(), false),
        };
        let empty = silent && node.is_null();
        node.kind = Kind::Removed { faulty: !empty };
        if !silent {
            faults.push(FieldError { path: field, message: error.kind.message(elsewhere) });
        }
        if faults.len() >= MOST_FAULTS || path.steps().is_empty() {
            return Err(faults);
        }
    }
}

impl Node {
    /// Whether the field `name` was here and faulty; without a name, whether any was.
    fn lost(&self, name: Option<&str>) -> bool {
        let Kind::Map(entries) = &self.kind else { return false };
        entries.iter().any(|entry| {
            matches!(entry.value.kind, Kind::Removed { faulty: true })
                && name.is_none_or(|name| entry.key == name)
        })
    }
}
