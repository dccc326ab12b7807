//! Scaled by us, through `/scale`: a Deployment, its rollouts, its troubles.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Cluster;
use crate::forebay::{Forebay, chat, is_whole};
use crate::plane::{eventually, free_ports};
use crate::suites::workload::{Workload, namespace, replicas};

const POOL: &str = "llama";
const TOKEN: &str = "for-operators-only";

/// Gateways and scalers in front of a Deployment.
pub struct Setup {
    pub namespace: String,
    pub clients: [SocketAddr; 2],
    gateways: Vec<Forebay>,
    scalers: Vec<Forebay>,
    workload: Workload,
    _service: JoinSet<()>,
}

/// What a Service does: one address for whoever answers.
async fn service_of(backends: Vec<SocketAddr>, tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let backends = backends.clone();
            connections.spawn(async move {
                for backend in backends {
                    if let Ok(mut server) = TcpStream::connect(backend).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                        return;
                    }
                }
            });
        }
    });
    address
}

pub struct Options {
    gateways: usize,
    scalers: usize,
    min: u32,
    cold_start: &'static str,
    /// Pods ask to be drained before they stop.
    hook: bool,
    /// Deployment, or StatefulSet.
    kind: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self { gateways: 1, scalers: 1, min: 0, cold_start: "1s", hook: false, kind: "Deployment" }
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
        // As its own address, without a token: no model's pod holds one.
        let hook = format!(
            "curl -fsS --interface $POD_IP -X POST 'http://{one}/drain?endpoint='$POD_IP:8000"
        );
        let workload = Workload {
            args: vec!["--cold-start".into(), options.cold_start.into()],
            pre_stop: options.hook.then(|| vec!["sh".into(), "-c".into(), hook]),
            ..Workload::named(POOL, cluster.node.name())
        };
        let mut yaml: serde_json::Value =
            serde_json::from_str(&workload.yaml(&namespace)).expect("JSON");
        yaml["kind"] = options.kind.into();
        if options.kind == "StatefulSet" {
            yaml["spec"]["podManagementPolicy"] = "Parallel".into();
        }
        cluster.plane.apply(&yaml.to_string()).await;
        let listed: Vec<_> =
            gateway_admins[..options.gateways].iter().map(|it| format!("\"{it}\"")).collect();
        let election = if options.scalers > 1 {
            format!("  leaderElection: {{namespace: {namespace}, leaseDuration: 3s}}\n")
        } else {
            String::new()
        };
        let config = |admin: SocketAddr, clients: SocketAddr, scaler: SocketAddr| {
            format!(
                "gateway: {{listen: \"{clients}\", scaler: \"{scaler}\"}}\n\
                 admin: {{listen: \"{admin}\", tokenFile: {}}}\n\
                 scaler:\n  gateways: [{}]\n{election}\
                 pools:\n- name: {POOL}\n  models: [{POOL}]\n  maxInFlight: 8\n  \
                 discovery: {{pods: {{namespace: {namespace}, selector: app={POOL}, port: 8000}}}}\n  \
                 target: {{kubernetes: {{kind: {}, name: {POOL}, namespace: {namespace}}}}}\n  \
                 scaling: {{minReplicaCount: {}, maxReplicaCount: 5, targetConcurrency: 8, \
                 stableWindow: 6s, cooldownPeriod: 6s}}\n",
                token.display(),
                listed.join(", "),
                options.kind,
                options.min,
            )
        };
        let kubeconfig = &cluster.plane.kubeconfig;
        let (mut scalers, mut gateways) = (Vec::new(), Vec::new());
        for (n, admin) in scaler_admins.into_iter().enumerate().take(options.scalers) {
            let (name, config) = (format!("scaler-{n}"), config(admin, a, admin));
            scalers
                .push(Forebay::start("scaler", &name, &config, admin, kubeconfig, &folder).await);
        }
        let mut service = JoinSet::new();
        let scaler = service_of(scaler_admins.to_vec(), &mut service).await;
        for (n, admin) in gateway_admins.into_iter().enumerate().take(options.gateways) {
            let (name, config) = (format!("gateway-{n}"), config(admin, clients[n], scaler));
            let gateway = Forebay::start("gateway", &name, &config, admin, kubeconfig, &folder);
            gateways.push(gateway.await);
        }
        Self { namespace, clients, gateways, scalers, workload, _service: service }
    }

    /// So many chats at once, over all gateways by turns.
    fn chats(&self, count: usize, stream: bool, tokens: u32) -> JoinSet<(bool, String)> {
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

    async fn replicas(&self, cluster: &Cluster) -> (u32, u32) {
        replicas(cluster, &self.namespace, POOL).await
    }

    async fn events(&self, cluster: &Cluster) -> String {
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

async fn all_whole(mut chats: JoinSet<(bool, String)>) -> usize {
    let mut count = 0;
    while let Some(chat) = chats.join_next().await {
        let (whole, answer) = chat.expect("no panic");
        assert!(whole, "not whole: {answer}");
        count += 1;
    }
    count
}

/// From zero by 30 held requests, up by their number, down to zero, no stream cut.
pub async fn wakes_serves_and_sleeps(cluster: Arc<Cluster>) {
    let setup = Setup::new(&cluster, "direct", Options::default()).await;
    assert_eq!(setup.replicas(&cluster).await, (0, 0));
    let chats = setup.chats(30, false, 16);
    let mut most = 0;
    eventually("all replicas are asked for", async || {
        most = most.max(setup.replicas(&cluster).await.0);
        most >= 4
    })
    .await;
    assert_eq!(all_whole(chats).await, 30);
    assert!(most <= 5, "{most} replicas for 30 requests, 8 for each");
    // Longer than it takes to scale down.
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
    // And again from zero, with what is known now.
    assert_eq!(all_whole(setup.chats(1, true, 4)).await, 1);
    setup.end(&cluster).await;
}

/// A StatefulSet's controller takes the highest number, so that is the one that is drained.
pub async fn a_stateful_set_shrinks_from_its_end(cluster: Arc<Cluster>) {
    let options = Options { kind: "StatefulSet", min: 1, ..Options::default() };
    let setup = Setup::new(&cluster, "stateful", options).await;
    let namespace = setup.namespace.as_str();
    let count = ["-n", namespace, "get", "statefulset", POOL, "-o", "jsonpath={.spec.replicas}"];
    let ready =
        ["-n", namespace, "get", "statefulset", POOL, "-o", "jsonpath={.status.readyReplicas}"];
    eventually("one is ready", async || cluster.plane.kubectl(&ready).await == "1").await;
    let chats = setup.chats(24, true, 60);
    eventually("several are asked for", async || {
        cluster.plane.kubectl(&count).await.parse().is_ok_and(|count: u32| count >= 3)
    })
    .await;
    assert_eq!(all_whole(chats).await, 24);
    // Streams at whoever is there, while all but the first go.
    let streams = setup.chats(4, true, 600);
    eventually("one is asked for", async || cluster.plane.kubectl(&count).await == "1").await;
    assert_eq!(all_whole(streams).await, 4);
    let pods = ["-n", namespace, "get", "pods", "-o", "jsonpath={.items[*].metadata.name}"];
    eventually("the first is left", async || {
        cluster.plane.kubectl(&pods).await == format!("{POOL}-0")
    })
    .await;
    setup.end(&cluster).await;
}

/// Somebody else's count is set right and told of, or left alone where an annotation says so.
pub async fn foreign_counts_are_corrected_or_respected(cluster: Arc<Cluster>) {
    let setup = Setup::new(&cluster, "foreign", Options { min: 1, ..Options::default() }).await;
    eventually("one is ready", async || setup.replicas(&cluster).await == (1, 1)).await;
    let scale = |count: &'static str| {
        let (plane, namespace) = (&cluster.plane, setup.namespace.clone());
        async move {
            let count = format!("--replicas={count}");
            plane.kubectl(&["-n", &namespace, "scale", "deployment", POOL, &count]).await
        }
    };
    scale("3").await;
    eventually("it is set right", async || setup.replicas(&cluster).await.0 == 1).await;
    let events = setup.events(&cluster).await;
    assert!(events.contains("ForeignScale: somebody else set replicas to 3"), "{events}");
    let annotate = |value: &'static str| {
        let (plane, namespace) = (&cluster.plane, setup.namespace.clone());
        async move {
            plane
                .kubectl(&["-n", &namespace, "annotate", "--overwrite", "deployment", POOL, value])
                .await
        }
    };
    annotate("forebay.io/paused=true").await;
    eventually("it is paused", async || setup.scalers[0].log().contains("paused by an annotation"))
        .await;
    scale("2").await;
    eventually("two are ready", async || setup.replicas(&cluster).await == (2, 2)).await;
    assert_eq!(all_whole(setup.chats(16, false, 8)).await, 16, "both serve");
    assert_eq!(setup.replicas(&cluster).await.0, 2, "left alone");
    annotate("forebay.io/paused-replicas=3").await;
    eventually("three, as it says", async || setup.replicas(&cluster).await == (3, 3)).await;
    annotate("forebay.io/paused-replicas-").await;
    annotate("forebay.io/paused-").await;
    eventually("ours again", async || setup.replicas(&cluster).await.0 == 1).await;
    setup.end(&cluster).await;
}

