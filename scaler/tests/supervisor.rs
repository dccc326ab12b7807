//! Local replicas from outside: real processes, killed in every way.
//!
//! This executable is the tests, the supervisor (`supervise`) and a stand-in for Forebay (`own`) at
//! once, so it has its own `main`. It takes names, or parts of them, as `cargo test` passes them.
#![expect(clippy::unwrap_used, reason = "nothing but tests, which lints do not see here")]

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use clap::Parser;
use forebay_config as config;
use forebay_scaler::act::targets::processes::{Hung, Phase, Processes, ReplicaStatus};
use forebay_scaler::supervisor;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, timeout};

/// Promised for whatever is killed.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// The default, from SIGTERM to SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// More than anything takes on a busy machine, where no time is promised.
const LONG: Duration = Duration::from_secs(60);

/// Forks children, some into sessions of their own, orphans, ones that ignore SIGTERM, and one
/// that hides its environment as well.
const FAMILY: &str = "
    sleep TOKEN &
    setsid sleep TOKEN &
    (setsid sh -c 'trap \"\" TERM; sleep TOKEN & sleep TOKEN; :' &)
    (env -i setsid sleep TOKEN &)
    sleep TOKEN & wait; :";

/// Processes of a family, its shells and the supervisor included.
const FAMILY_SIZE: usize = 9;

#[derive(Parser)]
enum Role {
    Supervise(supervisor::Args),
    Own {
        logs: PathBuf,
        #[arg(last = true)]
        command: Vec<String>,
    },
}

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("nothing_survives_the_kill_of_a_replica", nothing_survives_the_kill_of_a_replica),
    ("nothing_survives_the_kill_of_a_supervisor", nothing_survives_the_kill_of_a_supervisor),
    ("nothing_survives_the_kill_of_forebay", nothing_survives_the_kill_of_forebay),
    ("nothing_survives_a_target_that_is_dropped", nothing_survives_a_target_that_is_dropped),
    ("another_replica_survives_the_kill_of_one", another_replica_survives_the_kill_of_one),
    ("a_replica_is_asked_to_stop_and_ends_well", a_replica_is_asked_to_stop_and_ends_well),
    ("a_replica_that_will_not_stop_is_killed", a_replica_that_will_not_stop_is_killed),
    ("a_supervisor_that_hangs_is_killed_on_stop", a_supervisor_that_hangs_is_killed_on_stop),
    ("a_program_that_is_not_there_is_named", a_program_that_is_not_there_is_named),
    ("a_replica_that_exits_is_started_again", a_replica_that_exits_is_started_again),
    ("a_replica_that_was_ready_fails_anew", a_replica_that_was_ready_fails_anew),
    (
        "a_replica_that_hangs_is_ended_with_all_its_processes_and_started_anew",
        a_replica_that_hangs_is_ended_with_all_its_processes_and_started_anew,
    ),
    ("each_replica_has_its_port_and_gpu", each_replica_has_its_port_and_gpu),
    ("more_replicas_than_gpus_wait_for_one", more_replicas_than_gpus_wait_for_one),
    ("ensure_only_ever_adds_what_is_missing", ensure_only_ever_adds_what_is_missing),
    ("shutdown_leaves_nothing_and_starts_nothing", shutdown_leaves_nothing_and_starts_nothing),
    ("a_replica_is_passed_on_as_it_runs", a_replica_is_passed_on_as_it_runs),
    (
        "nothing_survives_the_supervisor_of_one_passed_on",
        nothing_survives_the_supervisor_of_one_passed_on,
    ),
    ("one_that_hangs_is_replaced_by_the_next", one_that_hangs_is_replaced_by_the_next),
    ("one_that_failed_is_started_again_by_the_next", one_that_failed_is_started_again_by_the_next),
    ("ports_and_gpus_go_with_their_replicas", ports_and_gpus_go_with_their_replicas),
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().collect();
    if args.get(1).is_some_and(|role| role == "supervise" || role == "own") {
        return match Role::parse() {
            Role::Supervise(args) => supervisor::run(args),
            Role::Own { logs, command } => own(&logs, command),
        };
    }
    let (exact, list) =
        (args.iter().any(|it| it == "--exact"), args.iter().any(|it| it == "--list"));
    let named: Vec<&String> = args[1..].iter().filter(|it| !it.starts_with('-')).collect();
    let chosen = |name: &str| {
        let matches = |it: &&&String| if exact { name == **it } else { name.contains(it.as_str()) };
        named.is_empty() || named.iter().any(|it| matches(&it))
    };
    let tests = TESTS.iter().filter(|test| chosen(test.0));
    if list {
        tests.for_each(|test| println!("{}: test", test.0));
        return ExitCode::SUCCESS;
    }
    // Most of each test is waiting, so all run at once.
    let failed = thread::scope(|scope| {
        let running: Vec<_> = tests
            .map(|(name, test)| {
                (name, scope.spawn(move || catch_unwind(AssertUnwindSafe(test)).is_ok()))
            })
            .collect();
        running.into_iter().fold(0, |failed, (name, test)| {
            let ok = test.join().unwrap_or(false);
            println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
            failed + usize::from(!ok)
        })
    });
    ExitCode::from(u8::from(failed > 0))
}

