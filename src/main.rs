//! The `forebay` command.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use forebay_bounds::print;
use forebay_system::files;

use crate::upgrade::Program;
use crate::upgrade::new::Inherited;

mod admin;
mod check;
mod dev;
mod hash_key;
mod logging;
mod reload;
mod serve;
mod upgrade;

// Halves the memory of a held request, and takes much of the allocator off the CPU.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// An inference gateway with built-in scaling: holds requests while replicas wake, measures queue
/// depth, TTFT and tokens/s inline, and starts and stops replicas on what it measured.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Without a command, `forebay` is `forebay dev`: gateway, scaler and simulated replicas on this machine.
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
    Dev(dev::Args),
    /// Gateway and scaler in one process, from a configuration file
    Run(File),
    /// The gateway alone
    Gateway(File),
    /// The scaler alone
    Scaler(File),
    /// Let the binary at a running Forebay's path take over from it, without a lost connection
    Upgrade(upgrade::command::Args),
    /// Validate a configuration file or a ScaledObject of KEDA's, naming every problem with its line
    Check(check::Args),
    /// Print the configuration's JSON schema, for completion in editors
    Schema,
    /// Print the SHA-256 hash of an API key, as the file of `gateway.keys` has it
    HashKey(hash_key::Args),
    /// Rehearse a pool's scaling on a recorded or generated load, in simulated time
    Replay(forebay_loadtests::replay::Args),
    /// One simulated vLLM replica
    VllmSim(forebay_loadtests::sim::Args),
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
    let Cli { take_over, open_files, command } = Cli::parse();
    let command = command.unwrap_or_else(|| Command::Dev(dev::Args::default()));
    // No runtime and no threads: there is one of these for each replica.
    if let Command::Supervise(args) = command {
        return forebay_scaler::supervisor::run(args);
    }
    if let Some(soft) = open_files {
        // Without, replicas would get the limit that the process before had raised.
        let _ = files::set_soft(soft);
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
        print::err(format_args!("forebay: {error:#}"));
        ExitCode::FAILURE
    })
}

fn run(command: Command, inherited: Option<&Inherited>) -> anyhow::Result<ExitCode> {
    match command {
        Command::Dev(args) => {
            let config = args.config()?;
            let program = Program::of_this_process().context("cannot find the running program")?;
            let log = logging::for_people()?;
            raise_open_files();
            block_on(serve::serve(config, serve::Parts::Both, None, &log, &program, inherited))
        }
        Command::Run(file) => from_file(&file, serve::Parts::Both, inherited),
        Command::Gateway(file) => from_file(&file, serve::Parts::Gateway, inherited),
        Command::Scaler(file) => from_file(&file, serve::Parts::Scaler, inherited),
        Command::Upgrade(args) => block_on(upgrade::command::run(args)),
        Command::Check(args) => check::run(&args),
        Command::Schema => {
            let schema = serde_json::to_string_pretty(&forebay_config::schema())?;
            print::out(format_args!("{schema}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::HashKey(args) => hash_key::run(&args),
        Command::Replay(args) => {
            forebay_loadtests::replay::run(&args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::VllmSim(args) => {
            block_on(forebay_loadtests::sim::run(args))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Supervise(_) => unreachable!("run before any runtime"),
    }
}

fn from_file(
    file: &File,
    parts: serve::Parts,
    inherited: Option<&Inherited>,
) -> anyhow::Result<ExitCode> {
    let program = Program::of_this_process().context("cannot find the running program")?;
    let name = file.config.display().to_string();
    let text =
        std::fs::read_to_string(&file.config).with_context(|| format!("cannot read {name}"))?;
    let (config, warnings) = forebay_config::inspect(&text, &name)?;
    let log = logging::for_machines(&config.logging)?;
    raise_open_files();
    for warning in warnings.iter() {
        tracing::warn!("{warning}");
    }
    block_on(async {
        let file = reload::ConfigFile::new(file.config.clone(), text)?;
        serve::serve(config, parts, Some(file), &log, &program, inherited).await
    })
}

/// Takes as many open files as the hard limit allows: each connection is one.
fn raise_open_files() {
    if let Err(error) = files::raise() {
        tracing::warn!("limit on open files: can't be raised: {error}");
    }
}

/// Runs it on a runtime for everything but clients, whom threads of the gateway's own serve. What
/// still reads a file then is not waited for: it may be on a volume that hangs.
fn block_on<T>(main: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the async runtime")?;
    let outcome = runtime.block_on(main);
    runtime.shutdown_background();
    outcome
}
