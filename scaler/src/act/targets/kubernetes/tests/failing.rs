//! Pods that will not start, and what the worker makes of them.

use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::act::targets::StartFailure;

const EVENTS: &str = "/api/v1/namespaces/models/events";
const NEW_EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/models/events";

/// A pod that fits on no node.
fn unscheduled(api: &FakeApi, name: &str) {
    api.put(
        &format!("{PODS}/{name}"),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "uid": format!("uid-{name}")}, "spec": {"containers": []},
            "status": {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                 "message": "0/3 nodes are available"},
            ]},
        }),
    );
}

fn event(api: &FakeApi, name: &str, reason: &str) {
    api.put(
        &format!("{EVENTS}/{name}"),
        json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "models"},
            "involvedObject": {"kind": "Pod", "name": "a", "uid": "uid-a"},
            "reason": reason, "lastTimestamp": Timestamp::now().to_string(),
        }),
    );
}

fn failure(target: &Kubernetes) -> Option<StartFailure> {
    target.statuses()?.get("a")?.start_failure.clone()
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fits_on_no_node_fails_unless_a_node_is_being_added() {
    let api = api(1, &json!({}));
    unscheduled(&api, "a");
    let target = start(&api);
    eventually("it is seen", || target.statuses().is_some_and(|all| all.contains_key("a"))).await;
    sleep(Duration::from_secs(25)).await;
    assert_eq!(failure(&target), None, "an autoscaler may notice it yet");
    eventually("it fails", || failure(&target).is_some()).await;
    let failed = failure(&target).expect("seen above");
    assert_eq!(failed.reason, "has no node (Unschedulable), and none is being added");
    assert_eq!(failed.detail, "0/3 nodes are available");
    let asked = api.calls().into_iter().find(|call| call.path == EVENTS).expect("events are read");
    assert!(asked.query.contains("involvedObject.uid%3Duid-a"), "{}", asked.query);

    event(&api, "a.1", "TriggeredScaleUp");
    eventually("a node is being added", || failure(&target).is_none()).await;
    event(&api, "a.2", "NotTriggerScaleUp");
    eventually("it is not, after all", || failure(&target).is_some()).await;
    pod(&api, "a", None);
    eventually("it has found a node", || failure(&target).is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_a_node_is_not_given_up_while_its_events_cannot_be_read() {
    let api = api(1, &json!({}));
    unscheduled(&api, "a");
    api.judge(|call| (call.path == EVENTS).then_some(Fault::Status(403)));
    let target = start(&api);
    eventually("its events are asked for", || api.calls().iter().any(|call| call.path == EVENTS))
        .await;
    sleep(LONG).await;
    assert_eq!(failure(&target), None);
}

#[tokio::test(start_paused = true)]
async fn each_failure_of_the_starts_is_one_event_on_the_workload() {
    let api = api(1, &json!({}));
    let target = start(&api);
    let written = || -> Vec<String> {
        let events = api.under(NEW_EVENTS);
        let failures = events.values().filter(|event| event["reason"] == "StartFailed");
        failures.map(|event| event["note"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let fails = |sentence: Option<&str>| {
        target.starts_fail(sentence);
        target.ensure(1);
    };
    fails(Some("no replica can be started"));
    eventually("it is written", || written() == ["no replica can be started"]).await;
    fails(Some("no replica can be started"));
    fails(None);
    sleep(LONG).await;
    assert_eq!(written(), ["no replica can be started"], "once");
    fails(Some("again"));
    eventually("a new one is", || written().len() == 2).await;
}
