//! The last decisions, each with all its figures: `/decisions`, the log, the metrics.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::routing::{MethodRouter, get};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::core::Decision;
use crate::core::cold_start::Phases;

/// Decisions kept.
const KEPT: usize = 300;

/// What was decided of late.
#[derive(Default)]
pub(crate) struct Decisions {
    last: Mutex<VecDeque<Value>>,
    /// The rule that each pool's last decision was by.
    rules: Mutex<BTreeMap<String, &'static str>>,
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
    /// The whole in one sentence.
    why: &'a str,
    #[serde(flatten)]
    decision: &'a Decision,
    cold_start: Phases,
}

impl Decisions {
    /// `GET`: the last decisions, oldest first; of one pool with `?pool=NAME`.
    pub(crate) fn route(self: &Arc<Self>) -> MethodRouter {
        let list = |State(decisions): State<Arc<Self>>, Query(asked): Query<Asked>| async move {
            let last = decisions.last.lock();
            let of =
                |entry: &&Value| asked.pool.as_ref().is_none_or(|pool| entry["pool"] == **pool);
            axum::Json(json!(last.iter().filter(of).collect::<Vec<_>>()))
        };
        get(list).with_state(Arc::clone(self))
    }

    /// Takes one in, and logs it where it changed the count. One that changes nothing is kept where
    /// another rule than before keeps the count as it is.
    pub(crate) fn note(&self, pool: &str, decision: &Decision, cold_start: Phases, now_ms: u64) {
        let changed = decision.from != decision.desired;
        let rule = decision.why.rule();
        let before = self.rules.lock().insert(pool.to_owned(), rule);
        let kept_back = decision.why.holds_back() && before != Some(rule);
        if !changed && !kept_back {
            return;
        }
        let why = decision.sentence();
        if changed {
            tracing::info!("{pool}: {why}");
        } else {
            tracing::debug!("{pool}: {why}");
        }
        let entry = Entry { at_millis: now_ms, pool, why: &why, decision, cold_start };
        let entry = serde_json::to_value(entry).expect("figures and names only");
        let mut last = self.last.lock();
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(entry);
    }
}
