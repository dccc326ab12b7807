//! Which scaler decides, and the state that passes on to the next one.

pub(crate) mod config_map;
pub(crate) mod leader;
pub(crate) mod readiness;
pub(crate) mod store;
