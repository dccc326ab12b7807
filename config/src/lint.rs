//! What in a trigger can't work as its author means, in a sentence each.
//!
//! Everything here is allowed, and KEDA takes it without a word. Where Forebay has a trigger of its
//! own that means the same, it is named.

use crate::problem::Path;
use crate::trigger::{CronWindow, MetricType, Rule, Signal, Trigger};

mod names;
mod promql;
mod query;

/// Where triggers stand.
pub(crate) struct Scene<'a> {
    /// All of them: one may do what another can't.
    pub(crate) triggers: &'a [Trigger],
    /// `minReplicaCount`; `None` where it is not known.
    pub(crate) min: Option<u32>,
    /// `maxReplicaCount`; `None` where it is not known.
    pub(crate) max: Option<u32>,
    /// Who reads them.
    pub(crate) reader: Reader,
    /// Requests for each replica, for a `concurrency` without a threshold.
    pub(crate) target_concurrency: u32,
    /// The comments at each trigger, by its place in the list.
    pub(crate) comments: &'a dyn Fn(usize) -> String,
}

/// Who reads the triggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Forebay, with a server for those that name none, or without.
    Forebay {
        /// Whether there is a top-level `prometheus.serverAddress`.
        server: bool,
    },
    /// KEDA.
    Keda,
}

/// One sentence on one field of a trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remark {
    /// Way from the list of triggers.
    pub(crate) path: Path,
    pub(crate) message: String,
    /// Whether the trigger can't be used so; else a warning.
    pub(crate) error: bool,
}

/// All remarks on all triggers.
pub(crate) fn lint(scene: &Scene<'_>) -> Vec<Remark> {
    let mut remarks = Vec::new();
    for (at, trigger) in scene.triggers.iter().enumerate() {
        let mut notes = Notes { path: Path::default().index(at), remarks: &mut remarks };
        match trigger.kind.as_str() {
            "external" | "external-push" => external(trigger, &mut notes),
            "cron" => cron(scene, trigger, &mut notes),
            _ => {}
        }
        let (rule, _) = trigger.rule(scene.target_concurrency);
        let Some(rule) = rule else { continue };
        match &rule.signal {
            Signal::Prometheus(query) => {
                if query.server_address.is_none() {
                    server(scene.reader, &mut notes);
                }
                query::lint(scene, at, trigger, &rule, &query.query, &mut notes);
                activation(scene, trigger, &mut notes);
            }
            Signal::Gpu(_, crate::GpuSource::Prometheus(query))
                if query.server_address.is_none() =>
            {
                server(scene.reader, &mut notes);
            }
            Signal::Ttft { .. } | Signal::Itl { .. } | Signal::KvCache | Signal::Gpu(..) => {}
            Signal::Cron(window) => weekends(window, &mut notes),
            _ => activation(scene, trigger, &mut notes),
        }
        own(&rule, trigger, &mut notes);
    }
    remarks
}

/// Collects what is said of one trigger.
struct Notes<'a> {
    path: Path,
    remarks: &'a mut Vec<Remark>,
}

impl Notes<'_> {
    fn say(&mut self, field: &[&str], message: impl Into<String>) {
        self.push(field, message.into(), false);
    }

    fn error(&mut self, field: &[&str], message: impl Into<String>) {
        self.push(field, message.into(), true);
    }

    fn push(&mut self, field: &[&str], message: String, error: bool) {
        let path = field.iter().fold(self.path.clone(), |path, name| path.key(name));
        self.remarks.push(Remark { path, message, error });
    }
}

fn server(reader: Reader, notes: &mut Notes<'_>) {
    let message = match reader {
        Reader::Keda => "missing: there is nobody to ask, and KEDA refuses the ScaledObject",
        Reader::Forebay { server: true } => return,
        Reader::Forebay { server: false } => {
            "missing, and there is no prometheus.serverAddress at the top either: there is nobody to \
             ask, and the trigger is left out"
        }
    };
    notes.say(&["metadata", "serverAddress"], message);
}

