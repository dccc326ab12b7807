//! Streams that move off pods that go, in a rolling update and in a scale-down: none is cut, and no pod
//! waits for the answers that it had.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::Cluster;
use crate::forebay::{Streaming, is_whole, post, status};
use crate::plane::eventually;
use crate::suites::direct::{Options, POOL, Setup, all_whole};
use crate::suites::workload::{Workload, addresses};

/// Milliseconds for a token.
const STEP: u32 = 20;
/// Streams for each replica.
const STREAMS: usize = 6;

/// The times at which pods were deleted, and at which they were gone, according to a watch.
struct Ends {
    pods: watch::Receiver<BTreeMap<String, End>>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone, Copy)]
struct End {
    deleted: Instant,
    gone: Option<Instant>,
}

impl Ends {
    fn watch(cluster: &Cluster, namespace: &str) -> Self {
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        let (seen, pods) = watch::channel(BTreeMap::new());
        let task = tokio::spawn(async move {
            let mut changes = watcher(api, watcher::Config::default()).boxed();
            while let Some(change) = changes.next().await {
                let now = Instant::now();
                let (pod, gone) = match change {
                    Ok(Event::Apply(pod)) => (pod, None),
                    Ok(Event::Delete(pod)) => (pod, Some(now)),
                    _ => continue,
                };
                if gone.is_none() && pod.metadata.deletion_timestamp.is_none() {
                    continue;
                }
                seen.send_modify(|seen| {
                    let end =
                        seen.entry(pod.name_any()).or_insert(End { deleted: now, gone: None });
                    end.gone = gone;
                });
            }
        });
        Self { pods, _task: AbortOnDropHandle::new(task) }
    }

    /// The pods that are gone.
    fn gone(&self) -> BTreeMap<String, (Instant, Instant)> {
        let ends = self.pods.borrow();
        ends.iter()
            .filter_map(|(name, end)| Some((name.clone(), (end.deleted, end.gone?))))
            .collect()
    }
}

/// The text of a streamed chat.
fn text(answer: &str) -> String {
    let chunks = answer.lines().filter_map(|line| line.strip_prefix("data: {"));
    let texts = chunks.filter_map(|chunk| {
        let chunk: serde_json::Value = serde_json::from_str(&format!("{{{chunk}")).ok()?;
        chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
    });
    texts.collect()
}

/// Answers of a minute, for every run.
pub async fn answers_of_a_minute(cluster: Arc<Cluster>) {
    streams_move_off_pods_that_go(&cluster, 2, 60, Duration::from_secs(45)).await;
}

/// Answers of five minutes at four replicas.
pub async fn answers_of_five_minutes(cluster: Arc<Cluster>) {
    streams_move_off_pods_that_go(&cluster, 4, 300, Duration::from_secs(15)).await;
}

/// Streams of `seconds` at `count` replicas. All pods are replaced by others, and then all but one go.
async fn streams_move_off_pods_that_go(
    cluster: &Cluster,
    count: u32,
    seconds: u32,
    gone_within: Duration,
) {
    let options = Options {
        min: count,
        hook: true,
        decode_step: "20",
        max_in_flight: 64,
        pool: "  continue: auto\n",
        ..Options::default()
    };
    let setup = Setup::new(cluster, "moves", options).await;
    let namespace = setup.namespace.as_str();
    let ends = Ends::watch(cluster, namespace);
    let all_ready = async || setup.replicas(cluster).await == (count, count);
    eventually("all replicas are ready", all_ready).await;
    // The first stream shows that the replicas report the ids of tokens.
    assert_eq!(all_whole(setup.chats(1, true, 4)).await, 1);
    let tokens = seconds * 1000 / STEP;
    let streams = count as usize * STREAMS;
    let began = Instant::now();
    let running =
        join_all((0..streams).map(|_| Streaming::begin(setup.clients[0], POOL, tokens))).await;

    let updated = Workload { version: 2, replicas: count, ..setup.workload.clone() };
    cluster.plane.apply(&updated.yaml(namespace)).await;
    eventually("the old pods are gone", async || {
        ends.gone().len() == count as usize && all_ready().await
    })
    .await;
    let old = ends.gone();
    let report = |what: &str, took: Vec<Duration>| {
        let longest = took.iter().max().expect("pods went").as_secs_f64();
        println!("  {what}: {} pods, the slowest gone after {longest:.1} s", took.len());
        assert!(longest <= gone_within.as_secs_f64(), "{what}: {took:?}");
    };
    report(
        "rolling update, from each pod's deletion",
        old.values().map(|(deleted, gone)| *gone - *deleted).collect(),
    );

    let ordered = Instant::now();
    let path = format!("/pools/{POOL}/override?replicas=1");
    let answer = post(setup.scalers[0].admin, &path).await;
    assert_eq!(status(&answer), 200, "{answer}");
    eventually("all pods but one are gone", async || {
        ends.gone().len() == 2 * count as usize - 1
            && addresses(cluster, namespace, POOL).await.len() == 1
    })
    .await;
    let younger = ends.gone().into_iter().filter(|(name, _)| !old.contains_key(name));
    report(
        &format!("scale-down {count} → 1, from the order"),
        younger.map(|(_, (_, gone))| gone - ordered).collect(),
    );
    let moved = began.elapsed();

    let limit = Duration::from_secs(u64::from(seconds) * 2 + 120);
    let answers = join_all(running.into_iter().map(|stream| stream.end(limit))).await;
    let took = began.elapsed();
    let mut texts = BTreeSet::new();
    for answer in &answers {
        assert!(is_whole(answer, true), "not whole: {}", &answer[answer.len().max(800) - 800..]);
        texts.insert(text(answer));
    }
    assert_eq!(texts.len(), 1, "the same question has the same answer, with seams anywhere");
    let series = format!("forebay_continued_streams_total{{pool=\"{POOL}\",cause=\"moved\"}}");
    let moves = setup.gateways[0].metric(&series).await.unwrap_or(0.0);
    let pause = |part: &str| format!("forebay_continuation_pause_seconds_{part}{{pool=\"{POOL}\"");
    let paused = setup.gateways[0].metric(&pause("sum")).await.unwrap_or(0.0);
    println!(
        "  {streams} streams, {moves} moves, {:.0} ms of pause each; pods went within {:.0} s of \
         {:.0} s",
        paused / moves.max(1.0) * 1e3,
        moved.as_secs_f64(),
        took.as_secs_f64()
    );
    let least = (streams - STREAMS) as f64;
    assert!(moves >= least, "{moves} moves");
    setup.end(cluster).await;
}
