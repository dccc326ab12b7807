//! Tree → typed value, with every error of the file and not just the first.
//!
//! Serde stops at the first error. So the offending value is reported, taken out of the tree, and
//! the tree is read again, until it is read whole. Only values without a fault of their own are
//! left then, so that no error follows from another one.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::tree::{Entry, Kind, Node, Tree};
use crate::problem::Path;

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
struct Error {
    path: Option<Path>,
    kind: ErrorKind,
}

#[derive(Debug)]
enum ErrorKind {
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
    fn value(message: impl Into<String>) -> Self {
        Self { path: None, kind: ErrorKind::Value(message.into()) }
    }

    /// The innermost value that an error passes is the one it is about.
    fn at(mut self, path: &Path) -> Self {
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
fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
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

/// Deserializes one node.
struct Reader<'a> {
    node: &'a Node,
    path: Path,
}

impl<'a> Reader<'a> {
    fn read<'de, S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        let path = self.path.clone();
        seed.deserialize(self).map_err(|error| error.at(&path))
    }

    /// A scalar's text, where `wanted` is to be read.
    fn text(&self, wanted: &str) -> Result<&'a str, Error> {
        match &self.node.kind {
            Kind::Scalar { text, .. } if !self.node.is_null() => Ok(text),
            _ => Err(self.unfit(wanted)),
        }
    }

    fn unfit(&self, wanted: &str) -> Error {
        if self.node.is_null() {
            return Error::value(format!("empty; {wanted} must be given"));
        }
        let found = match &self.node.kind {
            Kind::Scalar { text, .. } => format!("`{text}`"),
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "a mapping".to_owned(),
            Kind::Removed { .. } => "nothing".to_owned(),
        };
        Error::value(format!("must be {wanted}, not {found}"))
    }
}

