//! Replicas that fail, in all the ways they do: a client without an answer so far notices nothing,
//! and a stream that breaks off ends with an honest error.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use support::sims::Sim;
use support::{
    Forebay, chat, connect, eventually, exchange, gateway, gateway_with, get, json, post, status,
};

/// Waits until this many endpoints are ready.
fn ready(forebay: &Forebay, count: usize) {
    eventually(&format!("{count} endpoints are ready"), || {
        let signals = forebay.signals();
        let endpoints = signals["endpoints"].as_object().expect("endpoints").values();
        endpoints.filter(|endpoint| endpoint["health"] == "ready").count() == count
    });
}

/// Clients that send one request after the other; every second client requests streams.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<String>>>,
    answered: Arc<AtomicU32>,
}

impl Load {
    fn start(address: SocketAddr, clients: usize, tokens: u32) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let client = |i: usize| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            std::thread::spawn(move || {
                let mut answers = Vec::new();
                while !stop.load(Ordering::Relaxed) && answers.len() < 2_000 {
                    answers.push(exchange(address, &chat(i.is_multiple_of(2), tokens)));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                answers
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, clients, answered }
    }

    /// Waits until `more` answers have come.
    fn goes_on(&self, more: u32) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("answers come", || self.answered.load(Ordering::Relaxed) >= before + more);
    }

    /// Stops the clients. Returns the number of answers, and of those the number that broke off.
    /// Any other failure is a panic.
    fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let answers: Vec<_> =
            self.clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect();
        let broken = answers.iter().filter(|answer| broke_off(answer)).count();
        (answers.len(), broken)
    }
}

/// Whether a stream ended with an error. Anything but that or a whole answer is a panic.
fn broke_off(answer: &str) -> bool {
    assert_eq!(status(answer), 200, "{answer}");
    assert!(!answer.contains("\"finish_reason\":\"abort\""), "an abort went through: {answer}");
    if !answer.contains("text/event-stream") {
        assert!(json(answer)["choices"][0]["finish_reason"].is_string(), "{answer}");
        return false;
    }
    assert!(answer.contains("data: [DONE]\n\n"), "left hanging: {answer}");
    let broke = answer.contains("data: {\"error\":");
    let finished = answer.contains("\"finish_reason\":\"length\"");
    assert!(broke != finished, "either an error or an end: {answer}");
    broke
}

fn rolling_restart(flags: &[&str], may_break: bool) {
    let mut flags = flags.to_vec();
    flags.extend(["--decode-step-ms", "2"]);
    let mut sims: Vec<_> = (0..3).map(|_| Sim::start(&flags)).collect();
    let addresses: Vec<_> = sims.iter().map(|sim| sim.address).collect();
    let forebay = gateway(&addresses, &["sim"], "");
    ready(&forebay, 3);
    let load = Load::start(forebay.address, 12, 30);
    load.goes_on(24);
    for sim in &mut sims {
        sim.signal("TERM");
        sim.wait_for_end();
        load.goes_on(12);
        sim.restart();
        ready(&forebay, 3);
        load.goes_on(24);
    }
    let (answers, broken) = load.end();
    assert!(answers >= 100, "{answers} answers");
    assert!(may_break || broken == 0, "{broken} of {answers} streams broke off");
}

#[test]
fn a_rolling_restart_that_lets_requests_end_fails_no_client() {
    rolling_restart(&["--shutdown-timeout", "20"], false);
}

#[test]
fn a_rolling_restart_that_ends_requests_as_aborted_breaks_only_begun_streams() {
    rolling_restart(&["--sigterm-outcome", "abort"], true);
}

#[test]
fn a_rolling_restart_that_ends_requests_with_errors_breaks_only_begun_streams() {
    rolling_restart(&["--sigterm-outcome", "error"], true);
}

