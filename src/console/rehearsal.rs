//! Rehearsals: the last day of a pool, played again beside other autoscalers, a fixed fleet and the
//! optimum, and with changed settings.
//!
//! Each part is a process of `forebay replay` of its own, with the lowest priority and one after the
//! other, so that neither its work nor its memory reaches the data path.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path as FilePath, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use forebay_config::{Config, Scaling};
use forebay_scaler::Rehearsable;
use parking_lot::Mutex;
use rustix::process::{Pid, setpriority_process};
use serde::Serialize;
use serde_json::Value;
use tokio::process::Command;
use tokio_util::task::AbortOnDropHandle;

/// The lowest priority.
const NICE: i32 = 19;
/// The autoscalers to play beside Forebay, each on its own, so that figures come early.
const BESIDE: [&str; 4] = ["keda-min1", "knative", "kubeai", "optimum"];
/// Fields of a contestant's report that the page shows.
const FIELDS: [&str; 10] = [
    "name",
    "requests",
    "answered",
    "gaveUp",
    "shareWithin",
    "ttftSeconds",
    "gpuHours",
    "cost",
    "peakReplicas",
    "starts",
];

/// The routes: `POST /pools/NAME/what-if` with the changed `scaling` section or nothing,
/// `GET /what-if`, and `POST /what-if/cancel`.
pub(crate) fn routes(sources: Rehearsable) -> Router {
    let rehearsals = Rehearsals { sources, state: Arc::default() };
    Router::new()
        .route("/pools/{name}/what-if", post(begin).get(settings))
        .route("/what-if", get(show))
        .route("/what-if/cancel", post(cancel))
        .with_state(rehearsals)
}

#[derive(Clone)]
struct Rehearsals {
    sources: Rehearsable,
    state: Arc<Mutex<Option<Rehearsal>>>,
}

/// The rehearsal under way, or the last one.
struct Rehearsal {
    shown: Shown,
    /// Ends the process with it if it is dropped.
    task: Option<AbortOnDropHandle<()>>,
}

/// A rehearsal as the page sees it.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    pool: String,
    since_millis: u64,
    /// Parts that are done, of so many.
    done: usize,
    parts: usize,
    running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    setting: Value,
    load: Value,
    /// By name; `forebay` has the present settings, `changed` the changed ones.
    contestants: BTreeMap<String, Value>,
}

/// One process of `forebay replay`.
struct Part {
    config: PathBuf,
    compare: Option<&'static str>,
    /// The name of Forebay's own result.
    name: &'static str,
}

