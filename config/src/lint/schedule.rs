//! Warnings about a `cron` trigger, from the windows that it really opens.

use super::{Context, Notes};
use crate::types::trigger::{CronWindow, MetricType, Signal};
use crate::units::cron::Cron;

const DAY_MS: u64 = 86_400_000;
/// The number of weeks to examine.
const HORIZON_MS: u64 = 5 * 7 * DAY_MS;
/// More starts and ends than any real schedule has in that time.
const MOST_CHANGES: usize = 1_000;

pub(super) fn lint(context: &Context<'_>, at: usize, window: &CronWindow, notes: &mut Notes<'_>) {
    if context.is_composite() {
        return;
    }
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
    counts(context, window, notes);
    windows(context, at, window, now, notes);
    if context.triggers.get(at).and_then(|trigger| trigger.metric_type) == Some(MetricType::Value)
        && context.is_keda()
    {
        let message = "Value multiplies the schedule's count by the pods that are ready, up to \
                       maxReplicaCount; leave metricType out";
        notes.say(&["metricType"], message);
    }
}

fn counts(context: &Context<'_>, window: &CronWindow, notes: &mut Notes<'_>) {
    let desired = window.desired_replicas;
    let field = &["metadata", "desiredReplicas"];
    if desired == 0 {
        notes.say(field, "a negative count asks for no replicas; write 1 or more");
        return;
    }
    if let Some(max) = context.max.filter(|max| desired > *max) {
        notes.say(field, format!("{desired} is never reached: maxReplicaCount is {max}"));
    }
    // From an idle count it wakes, up to minReplicaCount.
    let min = context.min.filter(|min| *min > 0 && desired <= *min && context.idle.is_none());
    if let Some(min) = min {
        notes.say(field, format!("{desired} changes nothing: minReplicaCount is {min}"));
    }
}

/// A start that opens nothing, or a window that stays open longer than the others.
fn windows(context: &Context<'_>, at: usize, window: &CronWindow, now: u64, notes: &mut Notes<'_>) {
    let until = now + HORIZON_MS;
    if window.windows(now, until, MOST_CHANGES) == [(now, until)]
        && window.start.next(now, &window.timezone).is_some()
        && window.end.next(now, &window.timezone).is_some()
    {
        let message = "never comes before the next start, so the window is always open";
        notes.say(&["metadata", "end"], message);
        return;
    }
    let Some(found) = unmeant(window, now) else { return };
    // Windows in which other triggers ask for as much are expected.
    let others = context.rules.iter().enumerate().filter(|(other, _)| *other != at);
    let open = others.filter_map(|(_, rule)| match rule.as_ref().map(|rule| &rule.signal) {
        Some(Signal::Cron(other)) if other.desired_replicas >= window.desired_replicas => {
            Some(other.windows(now, until, MOST_CHANGES))
        }
        _ => None,
    });
    let open = union(open.flatten().collect());
    let shown = |ms: u64| window.weekday_and_time(ms);
    let (field, mut message) = match found {
        Unmeant::Unopened { start, usual } if !covers(&open, start, start + usual) => (
            "start",
            format!(
                "nothing opens on {}, since the next start comes before the next end",
                shown(start)
            ),
        ),
        Unmeant::Overlong { start, usual, end } if !covers(&open, start + usual, end) => (
            "end",
            format!(
                "the window that begins on {} stays open until {}, when the next end comes",
                shown(start),
                shown(end)
            ),
        ),
        _ => return,
    };
    let text = |key: &str| context.triggers[at].metadata.get(key).map_or("", |text| text.trim());
    let closes = |end: &str| {
        let end = Cron::parse(end);
        end.is_ok_and(|end| unmeant(&CronWindow { end, ..window.clone() }, now).is_none())
    };
    if let Some(end) = meant_end(text("start"), text("end"), window).filter(|end| closes(end)) {
        message += &format!("; to close each window on its own, write end: \"{end}\"");
    }
    notes.say(&["metadata", field], message);
}

/// An effect of a schedule that its author hardly means.
enum Unmeant {
    /// A start that opens no window, with the usual length of a window.
    Unopened { start: u64, usual: u64 },
    /// A window that is longer than a day and than twice the shortest one.
    Overlong { start: u64, usual: u64, end: u64 },
}

fn unmeant(window: &CronWindow, now: u64) -> Option<Unmeant> {
    let until = now + HORIZON_MS;
    let windows = window.windows(now, until, MOST_CHANGES);
    // Windows that the examined time cuts off don't count.
    let whole = windows.iter().filter(|(from, to)| *from > now && *to < until);
    let length = |(from, to): &&(u64, u64)| to - from;
    let usual = whole.clone().min_by_key(length).map_or(0, |window| window.1 - window.0);
    let (mut start, mut seen) = (now, 0);
    while let Some(next) = window.start.next(start, &window.timezone)
        && next < until
        && seen < MOST_CHANGES
    {
        (start, seen) = (next, seen + 1);
        if !window.open(start).0 {
            return Some(Unmeant::Unopened { start, usual });
        }
    }
    let (start, end) = *whole.max_by_key(|window| (length(window), u64::MAX - window.0))?;
    let longest = end - start;
    (longest > DAY_MS && longest > 2 * usual).then_some(Unmeant::Overlong { start, usual, end })
}

/// Merges overlapping and adjacent windows.
fn union(mut windows: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    windows.sort_unstable();
    let mut union: Vec<(u64, u64)> = Vec::new();
    for (from, to) in windows {
        match union.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => union.push((from, to)),
        }
    }
    union
}

fn covers(union: &[(u64, u64)], from: u64, to: u64) -> bool {
    union.iter().any(|window| window.0 <= from && to <= window.1)
}

/// An end for each day that a window begins on: on the same day, or on the next where the end's
/// time comes first. Known for schedules of one time of the day and days of the week.
fn meant_end(start: &str, end: &str, window: &CronWindow) -> Option<String> {
    let days = window.start.weekdays()?;
    let overnight = window.end.time_of_day()? <= window.start.time_of_day()?;
    let shift = u8::from(overnight);
    let mut closing: Vec<u8> = days.iter().map(|day| (day + shift) % 7).collect();
    closing.sort_unstable();
    let fields: Vec<_> = end.split_whitespace().collect();
    let zone = |text: &str| text.split_whitespace().next().map(str::to_owned);
    // A zone in front belongs to the times.
    let (prefix, rest) = match fields.split_first() {
        Some((first, rest)) if first.contains("TZ=") => (Some((*first).to_owned()), rest),
        _ => (None, &fields[..]),
    };
    let start_zone = zone(start).filter(|first| first.contains("TZ="));
    if prefix != start_zone {
        return None;
    }
    let [minute, hour, ..] = rest else { return None };
    let prefix = prefix.map_or_else(String::new, |zone| format!("{zone} "));
    Some(format!("{prefix}{minute} {hour} * * {}", ranges(&closing)))
}

/// `1-5`, `0,6`, `*`.
fn ranges(days: &[u8]) -> String {
    if days.len() == 7 {
        return "*".to_owned();
    }
    let mut runs: Vec<(u8, u8)> = Vec::new();
    for day in days {
        match runs.last_mut() {
            Some(last) if last.1 + 1 == *day => last.1 = *day,
            _ => runs.push((*day, *day)),
        }
    }
    let shown = runs.iter().map(|(from, to)| match to - from {
        0 => from.to_string(),
        1 => format!("{from},{to}"),
        _ => format!("{from}-{to}"),
    });
    shown.collect::<Vec<_>>().join(",")
}
