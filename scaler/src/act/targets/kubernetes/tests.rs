//! The worker against an API server in memory, on a paused clock.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::*;
use crate::decide::Condition;
use crate::fake_api::{Call, FakeApi, Fault};

mod failing;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/models/deployments";
const LLAMA: &str = "/apis/apps/v1/namespaces/models/deployments/llama";
const SCALE: &str = "/apis/apps/v1/namespaces/models/deployments/llama/scale";
const PODS: &str = "/api/v1/namespaces/models/pods";
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Longer than any retry in these tests.
const LONG: Duration = Duration::from_secs(120);

fn api(replicas: u32, annotations: &Value) -> FakeApi {
    let api = FakeApi::default();
    let resource = |name: &str| {
        json!({"name": name, "singularName": "", "namespaced": true, "kind": "Deployment",
               "verbs": ["get", "list", "patch", "watch"]})
    };
    api.put(
        "/apis/apps/v1",
        json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "apps/v1",
            "resources": [resource("deployments"), resource("deployments/scale")],
        }),
    );
    api.put(
        LLAMA,
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "llama", "generation": 1, "annotations": annotations},
        }),
    );
    api.put(SCALE, json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "llama"},
        "spec": {"replicas": replicas}, "status": {"replicas": replicas, "selector": "app=llama"},
    }));
    api
}

fn pod(api: &FakeApi, name: &str, cost: Option<&str>) {
    let annotations = cost.map(|cost| json!({COST: cost})).unwrap_or_default();
    let condition = |kind| json!({"type": kind, "status": "True"});
    api.put(&format!("{PODS}/{name}"), json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations}, "spec": {"containers": []},
        "status": {
            "phase": "Running", "podIP": "10.0.0.1",
            "conditions": [condition("PodScheduled"), condition("Ready")],
            "containerStatuses": [{"name": "vllm", "image": "", "imageID": "", "ready": true,
                "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}],
        },
    }));
}

fn cost(api: &FakeApi, name: &str) -> Option<String> {
    let pod = api.get(&format!("{PODS}/{name}")).expect("there");
    pod["metadata"]["annotations"][COST].as_str().map(str::to_owned)
}

fn spec(api: &FakeApi) -> u64 {
    api.get(SCALE).expect("there")["spec"]["replicas"].as_u64().expect("a number")
}

fn start(api: &FakeApi) -> Kubernetes {
    let pool = config::Pool::named("llama");
    let settings: config::Kubernetes =
        serde_json::from_value(json!({"name": "llama"})).expect("settings");
    Kubernetes::start(&pool, &settings, Some(&api.cluster())).expect("a cluster")
}

async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < until, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn running(target: &Kubernetes) -> usize {
    let serving = |all: Replicas| all.values().filter(|status| status.address.is_some()).count();
    target.statuses().map_or(0, serving)
}

fn marks(call: &Call) -> bool {
    call.method == http::Method::PATCH && call.path.starts_with(PODS)
}

