//! The configuration file changes while the real binary serves.

#![allow(missing_docs)]

use std::fs::OpenOptions;
use std::process::Command;

use support::sims::{Folder, Sim};
use support::{Forebay, chat, eventually, exchange, get, status};

mod support;

fn config(endpoints: &[&Sim], more: &str) -> String {
    let list: Vec<_> = endpoints.iter().map(|sim| format!("\"{}\"", sim.address)).collect();
    format!(
        "gateway:\n  listen: 127.0.0.1:0\n{more}admin:\n  listen: 127.0.0.1:0\npools:\n  - name: p\n    \
         models: [sim]\n    endpoints: [{}]\n",
        list.join(", ")
    )
}

const NOT_VALID: &str = "not valid; the previous configuration stays in force";
const IN_FORCE: &str = "the new configuration is in force";

#[test]
fn a_changed_file_takes_effect_and_a_wrong_one_is_reported_with_its_line() {
    let (one, two) =
        (Sim::start(&["--served-model-name", "sim"]), Sim::start(&["--served-model-name", "sim"]));
    let folder = Folder::new();
    let file = folder.write("forebay.yaml", &config(&[&one], ""));
    let mut forebay = Forebay::start(&["gateway", "--config", &file], "info");
    assert_eq!(status(&exchange(forebay.address, &chat(false, 2))), 200);

    // Moved into place: the gateway looks on its own.
    folder.write("forebay.yaml", &config(&[&two], "  paths: [/health, /v1/chat/completions]\n"));
    forebay.wait_for(IN_FORCE);
    drop(one);
    assert_eq!(status(&get(forebay.address, "/v1/models")), 404);
    for _ in 0..3 {
        assert_eq!(status(&exchange(forebay.address, &chat(false, 2))), 200);
    }

    folder.write("forebay.yaml", &config(&[&two], "  pathz: []\n"));
    let line = forebay.wait_for("pathz");
    assert!(
        line.contains("forebay.yaml:3: gateway.pathz: unknown field; did you mean paths?"),
        "{line}"
    );
    forebay.wait_for(NOT_VALID);
    assert_eq!(status(&exchange(forebay.address, &chat(false, 2))), 200);
    // A signal has it reported again.
    forebay.signal("HUP");
    forebay.wait_for(NOT_VALID);

    // A field that can't change is named, and the rest takes effect.
    let later = "  threads: 3\nopenTelemetry:\n  endpoint: http://127.0.0.1:1\n";
    folder.write("forebay.yaml", &config(&[&two], later));
    forebay.signal("HUP");
    let line = forebay.wait_for("takes effect at the next start only");
    assert!(line.contains("gateway.threads") && line.contains("openTelemetry"), "{line}");
    eventually("all paths are open again", || status(&get(forebay.address, "/v1/models")) == 200);

    // With the values of the start again, nothing waits for the next one.
    folder.write(
        "forebay.yaml",
        &config(&[&two], "openTelemetry:\n  endpoint: http://127.0.0.1:1\n"),
    );
    forebay.signal("HUP");
    let line = forebay.wait_for("takes effect at the next start only");
    assert!(line.contains("only: openTelemetry\""), "{line}");
    folder.write("forebay.yaml", &config(&[&two], ""));
    forebay.signal("HUP");
    forebay.wait_for(IN_FORCE);
    forebay.signal("TERM");
    forebay.wait_for("shutting down");
    let mut lines = forebay.logged().iter().rev();
    let since = lines.position(|line| line.contains(IN_FORCE)).expect("just seen");
    let mut last = forebay.logged().iter().rev().take(since);
    assert!(!last.any(|line| line.contains("at the next start only")));
    assert!(forebay.wait().success());
}

#[test]
fn the_scaler_follows_new_bounds_and_keeps_running_replicas() {
    let folder = Folder::new();
    let config = |least: u32, stale: &str| {
        format!(
            "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\n\
             scaler: {{staleAfter: {stale}}}\npools:\n- name: p\n  models: [sim]\n  \
             target: {{processes: {{command: ['{}', vllm-sim, --served-model-name, sim, \
             '--port={{port}}'], ports: 19640-19647}}}}\n  \
             scaling: {{minReplicaCount: {least}, maxReplicaCount: 3}}\n",
            env!("CARGO_BIN_EXE_forebay")
        )
    };
    let file = folder.write("forebay.yaml", &config(1, "10s"));
    let mut forebay = Forebay::start(&["run", "--config", &file], "info");
    eventually("one replica", || forebay.replicas().len() == 1);
    let first = forebay.replicas()[0];
    folder.write("forebay.yaml", &config(2, "20s"));
    forebay.signal("HUP");
    forebay.wait_for(IN_FORCE);
    eventually("a second replica", || forebay.replicas().len() == 2);
    assert!(forebay.replicas().contains(&first), "the first replica goes on");
    let later = |line: &String| line.contains("at the next start only");
    assert!(!forebay.logged().iter().any(later));

    folder.write(
        "forebay.yaml",
        &(config(2, "20s").replace("{staleAfter", "{stateDir: /nowhere, staleAfter")),
    );
    forebay.signal("HUP");
    let line = forebay.wait_for("takes effect at the next start only");
    assert!(line.contains("scaler (all but staleAfter)"), "{line}");
    forebay.signal("TERM");
    assert!(forebay.wait().success());
}

#[test]
fn a_file_that_cannot_be_read_to_its_end_blocks_nothing() {
    use std::os::unix::fs::OpenOptionsExt;
    const O_NONBLOCK: i32 = 0o4000;

    let sim = Sim::start(&["--served-model-name", "sim"]);
    let folder = Folder::new();
    let file = folder.write("forebay.yaml", &config(&[&sim], ""));
    let mut forebay = Forebay::start(&["gateway", "--config", &file], "info");
    // A pipe without a writer takes its place.
    let pipe = format!("{file}.pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    std::fs::rename(&pipe, &file).expect("moved");
    let mut writer = None;
    eventually("the gateway reads it", || {
        writer = OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&file).ok();
        writer.is_some()
    });
    assert_eq!(status(&get(forebay.admin, "/readyz")), 200);
    assert_eq!(status(&exchange(forebay.address, &chat(false, 2))), 200);
    forebay.signal("TERM");
    assert!(forebay.wait().success());
}
