//! The paths of the admin port that show pools to people.

use std::convert::Infallible;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{Request, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use forebay_base::dial::dial;
use forebay_base::http1;
use forebay_signals::Token;
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Empty, Limited};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::timeout;

use super::Board;
use super::inquiry::Inquiry;
use super::overview::GatewayState;
use crate::act::overrides::unknown_pool;

/// Pools in one answer of `/history`.
const MOST_HISTORIES: usize = 64;
/// The most bytes of output in one answer, and how many of the last ones it has without `from`.
const OUTPUT: (u64, u64) = (64 << 10, 16 << 10);
/// Bounds on asking gateways for their queues and endpoints.
const MOST_GATEWAYS: usize = 16;
const ANSWER_SIZE: usize = 256 << 10;
const ANSWER_TIME: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct View {
    board: Arc<Board>,
    inquiries: mpsc::Sender<Inquiry>,
    /// For the gateways.
    token: Option<Token>,
}

/// Answers with the reason while this scaler has no figures: those of the past would look like live ones.
pub(crate) async fn while_deciding(
    State(board): State<Arc<Board>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    match board.away() {
        None => next.run(request).await,
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// `GET /overview`, `/history`, `/gateways`, `/pools/NAME`, and below it `/arrivals`, `/output`,
/// `/queue`, `/endpoints` and `/tried`.
pub(crate) fn routes(
    board: &Arc<Board>,
    inquiries: mpsc::Sender<Inquiry>,
    token: Option<Token>,
) -> Router {
    let view = View { board: Arc::clone(board), inquiries, token };
    Router::new()
        .route("/history", get(histories))
        .route("/pools/{name}", get(pool))
        .route("/pools/{name}/arrivals", get(arrivals))
        .route("/pools/{name}/output", get(output))
        .route(
            "/pools/{name}/queue",
            get(async |view, pool, limit| QUEUE.ask(view, pool, limit).await),
        )
        .route(
            "/pools/{name}/endpoints",
            get(async |view, pool, limit| ENDPOINTS.ask(view, pool, limit).await),
        )
        .route("/pools/{name}/tried", get(tried))
        .with_state(view.clone())
        .route("/overview", board.feed.route())
        .layer(from_fn_with_state(Arc::clone(board), while_deciding))
        .merge(Router::new().route("/gateways", get(gateways)).with_state(view))
}

impl View {
    /// Asks the loop; `None` if it has ended.
    async fn ask<T>(&self, inquiry: impl FnOnce(oneshot::Sender<T>) -> Inquiry) -> Option<T> {
        let (done, answer) = oneshot::channel();
        self.inquiries.send(inquiry(done)).await.ok()?;
        answer.await.ok()
    }
}

/// A refusal in words.
type Refused = (StatusCode, String);

fn ending() -> Refused {
    (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n".to_owned())
}

fn unknown(pool: &str, known: Vec<String>) -> Refused {
    (StatusCode::NOT_FOUND, unknown_pool(pool, known) + "\n")
}

#[derive(Deserialize)]
struct HistoryQuery {
    /// Names with commas between them, which no name contains.
    #[serde(default)]
    pool: String,
}

async fn histories(State(view): State<View>, Query(query): Query<HistoryQuery>) -> Response {
    let names = query.pool.split(',').filter(|name| !name.is_empty());
    Json(view.board.histories(names.take(MOST_HISTORIES))).into_response()
}

async fn gateways(State(view): State<View>) -> Response {
    match view.ask(|done| Inquiry::Gateways { done }).await {
        Some(gateways) => Json(gateways).into_response(),
        None => ending().into_response(),
    }
}

async fn pool(State(view): State<View>, Path(name): Path<String>) -> Response {
    let pool = name.clone();
    match view.ask(|done| Inquiry::Pool { pool, done }).await {
        Some(Some(detail)) => Json(detail).into_response(),
        Some(None) => unknown(&name, view.board.names()).into_response(),
        None => ending().into_response(),
    }
}

/// The arrivals of the last day, as `forebay replay` reads them.
async fn arrivals(State(view): State<View>, Path(name): Path<String>) -> Response {
    if let Err(refusal) = view.check(&name) {
        return refusal.into_response();
    }
    let Some(pieces) = view.board.arrivals(&name) else {
        let why = format!("no request for pool `{name}` came since this scaler began\n");
        return (StatusCode::NOT_FOUND, why).into_response();
    };
    // Written as fast as the reader takes it, with a turn for others between two pieces.
    let pieces = stream::iter(pieces).then(async |piece| {
        yield_now().await;
        Ok::<_, Infallible>(piece)
    });
    ([(header::CONTENT_TYPE, "text/csv")], Body::from_stream(pieces)).into_response()
}

#[derive(Deserialize)]
struct OutputQuery {
    replica: String,
    from: Option<u64>,
}

/// A piece of a replica's output.
#[derive(Debug, PartialEq, Serialize)]
struct OutputPiece {
    /// Its place in the file, in bytes.
    from: u64,
    /// Where the next piece begins.
    next: u64,
    text: String,
}

async fn output(
    State(view): State<View>,
    Path(pool): Path<String>,
    Query(OutputQuery { replica, from }): Query<OutputQuery>,
) -> Response {
    let inquiry = |done| Inquiry::Output { pool, replica: replica.clone(), done };
    let file = match view.ask(inquiry).await {
        Some(Some(file)) => file,
        Some(None) => {
            let why = format!("there is no output of a replica `{replica}` here\n");
            return (StatusCode::NOT_FOUND, why).into_response();
        }
        None => return ending().into_response(),
    };
    match spawn_blocking(move || piece(&file, from)).await {
        Ok(Ok(piece)) => Json(piece).into_response(),
        Ok(Err(error)) => {
            let why = format!("the output of `{replica}` can't be read: {error}\n");
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
        Err(_) => ending().into_response(),
    }
}

/// Reads a piece of a file that grows: from a place, or its end.
fn piece(path: &FilePath, from: Option<u64>) -> std::io::Result<OutputPiece> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    let (most, tail) = OUTPUT;
    let from = from.unwrap_or_else(|| length.saturating_sub(tail)).min(length);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    let read = file.take(most).read_to_end(&mut bytes)? as u64;
    Ok(OutputPiece { from, next: from + read, text: String::from_utf8_lossy(&bytes).into_owned() })
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<u32>,
}

/// Something to ask each gateway about a pool.
struct GatewayQuestion {
    /// The path at a gateway.
    path: &'static str,
    /// The field of its answer here.
    field: &'static str,
    /// Entries of an answer, unless the request has a `limit`.
    usual: u32,
}

/// The requests that the gateways hold.
const QUEUE: GatewayQuestion = GatewayQuestion { path: "/queue", field: "queue", usual: 50 };
/// The endpoints as the gateways see them: probes, failures, what their pick policies have learned.
const ENDPOINTS: GatewayQuestion =
    GatewayQuestion { path: "/endpoints", field: "report", usual: 100 };
/// Entries of an answer at most.
const MOST_ENTRIES: u32 = 500;

impl GatewayQuestion {
    async fn ask(
        &self,
        State(view): State<View>,
        Path(pool): Path<String>,
        Query(query): Query<Limit>,
    ) -> Response {
        let limit = query.limit.unwrap_or(self.usual).min(MOST_ENTRIES);
        match view.ask_gateways(&pool, &format!("{}?pool={pool}&limit={limit}", self.path)).await {
            Ok(answers) => {
                let named = answers.into_iter().map(|answer| Named(self.field, answer));
                Json(named.collect::<Vec<_>>()).into_response()
            }
            Err(refusal) => refusal.into_response(),
        }
    }
}

#[derive(Deserialize)]
struct TriedQuery {
    id: String,
}

/// The gateways' answers on a request of the console's *Try it*.
async fn tried(
    State(view): State<View>,
    Path(pool): Path<String>,
    Query(TriedQuery { id }): Query<TriedQuery>,
) -> Response {
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return (StatusCode::BAD_REQUEST, "the id of a tried request has letters and digits\n")
            .into_response();
    }
    match view.ask_gateways(&pool, &format!("/tried?pool={pool}&id={id}")).await {
        Ok(answers) => {
            let named = answers.into_iter().map(|answer| Named("request", answer));
            Json(named.collect::<Vec<_>>()).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// A gateway's base URL, and its answer or the reason why there is none.
type GatewayAnswer = (String, Result<Box<RawValue>, String>);

/// The answer of one gateway as JSON: `url`, and a field of this name or `error`.
struct Named(&'static str, GatewayAnswer);

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(field, (url, answer)) = self;
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("url", url)?;
        match answer {
            Ok(answer) => map.serialize_entry(field, answer)?,
            Err(error) => map.serialize_entry("error", error)?,
        }
        map.end()
    }
}

impl View {
    /// Whether there is a pool of this name.
    fn check(&self, pool: &str) -> Result<(), Refused> {
        let known = self.board.names();
        if known.iter().any(|name| name == pool) { Ok(()) } else { Err(unknown(pool, known)) }
    }

    /// Asks the gateways that are heard, the first [`MOST_GATEWAYS`] of them, for a path of their admin ports.
    /// Each of the others that should be there has its reason instead of an answer.
    async fn ask_gateways(&self, pool: &str, path: &str) -> Result<Vec<GatewayAnswer>, Refused> {
        self.check(pool)?;
        let gateways = self.ask(|done| Inquiry::Gateways { done }).await.ok_or_else(ending)?;
        let (asked, others) = choose(gateways);
        let asked = asked.into_iter().map(|url| async move {
            let answer = timeout(ANSWER_TIME, fetch(&url, path, self.token.as_ref())).await;
            let late = |_| Err(format!("no answer in {ANSWER_TIME:?}"));
            (url, answer.unwrap_or_else(late))
        });
        let mut answers = join_all(asked).await;
        answers.extend(others.into_iter().map(|(url, why)| (url, Err(why))));
        Ok(answers)
    }
}

/// The gateways to ask, and the others with the reason why they are not asked.
fn choose(gateways: Vec<GatewayState>) -> (Vec<String>, Vec<(String, String)>) {
    let (mut asked, mut others) = (Vec::new(), Vec::new());
    // One that said goodbye holds nothing.
    for GatewayState { url, listed, silent_for, .. } in
        gateways.into_iter().filter(|gateway| !gateway.stopped)
    {
        match silent_for {
            None if asked.len() < MOST_GATEWAYS => asked.push(url),
            None => others.push((url, format!("not asked: {MOST_GATEWAYS} gateways at most are"))),
            Some(_) if listed => others.push((url, "not asked: it is silent".to_owned())),
            Some(_) => {}
        }
    }
    (asked, others)
}

/// Gets JSON of a gateway's admin port.
async fn fetch(url: &str, path: &str, token: Option<&Token>) -> Result<Box<RawValue>, String> {
    let authority = url.strip_prefix("http://").unwrap_or(url);
    let stream = dial(authority, ANSWER_TIME).await.map_err(|error| error.to_string())?;
    let mut request = Request::get(path).header(header::HOST, authority);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.current()));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let response = http1::send(stream, request).await.map_err(|error| error.to_string())?;
    if !response.status().is_success() {
        return Err(format!("it answered {}", response.status()));
    }
    let body = Limited::new(response.into_body(), ANSWER_SIZE).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use forebay_config::{Config, Millis, Pool};
    use tower::ServiceExt as _;

    use super::*;
    use crate::view::board::Standing;

    async fn asked(router: &Router, path: &str, accept: &str) -> (StatusCode, Body) {
        let request = Request::get(path).header(header::ACCEPT, accept).body(Body::empty());
        let answer = router.clone().oneshot(request.expect("a request")).await.expect("an answer");
        (answer.status(), answer.into_body())
    }

    #[tokio::test]
    async fn a_scaler_that_does_not_decide_shows_no_figures_and_names_the_leader() {
        let config = Config { pools: vec![Pool::named("p")], ..Config::default() };
        let board = Board::new(&config);
        let router = routes(&board, mpsc::channel(1).0, None);
        board.record("p", Standing::default(), Millis::new(1_000));
        board.publish(1, Millis::new(1_000));
        let stream = "text/event-stream";
        let (status, feed) = asked(&router, "/overview", stream).await;
        assert_eq!(status, StatusCode::OK);
        let why = "this scaler does not lead: the one at http://10.0.0.9:9900 does";
        board.stand_by(why.to_owned());
        let ended = timeout(Duration::from_secs(5), feed.collect()).await;
        assert!(ended.is_ok(), "readers of the feed are cut off");
        for (path, accept) in [
            ("/overview", "*/*"),
            ("/overview", stream),
            ("/history?pool=p", "*/*"),
            ("/pools/p/arrivals", "*/*"),
        ] {
            let (status, body) = asked(&router, path, accept).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
            let body = body.collect().await.expect("a body").to_bytes();
            assert_eq!(body, format!("{why}\n"), "{path}");
        }
        board.begin();
        for path in ["/overview", "/history?pool=p"] {
            assert_eq!(asked(&router, path, "*/*").await.0, StatusCode::OK, "{path}");
        }
    }

    #[test]
    fn gateways_that_are_not_asked_are_named_with_the_reason() {
        let gateway = |n: usize, listed, silent: Option<u64>| GatewayState {
            url: format!("http://g{n}"),
            listed,
            silent_for: silent.map(Millis::new),
            stopped: false,
        };
        let mut gateways = vec![gateway(90, true, Some(4_000)), gateway(91, false, Some(4_000))];
        gateways.extend((0..MOST_GATEWAYS + 1).map(|n| gateway(n, true, None)));
        let (asked, others) = choose(gateways);
        assert_eq!(asked, (0..MOST_GATEWAYS).map(|n| format!("http://g{n}")).collect::<Vec<_>>());
        let others: Vec<_> = others.iter().map(|(url, why)| (url.as_str(), why.as_str())).collect();
        let want = [
            ("http://g90", "not asked: it is silent"),
            ("http://g16", "not asked: 16 gateways at most are"),
        ];
        assert_eq!(others, want);
    }

    #[test]
    fn output_is_read_from_its_end_and_then_as_it_grows() {
        let path = std::env::temp_dir().join(format!("forebay-view-{:x}", rand::random::<u64>()));
        let text = "x".repeat(OUTPUT.1 as usize) + "end\n";
        std::fs::write(&path, &text).expect("written");
        let first = piece(&path, None).expect("read");
        assert_eq!((first.from, first.text.len() as u64), (4, OUTPUT.1));
        assert!(first.text.ends_with("end\n"));
        let next = piece(&path, Some(first.next)).expect("read");
        assert_eq!((next.from, next.next, next.text.as_str()), (first.next, first.next, ""));
        std::fs::write(&path, text + "more\n").expect("written");
        assert_eq!(piece(&path, Some(first.next)).expect("read").text, "more\n");
        let beyond = piece(&path, Some(1 << 40)).expect("read");
        assert_eq!((beyond.text.as_str(), beyond.from), ("", beyond.next), "never past the end");
        std::fs::write(&path, vec![b'y'; (OUTPUT.0 + 5) as usize]).expect("written");
        assert_eq!(piece(&path, Some(0)).expect("read").next, OUTPUT.0, "bounded");
        let _ = std::fs::remove_file(&path);
    }
}