#[test]
fn a_killed_replica_breaks_only_begun_streams() {
    let mut sims: Vec<_> = (0..2).map(|_| Sim::start(&["--decode-step-ms", "2"])).collect();
    let forebay = gateway(&[sims[0].address, sims[1].address], &["sim"], "");
    ready(&forebay, 2);
    let load = Load::start(forebay.address, 12, 100);
    load.goes_on(12);
    sims[0].signal("KILL");
    sims[0].wait_for_end();
    load.goes_on(24);
    sims[0].restart();
    ready(&forebay, 2);
    load.goes_on(12);
    load.end();
}

#[test]
fn a_replica_that_hangs_is_noticed_although_its_connections_stay_open() {
    let sims: Vec<_> = (0..2).map(|_| Sim::start(&["--decode-step-ms", "2"])).collect();
    let upstream = "freezeTimeout: 1s, stallTimeout: 4s";
    let forebay = gateway(&[sims[0].address, sims[1].address], &["sim"], upstream);
    ready(&forebay, 2);
    let load = Load::start(forebay.address, 12, 100);
    load.goes_on(12);
    sims[0].signal("STOP");
    ready(&forebay, 1);
    load.goes_on(24);
    sims[0].signal("CONT");
    ready(&forebay, 2);
    load.goes_on(12);
    load.end();
}

#[test]
fn an_engine_that_hangs_is_noticed_although_its_health_check_passes() {
    let sims =
        [Sim::start(&["--decode-step-ms", "2", "--dev"]), Sim::start(&["--decode-step-ms", "2"])];
    let upstream = "freezeTimeout: 1s, stallTimeout: 20s";
    let forebay = gateway(&[sims[0].address, sims[1].address], &["sim"], upstream);
    ready(&forebay, 2);
    let load = Load::start(forebay.address, 12, 200);
    load.goes_on(12);
    let paused = exchange(sims[0].address, &post("/pause?mode=keep", ""));
    assert_eq!(status(&paused), 200, "{paused}");
    ready(&forebay, 1);
    assert_eq!(status(&get(sims[0].address, "/health")), 200);
    assert_eq!(status(&exchange(sims[0].address, &post("/resume", ""))), 200);
    ready(&forebay, 2);
    load.goes_on(24);
    load.end();
}

/// A server that answers probes, and every other request with the same bytes.
struct Fake {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&bodies);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || Self::serve(stream, answer, &seen));
            }
        });
        Self { address, bodies }
    }

    fn serve(mut stream: TcpStream, answer: &str, seen: &Mutex<Vec<String>>) {
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            text.push_str(&String::from_utf8_lossy(&buffer[..n]));
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
            if body.len() < length {
                continue;
            }
            let probe = head.starts_with("GET") || body.contains("\"prompt\":\"a\"");
            let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
            if !probe {
                seen.lock().expect("no panic").push(body.to_owned());
            }
            let _ = stream.write_all(if probe { ok } else { answer }.as_bytes());
            return;
        }
    }

    fn seen(&self) -> usize {
        self.bodies.lock().expect("no panic").len()
    }
}

#[test]
fn a_request_in_which_three_replicas_died_is_not_sent_to_another() {
    let fakes: Vec<_> = (0..4).map(|_| Fake::start("")).collect();
    let addresses: Vec<_> = fakes.iter().map(|fake| fake.address).collect();
    let mut forebay = gateway(&addresses, &["sim"], "");
    ready(&forebay, 4);
    for stream in [false, true] {
        let before: usize = fakes.iter().map(Fake::seen).sum();
        let answer = exchange(forebay.address, &chat(stream, 5));
        assert_eq!(status(&answer), 500, "{answer}");
        assert!(
            json(&answer)["error"]["message"].as_str().expect("text").contains("several replicas")
        );
        assert_eq!(fakes.iter().map(Fake::seen).sum::<usize>() - before, 3);
        forebay.wait_for("three replicas died");
        eventually("the gateway counts a failure", || forebay.signals()["totals"]["failed"] != 0);
        ready(&forebay, 4);
    }
}

