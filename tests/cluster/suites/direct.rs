//! A workload that Forebay scales itself, through `/scale`: rollouts, foreign counts, another
//! leader.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Cluster;
use crate::forebay::{BINARY, Forebay, TOKEN, chat, exchange, is_whole};
use crate::link::Link;
use crate::plane::{eventually, free_ports};
use crate::suites::load::Load;
use crate::suites::workload::{Workload, namespace, replicas};

pub(super) const POOL: &str = "llama";

/// Gateways and scalers in front of a Deployment.
pub struct Setup {
    pub namespace: String,
    pub clients: [SocketAddr; 2],
    pub(super) gateways: Vec<Forebay>,
    pub(super) scalers: Vec<Forebay>,
    pub(super) workload: Workload,
    _service: Link,
    started: Vec<Start>,
}

/// The means to start a scaler, and to restart it.
struct Start {
    name: String,
    config: String,
    admin: SocketAddr,
    kubeconfig: PathBuf,
    folder: PathBuf,
    clock: &'static str,
}

impl Start {
    async fn scaler(&self) -> Forebay {
        let Self { name, config, admin, kubeconfig, folder, clock } = self;
        let program = at_clock(clock);
        Forebay::start_by(program, "scaler", name, config, *admin, kubeconfig, folder).await
    }
}

/// The number of times that it began to lead, in all its runs.
fn led(scaler: &Forebay) -> usize {
    scaler.log().matches("this scaler leads").count()
}

/// A command that runs Forebay with a clock that is off by `off`.
fn at_clock(off: &str) -> Command {
    if off.is_empty() {
        return Command::new(BINARY);
    }
    let mut command = Command::new("faketime");
    // The monotonic clock stays real.
    command.args(["-f", off, BINARY]).env("DONT_FAKE_MONOTONIC", "1");
    command
}

pub struct Options {
    pub(super) gateways: usize,
    pub(super) scalers: usize,
    pub(super) min: u32,
    pub(super) cold_start: &'static str,
    /// Milliseconds for a token.
    pub(super) decode_step: &'static str,
    pub(super) max_in_flight: u32,
    /// More fields of the pool, each a line.
    pub(super) pool: &'static str,
    /// A pod's hook requests a drain before the pod stops.
    pub(super) hook: bool,
    /// Deployment, StatefulSet, or LeaderWorkerSet.
    pub(super) kind: &'static str,
    /// The duration of the Lease, with two scalers.
    pub(super) lease: &'static str,
    /// The offset of each scaler's clock, as faketime writes it; empty for none.
    pub(super) clocks: [&'static str; 2],
    /// The kubeconfig of gateways and scalers; the tests' own if it is `None`.
    pub(super) kubeconfig: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            gateways: 1,
            scalers: 1,
            min: 0,
            cold_start: "1s",
            decode_step: "8",
            max_in_flight: 8,
            pool: "",
            hook: false,
            kind: "Deployment",
            lease: "3s",
            clocks: ["", ""],
            kubeconfig: None,
        }
    }
}

