use parking_lot::Mutex;

use super::*;
use crate::answer::meter::Tokens;
use crate::answer::outcome::{FirstToken, Outcome, Pause, RequestEnd};
use crate::pool::endpoint::Due;
use crate::pool::model_registry::ServedModel;

/// How often the pool's lock is taken by `future`.
async fn locks<T>(pool: &Pool, future: impl Future<Output = T>) -> (usize, T) {
    let before = pool.scheduling.taken();
    let output = future.await;
    (pool.scheduling.taken() - before, output)
}

/// Records what a stream's relay records, all of it several times.
fn stream(pool: &Pool, slot: &mut Slot) {
    let gaps = forebay_signals::Histogram::default();
    let ms = Duration::from_millis(5);
    let token = FirstToken { ttft: ms, cold: ms, upstream: ms };
    pool.figures.first_token(&token, Duration::ZERO, slot.totals());
    for tokens in 1..1000 {
        slot.pulse(Instant::now());
        slot.generated(tokens);
        pool.figures.gaps(&gaps, slot.totals());
    }
    assert_eq!(slot.fingerprint(), None);
}

fn record_end(pool: &Pool, outcome: Outcome) {
    let end = RequestEnd {
        outcome,
        reason: None,
        aborted: None,
        held: None,
        took: Duration::ZERO,
        tries: 1,
        tokens: &Tokens::default(),
        carried: 0,
        session: None,
    };
    pool.figures.ended(&end, None);
}

