//! KEDA's verdicts on a corpus of ScaledObjects, against which `forebay check --scaled-object` is
//! tested: denied by the API server or the webhook, never Ready, no first metrics, or taken.
//!
//! `FOREBAY_RECORD_VERDICTS=1` records the verdicts; otherwise they are compared with the recorded
//! ones.

#[path = "../../../config/tests/keda/corpus.rs"]
mod corpus;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::Instant;

use crate::Cluster;
use crate::plane::{eventually, free_ports, within};
use crate::process::Process;
use crate::suites::workload::namespace;
use corpus::{OBJECT, SERVER, TARGET, corpus};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/tests/keda/verdicts.json")
}

/// The longest wait: hundreds of objects take their time on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);
/// When KEDA has reported nothing for this long, the objects without a report never get ready: its
/// operator panics at some objects before it reports anything about them.
const SILENCE: Duration = Duration::from_secs(45);

/// One object of the corpus, with names of its own.
struct Case {
    name: String,
    object: String,
    /// The text that is applied.
    text: String,
    own_name: String,
    target: String,
}

/// KEDA's verdict on an object, with its reason.
#[derive(Clone, Debug)]
struct Verdict {
    verdict: &'static str,
    why: String,
}

impl Verdict {
    fn new(verdict: &'static str, why: impl Into<String>) -> Self {
        Self { verdict, why: why.into() }
    }
}

pub async fn are_those_recorded(cluster: Arc<Cluster>) {
    let record = std::env::var_os("FOREBAY_RECORD_VERDICTS").is_some_and(|value| value == "1");
    let Some((_server, server)) = prometheus(&cluster).await else {
        assert!(!record, "there is no prometheus to record with");
        println!("keda_verdicts ... skipped: no `prometheus` here; apt-get install prometheus");
        return;
    };
    let namespace = namespace(&cluster, "keda-verdicts").await;
    let cases: Vec<_> = corpus()
        .into_iter()
        .enumerate()
        .map(|(at, (name, object))| {
            // They have the same length as the names that they replace.
            let (own_name, target) = (format!("obj{at:07}"), format!("tgt{at:07}"));
            assert_eq!((own_name.len(), target.len()), (OBJECT.len(), TARGET.len()));
            let text = object.replace(OBJECT, &own_name).replace(TARGET, &target);
            Case { name, object, text: text.replace(SERVER, &server), own_name, target }
        })
        .collect();
    let verdicts = judge(&cluster, &namespace, &cases).await;
    let now: Vec<Value> = cases
        .iter()
        .zip(&verdicts)
        .map(|(case, verdict)| {
            // Replace everything that differs from run to run.
            let why = verdict.why.replace(&case.own_name, OBJECT).replace(&case.target, TARGET);
            let why = why.replace(&server, SERVER).replace(&namespace, "NAMESPACE");
            let first = why.lines().next().unwrap_or_default();
            let why: String = first.chars().take(300).collect();
            json!({"name": case.name, "object": case.object, "verdict": verdict.verdict, "why": why})
        })
        .collect();
    if record {
        let text = serde_json::to_string_pretty(&now).expect("JSON") + "\n";
        std::fs::write(recorded(), text).expect("written");
        println!("{} verdicts are recorded", now.len());
        return;
    }
    let text = std::fs::read_to_string(recorded()).expect("the recorded verdicts");
    let before: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    assert_eq!(before.len(), now.len(), "the corpus has changed; record it anew");
    let differ: Vec<_> = before
        .iter()
        .zip(&now)
        .filter(|(before, now)| {
            ["name", "object", "verdict"].iter().any(|key| before[key] != now[key])
        })
        .map(|(before, now)| format!("{}: {} → {}", before["name"], before["verdict"], now))
        .collect();
    assert!(differ.is_empty(), "KEDA's verdicts have changed:\n{}", differ.join("\n"));
}

/// A Prometheus server that scrapes itself, and its URL.
async fn prometheus(cluster: &Cluster) -> Option<(Process, String)> {
    let [port] = free_ports();
    let folder = cluster.folder.join("verdicts");
    std::fs::create_dir_all(&folder).expect("a folder");
    let config = folder.join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: self\n  static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
    );
    std::fs::write(&config, text).expect("written");
    std::process::Command::new("prometheus").arg("--version").output().ok()?;
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let process = Process::start("prometheus", &cluster.folder.join("log"), command);
    let url = format!("http://127.0.0.1:{port}");
    let query = format!("{url}/api/v1/query?query=sum(up)==1");
    eventually("Prometheus has scraped itself", async || {
        let answer = Command::new("curl").args(["-fsS", &query]).output().await;
        answer.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("\"value\""))
    })
    .await;
    Some((process, url))
}

