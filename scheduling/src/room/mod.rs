//! How many requests an endpoint can take.
//!
//! - [`slow_start`]: a server that has just begun gets one request, and more with each first token

pub mod slow_start;
