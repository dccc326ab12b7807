use std::sync::atomic::{AtomicU32, Ordering};

use forebay_discovery::Change;
use forebay_signals::follower::Event;
use forebay_signals::{
    Barrier, EndpointSignals, Figure, PodPhase, PoolSignals, ReplicaState, View,
};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::*;
use crate::lead::store::Snapshots;
use crate::observe::feeds::News;
use crate::observe::relay::Words;

/// A store that fails so many times before it answers.
#[derive(Default)]
struct Flaky {
    failures: AtomicU32,
    kept: Mutex<Snapshots>,
    loads: AtomicU32,
}

impl SnapshotStore for Flaky {
    fn load(&self) -> BoxFuture<'_, io::Result<Snapshots>> {
        Box::pin(async {
            let nth = self.loads.fetch_add(1, Ordering::Relaxed);
            if nth < self.failures.load(Ordering::Relaxed) {
                return Err(io::Error::other("away"));
            }
            Ok(self.kept.lock().clone())
        })
    }

    fn save(&self, snapshots: Snapshots) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.kept.lock().extend(snapshots);
            Ok(())
        })
    }
}

fn config(pools: &[(&str, u32)]) -> Arc<Config> {
    let pool = |(name, most): &(&str, u32)| serde_json::json!({"name": name, "scaling": {"maxReplicaCount": most}});
    let pools: Vec<_> = pools.iter().map(pool).collect();
    Arc::new(serde_json::from_value(serde_json::json!({"pools": pools})).expect("a config"))
}

fn driven(config: &Config, client: &Client, clock: Clock) -> Vec<Driven> {
    let driven = |pool: &forebay_config::Pool| {
        let decides = PoolLoop::new(pool, &config.prometheus, 10_000);
        Driven {
            sources: Sources::start(pool, decides.wanted(), client, clock),
            metrics: Metrics::register(&pool.name),
            target: Driver::start(pool, None).expect("it only watches"),
            pool: decides,
            unread: BTreeSet::new(),
        }
    };
    config.pools.iter().map(driven).collect()
}

/// A loop that hears nobody, with a hand on who leads.
fn work(
    config: Arc<Config>,
    store: Option<Arc<dyn SnapshotStore>>,
) -> (Loop, watch::Sender<Leadership>) {
    let (lead, leadership) = watch::channel(Leadership::Ours);
    let client = Client::new(None).expect("a client");
    let clock = Clock::start();
    let work = Loop {
        feeds: Feeds::new(Gateways { fixed: Vec::new(), found: None, token: None }),
        pools: driven(&config, &client, clock),
        publisher: Publisher::new(),
        decisions: Arc::default(),
        last: BTreeMap::new(),
        clock,
        keda: None,
        leadership: Some(leadership),
        relay: None,
        token: None,
        asks: mpsc::channel(1).1,
        waiting: Vec::new(),
        configs: watch::channel(Arc::clone(&config)).1,
        config,
        cluster: None,
        client,
        orders: mpsc::channel(1).1,
        store,
        saver: None,
        loading: None,
        pace: Pace::new(),
        leaving: JoinSet::new(),
        restore: true,
        touched: BTreeSet::new(),
        all_touched: true,
        turn: 0,
        readiness: Readiness::new(),
        standby: false,
        succession: mpsc::channel(1).1,
    };
    (work, lead)
}

#[tokio::test]
async fn a_pod_may_drain_itself_and_an_endpoint_that_is_none_may_not() {
    let (mut work, _lead) = work(config(&[("p", 4)]), None);
    let gateway = forebay_discovery::Member::at(([10, 0, 0, 9], 9900).into());
    work.feeds.take(News::List(Change::All(vec![("gateway-1".to_owned(), gateway)])));
    let endpoint = |phase| Some(EndpointSignals { phase, ..EndpointSignals::default() });
    let endpoints = [
        ("10.0.0.1:8000".to_owned(), endpoint(Some(PodPhase::Healthy))),
        ("10.0.0.2:8000".to_owned(), endpoint(None)),
    ];
    let signals = PoolSignals { endpoints: endpoints.into(), ..PoolSignals::default() };
    let (sender, pools) = ("a".to_owned(), [("p".to_owned(), Arc::new(signals))].into());
    let view = Arc::new(View { sender, seq: 0, gateways: None, pools });
    work.feeds.take(News::Feed(0, Event::Update { view, touched: Vec::new() }));
    for (endpoint, by_itself, refused, drains) in [
        ("10.0.0.1:8000", true, false, true),
        ("10.0.0.2:8000", true, true, false),
        ("10.0.0.3:8000", true, false, false),
        ("10.0.0.2:8000", false, false, true),
    ] {
        let at = endpoint.parse().expect("an address");
        let (done, mut told) = tokio::sync::oneshot::channel();
        work.ask(Ask { endpoint: at, by_itself, done }, 1_000);
        let case = format!("{endpoint}, by itself: {by_itself}");
        assert_eq!(told.try_recv().is_ok_and(|it| it == Err(NotAPod)), refused, "{case}");
        work.step(1_000, true);
        let state = work.last["p"].replicas.get(endpoint).and_then(|it| it.as_ref());
        let is_draining = state.is_some_and(|it| it.state == ReplicaState::Draining);
        assert_eq!(is_draining, drains, "{case}");
        if !drains && !refused {
            assert_eq!(told.try_recv(), Ok(Ok(())), "{case}: nothing is there");
        }
    }
}

