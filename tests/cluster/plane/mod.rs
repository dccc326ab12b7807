//! A control plane on loopback: etcd, API server, controllers, scheduler, and KEDA.

pub mod audit;
mod keda;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::binaries::{Binaries, Source};
use crate::forebay::exchange;
use crate::pki::Pki;
use crate::process::Process;

/// The longest wait for anything. Nothing takes this long, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Plane {
    pub kubeconfig: PathBuf,
    pub folder: PathBuf,
    kubectl: PathBuf,
    own: Option<Own>,
}

/// A control plane that the tests started.
struct Own {
    binaries: Binaries,
    pki: Pki,
    ports: Ports,
    processes: Mutex<Vec<Process>>,
}

/// The ports of the control plane and of KEDA.
#[derive(Clone, Copy)]
struct Ports {
    api: u16,
    etcd: u16,
    etcd_peer: u16,
    controllers: u16,
    scheduler: u16,
    adapter: u16,
    adapter_metrics: u16,
    operator_grpc: u16,
    operator_metrics: u16,
    operator_probe: u16,
    webhooks: u16,
    webhooks_metrics: u16,
    webhooks_probe: u16,
}

/// Ports that are free now.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|listener| listener.local_addr().expect("bound").port())
}

/// Settings of the control plane that tests shorten.
#[derive(Clone, Copy)]
pub struct Settings {
    /// How often the HPA reads its metrics: Kubernetes' own is 15 s.
    pub hpa_sync: Duration,
    /// How long a node may be silent: Kubernetes' own is 50 s.
    pub node_grace: Duration,
}

impl Plane {
    pub async fn start(source: Source, folder: &Path, settings: Settings) -> Self {
        std::fs::create_dir_all(folder).expect("a folder");
        let binaries = match source {
            Source::Binaries(binaries) => binaries,
            Source::Existing(kubeconfig) => {
                let (folder, kubectl) = (folder.to_owned(), PathBuf::from("kubectl"));
                return Self { kubeconfig, folder, kubectl, own: None };
            }
        };
        let [
            api,
            etcd,
            etcd_peer,
            controllers,
            scheduler,
            adapter,
            adapter_metrics,
            operator_grpc,
            operator_metrics,
            operator_probe,
            webhooks,
            webhooks_metrics,
            webhooks_probe,
        ] = free_ports();
        let ports = Ports {
            api,
            etcd,
            etcd_peer,
            controllers,
            scheduler,
            adapter,
            adapter_metrics,
            operator_grpc,
            operator_metrics,
            operator_probe,
            webhooks,
            webhooks_metrics,
            webhooks_probe,
        };
        let pki = Pki::create(&folder.join("pki"));
        pki.issue("apiserver", "kube-apiserver", None);
        pki.issue("front-proxy", "front-proxy", None);
        pki.issue("keda/tls", "keda", None);
        std::fs::copy(pki.path("ca.crt"), pki.path("keda/ca.crt")).expect("copied");
        pki.write("audit-policy.yaml", audit::POLICY);
        let server = format!("https://127.0.0.1:{api}");
        for (user, name, organization) in [
            ("admin", "admin", Some("system:masters")),
            ("controllers", "system:kube-controller-manager", None),
            ("scheduler", "system:kube-scheduler", None),
        ] {
            pki.issue(user, name, organization);
            pki.kubeconfig(user, &server);
        }
        let kubeconfig = pki.folder.join("admin.kubeconfig");
        let kubectl = binaries.get("kubectl").expect("found before");
        let own = Own { binaries, pki, ports, processes: Mutex::default() };
        let plane = Self { kubeconfig, folder: folder.to_owned(), kubectl, own: Some(own) };
        plane.start_etcd().await;
        plane.start_api_server().await;
        plane.start_controllers(settings).await;
        plane
    }

    fn own(&self) -> &Own {
        self.own.as_ref().expect("only for a control plane of our own")
    }

    /// The certificate authority of a control plane of our own.
    pub fn pki(&self) -> Option<&Pki> {
        self.own.as_ref().map(|own| &own.pki)
    }

    /// The path of helm.
    pub fn helm(&self) -> PathBuf {
        let own = self.own.as_ref().and_then(|own| own.binaries.get("helm"));
        own.unwrap_or_else(|| PathBuf::from("helm"))
    }

    /// Whether the tests have started it, and so may break it.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// A program that is not part of the control plane, such as helm.
    pub fn tool(&self, name: &str) -> Option<PathBuf> {
        self.own.as_ref()?.binaries.get(name)
    }

