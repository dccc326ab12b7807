//! Rehearsals: the last day of a pool, played again beside other autoscalers, a fixed fleet and the
//! optimum, and with changed settings.
//!
//! A process of `forebay replay` of its own plays all of them, with the lowest priority, and prints each
//! result as soon as it is known. So neither its work nor its memory reaches the data path.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use forebay_base::memory;
use forebay_config::{Config, Scaling, Target};
use forebay_scaler::Rehearsable;
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Resource, Rlimit, prlimit, setpriority_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio_util::task::AbortOnDropHandle;

/// The lowest priority.
const NICE: i32 = 19;
/// The name of the load that is played.
const ARRIVALS: &str = "the last day's arrivals";
/// The autoscalers to play beside Forebay and a fixed fleet, the slowest last.
const OTHERS: [&str; 4] = ["keda-min1", "knative", "kubeai", "optimum"];

/// The routes: `POST /pools/NAME/what-if` with the changed `scaling` section or nothing,
/// `GET /what-if`, and `POST /what-if/cancel`.
pub(crate) fn routes(sources: Rehearsable) -> Router {
    let beginning = Arc::new(Semaphore::new(1));
    let rehearsals = Rehearsals { sources, beginning, state: Arc::default() };
    Router::new()
        .route("/pools/{name}/what-if", post(begin).get(settings))
        .route("/what-if", get(show))
        .route("/what-if/cancel", post(cancel))
        .with_state(rehearsals)
}

#[derive(Clone)]
struct Rehearsals {
    sources: Rehearsable,
    /// Held by the request that writes down a day of arrivals, so that one is written at a time.
    beginning: Arc<Semaphore>,
    state: Arc<Mutex<Option<Rehearsal>>>,
}

/// The rehearsal under way, or the last one.
struct Rehearsal {
    shown: Shown,
    /// The pool's settings at its beginning.
    present: Scaling,
    /// Ends the process with it if it is dropped.
    task: Option<AbortOnDropHandle<()>>,
}

/// A rehearsal as the page sees it.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    pool: String,
    /// When it began, in milliseconds since the epoch.
    since_millis: u64,
    /// The `scaling` section that a person has changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<String>,
    /// Whether the pool has other settings by now.
    outdated: bool,
    /// Contestants, those that have ended included.
    parts: usize,
    running: bool,
    /// Ended by a person, so contestants are missing.
    cancelled: bool,
    /// The contestant that is played now, and how far it is, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    playing: Option<Playing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    setting: Value,
    load: Value,
    /// By name; `forebay` has the present settings, `beside` the changed ones.
    contestants: BTreeMap<String, Value>,
}

/// Progress of one contestant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Playing {
    #[serde(rename(deserialize = "playing"))]
    name: String,
    share: f64,
}

/// A line of `forebay replay --json-lines`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ReplayLine {
    Begun { load: Value, setting: Value },
    Ended { contestant: Contestant },
    Playing(Playing),
}

#[derive(Debug, Deserialize)]
struct Contestant {
    name: String,
    #[serde(flatten)]
    figures: serde_json::Map<String, Value>,
}

/// The pool's present `scaling` section, to be changed.
async fn settings(State(rehearsals): State<Rehearsals>, Path(pool): Path<String>) -> Response {
    let config = rehearsals.sources.config();
    match config.pools.iter().find(|configured| configured.name == pool) {
        Some(pool) => scaling_text(&pool.scaling).into_response(),
        None => (StatusCode::NOT_FOUND, unknown(&config, &pool) + "\n").into_response(),
    }
}

fn unknown(config: &Config, pool: &str) -> String {
    forebay_scaler::unknown_pool(pool, config.pools.iter().map(|pool| pool.name.clone()))
}

/// The `scaling` section as YAML.
fn scaling_text(scaling: &Scaling) -> String {
    let mut text = String::new();
    match serde_saphyr::to_fmt_writer(&mut text, scaling) {
        Ok(()) => text,
        Err(error) => format!("# it can't be written: {error}\n"),
    }
}

