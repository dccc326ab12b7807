//! The decisions with all their figures: `/decisions` and the log.
//!
//! First come the current decisions, one per pool, even if they change nothing, with the time and
//! reason of the last change of the count. Then come the last decisions that changed a count or kept
//! one from changing: a bounded number of each pool, so that one that changes all the time does not push
//! out the others', and a bounded number of all pools together.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};
use forebay_config::Millis;
use forebay_signals::FailedStart;
use forebay_telemetry::Tracer;
use forebay_telemetry::context::TraceContext;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::decide::Decision;
use crate::decide::cold_start::Phases;
use crate::run::spans;

/// Past decisions of one pool to keep, and of all pools together.
const KEPT_OF_POOL: usize = 200;
const KEPT: usize = 20_000;
/// Past decisions to list where no pool is named.
const LISTED: usize = 300;

/// The decisions, current and past.
#[derive(Default)]
pub(crate) struct Decisions {
    past: Mutex<PastDecisions>,
    current: Mutex<BTreeMap<String, Current>>,
    /// Exports a span for each decision that changes a count, if traces are exported.
    tracer: OnceLock<Arc<Tracer>>,
}

/// The state of a pool that is shown beside its decision.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolState {
    /// The learned phases of a start.
    pub(crate) cold_start: Phases,
    /// The failure of its starts, if no replica can be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed_start: Option<FailedStart>,
}

/// A pool's decision, with its time and the pool's state.
#[derive(Clone)]
struct Noted {
    at: Millis,
    decision: Decision,
    state: PoolState,
}

/// A pool's current decision.
struct Current {
    noted: Noted,
    changed: Option<LastChange>,
}

/// Past decisions by pool, each with its number, oldest first. Numbers grow over all pools.
#[derive(Default)]
struct PastDecisions {
    pools: BTreeMap<String, VecDeque<(u64, Noted)>>,
    /// The number of each decision that is kept, with its pool.
    order: BTreeMap<u64, String>,
    next: u64,
}

impl PastDecisions {
    fn add(&mut self, pool: &str, noted: Noted) {
        let of_pool = self.pools.entry(pool.to_owned()).or_default();
        if of_pool.len() == KEPT_OF_POOL
            && let Some((number, _)) = of_pool.pop_front()
        {
            self.order.remove(&number);
        }
        of_pool.push_back((self.next, noted));
        self.order.insert(self.next, pool.to_owned());
        self.next += 1;
        if self.order.len() > KEPT
            && let Some((_, oldest)) = self.order.pop_first()
            && let Some(of_pool) = self.pools.get_mut(&oldest)
        {
            of_pool.pop_front();
            if of_pool.is_empty() {
                self.pools.remove(&oldest);
            }
        }
    }

    /// The decisions of a pool, newest first.
    fn of(&self, pool: &str) -> impl Iterator<Item = &Noted> {
        self.pools.get(pool).into_iter().flatten().rev().map(|(_, noted)| noted)
    }

    /// The last ones of all pools, newest first.
    fn last(&self) -> impl Iterator<Item = (&str, &Noted)> {
        self.order.iter().rev().take(LISTED).filter_map(|(number, pool)| {
            let of_pool = self.pools.get(pool)?;
            let at = of_pool.binary_search_by_key(number, |(number, _)| *number).ok()?;
            Some((pool.as_str(), &of_pool[at].1))
        })
    }
}

/// The time and reason of the last change of a count.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LastChange {
    at_millis: Millis,
    why: String,
}

#[derive(Deserialize)]
struct DecisionsQuery {
    pool: Option<String>,
}

/// One entry of `/decisions`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    at_millis: Millis,
    pool: &'a str,
    /// Whether it is the pool's current decision.
    current: bool,
    /// The decision in one sentence.
    why: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<&'a LastChange>,
    #[serde(flatten)]
    decision: &'a Decision,
    #[serde(flatten)]
    state: &'a PoolState,
}

impl Entry<'_> {
    fn json(self) -> Value {
        serde_json::to_value(self).expect("figures and names only")
    }
}

impl Decisions {
    /// `GET`: the current decision of each pool, then the last decisions, newest first; of one pool
    /// with `?pool=NAME`, or 404 if there is none on it.
    pub(crate) fn route(self: &Arc<Self>) -> MethodRouter {
        let list = |State(decisions): State<Arc<Self>>, Query(query): Query<DecisionsQuery>| async move {
            let list = decisions.list(query.pool.as_deref());
            match query.pool {
                Some(pool) if list.is_empty() => {
                    let known: Vec<_> = decisions.current.lock().keys().cloned().collect();
                    let known =
                        if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
                    let why =
                        format!("no decision on a pool `{pool}`; pools with decisions: {known}\n");
                    (StatusCode::NOT_FOUND, why).into_response()
                }
                _ => axum::Json(list).into_response(),
            }
        };
        get(list).with_state(Arc::clone(self))
    }

