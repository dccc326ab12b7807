//! The API server is away for 30 s, under load, for a workload in direct mode and one in KEDA mode.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::Cluster;
use crate::plane::eventually;
use crate::suites::load::Load;
use crate::suites::{direct, keda};

/// As many loads as two replicas have room for.
const LOADS: usize = 4;
/// Slow tokens make many requests at once with little work for this machine.
const DECODE_STEP: &str = "40";

/// Requests are answered all the time. Nothing is scaled down while it is away or when it is back,
/// and decisions take effect as before.
pub async fn traffic_flows_while_the_api_server_is_away(cluster: Arc<Cluster>) {
    let options = direct::Options {
        gateways: 2,
        scalers: 2,
        decode_step: DECODE_STEP,
        ..direct::Options::default()
    };
    let direct = direct::Setup::new(&cluster, "away", options).await;
    let by_keda = match cluster.keda {
        true => {
            let options = keda::Options { decode_step: DECODE_STEP, ..Default::default() };
            Some(keda::Setup::new(&cluster, "away-keda", &options).await)
        }
        false => None,
    };
    let gateways = direct.clients.into_iter().chain(by_keda.iter().map(|setup| setup.clients));
    let start = |gateway| (0..LOADS).map(move |_| Load::start(gateway));
    // Two gateways are in front of one workload, so each gets half.
    let mut loads: Vec<Vec<Load>> = gateways.map(|gateway| start(gateway).collect()).collect();
    loads[0].truncate(LOADS / 2);
    loads[1].truncate(LOADS / 2);
    let counts = async || {
        let mut counts = vec![direct.replicas(&cluster).await];
        if let Some(by_keda) = &by_keda {
            counts.push(by_keda.replicas(&cluster).await);
        }
        counts
    };
    let served = |loads: &[Vec<Load>]| -> Vec<usize> {
        loads.iter().map(|loads| loads.iter().map(Load::served).sum()).collect()
    };
    eventually("two replicas are ready", async || {
        counts().await.iter().all(|(desired, ready)| *desired >= 2 && desired == ready)
    })
    .await;

    cluster.plane.kill("kube-apiserver").await;
    let (before, until) = (served(&loads), Instant::now() + Duration::from_secs(30));
    sleep_until(until).await;
    for (n, (before, now)) in before.into_iter().zip(served(&loads)).enumerate() {
        assert!(now - before >= 50, "gateway {n}: {} requests in 30 s", now - before);
    }
    cluster.plane.start_api_server().await;
    // Longer than KEDA's cooldown, the HPA's window and sync, and our own cooldown: any scale-down
    // would happen within this time.
    let until = Instant::now() + Duration::from_secs(15);
    while Instant::now() < until {
        let now = counts().await;
        assert!(now.iter().all(|(desired, _)| *desired >= 2), "{now:?} after it was away");
        sleep(Duration::from_millis(200)).await;
    }
    for load in loads.into_iter().flatten() {
        load.end().await;
    }
    eventually("decisions take effect again", async || {
        counts().await.iter().all(|(desired, _)| *desired == 0)
    })
    .await;
    assert_eq!(direct::all_whole(direct.chats(2, false, 2)).await, 2, "it wakes from zero");
    direct.end(&cluster).await;
    if let Some(by_keda) = by_keda {
        by_keda.end(&cluster).await;
    }
}
