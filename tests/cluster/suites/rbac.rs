//! The chart's Roles: each part runs as its ServiceAccount, with a token and no other rights.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::Cluster;
use crate::forebay::{Forebay, chat, exchange, get, is_whole, status};
use crate::plane::audit::Right;
use crate::plane::{eventually, free_ports};
use crate::suites::deploy::KUBERNETES;
use crate::suites::workload::{Workload, namespace, replicas};

const POOL: &str = "llama";
const ACCOUNTS: [&str; 2] = ["forebay-gateway", "forebay-scaler"];

/// The chart's objects of these kinds, for a release with these pools.
async fn rendered(cluster: &Cluster, namespace: &str, pools: &Value, kinds: &[&str]) -> String {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/chart/forebay");
    let output = Command::new(cluster.plane.helm())
        .args(["template", "forebay", chart, "--namespace", namespace])
        .args(["--kube-version", KUBERNETES, "--set-json"])
        .arg(format!("pools={pools}"))
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

/// A kubeconfig with a ServiceAccount's token as its only credential.
async fn as_account(cluster: &Cluster, namespace: &str, account: &str) -> PathBuf {
    let token = ["-n", namespace, "create", "token", account, "--duration=1h"];
    let token = cluster.plane.kubectl(&token).await;
    let name = format!("{namespace}-{account}");
    cluster.plane.token_kubeconfig(&name, token.trim(), namespace).await
}

/// The pool that is scaled, and two pools that are only discovered, each in another way.
fn pools(target: &Value) -> Value {
    json!([
        {
            "name": POOL, "models": [POOL], "maxInFlight": 8, "target": target,
            "discovery": {"pods": {"selector": format!("app={POOL}"), "port": 8000}},
            "scaling": {
                "maxReplicaCount": 4, "targetConcurrency": 8, "stableWindow": "6s",
                "cooldownPeriod": "4s",
            },
            "upstream": {"freezeTimeout": "1s"},
        },
        {
            "name": "by-service", "models": ["by-service"],
            "discovery": {"pods": {"service": "others", "port": 8000}},
        },
        {
            "name": "by-slices", "models": ["by-slices"],
            "discovery": {"endpointSlices": {"service": "others"}},
        },
    ])
}

/// Applies the chart's Roles for these pools, and the objects of the pools.
async fn prepare(cluster: &Cluster, namespace: &str, target: &Value) {
    let workload = Workload {
        args: vec!["--cold-start".into(), "2s".into(), "--dev".into()],
        ..Workload::named(POOL, cluster.node.name())
    };
    cluster.plane.apply(&workload.yaml(namespace)).await;
    let others = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "others", "namespace": namespace},
        "spec": {"selector": {"app": "others"}, "ports": [{"port": 8000}]},
    });
    cluster.plane.apply(&others.to_string()).await;
    grant(cluster, namespace, target).await;
}

async fn grant(cluster: &Cluster, namespace: &str, target: &Value) {
    let kinds = ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ServiceAccount"];
    let rights = rendered(cluster, namespace, &pools(target), &kinds).await;
    assert!(rights.contains("kind: Role\n"), "{rights}");
    let apply = ["-n", namespace, "apply", "-f", "-"];
    cluster.plane.try_kubectl(&apply, &rights).await.unwrap_or_else(|error| panic!("{error}"));
}

struct Parts {
    clients: SocketAddr,
    gateway: Forebay,
    scaler: Forebay,
    keda: SocketAddr,
}

impl Parts {
    /// Starts gateway and scaler, each with its own rights.
    async fn start(cluster: &Cluster, namespace: &str, target: &Value) -> Self {
        let [clients, gateway_admin, scaler_admin, keda] =
            free_ports().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let config = |admin| {
            format!(
                "gateway: {{listen: \"{clients}\", scaler: \"{scaler_admin}\"}}\n\
                 admin: {{listen: \"{admin}\"}}\n\
                 scaler:\n  gateways: [\"{gateway_admin}\"]\n  keda: {{listen: \"{keda}\"}}\n  \
                 leaderElection: {{}}\n  \
                 gatewayDiscovery: {{pods: {{selector: app=other, port: 9900}}}}\n\
                 pools: {}\n",
                pools(target)
            )
        };
        let folder = cluster.folder.join(namespace);
        let start = async |part: &str, admin: SocketAddr| {
            let rights = as_account(cluster, namespace, &format!("forebay-{part}")).await;
            Forebay::start(part, part, &config(admin), admin, &rights, &folder).await
        };
        let scaler = start("scaler", scaler_admin).await;
        let ready = async || status(&get(scaler_admin, "/readyz").await);
        if target.get("keda").is_some() {
            assert_eq!(ready().await, 503, "there is no decision without a gateway");
        }
        let gateway = start("gateway", gateway_admin).await;
        eventually("the scaler can answer", async || ready().await == 200).await;
        Self { clients, gateway, scaler, keda }
    }

