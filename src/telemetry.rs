//! The export of this process's traces and metrics by OTLP.

use std::time::Duration;

use forebay_config::Config;
use forebay_telemetry::{Exporter, Settings};
use metrics_process::Collector;

use crate::admin::Figures;

/// Longest time for the last export.
const LAST: Duration = Duration::from_secs(5);

/// Starts the export, if the configuration or the environment names a receiver. `service` is the name
/// of this process unless it is given another one.
pub(crate) fn start(
    config: &Config,
    service: &str,
    figures: &Figures,
) -> anyhow::Result<Option<Exporter>> {
    let settings =
        Settings::resolve(&config.open_telemetry, service, |name| std::env::var(name).ok());
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    if settings.metrics.is_some() {
        forebay_gateway::describe_gen_ai();
    }
    let traces = settings.traces.as_ref().map(|traces| ("traces", &traces.receiver));
    let metrics = settings.metrics.as_ref().map(|metrics| ("metrics", &metrics.receiver));
    for (what, receiver) in traces.into_iter().chain(metrics) {
        tracing::info!("exporting {what} to {}", receiver.url);
    }
    let figures = figures.clone();
    let exporter = Exporter::start(settings, env!("CARGO_PKG_VERSION"), move |now| {
        Collector::default().collect();
        figures.otlp(now)
    })?;
    Ok(exporter)
}

/// Exports what waits, within a bound.
pub(crate) async fn finish(exporter: Option<Exporter>) {
    let Some(exporter) = exporter else { return };
    if !exporter.finish(LAST).await {
        tracing::warn!("the last traces and metrics could not be exported within {LAST:?}");
    }
}
