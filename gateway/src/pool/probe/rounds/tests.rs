//! Rounds over real sockets, in simulated time.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use forebay_signals::Health;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::super::pace::STEP;
use super::super::probe;
use super::*;
use crate::pool::Pool;

const SECOND: Duration = Duration::from_secs(1);
const MODELS: &str = r#"{"object":"list","data":[{"id":"m"}]}"#;
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// A replica, and one gateway's probes of it.
struct RoundsOfOne {
    replica: Arc<ScriptedReplica>,
    pool: Arc<Pool>,
    rounds: Arc<Rounds>,
    tasks: JoinSet<()>,
}

struct ScriptedReplica {
    /// The requests that came: when, on which connection, for what.
    requests: Mutex<Vec<(Instant, usize, String)>>,
    /// Its answer to `GET /health`; `None` for silence.
    health: Mutex<Option<&'static str>>,
    /// Whether it lists its models.
    lists: AtomicBool,
    /// The status with which it does.
    list_status: Mutex<&'static str>,
    /// Closes connections that are open.
    closes: Notify,
    /// Closes the listener alone.
    closes_listener: Notify,
}

impl ScriptedReplica {
    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut open = JoinSet::new();
        for connection in 0.. {
            let (stream, _) = tokio::select! {
                accepted = listener.accept() => accepted.expect("a connection"),
                () = self.closes_listener.notified() => break,
            };
            open.spawn(Arc::clone(&self).answer(stream, connection));
        }
        drop(listener);
        pending().await
    }

    /// Answers nothing more and takes no connection, as a server whose process is ending.
    fn go_mute(&self) {
        self.lists.store(false, Relaxed);
        *self.health.lock() = None;
        self.closes_listener.notify_one();
    }

    async fn answer(self: Arc<Self>, mut stream: TcpStream, connection: usize) {
        let mut request = [0; 1024];
        loop {
            let size = tokio::select! {
                size = stream.read(&mut request) => size.unwrap_or(0),
                () = self.closes.notified() => return,
            };
            let text = String::from_utf8_lossy(&request[..size]);
            let Some(path) = text.split(' ').nth(1) else { return };
            self.requests.lock().push((Instant::now(), connection, path.to_owned()));
            let answer = match path {
                "/v1/models" if self.lists.load(Relaxed) => {
                    let (status, length) = (*self.list_status.lock(), MODELS.len());
                    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{MODELS}")
                }
                _ => self.health.lock().unwrap_or_default().to_owned(),
            };
            stream.write_all(answer.as_bytes()).await.expect("sent");
        }
    }
}

