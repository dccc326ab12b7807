//! The chart's values on a real API server, and the programs that run with its configuration.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::Cluster;
use crate::forebay::{BINARY, Forebay, TOKEN};
use crate::plane::{eventually, free_ports};
use crate::suites::deploy::{KUBERNETES, helm};
use crate::suites::workload::namespace;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/chart/forebay");

fn no_helm(cluster: &Cluster) -> bool {
    let missing =
        ["helm", "crds", "keda-crds"].into_iter().any(|name| cluster.plane.tool(name).is_none());
    if missing {
        println!("  skipped: no helm or no CRDs; run tests/cluster/build helm keda kubeconform");
    }
    missing
}

/// Installs each case of `tests/chart/cases.yaml`, in which every value occurs.
pub async fn every_value_is_applied(cluster: Arc<Cluster>) {
    if no_helm(&cluster) {
        return;
    }
    for folder in ["crds", "keda-crds"] {
        let folder = cluster.plane.tool(folder).expect("found before").display().to_string();
        cluster.plane.kubectl(&["apply", "--server-side", "-f", &folder]).await;
    }
    let established = ["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"];
    cluster.plane.kubectl(&established).await;
    let cases: Vec<Value> =
        serde_saphyr::from_str(include_str!("../../chart/cases.yaml")).expect("cases");
    for (number, case) in cases.iter().enumerate() {
        let namespace = namespace(&cluster, &format!("values-{number}")).await;
        let file = cluster.folder.join("values.yaml");
        std::fs::write(&file, case["values"].to_string()).expect("written");
        let file = file.display().to_string();
        helm(&cluster, &["install", "forebay", CHART, "-n", &namespace, "-f", &file]).await;
        // A field that the API server does not know would be a warning of helm's; here it is an error.
        let text = helm(&cluster, &["get", "manifest", "forebay", "-n", &namespace]).await;
        let apply = ["-n", &namespace, "apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        let applied = cluster.plane.try_kubectl(&apply, &text).await;
        applied.unwrap_or_else(|error| panic!("{}: {error}", case["name"]));
        helm(&cluster, &["uninstall", "forebay", "-n", &namespace]).await;
        cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
    }
}

/// A rendering of the chart.
struct Rendering {
    objects: Vec<Value>,
}

impl Rendering {
    async fn new(cluster: &Cluster, namespace: &str, values: &Value) -> Self {
        let file = cluster.folder.join("values.yaml");
        std::fs::write(&file, values.to_string()).expect("written");
        let file = file.display().to_string();
        let template =
            ["template", "forebay", CHART, "-n", namespace, "--kube-version", KUBERNETES];
        let text = helm(cluster, &[&template[..], &["-f", &file]].concat()).await;
        let documents = text.split("---\n").filter(|part| part.contains("\nkind: "));
        let read =
            |text| serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        Self { objects: documents.map(read).collect() }
    }

    fn object(&self, kind: &str, name: &str) -> &Value {
        let is = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        self.objects.iter().find(is).expect("an object")
    }

    /// The pods that a part's Deployment makes.
    fn pods(&self, part: &str) -> &Value {
        &self.object("Deployment", &format!("forebay-{part}"))["spec"]["template"]
    }

    /// The configuration file, with addresses and files of this machine.
    fn config(&self, ports: &Ports, token: &Path) -> String {
        let text = self.object("ConfigMap", "forebay")["data"]["forebay.yaml"].as_str();
        let text = text.expect("a configuration");
        // As in a cluster, not on loopback, where the admin port has other rules.
        let any = |address: SocketAddr| format!("0.0.0.0:{}", address.port());
        [
            ("0.0.0.0:8080", any(ports.clients)),
            ("0.0.0.0:9900", any(ports.admin)),
            ("0.0.0.0:9910", any(ports.keda)),
            ("/etc/forebay-admin/token", token.display().to_string()),
        ]
        .into_iter()
        .fold(text.to_owned(), |text, (own, here)| text.replace(own, &here))
    }
}

/// A part's addresses.
struct Ports {
    clients: SocketAddr,
    admin: SocketAddr,
    keda: SocketAddr,
}

/// A part that runs with the chart's configuration.
struct Part {
    name: &'static str,
    ports: Ports,
    file: PathBuf,
    token: PathBuf,
    running: Forebay,
    /// How many configurations it has taken after the first.
    taken: usize,
}

impl Part {
    async fn start(
        cluster: &Cluster,
        namespace: &str,
        name: &'static str,
        first: &Rendering,
    ) -> Self {
        let [clients, admin, keda] =
            free_ports().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let ports = Ports { clients, admin, keda };
        let folder = cluster.folder.join(namespace);
        std::fs::create_dir_all(&folder).expect("a folder");
        let token = folder.join("token");
        std::fs::write(&token, TOKEN).expect("written");
        let config = first.config(&ports, &token);
        let kubeconfig = cluster.plane.kubeconfig_in(namespace).await;
        let running = Forebay::start(name, name, &config, admin, &kubeconfig, &folder).await;
        Self { name, ports, file: folder.join(format!("{name}.yaml")), token, running, taken: 0 }
    }

    /// Gives it another configuration. Returns what it would need a restart for.
    async fn reload(&mut self, next: &Rendering) -> Option<String> {
        const TAKEN: &str = "the new configuration is in force";
        let config = next.config(&self.ports, &self.token);
        if std::fs::read_to_string(&self.file).expect("written before") == config {
            return None;
        }
        std::fs::write(&self.file, &config).expect("written");
        self.taken += 1;
        let wanted = self.taken;
        let name = format!("{} takes the configuration\n{config}", self.name);
        eventually(&name, async || self.running.log().matches(TAKEN).count() == wanted).await;
        let log = self.running.log();
        let (_, rest) = log.rsplit_once(TAKEN).expect("just found");
        let later = rest.split_once("takes effect at the next start only: ");
        later.map(|(_, fields)| fields.lines().next().unwrap_or_default().to_owned())
    }
}

/// Changes of the configuration, each with the field that it is about.
fn changes(certificate: &Path) -> Vec<(&'static str, Value)> {
    let key = certificate.with_extension("key");
    let keys = json!([{"tenant": "a", "sha256": "0".repeat(64)}]);
    let key_file = certificate.with_file_name("keys.yaml");
    std::fs::write(&key_file, keys.to_string()).expect("written");
    let gateway = |field: &str, value: Value| json!({"config": {"gateway": {field: value}}});
    let scaler = |field: &str, value: Value| json!({"config": {"scaler": {field: value}}});
    let other = json!([{"name": "other", "models": ["other"], "endpoints": ["127.0.0.1:9"]}]);
    vec![
        ("pools", json!({"pools": other})),
        ("prometheus", json!({"config": {"prometheus": {"timeout": "2s"}}})),
        ("gateway.allowedHosts", json!({"gateway": {"hosts": ["chat.example.com"]}})),
        ("gateway.shutdownTimeout", json!({"gateway": {"shutdownTimeout": "1m"}})),
        ("gateway.cors", gateway("cors", json!({"origins": ["https://chat.example.com"]}))),
        ("gateway.endpointHeader", gateway("endpointHeader", json!(true))),
        (
            "gateway.keys",
            json!({"config": {"gateway": {
                "keys": {"file": key_file}, "tenants": [{"name": "a"}],
            }}}),
        ),
        ("gateway.limits", gateway("limits", json!({"bodySize": "1Mi"}))),
        ("gateway.limits", gateway("limits", json!({"writeTimeout": "50s"}))),
        ("gateway.listen", gateway("listen", json!("127.0.0.1:1"))),
        ("gateway.paths", gateway("paths", json!(["/health", "/v1/completions"]))),
        (
            "gateway.recordArrivals",
            gateway("recordArrivals", json!({"file": certificate.with_file_name("arrivals.csv")})),
        ),
        (
            "gateway.routes",
            gateway("routes", json!([{"model": "a", "pools": [{"pool": "vllm", "weight": 1}]}])),
        ),
        ("gateway.scaler", gateway("scaler", json!("elsewhere:9900"))),
        ("gateway.tenants", gateway("tenants", json!([{"name": "anonymous", "maxConcurrent": 5}]))),
        ("gateway.threads", gateway("threads", json!(1))),
        ("gateway.tls", gateway("tls", json!({"certFile": certificate, "keyFile": key}))),
        ("gateway.trustedProxies", gateway("trustedProxies", json!(["10.0.0.0/8"]))),
        ("scaler.gatewayDiscovery", scaler("gatewayDiscovery", json!({"pods": {"port": 9901}}))),
        ("scaler.gatewayAddress", scaler("gatewayAddress", json!("127.0.0.1:4"))),
        ("scaler.gateways", scaler("gateways", json!(["127.0.0.1:9"]))),
        ("scaler.keda", scaler("keda", json!({"listen": "127.0.0.1:2"}))),
        ("scaler.staleAfter", scaler("staleAfter", json!("20s"))),
        ("scaler.stateDir", scaler("stateDir", json!("/tmp"))),
        ("admin.listen", json!({"config": {"admin": {"listen": "127.0.0.1:3"}}})),
        ("admin.tokenFile", json!({"config": {"admin": {"tokenFile": certificate}}})),
        ("logging.access", json!({"config": {"logging": {"access": false}}})),
        ("logging.format", json!({"config": {"logging": {"format": "text"}}})),
    ]
}

/// Every field of the configuration's sections, as the chart's schema has them.
fn fields() -> BTreeSet<String> {
    let schema: Value =
        serde_json::from_str(include_str!("../../../deploy/chart/forebay/values.schema.json"))
            .expect("JSON");
    let mut all = BTreeSet::from(["pools".to_owned(), "prometheus".to_owned()]);
    for section in ["Gateway", "Scaler", "Admin", "Logging"] {
        let fields = schema["definitions"][section]["properties"].as_object().expect("fields");
        all.extend(fields.keys().map(|field| format!("{}.{field}", section.to_lowercase())));
    }
    // The chart sets it.
    all.remove("scaler.leaderElection");
    all
}

/// Pods are replaced exactly by those changes of the configuration that a running program does not
/// take. Before that, `helm test` finds the running program healthy.
pub async fn running_parts_reload_what_replaces_no_pod(cluster: Arc<Cluster>) {
    if no_helm(&cluster) {
        return;
    }
    let namespace = namespace(&cluster, "reload").await;
    let certificate = cluster.plane.pki().expect("a helm of our own").folder.join("apiserver.crt");
    let changes = changes(&certificate);
    let named: BTreeSet<_> = changes.iter().map(|(field, _)| (*field).to_owned()).collect();
    assert_eq!(named, fields(), "a change for each field");

    let first = Rendering::new(&cluster, &namespace, &json!({})).await;
    let mut parts = Vec::new();
    for name in ["gateway", "scaler"] {
        parts.push(Part::start(&cluster, &namespace, name, &first).await);
    }
    is_healthy(&first, &parts[0].ports, &parts[1].ports).await;
    for (field, values) in changes {
        let next = Rendering::new(&cluster, &namespace, &values).await;
        let checks = parts.iter_mut().map(async |part| {
            let later = part.reload(&next).await;
            let replaced = first.pods(part.name) != next.pods(part.name);
            assert_eq!(replaced, later.is_some(), "{}: {field}: {later:?}: {values}", part.name);
            if replaced {
                part.reload(&first).await;
            }
        });
        futures_util::future::join_all(checks).await;
    }
    for part in &mut parts {
        assert_eq!(part.running.stop().await, 0);
    }
    cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
}

/// Runs what the pod of `helm test` runs, with the Services' names made addresses.
async fn is_healthy(rendering: &Rendering, gateway: &Ports, scaler: &Ports) {
    let container = &rendering.object("Pod", "forebay-test")["spec"]["containers"][0];
    let arguments: Vec<String> =
        serde_json::from_value(container["args"].clone()).expect("a list of texts");
    let arguments = arguments.iter().map(|argument| {
        argument
            .replace("//forebay:80/", &format!("//{}/", gateway.clients))
            .replace("//forebay-scaler:9900/", &format!("//{}/", scaler.admin))
    });
    let output = Command::new(BINARY).args(arguments).output().await.expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    for answered in [gateway.clients, scaler.admin] {
        assert!(text.contains(&format!("//{answered}/")), "{answered} was not asked: {text}");
    }
}
