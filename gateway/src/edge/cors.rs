//! Pages of other origins in browsers (CORS): the answer to their preflight, and what they may read
//! of the others. Pure.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, request};

use crate::exchange::answer_body::Body;

/// `gateway.cors`, as headers.
pub(crate) struct Cors {
    any_origin: bool,
    origins: Vec<HeaderValue>,
    methods: HeaderValue,
    /// `None`: any that are asked for.
    headers: Option<HeaderValue>,
    exposed: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
}

impl Cors {
    pub(crate) fn new(config: &forebay_config::Cors) -> Self {
        let list = |words: &[String]| HeaderValue::from_str(&words.join(", ")).ok();
        let any = |words: &[String]| words.iter().any(|word| word == "*");
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

    /// The answer to a preflight; `None` for what is none. To an origin that is not allowed it
    /// allows nothing.
    pub(crate) fn preflight(&self, parts: &request::Parts) -> Option<Response<Body>> {
        let asked = &parts.headers;
        let is_preflight = parts.method == Method::OPTIONS
            && asked.contains_key(header::ORIGIN)
            && asked.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !is_preflight {
            return None;
        }
        let mut response = Response::new(Body::full(bytes::Bytes::new()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        if self.allow(asked.get(header::ORIGIN), headers) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
            let wanted = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
            if let Some(allowed) = self.headers.as_ref().or(wanted) {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed.clone());
            }
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        }
        vary(headers, header::ACCESS_CONTROL_REQUEST_METHOD);
        vary(headers, header::ACCESS_CONTROL_REQUEST_HEADERS);
        Some(response)
    }

    /// Lets a page of an allowed origin read an answer. What the replica says of this does not
    /// count.
    pub(crate) fn expose(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        clear(headers);
        if self.allow(origin, headers)
            && let Some(exposed) = &self.exposed
        {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
        }
    }

    fn allow(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) -> bool {
        if !self.any_origin {
            // Caches must not give one origin's answer to another.
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

/// Only the gateway's configuration says what other origins may do.
pub(crate) fn clear(headers: &mut HeaderMap) {
    for name in [
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
        header::ACCESS_CONTROL_ALLOW_METHODS,
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        header::ACCESS_CONTROL_MAX_AGE,
    ] {
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

    /// Sorted, and without the prefix that all have.
    fn lines(headers: &HeaderMap) -> String {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().expect("text")).replace("access-control-", "")
        };
        let mut lines: Vec<_> = headers.iter().map(line).collect();
        lines.sort();
        lines.join("\n")
    }

    #[test]
    fn a_listed_origin_is_told_what_it_may_do_and_another_nothing() {
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
            let told = preflight(&cors, other).expect("a preflight");
            assert!(!told.contains("allow-"), "{told}");
        }
    }

    #[test]
    fn any_origin_and_any_header_can_be_allowed() {
        let cors = cors(r#"{"origins": ["*"], "headers": ["*"]}"#);
        let told = preflight(&cors, "https://any.example").expect("a preflight");
        assert!(told.contains("allow-origin: *\n") && told.contains("allow-headers: x-mine\n"));
        assert!(!told.contains("credentials") && !told.contains("vary: origin"), "{told}");
    }

    #[test]
    fn what_is_no_preflight_goes_its_way() {
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
    fn only_the_gateway_says_who_may_read_an_answer() {
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
            cors.expose(origin.as_ref(), &mut headers);
            assert_eq!(lines(&headers), want);
        }
    }
}