    fn list(&self, pool: Option<&str>) -> Vec<Value> {
        let current = self.current.lock();
        let now = current.iter().filter(|(name, _)| pool.is_none_or(|pool| pool == *name));
        let mut list: Vec<_> = now.map(|(name, current)| current.entry(name)).collect();
        drop(current);
        let past = self.past.lock();
        match pool {
            Some(pool) => list.extend(past.of(pool).map(|noted| noted.entry(pool))),
            None => list.extend(past.last().map(|(pool, noted)| noted.entry(pool))),
        }
        list
    }

    /// Exports decisions from now on.
    pub(crate) fn trace(&self, tracer: Arc<Tracer>) {
        let _ = self.tracer.set(tracer);
    }

    /// Records a decision, and logs it if it changed the count. It also becomes a past decision if it
    /// changed the count, or if another rule than before keeps the count as it is. `waking` are the
    /// places of the requests that brought it about, in their traces.
    pub(crate) fn note(
        &self,
        pool: &str,
        decision: &Decision,
        state: PoolState,
        waking: &[TraceContext],
        now: Millis,
    ) {
        let changed = decision.from != decision.desired;
        let mut current = self.current.lock();
        let before = current.get_mut(pool);
        let rule = before.as_ref().map(|before| before.noted.decision.why.rule());
        let kept_back = decision.why.holds_back() && rule != Some(decision.why.rule());
        let sentence = (changed || kept_back).then(|| decision.sentence());
        let last_change = match &sentence {
            Some(why) if changed => Some(LastChange { at_millis: now, why: why.clone() }),
            _ => before.and_then(|before| before.changed.take()),
        };
        if let (Some(tracer), Some(why), true) = (self.tracer.get(), &sentence, changed) {
            tracer.export(vec![spans::of(pool, decision, why, waking, now)]);
        }
        let noted = Noted { at: now, decision: decision.clone(), state };
        let past = sentence.is_some().then(|| noted.clone());
        let now = Current { noted, changed: last_change };
        match current.get_mut(pool) {
            Some(before) => *before = now,
            None => drop(current.insert(pool.to_owned(), now)),
        }
        drop(current);
        let (Some(why), Some(past)) = (sentence, past) else { return };
        if changed {
            tracing::info!("{pool}: {why}");
        } else {
            tracing::debug!("{pool}: {why}");
        }
        self.past.lock().add(pool, past);
    }

    /// Forgets the current decisions of pools that are no longer configured.
    pub(crate) fn keep(&self, configured: impl Fn(&str) -> bool) {
        self.current.lock().retain(|name, _| configured(name));
    }
}

impl Current {
    fn entry(&self, pool: &str) -> Value {
        self.noted.as_entry(pool, true, self.changed.as_ref())
    }
}

impl Noted {
    fn entry(&self, pool: &str) -> Value {
        self.as_entry(pool, false, None)
    }

