//! The `forebay` command.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use forebay_base::open_files;
use forebay_base::print;
use forebay_config::Logging;

use crate::logging::Log;
use crate::upgrade::Program;
use crate::upgrade::new::Inherited;

mod addresses;
mod admin;
mod check;
mod console;
mod dev;
mod hash_key;
mod init;
mod logging;
mod operator;
mod probe;
mod reload;
mod serve;
mod shell;
mod startable;
mod stop_signals;
mod telemetry;
mod upgrade;
mod usage;

/// The version, with the commit and its date where they are known.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), env!("FOREBAY_COMMIT"));

// Halves the memory of a held request, and the time spent in the allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The allocator's options, under the name by which it looks for them; `_RJEM_MALLOC_CONF` comes on
/// top. A thread looks for memory that it no longer needs once in 1 MiB that it allocates. The
/// default, 64 KiB, is four requests, and the search costs more than routing them.
#[allow(unsafe_code)]
// SAFETY: the allocator declares this symbol for programs to define: a text that ends in a zero.
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8; 29] = b"tcache_gc_incr_bytes:1048576\0";

/// An inference gateway with built-in scaling: holds requests while replicas wake, measures queue
/// depth, TTFT and tokens/s inline, and starts and stops replicas by these figures.
#[derive(Parser)]
#[command(
    version = VERSION,
    after_help = "\
Without a command, `forebay` is `forebay dev`: gateway, scaler and simulated replicas, all on this
machine.
  forebay
  curl -N http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"model\":\"sim\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}'

A real server, started when a request comes and stopped when idle:
  forebay dev -- vllm serve Qwen/Qwen3-0.6B --host 127.0.0.1 --port {port}"
)]
struct Cli {
    /// Takes over from the process that started this one, over standard input
    #[arg(long, hide = true)]
    take_over: bool,
    /// Soft limit on open files to begin with
    #[arg(long, hide = true, requires = "take_over")]
    open_files: Option<u64>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Everything in one process on this machine, scaling from and to zero
    Dev(Box<dev::DevArgs>),
    /// Write a configuration file to begin with
    Init(init::InitArgs),
    /// Gateway and scaler in one process, from a configuration file
    Run(File),
    /// The gateway alone
    Gateway(File),
    /// The scaler alone
    Scaler(File),
    /// Show all pools of a running Forebay on one screen
    Status(operator::StatusArgs),
    /// Show all pools of a running Forebay, live
    Top(operator::TopArgs),
    /// Wake a pool, as if a request had come
    Wake(operator::PoolArgs),
    /// Send a pool to zero now, as if its cooldown had passed; the next request wakes it
    Zero(operator::PoolArgs),
    /// Keep a pool's present count, whatever the load
    Pause(operator::PoolArgs),
    /// Let Forebay decide on a pool again
    Unpause(operator::PoolArgs),
    /// Fix a pool's count
    Override(operator::OverrideArgs),
    /// Let a replica or a gateway finish its requests, and take no new ones
    Drain(operator::DrainArgs),
    /// Replace a running Forebay by the binary at its path, without losing a connection
    Upgrade(upgrade::command::UpgradeArgs),
    /// Ask servers until all answer, as a health check or before a test
    Probe(probe::ProbeArgs),
    /// Validate a configuration file or a ScaledObject of KEDA's, naming every problem with its line
    Check(check::CheckArgs),
    /// Print the configuration's JSON schema, for completion in editors
    Schema,
    /// Print the SHA-256 hash of an API key, for the file of `gateway.keys`
    HashKey(hash_key::HashKeyArgs),
    /// Rehearse a pool's scaling on a recorded or generated load, in simulated time
    Replay(forebay_loadtests::replay::ReplayArgs),
    /// Send a load to any OpenAI endpoint at the times of a schedule, and measure the answers
    Load(Box<forebay_loadtests::load::Options>),
    /// One simulated vLLM replica
    VllmSim(forebay_loadtests::sim::SimArgs),
    /// Print the script that completes commands and flags in a shell
    Completions(shell::CompletionArgs),
    /// Writes the man pages, for packages
    #[command(hide = true)]
    ManPages(shell::ManPageArgs),
    /// Runs one replica and ends all its processes when Forebay is gone
    #[command(hide = true)]
    Supervise(forebay_scaler::supervisor::Args),
}

#[derive(Args)]
struct File {
    /// The configuration file (YAML)
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let arguments: Vec<_> =
            std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
        usage::with_hint(error, &arguments).exit()
    });
    let Cli { take_over, open_files, command } = cli;
    let command = command.unwrap_or_else(|| Command::Dev(Box::default()));
    // Without a runtime or threads: each replica has a process of this kind.
    if let Command::Supervise(args) = command {
        return forebay_scaler::supervisor::run(args);
    }
    if let Some(soft) = open_files {
        // Otherwise replicas would get the limit that the process before had raised.
        let _ = open_files::set_soft(soft);
    }
    let inherited = take_over.then(Inherited::take).transpose();
    let outcome = inherited.context("--take-over").and_then(|inherited| {
        let outcome = run(command, inherited.as_ref());
        if let (Some(inherited), Err(error)) = (&inherited, &outcome) {
            inherited.fail(error);
        }
        outcome
    });
    outcome.unwrap_or_else(|error| {
        print::err(format_args!("forebay: {}", chain(&error)));
        ExitCode::FAILURE
    })
}