async fn begin(
    State(rehearsals): State<Rehearsals>,
    Path(pool): Path<String>,
    body: String,
) -> Response {
    let config = rehearsals.sources.config();
    let refused = |status, why: String| (status, format!("{why}\n")).into_response();
    let Some(present) = config.pools.iter().find(|configured| configured.name == pool) else {
        return refused(StatusCode::NOT_FOUND, unknown(&config, &pool));
    };
    let present = present.scaling.clone();
    let changed = match body.trim() {
        "" => None,
        text => match with_scaling(&config, &pool, text) {
            Ok(changed) => Some(changed),
            Err(error) => return refused(StatusCode::BAD_REQUEST, format!("{error:#}")),
        },
    };
    let busy =
        || refused(StatusCode::CONFLICT, "a rehearsal is under way; one runs at a time".to_owned());
    let Ok(_permit) = rehearsals.beginning.try_acquire() else { return busy() };
    let running = |state: &Option<Rehearsal>| state.as_ref().is_some_and(|one| one.shown.running);
    if running(&rehearsals.state.lock()) {
        return busy();
    }
    let (sources, name) = (rehearsals.sources.clone(), pool.clone());
    let trace = spawn_blocking(move || sources.arrivals(&name)).await.ok().flatten();
    let Some(trace) = trace else {
        let why = format!("no request for pool `{pool}` came since this scaler began");
        return refused(StatusCode::CONFLICT, why);
    };
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let shown = Shown {
        pool: pool.clone(),
        since_millis: since as u64,
        changed: changed.is_some().then(|| body.trim().to_owned()),
        parts: 2 + OTHERS.len() + usize::from(changed.is_some()),
        running: true,
        ..Shown::default()
    };
    let mut state = rehearsals.state.lock();
    let task = tokio::spawn(play(Arc::clone(&rehearsals.state), pool, config, changed, trace));
    let task = Some(AbortOnDropHandle::new(task));
    *state = Some(Rehearsal { shown, present, task });
    (StatusCode::ACCEPTED, "begun\n").into_response()
}

async fn show(State(rehearsals): State<Rehearsals>) -> Response {
    let config = rehearsals.sources.config();
    let shown = rehearsals.state.lock().as_ref().map(|rehearsal| rehearsal.at(&config));
    Json(shown).into_response()
}

async fn cancel(State(rehearsals): State<Rehearsals>) -> Response {
    if let Some(rehearsal) = rehearsals.state.lock().as_mut() {
        rehearsal.cancel();
    }
    "cancelled\n".into_response()
}

impl Rehearsal {
    /// The page's view of it, given the present configuration.
    fn at(&self, config: &Config) -> Shown {
        let now = config.pools.iter().find(|configured| configured.name == self.shown.pool);
        let outdated = now.is_none_or(|now| now.scaling != self.present);
        Shown { outdated, ..self.shown.clone() }
    }

    /// Ends it, if it runs.
    fn cancel(&mut self) {
        self.task = None;
        self.shown.cancelled |= self.shown.running;
        (self.shown.running, self.shown.playing) = (false, None);
    }
}

/// The configuration with another `scaling` section of one pool.
fn with_scaling(config: &Config, pool: &str, text: &str) -> anyhow::Result<Config> {
    let scaling: Scaling = serde_saphyr::from_str(text).context("scaling")?;
    let mut changed = config.clone();
    for configured in changed.pools.iter_mut().filter(|configured| configured.name == pool) {
        configured.scaling = scaling.clone();
    }
    let problems = changed.problems();
    ensure!(problems.is_empty(), "{problems}");
    Ok(changed)
}

/// The configuration without what a replay has no use for: the commands and the environment of replicas,
/// which may hold secrets.
fn without_commands(config: &Config) -> Config {
    let mut config = config.clone();
    for pool in &mut config.pools {
        if let Some(Target::Processes(processes)) = &mut pool.target {
            processes.command = vec!["replica".to_owned(), "{port}".to_owned()];
            processes.env.clear();
        }
    }
    config
}

/// A file in memory, which ends with this value. The child reads it through this process, so it needs no
/// folder to write in, and no other user can read it.
struct MemoryFile {
    /// Its name for people, in place of the path.
    name: &'static str,
    file: File,
}

