//! `forebay load`: sends requests to any OpenAI endpoint at the times that a schedule gives, and
//! measures the answers.
//!
//! The load is open-loop: a request goes out at its intended time, however many are in flight, and
//! its latency counts from that time. A request that goes out late is counted as late, so a slow
//! endpoint, or a slow generator, can't hide its delay (no coordinated omission). The exception is
//! `clients`, a closed loop that measures capacity and says so.
//!
//! Everything runs on one thread: the generator often shares its machine with what it measures.
//! Pure parts, without socket or clock: `arrivals`, `prompt`, `stream`, `report`. Recorded
//! loads are read by replay's readers; nothing else of replay or of the simulated vLLM is used.

mod arrivals;
mod client;
mod cpu;
mod generator;
mod measurements;
mod options;
mod prompt;
mod report;
mod settings;
mod stream;
mod timer;
mod units;
mod workload;

pub use options::{Options, run};

#[cfg(test)]
mod tests;