/// Forebay's part: one replica, until killed.
fn own(logs: &Path, command: Vec<String>) -> ExitCode {
    block_on(async {
        let settings = settings(logs, command);
        let target = Processes::start(&pool(), &settings, env::current_exe().unwrap()).unwrap();
        target.ensure(1);
        std::future::pending().await
    })
}

fn nothing_survives_the_kill_of_a_replica() {
    a_family_and_its_next_after(|family| Pid::from_raw(child(family)));
}

fn nothing_survives_the_kill_of_a_supervisor() {
    a_family_and_its_next_after(|family| Pid::from_raw(supervisor_of(family)));
}

/// Starts a family, kills one of it, and sees that all are gone and others there instead.
fn a_family_and_its_next_after(victim: impl FnOnce(&BTreeSet<i32>) -> Pid) {
    let case = Case::new(FAMILY);
    block_on(async {
        let target = case.target(|_| {});
        target.ensure(1);
        let family = case.wait_for_family().await;
        let before = one(&target);
        kill(victim(&family), Signal::SIGKILL).unwrap();
        until(GONE_WITHIN, "gone", || case.alive().is_disjoint(&family)).await;
        let next = case.wait_for_family().await;
        assert!(next.is_disjoint(&family));
        let after = status(&target, |it| it.phase == Phase::Running).await;
        assert_eq!(before.id, after.id);
        assert_ne!(before.address, after.address, "a port that was just freed");
        target.shutdown().await;
        assert_eq!(case.alive(), BTreeSet::new());
    });
}

fn nothing_survives_the_kill_of_forebay() {
    let case = Case::new(FAMILY);
    block_on(async {
        let mut owner = tokio::process::Command::new(env::current_exe().unwrap())
            .arg("own")
            .arg(&case.folder)
            .args(["--", "sh", "-c", &case.script])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        // The owner has the token in its command line too.
        until(LONG, "up", || case.alive().len() == FAMILY_SIZE + 1).await;
        owner.kill().await.unwrap();
        until(GONE_WITHIN, "gone", || case.alive().is_empty()).await;
    });
}

fn nothing_survives_a_target_that_is_dropped() {
    let case = Case::new(FAMILY);
    block_on(async {
        let target = case.target(|_| {});
        target.ensure(1);
        case.wait_for_family().await;
        drop(target);
        until(GONE_WITHIN, "gone", || case.alive().is_empty()).await;
    });
}

fn another_replica_survives_the_kill_of_one() {
    let (case, other) = (Case::new(FAMILY), Case::new(FAMILY));
    block_on(async {
        let (target, others) = (case.target(|_| {}), other.target(|_| {}));
        target.ensure(1);
        others.ensure(1);
        let (family, untouched) = (case.wait_for_family().await, other.wait_for_family().await);
        kill(Pid::from_raw(supervisor_of(&family)), Signal::SIGKILL).unwrap();
        until(GONE_WITHIN, "gone", || case.alive().is_disjoint(&family)).await;
        assert_eq!(other.alive(), untouched);
        target.shutdown().await;
        assert_eq!(other.alive(), untouched);
        others.shutdown().await;
        assert_eq!(other.alive(), BTreeSet::new());
    });
}

