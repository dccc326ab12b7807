//! The starts of a pool's replicas: how far each is, and what is learned from it.

use std::collections::{BTreeMap, BTreeSet};

use forebay_config::Millis;
use forebay_signals::{EndpointSignals, Health};

use super::PoolScaler;
use super::silence::Silence;
use crate::act::targets::{ReplicaStatus, ScaleTarget};
use crate::decide::Condition;
use crate::observe::feeds::LastReport;

/// A replica's current start.
pub(super) struct Start {
    /// The time of its request, or when a later start after a death was seen.
    pub(super) since: Millis,
    /// The target's own time of the start.
    pub(super) started_at: Option<Millis>,
    /// It began before this process.
    pub(super) inherited: bool,
    /// The time when a gateway found it healthy.
    pub(super) ready_at: Option<Millis>,
    /// The time when its first answer was seen.
    pub(super) first_token_at: Option<Millis>,
    pub(super) silence: Silence,
    /// The reason why it has to be ended and started anew, if it has.
    pub(super) replaced: Option<String>,
}

impl Start {
    fn new(since: Millis, started_at: Option<Millis>) -> Self {
        Self {
            since,
            started_at,
            inherited: false,
            ready_at: None,
            first_token_at: None,
            silence: Silence::default(),
            replaced: None,
        }
    }
}

impl PoolScaler {
    /// Records which replicas gateways find healthy; returns the durations of starts that ended.
    pub(super) fn learn(
        &mut self,
        reports: &[LastReport<'_>],
        statuses: &BTreeMap<String, ReplicaStatus>,
        target: &impl ScaleTarget,
        now: Millis,
    ) -> Vec<f64> {
        self.roster.starts.retain(|id, _| statuses.contains_key(id));
        self.departures.stopped.retain(|id| statuses.contains_key(id));
        self.departures.draining.retain(|id| statuses.contains_key(id));
        self.keep_spared(statuses, target);
        let mut durations = Vec::new();
        let mut ready = BTreeSet::new();
        for (id, status) in statuses {
            let first = !self.roster.starts.contains_key(id);
            let mut new = Start::new(status.requested_at.unwrap_or(now), status.started_at);
            new.inherited = status.inherited;
            let start = self.roster.starts.entry(id.clone()).or_insert(new);
            if start.started_at.is_none() {
                start.started_at = status.started_at;
            } else if start.started_at != status.started_at {
                // It died and is started again: the time counts from here, and its health anew.
                *start = Start::new(now, status.started_at);
                self.roster.ready.remove(id);
            }
            // A gateway may find a replica healthy before its target reports that it runs.
            if !matches!(status.condition, Condition::Pending | Condition::Starting) {
                continue;
            }
            start.silence.observe(current_endpoints(reports, status), now);
            let seen = |health| endpoints(reports, status).any(|e| e.health == health);
            // A ready replica stays ready while it drains, and after a recall until every gateway knows
            // of the recall.
            let draining = self.departures.draining.contains(id) || seen(Health::Draining);
            let kept = draining && self.roster.ready.contains(id);
            if !seen(Health::Ready) && !kept {
                continue;
            }
            start.replaced = None;
            // A replica that comes back after an ejection did not start.
            if start.ready_at.replace(start.ready_at.unwrap_or(now)).is_none() {
                target.ready(id);
                // A replica that is ready when first seen was ready before.
                start.inherited |=
                    first && status.requested_at.is_none() && status.started_at.is_none();
                if start.inherited {
                    tracing::info!("{}: replica {id} is ready", self.name);
                } else {
                    let seconds = now.since(start.since).as_secs_f64();
                    tracing::info!("{}: replica {id} ready after {seconds:.1} s", self.name);
                    durations.push(seconds);
                }
            }
            let answered = |e: &EndpointSignals| e.completed > 0 || e.generated_tokens > 0;
            if start.first_token_at.is_none() && endpoints(reports, status).any(answered) {
                start.first_token_at = Some(now);
            }
            ready.insert(id.clone());
        }
        self.roster.ready = ready;
        durations
    }
}

/// A replica as each gateway sees it, or last saw it.
pub(super) fn endpoints<'a>(
    reports: &'a [LastReport<'a>],
    status: &ReplicaStatus,
) -> impl Iterator<Item = &'a EndpointSignals> + use<'a> {
    views(reports.iter(), status)
}

/// A replica as each connected gateway sees it.
fn current_endpoints<'a>(
    reports: &'a [LastReport<'a>],
    status: &ReplicaStatus,
) -> impl Iterator<Item = &'a EndpointSignals> + use<'a> {
    views(reports.iter().filter(|report| report.silent_for.is_none()), status)
}

fn views<'a, R: Iterator<Item = &'a LastReport<'a>>>(
    reports: R,
    status: &ReplicaStatus,
) -> impl Iterator<Item = &'a EndpointSignals> + use<'a, R> {
    let address = status.address.map(|address| address.to_string());
    reports.filter_map(move |report| report.signals?.endpoints.get(address.as_deref()?)?.as_ref())
}
