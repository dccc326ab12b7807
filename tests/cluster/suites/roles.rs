//! The chart's Roles exist only where a pool needs them, with the rights that it needs there.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use tokio::process::Command;

use crate::Cluster;
use crate::suites::deploy::KUBERNETES;

/// Each Role, by namespace (empty for the release's own) and name, with its rules.
async fn roles(helm: &std::path::Path, values: serde_json::Value) -> BTreeMap<String, String> {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/chart/forebay");
    let pools = format!("pools={}", values["pools"]);
    let config = format!("config={}", values["config"]);
    let output = Command::new(helm)
        .args(["template", "forebay", chart, "--namespace", "own", "-s", "templates/rbac.yaml"])
        .args(["--kube-version", KUBERNETES])
        .args(["--set-json", &pools, "--set-json", &config])
        .output()
        .await
        .expect("helm runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let field = |document: &str, name: &str| {
        let line = document.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().to_owned()
    };
    let roles = text.split("\n---").filter(|part| part.lines().any(|line| line == "kind: Role"));
    let roles = roles.map(|role| {
        let name = format!("{}/{}", field(role, "  namespace: "), field(role, "  name: "));
        (name, role.split_once("rules:").expect("rules").1.to_owned())
    });
    roles.collect()
}

/// Three pools in as many namespaces, none of them the release's own.
pub async fn the_chart_gives_rights_only_where_pools_are(cluster: Arc<Cluster>) {
    let Some(helm) = cluster.plane.tool("helm") else {
        println!("  skipped: no helm; run tests/cluster/build helm");
        return;
    };
    let found = roles(
        &helm,
        json!({"config": {}, "pools": [
            {"name": "a", "target": {"kubernetes": {"name": "a", "namespace": "models"}},
             "discovery": {"pods": {"selector": "app=a", "port": 8000, "namespace": "models"}}},
            {"name": "b", "target": {"keda": {"scaledObject": "b", "namespace": "others", "boost": true}},
             "discovery": {"endpointSlices": {"service": "b", "namespace": "others"}}},
            {"name": "c", "target": {"keda": {"scaledObject": "c", "namespace": "quiet"}},
             "discovery": {"pods": {"service": "c", "port": 8000, "namespace": "quiet"}}},
            {"name": "d", "endpoints": ["d:8000"]},
        ]}),
    )
    .await;
    let names: Vec<_> = found.keys().map(String::as_str).collect();
    let wanted = [
        "/forebay-scaler-own",
        "models/forebay-gateway",
        "models/forebay-scaler",
        "others/forebay-boost",
        "others/forebay-gateway",
        "quiet/forebay-gateway",
    ];
    assert_eq!(names, wanted, "the release's own namespace has only the Role for the election");
    let has =
        |role: &str, resource: &str| found[role].contains(&format!("resources: [{resource}]"));
    for (role, resource, want) in [
        ("models/forebay-gateway", "pods", true),
        ("models/forebay-gateway", "services", false),
        ("models/forebay-gateway", "endpointslices", false),
        ("others/forebay-gateway", "endpointslices", true),
        ("others/forebay-gateway", "pods", false),
        ("quiet/forebay-gateway", "services", true),
        ("models/forebay-scaler", "pods", true),
        ("/forebay-scaler-own", "configmaps", true),
    ] {
        assert_eq!(has(role, resource), want, "{role}: {resource}: {}", found[role]);
    }
    let pools = json!([{"name": "d", "endpoints": ["d:8000"]}]);
    let kept = json!({"config": {"scaler": {"stateDir": "/state"}}, "pools": pools});
    let found = roles(&helm, kept).await;
    assert!(
        !found["/forebay-scaler-own"].contains("configmaps"),
        "its state is in a folder: {found:?}"
    );
}