    fn as_entry(&self, pool: &str, current: bool, changed: Option<&LastChange>) -> Value {
        let Self { at, decision, state } = self;
        let why = &decision.sentence();
        Entry { at_millis: *at, pool, current, why, changed, decision, state }.json()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use serde_json::json;
    use tower::ServiceExt as _;

    use super::*;
    use crate::decide::{Figures, Why};

    fn decision(from: u32, desired: u32, why: Why) -> Decision {
        let figures = Figures { held: 3, ready: from, recent: 2, ..Figures::default() };
        Decision { from, desired, active: true, why, proposals: Vec::new(), figures }
    }

    #[test]
    fn current_decisions_come_first_even_if_they_change_nothing() {
        let decisions = Decisions::default();
        let held = Why::Held { held: 3, in_flight: 0, per_replica: 2 };
        let note = |pool: &str, at, of| {
            decisions.note(pool, &of, PoolState::default(), &[], Millis::new(at))
        };
        note("a", 1_000, decision(0, 2, held));
        note("a", 2_000, decision(2, 2, Why::Steady));
        note("b", 2_500, decision(1, 1, Why::Panic));
        note("a", 3_000, decision(2, 2, Why::Steady));
        note("b", 3_500, decision(1, 1, Why::Panic));

        let shown = |list: &[Value]| -> Vec<_> {
            let of = |entry: &Value| {
                let at = entry["atMillis"].as_u64();
                (entry["current"] == true, entry["pool"].as_str().map(str::to_owned), at)
            };
            list.iter().map(of).collect()
        };
        let of = |current, pool: &str, at| (current, Some(pool.to_owned()), Some(at));
        let list = decisions.list(None);
        let want = [
            of(true, "a", 3_000),
            of(true, "b", 3_500),
            of(false, "b", 2_500),
            of(false, "a", 1_000),
        ];
        assert_eq!(shown(&list), want);
        let now = &list[0];
        assert_eq!((&now["rule"], &now["figures"]["recent"]), (&json!("steady"), &json!(2)));
        assert!(now["why"].as_str().is_some_and(|why| why.starts_with("staying at 2: ")), "{now}");
        assert_eq!(now["changed"]["atMillis"], 1_000);
        assert_eq!(now["changed"]["why"], list[3]["why"], "the reason for 2 replicas");
        assert!(list[1]["changed"].is_null(), "it never changed: {}", list[1]);

        let of_b = decisions.list(Some("b"));
        assert_eq!(shown(&of_b), [of(true, "b", 3_500), of(false, "b", 2_500)]);
        decisions.keep(|name| name == "a");
        assert_eq!(shown(&decisions.list(Some("b"))), [of(false, "b", 2_500)], "b is gone");
    }

    #[tokio::test]
    async fn a_pool_without_decisions_is_not_found_and_others_are_named() {
        let decisions = Arc::new(Decisions::default());
        let router = axum::Router::new().route("/decisions", decisions.route());
        decisions.note(
            "chat",
            &decision(0, 1, Why::Panic),
            PoolState::default(),
            &[],
            Millis::ZERO,
        );
        for (query, status, has) in [
            ("?pool=chat", StatusCode::OK, r#""pool":"chat""#),
            ("", StatusCode::OK, r#""pool":"chat""#),
            ("?pool=caht", StatusCode::NOT_FOUND, "`caht`; pools with decisions: chat"),
        ] {
            let request = Request::get(format!("/decisions{query}")).body(Body::empty());
            let Ok(answer) = router.clone().oneshot(request.expect("valid")).await;
            assert_eq!(answer.status(), status, "{query}");
            let body = to_bytes(answer.into_body(), 1 << 20).await.expect("whole");
            let text = String::from_utf8_lossy(&body);
            assert!(text.contains(has), "{query}: {text}");
        }
    }

    #[test]
    fn a_decision_that_changes_the_count_is_exported_once() {
        let sampler = forebay_telemetry::sampler::Sampler { ratio: 0.0, by_parent: true };
        let (tracer, spans) = Tracer::collecting(sampler, std::time::Duration::MAX);
        let decisions = Decisions::default();
        let note = |of| decisions.note("p", &of, PoolState::default(), &[], Millis::ZERO);
        note(decision(0, 1, Why::Panic));
        assert_eq!(spans().len(), 0, "nothing is exported yet");
        decisions.trace(Arc::new(tracer));
        note(decision(1, 2, Why::Panic));
        note(decision(2, 2, Why::Panic));
        note(decision(2, 2, Why::Steady));
        let names: Vec<_> = spans().into_iter().map(|span| span.name).collect();
        assert_eq!(names, ["scale p"]);
    }

    #[test]
    fn a_limited_number_of_decisions_is_kept_of_each_pool_and_in_all() {
        let decisions = Decisions::default();
        let note = |pool: &str, n: u32| {
            let of = decision(n % 2, 1 - n % 2, Why::Minimum { because: None });
            decisions.note(pool, &of, PoolState::default(), &[], Millis::new(n.into()));
        };
        let past = |pool| decisions.list(Some(pool)).len() - 1;
        note("quiet", 0);
        (1..=400).for_each(|n| note("flaps", n));
        assert_eq!(
            (past("flaps"), past("quiet")),
            (KEPT_OF_POOL, 1),
            "it pushes out its own alone"
        );
        let list = decisions.list(None);
        assert_eq!((list.len(), &list[2]["atMillis"]), (2 + KEPT_OF_POOL + 1, &json!(400)));
        assert_eq!(list.last().map(|entry| &entry["pool"]), Some(&json!("quiet")));
        for pool in 0..1_000 {
            (1_000..1_021).for_each(|n| note(&format!("p{pool}"), n));
        }
        let kept = decisions.past.lock();
        let all = kept.pools.values().map(VecDeque::len).sum::<usize>();
        assert_eq!((all, kept.order.len()), (KEPT, KEPT));
        assert!(!kept.pools.contains_key("quiet"), "the oldest is gone");
        drop(kept);
        assert_eq!(past("p999"), 21);
        let past = decisions.list(None).into_iter().filter(|entry| entry["current"] == false);
        assert_eq!(past.count(), LISTED);
    }
}
