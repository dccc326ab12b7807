//! A run against an existing cluster, by its kubeconfig: these tests run again, with this control
//! plane.

use std::ffi::OsString;
use std::sync::Arc;

use tokio::process::Command;

use crate::Cluster;

/// Suites that need only an API server, and that use what differs with an existing cluster.
const SUITES: [&str; 3] = [
    "a_pod_lives_and_ends_as_with_a_kubelet",
    "rbac_the_charts_roles_are_what_direct_mode_needs",
    "deploy_examples_are_accepted",
];

/// As with any user's cluster: only `kubectl` and `helm`, found by the path.
pub async fn runs_against_an_existing_cluster(cluster: Arc<Cluster>) {
    let mut path = OsString::new();
    for tool in ["kubectl", "helm"] {
        let tool = cluster.plane.tool(tool).expect("tests/cluster/build kube helm");
        path.push(tool.parent().expect("a folder"));
        path.push(":");
    }
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(std::env::current_exe().expect("ourselves"));
    command
        .args(SUITES)
        .env("USE_EXISTING_CLUSTER", "true")
        .env("KUBECONFIG", &cluster.plane.kubeconfig)
        .env("FOREBAY_REQUIRE_CLUSTER", "1")
        .env("PATH", path)
        .kill_on_drop(true);
    let output = command.output().await.expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{error}");
    text.lines().for_each(|line| println!("  {line}"));
    for suite in SUITES {
        let passed = |line: &str| line.starts_with(suite) && line.contains("... ok");
        assert!(text.lines().any(passed), "{suite}: {text}");
    }
    assert!(text.contains(&format!("{} passed", SUITES.len())), "{text}");
}
