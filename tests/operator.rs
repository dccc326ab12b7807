//! The operator's commands against a running Forebay, and what the console reads.

mod support;

use std::process::Command;

use support::{Forebay, chat, eventually, exchange, get, json, status};

/// Runs `forebay` against an admin port. Returns its exit status, and all that it printed.
fn run(forebay: &Forebay, arguments: &str) -> (Option<i32>, String) {
    let admin = format!("http://{}", forebay.admin);
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    let run = command.args(arguments.split(' ')).args(["--admin", &admin]).output().expect("runs");
    let text = [run.stdout, run.stderr].concat();
    (run.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_pool_is_woken_fixed_and_sent_to_zero_by_hand() {
    let forebay = Forebay::dev(&["--cold-start", "10ms", "--idle", "10m"]);
    let shows = |text: &str| {
        eventually(text, || {
            let (code, screen) = run(&forebay, "status");
            code == Some(0) && screen.contains(text)
        });
    };
    shows("at zero");
    assert_eq!(
        run(&forebay, "wake sim"),
        (Some(0), "sim: woken, as if a request had come\n".into())
    );
    shows("1 ready");
    let (code, text) = run(&forebay, "override sim 2");
    assert_eq!((code, text.as_str()), (Some(0), "sim: fixed at 2 replicas\n"));
    shows("2 ready, fixed at 2");
    let (code, text) = run(&forebay, "zero sim");
    assert!(code == Some(1) && text.contains("has an override (fixed at 2 replicas)"), "{text}");
    let (code, text) = run(&forebay, "unpause sim");
    assert_eq!((code, text.as_str()), (Some(0), "sim: Forebay decides\n"));
    let (code, text) = run(&forebay, "zero sim");
    assert_eq!(
        (code, text.as_str()),
        (Some(0), "sim: goes to zero, and wakes with the next request\n")
    );
    shows("at zero");
    assert_eq!(status(&exchange(forebay.address, &chat(false, 1))), 200, "a request wakes it");

    let (code, text) = run(&forebay, "wake other");
    assert!(code == Some(1) && text.contains("there is no pool `other`; known are sim"), "{text}");
    let (code, text) = run(&forebay, "status other");
    assert!(code == Some(1) && text.contains("there is no pool `other`; known are sim"), "{text}");
    let (code, text) = run(&forebay, "top");
    assert!(code == Some(1) && text.contains("forebay status"), "not a terminal: {text}");
}

#[test]
fn a_pool_with_a_request_does_not_go_to_zero() {
    let forebay = Forebay::dev(&["--cold-start", "10ms", "--idle", "10m"]);
    let address = forebay.address;
    let long = std::thread::spawn(move || exchange(address, &chat(true, 400)));
    eventually("it is in flight", || forebay.signals()["inFlight"] == 1);
    eventually("it is refused", || {
        let (code, text) = run(&forebay, "zero sim");
        code == Some(1) && text.contains("1 request held or in flight")
    });
    assert_eq!(status(&long.join().expect("answered")), 200);
}

#[test]
fn the_console_reads_a_pool_its_hour_its_gateways_and_its_output() {
    let forebay = Forebay::dev(&["--cold-start", "10ms", "--idle", "10m"]);
    assert_eq!(status(&exchange(forebay.address, &chat(true, 20))), 200);
    let read = |path: &str| {
        let answer = get(forebay.admin, path);
        assert_eq!(status(&answer), 200, "{path}: {answer}");
        json(&answer)
    };
    eventually("the pool is ready", || read("/overview")["pools"]["sim"]["replicas"]["ready"] == 1);
    let pool = &read("/overview")["pools"]["sim"];
    assert_eq!((&pool["settings"]["models"][0], &pool["desired"]), (&"sim".into(), &1.into()));

    let detail = read("/pools/sim");
    let (id, replica) = detail["published"]["replicas"]
        .as_object()
        .and_then(|replicas| replicas.iter().next())
        .expect("a replica");
    let address = replica["address"].as_str().expect("an address");
    assert_eq!(detail["endpoints"][address]["health"], "ready");
    assert!(detail["starts"][id].as_u64().is_some_and(|at| at > 0), "{detail}");
    assert_eq!(status(&get(forebay.admin, "/pools/other")), 404);

    let output = format!("/pools/sim/output?replica={id}");
    eventually("it has written", || read(&output)["next"].as_u64() > Some(0));
    let piece = read(&output);
    let next = piece["next"].as_u64().expect("a place");
    assert_eq!(read(&format!("{output}&from={next}"))["from"], next);
    for wrong in ["none", "..%2F..%2Fetc%2Fpasswd"] {
        let answer = get(forebay.admin, &format!("/pools/sim/output?replica={wrong}"));
        assert_eq!(status(&answer), 404, "{answer}");
    }

    let gateways = read("/gateways");
    assert_eq!(gateways[0]["listed"], true);
    assert!(gateways[0]["silentMillis"].is_null(), "{gateways}");
    let history = read("/history?pool=sim,other");
    assert_eq!(history.as_object().map(serde_json::Map::len), Some(1), "{history}");
    assert!(history["sim"]["atMillis"].is_array());
    let queue = read("/pools/sim/queue");
    assert!(queue[0]["url"].is_string(), "{queue}");
}

#[test]
fn a_chat_from_the_page_goes_through_the_gateway() {
    let forebay = Forebay::dev(&["--cold-start", "10ms"]);
    let body = String::from_utf8(chat(true, 5)).expect("text");
    let relayed = body.replace("POST /v1/", "POST /try/v1/");
    let answer = exchange(forebay.admin, relayed.as_bytes());
    assert!(status(&answer) == 200 && answer.contains("data: [DONE]"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("\r\nx-request-id: "), "{answer}");
    let unknown = relayed.replace("\"sim\"", "\"sum\"");
    assert_eq!(status(&exchange(forebay.admin, unknown.as_bytes())), 404);
}
