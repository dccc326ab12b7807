//! The two feeds between gateway and scaler: all that they know of each other.
//!
//! `/signals` flows from every gateway to the scaler, `/replicas` from the scaler to every gateway.
//! Both are JSON over HTTP, as server-sent events when asked for. The first event of a stream is a
//! full snapshot, later ones carry only the pools, and within a pool the endpoints or replicas,
//! that changed; `null` stands for what is gone. A gap in `seq` or a new `sender` means: reconnect.
//!
//! The types are pure; sockets are in [`publisher`] and [`follower`] alone.

pub mod feed;
pub mod follower;
pub mod histogram;
pub mod publisher;
pub mod replicas;
pub mod signals;
mod token;

pub use feed::{Delta, Frame, SCHEMA, View};
pub use histogram::Histogram;
pub use replicas::{
    Barrier, ColdStart, FailedStart, Figure, LastEnd, PoolReplicas, ProcessEnd, Replica,
    ReplicaState,
};
pub use signals::{
    EndpointSignals, Health, LimitedBy, PodPhase, PoolSignals, Totals, Waiting, estimated_tokens,
};
pub use token::{Token, bearers};
