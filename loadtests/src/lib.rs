//! What Forebay is tested and measured with: a simulated vLLM and its timing model.

pub mod sim;
pub mod timing;
