//! The development routes: pausing, sleeping, aborting requests, and adapters at run time.
//!
//! After `/pause` and `/sleep` the server is healthy and silent. `/sim/hang`, `/sim/resume` and
//! `/sim/crash` are the simulator's own.

use crate::sim::api::fault::Fault;
use crate::sim::api::json::Check;
use crate::sim::args::LoraModule;
use crate::sim::engine::State;
use crate::sim::http::reply::Reply;
use crate::sim::shared::{Shared, Stop};
use crate::sim::text::quoted;
use hyper::StatusCode;
use serde_json::{Map, Value};

/// One of the routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Pause,
    Resume,
    IsPaused,
    Sleep,
    WakeUp,
    IsSleeping,
    AbortRequests,
    ResetPrefixCache,
    Hang,
    Unhang,
    Crash,
}

/// The command of a path, its name in the metrics and its method.
pub(crate) fn find(path: &str) -> Option<(Command, &'static str, &'static str)> {
    Some(match path {
        "/pause" => (Command::Pause, "/pause", "POST"),
        "/resume" => (Command::Resume, "/resume", "POST"),
        "/is_paused" => (Command::IsPaused, "/is_paused", "GET"),
        "/sleep" => (Command::Sleep, "/sleep", "POST"),
        "/wake_up" => (Command::WakeUp, "/wake_up", "POST"),
        "/is_sleeping" => (Command::IsSleeping, "/is_sleeping", "GET"),
        "/abort_requests" => (Command::AbortRequests, "/abort_requests", "POST"),
        "/reset_prefix_cache" => (Command::ResetPrefixCache, "/reset_prefix_cache", "POST"),
        "/sim/hang" => (Command::Hang, "/sim/hang", "POST"),
        "/sim/resume" => (Command::Unhang, "/sim/resume", "POST"),
        "/sim/crash" => (Command::Crash, "/sim/crash", "POST"),
        _ => return None,
    })
}

pub(crate) async fn run(shared: &Shared, command: Command, query: &str) -> Result<Reply, Fault> {
    let engine = &shared.engine;
    let body = match command {
        Command::Pause => {
            match parameter(query, "mode").unwrap_or("abort") {
                "keep" => {}
                "abort" => {
                    engine.abort_all();
                }
                "wait" => {
                    engine.admit(false);
                    engine.idle(true).await;
                }
                mode => {
                    let message = format!("Invalid pause mode '{mode}'");
                    return Err(Fault::bad_parameter(&message, "mode", None));
                }
            }
            engine.set(State::Paused);
            r#"{"status":"paused"}"#.into()
        }
        Command::Resume => {
            engine.admit(true);
            engine.set(State::Running);
            r#"{"status":"resumed"}"#.into()
        }
        Command::IsPaused => format!(r#"{{"is_paused":{}}}"#, engine.state() == State::Paused),
        Command::Sleep => {
            let level = parameter(query, "level").and_then(|level| level.parse().ok()).unwrap_or(1);
            engine.abort_all();
            engine.set(State::Sleeping(level));
            format!(r#"{{"status":"sleeping","level":{level}}}"#)
        }
        Command::WakeUp => {
            engine.set(State::Running);
            r#"{"status":"awake","tags":null}"#.into()
        }
        Command::IsSleeping => {
            let sleeping = matches!(engine.state(), State::Sleeping(_));
            format!(r#"{{"is_sleeping":{sleeping}}}"#)
        }
        Command::AbortRequests => {
            format!(r#"{{"status":"aborted","aborted":{}}}"#, engine.abort_all())
        }
        Command::ResetPrefixCache => {
            engine.reset_prefix_cache();
            r#"{"success":true}"#.into()
        }
        Command::Hang => {
            engine.set(State::Hung);
            r#"{"status":"hung"}"#.into()
        }
        Command::Unhang => {
            engine.set(State::Running);
            r#"{"status":"resumed"}"#.into()
        }
        Command::Crash => {
            shared.end(Stop::Crash);
            r#"{"status":"crashed"}"#.into()
        }
    };
    Ok(Reply::json(body))
}

/// `/v1/load_lora_adapter`. There are no files: a path that ends in `nope` stands for one that
/// does not exist.
pub(crate) fn load_lora(shared: &Shared, body: &Map<String, Value>) -> Result<Reply, Fault> {
    let mut check = Check::new();
    let (name, path) = (check.text(body, "lora_name"), check.text(body, "lora_path"));
    check.ok()?;
    let (Some(name), Some(path)) = (name, path) else {
        let message = "Both 'lora_name' and 'lora_path' must be provided.".into();
        return Err(Fault::lora(StatusCode::BAD_REQUEST, "InvalidUserInput", message));
    };
    if path.ends_with("nope") {
        let message = format!("Loading lora {name} failed: No adapter found for {path}");
        return Err(Fault::lora(StatusCode::NOT_FOUND, "NotFoundError", message));
    }
    if !shared.add_lora(LoraModule { name: name.clone(), path }) {
        let message = format!(
            "The lora adapter '{name}' has already been loaded. If you want to load the adapter \
             in place, set 'load_inplace' to True."
        );
        return Err(Fault::lora(StatusCode::BAD_REQUEST, "InvalidUserInput", message));
    }
    Ok(Reply::text(format!("Success: LoRA adapter '{name}' added successfully."), None))
}

/// `/v1/unload_lora_adapter`.
pub(crate) fn unload_lora(shared: &Shared, body: &Map<String, Value>) -> Result<Reply, Fault> {
    let mut check = Check::new();
    let name = check.text(body, "lora_name").unwrap_or_default();
    check.ok()?;
    if !shared.remove_lora(&name) {
        let message = format!("The lora adapter {} cannot be found.", quoted(&name));
        return Err(Fault::lora(StatusCode::NOT_FOUND, "NotFoundError", message));
    }
    Ok(Reply::text(format!("Success: LoRA adapter '{name}' removed successfully."), None))
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}
