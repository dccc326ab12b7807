//! Simulated vLLM servers of a test's own, and a gateway before them from a configuration.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Forebay, eventually};

const FAST: &[&str] = &["--decode-step-ms", "1"];

/// One `forebay vllm-sim`.
pub struct Sim {
    child: Child,
    pub address: SocketAddr,
}

impl Sim {
    pub fn start(arguments: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        let address = port.expect("a free port");
        let child = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(["vllm-sim", "--port", &address.port().to_string()])
            .args(["--prefill-tokens-per-second", "0"])
            .args(if arguments.contains(&"--decode-step-ms") { &[][..] } else { FAST })
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let sim = Self { child, address };
        eventually("the simulated server listens", || TcpStream::connect(address).is_ok());
        sim
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder of a test's own, gone with it.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("forebay-test-{}-{n}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }

    /// Puts a file in place whole, as careful people do.
    pub fn write(&self, name: &str, text: &str) -> String {
        let (new, file) = (self.0.join(format!(".{name}.new")), self.0.join(name));
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, &file).expect("moved");
        file.to_str().expect("text").to_owned()
    }

    /// `forebay gateway` with this configuration, on ports of its own.
    pub fn gateway(&self, config: &str) -> Forebay {
        let file = self.write("config.yaml", config);
        Forebay::start(&["gateway", "--config", &file], "info,forebay_gateway=debug")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