async fn judge(cluster: &Cluster, namespace: &str, cases: &[Case]) -> Vec<Verdict> {
    // Targets of which no pod is ever started.
    let targets: Vec<_> = cases.iter().map(|case| target(&case.target, namespace)).collect();
    for some in targets.chunks(100) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": some});
        cluster.plane.apply(&list.to_string()).await;
    }
    let mut verdicts: HashMap<usize, Verdict> = HashMap::new();
    for (at, case) in cases.iter().enumerate() {
        let create = ["-n", namespace, "create", "-f", "-"];
        if let Err(error) = cluster.plane.try_kubectl(&create, &case.text).await {
            let why = error.split_once(": ").map_or(error.as_str(), |(_, why)| why).trim();
            verdicts.insert(at, Verdict::new("denied", why));
        }
    }
    let waiting = |verdicts: &HashMap<usize, Verdict>, ready: &HashMap<usize, String>| {
        (0..cases.len()).filter(|at| !verdicts.contains_key(at) && !ready.contains_key(at)).count()
    };
    // The HPA of each object that is ready; empty if it is paused.
    let mut ready: HashMap<usize, String> = HashMap::new();
    let (mut left, mut changed) = (cases.len(), Instant::now());
    within(PATIENCE, "KEDA has judged all objects", async || {
        let get = ["-n", namespace, "get", "scaledobjects", "-o", "json"];
        let Ok(list) = cluster.plane.try_kubectl(&get, "").await else { return false };
        let list: Value = serde_json::from_str(&list).expect("JSON");
        let objects: HashMap<&str, &Value> = list["items"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|object| (object["metadata"]["name"].as_str().expect("a name"), object))
            .collect();
        for (at, case) in cases.iter().enumerate() {
            if verdicts.contains_key(&at) || ready.contains_key(&at) {
                continue;
            }
            let found = objects.iter().find(|(name, _)| name.starts_with(&case.own_name));
            let Some((_, object)) = found else { continue };
            let conditions = object["status"]["conditions"].as_array();
            let condition =
                conditions.and_then(|all| all.iter().find(|each| each["type"] == "Ready"));
            let Some(condition) = condition else { continue };
            let reason = condition["reason"].as_str().unwrap_or_default();
            let hpa = object["status"]["hpaName"].as_str().unwrap_or_default();
            match condition["status"].as_str().unwrap_or_default() {
                "True" => drop(ready.insert(at, hpa.to_owned())),
                // It was ready, and a source has failed since.
                "False" | "Unknown" if !hpa.is_empty() && reason != "ScaledObjectCheckFailed" => {
                    ready.insert(at, hpa.to_owned());
                }
                "False" => {
                    let why = condition["message"].as_str().unwrap_or_default();
                    verdicts.insert(at, Verdict::new("not ready", why));
                }
                _ => {}
            }
        }
        let now = waiting(&verdicts, &ready);
        if now < left {
            (left, changed) = (now, Instant::now());
        }
        left == 0 || changed.elapsed() > SILENCE
    })
    .await;
    for at in 0..cases.len() {
        if !verdicts.contains_key(&at) && !ready.contains_key(&at) {
            verdicts.insert(at, Verdict::new("not ready", "the operator reports nothing of it"));
        }
    }
    for (at, hpa) in ready {
        let verdict = match first_metrics(cluster, namespace, &hpa).await {
            Ok(()) => Verdict::new("taken", ""),
            // A source may not be ready for the first query.
            Err(_) => match first_metrics(cluster, namespace, &hpa).await {
                Ok(()) => Verdict::new("taken", ""),
                Err(why) => Verdict::new("no metrics", why),
            },
        };
        verdicts.insert(at, verdict);
    }
    (0..cases.len()).map(|at| verdicts[&at].clone()).collect()
}

/// Reads the metrics that the HPA reads.
async fn first_metrics(cluster: &Cluster, namespace: &str, hpa: &str) -> Result<(), String> {
    if hpa.is_empty() {
        return Ok(());
    }
    let get = ["-n", namespace, "get", "hpa", hpa, "-o", "json"];
    // The HPA of a paused object is deleted.
    let Ok(hpa) = cluster.plane.try_kubectl(&get, "").await else { return Ok(()) };
    let hpa: Value = serde_json::from_str(&hpa).expect("JSON");
    let metrics = hpa["spec"]["metrics"].as_array().expect("metrics");
    for metric in metrics.iter().filter(|metric| metric["type"] == "External") {
        let metric = &metric["external"]["metric"];
        let labels = metric["selector"]["matchLabels"].as_object().expect("labels");
        let selector: Vec<_> = labels
            .iter()
            .map(|(key, value)| {
                let value = value.as_str().expect("text");
                format!("{}%3D{value}", key.replace('/', "%2F"))
            })
            .collect();
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}?labelSelector={}",
            metric["name"].as_str().expect("a name"),
            selector.join("%2C")
        );
        cluster.plane.try_kubectl(&["get", "--raw", &path], "").await?;
    }
    Ok(())
}

/// A Deployment for a node that does not exist, with the resource requests that the triggers `cpu`
/// and `memory` need.
fn target(name: &str, namespace: &str) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "nodeSelector": {"kubernetes.io/hostname": "nowhere"},
                    "containers": [{
                        "name": "server", "image": "server",
                        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
                    }],
                },
            },
        },
    })
}
