//! The Grafana board and the alerts against a real Prometheus server, which scrapes a gateway and a
//! scaler under load: every query of the board returns figures, and every alert reads figures that
//! exist. `promtool` makes each alert fire by series that the program exports, and alerts of a running
//! program come with their causes and end with them.
//!
//! Skipped, with a note, where no `prometheus` is installed; with `FOREBAY_REQUIRE_PROMETHEUS` set
//! that is a failure.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use support::prometheus::{Prometheus, folder, free_port, installed};
use support::sims::Folder;
use support::{Forebay, eventually, exchange, get, json, post, status};

const BOARD: &str = include_str!("../deploy/grafana/forebay.json");
const ALERTS: &str = include_str!("../deploy/alerts/forebay.yaml");

/// A query of the board, with the variables' values for "all".
struct Query {
    panel: String,
    text: String,
    /// The panel says that it shows nothing while nothing happens.
    may_be_empty: bool,
}

fn queries() -> Vec<Query> {
    let board: Value = serde_json::from_str(BOARD).expect("JSON");
    let variables = |text: &str| {
        let text = text.replace("$namespace", ".*").replace("$pool", ".*");
        let text = text.replace("$__rate_interval", "30s");
        assert!(!text.contains('$'), "a variable that the board does not have: {text}");
        text
    };
    let mut queries = Vec::new();
    for panel in board["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        if panel["type"] == "row" {
            continue;
        }
        let description = panel["description"].as_str().unwrap_or_default();
        for target in panel["targets"].as_array().expect("targets") {
            queries.push(Query {
                panel: title.to_owned(),
                text: variables(target["expr"].as_str().expect("a query")),
                may_be_empty: description.contains("Empty while"),
            });
        }
    }
    let marks = board["annotations"]["list"].as_array().expect("marks");
    queries.extend(marks.iter().map(|mark| Query {
        panel: "marks".to_owned(),
        text: variables(mark["expr"].as_str().expect("a query")),
        may_be_empty: true,
    }));
    queries
}

/// Names and queries of the alerts.
fn alerts() -> Vec<(String, String)> {
    let alerts: Value = serde_saphyr::from_str(ALERTS).expect("YAML");
    let rules = alerts["groups"][0]["rules"].as_array().expect("rules").clone();
    let text = |rule: &Value, field| rule[field].as_str().expect("a text").to_owned();
    rules.iter().map(|rule| (text(rule, "alert"), text(rule, "expr"))).collect()
}

/// The metrics that a query reads.
fn metrics(query: &str) -> BTreeSet<&str> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("forebay_") || word.starts_with("process_")).collect()
}

impl Prometheus {
    /// The results of a query that are numbers.
    fn query(&self, query: &str) -> Vec<f64> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let query = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let answer = json(&get(address, &format!("/api/v1/query?query={query}")));
        assert_eq!(answer["status"], "success", "{answer}");
        let results = answer["data"]["result"].as_array().expect("results").clone();
        let value = |result: &Value| result["value"][1].as_str()?.parse::<f64>().ok();
        results.iter().filter_map(value).filter(|value| !value.is_nan()).collect()
    }
}

/// A query that looks back over seconds only, so that a test sees what an alert sees after minutes.
fn hasty(query: &str) -> String {
    let (mut out, mut rest) = (String::new(), query);
    while let Some((before, after)) = rest.split_once('[') {
        let (_, after) = after.split_once(']').expect("a window");
        out += &format!("{before}[10s]");
        rest = after;
    }
    out + rest
}

/// A series by its name and labels, without those that tell where it comes from, and with names from a
/// configuration in the form `*`.
fn kind(series: &str) -> (String, BTreeSet<String>) {
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels =
        labels.trim_end_matches('}').split(',').map(str::trim).filter(|label| !label.is_empty());
    let label = |label: &str| {
        let (key, value) = label.split_once('=').expect("a label");
        let is_configured = ["pool", "trigger", "what"].contains(&key);
        match key {
            "namespace" | "instance" => None,
            _ => Some(format!("{key}={}", if is_configured { "*" } else { value })),
        }
    };
    (name.to_owned(), labels.filter_map(label).collect())
}