#[tokio::test(start_paused = true)]
async fn nothing_is_scaled_down_before_the_replicas_to_stop_are_marked() {
    let api = api(2, &json!({}));
    pod(&api, "a", None);
    pod(&api, "b", None);
    let target = start(&api);
    eventually("both pods are seen", || running(&target) == 2).await;
    api.judge(|call| marks(call).then_some(Fault::Status(403)));
    target.stop("b");
    target.ensure(1);
    sleep(LONG).await;
    assert_eq!(spec(&api), 2, "the controller would take any of them");
    let trouble = target.trouble().expect("reported");
    assert!(trouble.contains("resources: [pods], verbs: [patch]"), "{trouble}");

    api.calls();
    api.judge(|_| None);
    eventually("scaled down", || spec(&api) == 1).await;
    assert_eq!((cost(&api, "a"), cost(&api, "b").as_deref()), (None, Some("-1000000")));
    let calls = api.calls();
    let at = |test: &dyn Fn(&Call) -> bool| calls.iter().position(test).expect("called");
    let written = at(&|call| call.method == http::Method::PATCH && call.path == SCALE);
    assert!(at(&marks) < written);
    assert_eq!(target.trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn a_drained_pod_whose_place_another_took_is_spared_and_loses_its_mark() {
    let api = api(2, &json!({}));
    pod(&api, "a", None);
    pod(&api, "b", None);
    let target = start(&api);
    eventually("both pods are seen", || running(&target) == 2).await;
    target.stop("b");
    target.ensure(1);
    eventually("scaled down", || spec(&api) == 1).await;
    sleep(LONG).await;
    let spared = |name: &str| target.statuses().is_some_and(|all| all[name].spared);
    assert!(!spared("b"), "the controller has not acted yet");
    assert!(cost(&api, "b").is_some());

    api.delete(&format!("{PODS}/a"));
    eventually("it is spared", || spared("b")).await;
    let all = target.statuses().expect("known");
    assert_eq!(all.len(), 1, "no other replica is expected: {all:?}");
    assert!(target.recall("b"));
    target.ensure(1);
    eventually("its mark is gone", || cost(&api, "b").is_none()).await;
    assert!(!spared("b"), "it is like any other replica");
    assert_eq!(spec(&api), 1);
}

#[tokio::test(start_paused = true)]
async fn marks_of_an_earlier_leader_are_removed_by_the_one_that_leads() {
    let api = api(2, &json!({}));
    pod(&api, "a", Some("-1000000"));
    pod(&api, "b", Some("5"));
    let target = start(&api);
    eventually("both pods are seen", || running(&target) == 2).await;
    sleep(LONG).await;
    assert!(cost(&api, "a").is_some(), "a scaler that does not lead writes nothing");
    target.ensure(2);
    eventually("the mark is gone", || cost(&api, "a").is_none()).await;
    assert_eq!(cost(&api, "b").as_deref(), Some("5"), "an operator set that one");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_wanted_again_while_it_is_marked_is_not_scaled_away() {
    let api = api(2, &json!({}));
    pod(&api, "a", None);
    pod(&api, "b", None);
    let target = Arc::new(start(&api));
    eventually("both pods are seen", || running(&target) == 2).await;
    api.calls();
    let again = Arc::clone(&target);
    api.judge(move |call| {
        if marks(call) && again.recall("b") {
            again.ensure(2);
        }
        None
    });
    target.stop("b");
    target.ensure(1);
    sleep(LONG).await;
    let calls = api.calls();
    assert!(calls.iter().any(marks), "marking had begun");
    let written = |call: &&Call| call.method == http::Method::PATCH && call.path == SCALE;
    assert_eq!(calls.iter().filter(written).count(), 0);
    assert_eq!((spec(&api), cost(&api, "b")), (2, None));
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_another_client_removed_is_set_anew_before_a_scale_down() {
    let api = api(2, &json!({}));
    for name in ["a", "b", "rollout"] {
        pod(&api, name, (name == "b").then_some("-1000000"));
    }
    let target = start(&api);
    eventually("all pods are seen", || running(&target) == 3).await;
    pod(&api, "b", None);
    sleep(LONG).await;
    target.stop("b");
    target.ensure(1);
    eventually("scaled down", || spec(&api) == 1).await;
    assert_eq!(cost(&api, "b").as_deref(), Some("-1000000"));
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_could_not_be_removed_is_no_trouble_once_it_is_gone() {
    let api = api(2, &json!({}));
    pod(&api, "a", Some("-1000000"));
    pod(&api, "b", None);
    let target = start(&api);
    eventually("both pods are seen", || running(&target) == 2).await;
    api.judge(|call| marks(call).then_some(Fault::Status(500)));
    target.ensure(2);
    eventually("it is reported", || target.trouble().is_some()).await;
    api.judge(|_| None);
    eventually("the mark is gone", || cost(&api, "a").is_none()).await;
    sleep(LONG).await;
    assert_eq!(target.trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_decided_before_an_operators_annotations_are_read() {
    let api = api(2, &json!({"forebay.io/paused": "true"}));
    let failures = AtomicU32::new(0);
    api.judge(move |call| {
        let lists = call.method == http::Method::GET && call.path == DEPLOYMENTS;
        (lists && failures.fetch_add(1, Ordering::Relaxed) < 4).then_some(Fault::Status(500))
    });
    let target = start(&api);
    target.ensure(5);
    eventually("it is known", || target.statuses().is_some()).await;
    assert_eq!(target.operator_override(), Override::Fixed(2));
    sleep(LONG).await;
    assert_eq!(spec(&api), 2);
}

#[tokio::test(start_paused = true)]
async fn a_missing_workload_is_reported_and_found_when_it_comes() {
    let api = api(2, &json!({}));
    let (deployment, scale) = (api.get(LLAMA).expect("there"), api.get(SCALE).expect("there"));
    api.delete(LLAMA);
    api.delete(SCALE);
    let target = start(&api);
    eventually("it is reported", || {
        let trouble = "there is no Deployment llama in namespace models";
        target.trouble().is_some_and(|why| why == trouble)
    })
    .await;
    assert!(target.statuses().is_none());
    api.put(SCALE, scale);
    api.put(LLAMA, deployment);
    eventually("it is seen", || target.statuses().is_some()).await;
    assert_eq!(target.trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn the_api_servers_answer_is_awaited_rather_than_the_workload() {
    for (case, fault, there, want) in [
        ("it is listed", None, true, true),
        ("there is none", None, false, true),
        ("not allowed", Some(403), true, true),
        ("no answer", Some(0), true, false),
    ] {
        let api = api(2, &json!({}));
        if !there {
            api.delete(LLAMA);
        }
        api.judge(move |call| {
            let lists = call.method == http::Method::GET && call.path == DEPLOYMENTS;
            let fault = fault.filter(|_| lists)?;
            Some(if fault == 0 { Fault::Hang } else { Fault::Status(fault) })
        });
        let target = start(&api);
        assert!(!target.was_looked_up(), "{case}");
        sleep(LONG).await;
        assert_eq!(target.was_looked_up(), want, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_fails_for_months_recovers() {
    let api = api(2, &json!({}));
    let failures = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&failures);
    api.judge(move |call| {
        let lists = call.method == http::Method::GET && call.path == DEPLOYMENTS;
        (lists && count.fetch_add(1, Ordering::Relaxed) < 20_000).then_some(Fault::Status(500))
    });
    let target = start(&api);
    while failures.load(Ordering::Relaxed) <= 20_000 {
        sleep(Duration::from_secs(600)).await;
    }
    eventually("it is seen", || target.statuses().is_some()).await;
    assert_eq!(target.trouble(), None);
}

/// The replica `name`, as hung in its current start.
fn hung(target: &Kubernetes, name: &str) -> BTreeMap<String, Hung> {
    let started_at = target.statuses().and_then(|all| all[name].started_at);
    let why = "answered nothing for 60 s".to_owned();
    BTreeMap::from([(name.to_owned(), Hung { started_at, why })])
}

fn uid(api: &FakeApi, name: &str, uid: &str) {
    let at = format!("{PODS}/{name}");
    let mut pod = api.get(&at).expect("there");
    pod["metadata"]["uid"] = json!(uid);
    api.put(&at, pod);
}

fn deletes(calls: &[Call]) -> Vec<(String, Value)> {
    let deletes = calls.iter().filter(|call| call.method == http::Method::DELETE);
    deletes.map(|call| (call.path.clone(), call.body.clone())).collect()
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_hangs_is_deleted_once_and_its_namesake_is_not() {
    let api = api(2, &json!({}));
    pod(&api, "a", None);
    pod(&api, "b", None);
    uid(&api, "b", "first");
    let target = start(&api);
    eventually("both pods are seen", || running(&target) == 2).await;
    let hung = hung(&target, "b");
    target.replace(&hung);
    target.ensure(2);
    eventually("it is shown as leaving", || {
        target.statuses().is_some_and(|all| all["b"].condition == Condition::Draining)
    })
    .await;
    let calls = api.calls();
    let [(path, body)] = &deletes(&calls)[..] else { panic!("{calls:?}") };
    assert_eq!(*path, format!("{PODS}/b"));
    assert_eq!(
        (&body["preconditions"]["uid"], &body["gracePeriodSeconds"]),
        (&json!("first"), &json!(30))
    );
    assert_eq!(spec(&api), 2, "the workload makes another");

    // The next pod of that name is another start.
    api.delete(&format!("{PODS}/b"));
    eventually("it is gone", || running(&target) == 1).await;
    pod(&api, "b", None);
    uid(&api, "b", "second");
    eventually("there is another", || running(&target) == 2).await;
    target.replace(&hung);
    target.ensure(2);
    sleep(LONG).await;
    assert_eq!(deletes(&api.calls()), []);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_may_not_be_deleted_is_trouble_until_it_may_or_recovers() {
    let api = api(1, &json!({}));
    pod(&api, "a", None);
    let target = start(&api);
    eventually("it is seen", || running(&target) == 1).await;
    api.judge(|call| (call.method == http::Method::DELETE).then_some(Fault::Status(403)));
    let hung = hung(&target, "a");
    target.replace(&hung);
    target.ensure(1);
    eventually("it is reported", || target.trouble().is_some()).await;
    let trouble = target.trouble().expect("reported");
    assert!(trouble.contains("resources: [pods], verbs: [delete]"), "{trouble}");
    target.replace(&BTreeMap::new());
    target.ensure(1);
    eventually("it has recovered", || target.trouble().is_none()).await;
    target.replace(&hung);
    target.ensure(1);
    eventually("it hangs again", || target.trouble().is_some()).await;
    api.judge(|_| None);
    eventually("it is deleted", || {
        target.statuses().is_some_and(|all| all["a"].condition == Condition::Draining)
    })
    .await;
    eventually("the trouble is over", || target.trouble().is_none()).await;
}

#[tokio::test]
async fn the_orders_of_one_step_reach_the_worker_together() {
    let (orders, mut given) = watch::channel(WorkloadOrders::default());
    let (_state, state) = watch::channel(WorkloadState::default());
    let b = super::super::ReplicaStatus {
        condition: Condition::Starting,
        ..super::super::ReplicaStatus::requested("b")
    };
    let (_replicas, replicas) = watch::channel(Replicas::new([("b".to_owned(), b)].into()));
    let target = Kubernetes {
        orders,
        next: Mutex::default(),
        state,
        replicas,
        trouble: Arc::default(),
        answered: Arc::default(),
        _task: AbortOnDropHandle::new(tokio::spawn(std::future::pending())),
    };
    target.ensure(2);
    assert_eq!(given.borrow_and_update().count, Some(2));
    target.stop("b");
    assert!(!given.has_changed().expect("open"), "not without the count that belongs to it");
    target.ensure(1);
    let whole = given.borrow_and_update().clone();
    assert_eq!((whole.count, whole.stopping.len()), (Some(1), 1));
    assert!(target.recall("b"));
    assert!(!given.has_changed().expect("open"), "or the controller would take any pod");
    target.ensure(2);
    let whole = given.borrow_and_update().clone();
    assert_eq!((whole.count, whole.stopping.len()), (Some(2), 0));
}
