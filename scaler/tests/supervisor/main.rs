//! Local replicas from outside: real processes, killed in every way.
//!
//! This executable contains the tests, the supervisor (`supervise`) and a stand-in for Forebay (`own`),
//! so it has its own `main`. It takes names, or parts of them, as `cargo test` passes them.
#![expect(clippy::unwrap_used, reason = "nothing but tests, which lints do not see here")]

mod passing;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use std::{env, thread};

use clap::Parser;
use forebay_scaler::act::targets::processes::{Hung, Processes, ReplicaStatus};
use forebay_scaler::decide::Condition;
use forebay_scaler::supervisor;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use passing::*;
use support::*;

/// Limit for the end of processes after a kill.
pub(crate) const GONE_WITHIN: Duration = Duration::from_secs(5);

/// The default time from SIGTERM to SIGKILL.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// More than any step takes, even on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Forks children: some in sessions of their own, orphans, some that ignore SIGTERM, and one without
/// an environment.
pub(crate) const FAMILY: &str = "
    sleep TOKEN &
    setsid sleep TOKEN &
    (setsid sh -c 'trap \"\" TERM; sleep TOKEN & sleep TOKEN; :' &)
    (env -i setsid sleep TOKEN &)
    sleep TOKEN & wait; :";

/// Processes of a family, with its shells and the supervisor.
pub(crate) const FAMILY_SIZE: usize = 9;

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
    ("a_replica_gets_sigterm_and_ends_cleanly", a_replica_gets_sigterm_and_ends_cleanly),
    ("a_replica_that_will_not_stop_is_killed", a_replica_that_will_not_stop_is_killed),
    ("a_supervisor_that_hangs_is_killed_on_stop", a_supervisor_that_hangs_is_killed_on_stop),
    ("a_program_that_does_not_exist_is_named", a_program_that_does_not_exist_is_named),
    ("a_replica_that_exits_is_started_again", a_replica_that_exits_is_started_again),
    ("failures_count_anew_after_a_ready_replica", failures_count_anew_after_a_ready_replica),
    (
        "a_replica_that_hangs_is_ended_with_all_its_processes_and_started_anew",
        a_replica_that_hangs_is_ended_with_all_its_processes_and_started_anew,
    ),
    ("each_replica_has_its_port_and_gpu", each_replica_has_its_port_and_gpu),
    ("more_replicas_than_gpus_wait_for_one", more_replicas_than_gpus_wait_for_one),
    ("ensure_only_ever_adds_what_is_missing", ensure_only_ever_adds_what_is_missing),
    ("shutdown_leaves_nothing_and_starts_nothing", shutdown_leaves_nothing_and_starts_nothing),
    ("a_replica_keeps_running_when_passed_on", a_replica_keeps_running_when_passed_on),
    (
        "nothing_survives_the_supervisor_of_a_passed_replica",
        nothing_survives_the_supervisor_of_a_passed_replica,
    ),
    ("a_passed_replica_that_hangs_is_replaced", a_passed_replica_that_hangs_is_replaced),
    (
        "a_passed_replica_that_failed_is_started_again",
        a_passed_replica_that_failed_is_started_again,
    ),
    ("ports_and_gpus_pass_with_their_replicas", ports_and_gpus_pass_with_their_replicas),
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().collect();
    if args.get(1).is_some_and(|role| role == "supervise" || role == "own") {
        return match Role::parse() {
            Role::Supervise(args) => supervisor::run(args),
            Role::Own { logs, command } => own(&logs, command),
        };
    }
    let exact = args.iter().any(|arg| arg == "--exact");
    let list = args.iter().any(|arg| arg == "--list");
    let named: Vec<&String> = args[1..].iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen = |name: &str| {
        let matches = |arg: &String| if exact { name == *arg } else { name.contains(arg.as_str()) };
        named.is_empty() || named.iter().any(|arg| matches(arg))
    };
    let tests = TESTS.iter().filter(|test| chosen(test.0));
    if list {
        tests.for_each(|test| println!("{}: test", test.0));
        return ExitCode::SUCCESS;
    }
    // Most of a test's time is waiting, so all run at once.
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

/// The stand-in for Forebay: one replica, until killed.
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

/// Starts a family, kills one member, and checks that all are gone and a new family runs.
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
        let after = status(&target, |replica| replica.condition == Condition::Starting).await;
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

fn a_replica_gets_sigterm_and_ends_cleanly() {
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
        let target = case.target(|settings| settings.stop_timeout = Duration::from_millis(300));
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
        let target = case.target(|settings| settings.stop_timeout = Duration::from_millis(100));
        target.ensure(1);
        let family = case.wait_for_family().await;
        kill(Pid::from_raw(supervisor_of(&family)), Signal::SIGSTOP).unwrap();
        target.stop("pool-1");
        no_replica(&target).await;
        assert_eq!(case.alive(), BTreeSet::new());
    });
}

fn a_program_that_does_not_exist_is_named() {
    let case = Case::new("");
    block_on(async {
        let command = vec!["no-such-vllm".into(), "serve".into()];
        let target = case.target(|settings| settings.command = command);
        target.ensure(1);
        let failed = status(&target, |replica| replica.condition == Condition::Failed).await;
        let expected = "could not be started: no-such-vllm: not found, again in 1 s";
        assert_eq!(failed.reason.replace("in 2 s", "in 1 s"), expected);
        assert_eq!(failed.address, None);
        // While it waits for its next start it is dropped without any process.
        target.stop(&failed.id);
        no_replica(&target).await;
    });
}