/// Sends a stream, a plain request, and one for a model that does not exist.
fn load(forebay: &Forebay) {
    let refused = post("/v1/completions", r#"{"model":"gone","prompt":"hello"}"#);
    assert_eq!(status(&exchange(forebay.address, &refused)), 404);
    for stream in [true, false] {
        let body = format!(
            r#"{{"model":"chat","stream":{stream},"max_tokens":20,"messages":[{{"role":"user","content":"hello"}}]}}"#
        );
        let answer = exchange(forebay.address, &post("/v1/chat/completions", &body));
        assert_eq!(status(&answer), 200, "{answer}");
    }
}

/// A gateway with a scaler and one pool of simulated replicas, with these `settings`.
fn configuration(folder: &Path, settings: &str) -> String {
    let ports = free_port();
    format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}
pools:
- name: chat
  models: [chat]
  target:
    processes:
      command: ['{}', vllm-sim, --served-model-name, chat, '--port={{port}}', --cold-start, 100ms]
      logDir: {}
      ports: {ports}-{}
{settings}",
        env!("CARGO_BIN_EXE_forebay"),
        folder.join("logs").display(),
        ports.saturating_add(3),
    )
}

#[test]
fn every_query_of_the_board_and_of_the_alerts_returns_figures() {
    if !installed() {
        return;
    }
    let folder = folder("monitoring");
    let (own, config) = (free_port(), folder.join("forebay.yaml"));
    let text = configuration(
        &folder,
        "  scaling: {triggers: [{type: concurrency, metadata: {threshold: '4'}}]}\n",
    );
    std::fs::write(&config, text).expect("written");
    let forebay = Forebay::start(&["run", "--config", config.to_str().expect("text")], "info");
    let mut prometheus = Prometheus::on(own, &folder);
    prometheus.start(&[forebay.admin.to_string()]);
    let queries = queries();
    assert!(queries.len() > 40, "the board is read");
    for Query { panel, text, may_be_empty } in &queries {
        if *may_be_empty {
            prometheus.query(text);
            continue;
        }
        eventually(&format!("{panel} has figures: {text}"), || {
            load(&forebay);
            !prometheus.query(text).is_empty()
        });
    }
    for (alert, query) in alerts() {
        prometheus.query(&query);
        for metric in metrics(&query) {
            assert!(!prometheus.query(metric).is_empty(), "{alert} reads {metric}: no such figure");
        }
    }
}