fn run(command: Command, inherited: Option<&Inherited>) -> anyhow::Result<ExitCode> {
    match command {
        Command::Dev(args) => match &args.config {
            Some(file) => from_file(file, serve::Parts::Both, logging::for_people, inherited),
            None => {
                let config = args.config()?;
                let program =
                    Program::of_this_process().context("cannot find the running program")?;
                let log = logging::for_people(&config.logging)?;
                raise_open_files();
                block_on(serve::serve(config, serve::Parts::Both, None, &log, &program, inherited))
            }
        },
        Command::Init(args) => init::run(&args),
        Command::Run(file) => file.start(serve::Parts::Both, inherited),
        Command::Gateway(file) => file.start(serve::Parts::Gateway, inherited),
        Command::Scaler(file) => file.start(serve::Parts::Scaler, inherited),
        Command::Status(args) => block_on(operator::status(&args)),
        Command::Top(args) => block_on(operator::top(&args)),
        Command::Wake(args) => block_on(operator::command(&args, "wake")),
        Command::Zero(args) => block_on(operator::command(&args, "zero")),
        Command::Pause(args) => block_on(operator::command(&args, "override?paused=true")),
        Command::Unpause(args) => block_on(operator::command(&args, "override?none=true")),
        Command::Override(args) => block_on(operator::fix(&args)),
        Command::Drain(args) => block_on(operator::drain(&args)),
        Command::Upgrade(args) => block_on(upgrade::command::run(args)),
        Command::Probe(args) => block_on(probe::run(args)),
        Command::Check(args) => check::run(&args),
        Command::Schema => {
            let schema = serde_json::to_string_pretty(&forebay_config::schema())?;
            print::out(format_args!("{schema}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::HashKey(args) => hash_key::run(&args),
        Command::Replay(args) => {
            forebay_loadtests::replay::run(&args, VERSION)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Load(options) => {
            raise_open_files();
            block_on(forebay_loadtests::load::run(*options))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::VllmSim(args) => {
            block_on(forebay_loadtests::sim::run(args))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions(args) => shell::completions(&args),
        Command::ManPages(args) => shell::man_pages(&args),
        Command::Supervise(_) => unreachable!("run before any runtime"),
    }
}

impl File {
    fn start(
        &self,
        parts: serve::Parts,
        inherited: Option<&Inherited>,
    ) -> anyhow::Result<ExitCode> {
        from_file(&self.config, parts, logging::for_machines, inherited)
    }
}

fn from_file(
    file: &Path,
    parts: serve::Parts,
    start_log: fn(&Logging) -> anyhow::Result<Log>,
    inherited: Option<&Inherited>,
) -> anyhow::Result<ExitCode> {
    let program = Program::of_this_process().context("cannot find the running program")?;
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    let (config, warnings) = forebay_config::inspect(&text, &name)?;
    let log = start_log(&config.logging)?;
    raise_open_files();
    for warning in warnings.iter() {
        tracing::warn!("{warning}");
    }
    block_on(async {
        let file = reload::ConfigFile::new(file.to_owned(), text)?;
        serve::serve(config, parts, Some(file), &log, &program, inherited).await
    })
}

/// An error with its causes, each once: some errors contain the text of their cause.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Raises the limit on open files to the hard limit: each connection needs one.
fn raise_open_files() {
    if let Err(error) = open_files::raise() {
        tracing::warn!("limit on open files: can't be raised: {error}");
    }
}

/// Runs `main` on a runtime for everything but clients, which the gateway's own threads serve. Tasks
/// that still read a file at the end are not waited for: the file may be on a volume that hangs.
fn block_on<T>(main: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the async runtime")?;
    let outcome = runtime.block_on(main);
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_its_error_contains_is_not_repeated() {
        let cause = || anyhow::anyhow!("taken");
        assert_eq!(chain(&cause().context("cannot listen: taken")), "cannot listen: taken");
        assert_eq!(
            chain(&cause().context("cannot listen").context("start")),
            "start: cannot listen: taken"
        );
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn no_line_of_an_example_is_broken_on_a_page_of_100_columns() {
        use clap::CommandFactory as _;
        let mut all = vec![Cli::command()];
        while let Some(command) = all.pop() {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{}: {line}", command.get_name());
            }
            all.extend(command.get_subcommands().cloned());
        }
    }
}
