//! Replicas that pass from one target to another, as between two processes.

use std::collections::{BTreeMap, BTreeSet};

use forebay_config as config;
use forebay_scaler::act::targets::processes::{Hung, Processes};
use forebay_scaler::decide::Condition;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::*;
use crate::{FAMILY, GONE_WITHIN, LONG};

/// Passes all replicas of one target to another.
async fn pass_on(from: Processes, to: &Processes) {
    for passed in from.hand_over().await {
        to.adopt(passed).unwrap();
    }
    assert!(from.replicas().borrow().is_empty());
    // A passed replica does not end with its old target.
    drop(from);
}

pub(crate) fn a_replica_keeps_running_when_passed_on() {
    let case = Case::new("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done");
    block_on(async {
        let (old, new) = (case.target(|_| {}), case.target(|_| {}));
        old.ensure(1);
        until(LONG, "up", || case.output(1) == "up\n").await;
        let before = status(&old, |replica| replica.condition == Condition::Starting).await;
        old.ready(&before.id);
        pass_on(old, &new).await;
        let after = one(&new);
        assert_eq!((&after.id, after.address), (&before.id, before.address));
        assert_eq!((&after.reason, after.started_at), (&before.reason, before.started_at));
        assert!(after.inherited, "it was ready");
        new.ensure(1);
        assert_eq!(new.replicas().borrow().len(), 1);
        new.stop(&after.id);
        no_replica(&new).await;
        assert_eq!(case.output(1), "up\nbye\n");
        assert_eq!(case.alive(), BTreeSet::new());
    });
}

pub(crate) fn nothing_survives_the_supervisor_of_a_passed_replica() {
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
        let running = status(&new, |replica| replica.condition == Condition::Starting).await;
        assert_eq!(running.id, before.id);
        new.shutdown().await;
        assert_eq!(case.alive(), BTreeSet::new());
    });
}

pub(crate) fn a_passed_replica_that_hangs_is_replaced() {
    let case = Case::new(FAMILY);
    block_on(async {
        let (old, new) = (case.target(|_| {}), case.target(|_| {}));
        old.ensure(1);
        let family = case.wait_for_family().await;
        let started = status(&old, |replica| replica.condition == Condition::Starting).await;
        pass_on(old, &new).await;
        let requested_at = one(&new).requested_at;
        assert_eq!(requested_at, started.started_at, "the time of its start is kept");
        let hung = Hung { started_at: started.started_at, why: "answered nothing".to_owned() };
        new.replace(&BTreeMap::from([(started.id, hung)]));
        let failed = status(&new, |replica| replica.condition == Condition::Failed).await;
        assert!(failed.reason.starts_with("answered nothing, "), "{failed:?}");
        until(LONG, "gone", || case.alive().is_disjoint(&family)).await;
        let next = case.wait_for_family().await;
        assert!(next.is_disjoint(&family));
        new.shutdown().await;
        assert_eq!(case.alive(), BTreeSet::new());
    });
}

pub(crate) fn a_passed_replica_that_failed_is_started_again() {
    let case = Case::new("echo start; exit 3");
    block_on(async {
        let (old, new) = (case.target(|_| {}), case.target(|_| {}));
        old.ensure(1);
        let failed = status(&old, |replica| replica.condition == Condition::Failed).await;
        pass_on(old, &new).await;
        assert_eq!((&one(&new).id, &one(&new).reason), (&failed.id, &failed.reason));
        assert_eq!(one(&new).ended, failed.ended);
        until(LONG, "second start", || case.output(1) == "start\nstart\n").await;
        new.shutdown().await;
    });
}

pub(crate) fn ports_and_gpus_pass_with_their_replicas() {
    let case = Case::new("echo $CUDA_VISIBLE_DEVICES; sleep TOKEN; :");
    block_on(async {
        let gpus = |settings: &mut config::Processes| settings.gpus = vec!["5".into(), "7".into()];
        let (old, new) = (case.target(gpus), case.target(gpus));
        old.ensure(1);
        until(LONG, "up", || case.output(1) == "5\n").await;
        let before = status(&old, |replica| replica.condition == Condition::Starting).await;
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
