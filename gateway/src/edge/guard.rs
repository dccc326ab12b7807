//! The guard against foreign web pages where no key is required. Pure.
//!
//! Every program that reaches the gateway is a client then, and so is every web page that a browser
//! near it opens. Three signs show a page that isn't the gateway's own: a `host` of the page's
//! site, whose DNS points here (DNS rebinding); a foreign `origin`; and a body that isn't declared
//! as JSON, since browsers send JSON to other sites only after a preflight.

use std::net::IpAddr;

use forebay_config::{Gateway, HostPattern};
use http::header::{self, HeaderMap, HeaderValue};

use crate::answer::refusal::Refusal;
use crate::edge::cors::Cors;
use crate::net::host::{Host, HostName};
use crate::read::known_headers::{KnownHeader, KnownHeaders};
use crate::tenant::api_keys;

/// The check of requests without a key.
pub(crate) struct Guard {
    /// `gateway.allowedHosts`.
    hosts: Vec<HostPattern>,
    /// Keys are configured but not required. A request that has one is judged by its key.
    keys: bool,
}

/// The hosts that a request names as the gateway's own.
pub(crate) struct NamedHosts<'a> {
    /// The authority of HTTP/2, or `host`. Only an HTTP/1.0 request may lack it, and browsers don't
    /// send those.
    pub(crate) host: Option<Host<'a>>,
    /// The host by which the client reached a trusted proxy.
    pub(crate) forwarded: Option<Host<'a>>,
}

impl Guard {
    /// `None` if every request needs a key: pages of other sites don't know one.
    pub(crate) fn new(gateway: &Gateway) -> Option<Self> {
        let keys = match &gateway.keys {
            None => false,
            Some(keys) if keys.required => return None,
            Some(_) => true,
        };
        Some(Self { hosts: gateway.allowed_hosts.clone(), keys })
    }

    /// Whether the check applies: the request has no key that could be judged instead.
    pub(crate) fn applies(&self, headers: &HeaderMap) -> bool {
        !self.keys || api_keys::client_keys(headers).next().is_none()
    }

    /// Refuses requests that a page of another site makes a browser send. `own` says whether an
    /// address is this machine's.
    pub(crate) fn check(
        &self,
        hosts: &NamedHosts<'_>,
        headers: &HeaderMap,
        known: KnownHeaders,
        cors: Option<&Cors>,
        own: impl Fn(IpAddr) -> bool,
    ) -> Result<(), Refusal> {
        let served = |host: &Host<'_>| match self.serves(host.name, &own) {
            true => Ok(()),
            false => Err(Refusal::ForeignHost(host.name.to_string())),
        };
        hosts.host.iter().try_for_each(served)?;
        if !known.has(KnownHeader::Origin) {
            return Ok(());
        }
        for origin in headers.get_all(header::ORIGIN) {
            if cors.is_some_and(|cors| cors.allows(origin)) {
                continue;
            }
            match hosts.of_page(origin) {
                Some(host) => served(host)?,
                None => return Err(Refusal::ForeignOrigin(excerpt(origin))),
            }
        }
        Ok(())
    }

    fn serves(&self, name: HostName<'_>, own: impl Fn(IpAddr) -> bool) -> bool {
        name.is_loopback()
            || self.hosts.iter().any(|pattern| name.matches(pattern))
            || matches!(name, HostName::Address(address) if own(address))
    }
}

impl<'a> NamedHosts<'a> {
    /// The host that a page of this origin belongs to.
    fn of_page(&self, origin: &HeaderValue) -> Option<&Host<'a>> {
        let page = origin.to_str().ok().and_then(Host::of_origin)?;
        let port = page.port?;
        self.host.iter().chain(&self.forwarded).find(|host| page.is(host, port))
    }
}

/// Refuses a body whose content type is not JSON.
pub(crate) fn require_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let kind = headers.get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes() == b"application/json") {
        return Ok(());
    }
    let kind = kind.and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let is_json = kind.split_once('/').is_some_and(|(of, subtype)| {
        let form = subtype.rsplit('+').next().unwrap_or_default();
        of.eq_ignore_ascii_case("application") && form.eq_ignore_ascii_case("json")
    });
    if is_json { Ok(()) } else { Err(Refusal::NotJson) }
}

