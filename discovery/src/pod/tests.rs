use super::*;
use serde_json::{Value, json};

fn wire(status: Value) -> Wire {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
        "spec": {"containers": [{"name": "vllm", "image": "vllm"}]}, "status": status,
    });
    serde_json::from_value(pod).expect("a pod")
}

fn condition(kind: &str, status: &str, at: &str) -> Value {
    json!({"type": kind, "status": status, "reason": "R", "message": "M", "lastTransitionTime": at})
}

const SCHEDULED: &str = "2026-01-01T00:00:00Z";

/// Scheduled, with one container in this state.
fn with(state: &Value, ready: Option<(&str, &str)>) -> Value {
    let mut conditions = vec![condition("PodScheduled", "True", SCHEDULED)];
    conditions.extend(ready.map(|(status, at)| condition("Ready", status, at)));
    json!({
        "phase": "Running", "podIP": "10.0.0.7", "conditions": conditions,
        "containerStatuses": [{"name": "vllm", "restartCount": 0, "state": state}],
    })
}

fn running() -> Value {
    json!({"running": {"startedAt": "2026-01-01T00:01:00Z"}})
}

fn read(status: Value) -> Pod {
    Pod::read(&wire(status), None)
}

#[test]
fn each_phase_of_a_start_is_reported_with_its_reason() {
    let waiting = |reason: &str| json!({"waiting": {"reason": reason, "message": "at length"}});
    let unscheduled = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"},
    ]});
    let mut nominated = unscheduled.clone();
    nominated["nominatedNodeName"] = json!("gpu-1");
    let scheduled = json!({"phase": "Pending",
        "conditions": [condition("PodScheduled", "True", SCHEDULED)]});
    for (case, status, phase, reason) in [
        ("just made", json!({"phase": "Pending"}), PodPhase::Unscheduled, ""),
        ("no node", unscheduled, PodPhase::Unscheduled, "Unschedulable"),
        ("preempts", nominated, PodPhase::Unscheduled, "Nominated"),
        ("on a node", scheduled, PodPhase::Pulling, ""),
        ("creating", with(&waiting("ContainerCreating"), None), PodPhase::Pulling, ""),
        (
            "pull fails",
            with(&waiting("ImagePullBackOff"), None),
            PodPhase::Failed,
            "ImagePullBackOff",
        ),
        ("crashes", with(&waiting("CrashLoopBackOff"), None), PodPhase::Failed, "CrashLoopBackOff"),
        (
            "died",
            with(&json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), None),
            PodPhase::Failed,
            "OOMKilled",
        ),
        ("runs", with(&running(), Some(("False", SCHEDULED))), PodPhase::Starting, ""),
        ("ready", with(&running(), Some(("True", "2026-01-01T00:02:00Z"))), PodPhase::Healthy, ""),
        ("evicted", json!({"phase": "Failed", "reason": "Evicted"}), PodPhase::Failed, "Evicted"),
        ("its node is lost", json!({"phase": "Unknown"}), PodPhase::Failed, "Unknown"),
    ] {
        let pod = read(status);
        assert_eq!((pod.phase, pod.reason.as_str()), (phase, reason), "{case}");
        assert!(!pod.withdrawn, "{case}");
    }
}

#[test]
fn a_deleted_pod_drains_from_that_moment() {
    let mut pod = wire(with(&running(), Some(("True", "2026-01-01T00:02:00Z"))));
    pod.metadata.deletion_timestamp = Some(Time(SCHEDULED.parse().expect("a time")));
    let pod = Pod::read(&pod, None);
    assert_eq!(pod.phase, PodPhase::Draining);
    assert!(pod.ip.is_some(), "its streams go on");
}

