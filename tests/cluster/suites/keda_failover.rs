//! KEDA mode when the scaler that decides dies.

use std::sync::Arc;

use crate::Cluster;
use crate::forebay::Forebay;
use crate::plane::eventually;
use crate::suites::keda::{Options, Setup, all_answered};

/// Two scalers share one address, and the leader dies in the middle of a cold start. KEDA gets
/// answers all the time, and the start is not taken back.
pub async fn another_scaler_answers_keda(cluster: Arc<Cluster>) {
    let options = Options { scalers: 2, cold_start: "4s", ..Options::default() };
    let mut setup = Setup::new(&cluster, "keda-failover", &options).await;
    let leads = |scaler: &Forebay| scaler.log().contains("this scaler leads");
    eventually("a scaler leads", async || setup.scalers.iter().any(leads)).await;
    let leader = setup.scalers.iter().position(leads).expect("just seen");
    // Work for two replicas, which lasts until the other scaler has taken over.
    let clients = setup.serve(16, 800).await;
    eventually("the start is under way", async || setup.replicas(&cluster).await.0 >= 1).await;
    setup.scalers.remove(leader).kill().await;
    let mut least = u32::MAX;
    eventually("the other takes over, and the HPA goes on", async || {
        let desired = setup.replicas(&cluster).await.0;
        least = least.min(desired);
        leads(&setup.scalers[0]) && desired >= 2
    })
    .await;
    assert!(least >= 1, "scaled to zero in the middle of a start");
    all_answered(clients).await;
    setup.asleep(&cluster).await;
    // The remaining scaler wakes it again.
    all_answered(setup.serve(2, 8).await).await;
    setup.end(&cluster).await;
}
