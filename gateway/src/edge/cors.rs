//! CORS: the answer to a preflight, and the headers that let a page of another origin read an
//! answer. Pure.
//!
//! By hand, since `tower_http::cors::CorsLayer` (0.7) differs in ways that matter here. It takes
//! every OPTIONS request for a preflight, also one that asks for the methods of a path. It lists
//! methods and headers for origins that are not allowed. It keeps a replica's own
//! `access-control-*` headers, and vLLM's allow every origin. It is cloned, with all its lists, for
//! each request, and would have to be built anew for each connection to follow a reload.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, request};

use crate::exchange::answer_body::AnswerBody;
use crate::read::known_headers::KnownHeader;

/// Marks an answer to a preflight, in the response's extensions: its CORS headers are complete.
#[derive(Clone, Copy)]
pub(crate) struct PreflightAnswer;

/// `gateway.cors` as headers.
pub(crate) struct Cors {
    any_origin: bool,
    origins: Vec<HeaderValue>,
    methods: HeaderValue,
    /// `None` allows any headers that a preflight asks for.
    headers: Option<HeaderValue>,
    exposed: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
}

impl Cors {
    pub(crate) fn new(config: &forebay_config::Cors) -> Self {
        let list = |values: &[String]| HeaderValue::from_str(&values.join(", ")).ok();
        let any = |values: &[String]| values.iter().any(|value| value == "*");
        let origins =
            config.origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
        Self {
            any_origin: any(&config.origins),
            origins,
            methods: list(&config.methods).unwrap_or(HeaderValue::from_static("")),
            headers: if any(&config.headers) { None } else { list(&config.headers) },
            exposed: list(&config.expose_headers).filter(|list| !list.is_empty()),
            credentials: config.credentials,
            max_age: HeaderValue::from(config.max_age.as_secs()),
        }
    }

    /// Whether pages of this origin may send requests.
    pub(crate) fn allows(&self, origin: &HeaderValue) -> bool {
        self.any_origin || self.origins.contains(origin)
    }

    /// The answer to a preflight; `None` for any other request. An origin that is not listed is
    /// allowed nothing.
    pub(crate) fn preflight(&self, parts: &request::Parts) -> Option<Response<AnswerBody>> {
        let requested = &parts.headers;
        let is_preflight = parts.method == Method::OPTIONS
            && requested.contains_key(header::ORIGIN)
            && requested.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !is_preflight {
            return None;
        }
        let mut response = Response::new(AnswerBody::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.extensions_mut().insert(PreflightAnswer);
        let headers = response.headers_mut();
        if self.allow(requested.get(header::ORIGIN), headers) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
            let wanted = requested.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
            if let Some(allowed) = self.headers.as_ref().or(wanted) {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed.clone());
            }
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        }
        vary(headers, header::ACCESS_CONTROL_REQUEST_METHOD);
        vary(headers, header::ACCESS_CONTROL_REQUEST_HEADERS);
        Some(response)
    }

    /// Lets a page of an allowed origin read an answer, from which the replica's own CORS headers
    /// are cleared.
    pub(crate) fn expose(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        if self.allow(origin, headers)
            && let Some(exposed) = &self.exposed
        {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
        }
    }

    fn allow(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) -> bool {
        if !self.any_origin {
            // A cache must not give one origin's answer to another.
            vary(headers, header::ORIGIN);
        }
        let Some(origin) = origin else { return false };
        if !self.allows(origin) {
            return false;
        }
        let any = HeaderValue::from_static("*");
        let allowed = if self.any_origin { any } else { origin.clone() };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        true
    }
}

/// Removes a replica's CORS headers: only the gateway's configuration counts.
pub(crate) fn clear(headers: &mut HeaderMap) {
    let is_cors = |name: &&HeaderName| KnownHeader::of(name.as_ref()) == Some(KnownHeader::Cors);
    // Few replicas send any.
    while let Some(name) = headers.keys().find(is_cors).cloned() {
        headers.remove(name);
    }
}

fn vary(headers: &mut HeaderMap, name: HeaderName) {
    headers.append(header::VARY, name.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(text: &str) -> Cors {
        Cors::new(&serde_json::from_str(text).expect("a configuration"))
    }

    fn preflight(cors: &Cors, origin: &str) -> Option<String> {
        let request = http::Request::options("/v1/completions")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "x-mine")
            .body(())
            .expect("valid");
        let response = cors.preflight(&request.into_parts().0)?;
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        Some(lines(response.headers()))
    }

    /// The headers, sorted, without their common prefix.
    fn lines(headers: &HeaderMap) -> String {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().expect("text")).replace("access-control-", "")
        };
        let mut lines: Vec<_> = headers.iter().map(line).collect();
        lines.sort();
        lines.join("\n")
    }

    #[test]
    fn a_preflight_allows_a_listed_origin_and_no_other() {
        let cors = cors(
            r#"{"origins": ["https://a.example", "https://b.example"], "headers": ["authorization"],
                "credentials": true, "maxAge": "1m", "exposeHeaders": ["x-request-id"]}"#,
        );
        assert_eq!(
            preflight(&cors, "https://b.example").as_deref(),
            Some(
                "allow-credentials: true\nallow-headers: authorization\n\
                 allow-methods: GET, POST\nallow-origin: https://b.example\nmax-age: 60\n\
                 vary: origin\nvary: request-headers\nvary: request-method"
            )
        );
        for other in ["https://c.example", "https://a.example:8443", "null"] {
            let answer = preflight(&cors, other).expect("a preflight");
            assert!(!answer.contains("allow-"), "{answer}");
        }
    }

    #[test]
    fn any_origin_and_any_header_can_be_allowed() {
        let cors = cors(r#"{"origins": ["*"], "headers": ["*"]}"#);
        let answer = preflight(&cors, "https://any.example").expect("a preflight");
        assert!(answer.contains("allow-origin: *\n") && answer.contains("allow-headers: x-mine\n"));
        assert!(!answer.contains("credentials") && !answer.contains("vary: origin"), "{answer}");
    }

    #[test]
    fn a_request_that_is_not_a_preflight_goes_on() {
        let cors = cors(r#"{"origins": ["*"]}"#);
        for request in [
            http::Request::options("/").header("origin", "https://a.example"),
            http::Request::options("/").header("access-control-request-method", "POST"),
            http::Request::post("/")
                .header("origin", "https://a.example")
                .header("access-control-request-method", "POST"),
        ] {
            let parts = request.body(()).expect("valid").into_parts().0;
            assert!(cors.preflight(&parts).is_none());
        }
    }

    #[test]
    fn only_the_gateways_configuration_says_who_may_read_an_answer() {
        let cors = cors(r#"{"origins": ["https://a.example"], "exposeHeaders": ["x-request-id"]}"#);
        for (origin, want) in [
            (
                Some("https://a.example"),
                "allow-origin: https://a.example\nexpose-headers: x-request-id\nvary: origin",
            ),
            (Some("https://c.example"), "vary: origin"),
            (None, "vary: origin"),
        ] {
            let mut headers = HeaderMap::new();
            // vLLM's own default.
            headers.insert("access-control-allow-origin", HeaderValue::from_static("*"));
            headers.insert("access-control-allow-credentials", HeaderValue::from_static("true"));
            let origin = origin.map(HeaderValue::from_static);
            clear(&mut headers);
            cors.expose(origin.as_ref(), &mut headers);
            assert_eq!(lines(&headers), want);
        }
    }
}