impl MemoryFile {
    fn new(name: &'static str, text: &str) -> std::io::Result<Self> {
        let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
        file.write_all(text.as_bytes())?;
        Ok(Self { name, file })
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

/// The files of a replay.
struct ReplayFiles {
    trace: MemoryFile,
    present: MemoryFile,
    changed: Option<MemoryFile>,
}

impl ReplayFiles {
    fn new(trace: &str, present: &Config, changed: Option<&Config>) -> std::io::Result<Self> {
        let config =
            |name, config| MemoryFile::new(name, &forebay_config::print(&without_commands(config)));
        Ok(Self {
            trace: MemoryFile::new(ARRIVALS, trace)?,
            present: config("the present settings", present)?,
            changed: changed.map(|changed| config("the changed settings", changed)).transpose()?,
        })
    }

    /// A message of the replay with names in place of paths.
    fn named(&self, message: &str) -> String {
        let all = [Some(&self.trace), Some(&self.present), self.changed.as_ref()];
        // The longest path first: it may begin with another one.
        let mut all: Vec<_> = all.into_iter().flatten().collect();
        all.sort_by_key(|file| std::cmp::Reverse(file.path().len()));
        all.iter().fold(message.to_owned(), |text, file| text.replace(&file.path(), file.name))
    }
}

/// Plays all contestants, and shows each result as it comes. Dropping the future ends the process.
async fn play(
    state: Arc<Mutex<Option<Rehearsal>>>,
    pool: String,
    config: Arc<Config>,
    changed: Option<Config>,
    trace: String,
) {
    let update = |change: &mut dyn FnMut(&mut Shown)| {
        if let Some(rehearsal) = state.lock().as_mut() {
            change(&mut rehearsal.shown);
        }
    };
    let played = async {
        // Writing a day of arrivals takes milliseconds, in which nothing else must wait.
        let files = spawn_blocking(move || ReplayFiles::new(&trace, &config, changed.as_ref()));
        let files = files.await?.context("files for the rehearsal")?;
        let mut child = start(&pool, &files)?;
        let output = child.stdout.take().context("its output")?;
        let mut lines = BufReader::new(output).lines();
        while let Some(line) = lines.next_line().await? {
            let line: ReplayLine = serde_json::from_str(&line).context("its results")?;
            update(&mut |shown| shown.take(&line));
        }
        let output = child.wait_with_output().await?;
        if !output.status.success() {
            bail!("{}", files.named(String::from_utf8_lossy(&output.stderr).trim()));
        }
        anyhow::Ok(())
    };
    let error = played.await.err().map(|error| format!("{error:#}"));
    update(&mut |shown| {
        (shown.running, shown.playing) = (false, None);
        shown.error.clone_from(&error);
    });
}

impl Shown {
    fn take(&mut self, line: &ReplayLine) {
        match line {
            ReplayLine::Begun { load, setting } => {
                (self.load, self.setting) = (load.clone(), setting.clone());
                // The replay knows it by its path alone.
                self.load["trace"] = ARRIVALS.into();
            }
            ReplayLine::Ended { contestant: Contestant { name, figures } } => {
                self.playing = None;
                self.contestants.insert(name.clone(), Value::Object(figures.clone()));
            }
            ReplayLine::Playing(playing) => self.playing = Some(playing.clone()),
        }
    }
}

/// Starts `forebay replay`, which ends with the handle.
fn start(pool: &str, files: &ReplayFiles) -> anyhow::Result<Child> {
    // Not by the executable's path, which may hold another binary by now.
    let mut command = Command::new("/proc/self/exe");
    command.arg("replay").arg("--config").arg(files.present.path());
    command.arg("--trace").arg(files.trace.path());
    command.args(["--pool", pool, "--json-lines", "--compare"]).args(OTHERS);
    if let Some(changed) = &files.changed {
        command.arg("--beside").arg(changed.path());
    }
    command.env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().context("forebay replay")?;
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    if let Some(pid) = pid {
        // It may have ended already.
        let _ = setpriority_process(Some(pid), NICE);
        let most = Some(most_memory(memory::available().bytes));
        let _ = prlimit(Some(pid), Resource::Data, Rlimit { current: most, maximum: most });
    }
    Ok(child)
}

/// The most memory of a replay in bytes, given what this process may use. Kubernetes ends a whole
/// container that runs out of it, so the replay has to run out first. A day of 500,000 requests takes
/// 175 MiB of data.
fn most_memory(available: u64) -> u64 {
    (available / 2).min(1 << 30)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use forebay_config::{Pool, Processes};
    use serde_json::json;

    use super::*;

    fn config() -> Config {
        let mut pool = Pool::named("p");
        pool.target =
            Some(Target::Processes(Processes::of(vec!["serve {port}".to_owned(), "x".to_owned()])));
        Config { pools: vec![pool], ..Config::default() }
    }

    #[test]
    fn changed_settings_are_read_as_in_the_file_and_checked() {
        let config = config();
        let changed = with_scaling(&config, "p", "maxReplicaCount: 3\nobjective: {ttft: 2s}\n");
        let scaling = &changed.expect("valid").pools[0].scaling;
        assert_eq!((scaling.max_replica_count, scaling.objective.ttft.as_secs()), (3, 2));
        for (text, want) in
            [("maxReplicas: 3", "maxReplicas"), ("maxReplicaCount: 0", "maxReplicaCount")]
        {
            let error = format!("{:#}", with_scaling(&config, "p", text).expect_err(text));
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn the_present_settings_as_text_are_the_same_settings() {
        let config = config();
        let text = scaling_text(&config.pools[0].scaling);
        assert_eq!(with_scaling(&config, "p", &text).expect("valid"), config);
    }

    #[test]
    fn a_replay_gets_no_secret_and_its_files_are_on_no_disk() {
        let mut config = config();
        if let Some(Target::Processes(processes)) = &mut config.pools[0].target {
            processes.command.push("--api-key=secret".to_owned());
            processes.env.insert("TOKEN".to_owned(), "secret".to_owned());
        }
        let files = ReplayFiles::new("a trace", &config, Some(&config)).expect("written");
        let changed = files.changed.expect("given");
        for (file, is_config) in [(&files.trace, false), (&files.present, true), (&changed, true)] {
            let text = std::fs::read_to_string(file.path()).expect("readable for its user");
            assert!(!text.contains("secret"));
            assert_eq!(file.file.metadata().expect("open").nlink(), 0, "in no folder");
            if is_config {
                let read = forebay_config::load(file.path()).expect("valid");
                assert_eq!(read.pools[0].scaling, config.pools[0].scaling);
            } else {
                assert_eq!(text, "a trace");
            }
        }
    }

    #[test]
    fn a_message_of_a_replay_names_its_files() {
        let config = config();
        let files = ReplayFiles::new("a trace", &config, Some(&config)).expect("written");
        let changed = files.changed.as_ref().expect("given").path();
        let (trace, present) = (files.trace.path(), files.present.path());
        let message = format!("{changed}:3: no\n{trace} has no columns, {present} cannot be read");
        let want = "the changed settings:3: no\nthe last day's arrivals has no columns, the present settings cannot be read";
        assert_eq!(files.named(&message), want);
    }

    #[test]
    fn a_replay_gets_half_of_the_memory_at_most() {
        assert_eq!(most_memory(512 << 20), 256 << 20, "the chart's limit");
        assert_eq!(most_memory(64 << 30), 1 << 30);
    }

    #[test]
    fn a_result_says_whether_it_is_complete_and_of_the_present_settings() {
        let config = config();
        let present = config.pools[0].scaling.clone();
        let shown = Shown { pool: "p".to_owned(), running: true, ..Shown::default() };
        let mut rehearsal = Rehearsal { shown, present, task: None };
        let shown = rehearsal.at(&config);
        assert!(shown.running && !shown.outdated && !shown.cancelled);
        let changed = with_scaling(&config, "p", "maxReplicaCount: 7").expect("valid");
        assert!(rehearsal.at(&changed).outdated);
        assert!(rehearsal.at(&Config::default()).outdated, "the pool is gone");
        rehearsal.cancel();
        assert!(rehearsal.shown.cancelled && !rehearsal.shown.running);
        let mut complete = Rehearsal { shown: Shown::default(), ..rehearsal };
        complete.cancel();
        assert!(!complete.shown.cancelled, "it had ended before");
    }

    #[test]
    fn each_line_of_a_replay_is_shown() {
        let mut shown = Shown::default();
        let mut take = |line: Value| {
            shown.take(&serde_json::from_value(line).expect("a line"));
            shown.clone()
        };
        take(json!({"load": {"trace": "35", "requests": 3}, "setting": {"gpuHourPrice": 2.0}}));
        let now = take(json!({"playing": "forebay", "share": 0.4}));
        assert_eq!(now.playing, Some(Playing { name: "forebay".to_owned(), share: 0.4 }));
        assert_eq!((&now.load["requests"], now.contestants.len()), (&json!(3), 0));
        assert_eq!(now.load["trace"], "the last day's arrivals");
        let now = take(json!({"contestant": {"name": "forebay", "gpuHours": 2.5, "starts": 1}}));
        assert_eq!((&now.playing, now.contestants.len()), (&None, 1));
        assert_eq!(now.contestants["forebay"], json!({"gpuHours": 2.5, "starts": 1}));
        let shown = serde_json::to_value(take(json!({"playing": "knative", "share": 0.5})));
        let want = json!({"name": "knative", "share": 0.5});
        assert_eq!(shown.expect("JSON")["playing"], want);
    }
}
