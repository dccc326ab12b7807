//! The look at the chosen pool's last hour and decisions.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_scaler::overview::GatewayState;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::time::timeout;

use crate::operator::client::AdminClient;

/// Longest look; then the figures of the last one stay.
const LOOK_TIME: Duration = Duration::from_secs(3);

/// The last hour of a pool, as far as it is drawn.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Hour {
    pub(super) held: Vec<u64>,
    pub(super) in_flight: Vec<u64>,
    pub(super) tokens: Vec<f64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PastDecision {
    pub(super) at_millis: u64,
    pub(super) why: String,
    pub(super) current: bool,
}

/// The outcome of a look.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) hour: Hour,
    pub(super) decisions: Vec<PastDecision>,
    /// The troubles with gateways, in a sentence each.
    pub(super) silent: Vec<String>,
}

/// A look at the chosen pool. The far end may be slow or hang, and the screen goes on meanwhile.
#[derive(Default)]
pub(super) struct Look {
    pub(super) pool: Option<String>,
    /// `None` if none is under way.
    answer: Option<BoxFuture<'static, Option<Seen>>>,
}

impl Look {
    /// Begins a look, unless one is under way.
    pub(super) fn begin(&mut self, client: &AdminClient, pool: String) {
        if self.answer.is_none() {
            self.pool = Some(pool.clone());
            let client = client.clone();
            let look = async move { timeout(LOOK_TIME, detail(&client, &pool)).await.ok() };
            self.answer = Some(Box::pin(look));
        }
    }

    /// The outcome of the look; `None` if it took too long. Cancel-safe; pending while none is under way.
    pub(super) async fn next(&mut self) -> Option<Seen> {
        let Some(answer) = &mut self.answer else { return std::future::pending().await };
        let seen = answer.await;
        self.answer = None;
        seen
    }
}

/// The last hour and the decisions of a pool. Whatever can't be read is left out: the feed shows a loss.
async fn detail(client: &AdminClient, pool: &str) -> Seen {
    let hours = client.get::<BTreeMap<String, Hour>>(&format!("/history?pool={pool}")).await;
    let hour = hours.ok().and_then(|mut hours| hours.remove(pool)).unwrap_or_default();
    let decisions = client.get::<Vec<PastDecision>>(&format!("/decisions?pool={pool}")).await;
    let gateways = client.get::<Vec<GatewayState>>("/gateways").await.unwrap_or_default();
    let silent = gateways.iter().filter_map(GatewayState::trouble).collect();
    Seen { hour, decisions: decisions.unwrap_or_default(), silent }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_look_is_bounded_and_another_may_follow() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = AdminClient::at(silent.local_addr().expect("bound"));
        let mut looking = Look::default();
        for _ in 0..2 {
            let began = tokio::time::Instant::now();
            looking.begin(&client, "a".to_owned());
            assert!(looking.next().await.is_none());
            assert!(began.elapsed() <= LOOK_TIME + Duration::from_millis(1));
        }
    }
}
