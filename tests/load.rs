//! `forebay load` as its user runs it, against `forebay dev`.

mod support;

use std::process::{Child, Command, ExitStatus, Stdio};

use support::{Forebay, eventually, kill};

fn start(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_forebay"))
        .arg("load")
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

/// Its exit status, standard output and standard error.
fn finish(child: Child) -> (ExitStatus, String, String) {
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    (output.status, stdout, stderr)
}

#[test]
fn a_load_on_a_pool_at_zero_is_measured_from_the_intended_times() {
    let forebay = Forebay::dev(&["--cold-start", "600ms"]);
    let page = std::env::temp_dir().join(format!("forebay-load-{}.html", std::process::id()));
    let (url, pid) = (format!("http://{}/v1", forebay.address), forebay.pid().to_string());
    let arguments = [
        &url,
        "--poisson",
        "20",
        "--duration",
        "2s",
        "--output-tokens",
        "5",
        "--cpu-of",
        &pid,
        "--report",
        page.to_str().expect("a path"),
        "--json",
    ];
    let (status, json, stderr) = finish(start(&arguments));
    assert!(status.success(), "{stderr}");
    let results: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let requests = &results["requests"];
    assert_eq!(requests["complete"], requests["sent"], "{requests}");
    assert_eq!((&requests["misordered"], &results["model"]), (&0.into(), &"sim".into()));
    let slowest = results["latency"]["ttft"]["max"].as_f64().expect("streams");
    assert!(slowest > 0.5, "the first request waits for the cold start: {slowest}");
    assert!(results["cpu"]["microsPerToken"].as_f64().is_some_and(|micros| micros > 0.0));
    let html = std::fs::read_to_string(&page).expect("a page");
    assert!(html.contains("poisson 20/s for 2s") && html.contains("<svg "), "{html}");
    std::fs::remove_file(&page).expect("removed");
}

#[test]
fn ctrl_c_ends_the_load_and_shows_the_results_so_far() {
    let forebay = Forebay::dev(&["--cold-start", "100ms"]);
    let url = format!("http://{}", forebay.address);
    let running = start(&[&url, "--constant", "50", "--duration", "10m", "--output-tokens", "3"]);
    eventually("requests are answered", || {
        forebay.signals()["totals"]["completed"].as_u64().is_some_and(|completed| completed > 20)
    });
    kill(running.id(), "INT");
    let (status, table, stderr) = finish(running);
    assert!(status.success(), "{stderr}");
    assert!(table.contains("interrupted "), "{table}");
    assert!(table.contains("TTFT ") && table.contains("late sends "), "{table}");
}

#[test]
fn an_endpoint_that_is_not_there_is_an_error_that_names_it() {
    let (status, _, stderr) = finish(start(&["http://127.0.0.1:1", "--poisson", "5"]));
    assert!(!status.success());
    assert!(
        stderr.contains("the models of http://127.0.0.1:1/ cannot be read: cannot connect"),
        "{stderr}"
    );
    let arguments =
        ["http://127.0.0.1:1", "--poisson", "50", "--duration", "200ms", "--model", "m"];
    let (status, table, stderr) = finish(start(&arguments));
    assert!(!status.success() && table.contains("cannot connect"), "{table}");
    assert!(stderr.contains("no request was answered: "), "{stderr}");
}
