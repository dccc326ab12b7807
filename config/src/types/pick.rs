//! The policy that chooses an endpoint for a request.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The policy that chooses an endpoint for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Pick {
    /// The endpoint that should have the beginning of the prompt in its prefix cache, unless another
    /// one would send its first token much sooner.
    #[default]
    PrefixAffinity,
    /// The endpoint with the fewest requests in flight.
    LeastLoad,
    /// Each endpoint in turn.
    RoundRobin,
    /// The better of two endpoints taken at random, by the time to their first tokens and their
    /// requests in flight.
    PowerOfTwo,
    /// The endpoint that the session, or else the beginning of the prompt, always leads to, unless
    /// that one has a quarter more requests in flight than the mean.
    ConsistentHash,
}

impl Pick {
    /// All policies.
    pub const ALL: [Self; 5] = [
        Self::PrefixAffinity,
        Self::LeastLoad,
        Self::RoundRobin,
        Self::PowerOfTwo,
        Self::ConsistentHash,
    ];

    /// Whether it reads what a prompt contains.
    #[must_use]
    pub fn reads_prompts(self) -> bool {
        match self {
            Self::ConsistentHash | Self::PrefixAffinity => true,
            Self::LeastLoad | Self::RoundRobin | Self::PowerOfTwo => false,
        }
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PrefixAffinity => "prefixAffinity",
            Self::LeastLoad => "leastLoad",
            Self::RoundRobin => "roundRobin",
            Self::PowerOfTwo => "powerOfTwo",
            Self::ConsistentHash => "consistentHash",
        }
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