fn a_replica_is_asked_to_stop_and_ends_well() {
    let case = Case::new("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done");
    block_on(async {
        let target = case.target(|_| {});
        target.ensure(1);
        until(LONG, "up", || case.output(1) == "up\n").await;
        target.stop("pool-1");
        no_replica(&target).await;
        assert_eq!(case.output(1), "up\nbye\n");
        assert_eq!(case.alive(), BTreeSet::new());
    });
}

fn a_replica_that_will_not_stop_is_killed() {
    let case = Case::new("trap '' TERM; echo up; sleep TOKEN; :");
    block_on(async {
        let target = case.target(|it| it.stop_timeout = Duration::from_millis(300));
        target.ensure(1);
        until(LONG, "up", || case.output(1) == "up\n").await;
        let from = Instant::now();
        target.stop("pool-1");
        no_replica(&target).await;
        assert!(from.elapsed() >= Duration::from_millis(300), "killed before its time");
        assert_eq!(case.alive(), BTreeSet::new());
    });
}

fn a_supervisor_that_hangs_is_killed_on_stop() {
    let case = Case::new(FAMILY);
    block_on(async {
        let target = case.target(|it| it.stop_timeout = Duration::from_millis(100));
        target.ensure(1);
        let family = case.wait_for_family().await;
        kill(Pid::from_raw(supervisor_of(&family)), Signal::SIGSTOP).unwrap();
        target.stop("pool-1");
        no_replica(&target).await;
        assert_eq!(case.alive(), BTreeSet::new());
    });
}

fn a_program_that_is_not_there_is_named() {
    let case = Case::new("");
    block_on(async {
        let target = case.target(|it| it.command = vec!["no-such-vllm".into(), "serve".into()]);
        target.ensure(1);
        let failed = status(&target, |it| it.phase == Phase::Failed).await;
        let expected = "could not be started: no-such-vllm: not found, again in 1 s";
        assert_eq!(failed.reason.replace("in 2 s", "in 1 s"), expected);
        assert_eq!(failed.address, None);
        // It waits to be started again, and is dropped without any process.
        target.stop(&failed.id);
        no_replica(&target).await;
    });
}

fn a_replica_that_exits_is_started_again() {
    let case = Case::new("echo start; exit 3");
    block_on(async {
        let target = case.target(|_| {});
        target.ensure(1);
        let failed = status(&target, |it| it.phase == Phase::Failed).await;
        assert!(failed.reason.starts_with("exited with status 3, again in "), "{failed:?}");
        until(LONG, "third start", || case.output(1) == "start\nstart\nstart\n").await;
        assert_eq!(one(&target).id, failed.id);
        target.shutdown().await;
    });
}

fn a_replica_that_was_ready_fails_anew() {
    let case = Case::new("sleep TOKEN; :");
    block_on(async {
        let target = case.target(|_| {});
        target.ensure(1);
        for _ in 0..3 {
            let running = status(&target, |it| it.phase == Phase::Running).await;
            target.ready(&running.id);
            let pid = running.reason.rsplit(' ').next().unwrap().parse().unwrap();
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            let failed = status(&target, |it| it.phase == Phase::Failed).await;
            let reason = failed.reason.replace("in 2 s", "in 1 s");
            assert_eq!(reason, "was killed by SIGKILL, again in 1 s");
        }
        target.shutdown().await;
    });
}

fn a_replica_that_hangs_is_ended_with_all_its_processes_and_started_anew() {
    // Deaf to SIGTERM, and so is what it started; given an hour to stop.
    let case = Case::new("trap '' TERM; echo start; sleep TOKEN & while :; do sleep 1; done");
    block_on(async {
        let target = case.target(|it| it.stop_timeout = Duration::from_secs(3600));
        target.ensure(1);
        until(LONG, "its first start", || case.output(1) == "start\n").await;
        let first = one(&target);
        let hung = |started_ms| {
            let why = "answered nothing for 60 s".to_owned();
            BTreeMap::from([(first.id.clone(), Hung { started_ms, why })])
        };
        target.replace(&hung(first.started_ms - 1));
        target.replace(&hung(first.started_ms));
        let failed = status(&target, |it| it.phase == Phase::Failed).await;
        assert!(failed.reason.starts_with("answered nothing for 60 s"), "{failed:?}");
        assert_eq!(failed.address, None, "nothing is sent there any more");
        until(LONG, "its second start", || case.output(1) == "start\nstart\n").await;
        let second = status(&target, |it| it.phase == Phase::Running).await;
        assert_eq!(second.id, first.id);
        assert_ne!(second.started_ms, first.started_ms);
        // What is said of an earlier start is not meant for this one.
        target.replace(&hung(first.started_ms));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(one(&target).started_ms, second.started_ms);
        target.replace(&BTreeMap::from([(
            second.id.clone(),
            Hung { started_ms: second.started_ms, why: "again".to_owned() },
        )]));
        until(LONG, "its third start", || case.output(1) == "start\nstart\nstart\n").await;
        drop(target);
        until(LONG, "all are gone", || case.alive().is_empty()).await;
    });
}

