//! The metadata of KEDA's scalers, as far as it decides whether KEDA accepts the object:
//! `prometheus`, `cron`, `cpu`, `memory` and the external ones. Of others only the type is checked.

use super::go;
use super::schema::unknown;
use crate::types::trigger::{
    CronWindow, MetricType, PromQuery, Rule, Signal, Trigger, unknown_zone,
};
use crate::units::cron::{Cron, time_zone};

/// The types that KEDA 2.21 has.
const TYPES: [&str; 80] = [
    "activemq",
    "apache-kafka",
    "arangodb",
    "artemis-queue",
    "aws-cloudwatch",
    "aws-dynamodb",
    "aws-dynamodb-streams",
    "aws-kinesis-stream",
    "aws-sqs-queue",
    "azure-app-insights",
    "azure-blob",
    "azure-cosmosdb",
    "azure-data-explorer",
    "azure-eventhub",
    "azure-log-analytics",
    "azure-monitor",
    "azure-pipelines",
    "azure-queue",
    "azure-servicebus",
    "beanstalkd",
    "cassandra",
    "clickhouse",
    "couchdb",
    "cpu",
    "cron",
    "datadog",
    "dynatrace",
    "elastic-forecast",
    "elasticsearch",
    "etcd",
    "external",
    "external-mock",
    "external-push",
    "forgejo-runner",
    "gcp-cloudtasks",
    "gcp-pubsub",
    "gcp-spanner",
    "gcp-stackdriver",
    "gcp-storage",
    "github-runner",
    "graphite",
    "huawei-cloudeye",
    "ibmmq",
    "influxdb",
    "kafka",
    "kubernetes-resource",
    "kubernetes-workload",
    "liiklus",
    "loki",
    "memory",
    "metrics-api",
    "mongodb",
    "mssql",
    "mysql",
    "nats-jetstream",
    "new-relic",
    "nsq",
    "opensearch",
    "openstack-metric",
    "openstack-swift",
    "postgresql",
    "predictkube",
    "prometheus",
    "pulsar",
    "rabbitmq",
    "redis",
    "redis-cluster",
    "redis-cluster-streams",
    "redis-sentinel",
    "redis-sentinel-streams",
    "redis-streams",
    "selenium-grid",
    "solace-direct-messaging",
    "solace-event-queue",
    "solarwinds",
    "solr",
    "splunk",
    "splunk-observability",
    "sumologic",
    "temporal",
];

/// Forebay's own triggers that its scaler for KEDA offers as a `metric`. A test of the scaler compares
/// the advice with what it takes.
const METRICS: [&str; 7] =
    ["queueDepth", "concurrency", "ttft", "itl", "tokensPerSecond", "kvCache", "gpuUtilization"];

/// One trigger while it is judged.
struct TriggerLint<'a> {
    trigger: &'a Trigger,
    /// Its metadata as written.
    metric_type: Option<&'a str>,
    /// Whether the HPA sees a formula instead of this trigger.
    composite: bool,
    /// The findings: the path below the trigger, and the message.
    found: Vec<(Vec<&'static str>, String)>,
}

