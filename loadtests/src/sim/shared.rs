//! The state that all connections share: names, phase, counters, the metrics page.

use crate::mix::{mix, unit};
use crate::sim::api::fault::Fault;
use crate::sim::args::{LoraModule, Runner, SigtermOutcome, SimArgs};
use crate::sim::engine::{Engine, EngineSettings, State};
use crate::sim::metrics::stats::{HttpAnswer, HttpStats, Stats};
use crate::sim::metrics::{Figures, Page, PageSettings};
use crate::sim::wall;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::watch;

/// The vLLM version that is imitated.
pub(crate) const VERSION: &str = "0.32.0";

/// The server's shared state.
pub(crate) struct Shared {
    pub(crate) args: SimArgs,
    /// The base model's names, the main one first.
    pub(crate) names: Vec<String>,
    pub(crate) fingerprint: String,
    pub(crate) engine: Arc<Engine>,
    /// Open requests, for /load.
    pub(crate) load: AtomicUsize,
    pub(crate) stop: watch::Sender<Option<Stop>>,
    loras: Mutex<Vec<LoraModule>>,
    phase: Mutex<Phase>,
    page: Page,
    http: Mutex<HttpStats>,
    started: Duration,
}

/// Why the server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// SIGTERM.
    Terminate,
    /// The engine died.
    Crash,
}

/// The phase of the server's life, as requests see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    /// SIGTERM, and requests may end: healthy, but new work fails.
    Draining,
    /// The engine is gone.
    Dying,
}

impl Shared {
    pub(crate) fn new(args: SimArgs) -> Arc<Self> {
        let names = args.names();
        let page = Page::new(&PageSettings {
            model: &names[0],
            max_model_len: args.capacity.max_model_len,
            blocks: args.capacity.num_gpu_blocks_override,
            block_size: args.capacity.block_size,
            tool_parser: args.replies.tool_call_parser.is_some(),
        });
        let setup = EngineSettings {
            limits: args.limits(),
            timing: args.timing(),
            max_queued: args.capacity.max_num_queued_reqs,
            seed: args.speed.seed,
            fail_rate: args.faults.fail_rate,
            reject_rate: args.faults.reject_rate,
        };
        let engine = Engine::new(setup, Stats::new(page.histograms()));
        let print =
            mix(u64::from(args.capacity.max_model_len), args.capacity.max_num_seqs as u64) as u32;
        Arc::new(Self {
            fingerprint: format!("vllm-{VERSION}-{print:08x}"),
            engine,
            load: AtomicUsize::new(0),
            stop: watch::Sender::new(None),
            loras: Mutex::new(args.lora_modules.clone()),
            phase: Mutex::new(Phase::Serving),
            page,
            http: Mutex::new(HttpStats::default()),
            started: wall::now(),
            names,
            args,
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.lock()
    }

    pub(crate) fn enter(&self, phase: Phase) {
        *self.phase.lock() = phase;
    }

    /// Ends the server. The first reason counts.
    pub(crate) fn end(&self, how: Stop) {
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            stop.get_or_insert(how);
            first
        });
    }

    /// Whether requests that SIGTERM aborts get an error, and not a reply cut short.
    pub(crate) fn fails_on_sigterm(&self) -> bool {
        match self.args.faults.sigterm_outcome {
            SigtermOutcome::Error => true,
            SigtermOutcome::Abort | SigtermOutcome::Mute => false,
            SigtermOutcome::Seeded => unit(mix(self.args.speed.seed, 15)) < 0.5,
        }
    }

    /// The model name that a reply carries, and the adapter, for the `model` of a request.
    pub(crate) fn resolve(&self, model: Option<&str>) -> Result<(String, Option<String>), Fault> {
        let main = &self.names[0];
        match model {
            None | Some("") => Ok((main.clone(), None)),
            Some(name) if self.names.iter().any(|known| known == name) => Ok((main.clone(), None)),
            Some(name) if self.loras.lock().iter().any(|lora| lora.name == name) => {
                Ok((name.to_owned(), Some(name.to_owned())))
            }
            Some(name) => {
                let aliases = self.args.runner == Runner::Generate;
                Err(Fault::unknown_model(name, aliases.then_some(self.names.as_slice())))
            }
        }
    }