    pub fn has_keda(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.binaries.has_keda())
    }

    async fn spawn(&self, name: &str, binary: &str, flags: &[String], env: &[(&str, &str)]) {
        let own = self.own();
        let mut command = Command::new(own.binaries.get(binary).expect("found before"));
        command.args(flags).envs(env.iter().copied()).current_dir(&own.pki.folder);
        let process = Process::start(name, &self.folder.join("log"), command);
        own.processes.lock().await.push(process);
    }

    async fn start_etcd(&self) {
        let Ports { etcd, etcd_peer, .. } = self.own().ports;
        let flags = [
            format!("--data-dir={}", self.folder.join("etcd").display()),
            // The data is temporary, and syncing a busy disk would be slow.
            "--unsafe-no-fsync".to_owned(),
            format!("--listen-client-urls=http://127.0.0.1:{etcd}"),
            format!("--advertise-client-urls=http://127.0.0.1:{etcd}"),
            format!("--listen-peer-urls=http://127.0.0.1:{etcd_peer}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{etcd_peer}"),
            format!("--initial-cluster=default=http://127.0.0.1:{etcd_peer}"),
        ];
        self.spawn("etcd", "etcd", &flags, &[]).await;
    }

    /// Discards all history: a watch from an older revision gets the error that the revision is
    /// gone. An API server that starts after this has no history either.
    pub async fn compact(&self) {
        let etcd = SocketAddr::from(([127, 0, 0, 1], self.own().ports.etcd));
        // The key does not exist; the header of the answer has the revision.
        let range = post(etcd, "/v3/kv/range", r#"{"key": "bm9ib2R5"}"#).await;
        let revision = range["header"]["revision"].as_str().expect("a revision").to_owned();
        let body = format!(r#"{{"revision": "{revision}", "physical": true}}"#);
        let done = post(etcd, "/v3/kv/compaction", &body).await;
        assert!(done["header"]["revision"].is_string(), "{done}");
    }

    /// Starts the API server, for the first time or after [`Plane::kill`].
    pub async fn start_api_server(&self) {
        let Ports { api, etcd, .. } = self.own().ports;
        let flags = [
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            format!("--secure-port={api}"),
            "--tls-cert-file=apiserver.crt".into(),
            "--tls-private-key-file=apiserver.key".into(),
            "--client-ca-file=ca.crt".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            "--service-account-key-file=sa.pub".into(),
            "--service-account-signing-key-file=sa.key".into(),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--authorization-mode=RBAC".into(),
            "--allow-privileged".into(),
            "--audit-policy-file=audit-policy.yaml".into(),
            format!("--audit-log-path={}", self.audit_log().display()),
            // Without these the adapter does not trust calls through the API server.
            "--requestheader-client-ca-file=ca.crt".into(),
            "--requestheader-allowed-names=front-proxy".into(),
            "--requestheader-username-headers=X-Remote-User".into(),
            "--requestheader-group-headers=X-Remote-Group".into(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
            "--proxy-client-cert-file=front-proxy.crt".into(),
            "--proxy-client-key-file=front-proxy.key".into(),
        ];
        self.spawn("kube-apiserver", "kube-apiserver", &flags, &[]).await;
        self.until("the API server is ready", &["get", "--raw", "/readyz"]).await;
    }

    async fn start_controllers(&self, settings: Settings) {
        let Ports { controllers, scheduler, .. } = self.own().ports;
        let as_user = |user: &str| {
            ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
                .map(|flag| format!("--{flag}={user}.kubeconfig"))
        };
        let mut flags = as_user("controllers").to_vec();
        flags.extend([
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={controllers}"),
            "--leader-elect=false".into(),
            "--use-service-account-credentials".into(),
            "--service-account-private-key-file=sa.key".into(),
            "--root-ca-file=ca.crt".into(),
            format!("--horizontal-pod-autoscaler-sync-period={}s", settings.hpa_sync.as_secs()),
            format!("--node-monitor-grace-period={}s", settings.node_grace.as_secs()),
        ]);
        self.spawn("kube-controller-manager", "kube-controller-manager", &flags, &[]).await;
        let mut flags = as_user("scheduler").to_vec();
        flags.extend([
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={scheduler}"),
            "--leader-elect=false".into(),
        ]);
        self.spawn("kube-scheduler", "kube-scheduler", &flags, &[]).await;
        self.until("the controllers work", &["-n", "default", "get", "serviceaccount", "default"])
            .await;
    }

    /// Sends SIGKILL to one of the processes.
    pub async fn kill(&self, name: &str) {
        let mut processes = self.own().processes.lock().await;
        let at = processes.iter().position(|process| process.name == name).expect("it runs");
        processes.remove(at).kill().await;
    }

    /// The last lines of each process.
    pub async fn tails(&self, lines: usize) -> String {
        let Some(own) = &self.own else { return String::new() };
        let processes = own.processes.lock().await;
        let tail =
            |process: &Process| format!("--- {} ---\n{}\n", process.name, process.tail(lines));
        processes.iter().map(tail).collect()
    }

    /// The address of the API server that the tests started.
    pub fn api_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.own().ports.api))
    }

    /// A kubeconfig with all rights, for another address that leads to the API server.
    pub async fn kubeconfig_at(&self, address: SocketAddr) -> PathBuf {
        let mut config = self.own_kubeconfig().await;
        config["clusters"][0]["cluster"]["server"] = format!("https://{address}").into();
        self.write(&format!("at-{}.kubeconfig", address.port()), &config.to_string())
    }

    /// A kubeconfig with this token as its only credential.
    pub async fn token_kubeconfig(&self, name: &str, token: &str, namespace: &str) -> PathBuf {
        let mut config = self.own_kubeconfig().await;
        config["users"][0]["user"] = serde_json::json!({"token": token});
        config["contexts"][0]["context"]["namespace"] = namespace.into();
        self.write(&format!("{name}.kubeconfig"), &config.to_string())
    }

    /// A kubeconfig with all rights, in this namespace.
    pub async fn kubeconfig_in(&self, namespace: &str) -> PathBuf {
        let mut config = self.own_kubeconfig().await;
        config["contexts"][0]["context"]["namespace"] = namespace.into();
        self.write(&format!("in-{namespace}.kubeconfig"), &config.to_string())
    }

    /// The tests' own kubeconfig, reduced to its current context.
    async fn own_kubeconfig(&self) -> serde_json::Value {
        let view = ["config", "view", "--minify", "--flatten", "--raw", "-o", "json"];
        serde_json::from_str(&self.kubectl(&view).await).expect("JSON")
    }

    fn write(&self, file: &str, text: &str) -> PathBuf {
        let path = self.folder.join(file);
        std::fs::write(&path, text).expect("written");
        path
    }

    /// A client with all rights.
    pub async fn client(&self) -> kube::Client {
        let text = std::fs::read_to_string(&self.kubeconfig).expect("a kubeconfig");
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).expect("well-formed");
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await;
        let mut config = config.expect("complete");
        // With retries, heartbeats of nodes would come late after the API server was away.
        config.default_retry = false;
        kube::Client::try_from(config).expect("usable")
    }

    /// Runs kubectl and returns what it printed.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments, "").await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs `kubectl apply` with this text.
    pub async fn apply(&self, yaml: &str) {
        let applied = self.try_kubectl(&["apply", "-f", "-"], yaml).await;
        applied.unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    }

    pub async fn try_kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut child = Command::new(&self.kubectl)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("kubectl: {error}"))?;
        let mut stdin = child.stdin.take().expect("piped");
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await.map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let error = String::from_utf8_lossy(&output.stderr);
        Err(format!("kubectl {}: {error}", arguments.join(" ")))
    }

    async fn until(&self, name: &str, arguments: &[&str]) {
        eventually(name, async || {
            // If a process has ended, waiting is of no use.
            for process in self.own().processes.lock().await.iter_mut() {
                if let Some(code) = process.ended() {
                    panic!("{} ended with {code}:\n{}", process.name, process.tail(20));
                }
            }
            self.try_kubectl(arguments, "").await.is_ok()
        })
        .await;
    }

    /// Ends everything, the API server's clients first.
    pub async fn stop(self) {
        let Some(own) = self.own else { return };
        let mut processes = own.processes.into_inner();
        for process in &mut processes {
            process.signal(nix::sys::signal::Signal::SIGKILL);
        }
        for process in &mut processes {
            process.wait().await;
        }
    }
}

/// Waits until a condition holds that other processes bring about.
pub async fn eventually(name: &str, condition: impl AsyncFnMut() -> bool) {
    within(PATIENCE, name, condition).await;
}

/// The same, with a time limit of its own.
pub async fn within(patience: Duration, name: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < patience, "not within {patience:?}: {name}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The answer of a JSON endpoint.
async fn post(address: SocketAddr, path: &str, body: &str) -> serde_json::Value {
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = exchange(address, request.as_bytes()).await;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {answer}"))
}