fn each_replica_has_its_port_and_gpu() {
    let case = Case::new("echo {port} {gpu} $ALSO $CUDA_VISIBLE_DEVICES; sleep TOKEN; :");
    block_on(async {
        let target = case.target(|it| {
            it.gpus = vec!["0".into(), "1".into()];
            it.env.insert("ALSO".into(), "{gpu}/{port}".into());
        });
        target.ensure(2);
        until(LONG, "up", || (1..=2).all(|it| case.output(it).ends_with('\n'))).await;
        let mut seen = BTreeSet::new();
        for (number, status) in (1..).zip(target.replicas().borrow().values()) {
            let port = status.address.unwrap().port();
            let output = case.output(number);
            let gpu = output.split(' ').nth(1).unwrap().to_owned();
            assert_eq!(output, format!("{port} {gpu} {gpu}/{port}\n"));
            seen.insert((port, gpu));
        }
        let gpus: Vec<_> = seen.iter().map(|it| it.1.as_str()).collect();
        assert!(gpus == ["0", "1"] || gpus == ["1", "0"], "{seen:?}");
        target.shutdown().await;
    });
}

fn more_replicas_than_gpus_wait_for_one() {
    let case = Case::new("echo $CUDA_VISIBLE_DEVICES; sleep TOKEN; :");
    block_on(async {
        let target = case.target(|it| it.gpus = vec!["7".into()]);
        target.ensure(2);
        let waiting = status(&target, |it| it.phase == Phase::Failed).await;
        assert!(waiting.reason.starts_with("no GPU of 7 is free, again in "), "{waiting:?}");
        let first = status(&target, |it| it.phase == Phase::Running).await;
        target.stop(&first.id);
        let second = status(&target, |it| it.phase == Phase::Running && it.id != first.id).await;
        assert_eq!(second.id, waiting.id);
        let number = waiting.id.strip_prefix("pool-").unwrap().parse().unwrap();
        until(LONG, "up", || case.output(number) == "7\n").await;
        target.shutdown().await;
    });
}

fn ensure_only_ever_adds_what_is_missing() {
    let case = Case::new("sleep TOKEN; :");
    let ids = |target: &Processes| target.replicas().borrow().keys().cloned().collect::<Vec<_>>();
    block_on(async {
        let target = case.target(|_| {});
        for (count, expected) in [(0, 0), (2, 2), (2, 2), (1, 2), (3, 3)] {
            target.ensure(count);
            assert_eq!(ids(&target).len(), expected);
        }
        assert_eq!(ids(&target), ["pool-1", "pool-2", "pool-3"]);
        // One that stops is no longer counted, whether or not it is gone.
        target.stop("pool-2");
        target.ensure(3);
        assert!(ids(&target).contains(&"pool-4".into()));
        target.shutdown().await;
    });
}

/// All replicas of one target, in the hands of another.
async fn pass_on(from: Processes, to: &Processes) {
    for passed in from.hand_over().await {
        to.adopt(passed).unwrap();
    }
    assert!(from.replicas().borrow().is_empty());
    // What was passed on does not end with it.
    drop(from);
}