impl Setup {
    pub async fn new(cluster: &Cluster, suite: &str, options: Options) -> Self {
        let namespace = namespace(cluster, suite).await;
        let folder = cluster.folder.join(suite);
        std::fs::create_dir_all(&folder).expect("a folder");
        let token = folder.join("token");
        std::fs::write(&token, TOKEN).expect("written");
        let ports: [u16; 6] = free_ports();
        let [a, b, first, second, one, two] =
            ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let (clients, gateway_admins, scaler_admins) = ([a, b], [first, second], [one, two]);
        // The hook needs the token, because these pods' addresses are on loopback, where every
        // process has them. A real pod needs no token.
        let hook = format!(
            "curl -fsS -H 'authorization: bearer {TOKEN}' -X POST \
             'http://{one}/drain?endpoint='$POD_IP:8000"
        );
        let workload = Workload {
            args: ["--cold-start", options.cold_start, "--decode-step-ms", options.decode_step]
                .map(str::to_owned)
                .to_vec(),
            pre_stop: options.hook.then(|| vec!["sh".into(), "-c".into(), hook]),
            ..Workload::named(POOL, cluster.node.name())
        };
        let yaml = workload.of_kind(options.kind, &namespace);
        cluster.plane.apply(&yaml.to_string()).await;
        let listed: Vec<_> =
            gateway_admins[..options.gateways].iter().map(|admin| format!("\"{admin}\"")).collect();
        let election = if options.scalers > 1 {
            format!(
                "  leaderElection: {{namespace: {namespace}, leaseDuration: {}}}\n",
                options.lease
            )
        } else {
            String::new()
        };
        let config = |admin: SocketAddr, clients: SocketAddr, scaler: SocketAddr| {
            format!(
                "gateway: {{listen: \"{clients}\", scaler: \"{scaler}\", endpointHeader: true}}\n\
                 admin: {{listen: \"{admin}\", tokenFile: {}}}\n\
                 scaler:\n  gateways: [{}]\n{election}\
                 pools:\n- name: {POOL}\n  models: [{POOL}]\n  maxInFlight: {}\n{}  \
                 discovery: {{pods: {{namespace: {namespace}, selector: app={POOL}, port: 8000}}}}\n  \
                 target: {{kubernetes: {{apiVersion: {}, kind: {}, name: {POOL}, \
                 namespace: {namespace}}}}}\n  \
                 scaling: {{minReplicaCount: {}, maxReplicaCount: 5, targetConcurrency: 8, \
                 stableWindow: 6s, cooldownPeriod: 6s}}\n",
                token.display(),
                listed.join(", "),
                options.max_in_flight,
                options.pool,
                yaml["apiVersion"].as_str().expect("a version"),
                options.kind,
                options.min,
            )
        };
        let kubeconfig = options.kubeconfig.as_ref().unwrap_or(&cluster.plane.kubeconfig);
        let (mut scalers, mut gateways, mut started) = (Vec::new(), Vec::new(), Vec::new());
        for (n, admin) in scaler_admins.into_iter().enumerate().take(options.scalers) {
            let start = Start {
                name: format!("scaler-{n}"),
                config: config(admin, a, admin),
                admin,
                kubeconfig: kubeconfig.clone(),
                folder: folder.clone(),
                clock: options.clocks[n],
            };
            let scaler = start.scaler().await;
            if n == 0 && options.scalers > 1 {
                // The first scaler always leads.
                eventually("the first scaler leads", async || led(&scaler) == 1).await;
            }
            scalers.push(scaler);
            started.push(start);
        }
        let service = Link::to(scaler_admins.to_vec()).await;
        let scaler = service.address;
        for (n, admin) in gateway_admins.into_iter().enumerate().take(options.gateways) {
            let (name, config) = (format!("gateway-{n}"), config(admin, clients[n], scaler));
            let gateway = Forebay::start("gateway", &name, &config, admin, kubeconfig, &folder);
            gateways.push(gateway.await);
        }
        Self { namespace, clients, gateways, scalers, workload, _service: service, started }
    }

    /// Restarts a scaler that was killed.
    async fn restart_scaler(&mut self, n: usize) {
        self.scalers[n] = self.started[n].scaler().await;
    }

    /// Sends `count` chats at once, over all gateways in turn.
    pub(super) fn chats(&self, count: usize, stream: bool, tokens: u32) -> JoinSet<(bool, String)> {
        let mut chats = JoinSet::new();
        for n in 0..count {
            let gateway = self.clients[n % self.gateways.len()];
            chats.spawn(async move {
                let answer = chat(gateway, POOL, stream, tokens).await;
                (is_whole(&answer, stream), answer)
            });
        }
        chats
    }

    pub(super) async fn replicas(&self, cluster: &Cluster) -> (u32, u32) {
        replicas(cluster, &self.namespace, POOL).await
    }

    pub(super) async fn events(&self, cluster: &Cluster) -> String {
        let namespace = self.namespace.as_str();
        let template = "jsonpath={range .items[*]}{.reason}: {.note}{\"\\n\"}{end}";
        cluster
            .plane
            .kubectl(&["-n", namespace, "get", "events.events.k8s.io", "-o", template])
            .await
    }

    pub async fn end(mut self, cluster: &Cluster) {
        for part in self.gateways.iter_mut().chain(&mut self.scalers) {
            part.kill().await;
        }
        cluster.plane.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).await;
    }
}

pub(super) async fn all_whole(mut chats: JoinSet<(bool, String)>) -> usize {
    let mut count = 0;
    while let Some(chat) = chats.join_next().await {
        let (whole, answer) = chat.expect("no panic");
        assert!(whole, "not whole: {answer}");
        count += 1;
    }
    count
}

