//! With the chart's own Roles and nothing more: each part as its ServiceAccount, by a token.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::process::Command;

use crate::Cluster;
use crate::forebay::{Forebay, chat, get, is_whole, status};
use crate::plane::{eventually, free_ports};
use crate::suites::workload::{Workload, namespace, replicas};

const POOL: &str = "llama";

/// What the chart makes of this kind in a release of these pools.
async fn rendered(cluster: &Cluster, namespace: &str, pools: &str, kinds: &[&str]) -> String {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/chart/forebay");
    let output = Command::new(cluster.plane.helm())
        .args(["template", "forebay", chart, "--namespace", namespace, "--set-json", pools])
        .output()
        .await
        .expect("helm runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all = String::from_utf8(output.stdout).expect("text");
    let wanted = |document: &&str| {
        kinds.iter().any(|kind| document.lines().any(|line| line == format!("kind: {kind}")))
    };
    all.split("\n---").filter(wanted).collect::<Vec<_>>().join("\n---\n")
}

/// A kubeconfig with nothing but a ServiceAccount's token.
async fn as_account(cluster: &Cluster, namespace: &str, account: &str) -> PathBuf {
    let token = ["-n", namespace, "create", "token", account, "--duration=1h"];
    let token = cluster.plane.kubectl(&token).await;
    cluster.plane.token_kubeconfig(&format!("{namespace}-{account}"), token.trim(), namespace)
}

struct Parts {
    clients: SocketAddr,
    gateway: Forebay,
    scaler: Forebay,
    keda: SocketAddr,
}

/// Gateway and scaler, each with its own rights.
async fn parts(cluster: &Cluster, namespace: &str, target: &str) -> Parts {
    let pools = format!(
        r#"pools=[{{"name":"{POOL}","discovery":{{"pods":{{"selector":"app={POOL}","port":8000}}}},"target":{target}}}]"#
    );
    let kinds = ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ServiceAccount"];
    let rights = rendered(cluster, namespace, &pools, &kinds).await;
    assert!(rights.contains("kind: Role\n"), "{rights}");
    let apply = ["-n", namespace, "apply", "-f", "-"];
    cluster.plane.try_kubectl(&apply, &rights).await.unwrap_or_else(|error| panic!("{error}"));

    let [clients, gateway_admin, scaler_admin, keda] =
        free_ports().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let config = |admin| {
        format!(
            "gateway: {{listen: \"{clients}\", scaler: \"{scaler_admin}\"}}\n\
             admin: {{listen: \"{admin}\"}}\n\
             scaler:\n  gateways: [\"{gateway_admin}\"]\n  keda: {{listen: \"{keda}\"}}\n  \
             leaderElection: {{}}\n  \
             gatewayDiscovery: {{pods: {{selector: app=other, port: 9900}}}}\n\
             pools:\n- name: {POOL}\n  models: [{POOL}]\n  maxInFlight: 8\n  \
             discovery: {{pods: {{selector: app={POOL}, port: 8000}}}}\n  \
             target: {target}\n  \
             scaling: {{maxReplicaCount: 4, targetConcurrency: 8, stableWindow: 6s, \
             cooldownPeriod: 4s}}\n"
        )
    };
    let folder = cluster.folder.join(namespace);
    let start = async |part: &str, admin: SocketAddr| {
        let rights = as_account(cluster, namespace, &format!("forebay-{part}")).await;
        Forebay::start(part, part, &config(admin), admin, &rights, &folder).await
    };
    let scaler = start("scaler", scaler_admin).await;
    let ready = async || status(&get(scaler_admin, "/readyz").await);
    if target.contains("keda") {
        assert_eq!(ready().await, 503, "it knows of no decision, since no gateway is there");
    }
    let gateway = start("gateway", gateway_admin).await;
    eventually("the scaler can answer", async || ready().await == 200).await;
    Parts { clients, gateway, scaler, keda }
}

impl Parts {
    /// Sixteen held requests at zero, answered; nothing was refused on the way.
    async fn serve_from_zero(&self) {
        let answers = (0..16).map(|_| chat(self.clients, POOL, false, 8));
        for answer in futures_util::future::join_all(answers).await {
            assert!(is_whole(&answer, false), "{answer}");
        }
    }

    async fn end(mut self, cluster: &Cluster, namespace: &str) {
        for part in [&mut self.gateway, &mut self.scaler] {
            assert_eq!(part.stop().await, 0);
            let log = part.log();
            assert!(!log.contains("not allowed to"), "a right is missing: {log}");
        }
        cluster.plane.kubectl(&["delete", "namespace", namespace, "--wait=false"]).await;
    }
}

/// Scaled by ourselves: find, scale, mark, tell, elect.
pub async fn the_charts_roles_are_enough_for_direct_mode(cluster: Arc<Cluster>) {
    let namespace = namespace(&cluster, "rbac").await;
    let workload = Workload::named(POOL, cluster.node.name());
    cluster.plane.apply(&workload.yaml(&namespace)).await;
    let target = format!(r#"{{"kubernetes":{{"name":"{POOL}"}}}}"#);
    let parts = parts(&cluster, &namespace, &target).await;
    parts.serve_from_zero().await;
    eventually("zero", async || replicas(&cluster, &namespace, POOL).await == (0, 0)).await;
    let events =
        ["-n", &namespace, "get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"];
    eventually("the decisions are Events", async || {
        cluster.plane.kubectl(&events).await.contains("ScaledDown")
    })
    .await;
    parts.end(&cluster, &namespace).await;
}

/// Scaled by KEDA, with the boost.
pub async fn the_charts_roles_are_enough_for_the_boost(cluster: Arc<Cluster>) {
    let namespace = namespace(&cluster, "rbac-boost").await;
    let workload = Workload {
        args: vec!["--cold-start".into(), "2s".into()],
        ..Workload::named(POOL, cluster.node.name())
    };
    cluster.plane.apply(&workload.yaml(&namespace)).await;
    let target = format!(r#"{{"keda":{{"scaledObject":"{POOL}","boost":true}}}}"#);
    let parts = parts(&cluster, &namespace, &target).await;
    let example = include_str!("../../../deploy/examples/keda/desired-replicas.yaml");
    // Office hours would wake it before the requests do.
    let object = example
        .replace("forebay-scaler.forebay.svc:9910", &parts.keda.to_string())
        .replace("30 7 * * 1-5", "0 0 1 1 *")
        .replace("0 19 * * 1-5", "1 0 1 1 *");
    let apply = ["-n", &namespace, "apply", "-f", "-"];
    cluster.plane.try_kubectl(&apply, &object).await.unwrap_or_else(|error| panic!("{error}"));
    let wait =
        ["-n", &namespace, "wait", "--for=condition=Ready", "--timeout=90s", "scaledobject", POOL];
    cluster.plane.kubectl(&wait).await;
    parts.serve_from_zero().await;
    assert!(parts.scaler.log().contains("replicas, beside KEDA"), "{}", parts.scaler.log());
    parts.end(&cluster, &namespace).await;
}

/// Without a right, the log names the rule that is missing.
pub async fn a_missing_right_is_named(cluster: Arc<Cluster>) {
    let namespace = namespace(&cluster, "no-rbac").await;
    let workload = Workload::named(POOL, cluster.node.name());
    cluster.plane.apply(&workload.yaml(&namespace)).await;
    let target = format!(r#"{{"kubernetes":{{"name":"{POOL}"}}}}"#);
    let parts = parts(&cluster, &namespace, &target).await;
    cluster.plane.kubectl(&["-n", &namespace, "delete", "rolebinding", "forebay-scaler"]).await;
    let answer = tokio::spawn(chat(parts.clients, POOL, false, 1));
    eventually("the rule is named", async || {
        parts.scaler.log().contains("add to a Role there: apiGroups: [\\\"apps\\\"]")
    })
    .await;
    answer.abort();
    let Parts { mut gateway, mut scaler, .. } = parts;
    gateway.kill().await;
    scaler.kill().await;
    cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
}

/// Every example for KEDA is what the API server takes.
pub async fn keda_examples_are_accepted(cluster: Arc<Cluster>) {
    let namespace = namespace(&cluster, "keda-examples").await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/examples/keda");
    let files = std::fs::read_dir(folder).expect("the examples");
    let mut count = 0;
    for file in files {
        let path = file.expect("readable").path().display().to_string();
        let apply =
            ["-n", &namespace, "apply", "--dry-run=server", "--validate=strict", "-f", &path];
        cluster.plane.kubectl(&apply).await;
        count += 1;
    }
    assert!(count >= 3, "{count} examples");
    cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
}