/// A rolling update under load, with hooks that drain: no request fails.
pub async fn a_rolling_update_under_load_fails_no_request(cluster: Arc<Cluster>) {
    let options = Options { min: 2, hook: true, ..Options::default() };
    let setup = Setup::new(&cluster, "rolling", options).await;
    eventually("both are ready", async || setup.replicas(&cluster).await == (2, 2)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for n in 0..4 {
        let (gateway, stop) = (setup.clients[0], Arc::clone(&stop));
        clients.spawn(async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let stream = (n + count) % 2 == 0;
                let answer = chat(gateway, POOL, stream, 20).await;
                assert!(is_whole(&answer, stream), "not whole: {answer}");
                count += 1;
            }
            count
        });
    }
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
    stop.store(true, Ordering::Relaxed);
    let mut served = 0;
    while let Some(count) = clients.join_next().await {
        served += count.unwrap_or_else(|error| panic!("{error}\n{}", setup.gateways[0].log()));
    }
    assert!(served > 20, "only {served} requests: no load");
    setup.end(&cluster).await;
}

/// Two gateways, two scalers; the one that decides dies in the middle of a cold start.
pub async fn another_scaler_takes_over_in_a_cold_start(cluster: Arc<Cluster>) {
    let options = Options { gateways: 2, scalers: 2, cold_start: "4s", ..Options::default() };
    let mut setup = Setup::new(&cluster, "failover", options).await;
    let leads = |scaler: &Forebay| scaler.log().contains("this scaler leads");
    eventually("one leads", async || setup.scalers.iter().any(leads)).await;
    let leader = setup.scalers.iter().position(leads).expect("just seen");
    let other = 1 - leader;
    assert!(!leads(&setup.scalers[other]), "only one leads");
    let chats = setup.chats(30, false, 8);
    eventually("the start is under way", async || setup.replicas(&cluster).await.0 >= 1).await;
    setup.scalers[leader].kill().await;
    let began = Instant::now();
    eventually("the other takes over", async || leads(&setup.scalers[other])).await;
    println!("  took over after {:.1} s, with a lease of 3 s", began.elapsed().as_secs_f64());
    assert_eq!(all_whole(chats).await, 30);
    eventually("zero, by the new leader", async || setup.replicas(&cluster).await.0 == 0).await;
    // What it learned is left for the next one.
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
    assert_eq!(cluster.plane.kubectl(&leases).await, "", "and the lease is given back");
    setup.end(&cluster).await;
}