/// Thirty held requests wake the workload and scale it up; it goes back to zero, and no stream is
/// cut.
pub async fn wakes_serves_and_sleeps(cluster: Arc<Cluster>) {
    let setup = Setup::new(&cluster, "direct", Options::default()).await;
    assert_eq!(setup.replicas(&cluster).await, (0, 0));
    let chats = setup.chats(30, false, 16);
    let mut most = 0;
    eventually("enough replicas are desired", async || {
        most = most.max(setup.replicas(&cluster).await.0);
        most >= 4
    })
    .await;
    assert_eq!(all_whole(chats).await, 30);
    assert!(most <= 5, "{most} replicas for 30 requests, 8 for each");
    // These streams last longer than the scale-down takes.
    let streams = setup.chats(3, true, 600);
    eventually("fewer replicas while a stream runs", async || {
        setup.replicas(&cluster).await.0 < most
    })
    .await;
    assert_eq!(all_whole(streams).await, 3);
    eventually("zero", async || setup.replicas(&cluster).await == (0, 0)).await;
    let events = setup.events(&cluster).await;
    assert!(events.contains("ScaledUp: scaling 0 → "), "{events}");
    assert!(events.contains("ScaledDown: "), "{events}");
    assert!(events.contains("held"), "with the reason: {events}");
    // It wakes again, with the learned cold start.
    assert_eq!(all_whole(setup.chats(1, true, 4)).await, 1);
    setup.end(&cluster).await;
}

/// A count that another writer has set is corrected and reported, or left alone if an annotation
/// says so.
pub async fn foreign_counts_are_corrected_or_respected(cluster: Arc<Cluster>) {
    let setup = Setup::new(&cluster, "foreign", Options { min: 1, ..Options::default() }).await;
    eventually("one replica is ready", async || setup.replicas(&cluster).await == (1, 1)).await;
    let scale = |count: &'static str| {
        let (plane, namespace) = (&cluster.plane, setup.namespace.clone());
        async move {
            let count = format!("--replicas={count}");
            plane.kubectl(&["-n", &namespace, "scale", "deployment", POOL, &count]).await
        }
    };
    scale("3").await;
    eventually("the count is corrected", async || setup.replicas(&cluster).await.0 == 1).await;
    let events = setup.events(&cluster).await;
    assert!(events.contains("ForeignScale: another client set replicas to 3"), "{events}");
    let annotate = |value: &'static str| {
        let (plane, namespace) = (&cluster.plane, setup.namespace.clone());
        async move {
            plane
                .kubectl(&["-n", &namespace, "annotate", "--overwrite", "deployment", POOL, value])
                .await
        }
    };
    annotate("forebay.io/paused=true").await;
    eventually("the pool is paused", async || {
        setup.scalers[0].log().contains("paused by an annotation")
    })
    .await;
    scale("2").await;
    eventually("two replicas are ready", async || setup.replicas(&cluster).await == (2, 2)).await;
    assert_eq!(all_whole(setup.chats(16, false, 8)).await, 16, "both serve");
    assert_eq!(setup.replicas(&cluster).await.0, 2, "the count is left alone");
    annotate("forebay.io/paused-replicas=3").await;
    eventually("three replicas, as the annotation says", async || {
        setup.replicas(&cluster).await == (3, 3)
    })
    .await;
    annotate("forebay.io/paused-replicas-").await;
    annotate("forebay.io/paused-").await;
    eventually("the count is corrected again", async || setup.replicas(&cluster).await.0 == 1)
        .await;
    setup.end(&cluster).await;
}

/// A rolling update under load, with hooks that drain: no request fails.
pub async fn a_rolling_update_under_load_fails_no_request(cluster: Arc<Cluster>) {
    let options = Options { min: 2, hook: true, ..Options::default() };
    let setup = Setup::new(&cluster, "rolling", options).await;
    eventually("both replicas are ready", async || setup.replicas(&cluster).await == (2, 2)).await;
    let load = Load::start(setup.clients[0]);
    let updated = Workload { version: 2, replicas: 2, ..setup.workload.clone() };
    cluster.plane.apply(&updated.yaml(&setup.namespace)).await;
    let namespace = setup.namespace.as_str();
    let rollout =
        ["-n", namespace, "rollout", "status", "deployment", POOL, "--timeout=180s", "--watch"];
    cluster.plane.kubectl(&rollout).await;
    let selector = format!("app={POOL}");
    let pods = ["-n", namespace, "get", "pods", "-l", &selector, "-o", "name"];
    eventually("the old pods are gone", async || {
        cluster.plane.kubectl(&pods).await.lines().count() == 2
    })
    .await;
    let served = load.end().await;
    assert!(served > 20, "only {served} requests: no load");
    setup.end(&cluster).await;
}

/// A scaler's answer to a browser at `/` of its admin port.
#[derive(Debug, PartialEq)]
enum Console {
    Page,
    /// It is sent to this URL.
    At(String),
    Neither(String),
}

