//! The rules of the export to OpenTelemetry.

use super::Findings;
use crate::types::open_telemetry::OpenTelemetry;
use crate::types::prometheus::base_url;
use crate::yaml::problem::Path;

pub(super) fn check(telemetry: &OpenTelemetry, path: &Path, found: &mut Findings) {
    if let Some(Err(message)) = telemetry.endpoint.as_deref().map(base_url) {
        let message = message.replace("http://prometheus:9090", "http://otel-collector:4317");
        found.error(path.key("endpoint"), message);
    }
    if let Some(timeout) = telemetry.timeout {
        found.above_zero(path, "timeout", timeout);
    }
    if telemetry.service_name.as_deref() == Some("") {
        found.error(path.key("serviceName"), "is empty; leave it out for the default");
    }
    for name in telemetry.resource_attributes.keys() {
        if name.is_empty() {
            found.error(path.key("resourceAttributes"), "an attribute has no name");
        } else if matches!(name.as_str(), "service.name" | "service.instance.id") {
            let message = match name.as_str() {
                "service.name" => "give it as serviceName",
                _ => "each process makes its own",
            };
            found.error(path.key("resourceAttributes").key(name), message);
        }
    }
    let traces = path.key("traces");
    if let Some(ratio) = telemetry.traces.sample_ratio
        && !(0.0..=1.0).contains(&ratio)
    {
        let message = format!("{ratio} is not between 0 and 1, such as 0.1 for a tenth");
        found.error(traces.key("sampleRatio"), message);
    }
    let metrics = path.key("metrics");
    if let Some(interval) = telemetry.metrics.interval {
        found.above_zero(&metrics, "interval", interval);
    }
}
