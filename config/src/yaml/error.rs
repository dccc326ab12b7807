//! Errors of reading a value, and the known name that a misspelt one probably means.

use std::fmt;

use serde::de;

use crate::yaml::problem::Path;

/// An error, with the path of its value once that is known.
#[derive(Debug)]
pub(super) struct Error {
    pub(super) path: Option<Path>,
    pub(super) kind: ErrorKind,
}

/// The fault of a value.
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

    /// Adds the path. The first one that is added belongs to the innermost value, and stays.
    pub(super) fn at(mut self, path: &Path) -> Self {
        self.path.get_or_insert_with(|| path.clone());
        self
    }
}

impl ErrorKind {
    pub(super) fn message(&self, elsewhere: &dyn Fn(&str) -> Option<String>) -> String {
        match self {
            Self::UnknownField { name, known } => match (closest(name, known), elsewhere(name)) {
                (Some(near), Some(place)) => {
                    format!("unknown field here; did you mean {near}? {name} belongs to {place}")
                }
                (None, Some(place)) => format!("unknown field here; it belongs to {place}"),
                (Some(near), None) => format!("unknown field; did you mean {near}?"),
                (None, None) => format!("unknown field; known here: {}", known.join(", ")),
            },
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

/// The known name that was probably meant: one that differs in case and separators only, or the
/// nearest if it is near enough.
pub(crate) fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let bare = |text: &str| text.replace(['_', '-'], "").to_lowercase();
    let wanted = bare(name);
    let scored = known.iter().map(|name| (strsim::jaro_winkler(&wanted, &bare(name)), *name));
    let best = scored.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.filter(|(score, _)| *score >= 0.85).map(|(_, name)| name)
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