#[tokio::test]
async fn one_that_stops_leading_leaves_no_barrier_behind() {
    for next in [Leadership::Unknown, Leadership::Theirs("http://127.0.0.1:1".to_owned())] {
        let (mut work, lead) = work(config(&[("p", 4)]), None);
        let barrier = Some(Barrier { epoch: 1, lease_millis: 9_000 });
        let closing = PoolReplicas { barrier, active: false, ..PoolReplicas::default() };
        work.last.insert("p".to_owned(), closing);
        lead.send_replace(next);
        work.elected();
        assert_eq!((work.last["p"].barrier, work.last["p"].active), (None, true));
    }
}

#[tokio::test]
async fn one_that_stops_leading_does_not_write_over_what_the_next_leader_keeps() {
    for next in [Leadership::Unknown, Leadership::Theirs("http://127.0.0.1:1".to_owned())] {
        let (mut work, lead) = work(config(&[("p", 4)]), Some(Arc::new(Flaky::default())));
        work.restore().await;
        assert!(work.saver.is_some());
        lead.send_replace(next);
        work.elected();
        assert!(work.saver.is_none(), "a save that failed would be tried again");
    }
}

#[tokio::test]
async fn one_that_begins_to_lead_takes_each_pools_own_rules() {
    let config = config(&[("a", 1), ("skipped", 2), ("b", 3)]);
    let (mut work, _lead) = work(config, None);
    work.pools.remove(1);
    work.elected();
    let most: Vec<_> = work.pools.iter().map(|it| (&*it.pool.name, it.pool.most())).collect();
    assert_eq!(most, [("a", 1), ("b", 3)]);
}

#[tokio::test(start_paused = true)]
async fn an_order_that_can_not_be_read_at_once_is_not_written_over() {
    let (mut before, _lead) = work(config(&[("p", 4)]), None);
    before.pools[0].pool.order(Override::Paused);
    let paused = before.pools[0].pool.snapshot();
    let store = Arc::new(Flaky::default());
    store.kept.lock().insert("p".to_owned(), paused.clone());
    store.failures.store(3, Ordering::Relaxed);
    let kept: Arc<dyn SnapshotStore> = Arc::clone(&store) as _;
    let (mut work, _lead) = work(config(&[("p", 4)]), Some(kept));
    work.restore().await;
    work.keep();
    assert!(work.saver.is_none(), "nothing is written before it is read");
    let known = loaded(&mut work.loading).await;
    assert_eq!(store.loads.load(Ordering::Relaxed), 4);
    work.restored(known);
    work.keep();
    work.saver.take().expect("now it is kept").finish().await;
    assert_eq!(store.kept.lock()["p"], paused);
}

#[tokio::test]
async fn an_order_for_a_pool_that_nothing_scales_is_refused() {
    let (mut work, _lead) = work(config(&[("a", 4)]), None);
    let (done, told) = tokio::sync::oneshot::channel();
    work.order(Order { pool: "a".to_owned(), order: Override::Fixed(3), done });
    assert_eq!(told.await.expect("answered"), Err(Refused::Unscaled));
}

#[tokio::test]
async fn one_that_begins_to_lead_goes_on_from_the_figures_that_were_relayed() {
    let config = serde_json::json!({"pools": [
        {"name": "p", "target": {"keda": {"scaledObject": "p"}}},
    ]});
    let (mut work, _lead) = work(Arc::new(serde_json::from_value(config).expect("valid")), None);
    let figures = [(Figure::Ttft, 1.5), (Figure::Itl, 0.05), (Figure::TokensPerSecond, 400.0)];
    let told = PoolReplicas { figures: figures.into(), ..PoolReplicas::default() };
    work.last.insert("p".to_owned(), told);
    work.elected();
    let waiting = PoolSignals { queue_depth: 3, ..PoolSignals::default() };
    let heard = Heard { gateway: 0, sender: "a", signals: Some(&waiting), lost_ms: None };
    let Driven { pool, target, .. } = &mut work.pools[0];
    let told = pool.step(&[heard], &BTreeMap::new(), &[], target, 1_000).replicas.figures;
    for (figure, value) in figures {
        assert_eq!(told.get(&figure), Some(&value), "{figure:?}");
    }
    assert_eq!(told[&Figure::QueueDepth], 3.0);
}

