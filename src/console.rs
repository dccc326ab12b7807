//! The console: a page at `/` of the admin port, and its files. They hold no data, so they need no
//! token; the page asks for one if its requests for data are refused.
//!
//! The files are in the binary as they are in `src/console/`, without a build step. The page loads
//! nothing from elsewhere, and its policy forbids it to.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

pub(crate) mod rehearsal;
pub(crate) mod relay;

const PAGE: &str = include_str!("console/index.html");

/// The page's files below `/console/`, with their types.
const FILES: &[(&str, &str, &str)] = &[
    ("console.css", "text/css", include_str!("console/console.css")),
    ("main.js", "text/javascript", include_str!("console/main.js")),
    ("feed.js", "text/javascript", include_str!("console/feed.js")),
    ("dom.js", "text/javascript", include_str!("console/dom.js")),
    ("format.js", "text/javascript", include_str!("console/format.js")),
    ("chart.js", "text/javascript", include_str!("console/chart.js")),
    ("overview.js", "text/javascript", include_str!("console/overview.js")),
    ("pool.js", "text/javascript", include_str!("console/pool.js")),
    ("decision.js", "text/javascript", include_str!("console/decision.js")),
    ("chat.js", "text/javascript", include_str!("console/chat.js")),
    ("whatif.js", "text/javascript", include_str!("console/whatif.js")),
    ("actions.js", "text/javascript", include_str!("console/actions.js")),
];

/// Scripts, styles and requests of this port alone, no inline ones, no text that becomes markup, and no
/// frame around the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'";

/// The header by which a scaler that does not lead names the base URL of the one that does.
pub(crate) const LEADER: HeaderName = HeaderName::from_static("x-forebay-leader");

/// The base URL of the scaler that leads, if it is another one.
pub(crate) type OtherLeader = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// The page's files.
pub(crate) fn files() -> Router {
    Router::new().route("/console/{file}", get(file))
}

async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(file, ..)| *file == name) {
        Some((_, kind, text)) => answer(kind, text),
        None => (StatusCode::NOT_FOUND, "the console has no such file\n").into_response(),
    }
}

/// Answers `/` with the page for a browser, or with the place of the leading scaler's page. All other
/// requests go on, and their answers name the leading scaler if it is another one.
pub(crate) async fn page(other_leader: OtherLeader, request: Request, next: Next) -> Response {
    let accepts = request.headers().get_all(header::ACCEPT).iter();
    let mut accepts = accepts.filter_map(|value| value.to_str().ok());
    if request.uri().path() != "/" || !accepts.any(|value| value.contains("text/html")) {
        let mut answer = next.run(request).await;
        let leader = other_leader().and_then(|url| HeaderValue::try_from(url).ok());
        answer.headers_mut().extend(leader.map(|url| (LEADER, url)));
        return answer;
    }
    match other_leader() {
        Some(url) => Redirect::temporary(&format!("{url}/")).into_response(),
        None => answer("text/html", PAGE),
    }
}

fn answer(kind: &str, text: &'static str) -> Response {
    let kind = HeaderValue::try_from(format!("{kind}; charset=utf-8")).expect("plain text");
    let fixed = |value| HeaderValue::from_static(value);
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, fixed(POLICY)),
        (header::CACHE_CONTROL, fixed("no-cache")),
        (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
        (header::REFERRER_POLICY, fixed("no-referrer")),
        (HeaderName::from_static("cross-origin-opener-policy"), fixed("same-origin")),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use axum::body::Body;
    use axum::middleware::from_fn;
    use tower::ServiceExt as _;

    use super::*;

    /// The answer of a scaler to a request, where this one leads.
    async fn asked(leader: Option<&str>, path: &str, accept: &str) -> Response {
        let leader = leader.map(str::to_owned);
        let other_leader: OtherLeader = Arc::new(move || leader.clone());
        let paths =
            Router::new().route("/", get("a list of paths")).route("/overview", get("data"));
        let layer = from_fn(move |request, next| page(Arc::clone(&other_leader), request, next));
        let request = Request::get(path).header(header::ACCEPT, accept).body(Body::empty());
        paths.layer(layer).oneshot(request.expect("a request")).await.expect("an answer")
    }

    #[tokio::test]
    async fn a_browser_gets_the_page_of_the_scaler_that_leads() {
        let browser = "text/html,application/xhtml+xml,*/*;q=0.8";
        let own = asked(None, "/", browser).await;
        assert_eq!(own.status(), StatusCode::OK);
        assert_eq!(own.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
        let theirs = asked(Some("http://10.0.0.9:9900"), "/", browser).await;
        assert!(theirs.status().is_redirection(), "{}", theirs.status());
        assert_eq!(theirs.headers()[header::LOCATION], "http://10.0.0.9:9900/");
        for (path, accept) in [("/", "*/*"), ("/overview", browser)] {
            let other = asked(Some("http://10.0.0.9:9900"), path, accept).await;
            assert_eq!(other.status(), StatusCode::OK, "{path} for {accept}");
            assert!(!other.headers().contains_key(header::LOCATION));
            assert_eq!(other.headers()[LEADER], "http://10.0.0.9:9900");
        }
    }

    #[test]
    fn every_file_that_the_page_names_is_served_and_no_other() {
        let mut named = BTreeSet::new();
        for text in FILES.iter().map(|(.., text)| *text).chain([PAGE]) {
            for start in ["\"/console/", "from \"./"] {
                let found = text.split(start).skip(1).filter_map(|rest| rest.split('"').next());
                named.extend(found.map(str::to_owned));
            }
        }
        let served: BTreeSet<_> = FILES.iter().map(|(file, ..)| (*file).to_owned()).collect();
        assert_eq!(named, served);
    }

    #[test]
    fn the_page_has_nothing_that_its_policy_would_block() {
        for (name, text) in
            FILES.iter().map(|(file, _, text)| (*file, *text)).chain([("index.html", PAGE)])
        {
            for forbidden in ["innerHTML", "insertAdjacentHTML", "eval(", " style=\"", " onclick="]
            {
                assert!(!text.contains(forbidden), "{name} has {forbidden}");
            }
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"), "{name}");
        }
    }
}