#[test]
fn alerts_come_with_their_causes_and_end_with_them() {
    if !installed() {
        return;
    }
    let folder = folder("alerts");
    let (own, config) = (free_port(), folder.join("forebay.yaml"));
    let text = configuration(
        &folder,
        "  maxInFlight: 1\n  scaling: {maxReplicaCount: 1, minReplicaCount: 1}\n",
    );
    let write = |more: &str| std::fs::write(&config, format!("{text}{more}")).expect("written");
    write("");
    let forebay = Forebay::start(&["run", "--config", config.to_str().expect("text")], "info");
    let mut prometheus = Prometheus::on(own, &folder);
    prometheus.start(&[forebay.admin.to_string()]);
    let alerts: BTreeMap<_, _> = alerts().into_iter().collect();
    let fires = |alert: &str| !prometheus.query(&hasty(&alerts[alert])).is_empty();
    load(&forebay);
    for alert in alerts.keys() {
        eventually(&format!("{alert} is quiet"), || {
            forebay.metric("forebay_queue_depth{pool=\"chat\"}") == Some(0.0) && !fires(alert)
        });
    }
    write(
        "- name: broken
  models: [broken]
  endpoints: ['127.0.0.1:9']
  scaling:
    triggers:
    - {type: prometheus, metadata: {serverAddress: 'http://127.0.0.1:9', query: up, threshold: '1'}}
",
    );
    eventually("the trigger can't be read", || fires("ForebayTriggerUnreadable"));
    write("");
    eventually("it is gone", || !fires("ForebayTriggerUnreadable"));
    write("- name: [\n");
    eventually("the file is refused", || fires("ForebayFileRefused"));
    write("");
    eventually("the file is taken", || !fires("ForebayFileRefused"));
    // A strict objective, and plain answers that take minutes, one of which is at the replica.
    let strict = text.replace("minReplicaCount: 1", "minReplicaCount: 1, objective: {ttft: 1ms}");
    std::fs::write(&config, strict).expect("written");
    eventually("the objective is taken", || {
        forebay.metric("forebay_objective_ttft_seconds{pool=\"chat\"}") == Some(0.001)
    });
    let body = r#"{"model":"chat","max_tokens":30000,"ignore_eos":true,"messages":[{"role":"user","content":"hello"}]}"#;
    let clients: Vec<_> = (0..40)
        .map(|_| {
            let mut client = TcpStream::connect(forebay.address).expect("it listens");
            client.write_all(&post("/v1/chat/completions", body)).expect("sent");
            client
        })
        .collect();
    for alert in ["ForebayAtMaximum", "ForebayQueueNotDraining"] {
        eventually(&format!("{alert} fires"), || fires(alert));
    }
    let metrics = get(forebay.admin, "/metrics");
    let exported: BTreeSet<_> = metrics
        .lines()
        .filter(|line| line.starts_with("forebay_"))
        .filter_map(|line| Some(kind(line.rsplit_once(' ')?.0)))
        .collect();
    let tests: Value =
        serde_saphyr::from_str(include_str!("../deploy/alerts/tests.yaml")).expect("YAML");
    for test in tests["tests"].as_array().expect("tests") {
        for series in test["input_series"].as_array().expect("series") {
            let series = kind(series["series"].as_str().expect("a series"));
            if series.0 == "forebay_trigger_readable" {
                // The pool with a trigger is gone.
                continue;
            }
            assert!(exported.contains(&series), "the program exports no {series:?}");
        }
    }
    drop(clients);
    for alert in ["ForebayAtMaximum", "ForebayQueueNotDraining"] {
        eventually(&format!("{alert} ends"), || !fires(alert));
    }
}

#[test]
fn the_metrics_show_who_is_heard_and_whether_files_and_objectives_are_kept() {
    let folder = Folder::new();
    let ports = free_port();
    let with = |ttft: &str| {
        format!(
            "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}
scaler: {{gateways: ['127.0.0.1:9', '127.0.0.1:10']}}
pools:
- name: chat
  models: [chat]
  target:
    processes:
      command: ['{}', vllm-sim, --served-model-name, chat, '--port={{port}}']
      logDir: {}
      ports: {ports}-{ports}
  scaling: {{minReplicaCount: 1, objective: {{ttft: {ttft}}}}}
",
            env!("CARGO_BIN_EXE_forebay"),
            folder.0.join("logs").display(),
        )
    };
    let config = folder.write("forebay.yaml", &with("60s"));
    let forebay = Forebay::start(&["run", "--config", &config], "info");
    let is = |series: &str, value: f64| {
        eventually(&format!("{series} is {value}"), || forebay.metric(series) == Some(value));
    };
    let tokens = |objective: &str| {
        format!("forebay_first_tokens_total{{pool=\"chat\",objective=\"{objective}\"}}")
    };
    is("forebay_scaler_heard", 1.0);
    is("forebay_scaler_leading", 1.0);
    is("forebay_gateways{state=\"heard\"}", 1.0);
    is("forebay_gateways{state=\"silent\"}", 2.0);
    is("forebay_objective_ttft_seconds{pool=\"chat\"}", 60.0);
    load(&forebay);
    is(&tokens("met"), 1.0);
    is(&tokens("missed"), 0.0);

    folder.write("forebay.yaml", "pools: nothing");
    is("forebay_last_reload_taken{what=\"configuration\"}", 0.0);
    is("forebay_reloads_total{what=\"configuration\",outcome=\"refused\"}", 1.0);
    folder.write("forebay.yaml", &with("1ms"));
    is("forebay_last_reload_taken{what=\"configuration\"}", 1.0);
    is("forebay_objective_ttft_seconds{pool=\"chat\"}", 0.001);
    load(&forebay);
    is(&tokens("missed"), 1.0);
    is(&tokens("met"), 1.0);
}

