//! `x-forwarded-for`, `-proto` and `-host`: kept if a trusted proxy sent them, and written anew
//! otherwise. Pure.

use std::net::IpAddr;

use forebay_config::Network;
use http::header::{HeaderMap, HeaderValue};

use crate::net::host::Host;
use crate::read::head::{FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, Forwarding};

/// The longest chain of proxies that is passed on.
const MAX_CHAIN: usize = 1024;

/// The host by which the client reached the first trusted proxy, if the proxies say so.
pub(crate) fn host<'a>(
    headers: &'a HeaderMap,
    peer: IpAddr,
    trusted: &[Network],
) -> Option<Host<'a>> {
    let believed = trusted.iter().any(|network| network.contains(peer));
    let chain = if believed { headers.get(&FORWARDED_HOST)?.to_str().ok()? } else { return None };
    Host::parse(chain.split(',').next()?.trim())
}

/// Whether every item of `x-forwarded-host` is a host.
fn are_hosts(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(&FORWARDED_HOST).iter().peekable();
    let host = |value: &HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        text.len() <= MAX_CHAIN && text.split(',').all(|host| Host::parse(host.trim()).is_some())
    };
    hosts.peek().is_some() && hosts.all(host)
}

/// Reads the headers of a request that `peer` sent. Returns the address of the client, which is the
/// last in the chain that is not a trusted proxy's, and the headers for replicas.
pub(crate) fn forward(
    headers: &HeaderMap,
    peer: IpAddr,
    encrypted: bool,
    trusted: &[Network],
) -> (IpAddr, Forwarding) {
    let known = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let peer = peer.to_canonical();
    let scheme = Some(if encrypted { "https" } else { "http" });
    let mut forwarding =
        Forwarding { chain: String::new(), peer, scheme, own_host: true, keeps_port: false };
    if !known(peer) {
        return (peer, forwarding);
    }
    let mut client = peer;
    // A client can put anything before the part that the proxies wrote.
    let given = headers
        .get_all(&FORWARDED_FOR)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()));
    forwarding.chain = given.collect::<Vec<_>>().join(", ");
    for item in forwarding.chain.rsplit(',') {
        let Some(address) = address(item) else { break };
        client = address;
        if !known(address) {
            break;
        }
    }
    if forwarding.chain.len() > MAX_CHAIN {
        forwarding.chain.clear();
    }
    let proto = headers.get(&FORWARDED_PROTO).map(HeaderValue::as_bytes);
    if proto.is_some_and(|proto| matches!(proto, b"http" | b"https")) {
        forwarding.scheme = None;
    }
    forwarding.own_host = !are_hosts(headers);
    forwarding.keeps_port = true;
    (client, forwarding)
}

/// An address. Some proxies add a port, or put IPv6 in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let address = text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(with_port).or_else(bracketed).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(
        peer: &str,
        encrypted: bool,
        given: &[(&'static str, &str)],
    ) -> (String, Forwarding) {
        let trusted: Vec<Network> =
            ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().expect("valid")).to_vec();
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        let peer = peer.parse().expect("an address");
        let (client, forwarding) = forward(&headers, peer, encrypted, &trusted);
        (client.to_string(), forwarding)
    }

    #[test]
    fn headers_of_an_unknown_peer_are_written_anew() {
        let (client, forwarding) = forwarded(
            "203.0.113.9",
            true,
            &[
                ("x-forwarded-for", "1.1.1.1"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-host", "evil.example"),
                ("x-forwarded-port", "1"),
            ],
        );
        let want = Forwarding {
            chain: String::new(),
            peer: IpAddr::from([203, 0, 113, 9]),
            scheme: Some("https"),
            own_host: true,
            keeps_port: false,
        };
        assert_eq!((client.as_str(), forwarding), ("203.0.113.9", want));
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_added_to_the_chain() {
        let (client, forwarding) = forwarded(
            "::ffff:10.1.1.1",
            false,
            &[
                ("x-forwarded-for", "9.9.9.9, 203.0.113.9"),
                ("x-forwarded-for", "10.2.2.2:443"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "chat.example"),
            ],
        );
        let want = Forwarding {
            chain: "9.9.9.9, 203.0.113.9, 10.2.2.2:443".to_owned(),
            peer: IpAddr::from([10, 1, 1, 1]),
            scheme: None,
            own_host: false,
            keeps_port: true,
        };
        assert_eq!(forwarding, want);
        assert_eq!(client, "203.0.113.9", "the first address that is not a trusted proxy's");
        let invalid = [("x-forwarded-proto", "ftp"), ("x-forwarded-host", "a/b")];
        let (_, forwarding) = forwarded("10.1.1.1", false, &invalid);
        assert_eq!((forwarding.scheme, forwarding.own_host), (Some("http"), true));
    }

    #[test]
    fn the_client_is_the_first_address_behind_the_trusted_proxies() {
        for (peer, chain, client) in [
            ("10.1.1.1", "", "10.1.1.1"),
            ("10.1.1.1", "10.3.3.3, 10.2.2.2", "10.3.3.3"),
            ("10.1.1.1", "203.0.113.9, unknown", "10.1.1.1"),
            ("fd00::1", "2001:db8::7", "2001:db8::7"),
            ("fd00::1", "[2001:db8::7]:99, [fd00::2]", "2001:db8::7"),
            ("203.0.113.9", "10.1.1.1", "203.0.113.9"),
            ("10.1.1.1", "caf\u{e9}, 203.0.113.9", "203.0.113.9"),
        ] {
            let given: &[_] = if chain.is_empty() { &[] } else { &[("x-forwarded-for", chain)] };
            assert_eq!(forwarded(peer, false, given).0, client, "{chain:?} by {peer}");
        }
        let endless = "1.1.1.1, ".repeat(1000) + "203.0.113.9";
        let (client, forwarding) = forwarded("10.1.1.1", false, &[("x-forwarded-for", &endless)]);
        assert_eq!((client.as_str(), forwarding.chain.as_str()), ("203.0.113.9", ""));
    }
}
