//! Warnings about triggers that can't work as their author means, a sentence each.
//!
//! All of it is allowed, and KEDA accepts it silently. If Forebay has a trigger of its own with the
//! same meaning, the sentence names it.
//!
//! `promql-parser` reads queries. Formulas, cron expressions and Go's number formats are read here:
//! no crate follows KEDA's dialects of them.

use crate::types::trigger::{MetricType, Rule, Signal, Trigger};
use crate::yaml::problem::Path;

mod names;
mod promql;
mod query;
pub(crate) mod scaled_object;
mod schedule;
mod series;
mod waking;

/// The triggers to judge, and their surroundings.
pub(crate) struct Context<'a> {
    /// All of them: one may make up for another.
    pub(crate) triggers: &'a [Trigger],
    /// The meaning of each of them, if it is known.
    pub(crate) rules: &'a [Option<Rule>],
    /// `idleReplicaCount`.
    pub(crate) idle: Option<u32>,
    /// `minReplicaCount`; `None` where it is not known.
    pub(crate) min: Option<u32>,
    /// `maxReplicaCount`; `None` where it is not known.
    pub(crate) max: Option<u32>,
    /// The program that reads them.
    pub(crate) reader: TriggerReader,
}

/// The program that reads the triggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TriggerReader {
    /// Forebay, which may have a server for triggers that name none.
    Forebay {
        /// Whether there is a top-level `prometheus.serverAddress`.
        server: bool,
    },
    /// KEDA.
    Keda {
        /// Whether the HPA sees the result of a formula, and not the triggers themselves.
        composite: bool,
    },
}

impl Context<'_> {
    fn is_composite(&self) -> bool {
        self.reader == TriggerReader::Keda { composite: true }
    }

    fn is_keda(&self) -> bool {
        matches!(self.reader, TriggerReader::Keda { .. })
    }
}

/// One sentence on one field of a trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remark {
    /// Way from the list of triggers.
    pub(crate) path: Path,
    pub(crate) message: String,
    /// Whether this is an error, so that the trigger can't be used; else a warning.
    pub(crate) error: bool,
}

/// All remarks on all triggers.
pub(crate) fn lint(context: &Context<'_>) -> Vec<Remark> {
    let mut remarks = Vec::new();
    for (at, trigger) in context.triggers.iter().enumerate() {
        let mut notes = Notes { path: Path::default().index(at), remarks: &mut remarks };
        match trigger.kind.as_str() {
            "external" | "external-push" => external(trigger, &mut notes),
            "prometheus" if context.is_keda() && trigger.metadata.contains_key("metricName") => {
                let message = "has no effect: KEDA removed it from the prometheus trigger; to name the trigger, \
                               write `name` beside `type`";
                notes.say(&["metadata", "metricName"], message);
            }
            _ => {}
        }
        let Some(rule) = context.rules.get(at).and_then(Option::as_ref) else { continue };
        match &rule.signal {
            Signal::Prometheus(query) => {
                if query.server_address.is_none() {
                    server(context.reader, &mut notes);
                }
                query::lint(context, at, trigger, rule, query, &mut notes);
                activation(context, trigger, &mut notes);
            }
            Signal::Gpu(_, crate::GpuSource::Prometheus(query))
                if query.server_address.is_none() =>
            {
                server(context.reader, &mut notes);
            }
            Signal::Ttft { .. } | Signal::Itl { .. } | Signal::KvCache | Signal::Gpu(..) => {}
            Signal::Cron(window) => schedule::lint(context, at, window, &mut notes),
            _ => activation(context, trigger, &mut notes),
        }
        own(rule, trigger, &mut notes);
    }
    remarks
}

/// Collects the remarks on one trigger.
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

fn server(reader: TriggerReader, notes: &mut Notes<'_>) {
    if reader == (TriggerReader::Forebay { server: false }) {
        let message = "missing, and there is no prometheus.serverAddress at the top either: there is \
                       no server to query, and the trigger is ignored";
        notes.say(&["metadata", "serverAddress"], message);
    }
}

/// An `activationThreshold` where the count is never zero, so that it has no effect.
fn activation(context: &Context<'_>, trigger: &Trigger, notes: &mut Notes<'_>) {
    let written = trigger.metadata.get("activationThreshold").map(|text| text.trim());
    if !written.is_some_and(|text| text.parse::<f64>().is_ok_and(|number| number != 0.0)) {
        return;
    }
    let field = &["metadata", "activationThreshold"];
    if context.is_composite() {
        let message = "has no effect: with scalingModifiers the formula is compared with \
                       activationTarget";
        notes.say(field, message);
    } else if let Some(min) = context.min.filter(|min| *min > 0 && context.idle.is_none()) {
        let message = format!(
            "has no effect: it decides between none and one replica, and minReplicaCount is {min}"
        );
        notes.say(field, message);
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
    if metric.is_empty() && trigger.metric_type == Some(MetricType::Value) {
        let message =
            "Value multiplies the decided count by the pods that are ready; leave metricType out";
        notes.say(&["metricType"], message);
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