impl RoundsOfOne {
    /// A replica that is ready for a second.
    async fn ready() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address: SocketAddr = listener.local_addr().expect("bound");
        let replica = Arc::new(ScriptedReplica {
            requests: Mutex::default(),
            health: Mutex::new(Some(OK)),
            lists: AtomicBool::new(true),
            list_status: Mutex::new("200 OK"),
            closes: Notify::new(),
            closes_listener: Notify::new(),
        });
        let settings = serde_json::json!({"name": "p", "pick": "leastLoad"});
        let pool = Pool::new(serde_json::from_value(settings).expect("a pool"), Arc::default());
        pool.add_endpoint(address);
        let rounds = Arc::new(Rounds::new(Instant::now()));
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&replica).serve(listener));
        let made = Arc::clone(&rounds).make();
        tasks.spawn(async { match made.await {} });
        tasks.spawn(probe(Arc::clone(&pool), address, Arc::clone(&rounds)));
        let probed = Self { replica, pool, rounds, tasks };
        probed.until(Health::Ready).await;
        sleep(SECOND).await;
        assert_eq!(probed.visits(), 1);
        probed
    }

    fn health(&self) -> Health {
        self.pool.signals().endpoints.values().flatten().next().expect("one").health
    }

    /// Waits for a health, and returns how long that took.
    async fn until(&self, health: Health) -> Duration {
        let start = Instant::now();
        while self.health() != health {
            assert!(start.elapsed() < 60 * SECOND, "it is {:?}", self.health());
            sleep(Duration::from_millis(5)).await;
        }
        start.elapsed()
    }

    fn visits(&self) -> usize {
        self.rounds.visits.lock().seats.iter().count()
    }

    /// The requests that have come since the last call: when, on which connection, for what.
    fn requests(&self) -> Vec<(Instant, usize, String)> {
        std::mem::take(&mut *self.replica.requests.lock())
    }

    /// The same for its health alone.
    fn asked(&self) -> Vec<(Instant, usize)> {
        let requests = self.requests().into_iter();
        let health = requests.filter(|(_, _, path)| path == "/health");
        health.map(|(at, connection, _)| (at, connection)).collect()
    }

    /// Waits for the next request, and returns when it came.
    async fn next_request(&self) -> Instant {
        self.requests();
        loop {
            sleep(Duration::from_millis(1)).await;
            if let Some((at, ..)) = self.requests().first() {
                return *at;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_endpoint_is_asked_every_3_to_4_s_on_one_connection() {
    let probed = RoundsOfOne::ready().await;
    sleep(100 * SECOND).await;
    let asked = probed.requests();
    let first = [0, 1].map(|at| &*asked[at].2);
    assert_eq!(first, ["/health", "/v1/models"], "its models once it answers");
    let listed = asked.iter().filter(|(_, _, path)| path == "/v1/models").count();
    assert!((4..=5).contains(&listed), "{listed}");
    // A list takes the place of a probe.
    for pair in asked[1..].windows(2) {
        let pause = pair[1].0 - pair[0].0;
        assert!(pause >= 3 * SECOND && pause <= 4 * SECOND + 2 * STEP, "{pause:?}");
    }
    assert!(asked.len() >= 25, "{}", asked.len());
    assert!(asked.iter().all(|(_, connection, _)| *connection == 0), "{asked:?}");
    assert_eq!((probed.health(), probed.visits()), (Health::Ready, 1));
    assert!(probed.rounds.visits.lock().steps.len() <= 2, "no visit is listed twice");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_hangs_up_is_a_reason_to_ask_at_once_on_another() {
    let probed = RoundsOfOne::ready().await;
    sleep(SECOND).await;
    probed.asked();
    let closed = Instant::now();
    probed.replica.closes.notify_one();
    sleep(SECOND).await;
    let [(at, connection)] = probed.asked()[..] else { panic!("one request") };
    assert!(at - closed <= 2 * STEP, "{:?}", at - closed);
    assert_eq!((connection, probed.health()), (1, Health::Ready));
    sleep(4 * SECOND).await;
    assert_eq!(probed.asked().iter().map(|(_, connection)| *connection).max(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_mute_or_answers_badly_is_known_to_be_and_comes_back() {
    for (case, health, within) in [
        // Four seconds at most until it is asked, two until that is given up.
        ("mute", None, 6 * SECOND),
        ("an error", Some("HTTP/1.1 503 \r\ncontent-length: 0\r\n\r\n"), 4 * SECOND),
    ] {
        let probed = RoundsOfOne::ready().await;
        *probed.replica.health.lock() = health;
        let took = probed.until(Health::Ejected).await;
        assert!(took <= within + 3 * STEP, "{case}: {took:?}");
        assert_eq!(probed.visits(), 0, "{case}");
        *probed.replica.health.lock() = Some(OK);
        probed.until(Health::Ready).await;
        sleep(SECOND).await;
        assert_eq!(probed.visits(), 1, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mute_endpoint_with_work_is_known_within_3_s() {
    let known = async |probed: &RoundsOfOne, since: Instant, case: &str| {
        probed.replica.go_mute();
        probed.until(Health::Ejected).await;
        assert!(since.elapsed() <= 3 * SECOND, "{case}: {:?}", since.elapsed());
    };
    for at in 0..40 {
        let mut ticket = crate::pool::tests::ticket(600);
        let probed = RoundsOfOne::ready().await;
        let slot = probed.pool.hold(&mut ticket).await.expect("room");
        sleep(5 * SECOND + at * STEP).await;
        known(&probed, Instant::now(), "it was busy").await;
        drop(slot);

        let mut ticket = crate::pool::tests::ticket(600);
        let probed = RoundsOfOne::ready().await;
        let answered = probed.next_request().await;
        // The answer has been read, and the endpoint was idle.
        sleep(STEP + at * STEP).await;
        let since = if at == 0 { answered } else { Instant::now() };
        let slot = probed.pool.hold(&mut ticket).await.expect("room");
        known(&probed, since, "it was idle").await;
        drop(slot);
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_lists_no_models_is_asked_for_its_health() {
    let probed = RoundsOfOne::ready().await;
    probed.replica.lists.store(false, Relaxed);
    probed.asked();
    sleep(100 * SECOND).await;
    let asked = probed.asked();
    for pair in asked.windows(2) {
        let pause = pair[1].0 - pair[0].0;
        assert!(pause >= 3 * SECOND && pause <= 4 * SECOND + 3 * STEP, "{pause:?}");
    }
    assert!(asked.iter().all(|(_, connection)| *connection == 0), "{asked:?}");
    *probed.replica.health.lock() = Some("HTTP/1.1 503 \r\ncontent-length: 0\r\n\r\n");
    assert!(probed.until(Health::Ejected).await <= 4 * SECOND + 3 * STEP);
}

#[tokio::test(start_paused = true)]
async fn a_list_shows_that_an_endpoint_is_well_only_with_success_and_without_work() {
    let unwell = Some("HTTP/1.1 503 \r\ncontent-length: 0\r\n\r\n");
    for (status, within) in [("200 OK", 8 * SECOND), ("503 Gone", 4 * SECOND)] {
        // In one of these seconds its next list takes the place of a probe.
        for second in 20..32 {
            let probed = RoundsOfOne::ready().await;
            sleep(second * SECOND).await;
            *probed.replica.list_status.lock() = status;
            *probed.replica.health.lock() = unwell;
            let took = probed.until(Health::Ejected).await;
            assert!(took <= within + 4 * STEP, "{status} after {second} s: {took:?}");
        }
    }
    let probed = RoundsOfOne::ready().await;
    let mut ticket = crate::pool::tests::ticket(600);
    let slot = probed.pool.hold(&mut ticket).await.expect("room");
    probed.requests();
    sleep(60 * SECOND).await;
    let asked = probed.requests();
    let lists = |(at, _, path): &(Instant, usize, String)| (path == "/v1/models").then_some(*at);
    for listed in asked.iter().filter_map(lists) {
        let near = |(at, _, path): &(Instant, usize, String)| {
            path == "/health" && *at + 2 * SECOND >= listed && *at <= listed + 2 * SECOND
        };
        assert!(asked.iter().any(near), "a list takes no place while it works: {asked:?}");
    }
    drop(slot);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_answer_no_request_are_not_taken_for_an_answer() {
    let probed = RoundsOfOne::ready().await;
    // The first of two answers is one to the request, and the second comes before the next one.
    let twice = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 503 \r\n\r\n";
    *probed.replica.health.lock() = Some(twice);
    probed.asked();
    sleep(12 * SECOND).await;
    let asked = probed.asked();
    assert!(asked.len() >= 3, "{asked:?}");
    assert!(asked.windows(2).all(|pair| pair[0].1 < pair[1].1), "each on a new one: {asked:?}");
    assert_eq!(probed.health(), Health::Ready);
}

#[tokio::test(start_paused = true)]
async fn connections_are_given_up_for_requests_and_opened_again() {
    let probed = RoundsOfOne::ready().await;
    probed.rounds.close_idle(|| false);
    sleep(4 * SECOND).await;
    let asked = probed.asked();
    assert!(asked.iter().all(|(_, connection)| *connection == 0), "{asked:?}");
    probed.rounds.close_idle(|| true);
    sleep(10 * SECOND).await;
    let asked = probed.asked();
    assert!(asked.len() >= 2, "{asked:?}");
    assert!(asked.iter().all(|(_, connection)| *connection == 1), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_visit_ends_with_its_task_and_with_its_endpoint() {
    let mut probed = RoundsOfOne::ready().await;
    probed.tasks.abort_all();
    while probed.tasks.join_next().await.is_some() {}
    assert_eq!(probed.visits(), 0);

    let probed = RoundsOfOne::ready().await;
    let address = probed.pool.signals().endpoints.keys().next().expect("one").parse();
    assert!(!probed.pool.remove_endpoint(address.expect("an address")));
    timeout(5 * SECOND, async {
        while probed.visits() > 0 {
            sleep(STEP).await;
        }
    })
    .await
    .expect("it ends");
}