async fn console(scaler: &Forebay) -> Console {
    let address = scaler.admin;
    let request = format!(
        "GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\naccept: text/html\r\n\r\n"
    );
    let answer = exchange(address, request.as_bytes()).await;
    let mut lines = answer.lines();
    match lines.next() {
        Some("HTTP/1.1 200 OK") if answer.contains("<title>Forebay</title>") => Console::Page,
        Some("HTTP/1.1 307 Temporary Redirect") => {
            let place = lines.find_map(|line| line.strip_prefix("location: "));
            Console::At(place.unwrap_or_default().to_owned())
        }
        _ => Console::Neither(answer),
    }
}

/// With two gateways and two scalers, the leader dies in the middle of a cold start.
pub async fn another_scaler_takes_over_in_a_cold_start(cluster: Arc<Cluster>) {
    let options = Options { gateways: 2, scalers: 2, cold_start: "4s", ..Options::default() };
    let mut setup = Setup::new(&cluster, "failover", options).await;
    let leads = |scaler: &Forebay| scaler.log().contains("this scaler leads");
    eventually("a scaler leads", async || setup.scalers.iter().any(leads)).await;
    let leader = setup.scalers.iter().position(leads).expect("just seen");
    let other = 1 - leader;
    assert!(!leads(&setup.scalers[other]), "only one scaler leads");
    // A browser is sent to the console of the leader, whom the Lease names.
    assert_eq!(console(&setup.scalers[leader]).await, Console::Page);
    let theirs = Console::At(format!("http://{}/", setup.scalers[leader].admin));
    eventually("the other scaler redirects to the leader", async || {
        console(&setup.scalers[other]).await == theirs
    })
    .await;
    let chats = setup.chats(30, false, 8);
    eventually("the start is under way", async || setup.replicas(&cluster).await.0 >= 1).await;
    setup.scalers[leader].kill().await;
    let began = Instant::now();
    eventually("the other scaler takes over", async || leads(&setup.scalers[other])).await;
    println!("  took over after {:.1} s, with a lease of 3 s", began.elapsed().as_secs_f64());
    assert_eq!(console(&setup.scalers[other]).await, Console::Page);
    assert_eq!(all_whole(chats).await, 30);
    eventually("the new leader scales to zero", async || setup.replicas(&cluster).await.0 == 0)
        .await;
    // It leaves its state to the next leader.
    assert_eq!(setup.scalers[other].stop().await, 0);
    let kept =
        ["-n", &setup.namespace, "get", "configmaps", "-o", "jsonpath={.items[*].data.llama}"];
    let kept = cluster.plane.kubectl(&kept).await;
    assert!(kept.starts_with('{'), "{kept}");
    let leases = [
        "-n",
        &setup.namespace,
        "get",
        "lease",
        "forebay-scaler",
        "-o",
        "jsonpath={.spec.holderIdentity}",
    ];
    assert_eq!(cluster.plane.kubectl(&leases).await, "", "the lease is given back");
    setup.end(&cluster).await;
}

/// The clock of one scaler is an hour ahead of the other's. Neither takes the lease too early, and
/// each takes it once it has expired.
pub async fn clocks_are_not_compared(cluster: Arc<Cluster>) {
    if Command::new("faketime").arg("--version").output().await.is_err() {
        println!("  skipped: there is no faketime; apt install faketime");
        return;
    }
    // A lease long enough for a busy machine.
    let options = Options { scalers: 2, lease: "6s", clocks: ["", "+1h"], ..Options::default() };
    let mut setup = Setup::new(&cluster, "skew", options).await;
    assert_eq!(all_whole(setup.chats(2, false, 8)).await, 2);
    eventually("the second scaler knows the leader", async || {
        setup.scalers[1].log().contains("leads")
    })
    .await;
    assert_eq!(led(&setup.scalers[1]), 0, "the lease was taken before it expired");

    setup.scalers[0].kill().await;
    eventually("the scaler with the fast clock leads", async || led(&setup.scalers[1]) == 1).await;
    setup.restart_scaler(0).await;
    eventually("it scales to zero", async || setup.replicas(&cluster).await == (0, 0)).await;
    assert_eq!(all_whole(setup.chats(2, false, 8)).await, 2);
    assert_eq!(led(&setup.scalers[0]), 1, "the lease was taken before it expired");

    // For the first scaler, the last renewal is an hour in the future.
    setup.scalers[1].kill().await;
    eventually("the first scaler leads again", async || led(&setup.scalers[0]) == 2).await;
    assert_eq!(all_whole(setup.chats(2, false, 8)).await, 2);
    setup.end(&cluster).await;
}
