//! Scale targets, which start and stop a pool's replicas.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units;

/// The scale target, which starts and stops replicas: exactly one of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Target {
    /// Processes on this machine.
    Processes(Processes),
    /// A workload of a Kubernetes cluster, by its `/scale`.
    Kubernetes(Kubernetes),
    /// A KEDA ScaledObject whose trigger asks Forebay.
    Keda(Keda),
}

/// A workload whose replica count is set through its `/scale` subresource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubernetes {
    /// Group and version of its kind, as in its manifest.
    #[serde(default = "default_api_version")]
    pub api_version: String,
    /// Its kind: Deployment, StatefulSet, LeaderWorkerSet, or any other that has the subresource.
    #[serde(default = "default_kind")]
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace; by default Forebay's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The port that each replica listens on; by default that of the pool's `discovery`, or else 8000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether to delete the pod of a replica that hangs, or whose start takes too long, so that its
    /// workload makes another. Needs the permission to delete pods.
    #[serde(default)]
    pub replace_hung: bool,
    /// With `replaceHung`: a replica that was ready is replaced when it has answered no gateway for
    /// this long, and at least for as long as a start takes.
    #[serde(default = "default_hung_after", with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub hung_after: Duration,
    /// With `replaceHung`: longest time from running containers to healthy; then the replica is
    /// replaced. Once starts are learned, ten times what nine of ten took (10 minutes or more) counts
    /// if that is less.
    #[serde(default = "default_start_timeout", with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub start_timeout: Duration,
}

/// Replicas of a workload that KEDA scales; its ScaledObject has a trigger of type `external-push`
/// with Forebay's scaler as `scalerAddress`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Keda {
    /// The ScaledObject's name. A trigger of it without `pool` in its metadata means this pool.
    pub scaled_object: String,
    /// Its namespace; by default the scaler's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Whether a pool at zero that needs more than one replica also writes the count to the workload.
    /// KEDA alone starts one and leaves the rest to the HPA's next sync.
    #[serde(default)]
    pub boost: bool,
}

/// Replicas as processes on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Processes {
    /// Program and arguments, one item each; no shell reads them. `{port}` is filled in with the
    /// port that the replica must listen on, and `{gpu}` with its GPU where `gpus` are given.
    #[schemars(with = "Vec<units::WordSchema>", length(min = 1))]
    pub command: Vec<String>,
    /// Environment added to Forebay's own; `{port}` and `{gpu}` are filled in here too.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, units::WordSchema>")]
    pub env: BTreeMap<String, String>,
    /// Ports to lease to replicas, first and last. At least as many as `maxReplicaCount`; more
    /// let a new replica start while an old one still stops.
    #[serde(default = "default_ports", with = "units::port_range")]
    #[schemars(with = "units::port_range::PortRangeSchema")]
    pub ports: (u16, u16),
    /// GPUs to lease, one to each replica; filled in for `{gpu}`, and as `CUDA_VISIBLE_DEVICES`
    /// where `{gpu}` is not used. At least as many as `maxReplicaCount`.
    #[serde(default)]
    #[schemars(with = "Vec<units::WordSchema>")]
    pub gpus: Vec<String>,
    /// Folder for the replicas' output, a file each; by default one below the working
    /// directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_dir: Option<PathBuf>,
    /// Longest time from start to healthy; then the replica is ended and started anew. Once starts
    /// are learned, ten times what nine of ten took (10 minutes or more) counts if that is less.
    #[serde(default = "default_start_timeout", with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub start_timeout: Duration,
    /// A replica that was ready is ended and started anew when it has answered no gateway for this
    /// long, and at least for as long as a start takes.
    #[serde(default = "default_hung_after", with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub hung_after: Duration,
    /// Time from SIGTERM to SIGKILL when a replica is stopped.
    #[serde(default = "default_stop_timeout", with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub stop_timeout: Duration,
}

impl Kubernetes {
    /// The Deployment of this name, with all else at its default.
    #[must_use]
    pub fn named(name: String) -> Self {
        Self {
            api_version: default_api_version(),
            kind: default_kind(),
            name,
            namespace: None,
            port: None,
            replace_hung: false,
            hung_after: default_hung_after(),
            start_timeout: default_start_timeout(),
        }
    }
}

impl Processes {
    /// Processes of this command, with all else at its default.
    #[must_use]
    pub fn of(command: Vec<String>) -> Self {
        Self {
            command,
            env: BTreeMap::new(),
            ports: default_ports(),
            gpus: Vec::new(),
            log_dir: None,
            start_timeout: default_start_timeout(),
            hung_after: default_hung_after(),
            stop_timeout: default_stop_timeout(),
        }
    }

    /// Whether the command or the environment contains this placeholder.
    #[must_use]
    pub(crate) fn uses(&self, name: &str) -> bool {
        self.command.iter().chain(self.env.values()).any(|text| text.contains(name))
    }
}

fn default_api_version() -> String {
    "apps/v1".to_owned()
}

fn default_kind() -> String {
    "Deployment".to_owned()
}

fn default_ports() -> (u16, u16) {
    (18_100, 18_999)
}

fn default_start_timeout() -> Duration {
    Duration::from_secs(30 * 60)
}

/// Longer than any pause of a working engine between two answers.
fn default_hung_after() -> Duration {
    Duration::from_secs(120)
}

fn default_stop_timeout() -> Duration {
    Duration::from_secs(30)
}
