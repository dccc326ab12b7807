//! A replica's command line and environment, filled in.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use forebay_config as config;
use tokio::process::{Child, Command};

/// The environment variable by which a replica's processes are known, wherever they went.
pub(super) const MARK: &str = "FOREBAY_REPLICA";

/// What differs from one start to the next.
pub(super) struct Start<'a> {
    pub(super) port: u16,
    pub(super) gpu: Option<&'a str>,
    /// The value of [`MARK`].
    pub(super) mark: &'a str,
    pub(super) output: File,
    /// The supervisor's end.
    pub(super) tether: UnixStream,
}

/// Starts the supervisor, which starts the replica.
pub(super) fn launch(
    supervisor: &Path,
    settings: &config::Processes,
    start: Start<'_>,
) -> io::Result<Child> {
    let mut command = Command::new(supervisor);
    command
        .arg0("forebay")
        .arg("supervise")
        .arg("--stop-timeout-ms")
        .arg(settings.stop_timeout.as_millis().to_string());
    // The limit on open files that Forebay raised is its own.
    if let Some(soft) = forebay_system::files::for_children() {
        command.arg("--open-files").arg(soft.to_string());
    }
    command
        .arg("--")
        .args(settings.command.iter().map(|it| fill(it, start.port, start.gpu)))
        // vLLM sets its processes' titles with setproctitle, which by default writes over the
        // environment as others see it, and with it over the mark.
        .env("SPT_NOENV", "1")
        .envs(settings.env.iter().map(|(name, it)| (name, fill(it, start.port, start.gpu))))
        .env(MARK, start.mark)
        .stdin(Stdio::from(OwnedFd::from(start.tether)))
        .stderr(start.output.try_clone()?)
        .stdout(start.output)
        .process_group(0);
    if let (Some(gpu), false) = (start.gpu, names_gpu(settings)) {
        command.env("CUDA_VISIBLE_DEVICES", gpu);
    }
    command.spawn()
}

fn fill(text: &str, port: u16, gpu: Option<&str>) -> String {
    let text = text.replace("{port}", &port.to_string());
    match gpu {
        Some(gpu) => text.replace("{gpu}", gpu),
        None => text,
    }
}

/// Whether the command says itself where the GPU goes.
fn names_gpu(settings: &config::Processes) -> bool {
    settings.command.iter().chain(settings.env.values()).any(|it| it.contains("{gpu}"))
        || settings.env.contains_key("CUDA_VISIBLE_DEVICES")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_and_gpu_are_filled_in_everywhere() {
        for (text, gpu, expected) in [
            ("--port={port}", None, "--port=8000"),
            ("{port}:{port}", None, "8000:8000"),
            ("cuda:{gpu} {port}", Some("3"), "cuda:3 8000"),
            ("{gpu}", None, "{gpu}"),
            (r#"{"a":{}}"#, Some("3"), r#"{"a":{}}"#),
        ] {
            assert_eq!(fill(text, 8000, gpu), expected);
        }
    }
}
