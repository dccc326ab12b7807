//! Tree → typed value, with every error of the file and not just the first.
//!
//! Serde stops at the first error. So the offending value is reported, taken out of the tree, and
//! the tree is read again, until it is read whole. Only values without a fault of their own are
//! left then, so that no error follows from another one.

use std::fmt;

use serde::de::{self, DeserializeOwned};

use super::de::Reader;
use super::tree::{Kind, Node, Tree};
use crate::yaml::problem::Path;

/// Most faults reported at once: a file with more is not of our format.
const MOST_FAULTS: usize = 50;

/// One thing that is wrong with the value at `path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) path: Path,
    pub(crate) message: String,
}

/// Reads a `T`; `elsewhere` says where a field that is unknown at its place does belong.
///
/// # Errors
/// All faults that were found, up to a bound, in no order.
pub(crate) fn read<T: DeserializeOwned>(
    tree: &Tree,
    elsewhere: &dyn Fn(&str) -> Option<String>,
) -> Result<T, Vec<Fault>> {
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
            // What is missing because it was faulty has been reported.
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
            faults.push(Fault { path: field, message: error.kind.message(elsewhere) });
        }
        if faults.len() >= MOST_FAULTS || path.steps().is_empty() {
            return Err(faults);
        }
    }
}

/// An error and, once it has passed the value that it is about, where that is.
#[derive(Debug)]
pub(super) struct Error {
    pub(super) path: Option<Path>,
    pub(super) kind: ErrorKind,
}

/// What is wrong with it.
#[derive(Debug)]
pub(super) enum ErrorKind {
    UnknownField {
        name: String,
        known: &'static [&'static str],
    },
    UnknownVariant {
        name: String,
        known: &'static [&'static str],
    },
    MissingField(&'static str),
    /// None of an enum's variants is given, or several are.
    NoVariant(&'static [&'static str]),
    Value(String),
}

impl Error {
    pub(super) fn value(message: impl Into<String>) -> Self {
        Self { path: None, kind: ErrorKind::Value(message.into()) }
    }

    /// The innermost value that an error passes is the one it is about.
    pub(super) fn at(mut self, path: &Path) -> Self {
        self.path.get_or_insert_with(|| path.clone());
        self
    }
}

impl ErrorKind {
    fn message(&self, elsewhere: &dyn Fn(&str) -> Option<String>) -> String {
        match self {
            Self::UnknownField { name, known } => {
                let near = closest(name, known);
                if let Some(place) = elsewhere(name) {
                    format!("unknown field here; it belongs to {place}")
                } else if let Some(near) = near {
                    format!("unknown field; did you mean {near}?")
                } else {
                    format!("unknown field; known here: {}", known.join(", "))
                }
            }
            Self::UnknownVariant { name, known } => match closest(name, known) {
                Some(near) => format!("`{name}` is not known; did you mean {near}?"),
                None => format!("`{name}` is not known; give one of: {}", known.join(", ")),
            },
            Self::MissingField(_) => "missing; it must be given".to_owned(),
            Self::NoVariant(known) => format!("give exactly one of: {}", known.join(", ")),
            Self::Value(message) => message.clone(),
        }
    }
}

/// The known name that was probably meant: the same but for case and separators, or near enough.
pub(crate) fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let bare = |text: &str| text.replace(['_', '-'], "").to_lowercase();
    let wanted = bare(name);
    let scored = known.iter().map(|it| (strsim::jaro_winkler(&wanted, &bare(it)), *it));
    let best = scored.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.filter(|(score, _)| *score >= 0.85).map(|(_, it)| it)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind.message(&|_| None))
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::value(message.to_string())
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self { path: None, kind: ErrorKind::UnknownField { name: field.to_owned(), known } }
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Self { path: None, kind: ErrorKind::UnknownVariant { name: variant.to_owned(), known } }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { path: None, kind: ErrorKind::MissingField(field) }
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