fn a_replica_is_passed_on_as_it_runs() {
    let case = Case::new("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done");
    block_on(async {
        let (old, new) = (case.target(|_| {}), case.target(|_| {}));
        old.ensure(1);
        until(LONG, "up", || case.output(1) == "up\n").await;
        let before = status(&old, |it| it.phase == Phase::Running).await;
        old.ready(&before.id);
        pass_on(old, &new).await;
        let after = one(&new);
        assert_eq!((&after.id, after.address), (&before.id, before.address));
        assert_eq!((&after.reason, after.started_ms), (&before.reason, before.started_ms));
        assert!(after.inherited, "it was ready");
        new.ensure(1);
        assert_eq!(new.replicas().borrow().len(), 1);
        new.stop(&after.id);
        no_replica(&new).await;
        assert_eq!(case.output(1), "up\nbye\n");
        assert_eq!(case.alive(), BTreeSet::new());
    });
}

fn nothing_survives_the_supervisor_of_one_passed_on() {
    let case = Case::new(FAMILY);
    block_on(async {
        let (old, new) = (case.target(|_| {}), case.target(|_| {}));
        old.ensure(1);
        let family = case.wait_for_family().await;
        let before = one(&old);
        pass_on(old, &new).await;
        assert_eq!(case.alive(), family);
        kill(Pid::from_raw(supervisor_of(&family)), Signal::SIGKILL).unwrap();
        until(GONE_WITHIN, "gone", || case.alive().is_disjoint(&family)).await;
        let next = case.wait_for_family().await;
        assert!(next.is_disjoint(&family));
        assert_eq!(status(&new, |it| it.phase == Phase::Running).await.id, before.id);
        new.shutdown().await;
        assert_eq!(case.alive(), BTreeSet::new());
    });
}

fn one_that_hangs_is_replaced_by_the_next() {
    let case = Case::new(FAMILY);
    block_on(async {
        let (old, new) = (case.target(|_| {}), case.target(|_| {}));
        old.ensure(1);
        let family = case.wait_for_family().await;
        let started = status(&old, |it| it.phase == Phase::Running).await;
        pass_on(old, &new).await;
        assert_eq!(one(&new).asked_ms, Some(started.started_ms), "its start counts from there");
        let hung = Hung { started_ms: started.started_ms, why: "answered nothing".to_owned() };
        new.replace(&BTreeMap::from([(started.id, hung)]));
        let failed = status(&new, |it| it.phase == Phase::Failed).await;
        assert!(failed.reason.starts_with("answered nothing, "), "{failed:?}");
        until(LONG, "gone", || case.alive().is_disjoint(&family)).await;
        let next = case.wait_for_family().await;
        assert!(next.is_disjoint(&family));
        new.shutdown().await;
        assert_eq!(case.alive(), BTreeSet::new());
    });
}

fn one_that_failed_is_started_again_by_the_next() {
    let case = Case::new("echo start; exit 3");
    block_on(async {
        let (old, new) = (case.target(|_| {}), case.target(|_| {}));
        old.ensure(1);
        let failed = status(&old, |it| it.phase == Phase::Failed).await;
        pass_on(old, &new).await;
        assert_eq!((&one(&new).id, &one(&new).reason), (&failed.id, &failed.reason));
        assert_eq!(one(&new).ended, failed.ended);
        until(LONG, "second start", || case.output(1) == "start\nstart\n").await;
        new.shutdown().await;
    });
}

fn ports_and_gpus_go_with_their_replicas() {
    let case = Case::new("echo $CUDA_VISIBLE_DEVICES; sleep TOKEN; :");
    block_on(async {
        let gpus = |it: &mut config::Processes| it.gpus = vec!["5".into(), "7".into()];
        let (old, new) = (case.target(gpus), case.target(gpus));
        old.ensure(1);
        until(LONG, "up", || case.output(1) == "5\n").await;
        let before = status(&old, |it| it.phase == Phase::Running).await;
        pass_on(old, &new).await;
        new.ensure(2);
        until(LONG, "another", || case.output(2) == "7\n").await;
        new.stop(&before.id);
        until(LONG, "it ends", || new.replicas().borrow().len() == 1).await;
        let other = one(&new);
        assert_ne!(other.address, before.address);
        new.ensure(2);
        until(LONG, "its GPU is leased again", || case.output(3) == "5\n").await;
        new.shutdown().await;
    });
}

