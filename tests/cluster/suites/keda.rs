//! KEDA mode, with a real ScaledObject, operator, HPA and metrics adapter.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::Cluster;
use crate::forebay::{Forebay, chat, is_whole};
use crate::link::Link;
use crate::plane::{eventually, free_ports};
use crate::suites::workload::{Workload, namespace, replicas};

pub const POOL: &str = "llama";

/// Gateway, scalers, Deployment and ScaledObject.
pub struct Setup {
    pub namespace: String,
    pub clients: SocketAddr,
    pub gateway: Forebay,
    pub scalers: Vec<Forebay>,
    /// The address that KEDA calls: it leads to the first scaler that accepts.
    pub keda: SocketAddr,
    _services: [Link; 2],
}

/// The settings that differ between the suites.
pub struct Options {
    pub boost: bool,
    /// Extra metadata of our trigger.
    pub metadata: &'static str,
    /// `metricType` of our trigger.
    pub metric_type: &'static str,
    /// More of our trigger, after its metadata.
    pub authentication: &'static str,
    /// More of `scaler.keda` in the configuration.
    pub tls: String,
    pub cold_start: &'static str,
    /// Milliseconds for a token.
    pub decode_step: &'static str,
    /// 1 or 2.
    pub scalers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            boost: false,
            metadata: "",
            metric_type: "AverageValue",
            authentication: "",
            tls: String::new(),
            cold_start: "1s",
            decode_step: "8",
            scalers: 1,
        }
    }
}

impl Setup {
    pub async fn new(cluster: &Cluster, suite: &str, options: &Options) -> Self {
        let setup = Self::without_object(cluster, suite, options).await;
        cluster.plane.apply(&setup.scaled_object(options)).await;
        setup.until_ready(cluster).await;
        setup
    }

    /// The same without the ScaledObject.
    pub async fn without_object(cluster: &Cluster, suite: &str, options: &Options) -> Self {
        let namespace = namespace(cluster, suite).await;
        let workload = Workload {
            args: ["--cold-start", options.cold_start, "--decode-step-ms", options.decode_step]
                .map(str::to_owned)
                .to_vec(),
            ..Workload::named(POOL, cluster.node.name())
        };
        cluster.plane.apply(&workload.yaml(&namespace)).await;
        let [clients, gateway_admin, admin_0, admin_1, keda_0, keda_1] =
            free_ports().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let election = match options.scalers {
            1 => String::new(),
            _ => format!("  leaderElection: {{namespace: {namespace}, leaseDuration: 3s}}\n"),
        };
        let services =
            [Link::to(vec![admin_0, admin_1]).await, Link::to(vec![keda_0, keda_1]).await];
        let [scaler, service] = services.each_ref().map(|link| link.address);
        let config = |admin: SocketAddr, keda: SocketAddr| {
            format!(
                "gateway: {{listen: \"{clients}\", scaler: \"{scaler}\"}}\n\
                 admin: {{listen: \"{admin}\"}}\n\
                 scaler:\n  gateways: [\"{gateway_admin}\"]\n  \
                 keda: {{listen: \"{keda}\"{}}}\n{election}\
                 pools:\n\
                 - name: {POOL}\n  models: [{POOL}]\n  maxInFlight: 8\n  \
                 discovery: {{pods: {{namespace: {namespace}, selector: app={POOL}, port: 8000}}}}\n  \
                 target: {{keda: {{scaledObject: {POOL}, namespace: {namespace}, boost: {}}}}}\n  \
                 scaling: {{maxReplicaCount: 5, targetConcurrency: 8, stableWindow: 6s, \
                 cooldownPeriod: 5s}}\n",
                options.tls, options.boost
            )
        };
        let kubeconfig = &cluster.plane.kubeconfig;
        let folder = cluster.folder.join(suite);
        let start = async |part, name: &str, admin: SocketAddr, keda: SocketAddr| {
            let config = config(admin, keda);
            Forebay::start(part, name, &config, admin, kubeconfig, &folder).await
        };
        let gateway = start("gateway", "gateway", gateway_admin, keda_0).await;
        let mut scalers = Vec::new();
        for (n, (admin, keda)) in [(admin_0, keda_0), (admin_1, keda_1)].into_iter().enumerate() {
            if n < options.scalers {
                scalers.push(start("scaler", &format!("scaler-{n}"), admin, keda).await);
            }
        }
        let keda = if options.scalers > 1 { service } else { keda_0 };
        Self { namespace, clients, gateway, scalers, keda, _services: services }
    }

    pub fn scaled_object(&self, options: &Options) -> String {
        let Options { metadata, metric_type, authentication, .. } = options;
        let (namespace, keda) = (&self.namespace, self.keda);
        format!(
            "apiVersion: keda.sh/v1alpha1\nkind: ScaledObject\n\
             metadata: {{name: {POOL}, namespace: {namespace}}}\n\
             spec:\n  scaleTargetRef: {{name: {POOL}}}\n  pollingInterval: 2\n  cooldownPeriod: 3\n  \
             minReplicaCount: 0\n  maxReplicaCount: 5\n  \
             advanced:\n    horizontalPodAutoscalerConfig:\n      behavior:\n        \
             scaleUp: {{stabilizationWindowSeconds: 0, policies: [{{type: Pods, value: 100, periodSeconds: 15}}]}}\n        \
             scaleDown: {{stabilizationWindowSeconds: 5, policies: [{{type: Percent, value: 100, periodSeconds: 15}}]}}\n  \
             triggers:\n  \
             - type: external-push\n    metricType: {metric_type}\n    \
             metadata: {{scalerAddress: \"{keda}\", pool: {POOL}{metadata}}}\n{authentication}  \
             - type: cron\n    \
             metadata: {{timezone: Etc/UTC, start: \"0 0 1 1 *\", end: \"1 0 1 1 *\", desiredReplicas: \"2\"}}\n"
        )
    }

