//! Pools whose replicas can't be started: clients hear why at once instead of waiting for the hold's
//! end.

mod support;

use std::process::Command;

use serde_json::Value;
use support::reply::{Reply, ask};
use support::sims::{Folder, Sim};
use support::{Forebay, chat, eventually, get, json, post};

/// Both halves with one pool, `p`, whose replicas are this shell script's processes.
fn run(folder: &Folder, script: &str, fields: &str) -> Forebay {
    let command = serde_json::to_string(&["sh", "-c", script, "{port}"]).expect("text");
    run_command(folder, &command, fields)
}

fn run_command(folder: &Folder, command: &str, fields: &str) -> Forebay {
    let logs = folder.0.join("logs");
    let file = folder.0.join("forebay.yaml");
    let config = format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n\
         - name: p\n  models: [sim]\n  target: {{processes: {{command: {command}, logDir: '{}'}}}}\n\
         {fields}",
        logs.display()
    );
    std::fs::write(&file, config).expect("written");
    Forebay::start(&["run", "--config", file.to_str().expect("text")], "info")
}

/// The message of an error that is a refusal because of failing starts.
fn refused(reply: &Reply) -> String {
    let text = reply.text();
    assert_eq!(reply.status, 503, "{text}");
    assert!(reply.header("retry-after").is_some(), "{}", reply.head);
    let error: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(error["error"]["type"], "ServiceUnavailableError", "{error}");
    error["error"]["message"].as_str().expect("a message").to_owned()
}

fn pool(forebay: &Forebay, path: &str) -> Value {
    json(&get(forebay.admin, path))["pools"]["p"].clone()
}

#[test]
fn clients_of_a_pool_that_cannot_start_hear_why_and_are_served_once_it_can() {
    let folder = Folder::new();
    let mended = folder.0.join("mended");
    let script = format!(
        "if test -e '{}'; then exec '{}' vllm-sim --port $0; fi\n\
         echo loading; echo 'ValueError: no such model in /secret' >&2; exit 3",
        mended.display(),
        env!("CARGO_BIN_EXE_forebay")
    );
    let mut forebay = run(&folder, &script, "");
    // Held from the first start on, and refused after the third.
    let message = refused(&ask(forebay.address, &chat(false, 2)));
    assert!(
        message.starts_with("No replica can be started: the last one exited with status 3. Try"),
        "without the output: {message}"
    );
    let starts = || {
        let log = std::fs::read_to_string(folder.0.join("logs/p-1.log")).unwrap_or_default();
        log.matches("loading").count()
    };
    assert!(starts() >= 3);
    forebay.wait_for(
        "p: no replica can be started, the last one exited with status 3: ValueError: no such model",
    );
    let failed = pool(&forebay, "/replicas")["failedStart"].clone();
    assert_eq!(failed["reason"], "exited with status 3", "{failed}");
    assert!(failed["detail"].is_null(), "{failed}");
    assert_eq!(forebay.metric("forebay_start_failing{pool=\"p\"}"), Some(1.0));
    let decisions = json(&get(forebay.admin, "/decisions"));
    assert_eq!(decisions[0]["failedStart"]["reason"], "exited with status 3", "{decisions}");

    // Refused requests are demand, so replicas are tried again.
    eventually("a fourth start", || {
        refused(&ask(forebay.address, &chat(true, 2)));
        starts() >= 4
    });
    assert_eq!(forebay.replicas().len(), 0);
    std::fs::write(&mended, "").expect("written");
    eventually("a start succeeds", || ask(forebay.address, &chat(false, 2)).status == 200);
    forebay.wait_for("p: a replica has started, requests are served");
    eventually("the scaler has said so", || {
        forebay.metric("forebay_start_failing{pool=\"p\"}") == Some(0.0)
    });
    let refusals = forebay.metric("forebay_refusals_total{pool=\"p\",reason=\"start_failed\"}");
    assert!(refusals.is_some_and(|count| count >= 2.0), "{refusals:?}");
}