fn shutdown_leaves_nothing_and_starts_nothing() {
    let case = Case::new(FAMILY);
    block_on(async {
        let target = case.target(|_| {});
        target.ensure(2);
        until(LONG, "up", || case.alive().len() == 2 * FAMILY_SIZE).await;
        let from = Instant::now();
        target.shutdown().await;
        assert!(from.elapsed() < STOP_TIMEOUT, "SIGTERM was not heard");
        assert_eq!(case.alive(), BTreeSet::new());
        assert!(target.replicas().borrow().is_empty());
        target.ensure(1);
        assert!(target.replicas().borrow().is_empty());
    });
}

/// A script with a token of its own, by which its processes are found, and a folder.
struct Case {
    token: String,
    script: String,
    folder: PathBuf,
}

impl Case {
    fn new(script: &str) -> Self {
        // As a duration it is a year: so it can be an argument of sleep.
        let token = format!("31536000.{}", rand::random::<u64>());
        let folder = env::temp_dir().join(format!("forebay-supervisor-{token}"));
        Self { script: script.replace("TOKEN", &token), token, folder }
    }

    fn target(&self, change: impl FnOnce(&mut config::Processes)) -> Processes {
        let script = format!("{} # {}", self.script, self.token);
        let mut settings = settings(&self.folder, vec!["sh".into(), "-c".into(), script]);
        change(&mut settings);
        Processes::start(&pool(), &settings, env::current_exe().unwrap()).unwrap()
    }

    /// Processes with the token in their command line. The dead have none.
    fn alive(&self) -> BTreeSet<i32> {
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| command_line(*pid).contains(&self.token))
            .collect()
    }

    async fn wait_for_family(&self) -> BTreeSet<i32> {
        let up = || {
            let family = self.alive();
            family.len() == FAMILY_SIZE && family.iter().all(|pid| settled(*pid))
        };
        until(LONG, "up", up).await;
        self.alive()
    }

    fn output(&self, number: u32) -> String {
        fs::read_to_string(self.folder.join(format!("pool-{number}.log"))).unwrap_or_default()
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn pool() -> config::Pool {
    serde_json::from_str(r#"{"name":"pool"}"#).unwrap()
}

fn settings(logs: &Path, command: Vec<String>) -> config::Processes {
    let settings = serde_json::json!({ "command": command, "logDir": logs });
    serde_json::from_value(settings).unwrap()
}

fn one(target: &Processes) -> ReplicaStatus {
    let replicas = target.replicas();
    let replicas = replicas.borrow();
    assert_eq!(replicas.len(), 1);
    replicas.values().next().unwrap().clone()
}

/// Waits for a replica of which `is` holds.
async fn status(target: &Processes, is: impl Fn(&ReplicaStatus) -> bool) -> ReplicaStatus {
    let mut replicas = target.replicas();
    let found = timeout(LONG, replicas.wait_for(|all| all.values().any(&is))).await;
    let found = found.expect("a replica to get there").unwrap();
    found.values().find(|it| is(it)).unwrap().clone()
}

async fn no_replica(target: &Processes) {
    let mut replicas = target.replicas();
    timeout(LONG, replicas.wait_for(|all| all.is_empty())).await.expect("to stop").unwrap();
}

async fn until(limit: Duration, what: &str, condition: impl Fn() -> bool) {
    let from = Instant::now();
    while !condition() {
        assert!(from.elapsed() < limit, "not {what} within {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn command_line(pid: i32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).into()
}

/// Whether the process became what it is to be: not a shell's copy on the way to something else.
fn settled(pid: i32) -> bool {
    !command_line(pid).starts_with("setsid") && !command_line(pid).starts_with("env")
}

fn supervisor_of(family: &BTreeSet<i32>) -> i32 {
    let is = |pid: &&i32| command_line(**pid).split('\0').nth(1) == Some("supervise");
    *family.iter().find(is).unwrap()
}

/// The supervisor's own child.
fn child(family: &BTreeSet<i32>) -> i32 {
    let supervisor = supervisor_of(family);
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|it| it.split(' ').nth(1)?.parse().ok())
    };
    let line = |pid: i32| command_line(pid);
    *family
        .iter()
        .find(|pid| parent(**pid) == Some(supervisor) && line(**pid).contains("wait; :"))
        .unwrap()
}
