//! The command line and environment of a replica's start.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use forebay_config as config;
use tokio::process::{Child, Command};

/// The environment variable that identifies a replica's processes, wherever they go.
pub(super) const MARK: &str = "FOREBAY_REPLICA";

/// The parameters of one start.
pub(super) struct Launch<'a> {
    pub(super) port: u16,
    pub(super) gpu: Option<&'a str>,
    /// The value of [`MARK`].
    pub(super) mark: &'a str,
    pub(super) output: File,
    /// The supervisor's end of the tether.
    pub(super) tether: UnixStream,
}

/// Starts the supervisor, which starts the replica.
pub(super) fn launch(
    supervisor: &Path,
    settings: &config::Processes,
    start: Launch<'_>,
) -> io::Result<Child> {
    let mut command = Command::new(supervisor);
    command
        .arg0("forebay")
        .arg("supervise")
        .arg("--stop-timeout-ms")
        .arg(settings.stop_timeout.as_millis().to_string());
    // Forebay raised its own limit on open files; replicas get the original one.
    if let Some(soft) = forebay_base::open_files::for_children() {
        command.arg("--open-files").arg(soft.to_string());
    }
    command
        .arg("--")
        .args(settings.command.iter().map(|part| fill(part, start.port, start.gpu)))
        // vLLM sets its processes' titles with setproctitle. By default that overwrites the
        // environment as other processes see it, and with it the mark.
        .env("SPT_NOENV", "1")
        .envs(settings.env.iter().map(|(name, text)| (name, fill(text, start.port, start.gpu))))
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

/// Whether the configuration itself says where the GPU's name goes.
fn names_gpu(settings: &config::Processes) -> bool {
    settings.command.iter().chain(settings.env.values()).any(|text| text.contains("{gpu}"))
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