#[tokio::test(start_paused = true)]
async fn a_request_takes_the_lock_at_most_three_times() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    ready(&pool, 1);
    let (mut plain, mut streamed, mut held) = (ticket(60), ticket(60), ticket(60));
    let (taken, ()) = locks(&pool, async {
        let slot = pool.hold(&mut plain).await.expect("room");
        slot.ended(End::Complete);
        record_end(&pool, Outcome::Completed);
    })
    .await;
    assert_eq!(taken, 2, "plain: admitted with its endpoint, given back");

    let (taken, slot) = locks(&pool, async {
        let mut slot = pool.hold(&mut streamed).await.expect("room");
        stream(&pool, &mut slot);
        slot
    })
    .await;
    assert_eq!(taken, 1, "streamed, up to its end: admitted with its endpoint");

    let learns = super::pool(r#"{"name": "p", "pick": "powerOfTwo"}"#);
    ready(&learns, 1);
    let (taken, ()) = locks(&learns, async {
        let mut slot = learns.hold(&mut ticket(60)).await.expect("room");
        for _ in 0..3 {
            slot.first_token(Instant::now());
        }
        slot.ended(End::Complete);
    })
    .await;
    assert_eq!(taken, 3, "a policy that learns: admitted, first token, given back");

    // Its release is a part of what gives the place back.
    let (taken, slot) = locks(&pool, async {
        let mut hold = Box::pin(pool.hold(&mut held));
        assert!(hold.as_mut().now_or_never().is_none());
        slot.ended(End::Complete);
        record_end(&pool, Outcome::Completed);
        hold.await.expect("released")
    })
    .await;
    assert_eq!(taken, 2, "one ended, one held: given back with the release, admitted");
    let (taken, ()) = locks(&pool, async { slot.ended(End::Complete) }).await;
    assert_eq!(taken, 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_answered_takes_the_lock_at_most_three_times_a_try() {
    let pool = pool(r#"{"name": "p", "hold": {"timeout": "1s"}}"#);
    let (mut expires, mut leaves, mut fails) = (ticket(60), ticket(60), ticket(60));
    let (taken, _) = locks(&pool, pool.hold(&mut expires)).await;
    assert_eq!(taken, 3, "admitted, reason read, left");
    let (taken, _) = locks(&pool, async { pool.hold(&mut leaves).now_or_never() }).await;
    assert_eq!(taken, 2, "admitted, left");
    ready(&pool, 1);
    ready(&pool, 2);
    let (taken, again) = locks(&pool, async {
        let slot = pool.hold(&mut fails).await.expect("room");
        slot.decide_retry(&mut fails, failure(Cause::Connection))
    })
    .await;
    assert!(again.is_ok());
    assert_eq!(taken, 2, "admitted, given back with the decision on another try");
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_at_rest_until_something_changes_that_is_reported() {
    let pool = pool(r#"{"name": "p"}"#);
    ready(&pool, 1);
    // Its last changes are reported, and then it is at rest, even while it is probed.
    let rests = |pool: &Arc<Pool>| (pool.tick(), pool.tick()) == (true, false);
    assert!(rests(&pool));
    let (id, _) = pool.probe_wake(address(1)).expect("it is there");
    let endpoint = (address(1), id);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(matches!(
        pool.begin_probe(endpoint, Duration::default, false, Instant::now()),
        Some(Due::Now(..))
    ));
    assert!(pool.is_as_probed(endpoint, Probe::Health, &Probed::Answered));
    let model = ServedModel { id: "m".into(), parent: None, max_model_len: None };
    pool.serves(address(1), vec![model.clone()]);
    assert!(rests(&pool), "models");
    pool.serves(address(1), vec![model]);
    assert!(!pool.tick(), "the same models");

    // As the scaler repeats it each second.
    pool.set_barrier(None);
    pool.set_failed_start(None);
    pool.set_cold_start(None, 0, 0);
    pool.drain_endpoint(address(1), false);
    assert!(!pool.tick());
    pool.set_cold_start(None, 2, 0);
    assert!(rests(&pool), "more replicas are wanted");

    let (mut first, mut held) = (ticket(60), ticket(600));
    let slot = pool.hold(&mut first).await.expect("room");
    assert!(rests(&pool), "one is in flight");
    slot.totals().left(10, 5);
    let all = Duration::from_secs(1);
    pool.figures.continued(Pause { cause: Cause::Connection, all, held: Duration::ZERO });
    assert!(rests(&pool), "a stream has left it, and went on at another one");
    slot.ended(End::Complete);
    assert!(pool.tick());
    record_end(&pool, Outcome::Completed);
    assert!(rests(&pool), "recorded later than it gave its place back");

    pool.set_barrier(Some((1, Duration::from_secs(9))));
    let mut held = Box::pin(pool.hold(&mut held));
    assert!(held.as_mut().now_or_never().is_none());
    assert!((0..3).all(|_| pool.tick()), "barrier, and one that waits longer and longer");
    drop(held);
    pool.set_barrier(None);
    assert!(rests(&pool));

    tokio::time::advance(Duration::from_secs(5)).await;
    pool.probed(address(1), Probe::Health, Probed::Failed("it answers 503".into()));
    assert!((0..3).all(|_| pool.tick()), "without room the expected wait may change");
    ready(&pool, 1);
    let mut full = ticket(60);
    let slot = pool.hold(&mut full).await.expect("room");
    slot.ended(End::Failed(failure(Cause::QueueFull)));
    ready(&pool, 2);
    assert!(rests(&pool), "one of two is full for a second");
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(rests(&pool), "it no longer is");
}

/// Collects log lines, each with whether the pool's lock is held.
struct LockWatch {
    pool: Arc<Pool>,
    lines: Arc<Mutex<Vec<(String, bool)>>>,
}

impl tracing::Subscriber for LockWatch {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.lines.lock().push((text.0, self.pool.scheduling.is_locked()));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn nothing_is_logged_under_the_lock() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    let lines = Arc::new(Mutex::new(Vec::new()));
    let watch = LockWatch { pool: Arc::clone(&pool), lines: Arc::clone(&lines) };
    // With two subscribers, tracing asks both about a line that another test's thread logs first, and
    // does not switch that line off.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let _watched = tracing::subscriber::set_default(watch);
    let (mut first, mut second) = (ticket(60), ticket(60));
    let mut held = Box::pin(pool.hold(&mut first));
    assert!(held.as_mut().now_or_never().is_none());
    ready(&pool, 1);
    let slot = held.as_mut().now_or_never().expect("ready").expect("released");
    let mut left = Box::pin(pool.hold(&mut second));
    assert!(left.as_mut().now_or_never().is_none());
    drop(left);
    slot.ended(End::Failed(failure(Cause::EngineDead)));
    drop(held);
    for port in 2..=4 {
        ready(&pool, port);
        let slot = pool.hold(&mut first).await.expect("ready");
        let _ = slot.decide_retry(&mut first, failure(Cause::EngineDead));
    }
    pool.set_barrier(Some((1, Duration::ZERO)));
    pool.tick();
    let lines = std::mem::take(&mut *lines.lock());
    for text in [
        "request held",
        "released after",
        "released",
        "failed a request",
        "is out",
        "three replicas died",
        "the scaler is silent",
    ] {
        assert!(lines.iter().any(|(line, _)| line.contains(text)), "{text}: {lines:?}");
    }
    let locked: Vec<_> = lines.iter().filter(|(_, locked)| *locked).collect();
    assert!(locked.is_empty(), "{locked:?}");
}
