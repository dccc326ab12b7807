use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use forebay_discovery::Change;
use forebay_signals::follower::Event;
use forebay_signals::{
    Barrier, EndpointSignals, Figure, PodPhase, PoolSignals, ReplicaState, View,
};
use futures_util::future::BoxFuture;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use parking_lot::Mutex;

use super::*;
use crate::act::overrides::{Command, CommandRefused};
use crate::clock::Clock;
use crate::decide::{Order, Override};
use crate::lead::leader::Leadership;
use crate::lead::store::SnapshotStore;
use crate::lead::store::Snapshots;
use crate::observe::feeds::GatewayChange;
use crate::observe::feeds::Gateways;
use crate::observe::relay::LeaderState;
use crate::observe::sources::Client;
use crate::view::overview::TroubleKind;

/// A store that fails a number of times before it answers.
#[derive(Default)]
struct Flaky {
    failures: AtomicU32,
    saved: Mutex<Snapshots>,
    loads: AtomicU32,
}

impl SnapshotStore for Flaky {
    fn load(&self) -> BoxFuture<'_, io::Result<Snapshots>> {
        Box::pin(async {
            let nth = self.loads.fetch_add(1, Ordering::Relaxed);
            if nth < self.failures.load(Ordering::Relaxed) {
                return Err(io::Error::other("away"));
            }
            Ok(self.saved.lock().clone())
        })
    }

    fn save(&self, snapshots: Snapshots) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.saved.lock().extend(snapshots);
            Ok(())
        })
    }
}

/// A recorder of gauges by their keys.
#[derive(Default)]
struct Gauges(Mutex<HashMap<Key, Arc<AtomicU64>>>);

impl Gauges {
    /// The names of a pool's gauges that are not withdrawn.
    fn shown(&self, pool: &str) -> BTreeSet<String> {
        let all = self.0.lock();
        let is_shown = |(key, bits): &(&Key, &Arc<AtomicU64>)| {
            key.labels().any(|label| label.key() == "pool" && label.value() == pool)
                && !forebay_base::is_withdrawn(f64::from_bits(bits.load(Ordering::Relaxed)))
        };
        all.iter().filter(is_shown).map(|(key, _)| key.name().to_owned()).collect()
    }
}

impl Recorder for Gauges {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::clone(self.0.lock().entry(key.clone()).or_default()))
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

fn config(pools: &[(&str, u32)]) -> Arc<Config> {
    let pool = |(name, most): &(&str, u32)| serde_json::json!({"name": name, "scaling": {"maxReplicaCount": most}});
    let pools: Vec<_> = pools.iter().map(pool).collect();
    Arc::new(serde_json::from_value(serde_json::json!({"pools": pools})).expect("a config"))
}

/// A loop without gateways, and the sender of its leadership.
fn work(
    config: Arc<Config>,
    store: Option<Arc<dyn SnapshotStore>>,
) -> (Loop, watch::Sender<Leadership>) {
    let (lead, leadership) = watch::channel(Leadership::Ours);
    let client = Client::new(None).expect("a client");
    let context = Context { clock: Clock::start(), cluster: None, client };
    let managed = |pool| ManagedPool::start(pool, &config, &context).expect("it only watches");
    let work = Loop {
        feeds: Feeds::new(Gateways { fixed: Vec::new(), found: None, token: None }),
        pools: config.pools.iter().map(managed).collect(),
        due: DuePools::all(),
        outputs: Outputs::new(Publisher::new(), Arc::default(), Board::new(&config), None),
        role: Role { leadership: Some(leadership), standby: false, relay: None, token: None },
        memory: Persistence::new(store),
        inbox: Inbox {
            drains: mpsc::channel(1).1,
            commands: mpsc::channel(1).1,
            inquiries: mpsc::channel(1).1,
            configs: watch::channel(Arc::clone(&config)).1,
            succession: mpsc::channel(1).1,
        },
        config,
        context,
        waiting: Vec::new(),
        leaving: JoinSet::new(),
        readiness: Readiness::new(),
    };
    (work, lead)
}

