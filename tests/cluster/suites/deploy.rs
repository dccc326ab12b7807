//! The chart and the examples of `deploy/`, applied to a real API server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::process::Command;

use crate::Cluster;
use crate::suites::workload::namespace;

/// For `helm template`: a helm that is built from its module takes an old Kubernetes for granted.
pub const KUBERNETES: &str = "1.36";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

pub async fn helm(cluster: &Cluster, arguments: &[&str]) -> String {
    let helm = cluster.plane.tool("helm").expect("tests/cluster/build helm");
    let mut command = Command::new(helm);
    command.args(arguments).env("KUBECONFIG", &cluster.plane.kubeconfig);
    let output = command.output().await.expect("helm runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "helm {}: {error}\n{text}", arguments.join(" "));
    text
}

/// `helm template` and `install` accept the values of two examples, and the rendered configuration
/// is valid.
pub async fn the_chart_is_accepted(cluster: Arc<Cluster>) {
    if cluster.plane.tool("helm").is_none() {
        println!("  skipped: no helm; run tests/cluster/build helm");
        return;
    }
    let (chart, examples) = (deploy().join("chart/forebay"), deploy().join("examples"));
    let chart = chart.display().to_string();
    for values in [None, Some("values-direct.yaml"), Some("values-keda.yaml")] {
        let file = values.map(|name| examples.join(name).display().to_string());
        let with: Vec<&str> = file.iter().flat_map(|file| ["-f", file]).collect();
        let rendered = [&["template", "forebay", &chart, "--kube-version", KUBERNETES], &with[..]];
        let rendered = rendered.concat();
        let rendered = helm(&cluster, &rendered).await;
        is_valid(&cluster, &rendered).await;

        let namespace = namespace(&cluster, &format!("chart-{}", values.map_or(0, str::len))).await;
        let policy = "networkPolicy.enabled=true";
        let install = ["install", "forebay", &chart, "-n", &namespace, "--set", policy];
        helm(&cluster, &[&install[..], &with[..]].concat()).await;
        let get =
            ["-n", &namespace, "get", "deployment,service,role,pdb,networkpolicy", "-o", "name"];
        let there = cluster.plane.kubectl(&get).await;
        for part in ["forebay-gateway", "forebay-scaler"] {
            assert!(there.contains(&format!("deployment.apps/{part}")), "{there}");
            assert!(there.contains(&format!("poddisruptionbudget.policy/{part}")), "{there}");
        }
        // An upgrade keeps the token: gateways and scalers read it at different times. It replaces no
        // pod, since a running gateway reads its hosts again.
        let token =
            ["-n", &namespace, "get", "secret", "forebay-admin", "-o", "jsonpath={.data.token}"];
        let before = cluster.plane.kubectl(&token).await;
        let generations = ["-n", &namespace, "get", "deployments", "-o"];
        let generations =
            [&generations[..], &["jsonpath={.items[*].metadata.generation}"]].concat();
        let deployments = cluster.plane.kubectl(&generations).await;
        let host = "gateway.hosts={chat.example.com}";
        let upgrade = ["upgrade", "forebay", &chart, "-n", &namespace, "--set", host];
        helm(&cluster, &[&upgrade[..], &with[..]].concat()).await;
        assert_eq!(cluster.plane.kubectl(&token).await, before);
        assert_eq!(cluster.plane.kubectl(&generations).await, deployments);
        let config = ["-n", &namespace, "get", "configmap", "forebay", "-o", "yaml"];
        assert!(cluster.plane.kubectl(&config).await.contains("chat.example.com"));
        helm(&cluster, &["uninstall", "forebay", "-n", &namespace]).await;
        cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
    }
}

/// Runs `forebay check` on the configuration that the chart renders.
async fn is_valid(cluster: &Cluster, rendered: &str) {
    let after = rendered.split_once("forebay.yaml: |\n").expect("a configuration").1;
    let lines = after.lines().take_while(|line| line.starts_with("    ") || line.is_empty());
    let config: String = lines.map(|line| format!("{}\n", line.get(4..).unwrap_or(""))).collect();
    let file = cluster.folder.join("chart.yaml");
    std::fs::write(&file, &config).expect("written");
    let output = Command::new(crate::forebay::BINARY)
        .args(["check", "--config"])
        .arg(&file)
        .output()
        .await
        .expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}\n{config}");
}

/// The examples without KEDA's kinds.
pub async fn examples_are_accepted(cluster: Arc<Cluster>) {
    apply(&cluster, "examples", &["vllm.yaml", "llama.yaml", "dev.yaml"]).await;
}

/// The example that has KEDA's kinds as well.
pub async fn the_dcgm_example_is_accepted(cluster: Arc<Cluster>) {
    apply(&cluster, "dcgm-example", &["dcgm.yaml"]).await;
}

async fn apply(cluster: &Cluster, suite: &str, files: &[&str]) {
    let namespace = namespace(cluster, suite).await;
    for file in files {
        let path = deploy().join("examples").join(file).display().to_string();
        let applied = cluster.plane.kubectl(&["-n", &namespace, "apply", "-f", &path]).await;
        assert!(applied.contains("created"), "{file}: {applied}");
        // Strict validation refuses fields that the server does not know.
        let strict =
            ["-n", &namespace, "apply", "--dry-run=server", "--validate=strict", "-f", &path];
        cluster.plane.kubectl(&strict).await;
    }
    cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
}
