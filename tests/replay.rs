//! `forebay replay`, run as a user runs it.

mod support;

use std::path::PathBuf;
use std::process::{Command, Output};

use support::{Forebay, chat, exchange, status};

const CONFIG: &str = "
pools:
  - name: chat
    models: [chat]
    maxInFlight: 32
    target: {processes: {command: [vllm, serve, m, '--port={port}']}}
    scaling: {minReplicaCount: 0, maxReplicaCount: 6, objective: {ttft: 2s, share: 0.95}}
  - name: other
    models: [other]
    target: {processes: {command: [vllm, serve, o, '--port={port}'], ports: 18300-18399}}
replay: {gpuHourPrice: 2.5, seed: 7}
";

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("forebay-replay-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("f.yaml"), CONFIG).expect("written");
        Self(folder)
    }

    fn replay(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_forebay"))
            .current_dir(&self.0)
            .args(["replay", "--config", "f.yaml"])
            .args(arguments)
            .output()
            .expect("it runs")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn each_contestant_is_printed_as_it_ends_and_another_configuration_is_played_beside() {
    let folder = Folder::new("lines");
    let other = CONFIG.replace("minReplicaCount: 0", "minReplicaCount: 2").replace("2s", "1ms");
    std::fs::write(folder.0.join("other.yaml"), other).expect("written");
    let arguments = "--pool chat --trace burst --compare knative --beside other.yaml --json-lines";
    let output = folder.replay(&arguments.split(' ').collect::<Vec<_>>());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    let lines = printed.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let lines: Vec<serde_json::Value> = lines.collect();
    assert!(lines[0]["load"]["requests"].as_u64() > Some(0), "{}", lines[0]);
    assert_eq!(lines[0]["setting"]["objectiveTtftSeconds"], 2.0);
    let ended: Vec<_> = lines.iter().map(|line| &line["contestant"]).collect();
    let ended: Vec<_> = ended.into_iter().filter(|contestant| !contestant.is_null()).collect();
    let names: Vec<_> = ended.iter().map(|one| one["name"].as_str().expect("a name")).collect();
    // The quickest first.
    assert!(
        matches!(names[..], ["knative", "forebay", "beside", fixed] if fixed.starts_with("fixed="))
    );
    let (ours, beside) = (ended[1], ended[2]);
    assert!(beside["gpuHours"].as_f64() > ours["gpuHours"].as_f64(), "two replicas stay");
    // By the objective of the first file: nothing begins within a millisecond.
    assert!(beside["shareWithin"].as_f64() > Some(0.5), "{beside}");
}

#[test]
fn a_seed_gives_the_same_results_as_table_json_and_page() {
    let folder = Folder::new("same");
    let run = |out: &str| {
        let all = ["--pool", "chat", "--trace", "burst", "--compare", "all", "--out", out];
        let output = folder.replay(&all);
        assert!(output.status.success(), "{}", text(&output.stderr));
        (
            text(&output.stdout),
            std::fs::read(folder.0.join(out).join("results.json")).expect("JSON"),
        )
    };
    let ((table, one), (_, other)) = (run("one"), run("other"));
    assert_eq!(text(&one), text(&other));
    for name in ["forebay", "fixed=", "keda", "keda-min1", "knative", "kubeai", "optimum"] {
        assert!(table.lines().any(|line| line.starts_with(name)), "{name} in:\n{table}");
    }
    let results: serde_json::Value = serde_json::from_slice(&one).expect("JSON");
    for report in results["contestants"].as_array().expect("a list") {
        let of = |key: &str| report[key].as_u64().expect(key);
        assert_eq!(of("answered") + of("gaveUp"), of("requests"), "{}", report["name"]);
    }
    let page = std::fs::read_to_string(folder.0.join("one/report.html")).expect("a page");
    assert_eq!(page.matches("<svg").count(), 4, "demand, queue, replicas, TTFT");
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "the page loads nothing from the network"
    );
    let (reasons, origin) = (&results["changes"], &results["origin"]);
    assert!(
        reasons[0]["sentence"].as_str().is_some_and(|text| text.starts_with("scaling 0 →")),
        "{reasons}"
    );
    assert_eq!(
        (origin["seed"].as_u64(), origin["scaling"]["maxReplicaCount"].as_u64()),
        (Some(7), Some(6))
    );
    for shown in
        ["because", "seed 7", "data-values", "maxReplicaCount", "TTFT p95", "hold p95", "a month"]
    {
        assert!(page.contains(shown), "{shown}");
    }
    let seeded = |seed: &str| {
        folder.replay(&["--pool", "chat", "--trace", "burst", "--json", "--seed", seed]).stdout
    };
    assert_eq!(seeded("7"), seeded("7"));
    assert_ne!(seeded("7"), seeded("8"));
}

