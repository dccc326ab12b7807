//! What `deploy/` holds, as a real API server takes it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::process::Command;

use crate::Cluster;
use crate::suites::workload::namespace;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

async fn helm(cluster: &Cluster, arguments: &[&str]) -> String {
    let helm = cluster.plane.tool("helm").expect("tests/cluster/build helm");
    let mut command = Command::new(helm);
    command.args(arguments).env("KUBECONFIG", &cluster.plane.kubeconfig);
    let output = command.output().await.expect("helm runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "helm {}: {error}\n{text}", arguments.join(" "));
    text
}

/// `helm lint`, `template` and `install`, with each example's values; what it configures is valid.
pub async fn the_chart_is_accepted(cluster: Arc<Cluster>) {
    if cluster.plane.tool("helm").is_none() {
        println!("  skipped: no helm; run tests/cluster/build helm");
        return;
    }
    let (chart, examples) = (deploy().join("chart/forebay"), deploy().join("examples"));
    let chart = chart.display().to_string();
    for values in [None, Some("values-direct.yaml"), Some("values-keda.yaml")] {
        let file = values.map(|it| examples.join(it).display().to_string());
        let with: Vec<&str> = file.iter().flat_map(|file| ["-f", file]).collect();
        helm(&cluster, &[&["lint", &chart, "--strict"], &with[..]].concat()).await;
        let rendered = [&["template", "forebay", &chart], &with[..]].concat();
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
        // An upgrade keeps the token: gateways and scalers read it at different times.
        let token =
            ["-n", &namespace, "get", "secret", "forebay-admin", "-o", "jsonpath={.data.token}"];
        let before = cluster.plane.kubectl(&token).await;
        helm(&cluster, &[&["upgrade", "forebay", &chart, "-n", &namespace], &with[..]].concat())
            .await;
        assert_eq!(cluster.plane.kubectl(&token).await, before);
        helm(&cluster, &["uninstall", "forebay", "-n", &namespace]).await;
        cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
    }
    // Keys with nothing under them, as comments leave them.
    let file = cluster.folder.join("empty.yaml");
    std::fs::write(&file, "config:\n  gateway:\n  scaler:\n").expect("written");
    let rendered = ["template", "forebay", &chart, "-f", &file.display().to_string()];
    let rendered = helm(&cluster, &rendered).await;
    is_valid(&cluster, &rendered).await;
    assert!(rendered.contains("leaderElection:"), "{rendered}");
}

/// The configuration that the chart makes, by our own checker.
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

/// Every example that Kubernetes alone understands.
pub async fn examples_are_accepted(cluster: Arc<Cluster>) {
    apply(&cluster, "examples", &["vllm.yaml", "llama.yaml", "dev.yaml"]).await;
}

/// The one with KEDA's own kinds besides.
pub async fn the_dcgm_example_is_accepted(cluster: Arc<Cluster>) {
    apply(&cluster, "dcgm-example", &["dcgm.yaml"]).await;
}

async fn apply(cluster: &Cluster, suite: &str, files: &[&str]) {
    let namespace = namespace(cluster, suite).await;
    for file in files {
        let path = deploy().join("examples").join(file).display().to_string();
        let applied = cluster.plane.kubectl(&["-n", &namespace, "apply", "-f", &path]).await;
        assert!(applied.contains("created"), "{file}: {applied}");
        // What the server left out of it would be a field that it does not know.
        let strict =
            ["-n", &namespace, "apply", "--dry-run=server", "--validate=strict", "-f", &path];
        cluster.plane.kubectl(&strict).await;
    }
    cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
}