#[test]
fn a_pod_that_was_ready_differs_from_one_that_is_not_ready_yet() {
    let later = "2026-01-01T00:09:00Z";
    let turned = read(with(&running(), Some(("False", later))));
    assert!(turned.withdrawn, "its condition turned after the container had started");
    assert_eq!(turned.reason, "R");
    let starting = read(with(&running(), Some(("False", SCHEDULED))));
    assert!(!starting.withdrawn, "never ready since its container started: not waited for");

    // Within one second the times are equal; the state seen before decides.
    let same = "2026-01-01T00:01:00Z";
    let ready = read(with(&running(), Some(("True", same))));
    let pod = wire(with(&running(), Some(("False", same))));
    assert!(!Pod::read(&pod, None).withdrawn);
    let withdrawn = Pod::read(&pod, Some(&ready));
    assert!(withdrawn.withdrawn);
    assert!(Pod::read(&pod, Some(&withdrawn)).withdrawn, "and stays so");
    // A container that starts anew is one not ready yet.
    let mut again =
        with(&json!({"running": {"startedAt": "2026-01-01T00:10:00Z"}}), Some(("False", later)));
    again["containerStatuses"][0]["restartCount"] = 1.into();
    assert!(!Pod::read(&wire(again), Some(&withdrawn)).withdrawn);
}

#[test]
fn the_last_end_of_a_container_is_reported_if_it_shows_whether_it_was_ordered() {
    let ended = |code: i32, reason: &str, at: &str| json!({"terminated": {"exitCode": code, "reason": reason, "finishedAt": at}});
    let (early, late) = ("2026-01-01T00:05:00Z", "2026-01-01T00:06:00Z");
    for (case, code, reason, how) in [
        ("SIGTERM", 143, "Error", Some(ProcessEnd::Stopped)),
        ("SIGINT", 130, "Error", Some(ProcessEnd::Stopped)),
        ("on its own, for whatever reason", 0, "Completed", None),
        ("SIGSEGV", 139, "Error", Some(ProcessEnd::Crashed)),
        ("an exception", 1, "Error", Some(ProcessEnd::Crashed)),
        ("out of memory", 137, "OOMKilled", Some(ProcessEnd::Crashed)),
        ("a child out of memory", 0, "OOMKilled", Some(ProcessEnd::Crashed)),
    ] {
        let pod = read(with(&ended(code, reason, early), None));
        assert_eq!(pod.last_end.map(|end| end.how), how, "{case}");
        let mut again = with(&running(), None);
        again["containerStatuses"][0]["lastState"] = ended(code, reason, early);
        assert_eq!(read(again).last_end, pod.last_end, "{case}: started again");
    }
    let mut twice = with(&ended(1, "Error", late), None);
    twice["containerStatuses"][0]["lastState"] = ended(143, "Error", early);
    assert_eq!(read(twice).last_end.map(|end| end.how), Some(ProcessEnd::Crashed), "the last one");
    assert_eq!(read(with(&running(), None)).last_end, None);
}

#[test]
fn a_pod_that_has_ended_has_no_address_any_more() {
    let pod = read(json!({"phase": "Failed", "podIP": "10.0.0.7"}));
    assert_eq!(pod.ip, None, "another may have it by now");
}

#[test]
fn a_replicas_number_is_its_workloads() {
    for label in ORDINALS {
        let mut pod = wire(json!({}));
        pod.metadata.labels = Some([(label.to_owned(), "3".to_owned())].into());
        assert_eq!(Pod::read(&pod, None).ordinal, Some(3), "{label}");
    }
}

#[test]
fn a_deletion_cost_is_read_where_it_is_a_number() {
    let status = with(&running(), None);
    let costing = |cost: &str| {
        let mut pod = wire(status.clone());
        pod.metadata.annotations = Some([(DELETION_COST.to_owned(), cost.to_owned())].into());
        Pod::read(&pod, None).deletion_cost
    };
    assert_eq!(costing("-1000000"), Some(-1_000_000));
    assert_eq!(costing("cheap"), None);
    assert_eq!(read(status.clone()).deletion_cost, None);
}