#[test]
fn a_gateway_shows_that_its_scaler_is_not_heard() {
    let folder = Folder::new();
    let text = "gateway: {listen: 127.0.0.1:0, scaler: '127.0.0.1:9'}\nadmin: {listen: 127.0.0.1:0}
pools: [{name: chat, models: [chat], endpoints: ['127.0.0.1:9']}]\n";
    let gateway = folder.gateway(text);
    assert_eq!(gateway.metric("forebay_scaler_heard"), Some(0.0));
    assert_eq!(gateway.metric("forebay_scaler_leading"), None);
}

#[test]
fn the_chart_has_the_same_board_and_alerts() {
    let same = [
        (BOARD, "grafana/forebay.json", "dashboard.json"),
        (ALERTS, "alerts/forebay.yaml", "alerts.yaml"),
    ];
    for (ours, file, copy) in same {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/chart/forebay/files");
        let charts = std::fs::read_to_string(folder.join(copy)).expect(copy);
        // Helm reads nothing outside of the chart, so it has copies.
        assert!(ours == charts, "cp deploy/{file} deploy/chart/forebay/files/{copy}");
    }
}

#[test]
fn no_query_of_the_board_merges_namespaces() {
    for Query { panel, text, .. } in queries() {
        for clause in text.split(" by (").skip(1) {
            let (labels, _) = clause.split_once(')').expect("closed");
            let tells = |label: &str| labels.split(", ").any(|one| one == label);
            assert!(tells("namespace") || tells("instance"), "{panel}: by ({labels})");
        }
    }
}

#[test]
fn every_metric_of_the_board_is_documented() {
    let page = include_str!("../docs/metrics.md");
    for Query { panel, text, .. } in queries() {
        for metric in metrics(&text) {
            let family =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| metric.strip_suffix(end));
            let documented = |name: &str| page.contains(&format!("`{name}`"));
            assert!(documented(metric) || family.is_some_and(documented), "{panel}: {metric}");
        }
    }
}

#[test]
fn every_alert_has_a_test_that_makes_it_fire_and_a_page_that_says_what_to_do() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests: Value =
        serde_saphyr::from_str(include_str!("../deploy/alerts/tests.yaml")).expect("YAML");
    let tests = tests["tests"].as_array().expect("tests");
    let cases = tests.iter().flat_map(|test| test["alert_rule_test"].as_array().expect("cases"));
    let fires: BTreeSet<_> = cases
        .filter(|case| case["exp_alerts"].is_array())
        .filter_map(|case| case["alertname"].as_str())
        .collect();
    let alerts: Value = serde_saphyr::from_str(ALERTS).expect("YAML");
    for rule in alerts["groups"][0]["rules"].as_array().expect("rules") {
        let name = rule["alert"].as_str().expect("a name");
        assert!(fires.contains(name), "{name}: no test makes it fire");
        let page = rule["annotations"]["runbook_url"].as_str().expect("a page");
        let (_, path) = page.split_once("/blob/main/").expect("a page of this repository");
        let text = std::fs::read_to_string(root.join(path)).unwrap_or_default();
        assert!(text.contains(&format!("`{name}`")), "{path} does not name {name}");
    }
}

#[test]
fn promtool_accepts_the_alerts_and_makes_each_fire() {
    if !installed() {
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/alerts");
    for arguments in [["check", "rules", "forebay.yaml"], ["test", "rules", "tests.yaml"]] {
        let done = Command::new("promtool").args(arguments).current_dir(&folder).output();
        let done = done.expect("promtool comes with prometheus");
        let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}");
    }
}
