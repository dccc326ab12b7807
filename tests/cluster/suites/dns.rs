//! Replicas found by the DNS name of a headless Service.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, ListParams};
use tokio::net::UdpSocket;
use tokio::process::Command;
use tokio_util::task::AbortOnDropHandle;

use crate::Cluster;
use crate::forebay::{BINARY, Forebay, chat, is_whole};
use crate::plane::{eventually, free_ports};
use crate::suites::workload::{Workload, addresses, namespace};

const NAME: &str = "by-dns";

/// A cluster's DNS, reduced to one headless Service: it answers with the addresses of its ready
/// pods.
struct Dns {
    address: Ipv4Addr,
    /// Every answer is SERVFAIL.
    fails: Arc<AtomicBool>,
    _task: AbortOnDropHandle<()>,
}

impl Dns {
    /// `None` if port 53 is not available.
    async fn start(client: Client, namespace: &str) -> Option<Self> {
        let (x, y) = (rand::random_range(10..250), rand::random_range(1..250));
        let address = Ipv4Addr::new(127, x, y, 53);
        let socket = UdpSocket::bind((address, 53)).await.ok()?;
        let fails = Arc::new(AtomicBool::new(false));
        let failing = Arc::clone(&fails);
        let (name, pods) = (host(namespace), Api::<Pod>::namespaced(client, namespace));
        let task = tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((size, from)) = socket.recv_from(&mut buffer).await {
                let ready = ready(&pods).await.filter(|_| !failing.load(Ordering::Relaxed));
                if let Some(answer) = answer(&buffer[..size], &name, ready.as_deref()) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Some(Self { address, fails, _task: AbortOnDropHandle::new(task) })
    }
}

fn host(namespace: &str) -> String {
    format!("{NAME}.{namespace}.svc.cluster.local")
}

async fn ready(pods: &Api<Pod>) -> Option<Vec<Ipv4Addr>> {
    let list = pods.list(&ListParams::default().labels(&format!("app={NAME}"))).await.ok()?;
    let stays = list.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let address = |pod: Pod| {
        let status = pod.status?;
        let mut conditions = status.conditions?.into_iter();
        conditions.find(|each| each.type_ == "Ready" && each.status == "True")?;
        status.pod_ip?.parse().ok()
    };
    Some(stays.filter_map(address).collect())
}

/// The answer to one question; `None` if the query is not a question. `addresses` are those of
/// `name`; `None` gives SERVFAIL. Any other name gives NXDOMAIN.
fn answer(query: &[u8], name: &str, addresses: Option<&[Ipv4Addr]>) -> Option<Vec<u8>> {
    const SERVFAIL: u8 = 2;
    const NXDOMAIN: u8 = 3;
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let question = query.get(12..at + 4)?;
    let is_a = question.ends_with(&[0, 1, 0, 1]);
    let (code, records) = match addresses {
        None => (SERVFAIL, &[][..]),
        Some(_) if labels.join(".") != name => (NXDOMAIN, &[][..]),
        Some(addresses) if is_a => (0, addresses),
        Some(_) => (0, &[][..]),
    };
    let mut answer = query.get(..2)?.to_vec();
    // A response, recursion available.
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::try_from(records.len()).ok()?, 0, 0, 0, 0]);
    answer.extend(question);
    for address in records {
        // The name of the question; A, IN, a TTL of zero; four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// A command that runs Forebay with this resolver and no other; `None` if this user may not do
/// that.
async fn with_resolver(cluster: &Cluster, dns: &Dns) -> Option<Command> {
    let file = |name: &str, text: String| {
        let path = cluster.folder.join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let resolv = format!("nameserver {}\noptions timeout:1 attempts:2\n", dns.address);
    let resolv = file("resolv.conf", resolv);
    let switch = file("nsswitch.conf", "hosts: files dns\n".to_owned());
    let script = format!(
        "mount --bind {} /etc/resolv.conf && \
         {{ ! [ -e /etc/nsswitch.conf ] || mount --bind {} /etc/nsswitch.conf; }} && exec \"$@\"",
        resolv.display(),
        switch.display()
    );
    for flags in [&["--mount"][..], &["--mount", "--map-root-user"]] {
        let command = || {
            let mut command = Command::new("unshare");
            command.args(flags).args(["sh", "-c", &script, "sh"]);
            command
        };
        if command().arg("true").output().await.is_ok_and(|output| output.status.success()) {
            let mut command = command();
            command.arg(BINARY);
            return Some(command);
        }
    }
    None
}

/// Endpoints follow the addresses in DNS. While the resolver fails, the known endpoints stay.
pub async fn by_dns(cluster: Arc<Cluster>) {
    let namespace = namespace(&cluster, "dns").await;
    let dns = Dns::start(cluster.client.clone(), &namespace).await;
    let program = match &dns {
        Some(dns) => with_resolver(&cluster, dns).await,
        None => None,
    };
    let (Some(dns), Some(program)) = (dns, program) else {
        println!("  skipped: it needs port 53 and a mount namespace, which this user may not have");
        return;
    };
    let workload = Workload { replicas: 2, ..Workload::named(NAME, cluster.node.name()) };
    cluster.plane.apply(&workload.yaml(&namespace)).await;
    let [clients, admin] = free_ports().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let config = format!(
        "gateway: {{listen: \"{clients}\"}}\nadmin: {{listen: \"{admin}\"}}\n\
         pools:\n- name: {NAME}\n  models: [{NAME}]\n  \
         discovery: {{dns: {{host: {}, port: 8000, interval: 200ms}}}}\n",
        host(&namespace)
    );
    let (folder, kubeconfig) = (cluster.folder.join("dns"), &cluster.plane.kubeconfig);
    let mut gateway =
        Forebay::start_by(program, "gateway", "gateway", &config, admin, kubeconfig, &folder).await;
    let found = async |count: usize| {
        eventually(&format!("{count} replicas are found"), async || {
            let there = addresses(&cluster, &namespace, NAME).await;
            let endpoints = gateway.endpoints(NAME).await;
            let ready = endpoints.values().all(|health| health == "ready");
            there.len() == count && ready && endpoints.into_keys().eq(there)
        })
        .await;
    };
    let answered = async || {
        for _ in 0..4 {
            let answer = chat(clients, NAME, false, 2).await;
            assert!(is_whole(&answer, false), "{answer}");
        }
    };
    let scale = async |count: &str| {
        let scale = ["-n", &namespace, "scale", "deployment", NAME, count];
        cluster.plane.kubectl(&scale).await
    };
    found(2).await;
    answered().await;
    scale("--replicas=1").await;
    found(1).await;
    dns.fails.store(true, Ordering::Relaxed);
    eventually("the failure is logged", async || gateway.log().contains("known endpoints stay"))
        .await;
    answered().await;
    found(1).await;
    scale("--replicas=3").await;
    dns.fails.store(false, Ordering::Relaxed);
    found(3).await;
    answered().await;
    gateway.kill().await;
    cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
}
