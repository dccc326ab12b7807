//! Held requests in the real binary: clients and operators see how long they wait, and what can't
//! start in time is refused at once.

mod support;

use std::io::{Read, Write};

use support::sims::{Folder, Sim};
use support::{Forebay, chat, connect, eventually, exchange, get, json, status};

/// A gateway with one place at a simulated server.
fn gateway(sim: &Sim, folder: &Folder, hold: &str) -> Forebay {
    let forebay = folder.gateway(&format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n\
         - {{name: p, models: [sim], endpoints: ['{}'], maxInFlight: 1, hold: {hold}}}\n",
        sim.address
    ));
    eventually("the endpoint is ready", || {
        let endpoints = forebay.signals()["endpoints"].clone();
        endpoints.as_object().is_some_and(|all| all.values().all(|one| one["health"] == "ready"))
    });
    forebay
}

#[test]
fn clients_and_operators_see_the_expected_wait_and_nobody_waits_in_vain() {
    // A token takes 10 ms.
    let (sim, folder) = (Sim::start(&["sim", "--decode-step-ms", "10"]), Folder::new());
    let forebay = gateway(&sim, &folder, "{heartbeat: 100ms}");
    for _ in 0..40 {
        assert_eq!(status(&exchange(forebay.address, &chat(false, 10))), 200);
    }
    // One long answer takes the place, and others wait behind it.
    let mut long = connect(forebay.address);
    long.write_all(&chat(true, 6_000)).expect("sent");
    // The figures of the requests before may be late, so `inFlight` alone would not show it.
    eventually("it is at the endpoint", || forebay.signals()["totals"]["released"] == 41);
    let address = forebay.address;
    let waiting: Vec<_> = (0..30)
        .map(|_| {
            let mut connection = connect(address);
            connection.write_all(&chat(true, 2)).expect("sent");
            connection
        })
        .collect();
    let queue = || json(&get(forebay.admin, "/queue?pool=p&limit=5"));
    eventually("thirty wait", || queue()["held"] == 30);
    let report = queue();
    let wait = report["expectedWaitSeconds"].as_f64().expect("it is learned");
    assert!((1.0..60.0).contains(&wait), "{report}");
    let requests = report["requests"].as_array().expect("a list");
    let at = |field: &str| -> Vec<u64> {
        requests.iter().map(|one| one[field].as_u64().expect("known")).collect()
    };
    assert!(requests.len() == 5 && at("seq").is_sorted(), "{report}");
    assert!(at("expectedMillis").is_sorted() && at("expectedMillis") < at("untilMillis"));
    assert_eq!(
        (&requests[0]["tenant"], &requests[0]["class"]),
        (&"anonymous".into(), &"normal".into())
    );
    assert!(!report.to_string().contains("hello"), "no text of a client: {report}");

    // A client that says how long it waits hears at once that this is too short.
    let request = String::from_utf8(chat(false, 2)).expect("text");
    let hurried = request.replacen("\r\n", "\r\nx-stainless-timeout: 0.2\r\n", 1);
    let refused = exchange(forebay.address, hurried.as_bytes());
    assert_eq!(status(&refused), 503, "{refused}");
    assert_eq!(queue()["held"], 30, "before anything else was released");
    assert!(refused.contains("can't start in time: it would wait about "), "{refused}");
    let text = |name: &str| refused.to_lowercase().split(name).nth(1).map(str::to_owned);
    let retry: u64 = text("retry-after: ")
        .and_then(|rest| rest.split("\r\n").next()?.parse().ok())
        .expect("whole seconds");
    assert!((1..120).contains(&retry) && refused.contains(&format!("Try again in {retry} s.")));

    // Heartbeats say it to those who wait.
    let mut last = waiting.into_iter().next_back().expect("thirty");
    let mut seen = String::new();
    // Each read ends with a heartbeat, or after the test's patience with an error.
    for _ in 0..100 {
        let mut bytes = [0; 4096];
        let read = last.read(&mut bytes).expect("heartbeats");
        seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
        if read == 0 || seen.contains(": waiting, the request starts in about ") {
            break;
        }
    }
    assert!(seen.contains(": waiting, the request starts in about "), "{seen}");
    assert!(status(&get(forebay.admin, "/queue?pool=q")) == 404);
    assert!(get(forebay.admin, "/queue?pool=q").contains("known are p"));
}