/// The faults for which KEDA refuses a trigger, and its meaning if it is known.
pub(super) fn judge(
    trigger: &Trigger,
    metric_type: Option<&str>,
    composite: bool,
) -> (Option<Rule>, Vec<(Vec<&'static str>, String)>) {
    let mut scaler = TriggerLint { trigger, metric_type, composite, found: Vec::new() };
    let rule = match trigger.kind.as_str() {
        "prometheus" => scaler.prometheus(),
        "cron" => scaler.cron(),
        "cpu" | "memory" => {
            scaler.resource();
            None
        }
        "external" | "external-push" => {
            scaler.external_type();
            scaler.required("scalerAddress", "forebay-scaler.forebay.svc:9910");
            scaler.flag("enableTLS");
            scaler.flag("unsafeSsl");
            None
        }
        kind if TYPES.contains(&kind) => {
            scaler.external_type();
            None
        }
        kind => {
            scaler.found.push((vec!["type"], unknown_type(kind)));
            None
        }
    };
    (rule, scaler.found)
}

fn unknown_type(kind: &str) -> String {
    if METRICS.contains(&kind) {
        return format!(
            "`{kind}` is Forebay's own, which KEDA does not know; write type: external-push, with \
             scalerAddress and metric: {kind} in its metadata"
        );
    }
    if crate::TRIGGER_TYPES.contains(&kind) {
        return format!(
            "`{kind}` is Forebay's own, which neither KEDA nor Forebay's scaler for KEDA has; write \
             type: prometheus, with a query of DCGM's series"
        );
    }
    match crate::yaml::closest(kind, &TYPES) {
        Some(near) => format!("`{kind}` is not known; did you mean {near}?"),
        None => format!("`{kind}` is not known: KEDA has no such trigger"),
    }
}

impl<'a> TriggerLint<'a> {
    fn say(&mut self, key: &'static str, message: impl Into<String>) {
        self.found.push((vec!["metadata", key], message.into()));
    }

    /// The text at `key`; `None` where there is none or it is empty.
    fn text(&self, key: &str) -> Option<&'a str> {
        self.trigger.metadata.get(key).map(|text| text.trim()).filter(|text| !text.is_empty())
    }

    fn required(&mut self, key: &'static str, example: &str) -> Option<&'a str> {
        let text = self.text(key);
        if text.is_none() {
            self.say(key, format!("missing; write for example {key}: {example}"));
        }
        text
    }

    fn number(&mut self, key: &'static str) -> Option<f64> {
        let text = self.text(key)?;
        let number = go::json_number(text);
        if number.is_none() {
            self.say(key, format!("`{text}` is not a number; write it as 5, 0.5 or 5e3"));
        }
        number
    }

    fn flag(&mut self, key: &'static str) -> Option<bool> {
        let text = self.text(key)?;
        let flag = go::flag(text);
        if flag.is_none() {
            self.say(key, format!("must be true or false, not `{text}`"));
        }
        flag
    }

    /// `key=value,…`, each with one `=`.
    fn pairs(&mut self, key: &'static str) {
        let Some(text) = self.text(key) else { return };
        if let Some(item) = text.split(',').find(|item| item.matches('=').count() != 1) {
            self.say(key, format!("`{item}` is not name=value, with a single `=`"));
        }
    }

    /// The type of an external metric.
    fn external_type(&mut self) -> MetricType {
        match self.metric_type.unwrap_or_default() {
            "" | "AverageValue" => MetricType::AverageValue,
            "Value" => MetricType::Value,
            "Utilization" => {
                let message = "Utilization is for cpu and memory only; give AverageValue or Value";
                self.found.push((vec!["metricType"], message.to_owned()));
                MetricType::AverageValue
            }
            // The formula has a type of its own.
            _ if self.composite => MetricType::AverageValue,
            other => {
                let message = unknown(other, &["AverageValue", "Value"]);
                self.found.push((vec!["metricType"], message));
                MetricType::AverageValue
            }
        }
    }

    fn prometheus(&mut self) -> Option<Rule> {
        let metric_type = self.external_type();
        if let Some(server) = self.required("serverAddress", "http://prometheus:9090")
            && let Err(message) = crate::types::prometheus::check_server_url(server)
        {
            self.say("serverAddress", message);
        }
        let query = self.required("query", "sum(vllm:num_requests_waiting)");
        self.required("threshold", "\"5\"");
        let threshold = self.number("threshold");
        if threshold.is_some_and(|threshold| !go::is_above_zero_in_thousandths(threshold))
            && !self.composite
        {
            let message = "must be 0.001 or more: the HPA takes no threshold of 0 or below";
            self.say("threshold", message);
        }
        let activation_threshold = self.number("activationThreshold").unwrap_or(0.0);
        self.pairs("queryParameters");
        self.pairs("customHeaders");
        let ignore_null_values = self.flag("ignoreNullValues").unwrap_or(true);
        self.flag("unsafeSsl");
        if let Some(text) = self.text("timeout").filter(|text| !go::timeout(text)) {
            self.say(
                "timeout",
                format!("`{text}` is neither a duration such as 5s nor milliseconds"),
            );
        }
        self.authentication();
        let query = PromQuery {
            server_address: self.text("serverAddress").map(str::to_owned),
            query: query?.to_owned(),
            ignore_null_values,
            ..PromQuery::default()
        };
        Some(Rule {
            signal: Signal::Prometheus(query),
            threshold: threshold.unwrap_or(1.0),
            activation_threshold,
            metric_type,
        })
    }

    /// Credentials come from a TriggerAuthentication.
    fn authentication(&mut self) {
        const MODES: [&str; 6] = ["apiKey", "basic", "tls", "bearer", "custom", "oauth"];
        let (key, text) = match (self.text("authModes"), self.text("authMode")) {
            (Some(text), _) => ("authModes", text),
            (None, Some(text)) => ("authMode", text),
            (None, None) => return,
        };
        let modes: Vec<_> = text.split(',').map(str::trim).collect();
        if let Some(mode) = modes.iter().find(|mode| !MODES.contains(mode)) {
            self.say(key, unknown(mode, &MODES));
            return;
        }
        let one = modes.iter().filter(|mode| ["bearer", "basic", "oauth"].contains(mode)).count();
        if one > 1 {
            self.say(key, "bearer, basic and oauth exclude each other; keep one of them");
            return;
        }
        let has_key = modes == ["apiKey"] && self.text("apiKey").is_some();
        if self.trigger.authentication_ref.is_none() && !has_key {
            let message = format!(
                "{text} needs credentials, and there is no authenticationRef to a TriggerAuthentication \
                 that has them"
            );
            self.say(key, message);
        }
    }

    fn cron(&mut self) -> Option<Rule> {
        let metric_type = self.external_type();
        let timezone = self.required("timezone", "Europe/Amsterdam").and_then(|name| {
            let zone = time_zone(name);
            if zone.is_none() {
                self.say("timezone", unknown_zone(name));
            }
            zone
        });
        let start = self.times("start", "0 8 * * 1-5");
        let end = self.times("end", "0 18 * * 1-5");
        if let (Some(start), Some(end)) = (self.text("start"), self.text("end"))
            && start == end
        {
            self.say("end", "is the same as start; the window would be empty");
        }
        let desired = self.required("desiredReplicas", "\"3\"").and_then(|text| {
            match go::json_whole(text) {
                Some(0) => self.say("desiredReplicas", "must not be 0; leave the trigger out"),
                Some(number) => return Some(number),
                None => self.say("desiredReplicas", format!("`{text}` is not a whole number")),
            }
            None
        });
        let window = CronWindow {
            timezone: timezone?,
            start: start?,
            end: end?,
            // For the HPA a negative count is 0.
            desired_replicas: desired?.clamp(0, i64::from(u32::MAX)) as u32,
        };
        Some(Rule {
            signal: Signal::Cron(Box::new(window)),
            threshold: 1.0,
            activation_threshold: 0.0,
            metric_type,
        })
    }

    fn times(&mut self, key: &'static str, example: &str) -> Option<Cron> {
        let text = self.required(key, &format!("\"{example}\""))?;
        match Cron::parse(text) {
            Ok(cron) => Some(cron),
            Err(what) => {
                self.say(key, format!("`{text}` {what}; write for example \"{example}\""));
                None
            }
        }
    }

    /// `cpu` and `memory`.
    fn resource(&mut self) {
        if self.text("type").is_some() {
            self.say("type", "KEDA removed it; write metricType beside the trigger's type");
        }
        let value = self.required("value", "\"80\"");
        match (self.metric_type.unwrap_or_default(), value) {
            ("AverageValue", Some(value)) => {
                if go::quantity(value).is_none_or(|quantity| quantity <= 0.0) {
                    self.say(
                        "value",
                        format!("`{value}` is not a quantity above 0, such as 500m or 2Gi"),
                    );
                }
            }
            ("Utilization", Some(value)) => {
                if go::whole_32(value).is_none_or(|percent| percent <= 0) {
                    self.say("value", format!("`{value}` is not a whole percentage above 0"));
                }
            }
            ("AverageValue" | "Utilization", None) => {}
            ("", _) => {
                let message = "missing; give Utilization (percent) or AverageValue";
                self.found.push((vec!["metricType"], message.to_owned()));
            }
            (other, _) => {
                let message = format!(
                    "`{other}` is not for {}; give Utilization or AverageValue",
                    self.trigger.kind
                );
                self.found.push((vec!["metricType"], message));
            }
        }
    }
}
