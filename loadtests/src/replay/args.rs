//! The command line: the load, the baselines, and where the results go.

use std::path::{Path, PathBuf};

use anyhow::Context;
use forebay_base::print;
use forebay_scheduling::room::LimitRule;

use super::contestants::fixed::Schedule;
use super::contestants::forebay::Forebay;
use super::contestants::keda::Keda;
use super::contestants::knative::Knative;
use super::contestants::kubeai::KubeAi;
use super::contestants::{BASELINES, Baseline, Bounds, Contestant, optimum};
use super::limits;
use super::measure::{Report, within};
use super::orders;
use super::picks;
use super::progress::Progress;
use super::report::{self, Load, Origin, Results, Setting};
use super::scenario::Scenario;
use super::trace::Trace;
use super::trace::conversations::CONVERSATIONS;
use super::trace::generate::SHAPES;
use super::world::{Model, Run};

/// The flags of `forebay replay`.
#[derive(clap::Args, Debug)]
#[command(after_long_help = after_help())]
pub struct ReplayArgs {
    /// The configuration file (YAML); its `replay` section has objective, replicas and price
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
    /// The pool; needed if the configuration has several
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Play these beside Forebay, with the same bounds, replicas and objective; `all` plays each
    #[arg(long, value_name = "BASELINE", num_args = 1.., value_delimiter = ',')]
    compare: Vec<String>,
    /// Play the pool of this other configuration too, by the objective of the first
    #[arg(long, value_name = "FILE", conflicts_with = "fleet")]
    beside: Option<PathBuf>,
    /// Play a fixed fleet under these pick policies, instead of autoscalers; `all` plays each
    #[arg(
        long,
        value_name = "POLICY",
        num_args = 1..,
        value_delimiter = ',',
        group = "fleet",
        conflicts_with_all = ["compare", "out"]
    )]
    picks: Vec<String>,
    /// Play a fixed fleet under each order of held requests, beside two clairvoyants
    #[arg(long, group = "fleet", conflicts_with_all = ["compare", "out"])]
    orders: bool,
    /// Start that fleet at the first request, instead of before it: without clairvoyants
    #[arg(long, requires = "orders")]
    from_zero: bool,
    /// Play an endless queue before one replica under fixed limits and the learned one
    #[arg(long, conflicts_with_all = ["fleet", "compare", "out"])]
    limits: bool,
    /// The replicas of that fleet [default: the pool's `maxReplicaCount`]
    #[arg(
        long,
        value_name = "N",
        requires = "fleet",
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    replicas: Option<u32>,
    #[command(flatten)]
    output: OutputArgs,
}

