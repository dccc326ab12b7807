//! A publisher and its readers over a real socket.

use std::collections::BTreeMap;
use std::sync::Arc;

use forebay_signals::PoolSignals;
use forebay_signals::follower::{Event, Feed, follow};
use forebay_signals::publisher::Publisher;
use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

fn pools(depths: &[(&str, u32)]) -> BTreeMap<String, PoolSignals> {
    let pool = |queue_depth| PoolSignals { queue_depth, ..PoolSignals::default() };
    depths.iter().map(|(name, depth)| ((*name).to_owned(), pool(*depth))).collect()
}

/// A runtime of its own, so that ending it cuts every connection as a process's end does.
fn serve(listener: std::net::TcpListener, publisher: &Arc<Publisher<PoolSignals>>) -> Runtime {
    let app = axum::Router::new().route("/signals", publisher.route());
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    runtime.spawn(async move {
        listener.set_nonblocking(true).expect("a socket");
        let listener = TcpListener::from_std(listener).expect("a listener");
        let _ = axum::serve(listener, app).await;
    });
    runtime
}

async fn update(feed: &mut Feed<PoolSignals>) -> (BTreeMap<String, u32>, Vec<String>) {
    loop {
        match feed.next().await.expect("never ends") {
            Event::Update { view, touched } => {
                let depths = view.pools.iter().map(|(name, pool)| (name.clone(), pool.queue_depth));
                return (depths.collect(), touched);
            }
            Event::Lost { .. } | Event::Short { .. } => {}
            Event::Goodbye => panic!("no sender has left"),
        }
    }
}

fn depths(pools: &[(&str, u32)]) -> BTreeMap<String, u32> {
    pools.iter().map(|(name, depth)| ((*name).to_owned(), *depth)).collect()
}

#[tokio::test]
async fn a_reader_gets_the_snapshot_then_only_changes_and_a_restarted_sender_anew() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let publisher = Publisher::new();
    publisher.publish(pools(&[("a", 1), ("b", 1)]));
    let server = serve(listener, &publisher);

    let mut feed = follow::<PoolSignals>(format!("http://{address}/signals"), None);
    let (all, touched) = update(&mut feed).await;
    assert_eq!((all, touched.len()), (depths(&[("a", 1), ("b", 1)]), 2));
    publisher.publish(pools(&[("a", 2), ("b", 1)]));
    let (all, touched) = update(&mut feed).await;
    assert_eq!((all, touched), (depths(&[("a", 2), ("b", 1)]), vec!["a".to_owned()]));
    publisher.publish(pools(&[("a", 2)]));
    let (all, touched) = update(&mut feed).await;
    assert_eq!((all, touched), (depths(&[("a", 2)]), vec!["b".to_owned()]));

    // The sender dies and another starts at the same address.
    server.shutdown_background();
    let lost = feed.next().await;
    assert!(matches!(lost, Some(Event::Lost { .. })), "{lost:?}");
    let listener = std::net::TcpListener::bind(address).expect("free again");
    let publisher = Publisher::new();
    publisher.publish(pools(&[("c", 7)]));
    let server = serve(listener, &publisher);
    assert_eq!(update(&mut feed).await.0, depths(&[("c", 7)]));

    publisher.goodbye();
    assert!(matches!(feed.next().await, Some(Event::Goodbye)));
    server.shutdown_background();
}

#[tokio::test]
async fn a_reader_that_is_cut_off_begins_anew_or_learns_why_not() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let publisher = Publisher::new();
    publisher.publish(pools(&[("a", 1)]));
    let server = serve(listener, &publisher);
    let mut feed = follow::<PoolSignals>(format!("http://{address}/signals"), None);
    let Some(Event::Update { view, .. }) = feed.next().await else { panic!("no snapshot") };
    assert!(view.up_millis.is_some_and(|up| up < 600_000), "{:?}", view.up_millis);
    publisher.restart();
    let lost = feed.next().await;
    assert!(matches!(lost, Some(Event::Lost { .. })), "{lost:?}");
    assert_eq!(update(&mut feed).await.0, depths(&[("a", 1)]));
    server.shutdown_background();

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let refusal = (axum::http::StatusCode::SERVICE_UNAVAILABLE, "another one leads\n");
    let app = axum::Router::new().route("/signals", axum::routing::get(async move || refusal));
    let server = tokio::spawn(async { axum::serve(listener, app).await });
    let mut feed = follow::<PoolSignals>(format!("http://{address}/signals"), None);
    let Some(Event::Lost { error }) = feed.next().await else { panic!("it is refused") };
    assert_eq!(error, "answered 503 Service Unavailable: another one leads");
    server.abort();
}
