//! `forebay init`: writes a configuration to begin with.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use forebay_base::print;
use forebay_config::yaml_scalar;

/// Flags of `forebay init`.
#[derive(clap::Args)]
#[command(
    group = clap::ArgGroup::new("replicas"),
    after_help = "\
Without --vllm, --endpoints or --kubernetes, replicas are simulated, and the file works on any
machine.

Two models on this machine, each started by its first request:
  forebay init --vllm Qwen/Qwen3-0.6B --vllm BAAI/bge-m3
  forebay run --config forebay.yaml"
)]
pub(crate) struct InitArgs {
    /// The file to write; `-` is standard output
    #[arg(value_name = "FILE", default_value = "forebay.yaml")]
    file: PathBuf,
    /// A model that `vllm serve` serves on this machine; give it once for each model
    #[arg(long, value_name = "MODEL", group = "replicas")]
    vllm: Vec<String>,
    /// Servers that run already
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', group = "replicas")]
    endpoints: Vec<String>,
    /// A vLLM Deployment in Kubernetes
    #[arg(long, group = "replicas")]
    kubernetes: bool,
    /// Replace FILE if it exists
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &InitArgs) -> anyhow::Result<ExitCode> {
    let to_stdout = args.file == Path::new("-");
    let name = if to_stdout { "forebay.yaml".to_owned() } else { args.file.display().to_string() };
    let text = text(args, &name)?;
    // A value of the command line may be wrong, such as an endpoint without a port.
    forebay_config::inspect(&text, &name).context("such a file would not be valid")?;
    if to_stdout {
        print::out(text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(!args.force).create(true).truncate(true);
    let mut file = match options.open(&args.file) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{name} exists already; replace it with --force, or name another file")
        }
        opened => opened.with_context(|| format!("cannot write {name}"))?,
    };
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {name}"))?;
    print::out(format_args!("{name} is written; start it with: forebay run --config {name}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// The file's text.
fn text(args: &InitArgs, name: &str) -> anyhow::Result<String> {
    let pools = if args.kubernetes {
        KUBERNETES.to_owned()
    } else if !args.endpoints.is_empty() {
        endpoints(&args.endpoints)
    } else if !args.vllm.is_empty() {
        vllm(&args.vllm)
    } else {
        simulated()?
    };
    Ok(HEAD.replace("NAME", name) + &pools)
}

fn vllm(models: &[String]) -> String {
    let mut names = HashSet::new();
    let mut pools = String::new();
    for model in models {
        let base = pool_name(model);
        let numbered = (2..).map(|n| format!("{base}-{n}"));
        let mut free = std::iter::once(base.clone()).chain(numbered);
        let name = free.find(|name| !names.contains(name)).unwrap_or(base);
        pools += &VLLM.replace("POOL", &name).replace("MODEL", &yaml_scalar(model));
        names.insert(name);
    }
    if models.len() > 1 {
        pools += "\n# Models that share a GPU need a share each: add for example\n\
                  # --gpu-memory-utilization=0.45 to both commands. With a GPU for each model, name it in\n\
                  # `gpus`.\n";
    }
    pools
}

fn endpoints(addresses: &[String]) -> String {
    let items: String =
        addresses.iter().map(|address| format!("      - {}\n", yaml_scalar(address))).collect();
    ENDPOINTS.replace("ADDRESSES", &items)
}

fn simulated() -> anyhow::Result<String> {
    let program = std::env::current_exe().context("cannot find the running program")?;
    Ok(SIMULATED.replace("PROGRAM", &yaml_scalar(&program.display().to_string())))
}

/// A pool's name made of a model's: `qwen3-0.6b` of `Qwen/Qwen3-0.6B`.
fn pool_name(model: &str) -> String {
    let last = model.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = last.chars().map(|c| if fits(c) { c } else { '-' }).take(60).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() { "vllm".to_owned() } else { name.to_owned() }
}

const HEAD: &str = "\
# Forebay's configuration.
#
#   forebay check --config NAME     reports every mistake with its line
#   forebay run --config NAME       starts it; a changed file is read again while it runs
#   forebay schema > forebay.schema.json   for completion in an editor
#
# yaml-language-server: $schema=forebay.schema.json
gateway:
  # Address for clients: base_url is http://127.0.0.1:8080/v1. With 0.0.0.0:8080 other machines
  # reach it too; then give out API keys (`keys`).
  listen: 127.0.0.1:8080
  # Names by which clients without a key reach it, besides localhost and this machine's addresses.
  # allowedHosts: [llm.example.com]

admin:
  # Address for operators: /metrics, /decisions, /healthz.
  listen: 127.0.0.1:9900

# One pool for each base model.
pools:
";

const VLLM: &str = "  \
  - name: POOL
    # Names that clients send in `model`.
    models: [MODEL]
    # Requests at one replica at once; Forebay holds further ones.
    # maxInFlight: 128
    target:
      processes:
        command:
          - vllm
          - serve
          - MODEL
          - --host=127.0.0.1
          # Forebay fills in a free port.
          - --port={port}
        # GPUs, one for each replica; at least as many as maxReplicaCount.
        # gpus: [0]
    scaling:
      # 0 stops an idle model; the next request waits for its start. 1 keeps it running.
      minReplicaCount: 0
      maxReplicaCount: 1
      # Idle time after which the last replica stops.
      cooldownPeriod: 10m
    hold:
      # Longest time that a request waits for a replica.
      timeout: 10m
";

const ENDPOINTS: &str = "  \
  - name: servers
    # Names that clients send in `model`; without them, those that the servers report.
    # models: [meta-llama/Llama-3.1-8B-Instruct]
    endpoints:
ADDRESSES    # Requests at one server at once; Forebay holds further ones.
    maxInFlight: 64
    hold:
      # Longest time that a request waits for a server.
      timeout: 30s
";

const KUBERNETES: &str = "  \
# The Helm chart takes this list as its value `pools`, and makes the rights that it needs.
  - name: vllm
    # Names that clients send in `model`.
    models: [Qwen/Qwen3-8B]
    # The pods that serve it.
    discovery:
      pods: {selector: app=vllm, port: 8000}
    # The Deployment whose `replicas` Forebay sets; leave `replicas` out of its manifest.
    target:
      kubernetes: {name: vllm}
    scaling:
      # 0 stops an idle model; the next request waits for its start.
      minReplicaCount: 0
      maxReplicaCount: 4
      # Idle time after which the last replica stops.
      cooldownPeriod: 10m
    hold:
      # Longest time that a request waits for a replica.
      timeout: 10m
";

const SIMULATED: &str = "  \
  - name: sim
    # Names that clients send in `model`.
    models: [sim]
    target:
      processes:
        # A simulated server. For a real one: [vllm, serve, Qwen/Qwen3-0.6B, --host=127.0.0.1, \"--port={port}\"],
        # with its model's name in `models`.
        command:
          - PROGRAM
          - vllm-sim
          - --cold-start=3s
          - --served-model-name=sim
          # It calls tools, so that agents can be tried.
          - --enable-auto-tool-choice
          - --tool-call-parser=hermes
          # Forebay fills in a free port.
          - --port={port}
    scaling:
      # 0 stops an idle model; the next request waits for its start.
      minReplicaCount: 0
      maxReplicaCount: 4
      # Idle time after which the last replica stops.
      cooldownPeriod: 30s
    hold:
      # Longest time that a request waits for a replica.
      timeout: 10m
";

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: InitArgs) -> forebay_config::Config {
        let text = text(&args, "f.yaml").expect("a text");
        let read = forebay_config::inspect(&text, "f.yaml");
        let (config, warnings) = read.unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        assert!(warnings.is_empty(), "{warnings}\n{text}");
        config
    }

    fn args() -> InitArgs {
        InitArgs {
            file: "f.yaml".into(),
            vllm: Vec::new(),
            endpoints: Vec::new(),
            kubernetes: false,
            force: false,
        }
    }

    #[test]
    fn each_kind_of_file_is_valid_without_a_warning() {
        assert_eq!(config(args()).pools[0].models, ["sim"]);
        assert!(config(InitArgs { kubernetes: true, ..args() }).pools[0].discovery.is_some());
        let endpoints = ["10.0.0.11:8000", "[::1]:8000", "host:80"].map(str::to_owned).to_vec();
        let config = config(InitArgs { endpoints: endpoints.clone(), ..args() });
        assert_eq!(config.pools[0].endpoints, endpoints);
    }

    #[test]
    fn each_model_gets_a_pool_of_its_own_name() {
        let models = ["Qwen/Qwen3-0.6B", "other/qwen3-0.6b", "/models/a b: c", "1.10", "#", "yes"];
        let vllm = models.map(str::to_owned).to_vec();
        let config = config(InitArgs { vllm, ..args() });
        let named: Vec<_> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
        assert_eq!(named, ["qwen3-0.6b", "qwen3-0.6b-2", "a-b--c", "1.10", "vllm", "yes"]);
        let served: Vec<_> = config.pools.iter().map(|pool| pool.models[0].as_str()).collect();
        assert_eq!(served, models);
    }
}
