//! What Forebay is tested and measured with: a simulated vLLM and its timing model, and replay.

pub mod replay;
pub mod sim;
pub mod timing;
