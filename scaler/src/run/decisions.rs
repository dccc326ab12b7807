//! The decisions, each with all its figures: `/decisions` and the log.
//!
//! First what stands: each pool's last decision, be it that nothing changes, with when and why its
//! count was last another. Then the last ones that changed a count or kept one from changing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::routing::{MethodRouter, get};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::decide::Decision;
use crate::decide::cold_start::Phases;

/// Decisions kept.
const KEPT: usize = 300;

/// What was decided.
#[derive(Default)]
pub(crate) struct Decisions {
    last: Mutex<VecDeque<Value>>,
    standing: Mutex<BTreeMap<String, Standing>>,
}

/// A pool's last decision.
struct Standing {
    at_ms: u64,
    decision: Decision,
    cold_start: Phases,
    changed: Option<Changed>,
}

/// When a count was last changed, and why.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Changed {
    at_millis: u64,
    why: String,
}

#[derive(Deserialize)]
struct Asked {
    pool: Option<String>,
}

/// One entry.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    at_millis: u64,
    pool: &'a str,
    /// It is what stands now.
    current: bool,
    /// The whole in one sentence.
    why: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<&'a Changed>,
    #[serde(flatten)]
    decision: &'a Decision,
    cold_start: Phases,
}

impl Entry<'_> {
    fn json(self) -> Value {
        serde_json::to_value(self).expect("figures and names only")
    }
}

impl Decisions {
    /// `GET`: what stands for each pool, then the last decisions, newest first; of one pool with
    /// `?pool=NAME`.
    pub(crate) fn route(self: &Arc<Self>) -> MethodRouter {
        let list = |State(decisions): State<Arc<Self>>, Query(asked): Query<Asked>| async move {
            axum::Json(decisions.list(asked.pool.as_deref()))
        };
        get(list).with_state(Arc::clone(self))
    }

    fn list(&self, pool: Option<&str>) -> Vec<Value> {
        let of = |name: &str| pool.is_none_or(|pool| pool == name);
        let standing = self.standing.lock();
        let mut list: Vec<_> = standing
            .iter()
            .filter(|(name, _)| of(name))
            .map(|(name, standing)| standing.entry(name, &standing.decision.sentence(), true))
            .collect();
        drop(standing);
        let last = self.last.lock();
        list.extend(last.iter().rev().filter(|it| it["pool"].as_str().is_some_and(of)).cloned());
        list
    }

    /// Takes one in, and logs it where it changed the count. Beside what stands it is kept where it
    /// changed the count, or another rule than before keeps the count as it is.
    pub(crate) fn note(&self, pool: &str, decision: &Decision, cold_start: Phases, now_ms: u64) {
        let changed = decision.from != decision.desired;
        let mut standing = self.standing.lock();
        let before = standing.get_mut(pool);
        let rule = before.as_ref().map(|before| before.decision.why.rule());
        let kept_back = decision.why.holds_back() && rule != Some(decision.why.rule());
        let told = (changed || kept_back).then(|| decision.sentence());
        let since = match &told {
            Some(why) if changed => Some(Changed { at_millis: now_ms, why: why.clone() }),
            _ => before.and_then(|before| before.changed.take()),
        };
        let now =
            Standing { at_ms: now_ms, decision: decision.clone(), cold_start, changed: since };
        let entry = told.as_ref().map(|why| now.entry(pool, why, false));
        match standing.get_mut(pool) {
            Some(before) => *before = now,
            None => drop(standing.insert(pool.to_owned(), now)),
        }
        drop(standing);
        let (Some(why), Some(entry)) = (told, entry) else { return };
        if changed {
            tracing::info!("{pool}: {why}");
        } else {
            tracing::debug!("{pool}: {why}");
        }
        let mut last = self.last.lock();
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(entry);
    }

    /// Forgets what stands for pools that are no longer configured.
    pub(crate) fn keep(&self, configured: impl Fn(&str) -> bool) {
        self.standing.lock().retain(|name, _| configured(name));
    }
}

impl Standing {
    fn entry(&self, pool: &str, why: &str, current: bool) -> Value {
        let Self { at_ms, decision, cold_start, changed } = self;
        let changed = changed.as_ref().filter(|_| current);
        let (at_millis, cold_start) = (*at_ms, *cold_start);
        Entry { at_millis, pool, current, why, changed, decision, cold_start }.json()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::decide::{Figures, Why};

    fn decision(from: u32, desired: u32, why: Why) -> Decision {
        let figures = Figures { held: 3, ready: from, recent: 2, ..Figures::default() };
        Decision { from, desired, active: true, why, proposals: Vec::new(), figures }
    }

    #[test]
    fn what_stands_comes_first_also_where_nothing_changed() {
        let decisions = Decisions::default();
        let held = Why::Held { held: 3, in_flight: 0, target: 2 };
        let note = |pool: &str, at, of| decisions.note(pool, &of, Phases::default(), at);
        note("a", 1_000, decision(0, 2, held));
        note("a", 2_000, decision(2, 2, Why::Steady));
        note("b", 2_500, decision(1, 1, Why::Panic));
        note("a", 3_000, decision(2, 2, Why::Steady));
        note("b", 3_500, decision(1, 1, Why::Panic));

        let told = |list: &[Value]| -> Vec<_> {
            let of = |it: &Value| {
                let at = it["atMillis"].as_u64();
                (it["current"] == true, it["pool"].as_str().map(str::to_owned), at)
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
        assert_eq!(told(&list), want);
        let now = &list[0];
        assert_eq!((&now["rule"], &now["figures"]["recent"]), (&json!("steady"), &json!(2)));
        assert!(now["why"].as_str().is_some_and(|why| why.starts_with("staying at 2: ")), "{now}");
        assert_eq!(now["changed"]["atMillis"], 1_000);
        assert_eq!(now["changed"]["why"], list[3]["why"], "why it is at 2");
        assert!(list[1]["changed"].is_null(), "it never changed: {}", list[1]);

        assert_eq!(told(&decisions.list(Some("b"))), [of(true, "b", 3_500), of(false, "b", 2_500)]);
        decisions.keep(|name| name == "a");
        assert_eq!(told(&decisions.list(Some("b"))), [of(false, "b", 2_500)], "it is gone");
    }

    #[test]
    fn only_so_many_are_kept() {
        let decisions = Decisions::default();
        for n in 0..400 {
            let of = decision(n % 2, 1 - n % 2, Why::Minimum);
            decisions.note("p", &of, Phases::default(), u64::from(n));
        }
        let list = decisions.list(None);
        assert_eq!((list.len(), &list[1]["atMillis"]), (KEPT + 1, &json!(399)));
    }
}
