//! Hosts that clients may name: a name, every name under another, an address, a network, or any.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::units::network::Network;

/// `forebay.example.com`, `*.example.com` for every name under it, `192.168.1.5` or `10.0.0.0/8`,
/// or `*` for any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// Any host.
    Any,
    /// This name, in lower case.
    Name(String),
    /// Every name that ends in this suffix, which begins with a dot.
    Under(String),
    /// Every address of this network.
    Network(Network),
}

impl HostPattern {
    /// Whether it includes this name, which has no dot at its end.
    #[must_use]
    pub fn has_name(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Name(own) => own.eq_ignore_ascii_case(name),
            Self::Under(suffix) => {
                let under = name.len().checked_sub(suffix.len()).filter(|begin| *begin > 0);
                let end = under.and_then(|begin| name.get(begin..));
                end.is_some_and(|end| end.eq_ignore_ascii_case(suffix))
            }
            Self::Network(_) => false,
        }
    }

    /// Whether it includes an address.
    #[must_use]
    pub fn has_address(&self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Network(network) => network.contains(address),
            Self::Name(_) | Self::Under(_) => false,
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(network) = bare.parse() {
            return Ok(Self::Network(network));
        }
        let lower = text.to_ascii_lowercase();
        let lower = lower.strip_suffix('.').unwrap_or(&lower);
        let name = lower.strip_prefix("*.").unwrap_or(lower);
        if !is_name(name) {
            return Err(format!(
                "`{text}` is not a host; write a name or an address without scheme and port, \
                 *.example.com, 10.0.0.0/8, or * for any"
            ));
        }
        let under = name.len() < lower.len();
        Ok(if under { Self::Under(lower[1..].to_owned()) } else { Self::Name(name.to_owned()) })
    }
}

/// Whether a text is a host name: labels of letters, digits, `-` and `_` joined by dots, and not
/// numbers alone. A URI allows more characters, DNS does not.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(known)
    };
    let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.len() <= 253 && !numeric && text.split('.').all(label)
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Name(name) => f.write_str(name),
            Self::Under(suffix) => write!(f, "*{suffix}"),
            Self::Network(network) => network.fmt(f),
        }
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPattern {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for HostPattern {
    fn schema_name() -> Cow<'static, str> {
        "Host".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"title": "host", "type": "string", "pattern": "^[^ ]+$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_includes_what_it_says() {
        for (pattern, host, included) in [
            ("*", "evil.example", true),
            ("*", "203.0.113.9", true),
            ("Forebay.NS.svc", "forebay.ns.svc", true),
            ("forebay.ns.svc.", "forebay.ns.svc", true),
            ("forebay", "forebay.ns.svc", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "A.EXAMPLE.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "evilexample.com", false),
            ("192.168.1.5", "192.168.1.5", true),
            ("192.168.1.5", "192.168.1.6", false),
            ("10.0.0.0/8", "10.9.9.9", true),
            ("[fd00::1]", "fd00::1", true),
            ("fd00::/8", "fd12::1", true),
            ("my_service", "my_service", true),
        ] {
            let read: HostPattern = pattern.parse().expect(pattern);
            let has = match host.parse() {
                Ok(address) => read.has_address(address),
                Err(_) => read.has_name(host),
            };
            assert_eq!(has, included, "{pattern} {host}");
            assert_eq!(read.to_string().parse(), Ok(read), "{pattern} is written as it is read");
        }
    }

    #[test]
    fn a_text_that_is_not_a_host_is_refused_with_what_to_write() {
        for text in [
            "",
            ".",
            "*.",
            "a..b",
            "https://a.example",
            "a.example:8080",
            "a b",
            "*a.example",
            "a.*.example",
            "a/b",
            "[::1]:80",
            "user@a",
            "192.168.1.300",
            "192.168.1",
            "10.0.0.0/33",
            "é.example",
        ] {
            let error = text.parse::<HostPattern>().expect_err(text);
            assert!(error.contains("without scheme and port"), "{error}");
        }
    }
}