#[test]
fn a_program_that_does_not_exist_fails_at_its_first_start() {
    let folder = Folder::new();
    let forebay =
        run_command(&folder, "[/nosuch/vllm, '{port}']", "  hold: {showReason: output}\n");
    let message = refused(&ask(forebay.address, &chat(false, 2)));
    assert!(
        message.starts_with(
            "No replica can be started: the last one could not be started: /nosuch/vllm: not found. "
        ),
        "{message}"
    );
    let replicas = pool(&forebay, "/replicas");
    let reason = replicas["replicas"]["p-1"]["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("not found, again in "), "after one start: {replicas}");

    // In the shape of each API, and without the reason where that is not for clients.
    let folder = Folder::new();
    let forebay = run_command(&folder, "[/nosuch/vllm, '{port}']", "  hold: {showReason: none}\n");
    let body = r#"{"model":"sim","max_tokens":2,"messages":[{"role":"user","content":"hello"}]}"#;
    let reply = ask(forebay.address, &post("/v1/messages", body));
    let error: Value = serde_json::from_str(&reply.text()).expect("JSON");
    assert_eq!((reply.status, &error["error"]["type"]), (503, &"overloaded_error".into()));
    let message = error["error"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("No replica can be started. Try again in "), "{message}");
}

#[test]
fn a_stream_that_had_heartbeats_ends_with_the_reason_as_an_event() {
    let folder = Folder::new();
    let fields = "  hold: {heartbeat: 100ms, showReason: output}\n";
    let forebay = run(&folder, "sleep 0.2; echo 'no GPU'; exit 1", fields);
    let reply = ask(forebay.address, &chat(true, 2));
    let text = reply.text();
    assert!(reply.status == 200 && text.starts_with(": waiting\n\n"), "{text}");
    assert!(text.contains("data: {\"error\":{\"code\":503,"), "{text}");
    assert!(text.contains("the last one exited with status 1: no GPU. Try again in "), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n") && reply.whole, "{text}");
}

#[test]
fn a_server_that_listens_elsewhere_is_a_failed_start_too() {
    let folder = Folder::new();
    let script = "exec sleep 1000";
    let command = serde_json::to_string(&["sh", "-c", script, "{port}"]).expect("text");
    let forebay =
        run_command(&folder, &format!("{command}, startTimeout: 200ms, stopTimeout: 1s"), "");
    let message = refused(&ask(forebay.address, &chat(false, 2)));
    assert!(message.contains("the last one was not healthy within "), "{message}");
}

#[test]
fn the_fallback_takes_the_requests_of_a_pool_that_cannot_start() {
    let sim = Sim::start(&["other"]);
    let folder = Folder::new();
    let fields = format!(
        "  fallback: {{pool: other}}\n- {{name: other, models: [other], endpoints: ['{}']}}\n",
        sim.address
    );
    let forebay = run_command(&folder, "[/nosuch/vllm, '{port}']", &fields);
    eventually("the other pool serves", || {
        let reply = ask(forebay.address, &chat(false, 2));
        assert!(matches!(reply.status, 200 | 503), "{}", reply.text());
        reply.status == 200 && pool(&forebay, "/replicas")["failedStart"].is_object()
    });
    let reply = ask(forebay.address, &chat(false, 2));
    let answer: Value = serde_json::from_str(&reply.text()).expect("JSON");
    assert_eq!((reply.status, &answer["model"]), (200, &"other".into()), "{answer}");
}

#[test]
fn dev_refuses_a_command_that_can_never_start() {
    let folder = Folder::new();
    let file = folder.0.join("not-executable");
    std::fs::write(&file, "").expect("written");
    let file = file.to_str().expect("text");
    for (program, want) in [
        ("nosuch-vllm", "there is no program `nosuch-vllm` in the folders of PATH"),
        ("/nosuch/vllm", "there is no file /nosuch/vllm"),
        (file, "is not a program that may be run"),
    ] {
        let arguments = ["dev", "--listen", "127.0.0.1:0", "--", program, "--port", "{port}"];
        let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(arguments)
            .output()
            .expect("the binary starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(want), "{program}: {text}");
    }
}

#[test]
fn check_warns_of_a_command_that_this_machine_cannot_start() {
    let folder = Folder::new();
    let file = folder.0.join("forebay.yaml");
    let config = "pools: [{name: p, target: {processes: {command: [nosuch-vllm, '{port}']}}}]\n";
    std::fs::write(&file, config).expect("written");
    let check = |strict: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(["check", "--config", file.to_str().expect("text")])
            .args(strict)
            .output()
            .expect("the binary starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (valid, text) = check(&[]);
    assert!(valid && text.contains("pool `p` can't be started on this machine: "), "{text}");
    assert!(text.contains("there is no program `nosuch-vllm`"), "{text}");
    let (valid, text) = check(&["--strict"]);
    assert!(!valid, "another machine may have it, so only --strict refuses it: {text}");
}
