//! The paths that clients may reach, and their methods. Pure.
//!
//! Every other path is denied: a replica may have paths that need no key and do harm, so only those
//! that the configuration lists go through.

use http::Method;
use percent_encoding::percent_decode_str;

use crate::answer::api::REALTIME;
use crate::answer::refusal::Refusal;

/// The kind of an allowed path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PathKind {
    /// Answered by the gateway, to GET.
    Local,
    /// An inference API, by POST.
    Inference,
    /// A WebSocket, by GET.
    Realtime,
}

/// The next step for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// The request goes on.
    Allowed,
    /// The method is OPTIONS: the answer lists these methods.
    Methods(&'static str),
    /// The request is redirected to this path, which it names with slashes at the end.
    Redirect(String),
}

/// `gateway.paths`.
pub(crate) struct AllowedPaths {
    paths: Vec<String>,
}

/// The path of one model, whose name may have slashes in it.
const MODEL: &str = "/v1/models/";

impl AllowedPaths {
    pub(crate) fn new(paths: &[String]) -> Self {
        Self { paths: paths.to_vec() }
    }

    /// The next step for a request for `path`.
    pub(crate) fn access(&self, path: &str, method: &Method) -> Result<Access, Refusal> {
        if path == "*" && *method == Method::OPTIONS {
            return Ok(Access::Methods("GET, HEAD, POST, OPTIONS"));
        }
        let one_model = path.strip_prefix(MODEL).is_some_and(is_name);
        let pattern = if one_model { "/v1/models/{model}" } else { path };
        // The pattern itself is not a path.
        if !self.lists(pattern) || !one_model && path.contains('{') {
            let meant = without_slashes(path)
                .filter(|meant| self.lists(meant) && kind(meant) != PathKind::Realtime);
            return meant.map(Access::Redirect).ok_or_else(|| Refusal::NotExposed {
                path: path.to_owned(),
                hint: self
                    .near(path)
                    .map(|near| format!(" Did you mean `{near}`?"))
                    .unwrap_or_default(),
            });
        }
        let kind = kind(pattern);
        let methods = match kind {
            PathKind::Local => "GET, HEAD, OPTIONS",
            PathKind::Inference => "POST, OPTIONS",
            PathKind::Realtime => "GET, OPTIONS",
        };
        match (kind, method) {
            (_, &Method::OPTIONS) => Ok(Access::Methods(methods)),
            (PathKind::Local, &Method::GET | &Method::HEAD)
            | (PathKind::Realtime, &Method::GET)
            | (PathKind::Inference, &Method::POST) => Ok(Access::Allowed),
            _ => Err(Refusal::WrongMethod {
                path: path.to_owned(),
                method: method.to_string(),
                allowed: methods,
            }),
        }
    }

    /// The listed path that a client probably meant whose base URL has too much or too little:
    /// `/v1/v1/completions`, `/completions`.
    fn near(&self, path: &str) -> Option<&str> {
        let path = path.trim_end_matches('/');
        let listed =
            || self.paths.iter().map(String::as_str).filter(|listed| !listed.contains('{'));
        let too_much =
            listed().filter(|listed| path.ends_with(listed)).max_by_key(|near| near.len());
        let is_end =
            |listed: &&str| path.len() > 1 && path.starts_with('/') && listed.ends_with(path);
        too_much.or_else(|| listed().filter(is_end).min_by_key(|near| near.len()))
    }

    fn lists(&self, pattern: &str) -> bool {
        self.paths.iter().any(|listed| listed == pattern)
    }
}

/// `path` without the slashes at its end, if there are any. vLLM's router (Starlette) redirects
/// such a path for every method, after it has decoded the escapes. It does not redirect a
/// WebSocket.
fn without_slashes(path: &str) -> Option<String> {
    let decoded = percent_decode_str(path).decode_utf8().ok()?;
    decoded.strip_suffix('/').map(|path| path.trim_end_matches('/').to_owned())
}

