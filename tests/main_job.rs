//! The main job with the real binary: hold at zero, wake, stream, go back to zero.

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;

use support::{Forebay, alive, chat, connect, eventually, exchange, get, json, kill, status};

#[test]
fn a_held_stream_is_answered_and_the_pool_goes_back_to_zero() {
    let mut forebay = Forebay::dev(&["--cold-start", "300ms", "--idle", "1s"]);
    assert!(forebay.replicas().is_empty(), "nothing runs before it is needed");
    let answer = exchange(forebay.address, &chat(true, 5));
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.contains("text/event-stream"), "{answer}");
    assert!(answer.contains("data: [DONE]\n\n"), "{answer}");
    // The gateway and the scaler log the same moment in either order.
    forebay.wait_for_all(&[
        "request held, no replica is ready",
        "scaling 0 → 1 because 1 request is held",
        "ready after",
        "POST /v1/chat/completions 200 in ",
        "first token after ",
        ", 5 tokens)",
    ]);
    forebay.wait_for("s, scaling 1 → 0");
    eventually("no replica is left", || forebay.replicas().is_empty());

    let again = exchange(forebay.address, &chat(false, 5));
    assert_eq!(json(&again)["usage"]["completion_tokens"], 5, "{again}");
}

#[test]
fn fifty_requests_at_zero_are_all_answered_in_order_of_arrival() {
    let mut forebay =
        Forebay::dev(&["--cold-start", "500ms", "--max-replicas", "2", "--max-in-flight", "10"]);
    let address = forebay.address;
    let clients: Vec<_> = (0..50)
        .map(|i| std::thread::spawn(move || exchange(address, &chat(i % 2 == 0, 3))))
        .collect();
    for (i, client) in clients.into_iter().enumerate() {
        let answer = client.join().expect("no panic");
        assert_eq!(status(&answer), 200, "request {i}: {answer}");
        assert!(answer.contains("finish_reason\":\"length\""), "request {i}: {answer}");
    }
    let seqs: Vec<u64> = forebay
        .logged()
        .iter()
        .filter(|line| line.contains("released") && line.contains("seq="))
        .filter_map(|line| {
            let (_, rest) = line.split_once("seq=")?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        })
        .collect();
    assert!(seqs.len() >= 30, "most were held: {seqs:?}");
    // Several threads write the lines of one moment, so neighbours may change places.
    let mut sorted = seqs.clone();
    sorted.sort_unstable();
    let place = |seq: &u64| sorted.binary_search(seq).expect("the same numbers");
    let displaced = seqs.iter().enumerate().map(|(i, seq)| i.abs_diff(place(seq))).max();
    assert!(displaced.unwrap_or(0) <= 4, "{seqs:?}");
    eventually("all are counted", || forebay.signals()["totals"]["completed"] == 50);
}

#[test]
fn requests_without_an_answer_survive_their_replica() {
    let forebay = Forebay::dev(&["--cold-start", "300ms", "--max-replicas", "1"]);
    let address = forebay.address;
    assert_eq!(status(&exchange(address, &chat(false, 1))), 200);
    // Long enough to be in flight when the replica dies, which starts slowly; plain, so nothing is
    // committed.
    let clients: Vec<_> =
        (0..5).map(|_| std::thread::spawn(move || exchange(address, &chat(false, 500)))).collect();
    eventually("all are at the replica", || forebay.signals()["inFlight"] == 5);
    let replica = forebay.replicas();
    kill(replica[0], "KILL");
    for client in clients {
        let answer = client.join().expect("no panic");
        assert_eq!(status(&answer), 200, "{answer}");
        assert_eq!(json(&answer)["usage"]["completion_tokens"], 500, "{answer}");
    }
}

