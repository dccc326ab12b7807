//! Leadership: which scaler decides, and the state that the next leader takes over.

pub(crate) mod config_map;
pub(crate) mod leader;
pub(crate) mod readiness;
pub(crate) mod store;
