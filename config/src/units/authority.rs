//! Addresses that Forebay connects to.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::units::host::is_name;
use crate::units::redact::redacted;

/// A text is not an address to connect to. The message says why, and what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Another scheme than `http`.
    #[error("`{0}`: only plain http is supported; write HOST:PORT or http://HOST:PORT")]
    Scheme(String),
    /// A path, query or user after or before the authority.
    #[error("`{0}`: an address ends with its port; write HOST:PORT or http://HOST:PORT")]
    Path(String),
    /// No port, or none between 1 and 65535.
    #[error("`{0}` has no port from 1 to 65535; write HOST:PORT or http://HOST:PORT")]
    Port(String),
    /// Neither a name nor an IP address before the port.
    #[error("`{0}` has no valid host; write HOST:PORT or http://HOST:PORT, an IPv6 address in []")]
    Host(String),
}

/// The `HOST:PORT` of an address that is written so or as `http://HOST:PORT`, with or without a
/// `/` at its end.
///
/// # Errors
/// The text is not such an address.
pub fn authority(text: &str) -> Result<&str, AddressError> {
    let whole = || redacted(text).into_owned();
    let bare = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some(_) => return Err(AddressError::Scheme(whole())),
        None => text,
    };
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    if bare.contains(['/', '?', '#', '@']) {
        return Err(AddressError::Path(whole()));
    }
    let (host, port) = bare.rsplit_once(':').ok_or_else(|| AddressError::Port(whole()))?;
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(AddressError::Port(whole()));
    }
    let valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => {
            let name = host.strip_suffix('.').unwrap_or(host);
            host.parse::<Ipv4Addr>().is_ok() || is_name(name)
        }
    };
    if valid { Ok(bare) } else { Err(AddressError::Host(whole())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port_with_or_without_http() {
        for (text, expected) in [
            ("127.0.0.1:8000", "127.0.0.1:8000"),
            ("http://127.0.0.1:8000", "127.0.0.1:8000"),
            ("HTTP://vllm.models.svc:8000/", "vllm.models.svc:8000"),
            ("my_replica-0:1", "my_replica-0:1"),
            ("[::1]:8000", "[::1]:8000"),
        ] {
            assert_eq!(authority(text), Ok(expected));
        }
    }

    #[test]
    fn a_text_that_is_not_an_address_is_refused_with_what_to_write() {
        use AddressError::{Host, Path, Port, Scheme};
        type Makes = fn(String) -> AddressError;
        let cases: [(&str, Makes); 14] = [
            ("https://host:443", Scheme),
            ("unix:///run/vllm.sock", Scheme),
            ("http://host:8000/v1", Path),
            ("user@host:8000", Path),
            ("host", Port),
            ("host:", Port),
            ("host:0", Port),
            ("host:+80", Port),
            ("host:65536", Port),
            ("::1", Host),
            ("", Port),
            (":8000", Host),
            ("1.2.3.400:8000", Host),
            ("ho st:8000", Host),
        ];
        for (text, error) in cases {
            assert_eq!(authority(text), Err(error(text.to_owned())), "{text}");
        }
    }
}
