//! Publishes `/signals`: once a second, and at once when something changed that should be decided
//! on, then at most every 20 ms.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use forebay_signals::publisher::Publisher;
use forebay_signals::{Health, PoolSignals};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::control::predecessor::Predecessor;
use crate::control::reload::Pools;
use crate::pool::Pool;

const TICK: Duration = Duration::from_secs(1);
const PACE: Duration = Duration::from_millis(20);

/// Reports for as long as the gateway runs.
pub(crate) async fn report(
    publisher: Arc<Publisher<PoolSignals>>,
    configured: Pools,
    news: Arc<Notify>,
    predecessor: Arc<Predecessor>,
) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut generated: HashMap<Arc<str>, u64> = HashMap::new();
    loop {
        let tick = tokio::select! {
            _ = ticks.tick() => true,
            () = news.notified() => false,
        };
        let now = Instant::now();
        let pools = configured.all();
        if tick {
            for pool in pools.iter() {
                pool.tick();
                if let Some(file) = &pool.settings().api_key_file {
                    pool.key.refresh(&pool.name, file).await;
                }
            }
        }
        let mut signals: BTreeMap<_, _> =
            pools.iter().map(|pool| (pool.name.to_string(), pool.signals())).collect();
        if tick {
            for pool in pools.iter() {
                let before = generated.entry(Arc::clone(&pool.name)).or_default();
                export(pool, &signals[&*pool.name], before);
            }
        }
        predecessor.add_to(&mut signals);
        publisher.publish(signals);
        if !tick {
            sleep_until(now + PACE).await;
        }
    }
}

fn export(pool: &Pool, signals: &PoolSignals, generated: &mut u64) {
    let before = std::mem::replace(generated, signals.totals.generated_tokens);
    let new = signals.totals.generated_tokens.saturating_sub(before);
    let rate = new as f64 / TICK.as_secs_f64();
    pool.metrics.set(signals.queue_depth, signals.in_flight, &signals.totals, rate);
    pool.metrics.set_endpoints(|health| {
        let counted = signals.endpoints.values().flatten().filter(|endpoint| {
            health
                == match endpoint.health {
                    Health::Starting => "starting",
                    Health::Ready => "ready",
                    Health::Ejected => "ejected",
                    Health::Draining => "draining",
                }
        });
        counted.count() as u32
    });
}
