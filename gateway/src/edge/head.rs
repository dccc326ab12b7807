//! Checks of a request's head that don't depend on its path. Pure, apart from the host that a
//! connection notes.

use http::Version;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::Scheme;
use parking_lot::Mutex;

use crate::answer::refusal::Refusal;
use crate::edge::guard::excerpt;
use crate::net::host::Host;
use crate::read::known_headers::{KnownHeader, KnownHeaders};

/// The longest host that is noted: a name in DNS, and a port.
const LONGEST_HOST: usize = 260;

/// The host that a connection's requests name, once it was found to be one of the gateway's. Most
/// clients name the same one in each request.
#[derive(Default)]
pub(crate) struct ServedHost(Mutex<Option<NotedHost>>);

struct NotedHost {
    /// A copy: a header's value keeps all bytes in memory that were read with it.
    value: Box<[u8]>,
    /// The number of the settings by which it was checked.
    settings: u64,
}

impl ServedHost {
    /// Notes the host of a head that was checked by the `settings` with this number.
    pub(crate) fn set(&self, headers: &HeaderMap, settings: u64) {
        let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
        let host = host.filter(|host| host.len() <= LONGEST_HOST);
        *self.0.lock() = host.map(|host| NotedHost { value: host.into(), settings });
    }

    /// Whether the head names this host and nothing else that would have to be checked with it.
    pub(crate) fn is_of(&self, parts: &Parts, known: KnownHeaders, settings: u64) -> bool {
        if known.has(KnownHeader::Origin) || parts.uri.authority().is_some() {
            return false;
        }
        let mut hosts = parts.headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let noted = self.0.lock();
        noted
            .as_ref()
            .is_some_and(|noted| noted.settings == settings && *noted.value == *host.as_bytes())
    }
}

/// Checks a head as it came, apart from its host.
pub(crate) fn check(parts: &Parts, known: KnownHeaders, most_headers: u16) -> Result<(), Refusal> {
    let headers = &parts.headers;
    if headers.len() > usize::from(most_headers) {
        return Err(Refusal::TooManyHeaders(most_headers));
    }
    if known.has(KnownHeader::TransferEncoding) {
        // Another coding would be lost: the body is framed anew for the replica.
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        let chunked =
            |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
        if codings.next().is_some_and(|coding| !chunked(coding)) || codings.next().is_some() {
            return Err(Refusal::BadHead("its `transfer-encoding` is not `chunked` alone"));
        }
    }
    if known.has(KnownHeader::Expect) {
        let continues =
            |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        if !headers.get_all(header::EXPECT).iter().all(continues) {
            return Err(Refusal::Expectation);
        }
    }
    Ok(())
}

/// The host that the head names; `None` if an HTTP/1.0 request names none. The target and the
/// `host` header must agree.
pub(crate) fn host(parts: &Parts) -> Result<Option<Host<'_>>, Refusal> {
    const INVALID: Refusal = Refusal::BadHead("its `host` is not a host");
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err(Refusal::BadHead("it has more than one `host`"));
    }
    let target = parts.uri.authority();
    let named = match parts.version {
        Version::HTTP_09 | Version::HTTP_10 => true,
        Version::HTTP_11 => host.is_some(),
        _ => host.is_some() || target.is_some(),
    };
    if !named {
        return Err(Refusal::BadHead("it has no `host`"));
    }
    let host = host.map(|host| host.to_str().ok().and_then(Host::parse).ok_or(INVALID));
    let target = target.map(|target| Host::parse(target.as_str()).ok_or(INVALID));
    let (host, target) = (host.transpose()?, target.transpose()?);
    let default = if parts.uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    if let (Some(host), Some(target)) = (&host, &target)
        && !host.is(target, default)
    {
        return Err(Refusal::BadHead("its `host` is not its target's"));
    }
    Ok(target.or(host))
}

/// Refuses a compressed body.
pub(crate) fn require_uncompressed(headers: &HeaderMap) -> Result<(), Refusal> {
    let coded = |value: &&HeaderValue| {
        let mut codings = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        !codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity"))
    };
    match headers.get_all(header::CONTENT_ENCODING).iter().find(coded) {
        Some(coding) => Err(Refusal::Compressed(excerpt(coding))),
        None => Ok(()),
    }
}
