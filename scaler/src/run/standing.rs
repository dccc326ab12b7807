//! A step as the board shows it, with what a person should look at.

use forebay_config::Millis;
use forebay_signals::{Replica, ReplicaState};

use super::pool::Step;
use crate::view::board::Standing;
use crate::view::overview::{StateCounts, Trouble, TroubleKind};

/// A start is slow when it takes this many times as long as nine of ten starts did.
const SLOW: f64 = 1.5;

/// The standing of a pool after a step.
pub(super) fn of(step: &Step, replicas: StateCounts, is_heard: bool, now: Millis) -> Standing {
    // The oldest start ends first.
    let oldest = (step.longest_start > Millis::ZERO)
        .then(|| Millis::new(now.get().saturating_sub(step.longest_start.get())));
    let median = step.replicas.cold_start.map(|learned| learned.p50_seconds);
    let next_ready = oldest.zip(median).map(|(since, p50)| since + Millis::from_secs_f64(p50));
    Standing {
        load: step.load.clone(),
        desired: step.decision.desired,
        replicas,
        next_ready,
        operator_override: step.operator_override,
        why: step.why.clone(),
        troubles: (!is_heard).then(no_gateway).into_iter().chain(troubles(step)).collect(),
    }
}

/// The trouble of a pool that no gateway reports on.
pub(super) fn no_gateway() -> Trouble {
    let text = "no gateway reports, so the load is unknown and the count stays";
    Trouble { kind: TroubleKind::NoGateway, text: text.to_owned() }
}

/// The troubles that a person should look at, the worst first.
fn troubles(step: &Step) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    let mut add = |kind, text: String| troubles.push(Trouble { kind, text });
    if let Some(failed) = &step.replicas.failed_start {
        add(TroubleKind::CannotStart, format!("no replica can be started: {}", failed.sentence()));
    }
    if let Some(trouble) = &step.trouble {
        add(TroubleKind::Target, trouble.clone());
    }
    // If no replica can be started, that says it all.
    let failed = failed_replicas(step.replicas.replicas.values().flatten());
    if let Some(text) = failed.filter(|_| step.replicas.failed_start.is_none()) {
        add(TroubleKind::Failed, text);
    }
    if let Some(learned) = &step.replicas.cold_start {
        let (taken, usual) = (step.longest_start.as_secs_f64(), learned.p90_seconds);
        if taken > usual * SLOW {
            let text = format!("a start has taken {taken:.0} s, nine of ten took {usual:.0} s");
            add(TroubleKind::SlowStart, text);
        }
    }
    for proposal in &step.decision.proposals {
        if let Some(problem) = proposal.problem.as_ref().filter(|_| proposal.has_failed()) {
            add(TroubleKind::Trigger, format!("trigger {} {problem}", proposal.name));
        }
    }
    if step.decision.why.rule() == "maximum" {
        add(TroubleKind::Maximum, step.decision.why.to_string());
    }
    troubles
}

fn failed_replicas<'a>(replicas: impl Iterator<Item = &'a Replica>) -> Option<String> {
    let mut failed = replicas.filter(|replica| replica.state == ReplicaState::Failed);
    let first = failed.next()?;
    let others = failed.count();
    let reason = if first.reason.is_empty() { "it answers no requests" } else { &first.reason };
    Some(match others {
        0 => format!("a replica has failed: {reason}"),
        others => format!("{} replicas have failed, one of them: {reason}", others + 1),
    })
}
