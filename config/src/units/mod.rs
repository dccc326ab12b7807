//! Durations, sizes and the like as people write them, and back in the same form.
//!
//! Each has a type or module for serde, and a schema by which an editor rejects the same texts.
//!
//! Durations, sizes and cron expressions are read by hand, since they follow Kubernetes and KEDA (bare numbers are seconds, `Mi` is binary, five fields of cron with KEDA's extras), and
//! their errors say what to write instead.

use std::net::SocketAddr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(crate) mod authority;
pub(crate) mod cron;
pub(crate) mod duration;
pub(crate) mod host;
pub(crate) mod millis;
pub(crate) mod network;
pub(crate) mod redact;
pub(crate) mod size;

pub use duration::{DurationError, format_duration, parse_duration};
pub use size::{ByteSize, SizeError};

/// Schema of a count that may be quoted, as KEDA and its users' templates write them.
pub(crate) struct CountSchema;

impl JsonSchema for CountSchema {
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
pub(crate) struct WordSchema;

impl JsonSchema for WordSchema {
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

/// For `#[serde(with)]`: a number that may be written as a Kubernetes quantity, `0.05` or `50m`.
pub(crate) mod quantity {
    use super::*;

    #[allow(clippy::ref_option)] // serde's signature
    pub(crate) fn serialize<S: Serializer>(number: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
        match number {
            Some(number) => s.serialize_f64(*number),
            None => s.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
        let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
        let (digits, scale) = match text.strip_suffix('m') {
            Some(milli) => (milli, 1000.0),
            None => (text.as_str(), 1.0),
        };
        let number = digits.parse::<f64>().ok().filter(|number| number.is_finite());
        number.map(|number| Some(number / scale)).ok_or_else(|| {
            D::Error::custom(format!("`{text}` is not a quantity; write for example 0.05 or 50m"))
        })
    }

    pub(crate) struct QuantitySchema;

    impl JsonSchema for QuantitySchema {
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "Quantity".into()
        }

        fn inline_schema() -> bool {
            true
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({
                "title": "quantity",
                "type": ["number", "string"],
                "minimum": 0,
                "pattern": "^[0-9]+(\\.[0-9]+)?m?$",
            })
        }
    }
}

/// For `#[serde(with)]`: an address to listen on, `IP:PORT`.
pub(crate) mod address {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(address: &SocketAddr, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(address)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<SocketAddr, D::Error> {
        parse_listen_address(&String::deserialize(d)?).map_err(D::Error::custom)
    }
}

/// An address to listen on, `IP:PORT`.
///
/// # Errors
/// The text is not one; the message says what to write.
pub fn parse_listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let port = text.rsplit(':').next().unwrap_or_default();
        let port = if port.parse::<u16>().is_ok() { port } else { "8080" };
        format!(
            "`{text}` is not IP:PORT; write 127.0.0.1:{port}, or 0.0.0.0:{port} for all interfaces"
        )
    })
}

/// Ports from first to last, `18100-18999`.
///
/// # Errors
/// The text is not such a range; the message says what to write.
pub fn parse_port_range(text: &str) -> Result<(u16, u16), String> {
    let range = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)));
    range.ok_or_else(|| format!("`{text}` is not a range of ports; write 18100-18999"))
}

/// For `#[serde(with)]`: ports from first to last, `18100-18999`.
pub(crate) mod port_range {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(ports: &(u16, u16), s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{}-{}", ports.0, ports.1))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<(u16, u16), D::Error> {
        parse_port_range(&String::deserialize(d)?).map_err(D::Error::custom)
    }

    pub(crate) struct PortRangeSchema;

    impl JsonSchema for PortRangeSchema {
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
