//! One pod's life: address, image, process, probes, restarts, and its end.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, LifecycleHandler, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::status::{Container, Ended, Status};
use super::{Shared, annotation, host_address};
use crate::process::Process;

/// The first pause, which doubles. A real kubelet begins with 10 s.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// How often an unchanged status is reported.
const AGAIN: Duration = Duration::from_secs(5);
/// The shortest grace period.
const LEAST_GRACE: Duration = Duration::from_secs(1);

/// The pod as the API server last reported it; `None` once it is deleted.
type Latest = watch::Receiver<Option<Pod>>;

struct Runner {
    node: Arc<Shared>,
    latest: Latest,
    pod: Pod,
    spec: Spec,
    port: u16,
    /// The machine's address, for a pod in its network.
    host: Option<Ipv4Addr>,
    status: Status,
    reports: watch::Sender<Status>,
}

pub(super) async fn run(node: Arc<Shared>, latest: Latest) {
    let Some(pod) = latest.borrow().clone() else { return };
    let Some(spec) = pod.spec.as_ref().and_then(|spec| spec.containers.first()).cloned() else {
        return;
    };
    let port = spec.ports.as_ref().and_then(|ports| ports.first());
    let port = port.map_or(8000, |port| port.container_port as u16);
    let in_host_network = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let host = if in_host_network { host_address() } else { None };
    let status = Status::new(host.unwrap_or_else(|| node.address(1)));
    let (reports, receiver) = watch::channel(status.clone());
    let reporter = tokio::spawn(report(Arc::clone(&node), pod.clone(), receiver));
    let mut runner = Runner { node, latest, pod, spec, port, host, status, reports };
    runner.live().await;
    runner.remove(reporter).await;
}

/// Reports each status to the API server, and tries again while it is away.
async fn report(node: Arc<Shared>, pod: Pod, mut reports: watch::Receiver<Status>) {
    let api: Api<Pod> = Api::namespaced(node.client.clone(), &pod.namespace().unwrap_or_default());
    loop {
        let status = reports.borrow_and_update().json(&pod);
        while !node.dead.is_cancelled() {
            let patch = Patch::Merge(&status);
            let done = api.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await;
            match done {
                Err(kube::Error::Api(error)) if error.code == 404 => return,
                Err(_) => sleep(Duration::from_millis(300)).await,
                Ok(_) => break,
            }
            // A newer status replaces one that could not be reported.
            if reports.has_changed().unwrap_or(false) {
                break;
            }
        }
        // Reported from time to time, because the node controller changes the status of pods on a
        // node that it considers lost.
        if let Ok(Err(_)) = timeout(AGAIN, reports.changed()).await {
            return;
        }
    }
}

/// Why a container ended.
enum End {
    /// On its own, with this exit code.
    Exited(i32),
    /// The pod was deleted.
    Deleted,
    /// The machine is gone.
    Dead,
}

impl Runner {
    fn publish(&self) {
        self.reports.send_replace(self.status.clone());
    }

    fn wait(&mut self, reason: &'static str, message: impl Into<String>) {
        self.status.container = Container::Waiting { reason, message: message.into() };
        self.status.set_ready(false);
        self.status.started = false;
        self.publish();
    }

    fn annotation(&self, name: &str) -> Option<&String> {
        self.pod.annotations().get(name)
    }

    /// Waits, unless the pod is deleted or the machine dies first.
    async fn pause(&mut self, pause: Duration) -> Result<(), End> {
        let until = Instant::now() + pause;
        tokio::select! {
            () = sleep_until(until) => Ok(()),
            end = gone(&mut self.latest, &self.node) => Err(end),
        }
    }

    async fn live(&mut self) {
        if let Err(End::Exited(_)) = self.start_and_restart().await {
            unreachable!("a container that exits is restarted");
        }
    }

