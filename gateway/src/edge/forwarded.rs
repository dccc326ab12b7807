//! `x-forwarded-for`, `-proto` and `-host`: believed of the proxies in front that are known, written
//! anew for everybody else. Pure.

use std::net::IpAddr;

use forebay_config::Network;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::net::host::Host;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Longest chain of proxies that is passed on.
const MAX_CHAIN: usize = 1024;

/// One request's way here.
pub(crate) struct Hop {
    /// The other end of the connection.
    pub(crate) peer: IpAddr,
    pub(crate) encrypted: bool,
    /// As the client named it: the authority of HTTP/2, or the `host` header.
    pub(crate) host: Option<HeaderValue>,
}

/// What the first of the known proxies in front was called by, if they say so.
pub(crate) fn host<'a>(
    headers: &'a HeaderMap,
    peer: IpAddr,
    trusted: &[Network],
) -> Option<Host<'a>> {
    let believed = trusted.iter().any(|network| network.contains(peer));
    let chain = headers.get(&HOST).filter(|_| believed)?.to_str().ok()?;
    Host::parse(chain.split(',').next()?.trim())
}

/// Whether every host of a chain of proxies is one.
fn are_hosts(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(&HOST).iter().peekable();
    let host = |value: &HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        text.len() <= MAX_CHAIN && text.split(',').all(|host| Host::parse(host.trim()).is_some())
    };
    hosts.peek().is_some() && hosts.all(host)
}

/// Writes where a request came from; the address is the client's own, or the first that no known
/// proxy vouches for.
pub(crate) fn forward(headers: &mut HeaderMap, hop: Hop, trusted: &[Network]) -> IpAddr {
    let known = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let peer = hop.peer.to_canonical();
    let mut client = peer;
    // Nobody here can tell what it means; readers behind would take it for ours.
    headers.remove(header::FORWARDED);
    headers.remove(REAL_IP);
    let believed = known(peer);
    let mut chain = String::new();
    if believed {
        let given: Vec<&str> =
            headers.get_all(&FOR).iter().filter_map(|value| value.to_str().ok()).collect();
        chain = given.join(", ");
        if chain.len() > MAX_CHAIN {
            chain.clear();
        }
        for hop in chain.rsplit(',') {
            let Some(address) = address(hop) else { break };
            client = address;
            if !known(address) {
                break;
            }
        }
    }
    if !chain.is_empty() {
        chain.push_str(", ");
    }
    chain.push_str(&peer.to_string());
    set(headers, FOR, &chain);
    let proto = headers.get(&PROTO).map(HeaderValue::as_bytes);
    if !(believed && proto.is_some_and(|proto| matches!(proto, b"http" | b"https"))) {
        set(headers, PROTO, if hop.encrypted { "https" } else { "http" });
    }
    if !believed {
        headers.remove(PORT);
    }
    if !(believed && are_hosts(headers)) {
        match hop.host {
            Some(host) => drop(headers.insert(HOST, host)),
            None => drop(headers.remove(HOST)),
        }
    }
    client
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => drop(headers.remove(name)),
    }
}

/// Some write ports, and v6 in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let address = text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|it| it.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(with_port).or_else(bracketed).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent on, and who the client is.
    fn sent(peer: &str, encrypted: bool, given: &[(&'static str, &str)]) -> (String, String) {
        let trusted: Vec<Network> =
            ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().expect("valid")).to_vec();
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        let peer = peer.parse().expect("an address");
        let host = HeaderValue::from_static("gateway.example:8443");
        let hop = Hop { peer, encrypted, host: Some(host) };
        let client = forward(&mut headers, hop, &trusted);
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        lines.sort();
        (lines.join("\n"), client.to_string())
    }

    #[test]
    fn what_a_stranger_says_of_its_way_is_written_anew() {
        let (sent, client) = sent(
            "203.0.113.9",
            true,
            &[
                ("x-forwarded-for", "1.1.1.1"),
                ("x-forwarded-proto", "ftp"),
                ("x-forwarded-host", "evil.example"),
                ("x-forwarded-port", "1"),
                ("x-real-ip", "1.1.1.1"),
                ("forwarded", "for=1.1.1.1"),
            ],
        );
        assert_eq!(
            sent,
            "x-forwarded-for: 203.0.113.9\nx-forwarded-host: gateway.example:8443\n\
             x-forwarded-proto: https"
        );
        assert_eq!(client, "203.0.113.9");
    }

    #[test]
    fn a_known_proxy_is_believed_and_added() {
        let (sent, client) = sent(
            "::ffff:10.1.1.1",
            false,
            &[
                ("x-forwarded-for", "9.9.9.9, 203.0.113.9"),
                ("x-forwarded-for", "10.2.2.2:443"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "chat.example"),
            ],
        );
        assert_eq!(
            sent,
            "x-forwarded-for: 9.9.9.9, 203.0.113.9, 10.2.2.2:443, 10.1.1.1\n\
             x-forwarded-host: chat.example\nx-forwarded-proto: https"
        );
        assert_eq!(client, "203.0.113.9", "the first that no known proxy vouches for");
    }

    #[test]
    fn the_client_is_the_last_that_can_be_read_and_believed() {
        for (peer, chain, client) in [
            ("10.1.1.1", "", "10.1.1.1"),
            ("10.1.1.1", "10.3.3.3, 10.2.2.2", "10.3.3.3"),
            ("10.1.1.1", "203.0.113.9, unknown", "10.1.1.1"),
            ("fd00::1", "2001:db8::7", "2001:db8::7"),
            ("fd00::1", "[2001:db8::7]:99, [fd00::2]", "2001:db8::7"),
            ("203.0.113.9", "10.1.1.1", "203.0.113.9"),
        ] {
            let given: &[_] = if chain.is_empty() { &[] } else { &[("x-forwarded-for", chain)] };
            assert_eq!(sent(peer, false, given).1, client, "{chain:?} by {peer}");
        }
        let endless = "1.1.1.1, ".repeat(1000);
        let (sent, _) = sent("10.1.1.1", false, &[("x-forwarded-for", &endless)]);
        assert!(sent.len() < 200, "{sent}");
    }
}
