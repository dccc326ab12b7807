//! The figures that prefix affinity has learned of an endpoint, for the people who operate it.

/// Figures of the process at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learned {
    /// The tokens that its prefix cache takes before it drops what was not used for the longest time.
    pub cache_tokens: u64,
    /// Whether it reports that size itself. Otherwise it is the usual one.
    pub cache_reported: bool,
    /// Bytes of prompts that it works on in a second.
    pub prompt_bytes_per_second: f64,
    /// How many times as long as at the pool's endpoints on the whole a first token takes.
    pub first_token_slowness: f64,
    /// The same for a later token.
    pub later_token_slowness: f64,
}
