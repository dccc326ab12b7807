//! Durations, sizes and the like as people write them, and back in the same form.
//!
//! Each has a type or module for serde and a schema that says what is accepted, so that an editor
//! objects to the same things as we do.

use std::net::SocketAddr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(crate) mod duration;
pub(crate) mod size;

pub use duration::{DurationError, format_duration, parse_duration};
pub use size::{ByteSize, SizeError};

/// Schema of a count that may be quoted, as KEDA and its users' templates write them.
pub(crate) struct Count;

impl JsonSchema for Count {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Count".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "title": "count",
            "type": ["integer", "string"],
            "minimum": 0,
            "maximum": u32::MAX,
            "pattern": "^[0-9]+$",
        })
    }
}

/// Schema of a text that may look like a number, as GPUs and ports on a command line do.
pub(crate) struct Word;

impl JsonSchema for Word {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Word".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "number", "boolean"]})
    }
}

/// For `#[serde(with)]`: an address to listen on, `IP:PORT`.
pub(crate) mod address {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(it: &SocketAddr, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(it)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<SocketAddr, D::Error> {
        let text = String::deserialize(d)?;
        let wanted = text.parse();
        wanted.map_err(|_| {
            let port = text.rsplit(':').next().unwrap_or_default();
            let port = if port.parse::<u16>().is_ok() { port } else { "8080" };
            D::Error::custom(format!(
                "`{text}` is not IP:PORT; write 127.0.0.1:{port}, or 0.0.0.0:{port} for all \
                 interfaces"
            ))
        })
    }
}

/// For `#[serde(with)]`: ports from first to last, `18100-18999`.
pub(crate) mod port_range {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(ports: &(u16, u16), s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{}-{}", ports.0, ports.1))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<(u16, u16), D::Error> {
        let text = String::deserialize(d)?;
        let range = text.split_once('-').and_then(|(first, last)| {
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        });
        range.ok_or_else(|| {
            D::Error::custom(format!("`{text}` is not a range of ports; write 18100-18999"))
        })
    }

    pub(crate) struct Text;

    impl JsonSchema for Text {
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "PortRange".into()
        }

        fn inline_schema() -> bool {
            true
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({
                "title": "ports",
                "type": "string",
                "pattern": "^[0-9]{1,5} *- *[0-9]{1,5}$",
            })
        }
    }
}
