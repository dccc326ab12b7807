//! The command: flags, the progress line, and where the results go.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use forebay_base::print;
use indicatif::{ProgressBar, ProgressStyle};

use super::generator::generate;
use super::measurements::Measurements;
use super::report::{self, Summary};
use super::settings::Settings;
use super::workload::Workload;

/// The load to send, and the endpoint to send it to.
#[derive(clap::Args, Debug)]
#[command(after_long_help = HELP)]
pub struct Options {
    /// A scenario file (YAML); flags replace its fields
    #[arg(long, short, value_name = "FILE")]
    scenario: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Print JSON instead of the table
    #[arg(long, help_heading = "Results")]
    json: bool,
    /// Write a page with plots over time
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    report: Option<PathBuf>,
    /// Show the CPU time of this process and its children, in all and per request
    #[arg(long, value_name = "PID", help_heading = "Results")]
    cpu_of: Option<u32>,
}

const HELP: &str = "\
Examples:
  20 requests a second for half a minute, as independent users send them:
    forebay load http://127.0.0.1:8080 --poisson 20

  How much it can take: rising load, with a page of plots over time:
    forebay load http://127.0.0.1:8080 --ramp 1-200 --duration 5m --report ramp.html

  An hour as it was recorded by gateway.recordArrivals, ten times as fast:
    forebay load http://127.0.0.1:8080 --trace arrivals.csv --pool chat --speed-up 10

  CPU time per request of a proxy, at the load that 64 clients make:
    forebay load http://127.0.0.1:8080 --clients 64 --cpu-of \"$(pidof nginx | cut -d' ' -f1)\"

A scenario file has the same settings, in the groups endpoint, arrivals, requests and connections:
    endpoint: {url: http://127.0.0.1:8080, model: sim}
    arrivals: {poisson: 20, duration: 1m}
    requests: {promptTokens: ~600, outputTokens: 100-200, body: {ignore_eos: true}}

Latencies count from the time at which a request was meant to go out. One that goes out more than
1 ms later is counted as late: where many are, the generator or --connections was the limit.
TTFT is the time to the first token, ITL the time between two tokens of a stream. Ctrl-C ends the
run and shows the results so far.";

/// Sends, measures and reports.
///
/// # Errors
/// A setting is wrong, no request was answered, or the report can't be written.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut settings = options.settings;
    if let Some(file) = &options.scenario {
        settings = settings.over(Settings::read(file)?);
    }
    let workload = Workload::new(settings)?;
    let (title, endpoint) = (report::title(&workload), workload.endpoint.base.to_string());
    let bar = progress_bar(workload.length);
    let shown = bar.clone();
    let progress = move |now: Duration, measured: &Measurements| show(&shown, now, measured);
    let generated = generate(workload, options.cpu_of, progress).await;
    bar.finish_and_clear();
    let summary = Summary::new(title, endpoint, &generated?, options.cpu_of);
    if let Some(file) = &options.report {
        std::fs::write(file, report::page::page(&summary))
            .with_context(|| format!("--report: cannot write {}", file.display()))?;
    }
    if options.json {
        print::out(format_args!("{}\n", serde_json::to_string_pretty(&summary)?))?;
    } else {
        print::out(report::table(&summary))?;
    }
    if summary.requests.sent == 0 && !summary.interrupted {
        bail!(
            "no request went out after the warm-up; shorten arrivals.warmup (--warmup) or lengthen \
             arrivals.duration (--duration)"
        );
    }
    if summary.requests.complete == 0 && !summary.interrupted {
        bail!("no request was answered: {}", summary.failures());
    }
    Ok(())
}

/// A line on the terminal; nothing elsewhere.
fn progress_bar(length: Duration) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length.as_millis() as u64);
    if let Ok(style) = ProgressStyle::with_template("{elapsed:>4} {bar:24} {percent:>3} %  {msg}") {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, now: Duration, measured: &Measurements) {
    bar.set_position(now.as_millis() as u64);
    let mut message = format!("{} sent, {} in flight", measured.flight.begun, measured.flight.now);
    if measured.latencies.ttft.count() > 0 {
        message +=
            &format!(", TTFT p50 {}", report::seconds(measured.latencies.ttft.quantile(0.5)));
    }
    for (count, name) in [(measured.failed(), "failed"), (measured.late, "late")] {
        if count > 0 {
            message += &format!(", {count} {name}");
        }
    }
    bar.set_message(message);
}
