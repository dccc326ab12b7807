//! Publishes `/signals`: once a second, of all pools that are not at rest, and of a pool at once after
//! a change there that the scaler should know, but at least 20 ms apart, and so that reports take at
//! most a tenth of the time. Once a second, the same figures go to `/metrics`.

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

/// The interval of regular reports.
const TICK: Duration = Duration::from_secs(1);
/// The least time between a report of a change and the next report.
const PACE: Duration = Duration::from_millis(20);
/// The pause after a report, in multiples of what the report took. While ten thousand endpoints
/// start at once, something changes all the time.
const REST: u32 = 9;

/// Reports while the gateway runs.
pub(crate) async fn report(
    publisher: Arc<Publisher<PoolSignals>>,
    configured: Pools,
    changed: Arc<Notify>,
    predecessor: Arc<Predecessor>,
) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reported = configured.all();
    let mut generated: HashMap<Arc<str>, u64> = HashMap::new();
    loop {
        let tick = tokio::select! {
            _ = ticks.tick() => true,
            () = changed.notified() => false,
        };
        let now = Instant::now();
        let pools = configured.all();
        // After a reload, pools may have gone. The predecessor's requests are added to all pools.
        let all = !Arc::ptr_eq(&pools, &reported) || (tick && predecessor.is_busy());
        reported = Arc::clone(&pools);
        let mut signals = BTreeMap::new();
        for pool in pools.iter() {
            let ticked = tick && pool.tick();
            if pool.take_change() || ticked || all {
                signals.insert(pool.name.to_string(), pool.signals());
            }
        }
        if tick {
            for pool in pools.iter() {
                match signals.get(&*pool.name) {
                    Some(signals) => {
                        let before = generated.entry(Arc::clone(&pool.name)).or_default();
                        export(pool, signals, before);
                    }
                    None => pool.figures.rest(),
                }
            }
        }
        predecessor.add_to(&mut signals);
        if all {
            publisher.publish(signals);
        } else {
            publisher.update(signals);
        }
        if !tick {
            sleep_until(now + PACE.max(now.elapsed() * (REST + 1))).await;
        }
    }
}

/// Sets a pool's metrics. `generated` is its number of generated tokens at the last call.
fn export(pool: &Pool, signals: &PoolSignals, generated: &mut u64) {
    let before = std::mem::replace(generated, signals.totals.generated_tokens);
    let new = signals.totals.generated_tokens.saturating_sub(before);
    let rate = new as f64 / TICK.as_secs_f64();
    pool.figures.set(signals.queue_depth, signals.in_flight, &signals.totals, rate);
    pool.figures.set_expected_wait(signals.expected_wait_seconds);
    let mut counts = [0; 4];
    for endpoint in signals.endpoints.values().flatten() {
        counts[match endpoint.health {
            Health::Starting => 0,
            Health::Ready => 1,
            Health::Ejected => 2,
            Health::Draining => 3,
        }] += 1;
    }
    pool.figures.set_endpoints(counts);
}
