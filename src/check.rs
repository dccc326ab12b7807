//! `forebay check`: reports the problems of a configuration, or of a ScaledObject of KEDA's.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use forebay_base::print;
use forebay_base::{memory, open_files};
use forebay_config::{Config, Inspection, Pool, Target};
use forebay_gateway::machine_limits::MachineLimits;

use crate::startable;

/// Flags of `forebay check`.
#[derive(clap::Args)]
#[command(
    group = clap::ArgGroup::new("what").required(true),
    after_help = "\
Exit status: 0 valid, 1 invalid (with --strict: or with warnings), 2 wrong usage.
A ScaledObject is invalid if KEDA refuses it in a namespace with nothing but its target."
)]
pub(crate) struct CheckArgs {
    /// The configuration file (YAML)
    #[arg(long, short, value_name = "FILE", group = "what")]
    config: Option<PathBuf>,
    /// A ScaledObject of KEDA's, or its `triggers` and `advanced` alone: reports fields that KEDA
    /// refuses, and triggers that can't work as their author means
    #[arg(long, value_name = "FILE", group = "what", conflicts_with = "print")]
    scaled_object: Option<PathBuf>,
    /// Fail on warnings too
    #[arg(long)]
    strict: bool,
    /// Print the effective configuration, with all defaults
    #[arg(long)]
    print: bool,
}

pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let (file, config, Inspection { errors, warnings }) = match (&args.config, &args.scaled_object)
    {
        (Some(file), _) => match forebay_config::inspect(&read(file)?, &name(file)) {
            Ok((config, warnings)) => {
                (file, Some(config), Inspection { warnings, ..Inspection::default() })
            }
            Err(errors) => (file, None, Inspection { errors, ..Inspection::default() }),
        },
        (None, Some(file)) => {
            (file, None, forebay_config::inspect_scaled_object(&read(file)?, &name(file)))
        }
        (None, None) => anyhow::bail!("give --config or --scaled-object"),
    };
    for warning in &warnings {
        print::err(format_args!("warning: {warning}"));
    }
    if !errors.is_empty() {
        print::err(errors);
        return Ok(ExitCode::FAILURE);
    }
    let unstartable: Vec<_> = config.iter().flat_map(unstartable).collect();
    for problem in &unstartable {
        print::err(format_args!("warning: {}: {problem}", name(file)));
    }
    let warned = warnings.iter().count() + unstartable.len();
    let here = config.map(on_this_machine);
    match here {
        Some((config, notes)) if args.print => {
            let notes: String = notes.iter().map(|note| format!("# {note}\n")).collect();
            print::out(format_args!("{notes}{}", forebay_config::print(&config)))?;
        }
        here => {
            let verdict = verdict(warned, args.strict);
            let notes = here.map(|(_, notes)| notes).unwrap_or_default();
            let notes: String = notes.iter().map(|note| format!("{note}\n")).collect();
            print::out(format_args!("{}: {verdict}\n{notes}", name(file)))?;
        }
    }
    let refused = args.strict && warned > 0;
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The pools whose replicas this machine can't start. Another machine may have what they need.
fn unstartable(config: &Config) -> Vec<String> {
    let problem = |pool: &Pool| {
        let Some(Target::Processes(processes)) = &pool.target else { return None };
        let problem = startable::problem(processes)?;
        Some(format!("pool `{}` can't be started on this machine: {problem}", pool.name))
    };
    config.pools.iter().filter_map(problem).collect()
}

/// The configuration with the limits that this machine sets, and notes on them. Another machine may
/// set others.
fn on_this_machine(mut config: Config) -> (Config, Vec<String>) {
    let (memory, files) = (memory::available(), open_files::hard_limit());
    let limits = &config.gateway.limits;
    let bounds = MachineLimits::of(limits, &memory, files);
    let notes = bounds.notes(limits, &memory, files);
    let notes = notes.iter().map(|note| format!("on this machine: {note}")).collect();
    config.gateway.limits = bounds.effective(limits);
    (config, notes)
}

fn verdict(warnings: usize, strict: bool) -> String {
    match (warnings, strict) {
        (0, _) => "valid".to_owned(),
        (1, false) => "valid, with a warning".to_owned(),
        (count, false) => format!("valid, with {count} warnings"),
        (1, true) => "refused for a warning".to_owned(),
        (count, true) => format!("refused for {count} warnings"),
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", name(file)))
}

fn name(file: &Path) -> String {
    file.display().to_string()
}