/// Has a gateway report these pools.
fn hear(work: &mut Loop, pools: &[(&str, PoolSignals)]) {
    let gateway = forebay_discovery::Member::at(([10, 0, 0, 9], 9900).into());
    work.feeds.take(GatewayChange::List(Change::All(vec![("gateway-1".to_owned(), gateway)])));
    let pool =
        |(name, signals): &(&str, PoolSignals)| ((*name).to_owned(), Arc::new(signals.clone()));
    let (sender, pools) = ("a".to_owned(), pools.iter().map(pool).collect());
    let view = Arc::new(View { sender, seq: 0, up_millis: None, gateways: None, pools });
    let update = Event::Update { view, touched: Vec::new() };
    work.feeds.take(GatewayChange::Feed(0, update));
}

#[tokio::test]
async fn a_pod_may_drain_itself_and_another_endpoint_may_not() {
    let (mut work, _lead) = work(config(&[("p", 4)]), None);
    let endpoint = |phase| Some(EndpointSignals { phase, ..EndpointSignals::default() });
    let endpoints = [
        ("10.0.0.1:8000".to_owned(), endpoint(Some(PodPhase::Healthy))),
        ("10.0.0.2:8000".to_owned(), endpoint(None)),
    ];
    let signals = PoolSignals { endpoints: endpoints.into(), ..PoolSignals::default() };
    hear(&mut work, &[("p", signals)]);
    for (endpoint, from_endpoint, refused, drains) in [
        ("10.0.0.1:8000", true, false, true),
        ("10.0.0.2:8000", true, true, false),
        ("10.0.0.3:8000", true, false, false),
        ("10.0.0.2:8000", false, false, true),
    ] {
        let at = endpoint.parse().expect("an address");
        let (done, mut result) = tokio::sync::oneshot::channel();
        work.drain(DrainRequest { endpoint: at, from_endpoint, done }, Millis::new(1_000));
        let case = format!("{endpoint}, from the endpoint: {from_endpoint}");
        assert_eq!(result.try_recv().is_ok_and(|done| done == Err(NotAPod)), refused, "{case}");
        work.step(Millis::new(1_000), true);
        let replica = work.outputs.last["p"].replicas.get(endpoint).and_then(Option::as_ref);
        let is_draining = replica.is_some_and(|one| one.state == ReplicaState::Draining);
        assert_eq!(is_draining, drains, "{case}");
        if !drains && !refused {
            assert_eq!(result.try_recv(), Ok(Ok(())), "{case}: no replica is there");
        }
    }
}

#[tokio::test]
async fn a_scaler_that_stops_leading_leaves_no_barrier_behind() {
    for next in [Leadership::Unknown, Leadership::Theirs("http://127.0.0.1:1".to_owned())] {
        let (mut work, lead) = work(config(&[("p", 4)]), None);
        let barrier = Some(Barrier { epoch: 1, lease_millis: 9_000 });
        let closing = PoolReplicas { barrier, active: false, ..PoolReplicas::default() };
        work.outputs.last.insert("p".to_owned(), closing);
        lead.send_replace(next);
        work.elected();
        assert_eq!((work.outputs.last["p"].barrier, work.outputs.last["p"].active), (None, true));
    }
}

#[tokio::test]
async fn a_scaler_that_does_not_lead_shows_who_does() {
    let (mut work, lead) = work(config(&[("p", 4)]), None);
    work.show_role();
    assert_eq!(work.outputs.board.away(), None);
    let url = "http://10.0.0.9:9900".to_owned();
    for (next, want) in [
        (Leadership::Unknown, "does not know one that does"),
        (Leadership::Theirs(url.clone()), "the one at http://10.0.0.9:9900 does"),
    ] {
        lead.send_replace(next);
        work.elected();
        let away = work.outputs.board.away().expect("another one leads");
        assert!(away.ends_with(want), "{away}");
    }
    lead.send_replace(Leadership::Ours);
    work.elected();
    assert_eq!(work.outputs.board.away(), None);
    work.hand_over().await;
    let away = work.outputs.board.away().expect("the next process decides");
    assert!(away.starts_with("this process does not decide"), "{away}");
}

