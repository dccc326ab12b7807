//! The log on standard error.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The log on standard error. `FOREBAY_LOG` in the environment sets levels, as in `info` or
/// `warn,forebay_gateway=debug`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Logging {
    /// The format of its lines.
    pub format: LogFormat,
    /// Whether each request gets a line, under the target `forebay::access`. It never contains a
    /// prompt, an answer or a key.
    pub access: bool,
}

/// Format of the log's lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    #[default]
    Json,
    /// Plain text, for people.
    Text,
}

impl Default for Logging {
    fn default() -> Self {
        Self { format: LogFormat::default(), access: true }
    }
}
