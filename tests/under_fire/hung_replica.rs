//! A local replica that hangs for good: its server accepts requests, and its engine does nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Forebay, chat, eventually, exchange, get, json, status};

/// The replica hangs two seconds after each start, so that it answers for a while.
const CONFIG: &str = "
gateway: {listen: 127.0.0.1:0}
admin: {listen: 127.0.0.1:0}
pools:
- name: sim
  upstream: {freezeTimeout: 500ms, stallTimeout: 30s, requestTimeout: 5m, maxTries: 100}
  hold: {timeout: 5m}
  target:
    processes:
      command: [BINARY, vllm-sim, sim, '--port={port}', --cold-start, 100ms, --hang-after, 2s]
      logDir: LOGS
      ports: 18100-18999
      hungAfter: 1s
  scaling: {minReplicaCount: 1, maxReplicaCount: 1}
";

#[test]
fn a_replica_that_hangs_for_good_is_replaced() {
    let folder = std::env::temp_dir().join(format!("forebay-hung-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let config = CONFIG
        .replace("BINARY", env!("CARGO_BIN_EXE_forebay"))
        .replace("LOGS", folder.to_str().expect("text"));
    let file = folder.join("forebay.yaml");
    std::fs::write(&file, config).expect("written");
    let mut forebay = Forebay::start(&["run", "--config", file.to_str().expect("text")], "info");

    // There is always a stream, even when the replica hangs: then it ends with an error event.
    let (address, stop) = (forebay.address, Arc::new(AtomicBool::new(false)));
    let client = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(status(&exchange(address, &chat(true, 1_000))), 200);
            }
        }
    });
    eventually("the replica answers before it hangs", || whole(&exchange(address, &chat(true, 5))));
    eventually("the replica hangs and is reported as failed", || {
        let replicas = json(&get(forebay.admin, "/replicas")).to_string();
        replicas.contains(r#""state":"failed""#)
    });
    forebay.wait_for("answered nothing for ");
    let series = r#"forebay_replacements_total{pool="sim",reason="hung"}"#;
    eventually("the replica is replaced", || {
        forebay.metric(series).is_some_and(|count| count >= 1.0)
    });
    eventually("its successor answers", || whole(&exchange(address, &chat(true, 5))));
    stop.store(true, Ordering::Relaxed);
    client.join().expect("every request was answered");
    drop(forebay);
    let _ = std::fs::remove_dir_all(&folder);
}

/// Whether a stream is complete.
fn whole(answer: &str) -> bool {
    status(answer) == 200 && answer.contains(r#""finish_reason":"length""#)
}