#[tokio::test]
async fn only_the_scaler_that_decides_shows_what_it_decided() {
    let gauges = Gauges::default();
    let _recorded = metrics::set_default_local_recorder(&gauges);
    let (mut work, lead) = work(config(&[("p", 4), ("q", 4)]), None);
    let configured = ["max_replicas", "objective_share", "objective_ttft_seconds"];
    let configured = BTreeSet::from(configured.map(|name| format!("forebay_{name}")));
    assert_eq!(gauges.shown("p"), configured, "nothing is decided yet");
    hear(&mut work, &["p", "q"].map(|name| (name, PoolSignals::default())));
    work.step(Millis::ZERO, true);
    let decided = gauges.shown("p");
    assert!(
        decided.len() > configured.len() && decided.contains("forebay_desired_replicas"),
        "{decided:?}"
    );
    lead.send(Leadership::Theirs("http://10.0.0.2:9900".to_owned())).expect("the loop listens");
    work.elected();
    assert_eq!(gauges.shown("p"), configured, "the leader shows the rest");
    lead.send(Leadership::Ours).expect("the loop listens");
    work.elected();
    work.step(Millis::from_secs(1), true);
    assert_eq!(gauges.shown("p"), decided);
    work.reload(config(&[("q", 4)]));
    assert!(gauges.shown("p").is_empty(), "it is no longer configured");
    assert!(gauges.shown("q").contains("forebay_max_replicas"));
}

#[tokio::test]
async fn a_scaler_that_stops_leading_does_not_overwrite_the_next_leaders_snapshots() {
    for next in [Leadership::Unknown, Leadership::Theirs("http://127.0.0.1:1".to_owned())] {
        let (mut work, lead) = work(config(&[("p", 4)]), Some(Arc::new(Flaky::default())));
        work.restore().await;
        assert!(work.memory.saver.is_some());
        lead.send_replace(next);
        work.elected();
        assert!(work.memory.saver.is_none(), "a save that failed would be tried again");
    }
}

#[tokio::test]
async fn a_scaler_that_starts_to_lead_uses_each_pools_own_rules() {
    let config = config(&[("a", 1), ("skipped", 2), ("b", 3)]);
    let (mut work, _lead) = work(config, None);
    work.pools.remove(1);
    work.elected();
    let pools = work.pools.iter().map(|managed| &managed.pool);
    let most: Vec<_> = pools.map(|pool| (&*pool.name, pool.most())).collect();
    assert_eq!(most, [("a", 1), ("b", 3)]);
}

#[tokio::test(start_paused = true)]
async fn an_override_that_can_not_be_read_at_once_is_not_overwritten() {
    let (mut before, _lead) = work(config(&[("p", 4)]), None);
    before.pools[0].pool.set_override(Override::Paused);
    let paused = before.pools[0].pool.snapshot();
    let store = Arc::new(Flaky::default());
    store.saved.lock().insert("p".to_owned(), paused.clone());
    store.failures.store(3, Ordering::Relaxed);
    let flaky: Arc<dyn SnapshotStore> = Arc::clone(&store) as _;
    let (mut work, _lead) = work(config(&[("p", 4)]), Some(flaky));
    work.restore().await;
    work.keep();
    assert!(work.memory.saver.is_none(), "nothing is saved before the snapshots are read");
    let known = loaded(&mut work.memory.loading).await;
    assert_eq!(store.loads.load(Ordering::Relaxed), 4);
    work.restored(known);
    work.keep();
    work.memory.saver.take().expect("now it saves").finish().await;
    assert_eq!(store.saved.lock()["p"], paused);
}

#[tokio::test]
async fn commands_for_a_pool_without_a_target_are_refused() {
    let (mut work, _lead) = work(config(&[("a", 4)]), None);
    let fixed = Command::Override(Override::Fixed(3));
    for command in [fixed, Command::Order(Order::Wake), Command::Order(Order::Rest)] {
        let (done, result) = tokio::sync::oneshot::channel();
        work.command(CommandRequest { pool: "a".to_owned(), command, done });
        assert_eq!(result.await.expect("answered"), Err(CommandRefused::Unscaled));
    }
}