#[test]
fn an_error_from_two_replicas_is_the_answer_and_ejects_neither() {
    let body =
        r#"{"error":{"message":"a bug","type":"InternalServerError","param":null,"code":500}}"#;
    let error = format!(
        "HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let error: &'static str = error.leak();
    let fakes: Vec<_> = (0..3).map(|_| Fake::start(error)).collect();
    let addresses: Vec<_> = fakes.iter().map(|fake| fake.address).collect();
    let forebay = gateway(&addresses, &["sim"], "");
    ready(&forebay, 3);
    let answer = exchange(forebay.address, &chat(false, 5));
    assert_eq!(status(&answer), 500, "{answer}");
    assert_eq!(json(&answer)["error"]["message"], "a bug", "{answer}");
    assert_eq!(fakes.iter().map(Fake::seen).sum::<usize>(), 2);
    ready(&forebay, 3);
}

/// A server that keeps connections alive, and that dies of a poisonous request after working on it
/// for a while.
struct Mortal {
    address: SocketAddr,
    seen: Arc<AtomicU32>,
    deaths: Arc<AtomicU32>,
}

impl Mortal {
    fn start(work: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("bound");
        let (seen, deaths) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let listener = Arc::new(Mutex::new(Some(listener)));
        let (counted, died) = (Arc::clone(&seen), Arc::clone(&deaths));
        std::thread::spawn(move || {
            loop {
                let accepted = match &*listener.lock().expect("no panic") {
                    Some(listener) => listener.accept(),
                    None => return,
                };
                let Ok((stream, _)) = accepted else {
                    std::thread::park_timeout(Duration::from_millis(2));
                    continue;
                };
                let (seen, deaths) = (Arc::clone(&counted), Arc::clone(&died));
                let listener = Arc::clone(&listener);
                std::thread::spawn(move || Self::serve(stream, work, &seen, &deaths, &listener));
            }
        });
        Self { address, seen, deaths }
    }

    fn serve(
        mut stream: TcpStream,
        work: Duration,
        seen: &AtomicU32,
        deaths: &AtomicU32,
        listener: &Mutex<Option<TcpListener>>,
    ) {
        let _ = stream.set_nonblocking(false);
        while let Some(request) = one_message(&mut stream) {
            if request.contains("poison") {
                deaths.fetch_add(1, Ordering::Relaxed);
                std::thread::park_timeout(work);
                listener.lock().expect("no panic").take();
                return;
            }
            let body = r#"{"choices":[{"index":0,"text":"a","finish_reason":"stop"}]}"#;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            if request.contains("hello") {
                seen.fetch_add(1, Ordering::Relaxed);
            }
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

/// One request or answer with its body, on a connection that goes on.
fn one_message(stream: &mut TcpStream) -> Option<String> {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
            if body.len() >= length {
                return Some(text);
            }
        }
        let n @ 1.. = stream.read(&mut buffer).ok()? else { return None };
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

#[test]
fn a_request_that_kills_replicas_on_connections_kept_alive_is_not_sent_to_a_fourth() {
    // A death at once looks like a stale connection, until no new connection can be made.
    for work in [Duration::ZERO, Duration::from_millis(200)] {
        three_die_of_it(work);
    }
}

fn three_die_of_it(work: Duration) {
    let mortals: Vec<_> = (0..4).map(|_| Mortal::start(work)).collect();
    let addresses: Vec<_> = mortals.iter().map(|mortal| mortal.address).collect();
    let forebay = gateway(&addresses, &["sim"], "");
    ready(&forebay, 4);
    // One connection, so one thread of the gateway, which has its own idle connections.
    let mut client = connect(forebay.address);
    let mut ask = |content: &str| {
        let body = format!(
            r#"{{"model":"sim","max_tokens":1,"messages":[{{"role":"user","content":"{content}"}}]}}"#
        );
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(request.as_bytes()).expect("sent");
        one_message(&mut client).expect("an answer")
    };
    eventually("each has a connection kept alive", || {
        assert_eq!(status(&ask("hello")), 200);
        mortals.iter().all(|mortal| mortal.seen.load(Ordering::Relaxed) > 0)
    });
    let answer = ask("poison");
    assert_eq!(status(&answer), 500, "{answer}");
    let deaths: u32 = mortals.iter().map(|mortal| mortal.deaths.load(Ordering::Relaxed)).sum();
    assert_eq!(deaths, 3, "{work:?}: {answer}");
}

/// A server that answers probes, and every other request with a stream that begins like this and
/// then has only comments, for longer than the stall limit.
fn only_comments(begins: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let Some(request) = one_message(&mut stream) else { return };
                if request.starts_with("GET") || request.contains("\"prompt\":\"a\"") {
                    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
                    let _ = stream.write_all(ok.as_bytes());
                    return;
                }
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(format!("{head}{begins}").as_bytes());
                for _ in 0..200 {
                    std::thread::park_timeout(Duration::from_millis(100));
                    if stream.write_all(b": keep-alive\n\n").is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn comments_in_a_stream_do_not_hide_an_engine_that_hangs() {
    let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
    for (begins, committed) in [("", false), (token, true)] {
        let addresses = [only_comments(begins), only_comments(begins)];
        let mut forebay = gateway(&addresses, &["sim"], "stallTimeout: 1s, maxTries: 2");
        ready(&forebay, 2);
        let answer = exchange(forebay.address, &chat(true, 5));
        assert_eq!(status(&answer), if committed { 200 } else { 502 }, "{answer}");
        assert!(answer.contains("The replica sent nothing for 1s."), "{answer}");
        forebay.wait_for(" failed a request: ");
        ready(&forebay, 2);
        // One request alone proves nothing about the replicas.
        assert!(!forebay.logged().iter().any(|line| line.contains(" is out: ")));
    }
}

#[test]
fn requests_that_a_shutdown_cuts_off_get_an_error() {
    let sim = Sim::start(&["--decode-step-ms", "200"]);
    let mut forebay = gateway_with(", shutdownTimeout: 2s", &[sim.address], &["sim"], "");
    ready(&forebay, 1);
    let address = forebay.address;
    let ask = |stream| std::thread::spawn(move || exchange(address, &chat(stream, 500)));
    let (stream, plain) = (ask(true), ask(false));
    eventually("both are under way", || forebay.signals()["inFlight"] == 2);
    eventually("the stream has begun", || {
        let ttft = forebay.metric("forebay_ttft_seconds_count");
        ttft.is_some_and(|count| count > 0.0)
    });
    forebay.signal("TERM");
    let (stream, plain) = (stream.join().expect("no panic"), plain.join().expect("no panic"));
    assert!(broke_off(&stream), "{stream}");
    assert!(stream.contains("The gateway is shutting down."), "{stream}");
    assert_eq!(status(&plain), 503, "{plain}");
    assert_eq!(json(&plain)["error"]["message"], "The gateway is shutting down.");
    assert!(!forebay.wait().success(), "they were cut off");
    let logged = forebay.logged().iter().filter(|line| line.contains("shutting_down")).count();
    assert_eq!(logged, 2, "the access log has the reason");
}

#[test]
fn a_client_that_leaves_a_silent_stream_is_noticed_even_behind_a_pipelined_request() {
    let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    // Sends a token, and then nothing while it is connected.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let Some(request) = one_message(&mut stream) else { return };
                let answer = if request.starts_with("GET") {
                    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}".to_owned()
                } else {
                    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n{token}")
                };
                let _ = stream.write_all(answer.as_bytes());
                let _ = stream.read(&mut [0; 16]);
            });
        }
    });
    let upstream = "stallTimeout: 300s, freezeTimeout: 300s";
    let forebay = gateway(&[address], &["sim"], upstream);
    ready(&forebay, 1);
    let mut client = connect(forebay.address);
    let request =
        String::from_utf8(chat(true, 5)).expect("text").replace("connection: close\r\n", "");
    client.write_all(request.repeat(2).as_bytes()).expect("sent");
    let mut answer = String::new();
    while !answer.contains("\"content\":\"a\"") {
        let mut buffer = [0; 4096];
        let n = client.read(&mut buffer).expect("an answer");
        answer.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    eventually("the request is in flight", || forebay.signals()["inFlight"] == 1);
    drop(client);
    eventually("nothing is in flight", || forebay.signals()["inFlight"] == 0);
}