    /// Checks that sixteen held requests at zero are answered.
    async fn serve_from_zero(&self) {
        let answers = (0..16).map(|_| chat(self.clients, POOL, false, 8));
        for answer in futures_util::future::join_all(answers).await {
            assert!(is_whole(&answer, false), "{answer}");
        }
    }

    /// Wakes a workload whose pods fit on no node, and waits until a client hears of it: the scaler
    /// reads the Events on such a pod.
    async fn look_for_a_node(&self, cluster: &Cluster, namespace: &str) {
        let patch = json!({"spec": {"template": {"spec": {
            "nodeSelector": {"kubernetes.io/hostname": "none"}
        }}}});
        let patch = patch.to_string();
        let deployment =
            ["-n", namespace, "patch", "deployment", POOL, "--type=merge", "-p", &patch];
        cluster.plane.kubectl(&deployment).await;
        let answer = chat(self.clients, POOL, false, 8).await;
        assert!(answer.contains("has no node (Unschedulable)"), "{answer}");
    }

    /// Stops both, and checks that no call was refused and that every granted right was used.
    async fn end(mut self, cluster: &Cluster, namespace: &str) {
        for part in [&mut self.gateway, &mut self.scaler] {
            assert_eq!(part.stop().await, 0);
            let log = part.log();
            assert!(!log.contains("not allowed to"), "a right is missing: {log}");
        }
        if cluster.plane.is_own() {
            for account in ACCOUNTS {
                let calls = cluster.plane.calls(namespace, account);
                assert!(calls.denied.is_empty(), "{account} was refused {:?}", calls.denied);
                let granted = granted(cluster, namespace, account).await;
                let unused: Vec<_> = granted.difference(&calls.allowed).collect();
                assert!(unused.is_empty(), "{account} never used {unused:?} of {granted:?}");
            }
        }
        cluster.plane.kubectl(&["delete", "namespace", namespace, "--wait=false"]).await;
    }
}

/// The rights that the Roles of a namespace grant to an account.
async fn granted(cluster: &Cluster, namespace: &str, account: &str) -> BTreeSet<Right> {
    let get = async |kind: &str| -> Vec<Value> {
        let text = cluster.plane.kubectl(&["-n", namespace, "get", kind, "-o", "json"]).await;
        let mut list: Value = serde_json::from_str(&text).expect("JSON");
        serde_json::from_value(list["items"].take()).expect("a list")
    };
    let names = |list: &Value| -> Vec<String> {
        serde_json::from_value(list.clone()).expect("a list of texts")
    };
    let bindings = get("rolebindings").await;
    let bound = |role: &Value| {
        bindings.iter().any(|binding| {
            let subjects = binding["subjects"].as_array().into_iter().flatten();
            binding["roleRef"]["name"] == role["metadata"]["name"]
                && subjects.into_iter().any(|subject| subject["name"] == account)
        })
    };
    let mut granted = BTreeSet::new();
    for role in get("roles").await.iter().filter(|role| bound(role)) {
        for rule in role["rules"].as_array().into_iter().flatten() {
            for group in names(&rule["apiGroups"]) {
                for resource in names(&rule["resources"]) {
                    let right =
                        |verb| Right { group: group.clone(), resource: resource.clone(), verb };
                    granted.extend(names(&rule["verbs"]).into_iter().map(right));
                }
            }
        }
    }
    assert!(!granted.is_empty(), "{account} has no Role");
    granted
}

/// Direct mode: discovery, `/scale`, deletion costs, Events, election.
pub async fn the_charts_roles_are_what_direct_mode_needs(cluster: Arc<Cluster>) {
    let namespace = namespace(&cluster, "rbac").await;
    let target = json!({"kubernetes": {"name": POOL}});
    prepare(&cluster, &namespace, &target).await;
    let parts = Parts::start(&cluster, &namespace, &target).await;
    parts.serve_from_zero().await;
    eventually("zero", async || replicas(&cluster, &namespace, POOL).await == (0, 0)).await;
    let events =
        ["-n", &namespace, "get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"];
    eventually("the decisions are Events", async || {
        cluster.plane.kubectl(&events).await.contains("ScaledDown")
    })
    .await;
    parts.look_for_a_node(&cluster, &namespace).await;
    parts.end(&cluster, &namespace).await;
}

