//! Who may send requests where no key tells one client from another. Pure.
//!
//! Whoever reaches the gateway is then a client, and so is every web page that a browser near it
//! opens. Three things give a page away that isn't the gateway's own: a `host` that is the page's,
//! made to point here (DNS rebinding); a foreign `origin`; and a body that doesn't say that it is
//! JSON, since browsers send that across sites only after a preflight.

use std::net::IpAddr;

use forebay_config::{Gateway, HostPattern};
use http::header::{self, HeaderMap, HeaderValue};

use crate::answer::refusal::Refusal;
use crate::edge::cors::Cors;
use crate::net::host::{Host, HostName};
use crate::tenant::api_keys;

/// What a request without a key may name, where one is let in.
pub(crate) struct Guard {
    /// `gateway.allowedHosts`.
    hosts: Vec<HostPattern>,
    /// Keys are configured and not required: what shows one is judged by it.
    keys: bool,
}

/// The places that a request names as its own.
pub(crate) struct Places<'a> {
    /// The authority of HTTP/2, or `host`. Only HTTP/1.0 has requests without one, and browsers
    /// don't send those.
    pub(crate) host: Option<Host<'a>>,
    /// What a known proxy in front was called by.
    pub(crate) forwarded: Option<Host<'a>>,
}

impl Guard {
    /// `None` where every request must show a key, which pages of other sites don't know.
    pub(crate) fn new(gateway: &Gateway) -> Option<Self> {
        let keys = match &gateway.keys {
            None => false,
            Some(keys) if keys.required => return None,
            Some(_) => true,
        };
        Some(Self { hosts: gateway.allowed_hosts.clone(), keys })
    }

    /// Whether a request has only its head to be judged by.
    pub(crate) fn applies(&self, headers: &HeaderMap) -> bool {
        !self.keys || api_keys::shown(headers).next().is_none()
    }

    /// Refuses what a page of another site makes a browser send. `own` says which addresses are
    /// this machine's.
    pub(crate) fn check(
        &self,
        places: &Places<'_>,
        headers: &HeaderMap,
        cors: Option<&Cors>,
        own: impl Fn(IpAddr) -> bool,
    ) -> Result<(), Refusal> {
        let served = |host: &Host<'_>| match self.serves(host.name, &own) {
            true => Ok(()),
            false => Err(Refusal::ForeignHost(host.name.to_string())),
        };
        places.host.iter().try_for_each(served)?;
        for origin in headers.get_all(header::ORIGIN) {
            if cors.is_some_and(|cors| cors.allows(origin)) {
                continue;
            }
            match places.of_page(origin) {
                Some(host) => served(host)?,
                None => return Err(Refusal::ForeignOrigin(shown(origin))),
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

impl<'a> Places<'a> {
    /// The one that a page of this origin is of.
    fn of_page(&self, origin: &HeaderValue) -> Option<&Host<'a>> {
        let page = origin.to_str().ok().and_then(Host::of_origin)?;
        let port = page.port?;
        self.host.iter().chain(&self.forwarded).find(|host| page.is(host, port))
    }
}

/// The content type says that a body is JSON.
pub(crate) fn says_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let is_json = kind.split_once('/').is_some_and(|(of, subtype)| {
        let form = subtype.rsplit('+').next().unwrap_or_default();
        of.eq_ignore_ascii_case("application") && form.eq_ignore_ascii_case("json")
    });
    if is_json { Ok(()) } else { Err(Refusal::NotJson) }
}

/// A client's own text as an error shows it.
pub(crate) fn shown(value: &HeaderValue) -> String {
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
        let places = Places { host, forwarded: Host::parse("chat.example") };
        let cors = serde_json::from_str(r#"{"origins": ["https://ui.example"]}"#).expect("valid");
        let own = |address: IpAddr| address == IpAddr::from([192, 168, 1, 5]);
        guard(hosts).check(&places, &headers, Some(&Cors::new(&cors)), own).is_ok()
    }

    #[test]
    fn a_host_is_this_machines_or_listed() {
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
    fn a_page_is_the_gateways_own_or_of_a_listed_origin() {
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
        assert!(!allowed(&["*"], None, Some("http://localhost:8080")), "without a host none is");
        let by_proxy =
            |hosts: &[&str]| allowed(hosts, Some("localhost"), Some("https://chat.example"));
        assert!(by_proxy(&["chat.example"]));
        assert!(!by_proxy(&[]), "a page can let its own name point to the proxy, too");
    }

    #[test]
    fn a_key_is_judged_instead_where_keys_are_known() {
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
    fn json_says_that_it_is_json() {
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
            assert_eq!(says_json(&headers).is_ok(), want, "{kind:?}");
        }
    }
}
