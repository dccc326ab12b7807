//! The span of a decision, linked to the requests that brought it about. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_config::Millis;
use forebay_telemetry::context::TraceContext;
use forebay_telemetry::span::{Event, Kind, Parent, Span, Value, attribute, event, link, span};

use crate::decide::{Decision, Proposal};
use crate::observe::feeds::LastReport;

/// The most requests that one decision links to.
const MOST_LINKS: usize = 32;

/// The held requests that a decision answers, if it raises the count: a few of each gateway.
pub(super) fn waking(decision: &Decision, reports: &[LastReport<'_>]) -> Vec<TraceContext> {
    if decision.desired <= decision.from {
        return Vec::new();
    }
    let signals = reports.iter().filter_map(|report| report.signals);
    let held = signals.flat_map(|signals| &signals.held_traces);
    let held = held.filter_map(|parent| TraceContext::parse(parent.as_bytes()));
    held.take(MOST_LINKS).collect()
}

/// The span of a decision that changes a pool's count. It begins a trace of its own, since it may have
/// several causes, and has an event for each trigger.
pub(super) fn of(
    pool: &str,
    decision: &Decision,
    sentence: &str,
    waking: &[TraceContext],
    at: Millis,
) -> Span {
    let at: SystemTime = UNIX_EPOCH + Duration::from(at);
    let context = TraceContext::random(true);
    let mut made = span(format!("scale {pool}"), Kind::Internal, context, Parent::None, (at, at));
    let count = |count: u32| Value::Count(count.into());
    let Decision { from, desired, why, proposals, figures, .. } = decision;
    made.attributes = vec![
        attribute("forebay.pool", Value::from(pool)),
        attribute("forebay.scale.from", count(*from)),
        attribute("forebay.scale.to", count(*desired)),
        attribute("forebay.scale.rule", Value::from(why.rule())),
        attribute("forebay.scale.reason", Value::from(sentence)),
        attribute("forebay.held", count(figures.held)),
        attribute("forebay.in_flight", count(figures.in_flight)),
        attribute("forebay.ready", count(figures.ready)),
    ];
    made.events = proposals.iter().map(|proposal| trigger(proposal, at)).collect();
    made.links = waking.iter().map(link).collect();
    made
}

fn trigger(proposal: &Proposal, at: SystemTime) -> Event {
    let Proposal { name, kind, figure, threshold, needed, .. } = proposal;
    let mut attributes = vec![
        attribute("forebay.trigger.name", Value::from(name.as_str())),
        attribute("forebay.trigger.kind", Value::from(*kind)),
        attribute("forebay.trigger.threshold", Value::Number(*threshold)),
    ];
    let given = [("forebay.trigger.figure", figure), ("forebay.trigger.needed", needed)];
    let given = given.into_iter().filter_map(|(name, value)| Some((name, (*value)?)));
    attributes.extend(given.map(|(name, value)| attribute(name, Value::Number(value))));
    event("trigger", at, attributes)
}

#[cfg(test)]
mod tests {
    use forebay_signals::PoolSignals;
    use forebay_telemetry::span::Attribute;

    use super::*;
    use crate::decide::{Figures, Why};

    fn decision(from: u32, desired: u32) -> Decision {
        let why = Why::Held { held: 3, in_flight: 0, per_replica: 2 };
        let proposal = Proposal {
            name: "queue".to_owned(),
            kind: "queueDepth",
            figure: Some(3.0),
            threshold: 2.0,
            activation: 0.0,
            needed: None,
            active: true,
            age: None,
            problem: None,
        };
        let figures = Figures { held: 3, ..Figures::default() };
        Decision { from, desired, active: true, why, proposals: vec![proposal], figures }
    }

    #[test]
    fn a_decision_that_raises_the_count_is_linked_to_held_requests_of_each_gateway() {
        let traces: Vec<_> = (0..3).map(|_| TraceContext::random(true)).collect();
        let signals = |of: &[TraceContext]| PoolSignals {
            held_traces: of.iter().map(TraceContext::to_string).collect(),
            ..PoolSignals::default()
        };
        let (one, mut two) = (signals(&traces[..2]), signals(&traces[2..]));
        two.held_traces.push("nonsense".to_owned());
        let report = |signals| LastReport {
            gateway: 0,
            sender: "a",
            up_for: None,
            signals,
            silent_for: None,
        };
        let reports = [report(Some(&one)), report(None), report(Some(&two))];
        assert_eq!(waking(&decision(0, 2), &reports), traces);
        assert_eq!(waking(&decision(2, 0), &reports), []);
        let many = signals(&(0..99).map(|_| TraceContext::random(true)).collect::<Vec<_>>());
        assert_eq!(waking(&decision(0, 1), &[report(Some(&many))]).len(), MOST_LINKS);
    }

    #[test]
    fn a_span_has_the_counts_the_reason_the_triggers_and_the_links() {
        let woken_by = [TraceContext::random(true), TraceContext::random(false)];
        let of = of("chat", &decision(0, 2), "scaling 0 → 2", &woken_by, Millis::new(1_500));
        assert_eq!(of.name, "scale chat");
        assert_eq!(
            (of.start_time_unix_nano, of.end_time_unix_nano),
            (1_500_000_000, 1_500_000_000)
        );
        assert!(of.parent_span_id.is_empty() && of.flags & 1 == 1);
        let value = |attributes: &[_], name: &str| {
            let named = |pair: &&Attribute| pair.key == name;
            attributes.iter().find(named).map(|pair| format!("{:?}", pair.value))
        };
        for (name, want) in [
            ("forebay.pool", "\"chat\""),
            ("forebay.scale.from", "(0)"),
            ("forebay.scale.to", "(2)"),
            ("forebay.scale.rule", "\"held\""),
            ("forebay.scale.reason", "scaling 0 → 2"),
            ("forebay.held", "(3)"),
        ] {
            assert!(
                value(&of.attributes, name).is_some_and(|value| value.contains(want)),
                "{name}"
            );
        }
        let [trigger] = of.events.as_slice() else { panic!("{:?}", of.events) };
        assert!(value(&trigger.attributes, "forebay.trigger.figure").is_some());
        assert_eq!(value(&trigger.attributes, "forebay.trigger.needed"), None);
        let linked: Vec<_> = of.links.iter().map(|link| (&link.span_id[..], link.flags)).collect();
        let [one, two] = woken_by.map(|context| context.span.bytes());
        assert_eq!(linked, [(&one[..], 1), (&two[..], 0)]);
    }
}