/// The API server is away for 30 s: requests are answered, and nothing scales down.
pub async fn traffic_flows_while_the_api_server_is_away(cluster: Arc<Cluster>) {
    let options = Options { gateways: 2, scalers: 2, ..Options::default() };
    let setup = Setup::new(&cluster, "away", options).await;
    assert_eq!(all_whole(setup.chats(20, false, 8)).await, 20);
    let load = setup.chats(12, true, 200);
    eventually("several replicas", async || setup.replicas(&cluster).await.1 >= 2).await;
    let before = setup.replicas(&cluster).await.0;
    cluster.plane.kill("kube-apiserver").await;
    let until = Instant::now() + Duration::from_secs(30);
    let mut served = 0;
    // Enough that the load alone would not ask for fewer replicas, and nobody is held up.
    while Instant::now() < until {
        served += all_whole(setup.chats(16, served % 32 == 0, 40)).await;
    }
    all_whole(load).await;
    assert!(served >= 100, "{served} requests in 30 s");
    cluster.plane.start_api_server().await;
    let after = setup.replicas(&cluster).await.0;
    assert!(after >= before.min(2), "{before} replicas before, {after} right after");
    assert_eq!(all_whole(setup.chats(30, false, 8)).await, 30);
    eventually("it decides again", async || setup.replicas(&cluster).await.0 == 0).await;
    setup.end(&cluster).await;
}
