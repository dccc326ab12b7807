//! Triggers against a real Prometheus server, which scrapes simulated replicas and the text of a
//! DCGM exporter: they work, and failures of the server never scale down nor block a decision.
//!
//! Skipped, with a note, where no `prometheus` is installed; with `FOREBAY_REQUIRE_PROMETHEUS` set
//! that is a failure.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};

use support::prometheus::{Prometheus, folder, free_port, installed};
use support::{Forebay, connect, eventually, exchange, get, post, status};

const DCGM: &str = include_str!("fixtures/dcgm.prom");

/// An exporter whose text the test can change.
struct Exporter {
    address: SocketAddr,
    text: Arc<Mutex<String>>,
}

impl Exporter {
    fn start(text: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let text = Arc::new(Mutex::new(text.to_owned()));
        let shared = Arc::clone(&text);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let body = shared.lock().expect("no panic").clone();
                let _ = stream.read(&mut [0; 4096]);
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            }
        });
        Self { address, text }
    }

    fn set(&self, text: &str) {
        *self.text.lock().expect("no panic") = text.to_owned();
    }
}

/// Starts `forebay run` with these pools; each scales by one trigger, to at most 4 replicas.
fn forebay(folder: &Path, top: &str, pools: &[Pool<'_>]) -> Forebay {
    let mut config = format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\n{top}\npools:\n"
    );
    for pool in pools {
        let Pool { name, min, ports, sim, trigger } = pool;
        config += &format!(
            "- name: {name}
  models: [{name}]
  target:
    processes:
      command: ['{}', vllm-sim, --served-model-name, {name}, '--port={{port}}', --cold-start, 100ms{sim}]
      logDir: {}
      ports: {}-{}
  scaling:
    minReplicaCount: {min}
    maxReplicaCount: 4
    stableWindow: 1s
    panicWindow: 1s
    cooldownPeriod: 2s
    pollingInterval: 300ms
    behavior:
      scaleUp: {{stabilizationWindowSeconds: 0, policies: [{{type: Pods, value: 4, periodSeconds: 1}}]}}
      scaleDown: {{stabilizationWindowSeconds: 0}}
    triggers:
    - {trigger}
",
            env!("CARGO_BIN_EXE_forebay"),
            folder.join("logs").display(),
            ports,
            ports + 7
        );
    }
    let file = folder.join("forebay.yaml");
    std::fs::write(&file, config).expect("written");
    Forebay::start(&["run", "--config", file.to_str().expect("text")], "info")
}

struct Pool<'a> {
    name: &'a str,
    min: u32,
    /// The first of eight ports.
    ports: u16,
    sim: &'a str,
    trigger: String,
}

impl Forebay {
    fn desired(&self, pool: &str) -> f64 {
        self.metric(&format!("forebay_desired_replicas{{pool=\"{pool}\"}}")).unwrap_or(f64::NAN)
    }

