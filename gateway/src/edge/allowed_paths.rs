//! Which paths clients may reach, and by which methods. Pure.
//!
//! Default-deny: a server behind may have paths that need no key and do harm, so only what the
//! configuration names goes through.

use std::sync::Arc;

use http::Method;
use percent_encoding::percent_decode_str;

use crate::answer::refusal::Refusal;

/// What is behind a path that clients may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Answered here, to GET.
    Local,
    /// An inference API, by POST.
    Inference,
    /// A WebSocket, by GET.
    Realtime,
}

/// What a request is to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Open,
    /// OPTIONS: which methods there are.
    Methods(&'static str),
    /// The path that was meant, for one with slashes behind it.
    Elsewhere(String),
}

/// `gateway.paths`.
pub(crate) struct Exposed {
    paths: Vec<String>,
    /// For those who ask for another.
    told: Arc<str>,
}

/// The path of one model, whose name may have slashes in it.
const MODEL: &str = "/v1/models/";
pub(crate) const REALTIME: &str = "/v1/realtime";

impl Exposed {
    pub(crate) fn new(paths: &[String]) -> Self {
        Self { paths: paths.to_vec(), told: paths.join(", ").into() }
    }

    /// What a request for `path` is to get.
    pub(crate) fn door(&self, path: &str, method: &Method) -> Result<Door, Refusal> {
        if path == "*" && *method == Method::OPTIONS {
            return Ok(Door::Methods("GET, HEAD, POST, OPTIONS"));
        }
        let one_model = path.strip_prefix(MODEL).is_some_and(is_name);
        let pattern = if one_model { "/v1/models/{model}" } else { path };
        // A pattern is no path.
        if !self.lists(pattern) || !one_model && path.contains('{') {
            let meant = without_slashes(path)
                .filter(|meant| self.lists(meant) && kind(meant) != Kind::Realtime);
            return meant.map(Door::Elsewhere).ok_or_else(|| Refusal::NotExposed {
                path: path.to_owned(),
                exposed: self.told.clone(),
            });
        }
        let kind = kind(pattern);
        let methods = match kind {
            Kind::Local => "GET, HEAD, OPTIONS",
            Kind::Inference => "POST, OPTIONS",
            Kind::Realtime => "GET, OPTIONS",
        };
        match (kind, method) {
            (_, &Method::OPTIONS) => Ok(Door::Methods(methods)),
            (Kind::Local, &Method::GET | &Method::HEAD)
            | (Kind::Realtime, &Method::GET)
            | (Kind::Inference, &Method::POST) => Ok(Door::Open),
            _ => Err(Refusal::WrongMethod {
                path: path.to_owned(),
                method: method.to_string(),
                allowed: methods,
            }),
        }
    }

    fn lists(&self, pattern: &str) -> bool {
        self.paths.iter().any(|listed| listed == pattern)
    }
}

/// `path` without the slashes behind it, if there are any. Servers of this kind (Starlette's router)
/// send clients there whatever their method, and read the path with its escapes decoded; not so to a
/// WebSocket.
fn without_slashes(path: &str) -> Option<String> {
    let decoded = percent_decode_str(path).decode_utf8().ok()?;
    decoded.strip_suffix('/').map(|path| path.trim_end_matches('/').to_owned())
}

/// Whether it can be a model's: slashes alone are not.
fn is_name(name: &str) -> bool {
    !name.is_empty() && without_slashes(name).is_none_or(|name| !name.is_empty())
}

fn kind(pattern: &str) -> Kind {
    match pattern {
        "/health" | "/ping" | "/version" | "/v1/models" | "/v1/models/{model}" => Kind::Local,
        REALTIME => Kind::Realtime,
        _ => Kind::Inference,
    }
}

#[cfg(test)]
mod tests {
    use forebay_config::PATHS;

    use super::*;
    use crate::answer::api::Api;

    fn all() -> Exposed {
        Exposed::new(&PATHS.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn every_path_that_can_be_configured_is_served() {
        for path in PATHS {
            let inference = kind(path) == Kind::Inference;
            assert_eq!(inference, Api::of(path).is_some(), "{path}");
        }
    }

    #[test]
    fn paths_are_open_by_their_own_methods_only() {
        use Door::{Elsewhere, Methods, Open};
        let exposed = all();
        for (method, path, want) in [
            ("GET", "/health", Some(Open)),
            ("HEAD", "/v1/models", Some(Open)),
            ("GET", "/v1/models/Qwen/Qwen3-8B", Some(Open)),
            ("POST", "/v1/chat/completions", Some(Open)),
            ("GET", "/v1/realtime", Some(Open)),
            ("OPTIONS", "/v1/chat/completions", Some(Methods("POST, OPTIONS"))),
            ("OPTIONS", "/health", Some(Methods("GET, HEAD, OPTIONS"))),
            ("OPTIONS", "*", Some(Methods("GET, HEAD, POST, OPTIONS"))),
            ("POST", "/v1/chat/completions/", Some(Elsewhere("/v1/chat/completions".into()))),
            ("GET", "/v1/chat/completions///", Some(Elsewhere("/v1/chat/completions".into()))),
            ("POST", "/v1/chat/completions%2F", Some(Elsewhere("/v1/chat/completions".into()))),
            ("OPTIONS", "/rerank/", Some(Elsewhere("/rerank".into()))),
            ("GET", "/health/", Some(Elsewhere("/health".into()))),
            ("GET", "/v1/models/", Some(Elsewhere("/v1/models".into()))),
            ("GET", "/v1/models//", Some(Elsewhere("/v1/models".into()))),
            ("GET", "/v1/models/Qwen/", Some(Open)),
            ("GET", "/v1/realtime/", None),
            ("POST", "/v1/models/{model}/", None),
            ("GET", "*", None),
            ("POST", "/health", None),
            ("GET", "/v1/chat/completions", None),
            ("HEAD", "/v1/realtime", None),
            ("DELETE", "/v1/models/m", None),
            ("TRACE", "/health", None),
        ] {
            let method = method.parse().expect("a method");
            assert_eq!(exposed.door(path, &method).ok(), want, "{method} {path}");
        }
    }

    #[test]
    fn what_is_not_exposed_is_refused_with_the_field_that_exposes() {
        let some = Exposed::new(&["/health".to_owned(), "/v1/completions".to_owned()]);
        for path in [
            "/metrics",
            "/invocations",
            "/v1/chat/completions",
            "/v1/chat/completions/",
            "//v1/completions",
            "//v1/completions/",
            "/v1/completions/x/",
            "/v1/models/",
            "/v1/models/{model}",
            "/v1/completions%2fx",
            "/v1/completions%ff/",
            "/",
            "",
        ] {
            let Err(refusal) = some.door(path, &Method::POST) else { panic!("{path} is open") };
            assert_eq!(
                refusal.to_string(),
                format!(
                    "The path `{path}` is not exposed. The gateway exposes only what \
                     `gateway.paths` of its configuration lists: /health, /v1/completions."
                )
            );
        }
        assert!(all().door("/v1/models/{model}", &Method::GET).is_ok(), "any name is a name");
    }
}
