//! The API server is away for 30 s, under load: scaled by us, and by KEDA at the same time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::Cluster;
use crate::plane::eventually;
use crate::suites::load::Load;
use crate::suites::{direct, keda};

/// As many clients as two replicas have places for.
const LOADS: usize = 4;
/// Slow tokens: many requests at once, and little work for this machine.
const DECODE_STEP: &str = "40";

/// Requests are answered all along. When it is back nothing was scaled down, nothing is, and
/// decisions are carried out as before.
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
    let gateways = direct.clients.into_iter().chain(by_keda.iter().map(|it| it.clients));
    let start = |gateway| (0..LOADS).map(move |_| Load::start(gateway));
    // Half of them at each of the two gateways in front of one workload.
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
        counts().await.iter().all(|(asked, ready)| *asked >= 2 && asked == ready)
    })
    .await;

    cluster.plane.kill("kube-apiserver").await;
    let (before, until) = (served(&loads), Instant::now() + Duration::from_secs(30));
    sleep_until(until).await;
    for (n, (before, now)) in before.into_iter().zip(served(&loads)).enumerate() {
        assert!(now - before >= 50, "gateway {n}: {} requests in 30 s", now - before);
    }
    cluster.plane.start_api_server().await;
    // Longer than KEDA's cooldown, the HPA's window and sync, and our own cooldown: what anybody
    // wanted to take, they would have taken.
    let until = Instant::now() + Duration::from_secs(15);
    while Instant::now() < until {
        let now = counts().await;
        assert!(now.iter().all(|(asked, _)| *asked >= 2), "{now:?} after it was away");
        sleep(Duration::from_millis(200)).await;
    }
    for load in loads.into_iter().flatten() {
        load.end().await;
    }
    eventually("it is decided again", async || counts().await.iter().all(|(asked, _)| *asked == 0))
        .await;
    assert_eq!(direct::all_whole(direct.chats(2, false, 2)).await, 2, "and from zero");
    direct.end(&cluster).await;
    if let Some(by_keda) = by_keda {
        by_keda.end(&cluster).await;
    }
}
