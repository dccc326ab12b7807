//! What is written to standard error.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is logged, and how. `FOREBAY_LOG` in the environment sets levels, as in `info` or
/// `warn,forebay_gateway=debug`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Logging {
    /// How a line looks.
    pub format: LogFormat,
    /// A line for each request, under the target `forebay::access`. No prompt, answer or key is
    /// ever in it.
    pub access: bool,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    #[default]
    Json,
    /// Words, for people.
    Text,
}

impl Default for Logging {
    fn default() -> Self {
        Self { format: LogFormat::default(), access: true }
    }
}