#[test]
fn a_stream_outlives_its_replica() {
    let forebay = Forebay::dev(&["--cold-start", "300ms"]);
    let mut client = connect(forebay.address);
    client.write_all(&chat(true, 1_500)).expect("sent");
    let mut first = [0; 1024];
    assert!(client.read(&mut first).expect("the stream has begun") > 0);
    kill(forebay.replicas()[0], "KILL");
    let mut rest = String::new();
    client.read_to_string(&mut rest).expect("a proper end");
    assert!(!rest.contains(r#"data: {"error":{"#), "{rest}");
    assert_eq!(rest.matches(r#""finish_reason":"length""#).count(), 1, "{rest}");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    eventually("it is counted", || forebay.signals()["totals"]["completed"] == 1);
}

#[test]
fn no_replica_survives_forebay() {
    let mut forebay = Forebay::dev(&["--cold-start", "200ms"]);
    assert_eq!(status(&exchange(forebay.address, &chat(false, 1))), 200);
    let replicas = forebay.replicas();
    assert!(!replicas.is_empty());
    forebay.signal("KILL");
    forebay.wait();
    eventually("the replicas end with it", || !replicas.iter().any(|pid| alive(*pid)));
}

#[test]
fn a_held_client_that_leaves_frees_its_place_even_behind_a_pipelined_request() {
    let forebay = Forebay::dev(&["--cold-start", "10m"]);
    let held = || forebay.signals()["queueDepth"].as_u64().expect("a number");
    for (case, extra) in
        [("alone", ""), ("pipelined", "GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")]
    {
        let mut client = connect(forebay.address);
        let mut request = chat(true, 5);
        // Kept alive, so that another request may follow.
        request =
            String::from_utf8(request).expect("text").replace("connection: close\r\n", "").into();
        request.extend_from_slice(extra.as_bytes());
        client.write_all(&request).expect("sent");
        eventually("the request is held", || held() == 1);
        client.shutdown(Shutdown::Both).expect("open");
        drop(client);
        eventually(case, || held() == 0);
    }
}

#[test]
fn a_client_that_leaves_its_stream_ends_it_at_the_replica() {
    let forebay = Forebay::dev(&["--cold-start", "200ms"]);
    let mut client = connect(forebay.address);
    client.write_all(&chat(true, 1_500)).expect("sent");
    let mut first = [0; 1024];
    assert!(client.read(&mut first).expect("the stream has begun") > 0);
    eventually("the request is in flight", || forebay.signals()["inFlight"] == 1);
    drop(client);
    eventually("nothing is in flight", || forebay.signals()["inFlight"] == 0);
    let signals = forebay.signals();
    let replica =
        signals["endpoints"].as_object().expect("one").keys().next().expect("one").clone();
    let replica = replica.parse().expect("an address");
    eventually("nothing runs at the replica", || {
        let metrics = get(replica, "/metrics");
        let running = metrics.lines().find(|line| line.starts_with("vllm:num_requests_running"));
        running.is_some_and(|line| line.ends_with(" 0.0"))
    });
    eventually("the gateway counts it", || forebay.signals()["totals"]["clientLeft"] == 1);
}

#[test]
fn sigterm_finishes_what_is_held_and_in_flight_and_exits_with_0() {
    let mut forebay = Forebay::dev(&["--cold-start", "700ms"]);
    let address = forebay.address;
    let held = std::thread::spawn(move || exchange(address, &chat(true, 20)));
    eventually("the request is held", || forebay.signals()["queueDepth"] == 1);
    forebay.signal("TERM");
    forebay.wait_for("shutting down");
    let answer = held.join().expect("no panic");
    assert!(answer.contains("data: [DONE]"), "{answer}");
    let replicas = forebay.replicas();
    assert_eq!(forebay.wait().code(), Some(0));
    assert!(!replicas.iter().any(|pid| alive(*pid)), "the replicas stop first");
}

#[test]
fn a_second_signal_exits_at_once() {
    let mut forebay = Forebay::dev(&["--cold-start", "10m"]);
    let mut client = connect(forebay.address);
    client.write_all(&chat(true, 5)).expect("sent");
    eventually("the request is held", || forebay.signals()["queueDepth"] == 1);
    forebay.signal("INT");
    forebay.wait_for("shutting down");
    forebay.signal("INT");
    assert_eq!(forebay.wait().code(), Some(1));
}

#[test]
fn foreign_hosts_are_served_if_a_flag_allows_them() {
    let forebay = Forebay::dev(&["--allowed-host", "*.example", "--allowed-host", "10.0.0.0/8"]);
    for (host, code) in [
        ("localhost", 200),
        ("forebay.example:8080", 200),
        ("10.1.2.3", 200),
        ("evil.test", 403),
        ("example", 403),
    ] {
        let request = format!("GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = exchange(forebay.address, request.as_bytes());
        assert_eq!(status(&answer), code, "{host}: {answer}");
        assert_eq!(code == 403, answer.contains("--allowed-host"), "{answer}");
    }
}

#[test]
fn a_taken_port_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["dev", "--listen", &address, "--admin", "127.0.0.1:0"])
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&format!("gateway.listen: cannot listen on {address}")), "{text}");
    assert_eq!(output.status.code(), Some(1));
}
