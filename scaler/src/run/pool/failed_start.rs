//! Starts that fail: whether a pool has any hope of a replica.
//!
//! A pool fails when every replica's start fails and none is ready. It goes on failing, whatever other
//! replicas begin meanwhile, until one is ready or no start fails any longer. Gateways refuse its
//! requests for that time, and count the refused ones as demand, so replicas are tried again.
//!
//! Pure.

use forebay_config::{Millis, Pool, ShowReason};
use forebay_signals::FailedStart;

use super::PoolScaler;
use crate::act::targets::{ReplicaStatus, ScaleTarget, StartFailure};

/// The pool's failure from now on, after the failure `before`. `alive`: the replicas that are not to
/// stop; `ready`: whether any of them takes requests.
fn failure(
    before: Option<FailedStart>,
    alive: &[&ReplicaStatus],
    ready: bool,
    now: Millis,
) -> Option<FailedStart> {
    let failures: Vec<&StartFailure> =
        alive.iter().filter_map(|status| status.start_failure.as_ref()).collect();
    let hopeless = failures.len() == alive.len() || before.is_some();
    // The replica that is tried next shows first whether starts still fail.
    let next = |failure: &&&StartFailure| failure.next_try.unwrap_or(Millis::ZERO);
    let first = failures.iter().min_by_key(next).filter(|_| hopeless && !ready)?;
    Some(FailedStart {
        reason: first.reason.clone(),
        detail: first.detail.clone(),
        since_millis: before.map_or(now.get(), |before| before.since_millis),
        next_try_millis: first.next_try.map(Millis::get),
    })
}

/// Whether clients may read a failure's detail.
pub(super) fn shows_detail(pool: &Pool) -> bool {
    pool.hold.show_reason == ShowReason::Output
}

impl PoolScaler {
    /// Notes whether the pool's starts fail. Reports when that begins and ends.
    pub(super) fn note_failure(
        &mut self,
        alive: &[&ReplicaStatus],
        target: &impl ScaleTarget,
        now: Millis,
    ) {
        let before = self.roster.failed_start.take();
        let ready = alive.iter().any(|status| self.roster.ready.contains(&status.id));
        let failing = before.is_some();
        let failed = failure(before, alive, ready, now);
        match &failed {
            Some(failure) if !failing => {
                let reason = failure.sentence();
                tracing::error!(
                    "{}: no replica can be started, the last one {reason}; requests are refused \
                     until a start succeeds",
                    self.name
                );
                let sentence = format!("no replica can be started: the last one {reason}");
                target.starts_fail(Some(&sentence));
            }
            None if failing => {
                let end = if ready {
                    "a replica has started, requests are served"
                } else {
                    "starts no longer fail, requests are held"
                };
                tracing::info!("{}: {end}", self.name);
                target.starts_fail(None);
            }
            _ => {}
        }
        self.roster.failed_start = failed;
    }

    /// The failure of the pool's starts, as far as clients may read it.
    pub(super) fn published_failure(&self) -> Option<FailedStart> {
        let failure = self.roster.failed_start.clone()?;
        let detail = if self.rules.shows_detail { failure.detail } else { String::new() };
        Some(FailedStart { detail, ..failure })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(next_try: Option<Option<u64>>) -> ReplicaStatus {
        let start_failure = next_try.map(|at| StartFailure {
            reason: format!("{at:?}"),
            detail: String::new(),
            next_try: at.map(Millis::new),
        });
        ReplicaStatus { start_failure, ..ReplicaStatus::requested("p-1") }
    }

    #[test]
    fn a_pool_fails_when_every_start_fails_and_until_one_succeeds() {
        let (hopes, fails) = (|| replica(None), || replica(Some(Some(9))));
        let before = || {
            let reason = String::new();
            let (detail, next_try_millis) = (String::new(), None);
            Some(FailedStart { reason, detail, since_millis: 3, next_try_millis })
        };
        for (case, was, replicas, ready, since) in [
            ("nothing runs", None, vec![], false, None),
            ("a first start", None, vec![hopes()], false, None),
            ("one start fails", None, vec![fails()], false, Some(5)),
            ("another may succeed", None, vec![fails(), hopes()], false, None),
            ("all fail", None, vec![fails(), fails()], false, Some(5)),
            ("another one serves", None, vec![fails()], true, None),
            ("it fails on", before(), vec![fails()], false, Some(3)),
            ("another one begins", before(), vec![fails(), hopes()], false, Some(3)),
            ("a start succeeded", before(), vec![fails()], true, None),
            ("the cause is gone", before(), vec![hopes()], false, None),
            ("nothing is wanted", before(), vec![], false, None),
        ] {
            let alive: Vec<_> = replicas.iter().collect();
            let failed = failure(was, &alive, ready, Millis::new(5));
            assert_eq!(failed.map(|failed| failed.since_millis), since, "{case}");
        }
    }

    #[test]
    fn the_next_try_is_the_first_of_all_replicas() {
        let replicas = [replica(Some(Some(9))), replica(Some(Some(7)))];
        let alive: Vec<_> = replicas.iter().collect();
        let failed = failure(None, &alive, false, Millis::new(5)).expect("all fail");
        assert_eq!(failed.next_try_millis, Some(7));
    }
}