// The load: no doc comment, which clap would take for the command's own help.
#[derive(clap::Args, Debug)]
struct LoadArgs {
    /// A recorded load (CSV, or Mooncake's JSON lines), or the name of a generated one
    #[arg(long, short, value_name = "FILE|NAME")]
    trace: String,
    /// Play the load N times as fast as it was recorded
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    speed_up: f64,
    /// Seed of everything random [default: the configuration's `replay.seed`]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// The form of the results.
#[derive(clap::Args, Debug)]
struct OutputArgs {
    /// Write report.html and results.json into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Print a JSON object a line: the load, how far each contestant is, and its figures at its end
    #[arg(long, conflicts_with_all = ["json", "out", "fleet"])]
    json_lines: bool,
}

fn after_help() -> String {
    let list = |items: &mut dyn Iterator<Item = (&str, &str)>| {
        let line = |(name, about): (&str, &str)| format!("  {name:<20} {about}\n");
        items.map(line).collect::<String>()
    };
    format!(
        "Generated loads:\n{}\nGenerated loads of prompts that have beginnings in common:\n{}\nBaselines:\n{}\nA CSV file has the columns of Azure's traces \
         (TIMESTAMP,ContextTokens,GeneratedTokens) or of Forebay's own recordings \
         (time,pool,promptTokens,generatedTokens). A file of JSON lines has Mooncake's fields \
         (timestamp, input_length, output_length, hash_ids).",
        list(&mut SHAPES.iter().map(|shape| (shape.name, shape.about))),
        list(&mut CONVERSATIONS.iter().map(|shape| (shape.name, shape.about))),
        list(&mut BASELINES.iter().copied()),
    )
}

/// Plays, prints and writes.
///
/// # Errors
/// The configuration, the trace or a name is wrong, or the folder can't be written.
///
/// `version` is named in the results, so that they can be made again.
pub fn run(args: &ReplayArgs, version: &str) -> anyhow::Result<()> {
    let baselines = baselines(&args.compare)?;
    let scenario = read(&args.config, args)?;
    let beside = args.beside.as_ref().map(|file| read(file, args)).transpose()?;
    let trace = Trace::read(&args.load.trace, &scenario.pool.name, scenario.model.seed)?;
    let trace = trace.faster(args.load.speed_up)?;
    if !args.picks.is_empty() {
        return compare_picks(args, &scenario, &trace);
    }
    if args.orders {
        return compare_orders(args, &scenario, &trace);
    }
    if args.limits {
        return compare_limits(args, &scenario, &trace);
    }
    let progress = if args.output.json_lines { Progress::Lines } else { Progress::bar() };
    let mut results = compare(&scenario, beside.as_ref(), &trace, &baselines, &progress)?;
    drop(progress);
    if args.output.json_lines {
        return Ok(());
    }
    results.origin = Some(Origin::new(&scenario, args.load.speed_up, version));
    if let Some(folder) = &args.output.out {
        report::write(folder, &results)
            .with_context(|| format!("cannot write into {}", folder.display()))?;
    }
    if args.output.json {
        let results = serde_json::to_string_pretty(&results)?;
        print::out(format_args!("{results}\n"))?;
    } else {
        print::out(report::table(&results))?;
        if let Some(folder) = &args.output.out {
            let folder = folder.display();
            print::out(format_args!("\nwritten: {folder}/report.html, {folder}/results.json\n"))?;
        }
    }
    Ok(())
}

/// The pool of a configuration file, as a scenario.
fn read(file: &Path, args: &ReplayArgs) -> anyhow::Result<Scenario> {
    let mut scenario = Scenario::new(&forebay_config::load(file)?, args.pool.as_deref())?;
    scenario.model.seed = args.load.seed.unwrap_or(scenario.model.seed);
    if !scenario.left_out.is_empty() {
        let names = scenario.left_out.join(", ");
        print::err(format_args!(
            "warning: these triggers are left out, since replay can't know the figures that they \
             read: {names}"
        ));
    }
    Ok(scenario)
}

/// Plays the pick policies, and prints.
fn compare_picks(args: &ReplayArgs, scenario: &Scenario, trace: &Trace) -> anyhow::Result<()> {
    let picks = picks::named(&args.picks)?;
    let replicas = args.replicas.unwrap_or(scenario.bounds.max.max(1));
    let progress = Progress::bar();
    let results = picks::compare(scenario, trace, &picks, replicas, |trace, model, fleet| {
        progress.play(model.pick.name(), trace, model, fleet)
    });
    drop(progress);
    if args.output.json {
        print::out(format_args!("{}\n", serde_json::to_string_pretty(&results)?))?;
    } else {
        print::out(picks::table(&results))?;
    }
    Ok(())
}

/// Plays the orders of held requests, and prints.
fn compare_orders(args: &ReplayArgs, scenario: &Scenario, trace: &Trace) -> anyhow::Result<()> {
    let replicas = args.replicas.unwrap_or(scenario.bounds.max.max(1));
    let progress = Progress::bar();
    let play = |name, trace: &Trace, model: &Model, fleet: &mut Schedule| {
        progress.play(name, trace, model, fleet)
    };
    let results = match args.from_zero {
        true => orders::compare_from_zero(scenario, trace, replicas, play),
        false => orders::compare(scenario, trace, replicas, play),
    };
    drop(progress);
    if args.output.json {
        print::out(format_args!("{}\n", serde_json::to_string_pretty(&results)?))?;
    } else {
        print::out(orders::table(&results))?;
    }
    Ok(())
}

/// Plays the limits of one replica, and prints.
fn compare_limits(args: &ReplayArgs, scenario: &Scenario, trace: &Trace) -> anyhow::Result<()> {
    anyhow::ensure!(!trace.requests.is_empty(), "the trace has no request");
    let results = limits::compare(scenario, trace);
    if args.output.json {
        print::out(format_args!("{}\n", serde_json::to_string_pretty(&results)?))?;
    } else {
        print::out(limits::table(&results))?;
    }
    Ok(())
}

fn baselines(names: &[String]) -> anyhow::Result<Vec<Baseline>> {
    if names.iter().any(|name| name == "all") {
        return BASELINES.iter().map(|(name, _)| name.parse()).collect();
    }
    names.iter().map(|name| name.parse()).collect()
}

/// Plays Forebay, with other settings too, the fixed fleet that all are compared with, and the others.
/// Those that are quickly played come first, so that the first figures are soon there.
///
/// # Errors
/// The progress can't be written.
fn compare(
    scenario: &Scenario,
    beside: Option<&Scenario>,
    trace: &Trace,
    baselines: &[Baseline],
    progress: &Progress,
) -> anyhow::Result<Results> {
    let Scenario { model, price, .. } = scenario;
    progress.begun(&Load::new(scenario, trace), &Setting::new(scenario))?;
    let ended = |name: &str, run: &Run, price| {
        let report = Report::new(name, trace, model, price, run);
        progress.ended(&report)?;
        anyhow::Ok(report)
    };
    let mut others: Vec<Option<Report>> = vec![None; baselines.len()];
    let mut play_others = |quick: bool, reached: f64| {
        for (baseline, report) in baselines.iter().zip(&mut others) {
            if baseline.is_quick() == quick
                && let Some((name, run)) = other(*baseline, reached, scenario, trace, progress)
            {
                *report = Some(ended(name, &run, *price)?);
            }
        }
        anyhow::Ok(())
    };
    play_others(true, 0.0)?;

    let mut ours = Forebay::new(&scenario.pool, &scenario.config);
    let run = progress.play("forebay", trace, model, &mut ours);
    let forebay = ended("forebay", &run, *price)?;
    drop(run);
    let beside = beside.map(|other| {
        let mut theirs = Forebay::new(&other.pool, &other.config);
        let run = progress.play("beside", trace, &other.model, &mut theirs);
        ended("beside", &run, other.price)
    });
    let beside = beside.transpose()?;

    let given = baselines.iter().find_map(|baseline| match baseline {
        Baseline::Fixed(count) => *count,
        _ => None,
    });
    let fixed = |count| progress.play("fixed", trace, model, &mut Schedule::fixed(count));
    let (fleet, run) = match given {
        Some(count) => (count, fixed(count)),
        None => fleet(scenario, trace, fixed),
    };
    let fixed = ended(&format!("fixed={fleet}"), &run, *price)?;
    drop(run);
    play_others(false, forebay.service.share_within)?;
    let reports = [forebay, fixed].into_iter().chain(beside).chain(others.into_iter().flatten());
    Ok(Results::new(scenario, trace, reports.collect(), ours.into_changes()))
}

/// Plays another autoscaler; `None` if it is played already. `reached`: Forebay's share of requests
/// within the objective.
fn other(
    baseline: Baseline,
    reached: f64,
    scenario: &Scenario,
    trace: &Trace,
    progress: &Progress,
) -> Option<(&'static str, Run)> {
    let Scenario { model, bounds, .. } = scenario;
    let from_one = Bounds { min: bounds.min.max(1), ..*bounds };
    let play = |name, contestant: &mut dyn Contestant| {
        Some((name, progress.play(name, trace, model, contestant)))
    };
    match baseline {
        Baseline::Fixed(_) => None,
        Baseline::Keda(threshold) => play("keda", &mut Keda::new(*bounds, threshold)),
        Baseline::KedaFromOne(threshold) => play("keda-min1", &mut Keda::new(from_one, threshold)),
        Baseline::Knative(concurrency) => {
            // The activator's limit is the container's own.
            let limit = concurrency.unwrap_or(bounds.limit);
            let rule = LimitRule { most: limit, learned: false };
            let model = Model { limit: rule, ..model.clone() };
            let mut knative = Knative::new(*bounds, limit);
            Some(("knative", progress.play("knative", trace, &model, &mut knative)))
        }
        Baseline::KubeAi(target) => {
            play("kubeai", &mut KubeAi::new(*bounds, target.unwrap_or(bounds.target)))
        }
        // It would be Forebay once more.
        Baseline::Drained if scenario.pool.move_after().is_none() => None,
        Baseline::Drained => {
            let drained = Forebay::new(&scenario.pool, &scenario.config);
            play("drained", &mut drained.without_moves())
        }
        Baseline::Optimum(share) => {
            let share = share.unwrap_or(reached);
            let mut schedule = progress.search("optimum", |report| {
                optimum::schedule(trace, model, bounds.max, share, report)
            });
            let model = optimum::exact(model);
            Some(("optimum", progress.play("optimum", trace, &model, &mut schedule)))
        }
    }
}

/// The smallest fixed fleet, up to the pool's bound, that meets the objective, with its run.
fn fleet(scenario: &Scenario, trace: &Trace, play: impl Fn(u32) -> Run) -> (u32, Run) {
    let objective = scenario.model.objective;
    let (mut least, mut most) = (1, scenario.bounds.max.max(1));
    let mut best = None;
    while least < most {
        let middle = least.midpoint(most);
        let run = play(middle);
        if within(&run.outcomes, &trace.requests, objective) >= scenario.share {
            (most, best) = (middle, Some(run));
        } else {
            least = middle + 1;
        }
    }
    (most, best.unwrap_or_else(|| play(most)))
}
