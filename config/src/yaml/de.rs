//! Serde's deserializer over a tree's nodes. It converts only where the meaning is clear, as with a
//! quoted number.
//!
//! Every error carries the path of its value.

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use serde::forward_to_deserialize_any;

use super::error::{Error, ErrorKind};
use super::flow::{flow_list, placeholder};
use super::tree::{Entry, Kind, Node};
use crate::yaml::problem::Path;

/// Deserializes one node.
pub(super) struct Reader<'a> {
    pub(super) node: &'a Node,
    pub(super) path: Path,
}

impl<'a> Reader<'a> {
    fn read<'de, S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        let path = self.path.clone();
        seed.deserialize(self).map_err(|error| error.at(&path))
    }

    /// A scalar's text. The error says that `wanted` was expected.
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
            Kind::Map(entries) => {
                let first =
                    entries.first().filter(|entry| entries.len() == 1 && entry.value.is_null());
                if let Some(name) = first.and_then(|entry| placeholder(&entry.key)) {
                    return Error::value(format!("must be {wanted}; write \"{name}\" in quotes"));
                }
                "a mapping".to_owned()
            }
            Kind::Removed { .. } => "nothing".to_owned(),
        };
        Error::value(format!("must be {wanted}, not {found}"))
    }
}

/// Numbers are read from their text, so they may be quoted, as templates often leave them.
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

    /// Any scalar can be read as text: `models: [1.10]` keeps its zero.
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
                let is_command = self.path.to_string().ends_with("command");
                let words: Vec<_> = if is_command {
                    text.split_whitespace().collect()
                } else {
                    vec![text.as_str()]
                };
                Err(Error::value(format!("must be a list; write {}", flow_list(&words))))
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

/// A float as YAML writes it, without infinities and NaN, which no field accepts.
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
