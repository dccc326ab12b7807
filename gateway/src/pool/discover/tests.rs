use super::*;
use forebay_signals::{Health, PodPhase};
use tokio::sync::Notify;

fn pool() -> Arc<Pool> {
    Pool::new(forebay_config::Pool::named("p"), Arc::new(Notify::new()))
}

fn found() -> Found {
    let (pool, directory) = (pool(), Arc::<Directory>::default());
    directory.open(&pool);
    Found { pool, directory, addresses: BTreeMap::new(), holders: BTreeMap::new() }
}

fn pod(ip: Option<u8>, phase: PodPhase, reason: &str) -> Member {
    // Where nobody listens, and no probe is answered.
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

fn put(found: &mut Found, name: &str, member: Member) {
    found.take(Change::Put(name.to_owned(), member));
}

#[tokio::test]
async fn a_pod_waits_by_name_until_it_has_an_address_and_is_then_an_endpoint() {
    let mut found = found();
    put(&mut found, "a", pod(None, PodPhase::Unscheduled, "Unschedulable"));
    let signals = found.pool.signals();
    assert!(signals.endpoints.is_empty());
    let waiting = signals.waiting["a"].as_ref().expect("there");
    assert_eq!((waiting.phase, waiting.reason.as_str()), (PodPhase::Unscheduled, "Unschedulable"));

    put(&mut found, "a", pod(Some(1), PodPhase::Failed, "ImagePullBackOff"));
    let signals = found.pool.signals();
    assert!(signals.waiting.is_empty());
    let endpoint = signals.endpoints["127.0.0.1:1"].as_ref().expect("there");
    assert_eq!(endpoint.health, Health::Starting);
    assert_eq!(endpoint.phase, Some(PodPhase::Failed));
    assert_eq!(endpoint.reason, "ImagePullBackOff", "it says more than that nobody answers");
}

#[tokio::test]
async fn an_address_that_went_to_another_pod_stays_its_endpoint() {
    let mut found = found();
    put(&mut found, "old", pod(Some(1), PodPhase::Draining, ""));
    put(&mut found, "new", pod(Some(1), PodPhase::Starting, ""));
    found.take(Change::Gone("old".to_owned()));
    let signals = found.pool.signals();
    assert_eq!(signals.endpoints["127.0.0.1:1"].as_ref().expect("there").health, Health::Starting);
    found.take(Change::Gone("new".to_owned()));
    assert!(found.pool.signals().endpoints.is_empty());
}

#[tokio::test]
async fn a_whole_list_takes_away_what_is_not_in_it_and_trouble_takes_nothing() {
    let mut found = found();
    put(&mut found, "a", pod(Some(1), PodPhase::Starting, ""));
    put(&mut found, "b", pod(None, PodPhase::Pulling, ""));
    found.take(Change::Trouble("the API server is not reached".to_owned()));
    assert_eq!(found.pool.signals().endpoints.len(), 1);
    let c = ("c".to_owned(), pod(Some(3), PodPhase::Starting, ""));
    found.take(Change::All(vec![c]));
    let signals = found.pool.signals();
    assert!(signals.waiting.is_empty());
    assert_eq!(signals.endpoints.keys().collect::<Vec<_>>(), ["127.0.0.3:1"]);
}

#[tokio::test]
async fn one_that_kubernetes_took_out_or_deleted_gets_nothing_new() {
    let mut found = found();
    let mut member = pod(Some(1), PodPhase::Starting, "ContainersNotReady");
    member.withdrawn = true;
    put(&mut found, "a", member);
    let health = |found: &Found| {
        let signals = found.pool.signals();
        let endpoint = signals.endpoints["127.0.0.1:1"].clone().expect("there");
        (endpoint.health, endpoint.reason)
    };
    assert_eq!(health(&found), (Health::Ejected, "ContainersNotReady".to_owned()));
    put(&mut found, "a", pod(Some(1), PodPhase::Draining, "Terminating"));
    assert_eq!(health(&found).0, Health::Draining);
    put(&mut found, "a", pod(Some(1), PodPhase::Starting, ""));
    assert_eq!(health(&found).0, Health::Starting);
}

#[tokio::test]
async fn who_still_knows_a_pool_that_is_gone_neither_adds_to_its_namesake_nor_takes_from_it() {
    let mut found = found();
    put(&mut found, "a", pod(Some(1), PodPhase::Starting, ""));
    found.directory.close(&found.pool);
    assert!(found.pool.signals().endpoints.is_empty());
    put(&mut found, "b", pod(Some(2), PodPhase::Starting, ""));
    assert!(found.pool.signals().endpoints.is_empty(), "it came too late");

    let namesake = pool();
    found.directory.open(&namesake);
    put(&mut found, "c", pod(Some(3), PodPhase::Starting, ""));
    assert!(namesake.signals().endpoints.is_empty());
    let address = SocketAddr::from(([127, 0, 0, 2], 1));
    found.directory.add(&namesake, Source::Found, address);
    found.take(Change::Gone("b".to_owned()));
    found.directory.close(&found.pool);
    assert_eq!(namesake.signals().endpoints.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_discovery_that_is_stopped_takes_along_what_it_found_and_one_whose_news_end_does_not() {
    let Found { pool, directory, .. } = found();
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