    async fn start_and_restart(&mut self) -> Result<(), End> {
        // The sandbox comes first, and with it the address; then the image.
        let address = self.host.unwrap_or_else(|| self.node.lease_address(self.port));
        self.status.address = Some(address);
        self.publish();
        self.pull().await?;
        let crashes =
            self.annotation(annotation::CRASHES).and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut backoff = FIRST_BACKOFF;
        loop {
            let since = Timestamp::now();
            let code = if self.status.restarts < crashes {
                1
            } else {
                match self.run_container(address).await {
                    End::Exited(code) => code,
                    end => return Err(end),
                }
            };
            let ended = Ended { code, since, at: Timestamp::now() };
            self.status.last = Some(ended);
            self.status.restarts += 1;
            self.wait(
                "CrashLoopBackOff",
                format!("back-off {backoff:?} restarting failed container"),
            );
            self.pause(backoff).await?;
            backoff = (backoff * 2).min(Duration::from_secs(300));
        }
    }

    async fn pull(&mut self) -> Result<(), End> {
        let fails =
            self.annotation(annotation::PULL_FAILS).map(|times| times.parse().unwrap_or(u32::MAX));
        let time = self.annotation(annotation::PULL).and_then(|text| humantime(text));
        for _ in 0..fails.unwrap_or(0) {
            self.wait("ErrImagePull", "rpc error: code = NotFound desc = no such image");
            self.pause(FIRST_BACKOFF).await?;
            self.wait("ImagePullBackOff", "Back-off pulling image");
            self.pause(FIRST_BACKOFF * 2).await?;
        }
        self.wait("ContainerCreating", "");
        self.pause(time.unwrap_or_default()).await
    }

    /// Runs the server until it ends, or until the pod is deleted or the machine dies, which end
    /// it.
    async fn run_container(&mut self, address: Ipv4Addr) -> End {
        let mut command = Command::new(&self.node.program);
        command.arg("vllm-sim").args(["--host", &address.to_string()]);
        command.args(["--port", &self.port.to_string()]);
        command.args(self.spec.args.iter().flatten());
        command.envs(self.environment(address));
        let name = format!("{}-{}", self.pod.namespace().unwrap_or_default(), self.pod.name_any());
        let mut process = Process::start(&name, &self.node.logs, command);
        self.status.container = Container::Running { since: Timestamp::now() };
        let startup = self.spec.startup_probe.clone();
        self.status.started = startup.is_none();
        // Without a readiness probe, a container is ready as soon as it runs.
        let readiness = self.spec.readiness_probe.clone();
        self.status.set_ready(self.status.started && readiness.is_none());
        self.publish();
        let mut latest = self.latest.clone();
        let node = Arc::clone(&self.node);
        let end = tokio::select! {
            code = process.wait() => End::Exited(code),
            end = gone(&mut latest, &node) => end,
            () = self.probe(startup, readiness, address) => unreachable!("probes have no end"),
        };
        match end {
            End::Exited(_) => {}
            End::Deleted => self.terminate(&mut process, address).await,
            End::Dead => process.kill().await,
        }
        end
    }

    /// Keeps `started` and `ready` up to date, for ever.
    async fn probe(&mut self, startup: Option<Probe>, readiness: Option<Probe>, at: Ipv4Addr) {
        if let Some(startup) = startup {
            while !passes(&startup, at, self.port).await {
                sleep(period(&startup)).await;
            }
            self.status.started = true;
            self.status.set_ready(readiness.is_none());
            self.publish();
        }
        let Some(readiness) = readiness else { return std::future::pending().await };
        let limit = readiness.failure_threshold.unwrap_or(3);
        let mut failures = 0;
        loop {
            let passed = passes(&readiness, at, self.port).await;
            failures = if passed { 0 } else { failures + 1 };
            let ready = passed || (self.status.ready && failures < limit);
            if ready != self.status.ready {
                self.status.set_ready(ready);
                self.publish();
            }
            sleep(period(&readiness)).await;
        }
    }

