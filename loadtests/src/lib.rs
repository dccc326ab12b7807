//! The programs that test and measure Forebay.
//!
//! - [`sim`]: a simulated vLLM, a server on a socket
//! - [`replay`]: a load, played through the scaler's pure core in simulated time
//! - [`load`]: an open-loop load generator for any OpenAI endpoint
//! - [`timing`]: how long an engine's work takes, for `sim` and `replay`
//! - `kv`: an engine's KV cache with its prefixes, for `sim` and `replay`
//! - `mix`: numbers that look random, for `sim` and `replay`
//! - [`plot`]: plots for the pages of `replay` and `load`, and of how costs grow

mod kv;
pub mod load;
mod mix;
pub mod plot;
pub mod replay;
pub mod sim;
pub mod timing;