#[tokio::test]
async fn a_scaler_that_starts_to_lead_continues_from_the_relayed_figures() {
    let config = serde_json::json!({"pools": [
        {"name": "p", "target": {"keda": {"scaledObject": "p"}}},
    ]});
    let (mut work, _lead) = work(Arc::new(serde_json::from_value(config).expect("valid")), None);
    let figures = [(Figure::Ttft, 1.5), (Figure::Itl, 0.05), (Figure::TokensPerSecond, 400.0)];
    let relayed = PoolReplicas { figures: figures.into(), ..PoolReplicas::default() };
    work.outputs.last.insert("p".to_owned(), relayed);
    work.elected();
    let waiting = PoolSignals { queue_depth: 3, ..PoolSignals::default() };
    let report = LastReport {
        gateway: 0,
        sender: "a",
        up_for: None,
        signals: Some(&waiting),
        silent_for: None,
    };
    let ManagedPool { pool, target, .. } = &mut work.pools[0];
    let step = pool.step(&[report], &BTreeMap::new(), &[], target, Millis::new(1_000));
    let published = step.replicas.figures;
    for (figure, value) in figures {
        assert_eq!(published.get(&figure), Some(&value), "{figure:?}");
    }
    assert_eq!(published[&Figure::QueueDepth], 3.0);
}

#[tokio::test]
async fn a_scaler_is_ready_once_it_can_answer_keda_and_stays_ready_whoever_leads() {
    let config = serde_json::json!({
        "scaler": {"keda": {"listen": "127.0.0.1:0"}},
        "pools": [{"name": "p", "target": {"keda": {"scaledObject": "p"}}}, {"name": "other"}],
    });
    let config: Arc<Config> = Arc::new(serde_json::from_value(config).expect("valid"));
    let (mut work, lead) = work(Arc::clone(&config), None);
    work.outputs.keda = KedaServer::start(&config).expect("a free port").map(Arc::new);
    let look = |work: &Loop| {
        work.readiness.look(|| work.lack());
        work.readiness.lack()
    };
    work.step(Millis::new(1_000), true);
    let lack = look(&work).expect("no gateway has reported");
    assert!(lack.contains("pool `p`: no decision is known"), "{lack}");

    lead.send_replace(Leadership::Theirs("http://127.0.0.1:1".to_owned()));
    work.elected();
    let pools = [("p".to_owned(), PoolReplicas { active: true, ..PoolReplicas::default() })];
    work.relay(LeaderState { pools: pools.into(), gateways: Some(1) });
    assert_eq!(look(&work), None, "a scaler that does not lead answers with the leader's state");
    for next in [Leadership::Unknown, Leadership::Ours] {
        lead.send_replace(next);
        work.elected();
        work.step(Millis::new(2_000), true);
        assert_eq!(look(&work), None);
    }
}

#[tokio::test]
async fn keda_is_answered_for_pools_that_a_reload_added() {
    let config = |pools: serde_json::Value| -> Arc<Config> {
        let keda = serde_json::json!({"listen": "127.0.0.1:0"});
        let config = serde_json::json!({"scaler": {"keda": keda}, "pools": pools});
        Arc::new(serde_json::from_value(config).expect("valid"))
    };
    let keda =
        |name: &str| serde_json::json!({"name": name, "target": {"keda": {"scaledObject": name}}});
    let plain = |name: &str| serde_json::json!({"name": name});
    let first = config(serde_json::json!([keda("stays"), keda("leaves"), plain("joins")]));
    let (mut work, _lead) = work(Arc::clone(&first), None);
    work.outputs.keda = KedaServer::start(&first).expect("a free port").map(Arc::new);
    let answered = |work: &Loop| work.outputs.keda.as_ref().expect("started").pools();
    assert_eq!(answered(&work), ["stays", "leaves"]);
    // A changed target is used from the next start on.
    let next = [keda("stays"), plain("leaves"), keda("joins"), keda("new")];
    for _ in 0..2 {
        work.reload(config(serde_json::json!(next)));
        assert_eq!(answered(&work), ["stays", "leaves", "new"]);
    }
    work.reload(config(serde_json::json!([keda("new")])));
    assert_eq!(answered(&work), ["new"]);
}