    /// Ends a pod as a kubelet does: with its hook, SIGTERM, and SIGKILL after the grace period.
    async fn terminate(&mut self, process: &mut Process, address: Ipv4Addr) {
        let grace = self
            .latest
            .borrow()
            .as_ref()
            .and_then(|pod| pod.metadata.deletion_grace_period_seconds);
        let grace = Duration::from_secs(grace.unwrap_or(0).max(0) as u64).max(LEAST_GRACE);
        let until = Instant::now() + grace;
        let hook = self.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.clone());
        if let Some(hook) = hook {
            tokio::select! {
                _ = timeout_at(until, self.hook(&hook, address)) => {}
                _ = process.wait() => {}
            }
        }
        let left = until.saturating_duration_since(Instant::now()).max(LEAST_GRACE);
        let since = self.status.begun;
        let code = process.stop(left).await;
        self.status.set_ready(false);
        self.status.container = Container::Ended(Ended { code, since, at: Timestamp::now() });
        self.publish();
    }

    async fn hook(&self, hook: &LifecycleHandler, address: Ipv4Addr) {
        if let Some(pause) = &hook.sleep {
            sleep(Duration::from_secs(pause.seconds.max(0) as u64)).await;
        }
        if let Some((program, arguments)) =
            hook.exec.as_ref().and_then(|exec| exec.command.as_ref()?.split_first())
        {
            let log = self.node.logs.join(format!("{}.hook.log", self.pod.name_any()));
            let file = std::fs::File::create(log).expect("a log");
            let mut command = Command::new(program);
            command.args(arguments).envs(self.environment(address));
            command.stdin(Stdio::null()).stdout(file.try_clone().expect("a file")).stderr(file);
            let _ = command.kill_on_drop(true).status().await;
        }
        if let Some(get) = &hook.http_get {
            let port = port_of(&get.port, self.port);
            let _ = http_get(address, port, get.path.as_deref().unwrap_or("/")).await;
        }
    }

    /// The container's environment, with the values of the downward API.
    fn environment(&self, address: Ipv4Addr) -> Vec<(String, String)> {
        let value = |field: &str| match field {
            "status.podIP" => address.to_string(),
            "metadata.name" => self.pod.name_any(),
            "metadata.namespace" => self.pod.namespace().unwrap_or_default(),
            "spec.nodeName" => self.node.name.clone(),
            _ => String::new(),
        };
        let mut all = Vec::new();
        for variable in self.spec.env.iter().flatten() {
            let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
            let filled = field.map(|field| value(&field.field_path));
            let value = filled.or(variable.value.clone());
            all.extend(value.map(|value| (variable.name.clone(), value)));
        }
        all
    }

    /// Deletes the pod from the API, which is the last step of a kubelet.
    async fn remove(self, reporter: JoinHandle<()>) {
        if self.node.dead.is_cancelled() || self.latest.borrow().is_none() {
            reporter.abort();
            return;
        }
        // The last status is reported first.
        drop(self.reports);
        let _ = timeout(Duration::from_secs(5), reporter).await;
        let namespace = self.pod.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.node.client.clone(), &namespace);
        let uid = self.pod.uid();
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid, resource_version: None }),
            ..DeleteParams::default()
        };
        while !self.node.dead.is_cancelled() {
            match api.delete(&self.pod.name_any(), &now).await {
                Ok(_) | Err(kube::Error::Api(_)) => return,
                Err(_) => sleep(Duration::from_millis(300)).await,
            }
        }
    }
}

/// Waits until the pod is deleted or the machine is dead.
async fn gone(latest: &mut Latest, node: &Shared) -> End {
    let deleted = latest
        .wait_for(|pod| pod.as_ref().is_none_or(|pod| pod.metadata.deletion_timestamp.is_some()));
    tokio::select! {
        _ = deleted => End::Deleted,
        () = node.dead.cancelled() => End::Dead,
    }
}

fn period(probe: &Probe) -> Duration {
    Duration::from_secs(probe.period_seconds.unwrap_or(10).max(1) as u64)
}

async fn passes(probe: &Probe, address: Ipv4Addr, default: u16) -> bool {
    let Some(get) = &probe.http_get else { return true };
    let limit = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1) as u64);
    let answer = http_get(address, port_of(&get.port, default), get.path.as_deref().unwrap_or("/"));
    matches!(timeout(limit, answer).await, Ok(Ok(200..=399)))
}

fn port_of(port: &IntOrString, named: u16) -> u16 {
    match port {
        IntOrString::Int(port) => *port as u16,
        IntOrString::String(_) => named,
    }
}

/// The status of a plain GET.
async fn http_get(address: Ipv4Addr, port: u16, path: &str) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect((address, port)).await?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer).await?;
    Ok(answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0))
}

/// `2s` or `500ms`.
fn humantime(text: &str) -> Option<Duration> {
    forebay_config::parse_duration(text).ok()
}
