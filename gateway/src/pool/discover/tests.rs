use super::*;
use forebay_signals::{Health, PodPhase};
use tokio::sync::Notify;

fn pool() -> Arc<Pool> {
    Pool::new(forebay_config::Pool::named("p"), Arc::new(Notify::new()))
}

fn follower() -> Follower {
    let (pool, directory) = (pool(), Arc::<Directory>::default());
    directory.open(&pool);
    Follower { pool, directory, addresses: BTreeMap::new(), holders: BTreeMap::new() }
}

fn pod(ip: Option<u8>, phase: PodPhase, reason: &str) -> Member {
    // An address where nothing listens, so that no probe is answered.
    let address = ip.map(|n| SocketAddr::from(([127, 0, 0, n], 1)));
    Member {
        address,
        phase: Some(phase),
        reason: reason.to_owned(),
        message: String::new(),
        withdrawn: false,
        last_end: None,
    }
}

fn put(follower: &mut Follower, name: &str, member: Member) {
    follower.take(Change::Put(name.to_owned(), member));
}

#[tokio::test]
async fn a_pod_is_pending_until_it_has_an_address_and_an_endpoint_from_then_on() {
    let mut follower = follower();
    put(&mut follower, "a", pod(None, PodPhase::Unscheduled, "Unschedulable"));
    let signals = follower.pool.signals();
    assert!(signals.endpoints.is_empty());
    let waiting = signals.waiting["a"].as_ref().expect("there");
    assert_eq!((waiting.phase, waiting.reason.as_str()), (PodPhase::Unscheduled, "Unschedulable"));

    put(&mut follower, "a", pod(Some(1), PodPhase::Failed, "ImagePullBackOff"));
    let signals = follower.pool.signals();
    assert!(signals.waiting.is_empty());
    let endpoint = signals.endpoints["127.0.0.1:1"].as_ref().expect("there");
    assert_eq!(endpoint.health, Health::Starting);
    assert_eq!(endpoint.phase, Some(PodPhase::Failed));
    assert_eq!(endpoint.reason, "ImagePullBackOff", "it says more than that nothing answers");
}

#[tokio::test]
async fn an_address_that_another_pod_took_over_stays_its_endpoint() {
    let mut follower = follower();
    put(&mut follower, "old", pod(Some(1), PodPhase::Draining, ""));
    put(&mut follower, "new", pod(Some(1), PodPhase::Starting, ""));
    follower.take(Change::Gone("old".to_owned()));
    let signals = follower.pool.signals();
    assert_eq!(signals.endpoints["127.0.0.1:1"].as_ref().expect("there").health, Health::Starting);
    follower.take(Change::Gone("new".to_owned()));
    assert!(follower.pool.signals().endpoints.is_empty());
}

#[tokio::test]
async fn a_full_list_removes_endpoints_that_are_not_in_it_and_trouble_removes_none() {
    let mut follower = follower();
    put(&mut follower, "a", pod(Some(1), PodPhase::Starting, ""));
    put(&mut follower, "b", pod(None, PodPhase::Pulling, ""));
    follower.take(Change::Trouble("the API server is not reached".to_owned()));
    assert_eq!(follower.pool.signals().endpoints.len(), 1);
    let c = ("c".to_owned(), pod(Some(3), PodPhase::Starting, ""));
    follower.take(Change::All(vec![c]));
    let signals = follower.pool.signals();
    assert!(signals.waiting.is_empty());
    assert_eq!(signals.endpoints.keys().collect::<Vec<_>>(), ["127.0.0.3:1"]);
}

#[tokio::test]
async fn an_endpoint_that_kubernetes_withdraws_or_deletes_gets_nothing_new() {
    let mut follower = follower();
    let mut member = pod(Some(1), PodPhase::Starting, "ContainersNotReady");
    member.withdrawn = true;
    put(&mut follower, "a", member);
    let health = |follower: &Follower| {
        let signals = follower.pool.signals();
        let endpoint = signals.endpoints["127.0.0.1:1"].clone().expect("there");
        (endpoint.health, endpoint.reason)
    };
    assert_eq!(health(&follower), (Health::Ejected, "ContainersNotReady".to_owned()));
    put(&mut follower, "a", pod(Some(1), PodPhase::Draining, "Terminating"));
    assert_eq!(health(&follower).0, Health::Draining);
    put(&mut follower, "a", pod(Some(1), PodPhase::Starting, ""));
    assert_eq!(health(&follower).0, Health::Starting);
}

#[tokio::test]
async fn a_follower_of_a_removed_pool_does_not_change_a_new_pool_of_that_name() {
    let mut follower = follower();
    put(&mut follower, "a", pod(Some(1), PodPhase::Starting, ""));
    follower.directory.close(&follower.pool);
    assert!(follower.pool.signals().endpoints.is_empty());
    put(&mut follower, "b", pod(Some(2), PodPhase::Starting, ""));
    assert!(follower.pool.signals().endpoints.is_empty(), "it came too late");

    let namesake = pool();
    follower.directory.open(&namesake);
    put(&mut follower, "c", pod(Some(3), PodPhase::Starting, ""));
    assert!(namesake.signals().endpoints.is_empty());
    let address = SocketAddr::from(([127, 0, 0, 2], 1));
    follower.directory.add(&namesake, Source::Discovery, address);
    follower.take(Change::Gone("b".to_owned()));
    follower.directory.close(&follower.pool);
    assert_eq!(namesake.signals().endpoints.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn stopping_discovery_removes_its_endpoints_and_an_end_of_its_changes_does_not() {
    let Follower { pool, directory, .. } = follower();
    let stop = CancellationToken::new();
    let all = vec![
        ("a".to_owned(), pod(Some(1), PodPhase::Starting, "")),
        ("b".to_owned(), pod(None, PodPhase::Pulling, "")),
    ];
    let changes = futures_util::stream::iter([Change::All(all)]).boxed();
    let mut finding =
        std::pin::pin!(discover(Arc::clone(&pool), changes, Arc::clone(&directory), stop.clone()));
    let ended = tokio::time::timeout(std::time::Duration::from_secs(60), &mut finding).await;
    assert!(ended.is_err());
    let signals = pool.signals();
    assert_eq!((signals.endpoints.len(), signals.waiting.len()), (1, 1));
    stop.cancel();
    finding.await;
    let signals = pool.signals();
    assert_eq!((signals.endpoints.len(), signals.waiting.len()), (0, 0));
}