fn a_replica_that_exits_is_started_again() {
    let case = Case::new("echo start; exit 3");
    block_on(async {
        let target = case.target(|_| {});
        target.ensure(1);
        let failed = status(&target, |replica| replica.condition == Condition::Failed).await;
        assert!(failed.reason.starts_with("exited with status 3, again in "), "{failed:?}");
        until(LONG, "third start", || case.output(1) == "start\nstart\nstart\n").await;
        assert_eq!(one(&target).id, failed.id);
        target.shutdown().await;
    });
}

fn failures_count_anew_after_a_ready_replica() {
    let case = Case::new("sleep TOKEN; :");
    block_on(async {
        let target = case.target(|_| {});
        target.ensure(1);
        for _ in 0..3 {
            let running = status(&target, |replica| replica.condition == Condition::Starting).await;
            target.ready(&running.id);
            let pid = running.reason.rsplit(' ').next().unwrap().parse().unwrap();
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            let failed = status(&target, |replica| replica.condition == Condition::Failed).await;
            let reason = failed.reason.replace("in 2 s", "in 1 s");
            assert_eq!(reason, "was killed by SIGKILL, again in 1 s");
        }
        target.shutdown().await;
    });
}

fn a_replica_that_hangs_is_ended_with_all_its_processes_and_started_anew() {
    // It and its child ignore SIGTERM, and it has an hour to stop.
    let case = Case::new("trap '' TERM; echo start; sleep TOKEN & while :; do sleep 1; done");
    block_on(async {
        let target = case.target(|settings| settings.stop_timeout = Duration::from_secs(3600));
        target.ensure(1);
        until(LONG, "its first start", || case.output(1) == "start\n").await;
        let first = one(&target);
        let hung = |started_at| {
            let why = "answered nothing for 60 s".to_owned();
            BTreeMap::from([(first.id.clone(), Hung { started_at, why })])
        };
        target.replace(&hung(None));
        target.replace(&hung(first.started_at));
        let failed = status(&target, |replica| replica.condition == Condition::Failed).await;
        assert!(failed.reason.starts_with("answered nothing for 60 s"), "{failed:?}");
        assert_eq!(failed.address, None, "nothing more is sent there");
        until(LONG, "its second start", || case.output(1) == "start\nstart\n").await;
        let second = status(&target, |replica| replica.condition == Condition::Starting).await;
        assert_eq!(second.id, first.id);
        assert_ne!(second.started_at, first.started_at);
        // An order for an earlier start does not affect this one.
        target.replace(&hung(first.started_at));
        all_tasks_have_run().await;
        let unaffected = one(&target);
        assert_eq!(
            (unaffected.condition, unaffected.started_at),
            (second.condition, second.started_at)
        );
        target.replace(&BTreeMap::from([(
            second.id.clone(),
            Hung { started_at: second.started_at, why: "again".to_owned() },
        )]));
        until(LONG, "its third start", || case.output(1) == "start\nstart\nstart\n").await;
        drop(target);
        until(LONG, "all are gone", || case.alive().is_empty()).await;
    });
}

fn each_replica_has_its_port_and_gpu() {
    let case = Case::new("echo {port} {gpu} $ALSO $CUDA_VISIBLE_DEVICES; sleep TOKEN; :");
    block_on(async {
        let target = case.target(|settings| {
            settings.gpus = vec!["0".into(), "1".into()];
            settings.env.insert("ALSO".into(), "{gpu}/{port}".into());
        });
        target.ensure(2);
        until(LONG, "up", || (1..=2).all(|number| case.output(number).ends_with('\n'))).await;
        let mut seen = BTreeSet::new();
        for (number, status) in (1..).zip(target.replicas().borrow().values()) {
            let port = status.address.unwrap().port();
            let output = case.output(number);
            let gpu = output.split(' ').nth(1).unwrap().to_owned();
            assert_eq!(output, format!("{port} {gpu} {gpu}/{port}\n"));
            seen.insert((port, gpu));
        }
        let gpus: Vec<_> = seen.iter().map(|(_, gpu)| gpu.as_str()).collect();
        assert!(gpus == ["0", "1"] || gpus == ["1", "0"], "{seen:?}");
        target.shutdown().await;
    });
}

fn more_replicas_than_gpus_wait_for_one() {
    let case = Case::new("echo $CUDA_VISIBLE_DEVICES; sleep TOKEN; :");
    block_on(async {
        let target = case.target(|settings| settings.gpus = vec!["7".into()]);
        target.ensure(2);
        let waiting = status(&target, |replica| replica.condition == Condition::Failed).await;
        assert!(
            waiting.reason.starts_with("could not be started: no GPU of 7 is free, again in "),
            "{waiting:?}"
        );
        let first = status(&target, |replica| replica.condition == Condition::Starting).await;
        target.stop(&first.id);
        let is_second = |replica: &ReplicaStatus| {
            replica.condition == Condition::Starting && replica.id != first.id
        };
        let second = status(&target, is_second).await;
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
        // A replica that stops no longer counts, even before it is gone.
        target.stop("pool-2");
        target.ensure(3);
        assert!(ids(&target).contains(&"pool-4".into()));
        target.shutdown().await;
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
        assert!(from.elapsed() < STOP_TIMEOUT, "SIGTERM had no effect");
        assert_eq!(case.alive(), BTreeSet::new());
        assert!(target.replicas().borrow().is_empty());
        target.ensure(1);
        assert!(target.replicas().borrow().is_empty());
    });
}
