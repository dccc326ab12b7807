//! Simulated vLLM servers for one test, and a gateway in front of them from a configuration.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Forebay, binary, eventually, kill};

/// One `forebay vllm-sim` with an address of its own, at which it can be restarted.
pub struct Sim {
    child: Child,
    arguments: Vec<String>,
    pub address: SocketAddr,
}

impl Sim {
    pub fn start(arguments: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = port.expect("a free port");
        let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let child = Self::spawn(address, &arguments);
        let sim = Self { child, arguments, address };
        sim.wait_until_listening();
        sim
    }

    fn spawn(address: SocketAddr, arguments: &[String]) -> Child {
        let given = |flag: &str| arguments.iter().any(|argument| argument == flag);
        let default = |flags: &'static [&str]| if given(flags[0]) { &[][..] } else { flags };
        Command::new(binary())
            .args(["vllm-sim", "--port", &address.port().to_string()])
            .args(["--stop-delay", "100ms"])
            .args(default(&["--prefill-tokens-per-second", "0"]))
            .args(default(&["--decode-step-ms", "1"]))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts")
    }

    fn wait_until_listening(&self) {
        let address = self.address;
        eventually("the simulated server listens", || TcpStream::connect(address).is_ok());
    }

    pub fn signal(&self, signal: &str) {
        kill(self.child.id(), signal);
    }

    pub fn wait_for_end(&mut self) {
        eventually("the replica ends", || self.child.try_wait().expect("our child").is_some());
    }

    /// Starts it at the same address again, once it has ended.
    pub fn restart(&mut self) {
        self.child = Self::spawn(self.address, &self.arguments);
        self.wait_until_listening();
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder for one test, removed with it.
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

    /// Replaces a file at once, by moving a new one into its place.
    pub fn write(&self, name: &str, text: &str) -> String {
        let (new, file) = (self.0.join(format!(".{name}.new")), self.0.join(name));
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, &file).expect("moved");
        file.to_str().expect("text").to_owned()
    }

    /// Starts `forebay gateway` with this configuration.
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