/// The beginning of a header's value, for an error's text.
pub(crate) fn excerpt(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(hosts: &[&str]) -> Guard {
        let hosts = hosts.iter().map(|host| host.parse().expect("a host")).collect();
        Guard { hosts, keys: false }
    }

    fn allowed(hosts: &[&str], host: Option<&str>, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).expect("a value"));
        }
        let host = host.map(|host| Host::parse(host).expect("a host"));
        let named_hosts = NamedHosts { host, forwarded: Host::parse("chat.example") };
        let cors = serde_json::from_str(r#"{"origins": ["https://ui.example"]}"#).expect("valid");
        let own = |address: IpAddr| address == IpAddr::from([192, 168, 1, 5]);
        let known = KnownHeaders::of(&headers);
        guard(hosts).check(&named_hosts, &headers, known, Some(&Cors::new(&cors)), own).is_ok()
    }

    #[test]
    fn a_host_must_be_this_machines_or_listed() {
        for (host, want) in [
            (Some("localhost:8080"), true),
            (Some("192.168.1.5:8080"), true),
            (Some("192.168.1.6:8080"), false),
            (Some("evil.example"), false),
            (None, true),
        ] {
            assert_eq!(allowed(&[], host, None), want, "{host:?}");
        }
        assert!(allowed(&["*.svc"], Some("forebay.ns.svc"), None));
        assert!(allowed(&["*"], Some("evil.example"), None));
        assert!(!allowed(&["forebay"], Some("evil.example"), None));
    }

    #[test]
    fn a_page_must_be_the_gateways_own_or_of_a_listed_origin() {
        for (origin, want) in [
            ("http://localhost:8080", true),
            ("https://ui.example", true),
            ("https://chat.example", true),
            ("http://localhost:3000", false),
            ("https://evil.example", false),
            ("null", false),
            ("", false),
            ("é", false),
        ] {
            assert_eq!(allowed(&["*"], Some("localhost:8080"), Some(origin)), want, "{origin}");
        }
        assert!(
            !allowed(&["*"], None, Some("http://localhost:8080")),
            "without a host no page is the gateway's own"
        );
        let by_proxy =
            |hosts: &[&str]| allowed(hosts, Some("localhost"), Some("https://chat.example"));
        assert!(by_proxy(&["chat.example"]));
        assert!(!by_proxy(&[]), "a page's own name could point to the proxy, too");
    }

    #[test]
    fn a_request_with_a_key_is_not_checked_if_keys_are_configured() {
        let with = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(name.parse().expect("a name"), HeaderValue::from_static(value))])
        };
        for (headers, keys, want) in [
            (HeaderMap::new(), false, true),
            (HeaderMap::new(), true, true),
            (with("authorization", "Bearer k"), false, true),
            (with("authorization", "Bearer k"), true, false),
            (with("x-api-key", "k"), true, false),
            (with("x-api-key", " "), true, true),
            (with("authorization", "Basic k"), true, true),
        ] {
            let guard = Guard { keys, ..guard(&[]) };
            assert_eq!(guard.applies(&headers), want, "{headers:?}");
        }
        let mut gateway = Gateway::default();
        assert!(Guard::new(&gateway).is_some_and(|guard| !guard.keys));
        for (required, there) in [(false, true), (true, false)] {
            gateway.keys = Some(forebay_config::Keys { file: "f".into(), required });
            assert_eq!(Guard::new(&gateway).is_some(), there);
        }
    }

    #[test]
    fn only_content_types_of_json_count_as_json() {
        for (kind, want) in [
            (Some("application/json"), true),
            (Some("Application/JSON; charset=utf-8"), true),
            (Some("application/vnd.api+JSON"), true),
            (Some("application/json, text/plain"), false),
            (Some("json"), false),
            (Some("text/plain"), false),
            (Some("text/plain; application/json"), false),
            (Some("application/x-www-form-urlencoded"), false),
            (Some("application/jsonx"), false),
            (Some("text/json"), false),
            (Some(""), false),
            (None, false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(kind) = kind {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            }
            assert_eq!(require_json(&headers).is_ok(), want, "{kind:?}");
        }
    }
}