#[test]
fn recorded_arrivals_can_be_replayed() {
    let folder = Folder::new("recorded");
    let (forebay, path) = (env!("CARGO_BIN_EXE_forebay"), folder.0.display());
    let config = format!(
        "gateway: {{listen: '127.0.0.1:0', recordArrivals: {{file: '{path}/arrivals.csv'}}}}\n\
         admin: {{listen: '127.0.0.1:0'}}\n\
         scaler: {{stateDir: '{path}/state'}}\n\
         pools:\n- name: chat\n  models: [sim]\n  target:\n    processes:\n      \
         logDir: '{path}'\n      command: ['{forebay}', vllm-sim, --port, '{{port}}', \
         --served-model-name, sim]\n  scaling: {{maxReplicaCount: 1}}\n"
    );
    std::fs::write(folder.0.join("f.yaml"), config).expect("written");
    let file = folder.0.join("f.yaml").display().to_string();
    let mut running = Forebay::start(&["run", "--config", &file], "info");
    for _ in 0..3 {
        assert_eq!(status(&exchange(running.address, &chat(true, 5))), 200);
    }
    running.signal("TERM");
    assert!(running.wait().success());
    let recorded = std::fs::read_to_string(folder.0.join("arrivals.csv")).expect("recorded");
    let lines: Vec<_> = recorded.lines().collect();
    assert_eq!(lines[0], "time,pool,promptTokens,generatedTokens");
    assert_eq!(lines.len(), 4, "{recorded}");
    assert!(lines[1].contains(",chat,") && lines[1].ends_with(",5"), "{recorded}");
    assert!(!recorded.contains("hello"), "no text of a request: {recorded}");
    let output = folder.replay(&["--trace", "arrivals.csv", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(results["contestants"][0]["answered"], 3);
}

#[test]
fn each_error_names_the_fix() {
    let folder = Folder::new("wrong");
    std::fs::write(
        folder.0.join("bad.csv"),
        "time,pool,promptTokens,generatedTokens\n1,chat,x,2\n",
    )
    .expect("written");
    for (arguments, want) in [
        (&["--trace", "burst"][..], "several pools; name one with --pool: chat, other"),
        (&["--trace", "burst", "--pool", "x"], "there is no pool `x`; known are chat, other"),
        (
            &["--trace", "bad.csv", "--pool", "chat"],
            "bad.csv: line 2: `x` is not a number of tokens",
        ),
        (&["--trace", "no.csv", "--pool", "chat"], "there is no file `no.csv`"),
        (&["--trace", "no.csv", "--pool", "chat"], "known are office-day, week"),
        (
            &["--trace", "burst", "--pool", "chat", "--compare", "hpa"],
            "unknown baseline `hpa`; known are fixed, keda, keda-min1, knative, kubeai, drained, optimum",
        ),
        (&["--trace", "burst", "--pool", "chat", "--speed-up", "0"], "--speed-up 0: must be"),
        (&["--trace", "burst", "--pool", "chat", "--out", "f.yaml"], "cannot write into f.yaml"),
    ] {
        let output = folder.replay(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        let error = text(&output.stderr);
        assert!(error.contains(want), "{arguments:?}: {error}");
    }
}

#[test]
fn the_shipped_scenarios_are_valid() {
    let scenarios = concat!(env!("CARGO_MANIFEST_DIR"), "/loadtests/scenarios");
    let files = std::fs::read_dir(scenarios).expect("a folder");
    let mut count = 0;
    for file in files {
        let path = file.expect("readable").path();
        // Those of `forebay load` have a folder of their own.
        if path.is_dir() {
            continue;
        }
        let config = forebay_config::load(&path);
        assert!(config.is_ok_and(|config| config.replay.is_some()), "{}", path.display());
        count += 1;
    }
    assert!(count >= 6, "{count} scenarios");
}

#[test]
fn pick_policies_are_compared_on_a_load_that_says_what_prompts_have_in_common() {
    let folder = Folder::new("picks");
    // Three conversations of 20 turns, a turn a second. Each turn adds 512 tokens.
    let rows = (0..60).map(|row| {
        let (conversation, turn) = (row % 3, row / 3 + 1);
        let ids: Vec<_> = (0..turn).map(|at| conversation * 100 + at).collect();
        let (at, length) = (turn * 1_000 + conversation * 300, turn * 512);
        format!(
            "{{\"timestamp\": {at}, \"input_length\": {length}, \"output_length\": 20, \"hash_ids\": {ids:?}}}\n"
        )
    });
    std::fs::write(folder.0.join("m.jsonl"), rows.collect::<String>()).expect("written");
    let picks = ["--pool", "chat", "--trace", "m.jsonl", "--picks", "all", "--replicas", "2"];
    let output = folder.replay(&[&picks[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let report = |name: &str| {
        let all = results["picks"].as_array().expect("a list").iter();
        all.clone().find(|report| report["pick"] == name).expect(name).clone()
    };
    let cached = |name: &str| report(name)["cachedShare"].as_f64().expect("a share");
    assert_eq!((&results["requests"], &results["replicas"]), (&60.into(), &2.into()));
    assert!(cached("roundRobin") < 0.85, "its turns alternate between the replicas: {results}");
    assert!(cached("consistentHash") > 0.88, "all but the new block of each turn: {results}");

    let output = folder.replay(&picks);
    let table = text(&output.stdout);
    assert!(table.contains("60 requests") && table.contains("most load"), "{table}");
    let both = folder.replay(&[&picks[..], &["--compare", "all"]].concat());
    assert!(!both.status.success() && text(&both.stderr).contains("--picks"));
}

#[test]
fn orders_of_held_requests_are_compared_with_what_foresight_could_reach() {
    let folder = Folder::new("orders");
    // 24 requests a second for a minute, each of 200 tokens: more than one replica can do.
    let rows =
        (0..1440).map(|row| format!("{},chat,500,200\n", 1_700_000_000.0 + f64::from(row) / 24.0));
    let csv = format!("time,pool,promptTokens,generatedTokens\n{}", rows.collect::<String>());
    std::fs::write(folder.0.join("o.csv"), csv).expect("written");
    let orders = ["--pool", "chat", "--trace", "o.csv", "--orders", "--replicas", "1"];
    let output = folder.replay(&[&orders[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let bound = results["bound"].as_f64().expect("a share");
    let within = |order: &str| {
        let all = results["orders"].as_array().expect("a list").iter();
        let found = all.clone().find(|report| report["order"] == order).expect(order);
        found["shareWithin"].as_f64().expect("a share")
    };
    assert!(results["load"].as_f64().is_some_and(|load| load > 1.2), "{results}");
    assert!(within("objective") > 2.0 * within("arrival"), "{results}");
    let clairvoyant = within("evenly (clairvoyant)");
    // It has to learn first how long first tokens take.
    assert!(within("objective") > 0.85 * clairvoyant && clairvoyant <= bound, "{results}");

    let table = text(&folder.replay(&orders).stdout);
    assert!(
        table.contains("no gateway can serve more than") && table.contains("refused after p95"),
        "{table}"
    );
    let alone = folder.replay(&["--pool", "chat", "--trace", "o.csv", "--replicas", "1"]);
    assert!(!alone.status.success(), "--replicas alone means nothing");
}