/// A threshold between zero and one, where zero never is.
fn activation(scene: &Scene<'_>, trigger: &Trigger, notes: &mut Notes<'_>) {
    let written = trigger.metadata.get("activationThreshold").map(|text| text.trim());
    let Some(min) = scene.min.filter(|min| *min > 0) else { return };
    if written.is_some_and(|text| text.parse::<f64>().is_ok_and(|it| it != 0.0)) {
        let message = format!(
            "has no effect: it decides between none and one replica, and minReplicaCount is {min}"
        );
        notes.say(&["metadata", "activationThreshold"], message);
    }
}

fn cron(scene: &Scene<'_>, trigger: &Trigger, notes: &mut Notes<'_>) {
    let desired =
        trigger.metadata.get("desiredReplicas").and_then(|it| it.trim().parse::<u32>().ok());
    let Some(desired) = desired else { return };
    if let Some(max) = scene.max.filter(|max| desired > *max) {
        let message = format!("{desired} is never reached: maxReplicaCount is {max}");
        notes.say(&["metadata", "desiredReplicas"], message);
    }
    if let Some(min) = scene.min.filter(|min| *min > 0 && desired <= *min) {
        let message = format!("{desired} changes nothing: minReplicaCount is {min}");
        notes.say(&["metadata", "desiredReplicas"], message);
    }
}

/// A Monday, from which on two weeks are looked at.
const MONDAY_MS: u64 = 1_704_067_200_000;
const DAY_MS: u64 = 86_400_000;

/// A window that is open over night on some days is open over the weekend where only weekdays end
/// it.
fn weekends(window: &CronWindow, notes: &mut Notes<'_>) {
    let (mut now, mut begun, mut windows) = (MONDAY_MS, None, Vec::new());
    while now < MONDAY_MS + 14 * DAY_MS && windows.len() < 100 {
        let (open, until) = window.open(now);
        match (open, begun) {
            (true, None) => begun = Some(now),
            (false, Some(since)) => {
                windows.push((now - since, since, now));
                begun = None;
            }
            _ => {}
        }
        now = until.max(now + 1);
    }
    // The first may have begun before.
    let whole = windows.iter().skip(1);
    let (Some(shortest), Some(longest)) = (whole.clone().min(), whole.max()) else { return };
    if longest.0 > DAY_MS && longest.0 > 2 * shortest.0 {
        let message = format!(
            "the window that begins on {} stays open until {}, when the next end comes; end it on the \
             day after too",
            window.weekday_and_time(longest.1),
            window.weekday_and_time(longest.2)
        );
        notes.say(&["metadata", "end"], message);
    }
}

/// Signals that don't grow with the replicas.
const INTENSIVE: [&str; 4] = ["ttft", "itl", "kvCache", "gpuUtilization"];

/// KEDA's triggers that ask Forebay.
fn external(trigger: &Trigger, notes: &mut Notes<'_>) {
    let text = |key: &str| trigger.metadata.get(key).map_or("", |text| text.trim());
    let address = text("scalerAddress");
    let ours =
        address.contains("forebay") || address.ends_with(":9910") || !text("pool").is_empty();
    if !ours {
        return;
    }
    let metric = text("metric");
    if INTENSIVE.contains(&metric) && trigger.metric_type != Some(MetricType::Value) {
        let message = format!(
            "missing metricType: Value: {metric} does not grow with the replicas, and KEDA would share \
             it among them and ask for ⌈{metric} ÷ threshold⌉ however many there are"
        );
        notes.error(&["metricType"], message);
    }
    if trigger.kind == "external" {
        let message = "wakes at the next poll only; external-push wakes at once";
        notes.say(&["type"], message);
    }
    if trigger.use_cached_metrics == Some(true) {
        let message = "the HPA would get figures as old as pollingInterval; leave it out";
        notes.say(&["useCachedMetrics"], message);
    }
}

/// Forebay's own triggers.
fn own(rule: &Rule, trigger: &Trigger, notes: &mut Notes<'_>) {
    let intensive = rule.signal.metric_type() == MetricType::Value;
    if intensive && rule.metric_type == MetricType::AverageValue {
        let message = format!(
            "{} does not grow with the replicas, and AverageValue would share it among them; leave \
             metricType out",
            trigger.kind
        );
        notes.say(&["metricType"], message);
    }
}
