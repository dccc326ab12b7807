//! A request's head: what none may have, whatever it asks for. Pure.

use http::Version;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::Scheme;

use crate::answer::refusal::Refusal;
use crate::edge::guard::shown;
use crate::net::host::Host;

/// Checks a head as it came. The host is `None` where HTTP/1.0 names none.
pub(crate) fn check(parts: &Parts, most_headers: u16) -> Result<Option<Host<'_>>, Refusal> {
    let headers = &parts.headers;
    if headers.len() > usize::from(most_headers) {
        return Err(Refusal::TooManyHeaders(most_headers));
    }
    let host = host(parts)?;
    // Any coding within would be the body's, which is framed anew without it.
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let chunked =
        |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    if codings.next().is_some_and(|coding| !chunked(coding)) || codings.next().is_some() {
        return Err(Refusal::BadHead("its `transfer-encoding` is not `chunked` alone"));
    }
    let continues = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if !headers.get_all(header::EXPECT).iter().all(continues) {
        return Err(Refusal::Expectation);
    }
    Ok(host)
}

/// The one host that the head names, by its target and by `host`.
fn host(parts: &Parts) -> Result<Option<Host<'_>>, Refusal> {
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

/// Refuses a body that is compressed.
pub(crate) fn uncompressed(headers: &HeaderMap) -> Result<(), Refusal> {
    let coded = |value: &&HeaderValue| {
        let mut codings = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        !codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity"))
    };
    match headers.get_all(header::CONTENT_ENCODING).iter().find(coded) {
        Some(coding) => Err(Refusal::Compressed(shown(coding))),
        None => Ok(()),
    }
}
