//! A host as clients write it, `NAME[:PORT]`. Pure; borrows its text, since every request has a
//! host.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use forebay_config::{HostPattern, is_name};

/// The host that a request names, or the site of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host<'a> {
    pub(crate) name: HostName<'a>,
    pub(crate) port: Option<u16>,
}

#[derive(Clone, Copy, Debug, Eq)]
pub(crate) enum HostName<'a> {
    Address(IpAddr),
    /// A name without a dot at its end; its case does not count.
    Name(&'a str),
}

impl<'a> Host<'a> {
    /// Reads a host; `None` for text with a user, a path, an invalid port, or a character that no
    /// host has.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (name, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']')?;
                (HostName::Address(address.parse::<Ipv6Addr>().ok()?.to_canonical()), port)
            }
            None => {
                let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                let name = name.strip_suffix('.').unwrap_or(name);
                let name = match name.parse() {
                    Ok(address) => HostName::Address(IpAddr::V4(address)),
                    Err(_) if is_name(name) => HostName::Name(name),
                    Err(_) => return None,
                };
                (name, port)
            }
        };
        // The port may be missing behind its colon.
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            Some("") => None,
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(port.parse().ok()?)
            }
            None | Some(_) => return None,
        };
        Some(Self { name, port })
    }

    /// Reads a page's site from the header `origin`; `None` unless its scheme is http or https.
    pub(crate) fn of_origin(origin: &'a str) -> Option<Self> {
        let (scheme, rest) = origin.split_once("://")?;
        let default = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let host = Self::parse(rest)?;
        Some(Self { port: host.port.or(Some(default)), ..host })
    }

    /// Whether both are the same host and port; `default` is the port where none is given.
    pub(crate) fn is(&self, other: &Host<'_>, default: u16) -> bool {
        let port = |host: &Host<'_>| host.port.unwrap_or(default);
        self.name == other.name && port(self) == port(other)
    }
}

impl HostName<'_> {
    /// Whether the name means the machine it is used on: `localhost` and names below it, loopback
    /// addresses, and the unspecified address, which stands for all of the machine's own.
    pub(crate) fn is_loopback(&self) -> bool {
        match self {
            Self::Address(address) => address.is_loopback() || address.is_unspecified(),
            Self::Name(name) => {
                name.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case("localhost"))
            }
        }
    }

    pub(crate) fn matches(&self, pattern: &HostPattern) -> bool {
        match self {
            Self::Address(address) => pattern.has_address(*address),
            Self::Name(name) => pattern.has_name(name),
        }
    }
}

impl PartialEq for HostName<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Address(own), Self::Address(other)) => own == other,
            (Self::Name(own), Self::Name(other)) => own.eq_ignore_ascii_case(other),
            _ => false,
        }
    }
}

impl fmt::Display for HostName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_with_its_port() {
        let name = HostName::Name;
        let address = |address: &str| HostName::Address(address.parse().expect("an address"));
        for (text, want, port) in [
            ("Forebay.Example", name("forebay.example"), None),
            ("forebay.example.:8080", name("forebay.example"), Some(8080)),
            ("my_service", name("my_service"), None),
            ("a:", name("a"), None),
            ("a:080", name("a"), Some(80)),
            ("127.0.0.1:1", address("127.0.0.1"), Some(1)),
            ("[::1]", address("::1"), None),
            ("[::ffff:127.0.0.1]:80", address("127.0.0.1"), Some(80)),
        ] {
            assert_eq!(Host::parse(text), Some(Host { name: want, port }), "{text}");
        }
    }

    #[test]
    fn text_that_is_not_a_host_is_refused() {
        for text in [
            "",
            ":80",
            ".",
            "..",
            "a..b",
            "user@a",
            "a b",
            "a/b",
            "a?b",
            "a#b",
            "a,b",
            "a:b",
            "a:-1",
            "a:+1",
            "a:65536",
            "a:1:2",
            "::1",
            "[::1",
            "[::1]x",
            "[::1]:x",
            "[a]",
            "[]",
            "é.example",
            "a\tb",
            "http://a",
            "a%2eb",
            "*",
            "a\\b",
            "10.0.0.300",
            "127.1",
        ] {
            assert_eq!(Host::parse(text), None, "{text}");
        }
        assert_eq!(Host::parse(&"a".repeat(64)), None, "a label has 63 bytes at most");
    }

    #[test]
    fn only_this_machines_own_names_are_loopback() {
        for (text, want) in [
            ("localhost", true),
            ("LOCALHOST:1", true),
            ("app.localhost", true),
            ("127.0.0.1", true),
            ("127.255.0.9:80", true),
            ("[::1]", true),
            ("0.0.0.0:8080", true),
            ("[::]", true),
            ("localhost.evil.example", false),
            ("evillocalhost", false),
            ("127.0.0.1.evil.example", false),
            ("128.0.0.1", false),
            ("[fe80::1]", false),
        ] {
            assert_eq!(Host::parse(text).expect(text).name.is_loopback(), want, "{text}");
        }
    }

    #[test]
    fn an_origin_is_compared_by_host_and_port() {
        for (origin, host, same) in [
            ("http://a.example", "a.example", true),
            ("http://a.example", "A.example:80", true),
            ("https://a.example", "a.example", true),
            ("https://a.example:443", "a.example", true),
            ("http://localhost:8080", "localhost:8080", true),
            ("http://localhost:3000", "localhost:8080", false),
            ("http://localhost:8080", "127.0.0.1:8080", false),
            ("http://a.example", "b.example", false),
            ("https://a.example", "a.example:80", false),
        ] {
            let page = Host::of_origin(origin).expect(origin);
            let host = Host::parse(host).expect(host);
            let default = page.port.expect("an origin has a port");
            assert_eq!(page.is(&host, default), same, "{origin} {host:?}");
        }
        for origin in ["null", "", "file://", "chrome-extension://a", "http://a/b", "a.example"] {
            assert_eq!(Host::of_origin(origin), None, "{origin}");
        }
    }
}
