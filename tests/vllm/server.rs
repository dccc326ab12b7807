//! A vLLM of this test's own, with all of its processes.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The longest start. vLLM is ready after one to three minutes, or later on a busy machine.
const START: Duration = Duration::from_secs(600);
/// The longest stop. vLLM ends within a second, once nothing is in flight.
const STOP: Duration = Duration::from_secs(20);

/// A running vLLM. It ends when this is dropped, and its engine with it.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
}

/// The folder in which `setup` installs vLLM.
pub(crate) fn home() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let home = set("FOREBAY_VLLM_HOME").or_else(|| Some(cache()?.join("forebay-vllm")));
    home.expect("HOME is set")
}

impl Server {
    /// Starts one with these flags, and waits until it answers.
    pub(crate) fn start(flags: &[String]) -> Self {
        let [server] = Self::start_all(flags);
        server
    }

    /// Starts several at once, and waits until all of them answer.
    pub(crate) fn start_all<const N: usize>(flags: &[String]) -> [Self; N] {
        let mut starting: [(Self, PathBuf); N] = std::array::from_fn(|_| Self::spawn(flags));
        for (server, log) in &mut starting {
            let until = SystemTime::now() + START;
            while !server.is_up() {
                let ended = server.child.try_wait().expect("our child");
                let late = SystemTime::now() > until;
                assert!(ended.is_none() && !late, "vLLM did not start, see {}", log.display());
                std::thread::sleep(Duration::from_millis(250));
            }
            let _ = std::fs::remove_file(log);
        }
        starting.map(|(server, _)| server)
    }

    /// Starts one, and names its log.
    fn spawn(flags: &[String]) -> (Self, PathBuf) {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port");
        let address = SocketAddr::from(([127, 0, 0, 1], port.port()));
        let log = std::env::temp_dir().join(format!("forebay-vllm-{}.log", port.port()));
        let file = File::create(&log).expect("a log");
        let child = Command::new(crate::here().join("serve"))
            .arg(address.port().to_string())
            .args(flags)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file"))
            .stderr(file)
            .process_group(0)
            .spawn()
            .expect("serve runs");
        (Self { address, child }, log)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its process with a title that begins so, such as `VLLM::EngineCore`.
    pub(crate) fn process(&self, title: &str) -> u32 {
        let found = crate::support::family(self.pid(), |line| line.starts_with(title.as_bytes()));
        *found.first().expect("a process with this title")
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) {
        crate::support::eventually("vLLM ends", || matches!(self.child.try_wait(), Ok(Some(_))));
    }

    fn is_up(&self) -> bool {
        std::net::TcpStream::connect(self.address).is_ok()
            && crate::support::status(&crate::support::get(self.address, "/health")) == 200
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.child.id() as i32);
        let _ = killpg(group, Signal::SIGTERM);
        let until = SystemTime::now() + STOP;
        while matches!(self.child.try_wait(), Ok(None)) && SystemTime::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        // Otherwise its engine would live on.
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