#[tokio::test]
async fn exactly_one_scaler_decides_and_the_next_continues_with_the_state_of_the_last() {
    let all = config(&[("p", 4), ("gone", 1)]);
    let (mut last, _lead) = work(Arc::clone(&all), None);
    last.pools[0].pool.set_override(Override::Fixed(3));
    let barrier = Some(Barrier { epoch: 1, lease_millis: 9_000 });
    let state = PoolReplicas { barrier, desired: 3, ..PoolReplicas::default() };
    last.outputs.last = [("p".to_owned(), state.clone()), ("gone".to_owned(), state)].into();
    let learned = last.pools[0].pool.snapshot();

    let store = Arc::new(Flaky::default());
    let (mut next, lead) = work(config(&[("p", 4)]), Some(Arc::clone(&store) as _));
    next.role.standby = true;
    assert!(last.leads() && !next.leads());
    lead.send_replace(Leadership::Ours);
    next.elected();
    assert!(!next.leads(), "election alone does not make it decide");
    let handover = last.hand_over().await;
    assert!(!last.leads() && !next.leads());
    next.take_over(handover, CancellationToken::new());
    assert!(!last.leads() && next.leads());
    assert_eq!(next.pools[0].pool.snapshot(), learned);
    assert_eq!(next.outputs.last.keys().collect::<Vec<_>>(), ["p"], "the pools still configured");
    assert_eq!((next.outputs.last["p"].desired, next.outputs.last["p"].barrier), (3, None));
    next.keep();
    next.memory.saver.take().expect("it saves what it took over").finish().await;
    assert_eq!(store.saved.lock()["p"], learned);
    assert_eq!(store.loads.load(Ordering::Relaxed), 0, "it reads no older snapshot");
}

#[tokio::test]
async fn a_scaler_whose_successor_fails_takes_everything_back() {
    let (mut work, _lead) = work(config(&[("p", 4)]), Some(Arc::new(Flaky::default())));
    work.restore().await;
    work.pools[0].pool.set_override(Override::Paused);
    let learned = work.pools[0].pool.snapshot();
    let handover = work.hand_over().await;
    assert!(work.memory.saver.is_none() && !work.leads());
    work.take_over(handover, CancellationToken::new());
    assert!(work.memory.saver.is_some() && work.leads());
    assert_eq!(work.pools[0].pool.snapshot(), learned);
}

#[tokio::test]
async fn a_pool_whose_gateways_all_said_goodbye_has_a_trouble_and_no_load() {
    let (mut work, _lead) = work(config(&[("p", 4)]), None);
    let signals = PoolSignals { queue_depth: 7, in_flight: 3, ..PoolSignals::default() };
    hear(&mut work, &[("p", signals.clone())]);
    let shown = |work: &mut Loop, second| {
        work.due = DuePools::all();
        work.step(Millis::from_secs(second), true);
        work.outputs.board.publish(0, Millis::from_secs(second));
        let pool = work.outputs.board.feed.pools()["p"].clone();
        let kinds: Vec<_> = pool.troubles.iter().map(|trouble| trouble.kind).collect();
        (pool.held, pool.in_flight, kinds)
    };
    assert_eq!(shown(&mut work, 1), (7, 3, vec![]));
    work.feeds.take(GatewayChange::Feed(0, Event::Goodbye));
    let stopped: Vec<_> = work.feeds.states().map(|gateway| gateway.stopped).collect();
    assert_eq!(stopped, [true], "it is still listed");
    assert_eq!(shown(&mut work, 2), (0, 0, vec![TroubleKind::NoGateway]));
    hear(&mut work, &[("p", signals)]);
    assert_eq!(shown(&mut work, 3), (7, 3, vec![]));
}
