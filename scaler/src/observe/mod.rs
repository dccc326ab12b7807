//! Reports of gateways and of other sources, as the loop reads them.

pub(crate) mod feeds;
pub(crate) mod relay;
pub(crate) mod sources;