    pub async fn until_ready(&self, cluster: &Cluster) {
        let namespace = &self.namespace;
        let wait = [
            "-n",
            namespace,
            "wait",
            "--for=condition=Ready",
            "--timeout=90s",
            "scaledobject",
            POOL,
        ];
        cluster.plane.kubectl(&wait).await;
        eventually("the HPA exists", async || {
            let hpa = ["-n", namespace, "get", "hpa", "keda-hpa-llama"];
            cluster.plane.try_kubectl(&hpa, "").await.is_ok()
        })
        .await;
    }

    pub async fn replicas(&self, cluster: &Cluster) -> (u32, u32) {
        replicas(cluster, &self.namespace, POOL).await
    }

    pub async fn asleep(&self, cluster: &Cluster) {
        eventually("the Deployment is at zero, with no pod left", async || {
            let pods = ["-n", &self.namespace, "get", "pods", "-o", "name"];
            self.replicas(cluster).await.0 == 0
                && cluster.plane.kubectl(&pods).await.trim().is_empty()
        })
        .await;
    }

    /// Starts `count` clients at once, every second one with a stream. Each must get a whole
    /// answer.
    pub async fn serve(&self, count: u32, tokens: u32) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        for n in 0..count {
            let gateway = self.clients;
            clients.spawn(async move {
                let stream = n % 2 == 0;
                let answer = chat(gateway, POOL, stream, tokens).await;
                assert!(is_whole(&answer, stream), "request {n}: {answer}");
            });
        }
        clients
    }

    pub async fn end(mut self, cluster: &Cluster) {
        let delete = ["delete", "namespace", &self.namespace, "--wait=false"];
        cluster.plane.kubectl(&delete).await;
        for scaler in &mut self.scalers {
            assert_eq!(scaler.stop().await, 0, "{}", scaler.log());
        }
        assert_eq!(self.gateway.stop().await, 0, "{}", self.gateway.log());
    }
}

pub async fn all_answered(mut clients: JoinSet<()>) {
    while let Some(answered) = clients.join_next().await {
        answered.expect("answered whole");
    }
}

/// Thirty held requests at zero: KEDA wakes one replica, its HPA the others, all are answered, and
/// the Deployment goes back to zero. Then it wakes once more, through a new operator.
pub async fn wakes_serves_and_sleeps(cluster: Arc<Cluster>) {
    let setup = Setup::new(&cluster, "keda", &Options::default()).await;
    assert_eq!(setup.replicas(&cluster).await, (0, 0), "no replica is needed yet");

    let clients = setup.serve(30, 250).await;
    let mut most = 0;
    eventually("replicas follow the load", async || {
        most = most.max(setup.replicas(&cluster).await.0);
        most >= 3
    })
    .await;
    all_answered(clients).await;
    setup.asleep(&cluster).await;

    // The new operator finds the pool asleep, and the scaler reports the held requests to it.
    cluster.plane.kill("keda-operator").await;
    let clients = setup.serve(2, 20).await;
    eventually("both requests are held", async || {
        setup.gateway.log().matches("request held").count() >= 2
    })
    .await;
    cluster.plane.start_keda_operator().await;
    all_answered(clients).await;
    setup.asleep(&cluster).await;
    setup.end(&cluster).await;
}

/// The same with the boost: the Deployment has the decided count before the HPA's next sync, and
/// all replicas start at once.
pub async fn boost_wakes_all_at_once(cluster: Arc<Cluster>) {
    let options = Options { boost: true, cold_start: "3s", ..Options::default() };
    let setup = Setup::new(&cluster, "boost", &options).await;
    let clients = setup.serve(30, 100).await;
    eventually("the scaler has written the count itself", async || {
        let log = setup.scalers[0].log();
        log.contains("replicas, beside KEDA") && setup.replicas(&cluster).await.0 >= 4
    })
    .await;
    let (_, ready) = setup.replicas(&cluster).await;
    assert_eq!(ready, 0, "all replicas are desired before the first is ready");
    // KEDA and its HPA leave the count: they get the same.
    all_answered(clients).await;
    setup.asleep(&cluster).await;
    setup.end(&cluster).await;
}

/// Raw signals as KEDA metrics: Forebay decides nothing.
pub async fn scales_by_raw_signals(cluster: Arc<Cluster>) {
    let metadata = ", metric: concurrency, threshold: \"8\"";
    let options = Options { metadata, cold_start: "2s", ..Options::default() };
    let setup = Setup::new(&cluster, "raw", &options).await;
    let clients = setup.serve(30, 250).await;
    eventually("the HPA has scaled to ⌈30 ÷ 8⌉", async || {
        setup.replicas(&cluster).await.0 >= 3
    })
    .await;
    all_answered(clients).await;
    setup.asleep(&cluster).await;
    setup.end(&cluster).await;
}
