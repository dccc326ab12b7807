//! Traces and metrics for an OpenTelemetry Collector, or any other receiver of OTLP.
//!
//! A request or a decision gives its [spans](span) to a [`Tracer`] when it has ended. They wait in a
//! bounded queue, and a thread of its own exports them. What does not fit or can't be delivered is
//! dropped and counted on `/metrics`, so a receiver that is slow or gone costs spans and nothing else.
//!
//! The messages are those of `opentelemetry-proto`. The SDK's pipeline is not used: its metrics would
//! count everything a second time, and can't export histograms that were counted elsewhere; its spans
//! are made at their beginning, and ours at their end, from times that the request keeps anyway; and it
//! does not report what it drops.
//!
//! [`context`], [`sampler`], [`span`] and [`figure`] are pure. So is [`settings`]: the environment is an
//! argument.

mod client;
pub mod context;
mod export;
pub mod figure;
pub mod metric;
mod queue;
pub mod sampler;
pub mod settings;
pub mod span;
mod tracer;

pub use export::{Exporter, StartError};
pub use metric::describe;
pub use settings::{Settings, Signal};
pub use tracer::{Telemetry, Tracer};