/// The pool's present `scaling` section, to be changed.
async fn settings(State(rehearsals): State<Rehearsals>, Path(pool): Path<String>) -> Response {
    let config = rehearsals.sources.config();
    match config.pools.iter().find(|configured| configured.name == pool) {
        Some(pool) => scaling_text(&pool.scaling).into_response(),
        None => (StatusCode::NOT_FOUND, format!("there is no pool `{pool}`\n")).into_response(),
    }
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
    if !config.pools.iter().any(|configured| configured.name == pool) {
        return refused(StatusCode::NOT_FOUND, format!("there is no pool `{pool}`"));
    }
    let changed = match body.trim() {
        "" => None,
        text => match with_scaling(&config, &pool, text) {
            Ok(changed) => Some(changed),
            Err(error) => return refused(StatusCode::BAD_REQUEST, format!("{error:#}")),
        },
    };
    let (sources, name) = (rehearsals.sources.clone(), pool.clone());
    let trace = tokio::task::spawn_blocking(move || sources.arrivals(&name)).await.ok().flatten();
    let Some(trace) = trace else {
        let why = format!("no request for pool `{pool}` came since this scaler began");
        return refused(StatusCode::CONFLICT, why);
    };
    let mut state = rehearsals.state.lock();
    if state.as_ref().is_some_and(|rehearsal| rehearsal.shown.running) {
        let why = "a rehearsal is under way; one runs at a time".to_owned();
        return refused(StatusCode::CONFLICT, why);
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let shown = Shown {
        pool: pool.clone(),
        since_millis: since as u64,
        parts: 1 + BESIDE.len() + usize::from(changed.is_some()),
        running: true,
        ..Shown::default()
    };
    let task = tokio::spawn(play(Arc::clone(&rehearsals.state), pool, config, changed, trace));
    *state = Some(Rehearsal { shown, task: Some(AbortOnDropHandle::new(task)) });
    (StatusCode::ACCEPTED, "begun\n").into_response()
}

async fn show(State(rehearsals): State<Rehearsals>) -> Response {
    let shown = rehearsals.state.lock().as_ref().map(|rehearsal| rehearsal.shown.clone());
    Json(shown).into_response()
}

async fn cancel(State(rehearsals): State<Rehearsals>) -> Response {
    if let Some(rehearsal) = rehearsals.state.lock().as_mut() {
        rehearsal.task = None;
        rehearsal.shown.running = false;
    }
    "cancelled\n".into_response()
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

/// A folder that is removed with the rehearsal, also a cancelled one.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let path =
            std::env::temp_dir().join(format!("forebay-what-if-{:032x}", rand::random::<u128>()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, text: &str) -> std::io::Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Plays all parts, and shows each result as it comes.
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
        let folder = Folder::new().context("a folder for the rehearsal")?;
        let trace = folder.write("arrivals.csv", &trace)?;
        let present = folder.write("present.yaml", &forebay_config::print(&config))?;
        let mut parts = vec![Part { config: present.clone(), compare: None, name: "forebay" }];
        if let Some(changed) = &changed {
            let config = folder.write("changed.yaml", &forebay_config::print(changed))?;
            parts.push(Part { config, compare: None, name: "changed" });
        }
        parts.extend(BESIDE.iter().map(|beside| Part {
            config: present.clone(),
            compare: Some(*beside),
            name: "forebay",
        }));
        for part in parts {
            let results = run(&part, &pool, &trace).await?;
            update(&mut |shown| take(shown, &part, &results));
        }
        anyhow::Ok(())
    };
    let error = played.await.err().map(|error| format!("{error:#}"));
    update(&mut |shown| {
        shown.running = false;
        shown.error.clone_from(&error);
    });
}

/// Takes the results of a part into what is shown.
fn take(shown: &mut Shown, part: &Part, results: &Value) {
    shown.done += 1;
    if part.name == "forebay" {
        shown.setting = results["setting"].clone();
        shown.load = results["load"].clone();
    }
    for contestant in results["contestants"].as_array().into_iter().flatten() {
        let own = contestant["name"] == "forebay";
        let name = if own { part.name } else { contestant["name"].as_str().unwrap_or("?") };
        // The fixed fleet of the changed settings is another one.
        if own || part.name == "forebay" {
            let kept = FIELDS.iter().map(|field| ((*field).to_owned(), contestant[*field].clone()));
            shown.contestants.insert(name.to_owned(), Value::Object(kept.collect()));
        }
    }
}

/// Runs a part to its end. Dropping the future ends the process.
async fn run(part: &Part, pool: &str, trace: &FilePath) -> anyhow::Result<Value> {
    // Not by the executable's path, which may hold another binary by now.
    let mut command = Command::new("/proc/self/exe");
    command.arg("replay").arg("--config").arg(&part.config).arg("--trace").arg(trace);
    command.args(["--pool", pool, "--json"]);
    if let Some(beside) = part.compare {
        command.args(["--compare", beside]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().context("forebay replay")?;
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    if let Some(pid) = pid {
        // It may have ended already.
        let _ = setpriority_process(Some(pid), NICE);
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let results = serde_json::from_slice(&output.stdout).context("its results")?;
    Ok(results)
}

#[cfg(test)]
mod tests {
    use forebay_config::{Pool, Processes, Target};
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
    fn results_of_several_parts_stand_side_by_side() {
        let mut shown = Shown::default();
        let part = |name, compare| Part { config: PathBuf::new(), compare, name };
        let results = |own: f64, other: Option<&str>| {
            let mut contestants = vec![json!({"name": "forebay", "gpuHours": own, "series": []})];
            contestants.push(json!({"name": "fixed=4", "gpuHours": 9.0}));
            contestants.extend(other.map(|name| json!({"name": name, "gpuHours": 5.0})));
            json!({"contestants": contestants, "setting": {}, "load": {"requests": 3}})
        };
        take(&mut shown, &part("forebay", None), &results(2.0, None));
        take(&mut shown, &part("changed", None), &results(1.0, None));
        take(&mut shown, &part("forebay", Some("knative")), &results(2.0, Some("knative")));
        let hours = |name: &str| shown.contestants[name]["gpuHours"].as_f64();
        assert_eq!((shown.done, shown.contestants.len()), (3, 4));
        assert_eq!(
            (hours("forebay"), hours("changed"), hours("knative")),
            (Some(2.0), Some(1.0), Some(5.0))
        );
        assert!(shown.contestants["forebay"].get("series").is_none(), "it is large");
    }
}