/// Numbers are read from their text, so that they may be quoted, as templates tend to leave them.
macro_rules! whole_numbers {
    ($($method:ident $visit:ident $type:ty,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let text = self.text("a whole number")?;
            match text.parse::<$type>() {
                Ok(number) => visitor.$visit(number),
                Err(_) if text.parse::<i128>().is_ok() => Err(Error::value(format!(
                    "`{text}` is out of range: {} to {}", <$type>::MIN, <$type>::MAX
                ))),
                Err(_) => Err(Error::value(format!("`{text}` is not a whole number"))),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = Error;

    whole_numbers! {
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::Scalar { .. } if self.node.is_null() => visitor.visit_unit(),
            Kind::Scalar { text, plain: true } => {
                if let Ok(number) = text.parse::<u64>() {
                    visitor.visit_u64(number)
                } else if let Ok(number) = text.parse::<i64>() {
                    visitor.visit_i64(number)
                } else if let Some(number) = finite(text) {
                    visitor.visit_f64(number)
                } else {
                    match text.as_str() {
                        "true" | "True" | "TRUE" => visitor.visit_bool(true),
                        "false" | "False" | "FALSE" => visitor.visit_bool(false),
                        text => visitor.visit_str(text),
                    }
                }
            }
            Kind::Scalar { text, plain: false } => visitor.visit_str(text),
            Kind::List(items) => visitor.visit_seq(List { items, next: 0, path: &self.path }),
            Kind::Map(entries) => visitor.visit_map(Map { entries, next: 0, path: &self.path }),
            Kind::Removed { .. } => visitor.visit_unit(),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = self.text("a number")?;
        match finite(text) {
            Some(number) => visitor.visit_f64(number),
            None => Err(Error::value(format!("`{text}` is not a number"))),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.text("true or false")? {
            "true" | "True" | "TRUE" => visitor.visit_bool(true),
            "false" | "False" | "FALSE" => visitor.visit_bool(false),
            text => Err(Error::value(format!("must be true or false, not `{text}`"))),
        }
    }

    /// Any scalar is text where text is wanted: `models: [1.10]` keeps its zero.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.text("text")?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::List(items) => visitor.visit_seq(List { items, next: 0, path: &self.path }),
            Kind::Scalar { text, .. } if !self.node.is_null() => {
                Err(Error::value(format!("must be a list; write [{text}]")))
            }
            _ => Err(self.unfit("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::Map(entries) => visitor.visit_map(Map { entries, next: 0, path: &self.path }),
            _ => Err(self.unfit("a mapping of fields")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::Scalar { text, .. } if !self.node.is_null() => {
                visitor.visit_enum(Variant { name: text, value: None, path: self.path })
            }
            Kind::Map(entries) => {
                let mut left = entries.iter().filter(|entry| !entry.is_removed());
                match (left.next(), left.next()) {
                    (Some(entry), None) => visitor.visit_enum(Variant {
                        name: &entry.key,
                        value: Some(&entry.value),
                        path: self.path,
                    }),
                    _ => Err(Error { path: None, kind: ErrorKind::NoVariant(variants) }),
                }
            }
            _ => Err(self.unfit(&format!("one of: {}", variants.join(", ")))),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

/// A float as YAML writes it, but for its infinities and NaN, which no field takes.
fn finite(text: &str) -> Option<f64> {
    let digits = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    text.parse().ok().filter(|number: &f64| digits && number.is_finite())
}

struct List<'a> {
    items: &'a [Node],
    next: usize,
    path: &'a Path,
}

impl<'de> SeqAccess<'de> for List<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        while let Some(node) = self.items.get(self.next) {
            let path = self.path.index(self.next);
            self.next += 1;
            if !matches!(node.kind, Kind::Removed { .. }) {
                return Reader { node, path }.read(seed).map(Some);
            }
        }
        Ok(None)
    }
}

struct Map<'a> {
    entries: &'a [Entry],
    next: usize,
    path: &'a Path,
}

impl<'de> MapAccess<'de> for Map<'_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        while let Some(entry) = self.entries.get(self.next) {
            if !entry.is_removed() {
                let key: StrDeserializer<'_, Error> = entry.key.as_str().into_deserializer();
                let read = seed.deserialize(key).map(Some);
                return read.map_err(|error| error.at(&self.path.key(&entry.key)));
            }
            self.next += 1;
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let entry = self.entries.get(self.next);
        let Some(entry) = entry else { return Err(Error::value("a value is missing")) };
        self.next += 1;
        Reader { node: &entry.value, path: self.path.key(&entry.key) }.read(seed)
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

impl Entry {
    fn is_removed(&self) -> bool {
        matches!(self.value.kind, Kind::Removed { .. })
    }
}

/// An enum's variant: `name`, or `name: value`.
struct Variant<'a> {
    name: &'a str,
    value: Option<&'a Node>,
    path: Path,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Error> {
        let name: StrDeserializer<'_, Error> = self.name.into_deserializer();
        let path = if self.value.is_some() { self.path.key(self.name) } else { self.path.clone() };
        let variant = seed.deserialize(name).map_err(|error| error.at(&path))?;
        Ok((variant, Self { path, ..self }))
    }
}

impl<'a> Variant<'a> {
    fn reader(self) -> Result<Reader<'a>, Error> {
        match self.value {
            Some(node) => Ok(Reader { node, path: self.path }),
            None => Err(Error::value(format!("`{}` needs its fields below it", self.name))),
        }
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.value {
            Some(node) if !node.is_null() => {
                Err(Error::value(format!("`{}` takes no fields", self.name)).at(&self.path))
            }
            _ => Ok(()),
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        self.reader()?.read(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        let reader = self.reader()?;
        let path = reader.path.clone();
        de::Deserializer::deserialize_seq(reader, visitor).map_err(|error| error.at(&path))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let reader = self.reader()?;
        let path = reader.path.clone();
        de::Deserializer::deserialize_map(reader, visitor).map_err(|error| error.at(&path))
    }
}