    fn trigger(&self, figure: &str, pool: &str) -> f64 {
        let text = get(self.admin, "/metrics");
        let name = format!("forebay_trigger_{figure}{{pool=\"{pool}\"");
        let line = text.lines().find(|line| line.starts_with(&name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(f64::NAN)
    }

    fn decisions(&self, pool: &str) -> f64 {
        let series = format!("forebay_decision_seconds_count{{pool=\"{pool}\"}}");
        self.metric(&series).expect("a figure")
    }

    /// Checks that the count stays for five more decisions. There is at least one decision a
    /// second.
    fn stays(&self, pool: &str, count: f64, reason: &str) {
        let before = self.decisions(pool);
        eventually("decisions go on", || {
            assert_eq!(self.desired(pool), count, "{reason}");
            self.decisions(pool) >= before + 5.0
        });
    }
}

/// Opens streams, which end when they are dropped.
fn streams(forebay: &Forebay, model: &str, count: usize, tokens: u32) -> Vec<std::net::TcpStream> {
    let body = format!(
        r#"{{"model":"{model}","stream":true,"max_tokens":{tokens},"ignore_eos":true,"messages":[{{"role":"user","content":"hello"}}]}}"#
    );
    let request = post("/v1/chat/completions", &body);
    let open = |_| {
        let mut stream = connect(forebay.address);
        stream.write_all(&request).expect("sent");
        stream
    };
    (0..count).map(open).collect()
}

/// The first of eight free ports in a row: more than there are replicas, in case another process
/// takes one meanwhile.
fn ports_in_a_row() -> u16 {
    loop {
        let first = free_port();
        if (first..first.saturating_add(8))
            .all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        {
            return first;
        }
    }
}

#[test]
fn promql_kv_cache_and_gpu_figures_scale_a_pool() {
    if !installed() {
        return;
    }
    let folder = folder("works");
    let (exporter, port) = (Exporter::start(DCGM), free_port());
    let (query, kv, gpu, direct) =
        (ports_in_a_row(), ports_in_a_row(), ports_in_a_row(), ports_in_a_row());
    let mut prometheus = Prometheus::on(port, &folder);
    let mut targets: Vec<_> = (query..query + 8).map(|port| format!("127.0.0.1:{port}")).collect();
    targets.push(exporter.address.to_string());
    prometheus.start(&targets);
    let slow = ", --decode-step-ms, '50'";
    let small =
        ", --decode-step-ms, '50', --num-gpu-blocks-override, '300', --max-model-len, '4096'";
    let running = "sum(vllm:num_requests_running{model_name=\"query\"})";
    let pool = |name, ports, sim, trigger| Pool { name, min: 1, ports, sim, trigger };
    let mut forebay = forebay(
        &folder,
        &format!("prometheus: {{serverAddress: 'http://127.0.0.1:{port}'}}"),
        &[
            pool(
                "query",
                query,
                slow,
                format!("{{type: prometheus, metadata: {{query: '{running}', threshold: '2'}}}}"),
            ),
            pool("kv", kv, small, "{type: kvCache, metadata: {threshold: '0.005'}}".to_owned()),
            pool(
                "gpu",
                gpu,
                "",
                "{type: gpuUtilization, metadata: {selector: 'pod=~\"vllm-.*\"', threshold: '60'}}"
                    .to_owned(),
            ),
            pool(
                "direct",
                direct,
                "",
                format!(
                    "{{type: gpuPower, metadata: {{exporter: 'http://{}', selector: 'pod=\"vllm-0\"', threshold: '400'}}}}",
                    exporter.address
                ),
            ),
        ],
    );
    // The GPUs are at 97 % and 93 %, over the threshold of 60 %, and at 612 W, over 400 W.
    eventually("the GPUs' utilization is read", || forebay.trigger("value", "gpu") == 95.0);
    eventually("the exporter's power is read", || forebay.trigger("value", "direct") == 612.418);
    eventually("busy GPUs need four replicas", || {
        forebay.desired("gpu") == 4.0 && forebay.desired("direct") == 4.0
    });

    // An impossible figure is unknown: it neither scales up nor down, and is named.
    let odd = DCGM.replace("} 93\n", "} 808334905\n").replace("} 612.418000\n", "} 4294967295\n");
    exporter.set(&odd);
    for (pool, why) in [
        ("gpu", "the result is 808334905 %, and can only be 0 to 100 %"),
        ("direct", "is 4294967295 W, and can only be 0 to 10000 W"),
    ] {
        eventually("the trigger is not readable", || forebay.trigger("readable", pool) == 0.0);
        let decisions = get(forebay.admin, &format!("/decisions?pool={pool}"));
        assert!(decisions.contains(why), "{decisions}");
        assert!(forebay.trigger("failures_total", pool) >= 1.0);
        forebay.stays(pool, 4.0, "the figure is unknown");
    }
    forebay.wait_for("gpu: trigger gpuUtilization can't be read, so nothing scales down: ");
    exporter.set(DCGM);
    eventually("the triggers are readable again", || {
        forebay.trigger("readable", "gpu") == 1.0 && forebay.trigger("readable", "direct") == 1.0
    });

    let open = streams(&forebay, "query", 6, 3000);
    eventually("six running requests need three replicas", || forebay.desired("query") == 3.0);
    assert_eq!(forebay.trigger("threshold", "query"), 2.0);
    let more = streams(&forebay, "kv", 4, 3000);
    eventually("a full KV cache needs more replicas", || forebay.desired("kv") > 1.0);

    // Lower figures scale down.
    exporter.set(&DCGM.replace("} 97\n", "} 12\n").replace("} 93\n", "} 18\n"));
    eventually("idle GPUs need one replica", || forebay.desired("gpu") == 1.0);
    drop(open);
    eventually("no running requests need one replica", || forebay.desired("query") == 1.0);
    drop(more);
    let decisions = get(forebay.admin, "/decisions");
    assert!(decisions.contains("prometheus is at 6"), "{decisions}");
    assert!(decisions.contains(r#""figure":6.0"#), "each trigger's figure is in it: {decisions}");
}

#[test]
fn a_prometheus_that_fails_never_scales_down_and_never_blocks_a_decision() {
    if !installed() {
        return;
    }
    let folder = folder("fails");
    let (exporter, port) = (Exporter::start("demand 12\ndivisor 4\n"), free_port());
    let (ports, other, third) = (ports_in_a_row(), ports_in_a_row(), ports_in_a_row());
    let mut prometheus = Prometheus::on(port, &folder);
    let targets = [exporter.address.to_string()];
    prometheus.start(&targets);
    let trigger = format!(
        "{{type: prometheus, metadata: {{serverAddress: 'http://127.0.0.1:{port}', query: sum(demand) / sum(divisor), threshold: '1', timeout: 1s}}}}"
    );
    let zero = trigger.replace("timeout: 1s", "timeout: 1s, ignoreNullValues: 'true'");
    let mut forebay = forebay(
        &folder,
        "",
        &[
            Pool { name: "a", min: 1, ports, sim: "", trigger: trigger.clone() },
            Pool { name: "b", min: 0, ports: other, sim: "", trigger },
            Pool { name: "zero", min: 1, ports: third, sim: "", trigger: zero },
        ],
    );
    eventually("12 / 4 needs three replicas", || {
        forebay.desired("a") == 3.0 && forebay.desired("zero") == 3.0
    });
    let readable = |forebay: &Forebay| forebay.trigger("readable", "a") == 1.0;

    prometheus.stop();
    forebay.wait_for("a: trigger prometheus can't be read, so nothing scales down: ");
    eventually("the trigger is not readable", || !readable(&forebay));
    forebay.stays("a", 3.0, "Prometheus is down");

    // A server that accepts connections and never answers.
    let silent = TcpListener::bind(("127.0.0.1", port)).expect("its port is free");
    forebay.stays("a", 3.0, "Prometheus is slow");
    let chat = post(
        "/v1/chat/completions",
        r#"{"model":"b","max_tokens":3,"messages":[{"role":"user","content":"hello"}]}"#,
    );
    assert_eq!(status(&exchange(forebay.address, &chat)), 200, "requests are served meanwhile");
    assert!(!readable(&forebay));
    drop(silent);

    // A server without the figures.
    prometheus.start(&["127.0.0.1:1".to_owned()]);
    eventually("the result is empty", || {
        get(forebay.admin, "/metrics").contains("forebay_trigger") && !readable(&forebay)
    });
    forebay.stays("a", 3.0, "the result is empty");
    eventually("with ignoreNullValues an empty result is zero", || forebay.desired("zero") == 1.0);
    prometheus.stop();

    // Results that are not finite numbers.
    for (text, result) in [("demand 0\ndivisor 0\n", "NaN"), ("demand 1\ndivisor 0\n", "infinite")]
    {
        exporter.set(text);
        prometheus.start(&targets);
        eventually("prometheus has it", || {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            get(address, "/api/v1/query?query=sum(demand)/sum(divisor)").contains("value")
        });
        forebay.stays("a", 3.0, result);
        assert!(!readable(&forebay), "{result} is unknown");
        prometheus.stop();
    }

    // A low figure scales down once it is known.
    exporter.set("demand 2\ndivisor 2\n");
    prometheus.start(&targets);
    forebay.wait_for("can be read again");
    eventually("2 / 2 needs one replica", || forebay.desired("a") == 1.0);
    let log = forebay.logged().join("\n");
    assert!(!log.contains("panicked"), "{log}");
}