/// Direct mode with a replica that hangs: its pod is deleted, and another replica answers.
pub async fn the_charts_roles_are_what_replacing_needs(cluster: Arc<Cluster>) {
    let namespace = namespace(&cluster, "rbac-replace").await;
    let target = json!({"kubernetes": {"name": POOL, "replaceHung": true, "hungAfter": "2s"}});
    prepare(&cluster, &namespace, &target).await;
    let parts = Parts::start(&cluster, &namespace, &target).await;
    parts.serve_from_zero().await;
    eventually("zero", async || replicas(&cluster, &namespace, POOL).await == (0, 0)).await;

    let stream = tokio::spawn(chat(parts.clients, POOL, true, 5_000));
    let mut hangs = None;
    eventually("a replica has begun", async || {
        let pool = parts.gateway.pool("/signals", POOL).await;
        let endpoints = pool["endpoints"].as_object().cloned().unwrap_or_default();
        let busy = endpoints.into_iter().find(|(_, endpoint)| endpoint["firstTokens"] == 1);
        hangs = busy.map(|(address, _)| address.parse::<SocketAddr>().expect("an address"));
        hangs.is_some()
    })
    .await;
    let address = hangs.expect("found above");
    let hang = format!(
        "POST /sim/hang HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    assert_eq!(status(&exchange(address, hang.as_bytes()).await), 200);
    eventually("the replica is replaced", async || {
        parts.scaler.log().contains("answered nothing for") && {
            let events = ["-n", &namespace, "get", "events.events.k8s.io", "-o"];
            let events = [&events[..], &["jsonpath={.items[*].reason}"]].concat();
            cluster.plane.kubectl(&events).await.contains("Replaced")
        }
    })
    .await;
    stream.await.expect("the stream ended, in whatever way");
    let answer = chat(parts.clients, POOL, false, 8).await;
    assert!(is_whole(&answer, false), "{answer}");
    eventually("zero", async || replicas(&cluster, &namespace, POOL).await == (0, 0)).await;
    parts.look_for_a_node(&cluster, &namespace).await;
    parts.end(&cluster, &namespace).await;
}

/// KEDA mode with the boost.
pub async fn the_charts_roles_are_what_the_boost_needs(cluster: Arc<Cluster>) {
    let namespace = namespace(&cluster, "rbac-boost").await;
    let target = json!({"keda": {"scaledObject": POOL, "boost": true}});
    prepare(&cluster, &namespace, &target).await;
    let parts = Parts::start(&cluster, &namespace, &target).await;
    let example = include_str!("../../../deploy/examples/keda/desired-replicas.yaml");
    // The example's office hours must not wake it.
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

/// A missing right is named where it is needed, with the rule to add. Once it is granted,
/// everything goes on without a restart.
pub async fn a_missing_right_is_named(cluster: Arc<Cluster>) {
    let namespace = namespace(&cluster, "no-rbac").await;
    let target = json!({"kubernetes": {"name": POOL}});
    prepare(&cluster, &namespace, &target).await;
    let revoke = async |binding: &str| {
        cluster.plane.kubectl(&["-n", &namespace, "delete", "rolebinding", binding]).await
    };
    // A running watch outlives its right, so the gateway must start without it.
    revoke("forebay-gateway").await;
    let parts = Parts::start(&cluster, &namespace, &target).await;
    let named = async |part: &Forebay, verbs: &str, group: &str, resource: &str| {
        let text = format!(
            "not allowed to {verbs} {resource} in namespace {namespace}; add to a Role there: \
             apiGroups: [\\\"{group}\\\"], resources: [{resource}], verbs: [{verbs}]"
        );
        eventually(&format!("{verbs} {resource} is named"), async || part.log().contains(&text))
            .await;
    };
    named(&parts.gateway, "list, watch", "", "pods").await;
    named(&parts.gateway, "get", "", "services").await;
    named(&parts.gateway, "list, watch", "discovery.k8s.io", "endpointslices").await;

    revoke("forebay-scaler").await;
    let held = tokio::spawn(chat(parts.clients, POOL, false, 1));
    named(&parts.scaler, "get", "apps", "deployments/scale").await;
    eventually("the feed names it, too", async || {
        let pool = parts.scaler.pool("/replicas", POOL).await;
        pool["why"].as_str().is_some_and(|why| why.contains("deployments/scale in namespace"))
    })
    .await;
    revoke("forebay-scaler-own").await;
    named(&parts.scaler, "get", "coordination.k8s.io", "leases").await;

    grant(&cluster, &namespace, &target).await;
    let answer = held.await.expect("no panic");
    assert!(is_whole(&answer, false), "{answer}");
    let Parts { mut gateway, mut scaler, .. } = parts;
    gateway.kill().await;
    scaler.kill().await;
    cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
}

/// The API server accepts every example for KEDA.
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
