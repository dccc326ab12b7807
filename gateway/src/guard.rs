//! Who may send requests where no key tells one client from another. Pure.
//!
//! Whoever reaches the gateway is then a client, and so is every web page that a browser near it
//! opens. Three things give a page away that isn't the gateway's own: a `host` that is the page's,
//! made to point here (DNS rebinding); a foreign `origin`; and a body that doesn't say that it is
//! JSON, since browsers send that across sites only after a preflight.

use std::net::IpAddr;

use forebay_config::HostPattern;
use http::header::{self, HeaderMap, HeaderValue};

use crate::cors::Cors;
use crate::host::{Host, HostName};
use crate::refusal::Refusal;

/// `gateway.allowedHosts`, where no keys are configured.
pub(crate) struct Guard {
    hosts: Vec<HostPattern>,
}

/// The places that a request names as its own.
pub(crate) struct Places<'a> {
    /// The authority of HTTP/2, or `host`. Only HTTP/1.0 has requests without one, and browsers
    /// don't send those.
    pub(crate) host: Option<&'a Host>,
    /// What a known proxy in front was called by.
    pub(crate) forwarded: Option<Host>,
}

impl Guard {
    pub(crate) fn new(hosts: &[HostPattern]) -> Self {
        Self { hosts: hosts.to_vec() }
    }

    /// Refuses what a page of another site makes a browser send. `own` says which addresses are
    /// this machine's.
    pub(crate) fn check(
        &self,
        places: &Places<'_>,
        headers: &HeaderMap,
        cors: Option<&Cors>,
        own: impl FnOnce(IpAddr) -> bool,
    ) -> Result<(), Refusal> {
        if let Some(host) = places.host
            && !self.serves(&host.name, own)
        {
            return Err(Refusal::ForeignHost(match &host.name {
                HostName::Address(address) => address.to_string(),
                HostName::Name(name) => name.clone(),
            }));
        }
        for origin in headers.get_all(header::ORIGIN) {
            if !places.have(origin) && !cors.is_some_and(|cors| cors.allows(origin)) {
                return Err(Refusal::ForeignOrigin(shown(origin)));
            }
        }
        Ok(())
    }

    fn serves(&self, name: &HostName, own: impl FnOnce(IpAddr) -> bool) -> bool {
        name.is_loopback()
            || self.hosts.iter().any(|pattern| name.matches(pattern))
            || matches!(name, HostName::Address(address) if own(*address))
    }
}

impl Places<'_> {
    /// Whether a page of this origin is of one of them.
    fn have(&self, origin: &HeaderValue) -> bool {
        let page = origin.to_str().ok().and_then(Host::of_origin);
        let Some((page, port)) = page.and_then(|page| page.port.map(|port| (page, port))) else {
            return false;
        };
        self.host.into_iter().chain(&self.forwarded).any(|host| page.is(host, port))
    }
}

/// The content type says that a body is JSON.
pub(crate) fn says_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let kind = kind.to_ascii_lowercase();
    let subtype = kind.strip_prefix("application/").unwrap_or_default();
    if subtype == "json" || subtype.ends_with("+json") {
        return Ok(());
    }
    Err(Refusal::NotJson)
}

/// A client's own text as an error shows it.
pub(crate) fn shown(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(hosts: &[&str], host: Option<&str>, origin: Option<&str>) -> bool {
        let hosts: Vec<_> = hosts.iter().map(|host| host.parse().expect("a host")).collect();
        let mut headers = HeaderMap::new();
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).expect("a value"));
        }
        let host = host.map(|host| Host::parse(host).expect("a host"));
        let places = Places { host: host.as_ref(), forwarded: Host::parse("chat.example") };
        let cors = serde_json::from_str(r#"{"origins": ["https://ui.example"]}"#).expect("valid");
        let own = |address: IpAddr| address == IpAddr::from([192, 168, 1, 5]);
        Guard::new(&hosts).check(&places, &headers, Some(&Cors::new(&cors)), own).is_ok()
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
    }

    #[test]
    fn json_says_that_it_is_json() {
        for (kind, want) in [
            (Some("application/json"), true),
            (Some("Application/JSON; charset=utf-8"), true),
            (Some("application/vnd.api+json"), true),
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