/// Whether this can be a model's name: slashes alone can't.
fn is_name(name: &str) -> bool {
    !name.is_empty() && without_slashes(name).is_none_or(|name| !name.is_empty())
}

fn kind(pattern: &str) -> PathKind {
    match pattern {
        "/health" | "/ping" | "/version" | "/v1/models" | "/v1/models/{model}" => PathKind::Local,
        REALTIME => PathKind::Realtime,
        _ => PathKind::Inference,
    }
}

#[cfg(test)]
mod tests {
    use forebay_config::PATHS;

    use super::*;
    use crate::answer::api::Api;

    fn all() -> AllowedPaths {
        AllowedPaths::new(&PATHS.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn every_path_that_can_be_configured_is_served() {
        for path in PATHS {
            let inference = kind(path) == PathKind::Inference;
            assert_eq!(inference, Api::of(path).is_some(), "{path}");
        }
    }

    #[test]
    fn a_path_is_allowed_with_its_own_methods_only() {
        use Access::{Allowed, Methods, Redirect};
        let allowed = all();
        for (method, path, want) in [
            ("GET", "/health", Some(Allowed)),
            ("HEAD", "/v1/models", Some(Allowed)),
            ("GET", "/v1/models/Qwen/Qwen3-8B", Some(Allowed)),
            ("POST", "/v1/chat/completions", Some(Allowed)),
            ("GET", "/v1/realtime", Some(Allowed)),
            ("OPTIONS", "/v1/chat/completions", Some(Methods("POST, OPTIONS"))),
            ("OPTIONS", "/health", Some(Methods("GET, HEAD, OPTIONS"))),
            ("OPTIONS", "*", Some(Methods("GET, HEAD, POST, OPTIONS"))),
            ("POST", "/v1/chat/completions/", Some(Redirect("/v1/chat/completions".into()))),
            ("GET", "/v1/chat/completions///", Some(Redirect("/v1/chat/completions".into()))),
            ("POST", "/v1/chat/completions%2F", Some(Redirect("/v1/chat/completions".into()))),
            ("OPTIONS", "/rerank/", Some(Redirect("/rerank".into()))),
            ("GET", "/health/", Some(Redirect("/health".into()))),
            ("GET", "/v1/models/", Some(Redirect("/v1/models".into()))),
            ("GET", "/v1/models//", Some(Redirect("/v1/models".into()))),
            ("GET", "/v1/models/Qwen/", Some(Allowed)),
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
            assert_eq!(allowed.access(path, &method).ok(), want, "{method} {path}");
        }
    }

    #[test]
    fn a_path_that_is_not_listed_is_refused_with_the_one_that_was_meant() {
        let some = AllowedPaths::new(&["/health".to_owned(), "/v1/completions".to_owned()]);
        for (path, meant) in [
            ("/metrics", None),
            ("/invocations", None),
            ("/v1/chat/completions", None),
            ("/v1/chat/completions/", None),
            ("/completions", Some("/v1/completions")),
            ("/v1/v1/completions", Some("/v1/completions")),
            ("/api/v1/completions/", Some("/v1/completions")),
            ("//v1/completions", Some("/v1/completions")),
            ("//v1/completions/", Some("/v1/completions")),
            ("/v1/completions/x/", None),
            ("/v1/models/", None),
            ("/v1/models/{model}", None),
            ("/v1/completions%2fx", None),
            ("/v1/completions%ff/", None),
            ("/", None),
            ("", None),
        ] {
            let Err(refusal) = some.access(path, &Method::POST) else {
                panic!("{path} is allowed")
            };
            let hint = meant.map(|meant| format!(" Did you mean `{meant}`?"));
            let hint = hint.unwrap_or_default();
            assert_eq!(refusal.to_string(), format!("The path `{path}` is not served here.{hint}"));
        }
        assert!(all().access("/v1/models/{model}", &Method::GET).is_ok(), "any name is a name");
    }
}
