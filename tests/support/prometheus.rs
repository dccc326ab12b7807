//! A real Prometheus server, where one is installed.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{eventually, get, status};

/// A folder for one test.
pub fn folder(name: &str) -> PathBuf {
    let folder =
        std::env::temp_dir().join(format!("forebay-prometheus-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

pub fn installed() -> bool {
    let found = Command::new("prometheus").arg("--version").output().is_ok();
    if !found {
        assert!(
            std::env::var_os("FOREBAY_REQUIRE_PROMETHEUS").is_none(),
            "prometheus is not installed, and FOREBAY_REQUIRE_PROMETHEUS is set"
        );
        eprintln!("skipped: no `prometheus` here; apt-get install prometheus");
    }
    found
}

/// A real server, on a port that it keeps over restarts.
pub struct Prometheus {
    pub port: u16,
    child: Option<Child>,
    folder: PathBuf,
}

impl Prometheus {
    pub fn on(port: u16, folder: &Path) -> Self {
        Self { port, child: None, folder: folder.to_owned() }
    }

    /// Starts it without any data. It scrapes `targets` once a second.
    pub fn start(&mut self, targets: &[String]) {
        let targets: Vec<_> = targets.iter().map(|target| format!("'{target}'")).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: all\n  static_configs:\n  - targets: [{}]\n",
            targets.join(", ")
        );
        let (file, data) = (self.folder.join("prometheus.yml"), self.folder.join("data"));
        let _ = std::fs::remove_dir_all(&data);
        std::fs::write(&file, config).expect("written");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address=127.0.0.1:{}", self.port))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("prometheus starts"));
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        eventually("prometheus is ready", || {
            std::net::TcpStream::connect(address).is_ok()
                && status(&get(address, "/-/ready")) == 200
        });
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