    pub(crate) fn loras(&self) -> Vec<LoraModule> {
        self.loras.lock().clone()
    }

    /// Adds an adapter; false if its name is taken.
    pub(crate) fn add_lora(&self, lora: LoraModule) -> bool {
        let mut loras = self.loras.lock();
        let new = loras.iter().all(|known| known.name != lora.name);
        if new {
            loras.push(lora);
        }
        new
    }

    /// Removes an adapter; false if no adapter has that name.
    pub(crate) fn remove_lora(&self, name: &str) -> bool {
        let mut loras = self.loras.lock();
        let before = loras.len();
        loras.retain(|lora| lora.name != name);
        loras.len() < before
    }

    /// Counts an answered request.
    pub(crate) fn answered(&self, answered: &HttpAnswer, took: Duration) {
        self.http.lock().count(answered, took);
        self.engine.observe("http_request_duration_highr_seconds", took.as_secs_f64());
    }

    pub(crate) fn server_load(&self) -> usize {
        if self.args.replies.enable_server_load_tracking { self.load.load(Relaxed) } else { 0 }
    }

    pub(crate) fn metrics(&self) -> String {
        let http = self.http.lock();
        let has_loras = !self.args.lora_modules.is_empty();
        self.engine.figures(|stats, gauges, totals, state, loras| {
            let labelled = |labels: &str, label: &str| labels.contains(label);
            let sleeping = match state {
                State::Sleeping(level) => level,
                _ => 0,
            };
            let flag = |on: bool| f64::from(u8::from(on));
            let value = |name: &str, labels: &str| {
                let computed = stats.prompt_tokens.saturating_sub(stats.cached_tokens);
                Some(match name.strip_prefix("vllm:")? {
                    "num_requests_running" => gauges.running as f64,
                    "num_requests_waiting" => gauges.waiting as f64,
                    "num_requests_waiting_by_reason" if labelled(labels, "capacity") => {
                        gauges.waiting as f64
                    }
                    "kv_cache_usage_perc" => gauges.kv_usage,
                    "engine_sleep_state" if labelled(labels, "awake") => flag(sleeping == 0),
                    "engine_sleep_state" if labelled(labels, "weights") => flag(sleeping == 1),
                    "engine_sleep_state" => flag(sleeping == 2),
                    "prefix_cache_queries_total" => totals.cache_queries as f64,
                    "prefix_cache_hits_total" => totals.cache_hits as f64,
                    "num_preemptions_total" => totals.preemptions as f64,
                    "prompt_tokens_total" => stats.prompt_tokens as f64,
                    "prompt_tokens_cached_total" => stats.cached_tokens as f64,
                    "prompt_tokens_by_source_total" if labelled(labels, "local_compute") => {
                        computed as f64
                    }
                    "prompt_tokens_by_source_total" if labelled(labels, "local_cache_hit") => {
                        stats.cached_tokens as f64
                    }
                    "prompt_tokens_cached_by_source_total" if labelled(labels, "device") => {
                        stats.cached_tokens as f64
                    }
                    "generation_tokens_total" => stats.generation_tokens as f64,
                    "admission_rejections_total" if labelled(labels, "queued_reqs") => {
                        stats.rejections as f64
                    }
                    "tool_call_parser_invocations_total" => {
                        let counted = stats.parsed.iter();
                        let mut of = counted.filter(|(parsed, _)| parsed.has(labels));
                        of.next().map_or(0.0, |(_, count)| *count as f64)
                    }
                    "request_success_total" => {
                        let counted = stats.success.iter();
                        let mut of = counted.filter(|(reason, _)| {
                            labelled(labels, &format!("finished_reason=\"{reason}\""))
                        });
                        of.next().map_or(0.0, |(_, count)| *count as f64)
                    }
                    _ => return None,
                })
            };
            let none = [(String::new(), self.started.as_secs_f64())];
            let shown: Vec<(String, f64)> = none.iter().chain(loras).cloned().collect();
            self.page.render(&Figures {
                value: &value,
                histograms: &stats.histograms,
                http: &http,
                loras: if has_loras { &shown } else { &[] },
                started: self.started.as_secs_f64(),
            })
        })
    }
}
