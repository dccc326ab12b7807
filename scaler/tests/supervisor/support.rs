//! Replicas of a script whose processes can be found, and waits for what they do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use forebay_config as config;
use forebay_scaler::act::targets::processes::{Processes, ReplicaStatus};
use tokio::time::{Instant, timeout};

use crate::{FAMILY_SIZE, LONG};

/// A script with a token of its own, which identifies its processes, and a folder.
pub(crate) struct Case {
    pub(crate) token: String,
    pub(crate) script: String,
    pub(crate) folder: PathBuf,
}

impl Case {
    pub(crate) fn new(script: &str) -> Self {
        // As a duration the token is about a year, so that it can be an argument of sleep.
        let token = format!("31536000.{}", rand::random::<u64>());
        let folder = env::temp_dir().join(format!("forebay-supervisor-{token}"));
        Self { script: script.replace("TOKEN", &token), token, folder }
    }

    pub(crate) fn target(&self, change: impl FnOnce(&mut config::Processes)) -> Processes {
        let script = format!("{} # {}", self.script, self.token);
        let mut settings = settings(&self.folder, vec!["sh".into(), "-c".into(), script]);
        change(&mut settings);
        Processes::start(&pool(), &settings, env::current_exe().unwrap()).unwrap()
    }

    /// Processes with the token in their command line. Dead processes have none.
    pub(crate) fn alive(&self) -> BTreeSet<i32> {
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| command_line(*pid).contains(&self.token))
            .collect()
    }

    pub(crate) async fn wait_for_family(&self) -> BTreeSet<i32> {
        let up = || {
            let family = self.alive();
            family.len() == FAMILY_SIZE && family.iter().all(|pid| settled(*pid))
        };
        until(LONG, "up", up).await;
        self.alive()
    }

    pub(crate) fn output(&self, number: u32) -> String {
        fs::read_to_string(self.folder.join(format!("pool-{number}.log"))).unwrap_or_default()
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(crate) fn pool() -> config::Pool {
    serde_json::from_str(r#"{"name":"pool"}"#).unwrap()
}

pub(crate) fn settings(logs: &Path, command: Vec<String>) -> config::Processes {
    let settings = serde_json::json!({ "command": command, "logDir": logs });
    serde_json::from_value(settings).unwrap()
}

pub(crate) fn one(target: &Processes) -> ReplicaStatus {
    let replicas = target.replicas();
    let replicas = replicas.borrow();
    assert_eq!(replicas.len(), 1);
    replicas.values().next().unwrap().clone()
}

/// Waits for a replica that satisfies `is`.
pub(crate) async fn status(
    target: &Processes,
    is: impl Fn(&ReplicaStatus) -> bool,
) -> ReplicaStatus {
    let mut replicas = target.replicas();
    let found = timeout(LONG, replicas.wait_for(|all| all.values().any(&is))).await;
    let found = found.expect("a replica to get there").unwrap();
    found.values().find(|replica| is(replica)).unwrap().clone()
}

pub(crate) async fn no_replica(target: &Processes) {
    let mut replicas = target.replicas();
    timeout(LONG, replicas.wait_for(|all| all.is_empty())).await.expect("to stop").unwrap();
}

/// Returns once every task that was woken before has run: on one thread, each takes its turn.
pub(crate) async fn all_tasks_have_run() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}
pub(crate) async fn until(limit: Duration, what: &str, condition: impl Fn() -> bool) {
    let from = Instant::now();
    while !condition() {
        assert!(from.elapsed() < limit, "not {what} within {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn command_line(pid: i32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).into()
}

/// Whether the process has reached its final program, rather than being a shell's copy on the way.
pub(crate) fn settled(pid: i32) -> bool {
    !command_line(pid).starts_with("setsid") && !command_line(pid).starts_with("env")
}

pub(crate) fn supervisor_of(family: &BTreeSet<i32>) -> i32 {
    let is = |pid: &&i32| command_line(**pid).split('\0').nth(1) == Some("supervise");
    *family.iter().find(is).unwrap()
}

/// The supervisor's own child.
pub(crate) fn child(family: &BTreeSet<i32>) -> i32 {
    let supervisor = supervisor_of(family);
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok())
    };
    let line = |pid: i32| command_line(pid);
    *family
        .iter()
        .find(|pid| parent(**pid) == Some(supervisor) && line(**pid).contains("wait; :"))
        .unwrap()
}
