//! `forebay dev`: makes a configuration from a command line.

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use forebay_config::{
    Admin, Config, Gateway, HostPattern, Pool, Processes, Scaling, ShowReason, Target,
};

use crate::startable;

/// Idle time to zero: a model takes minutes to load, the simulated one seconds.
const IDLE_REAL: Duration = Duration::from_secs(10 * 60);
const IDLE_SIM: Duration = Duration::from_secs(30);

/// Flags and COMMAND of `forebay dev`.
#[derive(clap::Args, Default)]
pub(crate) struct DevArgs {
    /// Configuration file (YAML) instead of all other flags: as `forebay run`, with a log for people
    #[arg(long, short, value_name = "FILE", exclusive = true)]
    pub(crate) config: Option<PathBuf>,
    /// Address for clients [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS", value_parser = forebay_config::parse_listen_address)]
    listen: Option<SocketAddr>,
    /// Address for metrics and the feeds [default: 127.0.0.1:9900]
    #[arg(long, value_name = "ADDRESS", value_parser = forebay_config::parse_listen_address)]
    admin: Option<SocketAddr>,
    /// Host by which clients may reach the gateway, besides this machine's: a name, `*.example.com`,
    /// an address, 10.0.0.0/8, or `*` for any
    #[arg(long, value_name = "HOST")]
    allowed_host: Vec<HostPattern>,
    /// Name that clients send in `model`; by default read from COMMAND, or reported by the first replica
    #[arg(long, value_name = "NAME")]
    model: Vec<String>,
    /// Most replicas [default: 1 with COMMAND, 4 simulated ones without]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_replicas: Option<u32>,
    /// Ports for replicas, first and last [default: 18100-18999]
    #[arg(long, value_name = "FIRST-LAST", value_parser = forebay_config::parse_port_range)]
    ports: Option<(u16, u16)>,
    /// GPUs to lease, one to each replica, filled in for `{gpu}`
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    gpus: Vec<String>,
    /// Idle time after which the last replica is stopped [default: 10m with COMMAND, 30s without]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    idle: Option<Duration>,
    /// Requests at one replica at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_in_flight: Option<u32>,
    /// Start time of a simulated replica [default: 3s]
    #[arg(long, value_name = "DURATION", conflicts_with = "command", value_parser = duration)]
    cold_start: Option<Duration>,
    /// Command that starts one replica; `{port}` and `{gpu}` are filled in
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// The folder for what the scaler learns of this command, below `$XDG_STATE_HOME/forebay`.
fn state_dir(command: &[String]) -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    let mut hasher = std::hash::DefaultHasher::new();
    command.hash(&mut hasher);
    Some(state.join("forebay").join(format!("dev-{:016x}", hasher.finish())))
}

fn duration(text: &str) -> Result<Duration, String> {
    forebay_config::parse_duration(text).map_err(|error| error.to_string())
}

impl DevArgs {
    /// The configuration that these flags stand for.
    pub(crate) fn config(self) -> anyhow::Result<Config> {
        let simulated = self.command.is_empty();
        // A simulated replica has nothing that is worth remembering.
        let state_dir = if simulated { None } else { state_dir(&self.command) };
        let pool = if simulated { self.simulated()? } else { self.real()? };
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let config = Config {
            gateway: Gateway {
                listen: self.listen.unwrap_or(local(8080)),
                allowed_hosts: self.allowed_host,
                ..Gateway::default()
            },
            admin: Admin { listen: self.admin.unwrap_or(local(9900)), ..Admin::default() },
            scaler: forebay_config::Scaler { state_dir, ..Default::default() },
            pools: vec![pool],
            ..Config::default()
        };
        let problems = config.problems();
        anyhow::ensure!(problems.is_empty(), "{problems}");
        Ok(config)
    }

    fn simulated(&self) -> anyhow::Result<Pool> {
        let exe = std::env::current_exe().context("cannot find the running program")?;
        let models =
            if self.model.is_empty() { vec!["sim".to_owned()] } else { self.model.clone() };
        let cold_start = self.cold_start.unwrap_or(Duration::from_secs(3));
        let mut command = vec![exe.display().to_string(), "vllm-sim".to_owned()];
        let flags = ["--host", "127.0.0.1", "--port", "{port}", "--cold-start"];
        command.extend(flags.map(str::to_owned));
        command.push(format!("{}ms", cold_start.as_millis()));
        command.push("--served-model-name".to_owned());
        command.extend(models.iter().cloned());
        // So that agents can be tried, too.
        let tools = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"];
        command.extend(tools.map(str::to_owned));
        Ok(self.pool("sim", models, command, 4, IDLE_SIM))
    }

    fn real(&self) -> anyhow::Result<Pool> {
        let served = forebay_config::command::served_names(&self.command);
        let models = if self.model.is_empty() { served } else { self.model.clone() };
        if let Some(words) = forebay_config::command::unsplit(&self.command) {
            anyhow::bail!(
                "COMMAND is one word, and no shell splits it; leave the quotes out: forebay dev -- \
                 {}",
                words.join(" ")
            );
        }
        let uses_port = self.command.iter().any(|argument| argument.contains("{port}"));
        anyhow::ensure!(
            uses_port,
            "COMMAND does not contain {{port}}: the replica must listen where the gateway looks for \
             it; add for example `--port {{port}}`"
        );
        let uses_gpu = self.command.iter().any(|argument| argument.contains("{gpu}"));
        anyhow::ensure!(
            !uses_gpu || !self.gpus.is_empty(),
            "COMMAND contains {{gpu}} but no GPU is given; add for example `--gpus 0,1`"
        );
        let most = self.max_replicas.unwrap_or(1) as usize;
        anyhow::ensure!(
            self.gpus.is_empty() || most <= self.gpus.len(),
            "--max-replicas {most} needs as many GPUs, --gpus names {}",
            self.gpus.len()
        );
        if let Some(problem) = startable::problem(&Processes::of(self.command.clone())) {
            anyhow::bail!("COMMAND can't be started: {problem}");
        }
        Ok(self.pool("dev", models, self.command.clone(), 1, IDLE_REAL))
    }

    fn pool(
        &self,
        name: &str,
        models: Vec<String>,
        command: Vec<String>,
        max_replicas: u32,
        idle: Duration,
    ) -> Pool {
        let mut pool = Pool::named(name);
        pool.models = models;
        pool.max_in_flight = self.max_in_flight.unwrap_or(pool.max_in_flight);
        let processes = Processes::of(command);
        // The clients are on this machine, like the replicas.
        pool.hold.show_reason = ShowReason::Output;
        pool.target = Some(Target::Processes(Processes {
            gpus: self.gpus.clone(),
            ports: self.ports.unwrap_or(processes.ports),
            ..processes
        }));
        pool.scaling = Scaling {
            max_replica_count: self.max_replicas.unwrap_or(max_replicas),
            cooldown_period: self.idle.unwrap_or(idle),
            ..Scaling::default()
        };
        pool
    }
}