#[tokio::test]
async fn it_is_ready_when_it_can_answer_keda_and_stays_so_whoever_leads() {
    let config = serde_json::json!({
        "scaler": {"keda": {"listen": "127.0.0.1:0"}},
        "pools": [{"name": "p", "target": {"keda": {"scaledObject": "p"}}}, {"name": "other"}],
    });
    let config: Arc<Config> = Arc::new(serde_json::from_value(config).expect("valid"));
    let (mut work, lead) = work(Arc::clone(&config), None);
    work.keda = KedaServer::start(&config).expect("a free port").map(Arc::new);
    let look = |work: &Loop| {
        work.readiness.look(|| work.lack());
        work.readiness.lack()
    };
    work.step(1_000, true);
    let lack = look(&work).expect("no gateway is heard");
    assert!(lack.contains("pool `p`: no decision is known"), "{lack}");

    lead.send_replace(Leadership::Theirs("http://127.0.0.1:1".to_owned()));
    work.elected();
    let told = [("p".to_owned(), PoolReplicas { active: true, ..PoolReplicas::default() })];
    work.repeat(Words { pools: told.into(), gateways: Some(1) });
    assert_eq!(look(&work), None, "one that does not lead answers with the leader's words");
    for next in [Leadership::Unknown, Leadership::Ours] {
        lead.send_replace(next);
        work.elected();
        work.step(2_000, true);
        assert_eq!(look(&work), None);
    }
}

#[tokio::test]
async fn keda_is_answered_on_pools_that_came_with_another_configuration() {
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
    work.keda = KedaServer::start(&first).expect("a free port").map(Arc::new);
    let answered = |work: &Loop| work.keda.as_ref().expect("started").pools();
    assert_eq!(answered(&work), ["stays", "leaves"]);
    // A target that is another than before is taken with the next start.
    let next = [keda("stays"), plain("leaves"), keda("joins"), keda("new")];
    for _ in 0..2 {
        work.reload(config(serde_json::json!(next)));
        assert_eq!(answered(&work), ["stays", "leaves", "new"]);
    }
    work.reload(config(serde_json::json!([keda("new")])));
    assert_eq!(answered(&work), ["new"]);
}

#[tokio::test]
async fn one_decides_at_any_time_and_the_next_goes_on_from_what_the_last_one_knew() {
    let all = config(&[("p", 4), ("gone", 1)]);
    let (mut last, _lead) = work(Arc::clone(&all), None);
    last.pools[0].pool.order(Override::Fixed(3));
    let barrier = Some(Barrier { epoch: 1, lease_millis: 9_000 });
    let told = PoolReplicas { barrier, desired: 3, ..PoolReplicas::default() };
    last.last = [("p".to_owned(), told.clone()), ("gone".to_owned(), told)].into();
    let learned = last.pools[0].pool.snapshot();

    let store = Arc::new(Flaky::default());
    let (mut next, lead) = work(config(&[("p", 4)]), Some(Arc::clone(&store) as _));
    next.standby = true;
    assert!(last.leads() && !next.leads());
    lead.send_replace(Leadership::Ours);
    next.elected();
    assert!(!next.leads(), "it does not begin by being elected");
    let handover = last.hand_over().await;
    assert!(!last.leads() && !next.leads());
    next.take_over(handover, CancellationToken::new());
    assert!(!last.leads() && next.leads());
    assert_eq!(next.pools[0].pool.snapshot(), learned);
    assert_eq!(next.last.keys().collect::<Vec<_>>(), ["p"], "what is still configured");
    assert_eq!((next.last["p"].desired, next.last["p"].barrier), (3, None));
    next.keep();
    next.saver.take().expect("it keeps what it took over").finish().await;
    assert_eq!(store.kept.lock()["p"], learned);
    assert_eq!(store.loads.load(Ordering::Relaxed), 0, "and reads nothing older");
}

#[tokio::test]
async fn one_whose_successor_fails_takes_everything_back() {
    let (mut work, _lead) = work(config(&[("p", 4)]), Some(Arc::new(Flaky::default())));
    work.restore().await;
    work.pools[0].pool.order(Override::Paused);
    let learned = work.pools[0].pool.snapshot();
    let handover = work.hand_over().await;
    assert!(work.saver.is_none() && !work.leads());
    work.take_over(handover, CancellationToken::new());
    assert!(work.saver.is_some() && work.leads());
    assert_eq!(work.pools[0].pool.snapshot(), learned);
}
