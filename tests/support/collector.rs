//! A real OpenTelemetry Collector, where `tests/collector/build` has built one. It writes what it gets
//! to files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::eventually;
use super::prometheus::free_port;

/// A Collector, on ports that it keeps over restarts.
pub struct Collector {
    binary: PathBuf,
    pub folder: PathBuf,
    pub grpc: u16,
    pub http: u16,
    child: Option<Child>,
}

impl Collector {
    /// Starts one; `None` where there is none. Its gRPC is encrypted if a certificate and its key are
    /// given, and then its clients have to present that certificate too.
    pub fn start(name: &str, tls: Option<(&str, &str)>) -> Option<Self> {
        let built = std::env::var_os("FOREBAY_COLLECTOR").map(PathBuf::from);
        let cache = || {
            let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
            cache.unwrap_or_default().join("forebay-ci/collector")
        };
        let binary = built.unwrap_or_else(cache);
        if !binary.exists() {
            assert!(
                std::env::var_os("FOREBAY_REQUIRE_COLLECTOR").is_none(),
                "there is no {}, and FOREBAY_REQUIRE_COLLECTOR is set",
                binary.display()
            );
            eprintln!("skipped: no Collector here; run tests/collector/build");
            return None;
        }
        let folder =
            std::env::temp_dir().join(format!("forebay-otel-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        if let Some((certificate, key)) = tls {
            std::fs::write(folder.join("crt"), certificate).expect("written");
            std::fs::write(folder.join("key"), key).expect("written");
        }
        let (grpc, http) = (free_port(), free_port());
        let mut collector = Self { binary, folder, grpc, http, child: None };
        collector.begin();
        Some(collector)
    }

    pub fn begin(&mut self) {
        let Self { folder, grpc, http, .. } = &*self;
        let file = folder.join("collector.yaml");
        let (certificate, key) = (folder.join("crt"), folder.join("key"));
        let tls = match certificate.exists() {
            true => {
                let (certificate, key) = (certificate.display(), key.display());
                format!(
                    ", tls: {{cert_file: '{certificate}', key_file: '{key}', client_ca_file: \
                     '{certificate}'}}"
                )
            }
            false => String::new(),
        };
        let config = format!(
            "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:{grpc}'{tls}}}, http: {{endpoint: '127.0.0.1:{http}'}}}}}}}}
exporters: {{lines: {{folder: '{}'}}}}
service:
  pipelines:
    traces: {{receivers: [otlp], exporters: [lines]}}
    metrics: {{receivers: [otlp], exporters: [lines]}}
",
            folder.display()
        );
        std::fs::write(&file, config).expect("written");
        let child = Command::new(&self.binary)
            .arg(format!("--config={}", file.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("the Collector starts"));
        for port in [self.grpc, self.http] {
            eventually("the Collector listens", || {
                std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
        }
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The process, while it runs.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// The lines of a file, `traces` or `metrics`.
    pub fn lines(&self, file: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for line in self.lines("traces") {
            for of_process in items(&line["resourceSpans"]) {
                for of_scope in items(&of_process["scopeSpans"]) {
                    all.extend(items(&of_scope["spans"]).iter().cloned());
                }
            }
        }
        all
    }

    /// The spans of the trace that has a span with this attribute, once there are any.
    pub fn trace(&self, name: &str, value: &str) -> Vec<Value> {
        let mut found = Vec::new();
        eventually("the trace arrives", || {
            let spans = self.spans();
            let known =
                spans.iter().find(|span| attributes(span).get(name).is_some_and(|v| v == value));
            let Some(known) = known else { return false };
            found =
                spans.iter().filter(|span| span["traceId"] == known["traceId"]).cloned().collect();
            true
        });
        found
    }

    /// The last state of each metric by name.
    pub fn metrics(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        for line in self.lines("metrics") {
            for of_process in items(&line["resourceMetrics"]) {
                for of_scope in items(&of_process["scopeMetrics"]) {
                    for metric in items(&of_scope["metrics"]) {
                        let name = metric["name"].as_str().expect("a name").to_owned();
                        all.insert(name, metric.clone());
                    }
                }
            }
        }
        all
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// The items of a list, or none.
pub fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// The attributes of a span, a data point or a resource, as text.
pub fn attributes(of: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| match value.as_object().and_then(|value| value.values().next()) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let pair =
        |pair: &Value| (pair["key"].as_str().expect("a name").to_owned(), text(&pair["value"]));
    items(&of["attributes"]).iter().map(pair).collect()
}
